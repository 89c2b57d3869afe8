"""Plots of what the data say in which direction: the spectrum of the covariance, and the relevance of inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from itergp.diagnostics.plots import BLUE, GREY
from itergp.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_spectrum(axes: Axes, spectrum: Sequence[float]) -> Axes:
    """Signal-to-noise ratios of the covariance's directions, logarithmic, with the line where data and prior weigh the same.

    Above the line the data say more than the prior. A spectrum that ends above it was cut off by the rank.

    Args:
        axes: Where to draw.
        spectrum: ``solution.trace.spectrum``, in descending order.

    Raises:
        InputError: If the spectrum is empty.
    """
    if not spectrum:
        raise InputError(
            "`spectrum` must have at least one ratio. Got none. Take it from the trace of a solve with a covariance."
        )
    floor = 1e-6 * max(*spectrum, 1e-300)  # eigenvalues far below the largest are rounding
    shown = [max(value, floor) for value in spectrum]
    index = range(1, len(shown) + 1)
    axes.fill_between(index, shown, 1.0, where=[value > 1.0 for value in shown], color=BLUE, alpha=0.15, linewidth=0)
    axes.plot(index, shown, "o-", color=BLUE, markersize=2.5, linewidth=1.0)
    axes.axhline(1.0, color="black", linewidth=0.8, linestyle="--", label="data and prior weigh the same")
    axes.legend(fontsize="x-small", frameon=False, loc="upper right")
    axes.set(yscale="log", xlabel="direction", ylabel="signal-to-noise ratio")
    axes.set_ylim(min(0.3, 0.5 * shown[-1]), 2.0 * max(shown[0], 1.0))
    axes.locator_params(axis="x", integer=True)
    axes.set_title("Spectrum of the covariance")
    return axes


def plot_relevance(
    axes: Axes,
    lengthscale: Tensor,
    *,
    names: Sequence[str] | None = None,
    spread: Tensor | None = None,
    most: int = 20,
) -> Axes:
    """Relevance of inputs under a kernel with a lengthscale each (ARD): the spread of an input in lengthscales, as bars.

    An input whose spread is a small part of its lengthscale changes the function little over the data.

    Args:
        axes: Where to draw.
        lengthscale: ``kernel.lengthscale``: ``(D,)``, ``(1, D)``, or ``(C, 1, D)`` of kernels of their own, whose geometric
            mean gives the bars and whose extremes the whiskers.
        names: Of the inputs; default their numbers.
        spread: Standard deviations of the inputs ``(D,)``; default 1, for standardised inputs.
        most: How many inputs to draw, the most relevant first.

    Raises:
        InputError: If names or spread are not those of D inputs.
    """
    values = lengthscale.detach().double().cpu()
    values = values.reshape(-1, values.shape[-1]) if values.dim() else values.reshape(1, 1)
    size = values.shape[-1]
    for name, given in (("names", names), ("spread", spread)):
        if given is not None and len(given) != size:
            raise InputError(
                f"`{name}` must have one entry per input, {size}. Got {len(given)}. Check the kernel's inputs."
            )
    scale = values.new_ones(size) if spread is None else spread.detach().double().cpu()
    relevance = scale / values
    centre = relevance.log().mean(0).exp()
    order = centre.argsort(descending=True)[:most]
    labels = [str(i) if names is None else str(names[i]) for i in order.tolist()]
    chosen, places = centre[order], range(len(labels))
    spans = None
    if len(values) > 1:
        spans = [(chosen - relevance[:, order].amin(0)).tolist(), (relevance[:, order].amax(0) - chosen).tolist()]
    axes.barh(places, chosen.tolist(), xerr=spans, color=BLUE, ecolor=GREY, height=0.7)
    axes.set_yticks(list(places), labels)
    axes.invert_yaxis()
    axes.set_xlim(left=0.0)
    axes.set_xlabel("spread of the input / lengthscale")
    left_out = size - len(labels)
    axes.set_title("Relevance of inputs" + (f" ({left_out} less relevant ones left out)" if left_out else ""))
    return axes

"""Plot of the two parts of a posterior's uncertainty along one input."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from itergp.diagnostics.plots import BLUE, ORANGE

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Decomposition(Protocol):
    """What is drawn: see ``itergp.models.UncertaintyDecomposition``."""

    @property
    def combined(self) -> Tensor:
        """Variance of the posterior ``(M, C)``."""

    @property
    def mathematical(self) -> Tensor:
        """The part that no computation removes ``(M, C)``."""


def plot_uncertainty(
    axes: Axes,
    x: Tensor,
    mean: Tensor,
    decomposition: Decomposition,
    *,
    latent: int = 0,
    deviations: float = 2.0,
    color: str = BLUE,
) -> Axes:
    """The posterior mean along one input, with bands for the mathematical and, around it, the computational uncertainty.

    Args:
        axes: Where to draw.
        x: Inputs ``(M,)`` or ``(M, 1)``.
        mean: Posterior mean ``(M, C)`` or ``(M,)``.
        decomposition: Of the variance at ``x``.
        latent: Which latent function.
        deviations: Half width of the bands, in standard deviations.
        color: Of the mean and the mathematical band; the computational one is orange.
    """
    order = x.detach().reshape(-1).argsort()
    points = x.detach().reshape(-1)[order].cpu().numpy()
    centre = (mean[:, latent] if mean.dim() == 2 else mean).detach()[order].cpu().numpy()
    inner = deviations * decomposition.mathematical[:, latent].detach()[order].clamp_min(0).sqrt().cpu().numpy()
    outer = deviations * decomposition.combined[:, latent].detach()[order].clamp_min(0).sqrt().cpu().numpy()
    axes.fill_between(
        points, centre - outer, centre + outer, color=ORANGE, alpha=0.35, linewidth=0, label="computational"
    )
    axes.fill_between(points, centre - inner, centre + inner, color="white", linewidth=0)
    axes.fill_between(
        points, centre - inner, centre + inner, color=color, alpha=0.35, linewidth=0, label="mathematical"
    )
    axes.plot(points, centre, color=color, linewidth=1.5, label="posterior mean")
    axes.margins(x=0.0)
    return axes

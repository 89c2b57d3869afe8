"""Maps of a classifier over two of its inputs: class probabilities, and where they are uncertain."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

import torch
from torch import Tensor

from itergp.diagnostics.metrics import class_probabilities
from itergp.diagnostics.uncertainty_plot import Decomposition
from itergp.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Quantity = Literal["entropy", "combined", "mathematical", "computational"]

_NAMED = 10  # classes that a legend can name
_MARGIN = 0.08  # of the data's range, around it
_TITLES = {
    "entropy": "Entropy of the prediction (nats)",
    "combined": "Standard deviation of f",
    "mathematical": "Mathematical standard deviation of f",
    "computational": "Computational standard deviation of f",
}


class Classifier(Protocol):
    """What is drawn: an ``itergp.models.NonConjugateGP`` with one tensor of inputs."""

    @property
    def train_inputs(self) -> tuple[Tensor, ...]:
        """Inputs ``(N, D)``."""

    @property
    def train_targets(self) -> Tensor:
        """Labels ``(N,)``."""

    def predict(self, x: Tensor) -> Any:
        """A distribution with ``.probs``."""

    def decompose_uncertainty(self, x: Tensor) -> Decomposition:
        """Variance in two parts."""


def plot_class_map(
    axes: Axes,
    model: Classifier,
    *,
    columns: tuple[int, int] = (0, 1),
    limits: tuple[float, float, float, float] | None = None,
    resolution: int = 100,
    points: bool = True,
) -> Axes:
    """Class probabilities over two inputs: each class a colour, mixed by probability, with the boundaries between classes.

    Args:
        axes: Where to draw.
        model: A classifier. Inputs that are not drawn stay at their median.
        columns: The two inputs, on the horizontal and the vertical axis.
        limits: Left, right, bottom and top; default the range of the training inputs.
        resolution: Points along each axis.
        points: Whether to draw the training rows.

    Raises:
        InputError: If the model does not predict classes, or the columns are not two of its inputs.
    """
    across, up, grid = _grid(model, columns, limits, resolution)
    probs = _probabilities(model, grid)
    count = probs.shape[1]
    colors = _colors(count)
    picture = (probs @ colors).reshape(resolution, resolution, 3).clamp(0.0, 1.0)
    extent = (float(across[0]), float(across[-1]), float(up[0]), float(up[-1]))
    axes.imshow(picture.numpy(), origin="lower", extent=extent, aspect="auto", interpolation="bilinear", alpha=0.75)
    _draw_boundaries(axes, across, up, probs, resolution)
    if points:
        _draw_points(axes, model, columns, colors)
    axes.set(xlim=extent[:2], ylim=extent[2:], xlabel=f"input {columns[0]}", ylabel=f"input {columns[1]}")
    axes.set_title("Class probabilities")
    return axes


def plot_uncertainty_map(
    axes: Axes,
    model: Classifier,
    quantity: Quantity = "entropy",
    *,
    latent: int = 0,
    columns: tuple[int, int] = (0, 1),
    limits: tuple[float, float, float, float] | None = None,
    resolution: int = 50,
    points: bool = True,
) -> Axes:
    """Uncertainty over two inputs, in colours with a bar.

    Args:
        axes: Where to draw.
        model: A classifier, or any model for the parts of the latent standard deviation.
        quantity: ``"entropy"`` of the predicted classes, or the ``"combined"``, ``"mathematical"`` or ``"computational"``
            standard deviation of a latent function, see ``model.decompose_uncertainty``.
        latent: Which latent function.
        columns: The two inputs; those that are not drawn stay at their median.
        limits: Left, right, bottom and top; default the range of the training inputs.
        resolution: Points along each axis.
        points: Whether to draw the training rows.

    Raises:
        InputError: If the quantity is unknown or the model does not have it, or the columns are not two of its inputs.
    """
    if quantity not in get_args(Quantity):
        raise InputError(f"`quantity` must be one of {get_args(Quantity)}. Got {quantity!r}.")
    across, up, grid = _grid(model, columns, limits, resolution)
    if quantity == "entropy":
        values = torch.special.entr(_probabilities(model, grid)).sum(1)
    else:
        variance = getattr(model.decompose_uncertainty(grid), quantity)
        if not 0 <= latent < variance.shape[1]:
            raise InputError(f"`latent` must be 0..{variance.shape[1] - 1}. Got {latent}.")
        values = variance[:, latent].clamp_min(0.0).sqrt()
    shown = values.detach().double().cpu().reshape(resolution, resolution).numpy()
    mesh = axes.pcolormesh(across.numpy(), up.numpy(), shown, cmap="cividis", shading="gouraud", vmin=0.0)
    axes.figure.colorbar(mesh, ax=axes)
    if points:
        at = model.train_inputs[0].detach().cpu()
        axes.scatter(at[:, columns[0]], at[:, columns[1]], s=4, color="white", alpha=0.6, linewidths=0)
    limits = (float(across[0]), float(across[-1]), float(up[0]), float(up[-1]))
    axes.set(xlim=limits[:2], ylim=limits[2:], xlabel=f"input {columns[0]}", ylabel=f"input {columns[1]}")
    axes.set_title(_TITLES[quantity])
    return axes


def _grid(
    model: Classifier, columns: tuple[int, int], limits: tuple[float, float, float, float] | None, resolution: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Coordinates along both axes, and inputs ``(resolution^2, D)``, row by row from the bottom."""
    x = model.train_inputs[0].detach()
    size = x.shape[-1]
    if len(model.train_inputs) != 1 or len(set(columns)) != 2 or not all(0 <= column < size for column in columns):
        raise InputError(
            f"`columns` must be two different inputs of a model with one tensor of inputs, of 0..{size - 1}. Got {columns}. "
            "Choose two others."
        )
    if resolution < 2:
        raise InputError(f"`resolution` must be at least 2. Got {resolution}. Leave it out for the default.")
    if limits is None:
        low, high = x[:, list(columns)].amin(0), x[:, list(columns)].amax(0)
        room = _MARGIN * (high - low).clamp_min(1e-12)
        (left, bottom), (right, top) = (low - room).tolist(), (high + room).tolist()
    else:
        left, right, bottom, top = limits
    across = torch.linspace(left, right, resolution, dtype=torch.float64)
    up = torch.linspace(bottom, top, resolution, dtype=torch.float64)
    grid = x.median(0).values.expand(resolution**2, size).clone()
    grid[:, columns[0]] = across.repeat(resolution).to(grid)
    grid[:, columns[1]] = up.repeat_interleave(resolution).to(grid)
    return across, up, grid


def _probabilities(model: Classifier, grid: Tensor) -> Tensor:
    """``(M, C)``, float64, on the CPU."""
    with torch.no_grad():
        probs = getattr(model.predict(grid), "probs", None)
    if probs is None:
        raise InputError(
            "The model must predict classes to have a map of their probabilities. Got a distribution without `probs`. Use "
            "plot_uncertainty_map(axes, model, 'combined')."
        )
    return class_probabilities(probs).double().cpu()


def _colors(count: int) -> Tensor:
    """RGB of the classes ``(C, 3)``."""
    from matplotlib import colormaps

    if count <= _NAMED:
        return torch.from_numpy(colormaps["tab10"](range(count))[:, :3].copy())
    return torch.from_numpy(colormaps["hsv"]([c / count for c in range(count)])[:, :3].copy())


def _draw_boundaries(axes: Axes, across: Tensor, up: Tensor, probs: Tensor, resolution: int) -> None:
    """Lines where a class stops being the most probable."""
    top = probs.topk(2, 1)
    for c in range(1 if probs.shape[1] == 2 else probs.shape[1]):
        rival = torch.where(top.indices[:, 0] == c, top.values[:, 1], top.values[:, 0])
        margin = (probs[:, c] - rival).reshape(resolution, resolution)
        if float(margin.min()) < 0.0 < float(margin.max()):
            axes.contour(across.numpy(), up.numpy(), margin.numpy(), levels=[0.0], colors="black", linewidths=0.8)


def _draw_points(axes: Axes, model: Classifier, columns: tuple[int, int], colors: Tensor) -> None:
    at, labels = model.train_inputs[0].detach().cpu(), model.train_targets.detach().long().cpu()
    for c, color in enumerate(colors.tolist()):
        own = at[labels == c]
        style: dict[str, Any] = {"s": 12, "color": [color], "edgecolors": "white", "linewidths": 0.4}
        axes.scatter(own[:, columns[0]], own[:, columns[1]], label=f"class {c}", **style)
    if len(colors) <= _NAMED:
        axes.legend(fontsize="x-small", framealpha=0.8, loc="best")

"""Gradients of rows by layers: what goes into a layer, and what comes back to it, is all that its weights' gradients are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from itergp.errors import InputError
from itergp.operators.linearisation import Linearisation, Rows, evaluating, num_rows, take
from itergp.operators.row_gradients import LayerWeights, RowGradients, WeightLayout

_SAME = 1e-3  # relative difference of gradients by two ways that is rounding
_COPIES = 3  # arrays of the size of the gradients that are there at a time
_TRIED = 8  # random functions of the outputs by which gradients are compared


@dataclass(frozen=True)
class _Layer:
    """A module whose weights' gradients follow from its inputs and from those of its outputs.

    Attributes:
        name: Of the module.
        kinds: Which of ``weight`` and ``bias`` are chosen, in this order.
        outer: Whether a row goes through it once, so that gradients are outer products.
    """

    name: str
    kinds: tuple[str, ...]
    outer: bool = False

    @property
    def names(self) -> list[str]:
        """Of its parameters."""
        return [f"{self.name}.{kind}" if self.name else kind for kind in self.kinds]


class LayerGradients:
    """Gradients of rows in the chosen weights, of linear layers and convolutions without arrays of the weights for each row.

    Whether a layer is what it seems is seen at a few rows, where its gradients must be those of ``Linearisation``. All other
    weights, and all weights of a network where it is not, have theirs.

    Args:
        linearisation: The network as a function of its weights.
        probe: Inputs of a few rows.
    """

    def __init__(self, linearisation: Linearisation, probe: Rows) -> None:
        self.linearisation = linearisation
        self._probe = probe = take(probe, slice(0, 2))
        self._layers = self._find(probe)
        self._arrange()
        if self._layers and not self._agrees(probe):
            self._layers = []
            self._arrange()

    def at(self, rows: Rows, cotangents: Tensor, scale: Tensor) -> RowGradients:
        """``scale J_n^T`` times vectors of each row's own ``(n, m, C)``.

        Args:
            rows: Inputs of n rows.
            cotangents: The vectors.
            scale: Numbers ``(P,)`` that gradients are multiplied by, the same ones within a parameter tensor.

        Raises:
            InputError: If a layer is not called once, as it was at first.
        """
        plain, left, right = [], [], []
        if self._layers:
            inputs, back = self._through(rows, cotangents)
            for layer, value, own in zip(self._layers, inputs, back, strict=True):
                if layer.outer:
                    ones = [value.new_ones(len(value), 1)] if "bias" in layer.kinds else []
                    right.append(torch.cat([value, *ones] if "weight" in layer.kinds else ones, 1))
                    left.append(own)
                else:
                    plain += self._over_positions(layer, value, own)
        if self._rest is not None:
            plain.append(self._rest.row_gradients(rows, cotangents))
        empty = cotangents.new_zeros(*cotangents.shape[:2], 0)
        found = RowGradients(self.layout, torch.cat(plain, -1) if plain else empty, tuple(left), tuple(right))
        return found.scaled(scale)

    def rows_at_once(self, count: int, budget: int) -> int:
        """Rows whose gradients for ``count`` vectors fit into some bytes."""
        itemsize = self.linearisation.parameters()[0].element_size()
        most = max(self.layout.width, self._positions)
        rest = 0 if self._rest is None else self._rest.num_weights
        return max(1, budget // (itemsize * (most * (count + _COPIES) + _COPIES * rest)))

    # ----------------------------------------------------------------------- inside
    def _find(self, probe: Rows) -> list[_Layer]:
        """Layers that the probe goes through once, whose weights are nowhere else."""
        network, chosen = self.linearisation.network, set(self.linearisation.names)
        uses: dict[int, int] = {}
        for _, value in network.named_parameters(remove_duplicate=False):
            uses[id(value)] = uses.get(id(value), 0) + 1
        found = []
        for name, module in network.named_modules():
            if not _known(module):
                continue
            own = dict(module.named_parameters(recurse=False))
            kinds = tuple(
                kind
                for kind in ("weight", "bias")
                if kind in own and uses[id(own[kind])] == 1 and (f"{name}.{kind}" if name else kind) in chosen
            )
            if kinds:
                found.append(_Layer(name, kinds))
        with _watching(network, found) as seen, torch.enable_grad(), evaluating(network):
            self.linearisation.outputs_with_graph(probe)
        size, layers = num_rows(probe), []
        for layer, calls in zip(found, seen, strict=True):
            if len(calls) == 1 and calls[0][0].shape[:1] == (size,) and calls[0][0].dim() >= 2:
                outer = isinstance(network.get_submodule(layer.name), nn.Linear) and calls[0][0].dim() == 2
                layers.append(_Layer(layer.name, layer.kinds, outer))
        return layers

    def _arrange(self) -> None:
        """Where the weights of layers are, and what has the gradients of the others."""
        lin = self.linearisation
        starts = dict(zip(lin.names, torch.tensor([0, *lin.sizes]).cumsum(0).tolist(), strict=False))
        sizes, shapes = dict(zip(lin.names, lin.sizes, strict=True)), dict(zip(lin.names, lin.shapes, strict=True))
        self._positions, outer, plain, taken = 0, [], [], set()
        for layer in self._layers:
            taken.update(layer.names)
            own = dict(zip(layer.kinds, layer.names, strict=True))
            if layer.outer:
                outputs, inputs = shapes[own["weight"]] if "weight" in own else (sizes[own["bias"]], 0)
                bias = starts[own["bias"]] if "bias" in own else -1
                outer.append(LayerWeights(outputs, inputs, starts[own["weight"]] if inputs else -1, bias))
            else:
                plain += [(starts[name], starts[name] + sizes[name]) for name in layer.names]
        rest = [name for name in lin.names if name not in taken]
        plain += [(starts[name], starts[name] + sizes[name]) for name in rest]
        self.layout = WeightLayout(lin.num_weights, tuple(outer), tuple(plain))
        self._rest = None
        if rest:
            whole = len(rest) == len(lin.names)
            self._rest = lin if whole else Linearisation(lin.network, rest, self._probe, lin.num_latents)

    def _agrees(self, probe: Rows) -> bool:
        lin = self.linearisation
        generator = torch.Generator().manual_seed(0)
        shape = (num_rows(probe), min(_TRIED, lin.num_latents), lin.num_latents)
        like = lin.parameters()[0]
        cotangents = torch.randn(shape, generator=generator, dtype=like.dtype).to(like.device)
        expected = lin.row_gradients(probe, cotangents)
        found = self.at(probe, cotangents, torch.ones_like(expected[0, 0])).dense()
        return torch.allclose(found, expected, rtol=_SAME, atol=_SAME * float(expected.abs().max()))

    def _through(self, rows: Rows, cotangents: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Inputs of each layer, and derivatives in its outputs ``(n, m, ...)``."""
        network = self.linearisation.network
        with _watching(network, self._layers) as seen, torch.enable_grad(), evaluating(network):
            outputs = self.linearisation.outputs_with_graph(rows)
            if any(len(calls) != 1 for calls in seen):
                wrong = [layer.name for layer, calls in zip(self._layers, seen, strict=True) if len(calls) != 1]
                raise InputError(
                    f"`network` must call its layers alike for all rows. Got rows for which {wrong} are not called once, as "
                    "they were for the first. Choose other `parameters`, or write what depends on the rows without modules."
                )
            ends = [calls[0][1] for calls in seen]
            count, columns = cotangents.shape[1], []
            for i in range(count):
                again = i + 1 < count
                found = torch.autograd.grad(
                    outputs, ends, cotangents[:, i], retain_graph=again, materialize_grads=True, allow_unused=True
                )
                columns.append(found)
        stacked = [torch.stack(own, 1) for own in zip(*columns, strict=True)]
        if not columns:
            stacked = [end.detach().unsqueeze(1)[:, :0] for end in ends]
        return [calls[0][0] for calls in seen], stacked

    def _over_positions(self, layer: _Layer, inputs: Tensor, back: Tensor) -> list[Tensor]:
        """Gradients ``(n, m, size)`` of weights that a row meets at many positions."""
        module = self.linearisation.network.get_submodule(layer.name)
        n, m = back.shape[:2]
        if isinstance(module, nn.Conv2d):
            back = back.flatten(3)
            fitted = {key: getattr(module, key) for key in ("dilation", "padding", "stride")}
            inputs = functional.unfold(inputs, module.kernel_size, **fitted).mT
        else:
            inputs, back = inputs.flatten(1, -2), back.flatten(2, -2).mT
        found = []
        for kind in layer.kinds:
            if kind == "bias":
                found.append(back.sum(-1))
            else:
                found.append(torch.bmm(back.reshape(n, -1, back.shape[-1]), inputs).view(n, m, -1))
        self._positions = max(self._positions, inputs[0].numel())
        return found


def _known(module: nn.Module) -> bool:
    """Whether a module computes what its type says, and its weights' gradients are known here."""
    if type(module) is nn.Conv2d:
        return module.groups == 1 and module.padding_mode == "zeros" and not isinstance(module.padding, str)
    return type(module) is nn.Linear


@contextmanager
def _watching(network: nn.Module, layers: list[_Layer]) -> Iterator[list[list[tuple[Tensor, Tensor]]]]:
    """Inputs and outputs of each layer's calls; what is computed in place afterwards does not change them."""
    seen: list[list[tuple[Tensor, Tensor]]] = [[] for _ in layers]

    def watch(calls: list[tuple[Tensor, Tensor]]):
        def hook(module: nn.Module, args: tuple[Tensor, ...], keywords: dict[str, Tensor], output: Tensor) -> Tensor:
            value = args[0] if args else keywords["input"]
            end = output if output.requires_grad else output.detach().requires_grad_()
            calls.append((value.detach().clone(), end))
            return end.clone()

        return hook

    modules = [network.get_submodule(layer.name) for layer in layers]
    handles = [
        module.register_forward_hook(watch(calls), with_kwargs=True)
        for module, calls in zip(modules, seen, strict=True)
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()

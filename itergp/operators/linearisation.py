"""A network as a function of some of its parameters, and the derivative in these, batch of rows by batch of rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from itergp.errors import InputError
from itergp.operators.row_gradients import LayerWeights

Rows: TypeAlias = Any  # inputs of some rows: a tensor, or a tuple or dictionary of such
Chosen: TypeAlias = Sequence[str] | Callable[[str, nn.Parameter], bool] | None
_SAME = 1e-3  # relative difference of a row by itself and among others that is rounding
_COPIES = 3  # arrays of the size of the rows' gradients that are there at a time


class Linearisation:
    """Outputs of a network ``(n, C)`` and products with their Jacobian J ``(n C, P)`` in the chosen parameters.

    The network is called in evaluation mode, whatever mode it is in, and is left as it was. Weights that are shared count once.
    Products with columns cost one forward-mode or backward pass each; gradients row by row are taken for a batch at once.

    Args:
        network: Any module whose rows do not depend on each other in evaluation mode.
        chosen: Names of parameters or of modules; a predicate of name and parameter; None for those that require a gradient.
        probe: Inputs of a few rows, to see whether the network fits.
        num_latents: C.

    Raises:
        InputError: If no parameters are chosen, or the network does not give ``(n, C)`` row by row.
    """

    def __init__(self, network: nn.Module, chosen: Chosen, probe: Rows, num_latents: int) -> None:
        self.network, self.num_latents = network, num_latents
        self.names = chosen_names(network, chosen)
        parameters = self.parameters()
        self.shapes = [tuple(value.shape) for value in parameters]
        self.sizes = [value.numel() for value in parameters]
        self.num_weights = sum(self.sizes)
        self._forward_mode = True
        self._by_rows = self._check(take(probe, slice(0, 2)))

    # ------------------------------------------------------------------ weights
    def parameters(self) -> list[Tensor]:
        """The chosen parameters as they are now, without derivatives."""
        found = dict(self.network.named_parameters())
        return [found[name].detach() for name in self.names]

    def weights(self) -> Tensor:
        """The chosen parameters as one vector ``(P,)``, a copy."""
        return torch.cat([value.reshape(-1) for value in self.parameters()])

    def named(self, flat: Tensor) -> dict[str, Tensor]:
        """Vectors ``(..., P)`` as tensors by parameter name, ``(..., *shape)``."""
        parts = flat.split(self.sizes, -1)
        shaped = zip(self.names, parts, self.shapes, strict=True)
        return {name: part.reshape(*part.shape[:-1], *shape) for name, part, shape in shaped}

    # ------------------------------------------------------------------ products
    @torch.no_grad()
    def outputs(self, rows: Rows) -> Tensor:
        """``f(x; w*)`` ``(n, C)``."""
        with evaluating(self.network):
            return self._as_latents(_call(self.network, rows), num_rows(rows))

    def outputs_with_graph(self, rows: Rows) -> Tensor:
        """``f(x; w*)`` ``(n, C)`` with derivatives, where these are enabled, in whatever mode the network is in."""
        return self._as_latents(_call(self.network, rows), num_rows(rows))

    @torch.no_grad()
    def push(self, rows: Rows, tangents: Tensor) -> Tensor:
        """J times vectors of weights ``(P, k)``: ``(n, C, k)``."""
        with evaluating(self.network):
            columns = [self._directional(rows, self.named(tangent)) for tangent in tangents.mT]
        return torch.stack(columns, -1) if columns else tangents.new_zeros(num_rows(rows), self.num_latents, 0)

    @torch.no_grad()
    def pull(self, rows: Rows, cotangents: Tensor) -> Tensor:
        """``J^T`` times a block ``(n, C, k)``: ``(P, k)``."""
        product = cotangents.new_empty(self.num_weights, cotangents.shape[-1])
        with evaluating(self.network):
            _, back = vjp(lambda values: self._at(values, rows), self._values())[:2]
            for i in range(cotangents.shape[-1]):
                product[:, i] = self._flat(back(cotangents[..., i])[0])
        return product

    @torch.no_grad()
    def row_gradients(self, rows: Rows, cotangents: Tensor) -> Tensor:
        """``J_n^T`` times vectors of each row's own ``(n, m, C)``: ``(n, m, P)``."""
        size, count = cotangents.shape[:2]
        if not self._by_rows:
            return self._row_after_row(rows, cotangents)
        product = cotangents.new_empty(size, count, self.num_weights)
        with evaluating(self.network):
            values = {name: value.expand(size, *value.shape) for name, value in self._values().items()}
            _, back = vjp(lambda own: vmap(self._one)(own, rows), values)[:2]
            for i in range(count):
                self._flat(back(cotangents[:, i])[0], out=product[:, i])
        return product

    def prior_blocks(self, rows: Rows, scale: Tensor) -> Tensor:
        """``J_n diag(scale)^2 J_n^T`` of each row ``(n, C, C)``, for scale ``(P,)``."""
        units = torch.eye(self.num_latents).to(scale).expand(num_rows(rows), -1, -1)
        gradients = self.row_gradients(rows, units).mul_(scale)
        return torch.bmm(gradients, gradients.mT)

    @property
    def structured(self) -> bool:
        """Whether ``prior_blocks`` and products need no gradients of rows."""
        return False

    def rows_at_once(self, count: int, budget: int) -> int:
        """Rows whose gradients for ``count`` vectors fit into some bytes."""
        itemsize = self.parameters()[0].element_size()
        return max(1, budget // (itemsize * self.num_weights * (count + _COPIES)))

    # -------------------------------------------------------------------- inside
    def _values(self) -> dict[str, Tensor]:
        return dict(zip(self.names, self.parameters(), strict=True))

    def _at(self, values: dict[str, Tensor], rows: Rows) -> Tensor:
        output = functional_call(self.network, values, *_arguments(rows))
        return self._as_latents(output, num_rows(rows))

    def _one(self, values: dict[str, Tensor], row: Rows) -> Tensor:
        return self._at(values, tree_map(lambda x: x.unsqueeze(0), row))[0]

    def _flat(self, values: dict[str, Tensor], out: Tensor | None = None) -> Tensor:
        """Tensors by name, of one vector or of one for each row, side by side."""
        if out is None:
            return torch.cat([values[name].reshape(-1) for name in self.names])
        for part, name in zip(out.split(self.sizes, -1), self.names, strict=True):
            part.copy_(values[name].reshape(part.shape))
        return out

    def _directional(self, rows: Rows, tangent: dict[str, Tensor]) -> Tensor:
        if self._forward_mode:
            try:
                return jvp(lambda values: self._at(values, rows), (self._values(),), (tangent,))[1]
            except (NotImplementedError, RuntimeError):  # some operations have no forward mode
                self._forward_mode = False
        return self._twice_backward(rows, tangent)

    def _twice_backward(self, rows: Rows, tangent: dict[str, Tensor]) -> Tensor:
        """``J t`` as the derivative of ``J^T c`` in c, for operations that have no forward mode."""
        with torch.enable_grad():
            values = {name: value.clone().requires_grad_() for name, value in self._values().items()}
            outputs = self._at(values, rows)
            cotangent = torch.zeros_like(outputs, requires_grad=True)
            leaves, chosen = list(values.values()), [tangent[name] for name in values]
            pulled = torch.autograd.grad(outputs, leaves, cotangent, create_graph=True, materialize_grads=True)
            known = [(pull, own) for pull, own in zip(pulled, chosen, strict=True) if pull.requires_grad]
            if not known:
                return torch.zeros_like(outputs).detach()
            first, second = zip(*known, strict=True)
            return torch.autograd.grad(first, cotangent, second)[0]

    def _row_after_row(self, rows: Rows, cotangents: Tensor) -> Tensor:
        one = [self.pull(take(rows, slice(i, i + 1)), own.mT.unsqueeze(0)).mT for i, own in enumerate(cotangents)]
        return torch.stack(one)

    def _as_latents(self, output: Any, size: int) -> Tensor:
        """Outputs ``(n, C)``, or ``(n,)`` for C = 1."""
        if torch.is_tensor(output) and output.shape == (size,) and self.num_latents == 1:
            output = output.unsqueeze(-1)
        if not torch.is_tensor(output) or output.shape != (size, self.num_latents):
            got = tuple(output.shape) if torch.is_tensor(output) else type(output).__name__
            raise InputError(
                f"`network` must give the {self.num_latents} latent value(s) of each row, ({size}, {self.num_latents}), for "
                f"{size} rows. Got {got}. Wrap it in a module that returns them, and match the likelihood's number of latents."
            )
        return output

    def _check(self, probe: Rows) -> bool:
        """Whether gradients of several rows can be had at once; rows that depend on each other are refused."""
        together = self.outputs(probe)
        alone = torch.cat([self.outputs(take(probe, slice(i, i + 1))) for i in range(num_rows(probe))])
        if not torch.allclose(together, alone, rtol=_SAME, atol=_SAME * float(together.abs().max())):
            raise InputError(
                "`network` must treat every row by itself in evaluation mode. Got outputs of a row that depend on the other "
                "rows of its batch. Replace such layers, for example batch normalisation without running statistics."
            )
        try:
            with torch.no_grad(), evaluating(self.network):
                values = {name: value.expand(len(together), *value.shape) for name, value in self._values().items()}
                by_rows = vmap(self._one)(values, probe)
        except (RuntimeError, NotImplementedError):
            return False
        return torch.allclose(together, by_rows, rtol=_SAME, atol=_SAME * float(together.abs().max()))


class FinalLayer(Linearisation):
    """The linearisation in the weights of the last linear layer, ``f = W phi + b``: everything follows from phi ``(n, d)``.

    Args:
        network: The network.
        chosen: As in ``Linearisation``; those of the layer alone.
        probe: Inputs of a few rows.
        num_latents: C.

    Raises:
        InputError: If other parameters are chosen, or the network is none of rows.
    """

    def __init__(self, network: nn.Module, chosen: Chosen, probe: Rows, num_latents: int) -> None:
        super().__init__(network, chosen, probe, num_latents)
        layer = final_linear(network, self.names, probe)
        if layer is None:
            raise InputError(
                "`chosen` must be parameters of a linear layer that gives the network's output. Got others."
            )
        self._layer = layer
        self._kinds = [name.rpartition(".")[-1] for name in self.names]
        starts = dict(zip(self._kinds, torch.tensor([0, *self.sizes]).cumsum(0).tolist(), strict=False))
        inputs = layer.in_features if "weight" in starts else 0
        self.layer = LayerWeights(num_latents, inputs, starts.get("weight", -1), starts.get("bias", -1))

    @property
    def structured(self) -> bool:
        """They need phi alone."""
        return True

    @torch.no_grad()
    def features(self, rows: Rows) -> Tensor:
        """Inputs phi of the layer ``(n, d)``."""
        with evaluating(self.network), _watching(self._layer) as seen:
            _call(self.network, rows)
        return seen[-1][0]

    @torch.no_grad()
    def design(self, rows: Rows, scale: Tensor) -> Tensor:
        """Features in units of the prior, that of the bias last ``(n, d)``: J is ``I (x) design``.

        Args:
            rows: Inputs of n rows.
            scale: Prior standard deviations ``(P,)``, the same ones within a parameter tensor.
        """
        features, parts = self.features(rows), []
        if "weight" in self._kinds:
            parts.append(features * scale[self.layer.matrix])
        if "bias" in self._kinds:
            parts.append(scale[self.layer.bias].expand(len(features), 1))
        return torch.cat(parts, 1)

    @torch.no_grad()
    def push(self, rows: Rows, tangents: Tensor) -> Tensor:
        """J times vectors of weights ``(P, k)``: ``(n, C, k)``."""
        features, width = self.features(rows), tangents.shape[-1]
        product = features.new_zeros(len(features), self.num_latents, width)
        for kind, part in zip(self._kinds, tangents.split(self.sizes), strict=True):
            if kind == "bias":
                product += part
            else:
                block = part.view(self.num_latents, -1, width).movedim(1, 0).flatten(1)
                product += (features @ block).view(product.shape)
        return product

    @torch.no_grad()
    def pull(self, rows: Rows, cotangents: Tensor) -> Tensor:
        """``J^T`` times a block ``(n, C, k)``: ``(P, k)``."""
        features, parts = self.features(rows), []
        for kind in self._kinds:
            if kind == "bias":
                parts.append(cotangents.sum(0))
            else:
                product = features.mT @ cotangents.flatten(1)
                parts.append(product.view(-1, *cotangents.shape[1:]).movedim(0, 1).flatten(0, 1))
        return torch.cat(parts)

    @torch.no_grad()
    def row_gradients(self, rows: Rows, cotangents: Tensor) -> Tensor:
        """``J_n^T`` times vectors of each row's own ``(n, m, C)``: ``(n, m, P)``."""
        features, parts = self.features(rows), []
        for kind in self._kinds:
            outer = cotangents.unsqueeze(-1) * features[:, None, None]
            parts.append(cotangents if kind == "bias" else outer.flatten(2))
        return torch.cat(parts, -1)

    @torch.no_grad()
    def prior_blocks(self, rows: Rows, scale: Tensor) -> Tensor:
        """``J_n diag(scale)^2 J_n^T`` of each row ``(n, C, C)``, which is diagonal."""
        return torch.diag_embed(self.prior_variances(rows, scale))

    @torch.no_grad()
    def prior_variances(self, rows: Rows, scale: Tensor) -> Tensor:
        """The diagonals of ``prior_blocks`` ``(n, C)``."""
        features, variance = self.features(rows), 0.0
        for kind, part in zip(self._kinds, scale.square().split(self.sizes), strict=True):
            variance = variance + (part if kind == "bias" else features.square() @ part.view(self.num_latents, -1).mT)
        return torch.as_tensor(variance).expand(len(features), -1)


def linearise(network: nn.Module, chosen: Chosen, probe: Rows, num_latents: int) -> Linearisation:
    """The linearisation that knows most of the network's structure.

    Args:
        network: Any module whose rows do not depend on each other in evaluation mode.
        chosen: Names of parameters or of modules; a predicate of name and parameter; None for those that require a gradient.
        probe: Inputs of a few rows.
        num_latents: C.
    """
    final = final_linear(network, chosen_names(network, chosen), probe) is not None
    return (FinalLayer if final else Linearisation)(network, chosen, probe, num_latents)


def chosen_names(network: nn.Module, chosen: Chosen) -> list[str]:
    """Names of the chosen parameters, in the network's order.

    Raises:
        InputError: If there are none, a name is unknown, or they are not of one floating-point dtype.
    """
    known = dict(network.named_parameters())
    if chosen is None:
        names = [name for name, value in known.items() if value.requires_grad]
    elif callable(chosen):
        names = [name for name, value in known.items() if chosen(name, value)]
    else:
        wanted = [chosen] if isinstance(chosen, str) else list(chosen)
        names = [name for name in known if any(name == one or name.startswith(f"{one}.") for one in wanted)]
        unknown = [one for one in wanted if not any(name == one or name.startswith(f"{one}.") for name in known)]
        if unknown:
            raise InputError(
                f"`parameters` must name parameters or modules of the network. Got {unknown}. See {list(known)}."
            )
    if not names:
        raise InputError(
            "`parameters` must choose some. Got none. Name them, or let those be trainable that are uncertain."
        )
    kinds = {known[name].dtype for name in names}
    if len(kinds) > 1 or not kinds <= {torch.float32, torch.float64}:
        raise InputError(f"Chosen parameters must be all float32 or all float64. Got {kinds}. Use network.float().")
    return names


def final_linear(network: nn.Module, names: list[str], probe: Rows) -> nn.Linear | None:
    """The linear layer that owns all of these parameters and gives the network's output, or None."""
    owners = {name.rpartition(".")[0] for name in names}
    layer = network.get_submodule(owners.pop()) if len(owners) == 1 else None
    if type(layer) is not nn.Linear:
        return None
    own = {id(value) for value in layer.parameters(recurse=False)}
    uses = [value for _, value in network.named_parameters(remove_duplicate=False) if id(value) in own]
    with torch.no_grad(), evaluating(network), _watching(layer) as seen:
        output = _call(network, take(probe, slice(0, 1)))
    once = len(seen) == 1 and len(uses) == len(own) and seen[0][0].dim() == 2
    return layer if once and torch.is_tensor(output) and output is seen[0][1] else None


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluation mode for the while, and implementations of attention that have all derivatives."""
    training = [module for module in network.modules() if module.training]
    fast = torch.backends.mha.get_fastpath_enabled()
    for module in training:
        module.training = False
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for module in training:
            module.training = True


@contextmanager
def _watching(layer: nn.Module) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Inputs and outputs of a layer's calls, as they come."""
    seen: list[tuple[Tensor, Tensor]] = []
    handle = layer.register_forward_hook(lambda module, args, output: seen.append((args[0], output)))
    try:
        yield seen
    finally:
        handle.remove()


# ------------------------------------------------------------------ rows of anything
def num_rows(rows: Rows) -> int:
    """How many rows there are."""
    return int(tree_leaves(rows)[0].shape[0])


def take(rows: Rows, which: Any) -> Rows:
    """Some of the rows."""
    return tree_map(lambda x: x[which], rows)


def joined(parts: Sequence[Rows]) -> Rows:
    """Rows of several, one after the other."""
    leaves, (_, spec) = [tree_leaves(part) for part in parts], tree_flatten(parts[0])
    return tree_unflatten([torch.cat(own) for own in zip(*leaves, strict=True)], spec)


def _arguments(rows: Rows) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments that a network takes for some rows."""
    if isinstance(rows, dict):
        return (), rows
    return (rows if isinstance(rows, tuple) else (rows,)), {}


def _call(network: nn.Module, rows: Rows) -> Any:
    args, keywords = _arguments(rows)
    return network(*args, **keywords)

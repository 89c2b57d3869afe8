"""Learning without forgetting: low-rank adapters of a transformer, held back where the first task's data say most.

``python -m benchmarks.adapters`` trains a small transformer on digits, adapts it to digits that are turned, and draws what it learns
against what it forgets, for no penalty, L2, the diagonal of the Gauss-Newton matrix, and the posterior of the adapters, over strengths
of the penalty and three seeds. It prints the table of the page on adapters, and writes its picture to ``docs/images``.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from itergp.likelihoods import CategoricalLikelihood
from itergp.models import NetworkGP
from itergp.posterior.row_information import RowInformation

IMAGES = Path(__file__).parents[1] / "docs" / "images"
WIDTH, HEADS, LAYERS, RANK = 32, 4, 2, 8
STRENGTHS, SEEDS = (0.3, 3.0, 30.0, 300.0, 3000.0), (0, 1, 2)
SAMPLE, STEPS, BATCH = 300, 400, 100
Labelled = tuple[Tensor, Tensor]
Penalty = Callable[[dict[str, Tensor]], Tensor]


class Attention(nn.Module):
    """Self-attention of four linear layers, which adapters can replace."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """Tokens ``(n, T, WIDTH)``."""
        query, key, value = (
            layer(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        weights = (query @ key.mT / query.shape[-1] ** 0.5).softmax(-1)
        return self.out((weights @ value).transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """Attention and two linear layers, each after a normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.up, self.down = Attention(), nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens ``(n, T, WIDTH)``."""
        x = x + self.attention(self.first(x))
        return x + self.down(torch.relu(self.up(self.second(x))))


class Transformer(nn.Module):
    """Images of 8 x 8 pixels as eight tokens, the rows."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.position = nn.Linear(8, WIDTH), nn.Parameter(0.1 * torch.randn(8, WIDTH))
        self.layers = nn.Sequential(*(Layer() for _ in range(LAYERS)))
        self.last = nn.Linear(WIDTH, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(n, 10)`` of images ``(n, 8, 8)``."""
        return self.last(self.layers(self.embed(x) + self.position).mean(1))


class Adapted(nn.Module):
    """A frozen linear layer plus a product of two thin ones, of which the second, zero at first, is learned (LoRA-FA)."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.reduce = nn.Linear(layer.in_features, RANK, bias=False).requires_grad_(False)
        self.expand = nn.Linear(RANK, layer.out_features, bias=False)
        nn.init.normal_(self.reduce.weight, std=layer.in_features**-0.5)
        nn.init.zeros_(self.expand.weight)

    def forward(self, x: Tensor) -> Tensor:
        """As the layer."""
        return self.layer(x) + self.expand(self.reduce(x))


def adapted(network: Transformer) -> Transformer:
    """A copy whose linear layers have adapters, and nothing else to learn."""
    network = copy.deepcopy(network).requires_grad_(False)
    for module in [*network.modules()]:
        if isinstance(module, (Attention, Layer)):
            for name, child in [*module.named_children()]:
                if isinstance(child, nn.Linear):
                    setattr(module, name, Adapted(child))
    return network


def train(
    network: nn.Module, data: Labelled, steps: int, penalty: Penalty | None = None, strength: float = 0.0
) -> None:
    """Minimises the mean loss plus the penalty, in nats, divided by the number of rows."""
    x, y = data
    learned = {name: p for name, p in network.named_parameters() if p.requires_grad}
    optimiser = torch.optim.Adam(learned.values(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        rows = torch.randperm(len(y))[:BATCH]
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(network(x[rows]), y[rows])
        if penalty is not None:
            loss = loss + strength / len(y) * penalty(learned)
        loss.backward()
        optimiser.step()
        schedule.step()


@torch.no_grad()
def scores(network: nn.Module, data: Labelled) -> tuple[float, float]:
    """Accuracy and loss."""
    logits = network(data[0])
    right = (logits.argmax(-1) == data[1]).double().mean()
    return float(right), float(nn.functional.cross_entropy(logits, data[1]))


def penalties(network: nn.Module, sample: Labelled) -> dict[str, Penalty]:
    """Half squared distances of adapters from zero, by what a sample of the first task says of them."""
    model = NetworkGP(network, *sample, CategoricalLikelihood(10), prior_precision=0.1)
    posterior = model.weight_posterior()
    assert isinstance(posterior.information, RowInformation)
    seen = posterior.information.rows.dense()[:, 0].square().sum(0) / posterior.scale.square()
    diagonal = posterior.linearisation.named(seen + posterior.scale.pow(-2))
    return {
        "L2": lambda weights: 0.5 * sum((w.square().sum() for w in weights.values()), torch.zeros(())),
        "diagonal": lambda weights: 0.5 * sum((diagonal[k] * w.square()).sum() for k, w in weights.items()),
        "posterior": posterior.penalty,
    }


def run(seed: int) -> dict[tuple[str, float], tuple[float, ...]]:
    """Accuracy and loss of the first task, then of the second, by penalty and strength."""
    torch.manual_seed(seed)
    digits = load_digits()
    order = torch.randperm(len(digits.target))
    x, y = torch.tensor(digits.images / 16.0, dtype=torch.float32)[order], torch.tensor(digits.target)[order].long()
    turned = x.rot90(1, (1, 2))
    first, second = [(z[:1200], y[:1200]) for z in (x, turned)]
    tests = [(z[1200:], y[1200:]) for z in (x, turned)]
    network = Transformer()
    train(network, first, STEPS)
    found = {("before", 0.0): sum((scores(network, test) for test in tests), ())}
    start = adapted(network)
    known = penalties(start, (x[:SAMPLE], y[:SAMPLE]))
    for name, penalty in {"none": None, **known}.items():
        for strength in STRENGTHS if penalty is not None else (0.0,):
            own = copy.deepcopy(start)
            torch.manual_seed(seed)
            train(own, second, STEPS, penalty, _scale(name) * strength)
            found[name, strength] = sum((scores(own, test) for test in tests), ())
    return found


def _scale(name: str) -> float:
    return 10.0 if name == "L2" else 1.0  # whose strengths are others


def main() -> None:
    """Runs all seeds, prints the table and draws the picture."""
    torch.set_num_threads(1)
    started = time.process_time()
    runs = [run(seed) for seed in SEEDS]
    print(
        f"{'penalty':12}{'strength':>9}  first: accuracy, NLL    second: accuracy, NLL   (means of {len(SEEDS)} seeds)"
    )
    means = {key: [statistics.mean(own[key][i] for own in runs) for i in range(4)] for key in runs[0]}
    for (name, strength), (right, loss, new_right, new_loss) in means.items():
        print(
            f"{name:12}{_scale(name) * strength:9g}  {right:.3f}  {loss:.3f}            {new_right:.3f}  {new_loss:.3f}"
        )
    print(f"{time.process_time() - started:.0f} CPU seconds")
    figure, axis = plt.subplots(figsize=(6.0, 3.4), layout="constrained")
    for name, style in {"L2": "C7.-", "diagonal": "C1.-", "posterior": "C0.-"}.items():
        curve = [means["none", 0.0], *(means[name, strength] for strength in STRENGTHS)]
        axis.plot([m[2] for m in curve], [m[0] for m in curve], style, label=name)
    axis.plot(means["none", 0.0][2], means["none", 0.0][0], "k*", label="no penalty")
    axis.axhline(means["before", 0.0][0], color="k", lw=0.5, ls=":")
    axis.set(xlabel="accuracy, turned digits (learned)", ylabel="accuracy, digits (kept)")
    axis.legend(frameon=False)
    figure.savefig(IMAGES / "adapters.png", dpi=120)


if __name__ == "__main__":
    main()

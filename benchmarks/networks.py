"""Uncertainty for trained networks: the linearised posterior, of rows one by one and of a low rank, and what else there is.

``python -m benchmarks.networks digits mnist classes`` prints held-out losses, calibration, how well entropy tells rows from others that
are turned by 90 degrees, CPU seconds and memory, each method in a process of its own. Laplace-torch joins where it is installed. What is
chosen on held-out rows, tempering or laplace-torch's prior precision, is chosen on a third of them; all are judged by the others.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

import itergp
from benchmarks.data import mnist
from itergp.learning import calibrate_network
from itergp.models import NetworkGP

try:
    from laplace import Laplace
except ImportError:
    Laplace = None

Labelled = tuple[Tensor, Tensor]
MEBIBYTE = 2**20
_TURNED = 200
DIGITS_PRECISION, MNIST_PRECISION = 1.0, 1.0


@dataclass
class Task:
    """A trained network and its data.

    Attributes:
        network: The network at its MAP.
        x: Training inputs.
        y: Training labels.
        new: Held-out inputs.
        held_out: Their labels.
        precision: Prior precision that it was trained with.
        spare: Other held-out inputs, by which to choose.
        spare_labels: Their labels.
        turned: Some of the held-out inputs, turned by 90 degrees.
    """

    network: nn.Module
    x: Tensor
    y: Tensor
    new: Tensor
    held_out: Tensor
    precision: float
    spare: Tensor | None = None
    spare_labels: Tensor | None = None
    turned: Tensor | None = None

    @classmethod
    def of(cls, network: nn.Module, train: Labelled, held_out: Labelled, precision: float, side: int) -> Task:
        """With a third of the held-out images, of some side, spared."""
        (x, y), (new, labels) = train, held_out
        count = len(labels) // 3
        images = new[count : count + _TURNED].view(-1, side, side).rot90(1, (1, 2))
        turned = images.reshape(-1, *new.shape[1:])
        return cls(network, x, y, new[count:], labels[count:], precision, new[:count], labels[:count], turned)


def train(network: nn.Module, x: Tensor, y: Tensor, precision: float, epochs: int) -> None:
    """Maximises the posterior density of the weights by Adam, with a learning rate that falls."""
    optimiser = torch.optim.Adam(network.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs)
    for _ in range(epochs):
        for rows in torch.randperm(len(y)).split(100):
            optimiser.zero_grad()
            decay = sum(p.square().sum() for p in network.parameters())
            loss = nn.functional.cross_entropy(network(x[rows]), y[rows]) + 0.5 * precision / len(y) * decay
            loss.backward()
            optimiser.step()
        schedule.step()
    network.eval()


def digits_task() -> Task:
    """1,500 digits of 64 pixels and a perceptron of 9,010 weights."""
    torch.manual_seed(0)
    digits = load_digits()
    order = torch.randperm(len(digits.target))
    x = torch.tensor(digits.data / 16.0, dtype=torch.float32)[order]
    y = torch.tensor(digits.target)[order].long()
    network = nn.Sequential(nn.Linear(64, 120), nn.ReLU(), nn.Linear(120, 10))
    train(network, x[:1500], y[:1500], DIGITS_PRECISION, 100)
    return Task.of(network, (x[:1500], y[:1500]), (x[1500:], y[1500:]), DIGITS_PRECISION, 8)


def mnist_task() -> Task:
    """4,000 MNIST digits and a convolutional network of 84,386 weights."""
    torch.manual_seed(0)
    data = mnist()
    network = nn.Sequential(
        *(nn.Conv2d(1, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(512, 136), nn.ReLU(), nn.Linear(136, 10)),
    )
    x, new = data.train_x.reshape(-1, 1, 28, 28), data.test_x.reshape(-1, 1, 28, 28)
    train(network, x, data.train_y.long(), MNIST_PRECISION, 20)
    return Task.of(network, (x, data.train_y.long()), (new, data.test_y.long()), MNIST_PRECISION, 28)


def classes_task() -> Task:
    """2,000 rows of 1,000 classes and a network of which the last layer is uncertain."""
    torch.manual_seed(0)
    centres = torch.randn(1000, 32)
    y, held_out = torch.arange(2000) % 1000, torch.arange(300) * 3
    x, new = (centres[labels] + 0.5 * torch.randn(len(labels), 32) for labels in (y, held_out))
    network = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 1000))
    train(network, x, y, 1.0, 30)
    for parameter in network[0].parameters():
        parameter.requires_grad_(False)
    return Task(network, x, y, new[100:], held_out[100:], 1.0, new[:100], held_out[:100])


# ------------------------------------------------------------------------- methods
Outcome = dict[str, Any]


def plug_in(task: Task) -> Outcome:
    """The network's own probabilities."""
    with torch.no_grad():
        found: Outcome = {"probs": task.network(task.new).softmax(-1)}
        if task.turned is not None:
            found["turned"] = task.network(task.turned).softmax(-1)
    return found


def itergp_of(
    rank: int | None, *, learn: bool = False, temper: bool = False, **options: Any
) -> Callable[[Task], Outcome]:
    """The linearised posterior of a rank; its prior learned, and its predictions tempered, or not."""

    def run(task: Task) -> Outcome:
        likelihood = itergp.likelihoods.CategoricalLikelihood(options.get("classes", 10))
        own = ("classes", "evidence", "tempering")
        settings = {name: value for name, value in options.items() if name not in own}
        model = NetworkGP(
            task.network, task.x, task.y, likelihood, prior_precision=task.precision, rank=rank, **settings
        )
        model.tempering = options.get("tempering")
        started = time.process_time()
        if learn:
            model.learn_prior(rounds=2)
        model.weight_posterior()
        found: Outcome = {"fit": time.process_time() - started}
        if temper:
            found["tempering"] = calibrate_network(model, task.spare, task.spare_labels).tempering
        found["probs"] = model.predict(task.new).probs
        found["seconds"] = time.process_time() - started
        found["precision"] = model.prior_precision.tolist()
        if task.turned is not None:
            found["turned"] = model.predict(task.turned).probs
            found["variance"] = model.latent_marginals(task.new[:100])[1].diagonal(dim1=1, dim2=2)
        if options.get("evidence"):
            with torch.no_grad():
                found["evidence"] = [float(model.evidence(bound)) for bound in ("lower", "upper")]
        return found

    return run


def explicit_jacobian(task: Task) -> Outcome:
    """The time to go through the Jacobian once, row by row, without keeping it."""
    values = {name: value.detach() for name, value in task.network.named_parameters()}

    def one(values: dict[str, Tensor], row: Tensor) -> Tensor:
        return functional_call(task.network, values, (row.unsqueeze(0),))[0]

    for rows in task.x.split(32):
        vmap(jacrev(one), (None, 0))(values, rows)
    size = sum(value.numel() for value in values.values())
    return {"jacobian_bytes": 4 * len(task.x) * 10 * size}


def laplace_torch(structure: str, subset: str = "all", *, learn: str = "") -> Callable[[Task], Outcome]:
    """Laplace-torch with the generalised Gauss-Newton matrix of a structure; probabilities by the probit approximation.

    Args:
        structure: Of the matrix.
        subset: Of the weights.
        learn: How the prior precision is chosen: ``"marglik"``, ``"gridsearch"`` on the spare rows, or not.
    """

    def run(task: Task) -> Outcome:
        posterior = Laplace(
            task.network,
            "classification",
            subset_of_weights=subset,
            hessian_structure=structure,
            prior_precision=task.precision,
        )
        started = time.process_time()
        posterior.fit(_loader(task.x, task.y, 100))
        if learn:
            options = {"val_loader": _loader(task.spare, task.spare_labels, 32)} if learn == "gridsearch" else {}
            posterior.optimize_prior_precision(method=learn, pred_type="glm", link_approx="probit", **options)
        found: Outcome = {"fit": time.process_time() - started}
        found["probs"] = _glm(posterior, task.new)
        found["seconds"] = time.process_time() - started
        found["precision"] = torch.as_tensor(posterior.prior_precision).reshape(-1).tolist()
        found["turned"] = _glm(posterior, task.turned)
        _, variance = posterior._glm_predictive_distribution(task.new[:100])
        found["variance"] = variance.diagonal(dim1=1, dim2=2).detach()
        return found

    return run


def _glm(posterior: Any, rows: Tensor) -> Tensor:
    return torch.cat([posterior(part, pred_type="glm", link_approx="probit") for part in rows.split(32)]).detach()


def _loader(x: Tensor, y: Tensor, size: int) -> torch.utils.data.DataLoader:
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=size)


def methods(name: str) -> dict[str, Callable[[Task], Outcome]]:
    """What is compared on a task."""
    if name == "classes":
        alone = {"classes": 1000, "row_directions": 0}
        return {
            "network itself": plug_in,
            "last layer": itergp_of(100, classes=1000),
            "last layer, untempered": itergp_of(100, classes=1000, tempering=0.0),
            "last layer, tempered": itergp_of(100, temper=True, classes=1000),
            "last layer, rank 100 alone": itergp_of(100, **alone),
            "last layer, rank 100 alone, untempered": itergp_of(100, **alone, tempering=0.0),
            "last layer, rank 100 alone, tempered": itergp_of(100, temper=True, **alone),
        }
    few = {"row_directions": 1000, "coverage": 0.97}
    found: dict[str, Callable[[Task], Outcome]] = {
        "network itself": plug_in,
        "explicit Jacobian": explicit_jacobian,
        "rank 100 alone": itergp_of(100, row_directions=0, coverage=0.99),
        "1,000 directions of rows": itergp_of(100, **few),
        "4,096 directions of rows": itergp_of(100),
        "1,000 directions, learned, tempered": itergp_of(100, learn=True, temper=True, **few),
        "4,096 directions, learned": itergp_of(100, learn=True),
        "4,096 directions, learned, tempered": itergp_of(100, learn=True, temper=True),
        "4,096 directions, evidence": itergp_of(100, evidence=True),
    }
    if name == "digits":
        found["full rank"] = itergp_of(None, evidence=True)
    if Laplace is not None:
        for structure, subset in (("kron", "all"), ("diag", "all"), ("full", "last_layer")):
            for learn in ("marglik", "gridsearch"):
                found[f"laplace-torch {structure} {subset}, {learn}"] = laplace_torch(structure, subset, learn=learn)
    return found


# --------------------------------------------------------------------------- report
def calibration_error(probs: Tensor, labels: Tensor, bins: int = 10) -> float:
    """Expected calibration error of the most probable class."""
    confidence, predicted = probs.max(-1)
    which = (confidence * bins).long().clamp_max(bins - 1)
    right = (predicted == labels).double()
    gaps = [(right[which == b] - confidence[which == b].double()).sum().abs() for b in range(bins)]
    return float(torch.stack(gaps).sum() / len(labels))


def _auroc(probs: Tensor, others: Tensor) -> float:
    """How often others have more entropy than rows."""
    first, second = (torch.special.entr(p.double()).sum(-1) for p in (probs, others))
    return float((second.unsqueeze(-1) > first).double().mean())


def _work(name: str, method: str, task: Task, queue: Any) -> None:
    torch.set_num_threads(1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.process_time()
    try:
        found = methods(name)[method](task)
    except Exception as error:  # a failure is a result
        found = {"failure": repr(error)[:200]}
    found.setdefault("seconds", time.process_time() - started)
    found["memory"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / MEBIBYTE
    queue.put({key: value.tolist() if torch.is_tensor(value) else value for key, value in found.items()})


def measure(name: str, method: str, task: Task) -> Outcome:
    """One method in a process of its own."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_work, args=(name, method, task, queue))
    process.start()
    found = queue.get()
    process.join()
    return found


def report(name: str, task: Task, chosen: str, skipped: str | None = None) -> None:
    """Prints a line for each method."""
    size = sum(p.numel() for p in task.network.parameters() if p.requires_grad)
    print(f"\n{name}: {len(task.x)} rows, {size} weights, prior precision {task.precision}")
    print(
        f"{'':42}{'NLL':>8}{'acc':>7}{'ECE':>7}{'AUROC':>7}{'CPU s':>8}{'fit s':>8}{'MiB':>7}  evidence, prior precision, tempering"
    )
    variances = {}
    for method in methods(name):
        if chosen not in method or (skipped and skipped in method):
            continue
        found = measure(name, method, task)
        variances[method] = torch.tensor(found.get("variance", []))
        line = f"{method:42}"
        if "probs" in found:
            probs = torch.tensor(found["probs"])
            loss = -probs.gather(1, task.held_out[:, None]).log().mean()
            right = (probs.argmax(-1) == task.held_out).double().mean()
            line += f"{loss:8.4f}{right:7.3f}{calibration_error(probs, task.held_out):7.3f}"
            line += f"{_auroc(probs, torch.tensor(found['turned'])):7.3f}" if "turned" in found else " " * 7
        else:
            line += " " * 29
        line += f"{found['seconds']:8.1f}{found.get('fit', 0.0):8.1f}{found['memory']:7.0f}"
        rest = [
            found.get(key)
            for key in ("evidence", "precision", "tempering", "jacobian_bytes", "failure")
            if found.get(key)
        ]
        print(line, *rest, flush=True)
    exact = variances.get("full rank")
    if exact is not None and exact.numel():
        for method, variance in variances.items():
            if variance.shape == exact.shape:
                ratio = variance / exact
                print(f"variance over the exact one, {method}: {ratio.min():.5f} to {ratio.max():.5f}")


def main() -> None:
    """Runs the tasks that are named."""
    parser = argparse.ArgumentParser(description=__doc__)
    tasks = {"digits": digits_task, "mnist": mnist_task, "classes": classes_task}
    parser.add_argument("tasks", nargs="*", default=list(tasks), choices=[*tasks, []])
    parser.add_argument("--only", default="", help="part of the names of the methods to run")
    parser.add_argument("--skip", default=None, help="part of the names of methods not to run")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.tasks:
        report(name, tasks[name](), options.only, options.skip)


if __name__ == "__main__":
    main()

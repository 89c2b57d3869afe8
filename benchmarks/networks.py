"""Uncertainty for trained networks: the linearised posterior of a low rank, the exact one, and what else there is.

``python -m benchmarks.networks digits mnist classes`` prints held-out losses, calibration, CPU seconds and memory, each method in a
process of its own. Laplace-torch joins where it is installed.
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
from itergp.models import NetworkGP

try:
    from laplace import Laplace
except ImportError:
    Laplace = None

MEBIBYTE = 2**20
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
    """

    network: nn.Module
    x: Tensor
    y: Tensor
    new: Tensor
    held_out: Tensor
    precision: float


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
    return Task(network, x[:1500], y[:1500], x[1500:], y[1500:], DIGITS_PRECISION)


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
    return Task(network, x, data.train_y.long(), new, data.test_y.long(), MNIST_PRECISION)


def classes_task() -> Task:
    """2,000 rows of 1,000 classes and a network of which the last layer is uncertain."""
    torch.manual_seed(0)
    centres = torch.randn(1000, 32)
    y, held_out = torch.arange(2000) % 1000, torch.arange(200)
    x, new = (centres[labels] + 0.5 * torch.randn(len(labels), 32) for labels in (y, held_out))
    network = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 1000))
    train(network, x, y, 1.0, 30)
    for parameter in network[0].parameters():
        parameter.requires_grad_(False)
    return Task(network, x, y, new, held_out, 1.0)


# ------------------------------------------------------------------------- methods
Outcome = dict[str, Any]


def plug_in(task: Task) -> Outcome:
    """The network's own probabilities."""
    with torch.no_grad():
        return {"probs": task.network(task.new).softmax(-1)}


def itergp_of_rank(rank: int | None, **options: Any) -> Callable[[Task], Outcome]:
    """The linearised posterior of a rank."""

    def run(task: Task) -> Outcome:
        likelihood = itergp.likelihoods.CategoricalLikelihood(options.get("classes", 10))
        settings = {name: value for name, value in options.items() if name not in ("classes", "learn", "evidence")}
        model = NetworkGP(
            task.network, task.x, task.y, likelihood, prior_precision=task.precision, rank=rank, **settings
        )
        started = time.process_time()
        if options.get("learn"):
            model.learn_prior(rounds=2)
        else:
            model.condition()
        fitted = time.process_time()
        found: Outcome = {"probs": model.predict(task.new).probs, "fit": fitted - started}
        found["precision"] = model.prior_precision.tolist()
        found["variance"] = model.latent_marginals(task.new[:100])[1].diagonal(dim1=1, dim2=2)
        if options.get("evidence", True):
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


def laplace_torch(structure: str, subset: str = "all", *, learn: bool = False) -> Callable[[Task], Outcome]:
    """Laplace-torch with the generalised Gauss-Newton matrix of a structure; probabilities by the probit approximation."""

    def run(task: Task) -> Outcome:
        posterior = Laplace(
            task.network,
            "classification",
            subset_of_weights=subset,
            hessian_structure=structure,
            prior_precision=task.precision,
        )
        started = time.process_time()
        data = torch.utils.data.TensorDataset(task.x, task.y)
        posterior.fit(torch.utils.data.DataLoader(data, batch_size=100))
        if learn:
            posterior.optimize_prior_precision(method="marglik")
        found: Outcome = {"fit": time.process_time() - started}
        parts = [posterior(rows, pred_type="glm", link_approx="probit") for rows in task.new.split(32)]
        found["probs"] = torch.cat(parts).detach()
        found["evidence"] = [float(posterior.log_marginal_likelihood())]
        _, variance = posterior._glm_predictive_distribution(task.new[:100])
        found["variance"] = variance.diagonal(dim1=1, dim2=2).detach()
        found["precision"] = posterior.prior_precision.tolist()
        return found

    return run


def methods(name: str) -> dict[str, Callable[[Task], Outcome]]:
    """What is compared on a task."""
    if name == "classes":
        return {"network itself": plug_in, "last layer, rank 100": itergp_of_rank(100, classes=1000, evidence=False)}
    found: dict[str, Callable[[Task], Outcome]] = {
        "network itself": plug_in,
        "explicit Jacobian": explicit_jacobian,
        "rank 100": itergp_of_rank(100, evidence=False),
        "rank 100, evidence": itergp_of_rank(100),
        "rank 100, prior learned": itergp_of_rank(100, learn=True),
    }
    if name == "digits":
        found["full rank"] = itergp_of_rank(None)
    if Laplace is not None:
        for structure, subset in (("kron", "all"), ("diag", "all"), ("full", "last_layer")):
            label = f"laplace-torch {structure} {subset}"
            found[label] = laplace_torch(structure, subset)
            found[f"{label}, prior learned"] = laplace_torch(structure, subset, learn=True)
        if name == "digits":
            found["laplace-torch full all"] = laplace_torch("full")
    return found


# --------------------------------------------------------------------------- report
def calibration_error(probs: Tensor, labels: Tensor, bins: int = 10) -> float:
    """Expected calibration error of the most probable class."""
    confidence, predicted = probs.max(-1)
    which = (confidence * bins).long().clamp_max(bins - 1)
    right = (predicted == labels).double()
    gaps = [(right[which == b] - confidence[which == b].double()).sum().abs() for b in range(bins)]
    return float(torch.stack(gaps).sum() / len(labels))


def _work(name: str, method: str, task: Task, queue: Any) -> None:
    torch.set_num_threads(1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.process_time()
    try:
        found = methods(name)[method](task)
    except Exception as error:  # a failure is a result
        found = {"failure": repr(error)[:200]}
    found["seconds"] = time.process_time() - started
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


def report(name: str, task: Task, chosen: str) -> None:
    """Prints a line for each method."""
    size = sum(p.numel() for p in task.network.parameters() if p.requires_grad)
    print(f"\n{name}: {len(task.x)} rows, {size} weights, prior precision {task.precision}")
    print(f"{'':42}{'NLL':>8}{'acc':>7}{'ECE':>7}{'CPU s':>8}{'fit s':>8}{'MiB':>7}  evidence, prior precision")
    variances = {}
    for method in methods(name):
        if chosen not in method:
            continue
        found = measure(name, method, task)
        variances[method] = torch.tensor(found.get("variance", []))
        line = f"{method:42}"
        if "probs" in found:
            probs = torch.tensor(found["probs"])
            loss = -probs.gather(1, task.held_out[:, None]).log().mean()
            right = (probs.argmax(-1) == task.held_out).double().mean()
            line += f"{loss:8.4f}{right:7.3f}{calibration_error(probs, task.held_out):7.3f}"
        else:
            line += " " * 22
        line += f"{found['seconds']:8.1f}{found.get('fit', 0.0):8.1f}{found['memory']:7.0f}"
        rest = [found.get(key) for key in ("evidence", "precision", "jacobian_bytes", "failure") if found.get(key)]
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
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.tasks:
        report(name, tasks[name](), options.only)


if __name__ == "__main__":
    main()

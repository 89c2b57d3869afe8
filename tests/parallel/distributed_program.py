"""What ``test_distributed`` runs in several processes, and once in one: ``python distributed_program.py FOLDER PART``.

A scenario is a function of the kind of operator; what it returns must not depend on the number of processes.
"""

from __future__ import annotations

import copy
import os
import pickle
import signal
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path

import gpytorch
import pytest
import torch
import torch.distributed as dist
from gpytorch.kernels import MaternKernel
from helpers import SimpleGP, make_batch_kernel, make_binary, make_classes, make_inputs, make_kernel, make_model
from torch import Tensor

import itergp
from itergp.errors import InputError, SolverError
from itergp.kernels import AdditiveLaplacianKernel, LaplacianKernel
from itergp.learning.learner import Stop
from itergp.likelihoods import BernoulliLikelihood, CategoricalLikelihood
from itergp.models import LeafGP, latent
from itergp.operators import make_operator, tiles
from itergp.posterior import local_actions, posterior
from itergp.solvers import DenseNewton, LinearTimeNewton, Reason, SubspaceNewton, policies
from itergp.solvers.subspace import linear_time, newton_system

ROWS = 151
Results = dict[str, Tensor]


def _posterior(model: SimpleGP, **settings) -> Results:
    """Everything of a posterior that has an answer in one process."""
    solution = model.condition()
    columns = model.train_inputs[0].shape[1]
    x = make_inputs(23, columns, model.train_inputs[0].dtype, seed=9).requires_grad_(True)
    latent = model(x)
    (slope,) = torch.autograd.grad(latent.mean.square().sum() + latent.variance.sum(), x)
    whole = solution.gather()
    numbers = [solution.objective, solution.elbo, solution.rank, solution.kernel_passes]
    if solution.certificate is not None:
        numbers.append(solution.certificate.objective_gap)
    predicted = model.predict(x.detach())
    joint = model(x.detach()[:9]).covariance_matrix
    end = solution.trace.stages[-1]
    recorded = [end.variance_explained, end.log_density, end.prior_deviation, end.latent_deviation, end.latent_extreme]
    return {
        "recorded": torch.tensor([*recorded, *solution.trace[0].class_residuals], dtype=torch.float64),
        "numbers": torch.tensor(numbers, dtype=torch.float64),
        "weights": whole.representer_weights,
        "latent values": whole.latent_values,
        "latent covariance": whole.latent_covariance,
        "mean": latent.mean.detach(),
        "variance": latent.variance.detach(),
        "slope": slope,
        "joint": joint,
        "predicted": predicted.probs if hasattr(predicted, "probs") else predicted.mean,
    }


def _case(name: str, approximation: str, dtype: torch.dtype = torch.float64, **settings) -> Callable[[str], Results]:
    solver = SubspaceNewton(**{"tolerance": 1e-6, **settings})

    def run(kind: str) -> Results:
        own = {"kernel": make_batch_kernel()} if name == "own-kernels" else {}
        case = "categorical" if own else name
        return _posterior(
            make_model(case, ROWS, dtype, approximation=approximation, operator=kind, solver=solver, **own)
        )

    return run


def _weighted(kind: str) -> Results:
    """Rows without information are nobody's neighbours."""
    x, y = make_classes(ROWS)
    y = y.clone()
    y[::7] = -1
    weight = torch.linspace(0.5, 2.0, ROWS, dtype=torch.float64)
    likelihood = CategoricalLikelihood(3)
    solver = SubspaceNewton(tolerance=1e-6, covariance_rank=20, num_neighbours=6)
    model = SimpleGP(x, y, likelihood, operator=kind, sample_weight=weight, missing_targets=True, solver=solver)
    return _posterior(model.double().eval())


def _again(kind: str) -> Results:
    """Other hyperparameters, from the space of the last solve."""
    model = make_model("categorical", ROWS, operator=kind)
    model.condition()
    model.covar_module.base_kernel.lengthscale = 1.3
    model.condition()
    return _posterior(copy.deepcopy(model))


def _more_rows(kind: str) -> Results:
    """Rows added later: processes start afresh, so that only the mode is the same."""
    model = make_model(
        "categorical", ROWS, approximation="laplace", operator=kind, solver=SubspaceNewton(tolerance=1e-9)
    )
    model.condition()
    model.append_train_data(*make_classes(20, seed=5))
    return {"mean": model.latent_mean(make_inputs(23))}


def _deferred(kind: str) -> Results:
    """Neighbours elsewhere in small pieces, joint covariances when they are asked for, a kernel that is no distance, a copy."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local_actions, "_FETCHED_NUMBERS", 2000)
        patch.setattr(local_actions, "_CHUNK_NUMBERS", 2000)
        patch.setattr(latent, "_EAGER_VALUES", 10)
        patch.setattr(posterior, "_CHUNK_ROWS", 20)
        kernel = make_kernel() + gpytorch.kernels.LinearKernel()
        solver = SubspaceNewton(tolerance=1e-6, covariance_rank=12, num_neighbours=4)
        model = make_model("bernoulli-logit", ROWS, kernel=kernel, operator=kind, solver=solver)
        found = _posterior(model)
        return found | {"all": copy.deepcopy(model)(make_inputs(30)).covariance_matrix}


def _sampled(kind: str) -> Results:
    """Newton systems by conjugate gradients, preconditioned from a sample of rows, as for many rows and directions."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(newton_system, "_DENSE_LIMIT", 5)
        patch.setattr(newton_system, "_SAMPLE_ROWS", 20)
        patch.setattr(newton_system, "_FEWEST_SAMPLES", 1)
        patch.setattr(newton_system, "_MOST_SAMPLES", 1)
        return _case("categorical", "variational")(kind)


def _linear(name: str, order: str, **settings) -> Callable[[str], Results]:
    """A support that grows in several steps."""
    policy = policies.UnitVectors(order=order, rows=10)

    def run(kind: str) -> Results:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(linear_time, "_FIRST", 10)
            own = {}
            if name == "own-kernels":  # rough, so that what the support determines does not depend on rounding
                kernel = make_batch_kernel()
                kernel.base_kernel = MaternKernel(nu=0.5, batch_shape=kernel.batch_shape)
                own["kernel"] = kernel
            solver = LinearTimeNewton(num_support=40, policy=policy, tolerance=1e-8, **settings)
            model = make_model("categorical" if own else name, ROWS, operator=kind, solver=solver, **own)
            results = _posterior(model)
            assert model.solution.support is None or model.solution.support.numel() == 40
            return results

    return run


def _learned(kind: str) -> Results:
    x, y = make_binary(510)
    model = SimpleGP(x, y, BernoulliLikelihood(), operator=kind).double()
    result = itergp.fit(model, max_iterations=2)
    return (
        {"parameters": torch.cat([p.detach().flatten() for p in model.parameters()])} | _posterior(model)
        if result
        else {}
    )


def _leaves(name: str, approximation: str) -> Callable[[str], Results]:
    """Leaves, of which every process has some, and moments that are sums over all of them."""

    def run(kind: str) -> Results:
        solver = SubspaceNewton(tolerance=1e-6)
        leaves = LeafGP(
            make_model(name, ROWS, approximation=approximation, operator=kind, solver=solver), num_rows=50, overlap=0.2
        )
        mean, covariance, variance = leaves.latent_moments(make_inputs(23, seed=9))
        reasons = [list(Reason).index(status.reason) for status in leaves.statuses]
        return {
            "mean": mean,
            "covariance": covariance,
            "prior variance": variance,
            "numbers": torch.tensor([leaves.objective_gap, *leaves.leaf_sizes, *reasons], dtype=torch.float64),
            "probs": torch.cat([part.probs for _, part in leaves.predict_batches(make_inputs(23, seed=9), 5)]),
        }

    return run


SCENARIOS: dict[str, Callable[[str], Results]] = {
    "binary": _case("bernoulli-logit", "variational"),
    "binary, Laplace": _case("bernoulli-logit", "laplace"),
    "softmax": _case("categorical", "variational"),
    "softmax, Laplace": _case("categorical", "laplace"),
    "own kernels": _case("own-kernels", "variational"),
    "own kernels, Laplace": _case("own-kernels", "laplace"),
    # By passes from the first step on, which one process alone would leave to dense matrices.
    "not log-concave": _case("student-t", "laplace", policy=policies.BlockGradient()),
    "compressed": _case("categorical", "laplace", max_rank=12, max_passes=12),
    "more actions than directions": _case("categorical", "laplace", max_passes=3, covariance_rank=60),
    "policy": _case("bernoulli-logit", "laplace", policy=policies.Gradient(), max_passes=12),
    "neighbours": _case("bernoulli-logit", "variational", covariance_rank=20),
    "neighbours, softmax": _case("categorical", "laplace", covariance_rank=12, num_neighbours=5),
    "neighbours, own kernels": _case("own-kernels", "laplace", covariance_rank=12, num_neighbours=5),
    "neighbours, elsewhere": _deferred,
    "weights": _weighted,
    "again": _again,
    "more rows": _more_rows,
    "sampled": _sampled,
    "learned": _learned,
    "linear time": _linear("bernoulli-logit", "leverage"),
    "linear time, softmax": _linear("categorical", "residual"),
    "linear time, own kernels": _linear("own-kernels", "spread", num_neighbours=5),
    "linear time, few actions": _linear("bernoulli-logit", "leverage", covariance_rank=10),
    "linear time, random": _linear("categorical", "random", covariance_rank=20),
    "linear time, polished": _linear("categorical", "variance", polish=SubspaceNewton(tolerance=1e-6)),
    "leaves": _leaves("bernoulli-logit", "variational"),
    "leaves, softmax": _leaves("categorical", "laplace"),
    "float32, softmax": _case("categorical", "variational", torch.float32, covariance_rank=3 * ROWS),
    "float32, binary": _case("bernoulli-logit", "variational", torch.float32, covariance_rank=ROWS),
}
ROUNDED = ("more rows", "float32, softmax", "float32, binary")  # equal up to the tolerance, not to rounding in float64
FEW = (
    "binary",
    "neighbours",
    "neighbours, elsewhere",
    "softmax",
    "own kernels, Laplace",
    "linear time, softmax",
    "linear time, few actions",
)


# ------------------------------------------------------------- in processes only
@torch.no_grad()
def check_products() -> None:
    """Products and diagonals in many small pieces, kept and not kept."""
    patch = pytest.MonkeyPatch()
    patch.setattr(tiles, "_SIDE", 8)
    patch.setattr(tiles, "_SMALLEST_SIDE", 4)
    shared = (
        make_kernel(),
        make_kernel() + make_kernel(0.3),
        LaplacianKernel(),
        make_kernel() * AdditiveLaplacianKernel(2),
    )
    for kernel, kernels in ((make_batch_kernel(), 3), *((kernel, 1) for kernel in shared)):
        x, budget = make_inputs(ROWS), 10**7
        for memory in (budget, 1):
            whole = make_operator(kernel.double(), x, num_kernels=kernels, kind="dense")
            part = make_operator(kernel, x, num_kernels=kernels, kind="sharded", memory_budget=memory)
            assert (part._kept is not None) == (memory == budget)
            for shape in ((ROWS, 5), (kernels, ROWS, 5)):
                block = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
                for _ in range(2):
                    own = part.matmul(part.rows.local(block, -2).detach())
                    torch.testing.assert_close(part.rows.gather(own, 1), whole.matmul(block), rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(part.rows.gather(part.diagonal(), 1), whole.diagonal())
            entries = part.rows.all_reduce_sum(part.counts.entries) / kernels
            assert memory == 1 or entries <= 0.5 * ROWS * (ROWS + 8 * part.rows.num_processes), entries
    patch.undo()


def check_refusals(rank: int) -> None:
    """What cannot be done says so, in every process."""
    model = make_model("bernoulli-logit", ROWS, operator="sharded")
    for solver in (DenseNewton(), SubspaceNewton(policy=policies.CG())):
        model.solver = solver
        with pytest.raises(InputError, match=r"divided among processes by SubspaceNewton"):
            model.condition()
    model.solver = SubspaceNewton()
    model.condition()
    x = make_inputs(5)
    with pytest.raises(InputError, match=r"same new inputs"):
        model.predict(x + rank)
    with pytest.raises(InputError, match=r"in one process"):
        model.decompose_uncertainty(x)
    with pytest.raises(InputError, match=r"cannot be pickled"):
        pickle.dumps(model)
    model.covar_module.outputscale = 2.0 + rank
    with pytest.raises(InputError, match=r"same hyperparameters"):
        model.condition()
    other = SimpleGP(*make_binary(ROWS, seed=rank), BernoulliLikelihood(), operator="sharded").double()
    with pytest.raises(InputError, match=r"same training data"):
        other.condition()
    x, y = make_binary(ROWS)
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(rank))
    for inputs, targets in ((x[order], y[order]), (x, y[order]), (x[order], y)):  # the same sums in every process
        shuffled = SimpleGP(inputs, targets, BernoulliLikelihood(), operator="sharded").double()
        with pytest.raises(InputError, match=r"same training data\..*in the same order.*shuffles alike everywhere"):
            shuffled.condition()
    model = make_model("bernoulli-logit", ROWS, operator="sharded")
    model.condition()
    with pytest.raises(InputError, match=r"same new inputs"):
        model.predict(make_inputs(5).roll(rank, 0))
    model.covar_module.base_kernel.nu = (0.5, 1.5, 2.5)[rank]
    with pytest.raises(InputError, match=r"nu unlike the first process" if rank else r"other ones in another process"):
        model.condition()
    few = SimpleGP(*make_binary(1), BernoulliLikelihood(), operator="sharded").double()
    with pytest.raises(InputError, match=r"must get a row"):
        few.condition()


def check_leaves(folder: Path, rank: int) -> None:
    """Leaves in a folder are everybody's; an error in one process is one in all; what cannot be divided says so."""
    model = make_model("categorical", ROWS, operator="sharded")
    leaves, x = LeafGP(model, num_rows=50), make_inputs(7)
    leaves.condition(checkpoint=folder / "leaves")
    assert len(list((folder / "leaves").iterdir())) == leaves.num_leaves
    torch.save(leaves.predict(x).probs, folder / f"leaves.{rank}.pt")
    with pytest.raises(InputError, match=r"Leaves are saved where one process has all of them"):
        leaves.save(folder / "leaves.safetensors")
    with pytest.raises(InputError, match=r"same new inputs"):
        leaves.predict(x + rank)
    with pytest.raises(InputError, match=r"must get a leaf. Got 1 for 2 processes"):
        LeafGP(model, num_rows=ROWS).condition()
    dist.barrier()
    if rank == 1:
        path = sorted((folder / "leaves").iterdir())[-1]
        path.write_bytes(path.read_bytes()[:-100])
        expected: type[Exception] = InputError
    else:
        expected = SolverError
    dist.barrier()
    with pytest.raises(expected, match=r"damaged" if rank == 1 else r"Got an error in another one"):
        LeafGP(model, num_rows=50).condition(checkpoint=folder / "leaves")
    model.covar_module.outputscale = 2.0 + rank
    with pytest.raises(InputError, match=r"same hyperparameters"):
        leaves.predict(x)


def check_stopping(rank: int) -> None:
    """A clock or Ctrl-C in one process stops all of them at the same step."""
    last = dist.get_world_size() - 1
    model = make_model("categorical", ROWS, operator="sharded", solver=SubspaceNewton(tolerance=1e-12, time_limit=1.0))
    solution = model.condition(callback=lambda _: time.sleep(1.0) if rank == last else None)
    assert solution.status.reason is Reason.TIME
    assert len(solution.trace.records) == 1
    model.solver = SubspaceNewton(tolerance=1e-12)
    solution = model.condition(callback=lambda _: os.kill(os.getpid(), signal.SIGINT) if rank == last else None)
    assert solution.status.reason is Reason.INTERRUPTED
    assert len(solution.trace.records) == 1


def check_saving(folder: Path) -> None:
    """The file has the whole posterior, and can be read by processes and by one."""
    solver = SubspaceNewton(covariance_rank=20, num_neighbours=5)
    model = make_model("categorical", ROWS, operator="sharded", solver=solver)
    torch.save(model.predict(make_inputs(7)).probs, folder / f"predicted.{dist.get_rank()}.pt")
    model.save(folder / "model.safetensors")
    loaded = make_model("categorical", 20, operator="sharded").load(folder / "model.safetensors")
    solution = loaded.current_solution
    assert solution is not None
    assert solution.rows == model.solution.rows
    assert solution.representer_weights.shape == model.solution.representer_weights.shape
    torch.testing.assert_close(loaded.predict(make_inputs(7)).probs, model.predict(make_inputs(7)).probs)
    assert solution.local is not None
    assert solution.local.partition == solution.rows
    assert solution.local.to(make_inputs(1).float()).partition == solution.rows
    assert solution.local.whitened.shape[0] == solution.representer_weights.shape[0]  # never all of them


def check_checkpoint(folder: Path, rank: int, part: str) -> None:
    """A killed process takes the others with it; started again, they go on to the last bit."""
    made = {"operator": "sharded", "solver": SubspaceNewton(tolerance=1e-6)}
    path, last = folder.parent / "kept.safetensors", dist.get_world_size() - 1
    model = make_model("categorical", ROWS, **made)
    if part == "killed":

        def callback(record: object) -> None:
            if rank == last and record.stage == "variational" and record.kernel_passes > 8:
                os.kill(os.getpid(), signal.SIGKILL)

        with pytest.raises(SolverError, match=r"All processes of the group must take part"):
            model.condition(checkpoint=path, checkpoint_every=0, callback=callback)
        return
    model.condition(checkpoint=path, checkpoint_every=0)
    passes = model.last_conditioned.operator.counts.passes
    assert 0 < passes < model.solution.kernel_passes - 4
    undisturbed = make_model("categorical", ROWS, **made).condition()
    assert model.solution.kernel_passes == undisturbed.kernel_passes
    assert torch.equal(model.solution.representer_weights, undisturbed.representer_weights)
    assert torch.equal(model.solution.precision.factor, undisturbed.precision.factor)

    press = lambda _: os.kill(os.getpid(), signal.SIGINT) if rank == last else None  # noqa: E731
    growing = policies.UnitVectors(order="leverage", rows=10)
    linear_time._FIRST = 10
    for solver in (made["solver"], LinearTimeNewton(num_neighbours=5, num_support=40, policy=growing, tolerance=1e-8)):
        make = partial(make_model, "categorical", ROWS, operator="sharded", solver=solver)
        interrupted = folder.parent / f"{type(solver).__name__}.safetensors"
        stopped = make().condition(checkpoint=interrupted, checkpoint_every=1e6, callback=press)
        assert stopped.status.reason is Reason.INTERRUPTED
        again, expected = make().condition(checkpoint=interrupted), make().condition()
        assert torch.equal(again.representer_weights, expected.representer_weights)
        assert torch.equal(again.precision.factor, expected.precision.factor)
        assert torch.equal(again.latent_covariance, expected.latent_covariance)

    other = make_model("categorical", ROWS, kernel=make_kernel(0.7), **made)
    with pytest.raises(InputError, match=r"hyperparameter .* differs"):
        other.condition(checkpoint=path)
    for name in ("on_posterior", "checkpoint"):
        given = {"on_posterior": lambda _: None, "checkpoint": folder.parent / "some.safetensors"}[name]
        with pytest.raises(InputError, match=rf"`{name}` must be given in every process"):
            model.condition(**{name: given if rank == 0 else None})
    with pytest.raises(InputError, match=r"must be one file that every process sees"):
        make_model("categorical", ROWS, **made).condition(
            checkpoint=path if rank == 0 else folder / "local.safetensors"
        )
    looks = []
    make_model("categorical", ROWS, **made).condition(on_posterior=looks.append)
    assert {look.status.reason for look in looks} > {Reason.RUNNING}

    def stop(_: object) -> None:
        if rank == last:
            raise KeyboardInterrupt

    stopped = make_model("categorical", ROWS, **made).condition(on_posterior=stop)
    assert stopped.status.reason is Reason.INTERRUPTED
    own = sorted(folder.parent.glob(f"kept.safetensors.{model.solution.rows.start()}.*"))
    assert len(own) == 2
    dist.barrier()
    if rank == last:
        for file in own:
            file.write_bytes(file.read_bytes()[:-100])
    dist.barrier()
    with pytest.raises(InputError, match=r"damaged" if rank == last else r"Got an error in another process"):
        make_model("categorical", ROWS, **made).condition(checkpoint=path)


def check_learning_checkpoint(folder: Path, rank: int) -> None:
    """Learning that was interrupted, and then the conditioning after it, go on to the last bit."""
    path = folder.parent / "learning.safetensors"

    def make() -> SimpleGP:
        return SimpleGP(*make_binary(510), BernoulliLikelihood(), operator="sharded").double()

    def fit(model: SimpleGP, **settings) -> itergp.learning.FitResult:
        return itergp.fit(model, max_iterations=6, **settings)

    def stop_learning(record: object) -> None:
        if record.iteration == 2:
            raise KeyboardInterrupt

    def stop_conditioning(early: object) -> None:
        if early.kernel_passes == 2:
            raise KeyboardInterrupt

    expected, whole = make(), []
    result = fit(expected, callback=whole.append)
    kept = {"checkpoint": path, "checkpoint_every": 0}
    assert fit(make(), callback=stop_learning, **kept).solution.status.reason is not Reason.INTERRUPTED
    new: list[object] = []
    stopped = fit(make(), callback=new.append, on_posterior=stop_conditioning, **kept)
    assert [record.iteration for record in new] == [record.iteration for record in whole][2:]
    assert stopped.solution.status.reason is Reason.INTERRUPTED
    again, new = make(), []
    resumed = fit(again, callback=new.append, **kept)
    assert not new
    assert resumed.reason == result.reason
    assert (
        again.last_conditioned.operator.counts.passes < result.solution.kernel_passes == resumed.solution.kernel_passes
    )
    for first, second in zip(again.parameters(), expected.parameters(), strict=True):
        assert torch.equal(first, second)
    assert torch.equal(again.solution.representer_weights, expected.solution.representer_weights)
    assert torch.equal(again.solution.precision.factor, expected.solution.precision.factor)
    with pytest.raises(InputError, match=r"`checkpoint` must be given in every process"):
        fit(make(), checkpoint=path if rank == 0 else None)
    with pytest.raises(InputError, match=r"must be one file that every process sees"):
        fit(make(), checkpoint=path if rank == 0 else folder / "local.safetensors")
    last = rank == dist.get_world_size() - 1

    def stop_one(record: object) -> None:
        if last and record.iteration == 2:
            raise KeyboardInterrupt

    alone = make()
    assert fit(alone, callback=stop_one).reason == Stop.INTERRUPTED.value
    rows = alone.solution.rows
    for parameter in alone.parameters():
        assert torch.equal(rows.broadcast(parameter.detach()), parameter.detach())
    # The file of learning is gone, and what is left of the conditioning belongs to other hyperparameters.
    dist.barrier()
    if rank == 0:
        path.unlink()
    dist.barrier()
    itergp.fit(make(), max_iterations=3, **kept)
    assert path.exists()


def check_failure(rank: int, how: str) -> None:
    """One process fails in the middle: the others learn it at once, and say so."""
    last = dist.get_world_size() - 1

    def callback(_: object) -> None:
        if rank != last:
            return
        if how == "exit":
            os._exit(1)
        if how == "sleep":
            time.sleep(60.0)
        raise ZeroDivisionError("on purpose")

    model = make_model("categorical", ROWS, operator="sharded")
    if rank == last:
        with pytest.raises(ZeroDivisionError, match=r"on purpose"):
            model.condition(callback=callback)
    else:
        with pytest.raises(SolverError, match=r"All processes of the group must take part"):
            model.condition(callback=callback)
    assert model.last_solution is None
    with pytest.raises(SolverError, match=r"All processes of the group must take part"):
        model.condition()


def main(folder: Path, part: str) -> None:
    """Runs a part in one of the processes."""
    torch.set_num_threads(1)
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    timeout = timedelta(seconds=3 if part == "sleep" else 60)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=size, timeout=timeout
    )
    if part in ("killed", "resumed"):
        check_checkpoint(folder, rank, part)
        if part == "resumed":
            check_learning_checkpoint(folder, rank)
        print("finished", flush=True)
        os._exit(0)
    if part != "sleep":
        names = SCENARIOS if size == 2 else FEW
        torch.save({name: SCENARIOS[name]("sharded") for name in names}, folder / f"results.{rank}.pt")
        check_products()
    if part == "raise":
        check_saving(folder)
        check_leaves(folder, rank)
        check_refusals(rank)
        check_stopping(rank)
    check_failure(rank, part)
    print("finished", flush=True)
    os._exit(0)  # without waiting for processes that were lost on purpose


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])

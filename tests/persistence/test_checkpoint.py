"""Checkpoints: what is interrupted goes on to the same answer; what does not belong together is refused; Ctrl-C is safe."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import gpytorch
import pytest
import safetensors.torch
import torch
from helpers import SimpleGP, make_batch_kernel, make_binary, make_inputs, make_model

import itergp
from itergp.learning import fitting
from itergp.likelihoods import BernoulliLikelihood
from itergp.models import identity
from itergp.operators import BlockedOperator
from itergp.persistence import CheckpointFile, StateDict, checkpoint
from itergp.solvers import DenseNewton, IterNCGP, LinearTimeNewton, Reason, SubspaceNewton
from itergp.solvers.iterncgp import linear_belief
from itergp.solvers.policies import CG, Mixed, PreconditionedCG, Scheduled, UnitVectors
from itergp.solvers.subspace import linear_time

POSTERIOR = ("representer_weights", "latent_values", "latent_covariance")
MIXED = Mixed((UnitVectors(order="variance", rows=3), PreconditionedCG(rank=5)))
SOLVERS = {
    "subspace": SubspaceNewton(tolerance=1e-9),
    "compressed": SubspaceNewton(tolerance=1e-9, max_rank=20),
    "policy": SubspaceNewton(
        tolerance=1e-9, policy=Scheduled(((UnitVectors(order="random", rows=5), 3), (CG(), None)))
    ),
    "published": IterNCGP(tolerance=1e-8, step="backtracking"),
    "notes": IterNCGP(tolerance=1e-8, step="backtracking", policy=MIXED, max_rank=40),
    "forgetful": IterNCGP(tolerance=1e-6, step="backtracking", recycle=False),
    "dense": DenseNewton(),
    "linear": LinearTimeNewton(num_support=20, polish=SubspaceNewton(tolerance=1e-9)),
}


class Killed(BaseException):
    """Stands in for the end of a process."""


def end_at(step: int):
    """A callback that ends the process at a step."""
    seen = []

    def callback(record):
        seen.append(record)
        if len(seen) == step:
            raise Killed("kill -9")

    return callback


def assert_same_posterior(solution, expected):
    for name in POSTERIOR:
        assert torch.equal(getattr(solution, name), getattr(expected, name)), name
    assert torch.equal(solution.precision.actions, expected.precision.actions)
    assert (solution.status, solution.kernel_passes) == (expected.status, expected.kernel_passes)
    assert solution.certificate.norm_squared == expected.certificate.norm_squared
    plain = [[replace(r, seconds=0.0, kernel_seconds=0.0, memory=0) for r in run.trace] for run in (solution, expected)]
    assert plain[0] == plain[1]


# ----------------------------------------------------------------------------- conditioning
@pytest.mark.parametrize("step", [2, 6])
@pytest.mark.parametrize(("name", "kind"), [("bernoulli-logit", torch.float64), ("categorical", torch.float32)])
@pytest.mark.parametrize("solver", SOLVERS)
def test_conditioning_goes_on_to_the_same_posterior(solver, name, kind, step, tmp_path):
    def make():
        return make_model(name, 60, kind, solver=SOLVERS[solver])

    options = {"checkpoint": tmp_path / "run.safetensors", "checkpoint_every": 0}
    expected = make().condition()
    with pytest.raises(Killed, match=r"^kill -9$"):
        make().condition(callback=end_at(step), **options)
    solution = make().condition(**options)
    assert_same_posterior(solution, expected)
    if solver == "dense":  # whose matrix is evaluated again, and was counted
        assert solution.kernel_entries == expected.kernel_entries


@pytest.mark.parametrize("step", [2, 4, 9])
@pytest.mark.parametrize("solver", ["subspace", "dense"])
def test_steps_that_remember_earlier_ones_go_on_too(solver, step, tmp_path):
    """Their secants and the matrix that they begin with; where another solver begins, whoever was at work."""

    def make():
        return make_model("student-t", 60, solver=SOLVERS[solver], approximation="laplace")

    options = {"checkpoint": tmp_path / "run.safetensors", "checkpoint_every": 0}
    expected = make().condition()
    with pytest.raises(Killed, match=r"^kill -9$"):
        make().condition(callback=end_at(step), **options)
    solution = make().condition(**options)
    for name in POSTERIOR:
        assert torch.equal(getattr(solution, name), getattr(expected, name)), name
    assert (solution.status, solution.objective) == (expected.status, expected.objective)
    assert len(solution.trace.records) == len(expected.trace.records) > step


def test_what_began_with_an_earlier_posterior_goes_on_without_it(tmp_path):
    """Where a process that knows nothing earlier would begin with another solver."""

    def make():
        return make_model("student-t", 60, solver=SOLVERS["subspace"], approximation="laplace")

    path, model = tmp_path / "run.safetensors", make()
    model.condition()
    with pytest.raises(Killed, match=r"^kill -9$"):
        model.condition(callback=end_at(1), checkpoint=path, checkpoint_every=0)
    solution = make().condition(checkpoint=path, checkpoint_every=0)
    assert solution.status.reason is Reason.STATIONARY
    torch.testing.assert_close(solution.latent_values, make().condition().latent_values, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("solver", ["subspace", "published"])
def test_kernels_of_their_own_go_on_too(solver, tmp_path):
    def make():
        return make_model("categorical", 50, solver=SOLVERS[solver], kernel=make_batch_kernel())

    options = {"checkpoint": tmp_path / "run.safetensors", "checkpoint_every": 0}
    expected = make().condition()
    with pytest.raises(Killed, match=r"^kill -9$"):
        make().condition(callback=end_at(3), **options)
    assert_same_posterior(make().condition(**options), expected)


@pytest.mark.parametrize("step", [1, 3, 5])
@pytest.mark.parametrize("order", ["leverage", "spread", "random"])
def test_a_growing_support_goes_on(order, step, tmp_path, monkeypatch):
    monkeypatch.setattr(linear_time, "_FIRST", 8)
    policy = None if order == "leverage" else UnitVectors(order=order, rows=3)
    solver = LinearTimeNewton(num_support=60, policy=policy, tolerance=1e-12)

    def make():
        return make_model("bernoulli-logit", 80, solver=solver)

    options = {"checkpoint": tmp_path / "run.safetensors", "checkpoint_every": 0}
    expected = make().condition()
    with pytest.raises(Killed, match=r"^kill -9$"):
        make().condition(callback=end_at(step), **options)
    solution = make().condition(**options)
    assert_same_posterior(solution, expected)
    assert torch.equal(solution.support, expected.support)


def test_a_finished_run_is_read_back_without_a_pass(tmp_path, monkeypatch):
    path = tmp_path / "run.safetensors"
    expected = make_model("categorical").condition(checkpoint=path)
    monkeypatch.setattr(BlockedOperator, "_matmul", lambda *_: pytest.fail("a kernel pass"))
    model = make_model("categorical")
    solution = model.condition(checkpoint=path)
    assert_same_posterior(solution, expected)
    assert model.solution is solution
    assert torch.isfinite(solution.certificate.latent_error(make_inputs(3))).all()
    assert not list(tmp_path.glob(".*"))  # no drafts


def test_passes_and_seconds_count_over_all_runs(tmp_path):
    path, slow = tmp_path / "run.safetensors", SubspaceNewton(tolerance=1e-9, max_passes=7)
    options = {"checkpoint": path, "checkpoint_every": 0}
    with pytest.raises(Killed, match=r"^kill -9$"):
        make_model("categorical", solver=slow).condition(callback=end_at(3), **options)
    kept = json.loads(_about(path)["itergp"])["values"]
    solution = make_model("categorical", solver=slow).condition(**options)
    assert solution.kernel_passes == 7
    assert solution.seconds > kept["seconds"] > 0.0
    assert [record.kernel_passes for record in solution.trace][:3] == [1, 2, 3]


def _about(path):
    with safetensors.safe_open(path, framework="pt") as file:
        return file.metadata()


# -------------------------------------------------------------------------- learning
def make_learner(num_rows: int = 80, solver=None):
    kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.MaternKernel(nu=1.5))
    return SimpleGP(*make_binary(num_rows), BernoulliLikelihood(), kernel=kernel, solver=solver).double()


LEARNING = {
    "held-out": {"objective": "predictive"},
    "evidence": {"objective": "elbo", "optimizer": "adam"},
    "restarts": {"objective": "predictive", "num_restarts": 1},
    "not calibrated": {"objective": "predictive", "calibrate": False},
    "on a support": {"objective": "elbo", "calibrate": False, "solver": LinearTimeNewton(num_support=30)},
}


@pytest.mark.parametrize("step", [2, 9])
@pytest.mark.parametrize("options", LEARNING.values(), ids=LEARNING)
def test_learning_goes_on_to_the_same_parameters(options, step, tmp_path, monkeypatch):
    monkeypatch.setattr(fitting, "_SUBSET_ROWS", 50)  # two stages
    options = options | {"max_iterations": 12}
    solver = options.pop("solver", None)
    expected_model, broken, model = (make_learner(solver=solver) for _ in range(3))
    expected = itergp.fit(expected_model, **options)
    options |= {"checkpoint": tmp_path / "run.safetensors", "checkpoint_every": 0}
    with pytest.raises(Killed, match=r"^kill -9$"):
        itergp.fit(broken, callback=end_at(step), **options)
    torch.randn(7)
    result = itergp.fit(model, **options)
    for name, value in model.state_dict().items():
        assert torch.equal(value, expected_model.state_dict()[name]), name
    assert [record.objective for record in result.records] == [record.objective for record in expected.records]
    assert [record.iteration for record in result.records] == list(range(len(result.records)))
    assert (result.reason, model.approximation) == (expected.reason, expected_model.approximation)
    assert torch.equal(result.solution.representer_weights, expected.solution.representer_weights)


def test_conditioning_after_learning_goes_on_too(tmp_path, monkeypatch):
    options = {"objective": "predictive", "max_iterations": 5}
    expected = itergp.fit(make_learner(), **options)
    options |= {"checkpoint": tmp_path / "run.safetensors", "checkpoint_every": 0}
    writes, write = [], checkpoint.write_file

    def die(path, tensors, about):
        write(path, tensors, about)
        writes.append("condition" in about["values"])
        if sum(writes) == 2:
            raise Killed("kill -9")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_file", die)
        with pytest.raises(Killed, match=r"^kill -9$"):
            itergp.fit(make_learner(), **options)
    result = itergp.fit(make_learner(), **options)
    assert_same_posterior(result.solution, expected.solution)
    again = itergp.fit(make_learner(), callback=lambda _: pytest.fail("an evaluation"), **options)
    assert_same_posterior(again.solution, expected.solution)


@pytest.mark.parametrize("objective", ["predictive", "elbo"])
def test_lbfgs_goes_on_as_if_nothing_had_been(tmp_path, objective):
    options = {"objective": objective, "optimizer": "lbfgs", "max_iterations": 12}
    expected = itergp.fit(make_learner(), **options)
    options |= {"checkpoint": tmp_path / "run.safetensors", "checkpoint_every": 0}
    for evaluations in (2, 4):
        with pytest.raises(Killed, match=r"^kill -9$"):
            itergp.fit(make_learner(), callback=end_at(evaluations), **options)
    result = itergp.fit(make_learner(), **options)
    assert [record.objective for record in result.records] == [record.objective for record in expected.records]
    assert_same_posterior(result.solution, expected.solution)


# ----------------------------------------------------------------------------- kill -9
KILL = """
import json, os, random, signal, sys, time
from pathlib import Path
sys.path[:0] = {tests!r}
import torch
import itergp
from helpers import make_model
from itergp.solvers import SubspaceNewton
from test_checkpoint import make_learner

path, what, rng = Path({path!r}), {what!r}, random.Random(1)

def work(**kept):
    if what == "fit":
        kept["callback"] = lambda _: time.sleep(0.01)
        return itergp.fit(make_learner(), objective="predictive", max_iterations=10, calibrate=False, **kept).solution
    model = make_model("categorical", 150, solver=SubspaceNewton(tolerance=1e-9))
    return model.condition(callback=lambda _: time.sleep(0.01), **kept)

kept = dict(checkpoint=path, checkpoint_every=0)
killed = drafts = 0

def version():
    try:
        return os.stat(path).st_mtime_ns, os.stat(path).st_ino
    except FileNotFoundError:
        return None

for attempt in range({attempts}):
    child = os.fork()
    if child == 0:
        work(**kept)
        os._exit(0)
    begun, versions, ended = time.perf_counter(), {{version()}}, 0
    while not ended and len(versions) < 3:  # so that every attempt gets further
        versions.add(version())
        ended = os.waitpid(child, os.WNOHANG)[0]
    if attempt % 2:  # at random
        time.sleep(rng.uniform(0.0, 0.02))
    while not attempt % 2 and not ended and not list(path.parent.glob(".*.tmp")):  # in the middle of writing
        ended = os.waitpid(child, os.WNOHANG)[0]
    if not ended:
        os.kill(child, signal.SIGKILL)
        killed += os.WIFSIGNALED(os.waitpid(child, 0)[1])
        drafts += bool(list(path.parent.glob(".*.tmp")))
existed = path.exists()
resumed, expected = work(**kept), work()
same = torch.equal(resumed.representer_weights, expected.representer_weights)
same = same and torch.equal(resumed.latent_covariance, expected.latent_covariance)
left = len(list(path.parent.glob(".*.tmp")))
print(json.dumps(dict(killed=killed, drafts=drafts, existed=existed, same=same, left=left)))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("what", ["condition", "fit"])
def test_killed_at_any_moment(what, tmp_path):
    own = Path(__file__).parent
    script = KILL.format(
        tests=[str(own), str(own.parent)], path=str(tmp_path / "run.safetensors"), what=what, attempts=3
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(own.parents[1])}
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=120)
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout.splitlines()[-1])
    assert found["killed"] >= 2
    assert found["drafts"] >= 1  # a write was cut short
    assert found["existed"]
    assert found["same"]
    assert found["left"] == 0


# ----------------------------------------------------------------------------- refusals
@pytest.fixture
def interrupted(tmp_path):
    path = tmp_path / "run.safetensors"
    with pytest.raises(Killed, match=r"^kill -9$"):
        make_model("bernoulli-logit").condition(checkpoint=path, checkpoint_every=0, callback=end_at(3))
    return path


def _data(model):
    model.train_inputs[0][0, 0] += 1.0


def _targets(model):
    model.train_targets[0] = 1.0 - model.train_targets[0]


def _scale(model):
    model.covar_module.outputscale = 2.0


def _smoothness(model):
    model.covar_module.base_kernel.nu = 2.5


def _mean(model):
    model.mean_module = gpytorch.means.ZeroMean()


def _solver(model):
    model.solver = SubspaceNewton(max_passes=3)


OTHERS = {
    "data": (_data, r"train_inputs 0 differs: [0-9a-f]{8}\.\.\. in the file, [0-9a-f]{8}\.\.\. here"),
    "targets": (_targets, r"train_targets differs"),
    "hyperparameter": (_scale, r"hyperparameter covar_module\.raw_outputscale differs"),
    "kernel": (_smoothness, r"covar_module\.base_kernel\.nu differs: 1\.5 in the file, 2\.5 here"),
    "mean": (_mean, r"the class of mean_module differs: gpytorch\.ConstantMean in the file, gpytorch\.ZeroMean here"),
    "solver": (_solver, r"solver\.max_passes differs: None in the file, 3 here"),
    "approximation": (lambda m: setattr(m, "approximation", "laplace"), r"approximation differs"),
}


@pytest.mark.parametrize(("change", "message"), OTHERS.values(), ids=OTHERS)
def test_a_checkpoint_of_something_else_is_refused(change, message, interrupted):
    model, before = make_model("bernoulli-logit"), interrupted.read_bytes()
    change(model)
    with pytest.raises(
        itergp.InputError, match=message + r".*Delete the checkpoint to begin anew, or pass another path"
    ):
        model.condition(checkpoint=interrupted)
    assert interrupted.read_bytes() == before
    model.condition()  # and the model is as good as ever


def test_other_versions_tasks_and_kinds_are_refused(interrupted, monkeypatch, tmp_path):
    model = make_model("bernoulli-logit")
    with monkeypatch.context() as patch:
        patch.setattr(identity, "__version__", "99.0")
        with pytest.raises(itergp.InputError, match=r"the version of itergp differs: .* in the file, 99\.0 here"):
            model.condition(checkpoint=interrupted)
    with pytest.raises(itergp.InputError, match=r"must be a checkpoint of 'fit'.*Got .*, a checkpoint of 'condition'"):
        itergp.fit(model, checkpoint=interrupted)
    saved = tmp_path / "model.safetensors"
    model.save(saved)
    with pytest.raises(itergp.InputError, match=r"must be a checkpoint of 'condition'.*Got .*, a saved model"):
        model.condition(checkpoint=saved)
    with pytest.raises(itergp.InputError, match=r"must be a file that model\.save wrote"):
        model.load(interrupted)
    foreign = tmp_path / "foreign.safetensors"
    safetensors.torch.save_file({"a": torch.zeros(2)}, foreign)
    with pytest.raises(itergp.InputError, match=r"`checkpoint` must be a file that itergp saved.*of another program"):
        model.condition(checkpoint=foreign)


def test_learning_with_other_settings_is_refused(tmp_path):
    path = tmp_path / "run.safetensors"
    itergp.fit(make_learner(), max_iterations=2, calibrate=False, checkpoint=path)
    with pytest.raises(itergp.InputError, match=r"seed differs: 0 in the file, 1 here"):
        itergp.fit(make_learner(), max_iterations=2, calibrate=False, seed=1, checkpoint=path)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.999])
def test_a_truncated_checkpoint_is_refused(share, interrupted):
    content = interrupted.read_bytes()
    interrupted.write_bytes(content[: int(share * len(content))])
    with pytest.raises(
        itergp.InputError, match=r"must be a whole file that itergp saved.*damaged.*Delete the checkpoint"
    ):
        make_model("bernoulli-logit").condition(checkpoint=interrupted)


@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.6, 0.9, 0.999])
def test_a_flipped_bit_is_refused(share, interrupted):
    content = bytearray(interrupted.read_bytes())
    content[int(share * len(content))] ^= 4
    interrupted.write_bytes(bytes(content))
    with pytest.raises(itergp.InputError, match=r"`checkpoint` must be .*(damaged|of another program)"):
        make_model("bernoulli-logit").condition(checkpoint=interrupted)


def test_a_solver_that_cannot_be_kept_is_refused(tmp_path):
    class Bare:
        state_type = None

        def __getattr__(self, name):
            return getattr(SubspaceNewton(), name)

    model = make_model("bernoulli-logit", solver=Bare())
    with pytest.raises(itergp.InputError, match=r"`checkpoint` needs a solver whose attribute `state_type`.*Got Bare"):
        model.condition(checkpoint=tmp_path / "run.safetensors")


# -------------------------------------------------------------------------------- writing
@pytest.mark.parametrize("every", [-1.0, float("nan"), True, "often"])
def test_an_interval_must_be_a_number(every, tmp_path):
    with pytest.raises(itergp.InputError, match=r"`checkpoint_every` must be a number of seconds, 0 or more"):
        make_model("gaussian").condition(checkpoint=tmp_path / "run.safetensors", checkpoint_every=every)


def test_a_folder_that_cannot_be_written_is_refused_before_the_run(tmp_path):
    model = make_model("gaussian")
    for path in (tmp_path / "missing" / "run.safetensors", tmp_path):
        with pytest.raises(itergp.InputError, match=r"`checkpoint` must be a file that can be written.*Choose another"):
            model.condition(checkpoint=path)
    assert model.last_solution is None


def test_a_full_disk_is_refused_before_the_run(tmp_path, monkeypatch):
    free = type("Usage", (), {"free": 10})
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: free)
    with pytest.raises(
        itergp.InputError, match=r"bytes are needed, 10 are free\)\. Choose another folder or make room"
    ):
        make_model("gaussian").condition(checkpoint=tmp_path / "run.safetensors")


def test_a_write_that_fails_does_not_end_the_run(tmp_path, monkeypatch):
    writes, write = [], checkpoint.write_file

    def fail(path, tensors, about):
        writes.append(path)
        if len(writes) > 2:
            raise itergp.InputError("No space left on device.")
        write(path, tensors, about)

    monkeypatch.setattr(checkpoint, "write_file", fail)
    path, expected = tmp_path / "run.safetensors", make_model("categorical", solver=SOLVERS["subspace"]).condition()
    with pytest.warns(itergp.ItergpWarning, match=r"goes on without: No space left") as caught:
        solution = make_model("categorical", solver=SOLVERS["subspace"]).condition(checkpoint=path, checkpoint_every=0)
    assert len(caught) == 1  # once, however often it happens
    assert_same_posterior(solution, expected)
    monkeypatch.undo()
    again = make_model("categorical", solver=SOLVERS["subspace"]).condition(checkpoint=path)  # the last whole file
    assert_same_posterior(again, expected)


def test_writing_takes_a_twentieth_of_the_time_at_most(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(checkpoint.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(checkpoint, "write_file", lambda *_: clock.__setitem__(0, clock[0] + 3.0))
    kind = {"task": "condition", "identity": {}, "device": torch.device("cpu")}
    file = CheckpointFile(tmp_path / "run.safetensors", every=1.0, **kind)
    written = 0
    while clock[0] < 3000.0:
        clock[0] += 0.5
        if file.due():
            file.save(StateDict())
            written += 1
    assert 0.03 < 3.0 * written / clock[0] <= 0.05
    eager = CheckpointFile(tmp_path / "run.safetensors", every=0, **kind)
    eager.save(StateDict())
    assert eager.due()


def test_arrays_come_back_in_their_order_of_memory(tmp_path):
    """On which the last bits of products with them depend."""
    numbers = torch.arange(24.0)
    arrays = {
        "rows": numbers.view(4, 6),
        "columns": numbers.view(4, 6).mT,
        "turned": numbers.view(2, 3, 4).permute(2, 0, 1),
    }
    options = {"every": 0, "task": "condition", "identity": {}, "device": torch.device("cpu")}
    assert CheckpointFile(tmp_path / "run.safetensors", **options).save(StateDict(arrays, {}))
    again = CheckpointFile(tmp_path / "run.safetensors", **options).checkpoint_state.arrays
    for name, array in arrays.items():
        assert torch.equal(again[name], array)
        assert again[name].stride() == array.stride()


# --------------------------------------------------------------------------------- Ctrl-C
def _interrupt_at(monkeypatch, owner, name: str, count: int):
    """Ctrl-C at a call of a function."""
    original, calls = getattr(owner, name), []

    def function(*args, **kwargs):
        calls.append(name)
        if len(calls) == count:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, function)


@pytest.mark.parametrize("count", [1, 2, 4, 7])
@pytest.mark.parametrize("solver", ["subspace", "published", "notes"])
def test_an_interrupt_in_any_kernel_pass_leaves_a_valid_posterior(solver, count, monkeypatch, tmp_path):
    path = tmp_path / "run.safetensors"
    model = make_model("categorical", solver=SOLVERS[solver])
    with monkeypatch.context() as patch:
        _interrupt_at(patch, BlockedOperator, "_matmul", count)
        solution = model.condition(checkpoint=path)
    assert solution.status.reason is Reason.INTERRUPTED
    assert model.solution is solution
    assert bool((solution.latent_covariance.diagonal(dim1=1, dim2=2) >= 0.0).all())
    bound = 0.5 * solution.certificate.norm_squared
    exact = make_model("categorical", solver=DenseNewton(covariance=False), approximation="laplace").condition()
    if solution.approximation == "laplace":
        assert exact.objective - 1e-8 <= solution.objective <= exact.objective + bound
    probs = model.predict(make_inputs(5)).probs
    assert_probabilities(probs)
    # Going on ends where an undisturbed run ends, up to the variational site: it is made from another step's covariance.
    resumed = make_model("categorical", solver=SOLVERS[solver]).condition(checkpoint=path)
    expected = make_model("categorical", solver=SOLVERS[solver]).condition()
    assert resumed.status.reason is expected.status.reason
    torch.testing.assert_close(resumed.latent_values, expected.latent_values, rtol=0.0, atol=0.1)


def assert_probabilities(probs):
    assert bool((probs >= 0.0).all())
    torch.testing.assert_close(probs.sum(-1), torch.ones_like(probs[:, 0]))


@pytest.mark.parametrize("count", [2, 5])
@pytest.mark.parametrize("function", ["_cholesky", "_forward", "inner_product"])
def test_an_interrupt_while_arrays_grow_leaves_a_valid_posterior(function, count, monkeypatch):
    model = make_model("categorical", solver=SOLVERS["published"])
    with monkeypatch.context() as patch:
        _interrupt_at(patch, linear_belief, function, count)
        solution = model.condition()
    assert solution.status.reason is Reason.INTERRUPTED
    assert_probabilities(model.predict(make_inputs(5)).probs)


def test_an_interrupt_is_kept_in_the_file(tmp_path):
    path = tmp_path / "run.safetensors"

    def interrupt(record):
        if record.kernel_passes == 3:
            raise KeyboardInterrupt

    model = make_model("categorical", solver=SOLVERS["subspace"])
    solution = model.condition(checkpoint=path, checkpoint_every=1e6, callback=interrupt)
    assert solution.status.reason is Reason.INTERRUPTED
    resumed = make_model("categorical", solver=SOLVERS["subspace"]).condition(checkpoint=path)
    assert resumed.trace[3].kernel_passes == 4
    assert_same_posterior(resumed, make_model("categorical", solver=SOLVERS["subspace"]).condition())


def test_interrupted_learning_goes_on(tmp_path):
    def interrupt(record):
        if record.iteration == 6:
            raise KeyboardInterrupt

    options = {"objective": "predictive", "max_iterations": 12}
    expected = itergp.fit(make_learner(), **options)
    options |= {"checkpoint": tmp_path / "run.safetensors", "checkpoint_every": 0}
    stopped = itergp.fit(make_learner(), callback=interrupt, **options)
    assert stopped.reason == "learning was interrupted"
    assert stopped.solution.rank > 0
    assert_same_posterior(itergp.fit(make_learner(), **options).solution, expected.solution)

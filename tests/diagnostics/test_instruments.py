"""The trace: what it records, how it explains a run, its pictures, its files, and what watches it live."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import re
import sys
import types

import gpytorch
import numpy as np
import pytest
import torch
from helpers import CASES, SimpleGP, make_batch_kernel, make_binary, make_classes, make_inputs, make_kernel, make_model
from rich.console import Console

from itergp import diagnostics
from itergp.diagnostics import Live, TensorBoard, Trace
from itergp.diagnostics.live import sparkline
from itergp.errors import InputError, SolverError
from itergp.learning import fit
from itergp.likelihoods import BernoulliLikelihood, CategoricalLikelihood, PoissonLikelihood
from itergp.operators import make_operator
from itergp.records import Listener, Listeners, TraceData
from itergp.solvers import DenseNewton, IterNCGP, LinearTimeNewton, Reason, SubspaceNewton, solve

SOLVERS = {
    "subspace": SubspaceNewton(),
    "iterncgp": IterNCGP(step="backtracking"),
    "dense": DenseNewton(),
    "linear time": LinearTimeNewton(),
}
LINE = torch.linspace(-2.0, 2.0, 100, dtype=torch.float64)[:, None]


def binary(num_rows: int = 120, *, lengthscale: float = 0.5, scale: float = 10.0, **options) -> SimpleGP:
    dtype = options.pop("dtype", torch.float64)
    x, y = make_binary(num_rows, dtype=dtype)
    model = SimpleGP(x, y, BernoulliLikelihood(), kernel=make_kernel(lengthscale, scale), **options)
    return model.to(dtype).eval()


def classes(num_rows: int = 60, **options) -> SimpleGP:
    x, y = make_classes(num_rows)
    kernel = options.pop("kernel", make_kernel(0.5, 10.0))
    return SimpleGP(x, y, CategoricalLikelihood(3), kernel=kernel, **options).double().eval()


def separable(scale: float) -> SimpleGP:
    likelihood = BernoulliLikelihood()
    return SimpleGP(LINE, (LINE[:, 0] > 0).long(), likelihood, kernel=make_kernel(1.0, scale)).double().eval()


# ---------------------------------------------------------------- what is recorded
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("make", [binary, classes], ids=["one latent", "three latents"])
def test_every_solver_fills_every_instrument(make, solver):
    model = make(60, solver=SOLVERS[solver])
    solution = model.condition()
    trace, run = solution.trace, solution.trace.settings
    latents = solution.representer_weights.shape[1]
    assert (run.solver, run.num_rows, run.num_latents) == (type(SOLVERS[solver]).__name__, 60, latents)
    assert (run.dtype, run.device, run.operator) == ("float64", "cpu", "DenseOperator")
    assert run.tolerance == SOLVERS[solver].tolerance
    for before, after in zip(trace.records, trace.records[1:], strict=False):
        assert after.kernel_seconds >= before.kernel_seconds
        assert after.memory >= before.memory
    for record in trace:
        assert len(record.class_residuals) == latents
        assert 0.0 <= record.kernel_seconds <= record.seconds
        assert 50e6 < record.memory < 1e12  # torch alone is larger than the one, no computer than the other
    assert [stage.stage for stage in trace.stages] == list(dict.fromkeys(record.stage for record in trace))
    assert trace.stages[-1].reason == solution.status.reason.name
    assert trace.stages[-1].status == str(solution.status)
    assert trace.stages[-1].kernel_passes == solution.kernel_passes
    assert trace.stages[-1].covariance_rank == solution.rank == len(trace.spectrum)
    assert trace.hyperparameters["covar_module.outputscale"] == [pytest.approx(10.0)]


@pytest.mark.parametrize("solver", SOLVERS)
def test_residuals_by_class_are_norms_of_the_gradient_at_the_last_step(solver):
    solution = classes(40, solver=SOLVERS[solver], approximation="laplace").condition()
    gradient, _ = CategoricalLikelihood(3).derivatives(solution.latent_values, make_classes(40)[1])
    norms = (gradient - solution.representer_weights).norm(dim=0).tolist()
    assert list(solution.trace[-1].class_residuals) == pytest.approx(norms, rel=1e-6, abs=1e-9)


@torch.no_grad()
@pytest.mark.parametrize("name", sorted(CASES))
def test_the_end_of_a_stage_agrees_with_the_solution(name):
    model = make_model(name, approximation="laplace")
    solution, prior = model.condition(), model.covar_module(model.train_inputs[0], diag=True)
    end = solution.trace.stages[-1]
    latents = solution.latent_values.shape[1]
    prior = prior.reshape(-1, prior.shape[-1]).mT.expand(-1, latents)
    left = solution.latent_covariance.diagonal(dim1=-2, dim2=-1)
    assert end.variance_explained == pytest.approx(float(1.0 - left.sum() / prior.sum()), abs=1e-9)
    assert end.prior_deviation == pytest.approx(float(prior.mean().sqrt()))
    density = float(model.observations.log_density(solution.latent_values).mean())
    assert end.log_density == pytest.approx(density, rel=1e-6, abs=1e-7)
    assert 0.0 < end.resolution < 1e-9
    assert (end.objective_gap is None) == (solution.certificate is None)


def test_the_log_density_is_per_unit_of_weight():
    x, y = make_binary(40)
    options = {"kernel": make_kernel(), "approximation": "laplace"}
    plain = SimpleGP(x, y, BernoulliLikelihood(), **options).double().condition().trace.stages[-1]
    doubled = torch.cat([x, x]), torch.cat([y, y])
    weight = torch.cat([torch.ones(40), torch.zeros(40)]).double()
    weighted = SimpleGP(*doubled, BernoulliLikelihood(), sample_weight=weight, **options).double().condition()
    assert weighted.trace.stages[-1].log_density == pytest.approx(plain.log_density, rel=1e-3)


@pytest.mark.parametrize("make", [binary, classes], ids=["one latent", "three latents"])
def test_the_spectrum_of_the_exact_solution_is_that_of_the_signal_to_noise_matrix(make):
    """Eigenvalues of ``H^T K H`` with ``W = H H^T``, computed here from nothing but the kernel and the curvature."""
    model = make(30, solver=DenseNewton(), approximation="laplace")
    solution, x = model.condition(), model.train_inputs[0]
    values, vectors = torch.linalg.eigh(solution.curvature)
    root = torch.block_diag(*(vectors * values.clamp_min(0.0).sqrt().unsqueeze(-2)))
    latents = solution.curvature.shape[-1]
    kernel = torch.kron(model.covar_module(x).to_dense().detach(), torch.eye(latents).double())
    expected = torch.linalg.eigvalsh(root.mT @ kernel @ root).flip(0).clamp_min(0.0)
    found = np.asarray(solution.trace.spectrum)  # directions that the data say nothing about are no actions
    assert np.allclose(found, expected[: len(found)], rtol=1e-8, atol=1e-9)
    assert np.allclose(expected[len(found) :], 0.0, atol=1e-9)


def test_a_low_rank_spectrum_is_below_the_exact_one_and_above_nothing():
    """Eigenvalues in a subspace interlace with those in the whole space (Cauchy): each is at most the exact one."""
    exact = binary(80, solver=DenseNewton(), approximation="laplace").condition().trace.spectrum
    part = binary(80, solver=SubspaceNewton(covariance_rank=12, tolerance=1e-12), approximation="laplace")
    found = part.condition().trace.spectrum
    assert len(found) == 12
    assert found == sorted(found, reverse=True)
    assert all(0.0 < low <= high * (1.0 + 1e-6) for low, high in zip(found, exact, strict=False))
    assert found[0] > 0.9 * exact[0]


def test_recording_costs_no_kernel_pass_and_the_spectrum_waits_until_it_is_asked_for():
    solution = binary().condition()
    assert solution.trace._spectrum is None
    passes = solution.operator.counts.passes
    assert solution.trace.spectrum
    assert solution.operator.counts.passes == passes == solution.kernel_passes


def test_a_solver_that_does_not_say_leaves_the_residuals_empty(monkeypatch):
    monkeypatch.delattr("itergp.solvers.subspace.subspace_newton.SubspaceState.gradient_residual")
    trace = binary().condition().trace
    assert {record.class_residuals for record in trace} == {()}
    assert trace.explain().limit == "converged"


def test_a_failed_run_says_so_in_its_trace():
    model = binary(solver=SubspaceNewton())
    model.condition()

    def spoil(*args):
        raise torch.linalg.LinAlgError

    model.covar_module.outputscale = 11.0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("itergp.solvers.subspace.subspace_newton.minimise", spoil)
        with pytest.raises(SolverError, match="positive definite") as caught:
            model.condition()
    explanation = caught.value.solution.trace.explain()
    assert explanation.limit == "failed"
    assert "could not be factorised" in str(explanation)


# ------------------------------------------------------------------- explanations
def said(trace: Trace, pattern: str) -> float:
    """A number that the explanation gives."""
    found = re.search(pattern, str(trace.explain()))
    assert found, str(trace.explain())
    return float(found.group(1).replace(",", "").rstrip("."))


def test_a_converged_run_was_limited_by_nothing():
    solution = binary().condition()
    explanation = solution.trace.explain()
    assert explanation.kinds == ("converged",)
    assert f"after {solution.kernel_passes} kernel passes" in str(explanation)
    assert explanation["converged"].change == ""
    with pytest.raises(KeyError, match="passes"):
        explanation["passes"]
    gap = said(solution.trace, r"within (\S+) nats of its minimum")
    assert gap == pytest.approx(solution.certificate.objective_gap, rel=0.05)


@pytest.mark.parametrize("tolerance", [1e-4, 1e-7])
@pytest.mark.parametrize("make", [binary, classes], ids=["one latent", "three latents"])
def test_the_forecast_of_passes_is_worth_following(make, tolerance):
    solver = SubspaceNewton(max_passes=6, tolerance=tolerance, num_blocks=3)
    model = make(200, solver=solver, approximation="laplace")
    trace = model.condition().trace
    explanation = trace.explain()
    assert explanation.limit == "passes"
    assert "max_passes=6" in explanation["passes"].observed
    wanted = int(said(trace, r"set max_passes to about (\d+)"))
    model.solver = dataclasses.replace(solver, max_passes=2 * wanted)
    solution = make(200, solver=model.solver, approximation="laplace").condition()
    assert solution.status.reason is Reason.CONVERGED
    assert 0.4 * wanted < solution.kernel_passes


def test_too_few_passes_for_a_variational_posterior():
    explanation = classes(solver=SubspaceNewton(max_passes=3)).condition().trace.explain()
    assert explanation.kinds[:2] == ("passes", "laplace_only")
    assert "max_passes=3" in explanation["laplace_only"].observed
    assert (
        "laplace_only"
        not in classes(solver=SubspaceNewton(max_passes=3), approximation="laplace").condition().trace.explain()
    )


def test_a_full_search_space():
    solver = SubspaceNewton(max_rank=3, max_passes=30, covariance_rank=5)
    model = binary(200, lengthscale=2.0, scale=1000.0, solver=solver, approximation="laplace")
    trace = model.condition().trace
    explanation = trace.explain()
    assert explanation.limit == "rank"
    assert "at most 3 directions" in explanation["rank"].observed
    model.solver = dataclasses.replace(solver, max_rank=64)
    better = model.condition()
    assert "rank" not in better.trace.explain()
    assert better.certificate.objective_gap < trace.stages[-1].objective_gap


def test_float32_at_its_limit_and_what_float64_gives():
    options = {"solver": SubspaceNewton(tolerance=1e-14), "approximation": "laplace"}
    low = binary(dtype=torch.float32, **options).condition()
    explanation = low.trace.explain()
    assert explanation.limit == "precision"
    assert "float32 is at its limit" in str(explanation)
    assert "model.double()" in explanation["precision"].change
    high = binary(dtype=torch.float64, **options).condition()
    assert high.certificate.objective_gap < 1e-3 * low.certificate.objective_gap
    exhausted = binary(solver=SubspaceNewton(tolerance=1e-30), approximation="laplace").condition().trace.explain()
    assert "float64 is at its limit" in str(exhausted)
    assert "Raise tolerance" in exhausted["precision"].change


def test_separable_data_with_a_huge_output_scale():
    trace = separable(1e6).condition().trace
    explanation = trace.explain()
    assert {"separable", "output_scale"} <= set(explanation.kinds)
    assert "output scale 1e+06" in explanation["output_scale"].observed
    assert "prior on the output scale" in explanation["separable"].change
    advised = said(trace, r"Lower the output scale towards ([\d,.]+)")
    calmer = separable(advised).condition()
    assert "output_scale" not in calmer.trace.explain()
    # Fewer passes are no gain where rounds end unsettled: those of the advised scale settle, and their mean is certified.
    assert calmer.trace.stages[-1].reason == "CONVERGED"
    assert calmer.kernel_passes <= trace.stages[-1].kernel_passes + 2


def test_noisy_labels_are_not_called_separable():
    for scale in (1.0, 10.0, 100.0):
        assert not {"separable", "output_scale"} & set(binary(scale=scale).condition().trace.explain().kinds)


def test_an_output_scale_too_small_for_the_counts():
    def model(scale: float) -> SimpleGP:
        counts = torch.full((100,), 200)
        return SimpleGP(LINE, counts, PoissonLikelihood(), kernel=make_kernel(1.0, scale)).double().eval()

    explanation = model(0.1).condition().trace.explain()
    assert "output_scale_small" in explanation
    assert "output scale 0.1" in explanation["output_scale_small"].observed
    assert "output_scale_small" not in model(30.0).condition().trace.explain()
    assert "separable" not in explanation  # of labels only


def test_the_time_limit_and_what_was_left_undone():
    model = classes(kernel=make_kernel(0.1, 50.0), solver=SubspaceNewton(time_limit=1e-9, tolerance=1e-12))
    explanation = model.condition().trace.explain()
    assert explanation.kinds[:2] == ("time", "laplace_only")
    assert "time limit of 1e-09 s" in str(explanation)
    assert "Raise time_limit" in explanation["time"].change


def test_an_interrupt():
    def stop(record):
        if record.kernel_passes == 2:
            raise KeyboardInterrupt

    explanation = binary(solver=SubspaceNewton(tolerance=1e-12)).condition(callback=stop).trace.explain()
    assert explanation.kinds[:2] == ("interrupted", "laplace_only")


def test_a_covariance_limited_by_its_rank():
    def explained(rank: int) -> tuple[float, Trace]:
        trace = binary(200, lengthscale=0.3, solver=SubspaceNewton(covariance_rank=rank)).condition().trace
        return trace.stages[-1].variance_explained, trace

    share, trace = explained(4)
    assert "covariance_rank" in trace.explain()
    assert said(trace, r"signal-to-noise ratio of (\S+),") == pytest.approx(trace.spectrum[-1], rel=0.01)
    advised = int(said(trace, r"Raise covariance_rank to (\d+)"))
    assert explained(advised)[0] > share
    assert "covariance_rank" not in explained(150)[1].explain()
    nothing = binary(solver=SubspaceNewton(covariance_rank=0)).condition().trace
    assert "no_covariance" in nothing.explain()
    assert nothing.spectrum == []
    assert nothing.stages[-1].variance_explained == 0.0


def test_a_likelihood_without_a_certificate():
    explanation = make_model("student-t").condition().trace.explain()
    assert explanation.limit == "stationary"
    assert "StudentTLikelihood is not log-concave" in str(explanation)


def test_full_steps_that_diverge():
    model = classes(100, kernel=make_kernel(0.5, 400.0), solver=IterNCGP())
    explanation = model.condition().trace.explain()
    assert explanation.limit == "diverged"
    assert 'step="backtracking"' in explanation["increases"].change


def test_a_solver_without_passes():
    def explained(**options) -> diagnostics.Explanation:
        return binary(600, solver=LinearTimeNewton(**options), approximation="laplace").condition().trace.explain()

    small = explained(num_support=30, tolerance=1e-9)
    assert small.limit == "support"
    assert "30 of 600 rows" in str(small)
    assert "no bound on the distance to the mode is known" in str(small).lower()
    polished = explained(num_support=100, polish=SubspaceNewton())
    assert polished.limit == "converged"
    assert "nats of its minimum" in str(polished)


def test_the_latent_function_that_is_left_behind():
    kernel = make_batch_kernel(3).double()
    kernel.base_kernel.lengthscale = torch.tensor([0.05, 2.0, 2.0]).view(3, 1, 1)
    trace = classes(200, kernel=kernel, solver=SubspaceNewton(max_passes=4)).condition().trace
    finding = trace.explain()["class_residual"]
    norms = np.square(trace[-1].class_residuals)
    assert f"class {norms.argmax()} out of 3" in finding.observed
    assert finding.observed.startswith(f"{100.0 * norms.max() / norms.sum():.0f} %")


def test_shortened_steps_are_reported_only_when_the_run_did_not_converge():
    solver = SubspaceNewton(max_passes=6, tolerance=1e-12)
    model = binary(200, lengthscale=0.3, scale=1000.0, solver=solver, approximation="laplace")
    trace = model.condition().trace
    short = [record.step_length for record in trace if 0.0 < record.step_length < 1.0]
    assert len(short) >= 2
    assert f"to {min(short):.3g} of their length" in trace.explain()["step_lengths"].observed
    model.solver = SubspaceNewton()
    assert "step_lengths" not in model.condition().trace.explain()


def test_a_trace_without_an_end_says_that_the_run_goes_on():
    explanation = Trace(binary().condition().trace.records).explain()
    assert explanation.kinds == ("unfinished",)
    assert "not finished" in str(explanation)


@pytest.mark.parametrize("name", sorted(CASES))
@pytest.mark.parametrize("passes", [None, 2, 5])
def test_explanations_are_sentences_with_figures(name, passes):
    text = str(make_model(name, solver=SubspaceNewton(max_passes=passes)).condition().trace.explain())
    for paragraph in text.splitlines():
        assert re.match(r"[A-Z\d]|float", paragraph)
        assert paragraph.endswith(".")
        assert not re.search(r"\bnan\b|\binf\b|None|  ", paragraph)
        assert re.search(r"\d", paragraph)


# ----------------------------------------------------------------------- learning
def learned(iterations: int, **options):
    x, y = make_binary(100, dtype=torch.float32)
    return fit(SimpleGP(x, y, BernoulliLikelihood()), max_iterations=iterations, calibrate=False, **options)


def test_fit_fills_the_trace_of_its_solution():
    result = learned(5)
    assert result.trace is result.solution.trace
    assert result.trace.learning.records == result.records
    assert result.trace.learning.seconds == result.seconds
    assert all(math.isfinite(record.gradient_norm) and record.gradient_norm > 0.0 for record in result.records)
    assert result.trace.learning.logarithmic == [
        "covar_module.raw_outputscale",
        "covar_module.base_kernel.raw_lengthscale",
    ]
    last = result.trace.hyperparameters["covar_module.outputscale"][0]
    moved = [math.exp(record.parameters["covar_module.raw_outputscale"][0]) for record in result.records]
    assert min(moved) * 0.999 <= last <= max(moved) * 1.001


def test_the_end_of_learning_is_explained():
    hurried = learned(6).trace.explain()
    assert "learning_iterations" in hurried
    assert "Raise max_iterations, say to 12" in str(hurried)
    assert {"learning_done", "learning_settled"} & set(learned(40).trace.explain().kinds)
    late = learned(40, time_limit=1e-6).trace.explain()
    assert "the time limit was reached" in late["learning_time"].observed
    settled = learned(40, optimizer="lbfgs").trace.explain()
    assert "the objective stopped improving" in settled["learning_settled"].observed


def test_an_output_scale_that_grows_on_separable_data():
    model = SimpleGP(LINE.float(), (LINE[:, 0] > 0).long(), BernoulliLikelihood(), kernel=make_kernel(1.0, 1.0))
    trace = fit(model, max_iterations=30, learning_rate=0.4, calibrate=False).trace
    assert "separable" in trace.explain()["output_scale_grows"].observed
    assert said(trace, r"outputscale grew by a factor of (\S+) ") > 20.0


# -------------------------------------------------------------------------- files
def strict(text: str) -> dict:
    def refuse(token: str):
        raise AssertionError(token)

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("solver", SOLVERS)
def test_json_and_back(solver, tmp_path):
    trace = classes(40, solver=SOLVERS[solver]).condition().trace
    path = tmp_path / "trace.json"
    strict(trace.to_json(path))
    again = Trace.from_json(path)
    assert again == trace
    assert again.spectrum == trace.spectrum
    assert str(again.explain()) == str(trace.explain())
    assert Trace.from_json(trace.to_json()) == trace
    assert Trace.from_json(str(path)) == trace


def test_json_of_learning_and_of_a_likelihood_without_gaps():
    for trace in (learned(4).trace, make_model("student-t").condition().trace):
        again = Trace.from_json(trace.to_json())
        assert again == trace
        assert again.to_json() == trace.to_json()


def test_what_is_not_known_is_null():
    trace = classes(40, solver=IterNCGP(max_passes=4), approximation="laplace").condition().trace
    assert math.isinf(trace[0].residual)
    assert trace[0].objective_gap is None
    values = strict(trace.to_json())
    assert values["records"][0]["residual"] is None
    assert Trace.from_dict(values) == trace


def test_a_trace_of_another_version_is_read():
    values = strict(binary(40).condition().trace.to_json())
    old = {"records": [dict(list(record.items())[:10]) for record in values["records"]], "phase_seconds": {}}
    assert len(Trace.from_dict(old)) == len(values["records"])
    assert Trace.from_dict(old).explain().limit == "unfinished"
    newer = {**values, "more": 1, "records": [{**record, "more": 1} for record in values["records"]]}
    assert Trace.from_dict(newer) == Trace.from_dict(values)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("missing.json", "cannot be read"),
        ("{not json", "must hold JSON"),
        ('{"records": 1}', "must have records"),
        ('{"records": [{"stage": "laplace"}], "phase_seconds": {}}', "must have records"),
    ],
)
def test_what_is_not_a_trace(source, message):
    with pytest.raises(InputError, match=message):
        Trace.from_json(source)


def test_json_that_cannot_be_written_or_is_no_object(tmp_path):
    with pytest.raises(InputError, match="must be a file that can be written"):
        Trace().to_json(tmp_path / "nowhere" / "trace.json")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(InputError, match="must hold a JSON object"):
        Trace.from_json(tmp_path / "list.json")


def test_a_saved_model_keeps_its_trace(tmp_path):
    x, y = make_binary(60, dtype=torch.float32)
    model = SimpleGP(x, y, BernoulliLikelihood())
    trace = fit(model, max_iterations=3, calibrate=False).trace
    model.save(tmp_path / "model.safetensors")
    other = SimpleGP(x, y, BernoulliLikelihood()).load(tmp_path / "model.safetensors").solution.trace
    assert other == trace
    assert other.spectrum == trace.spectrum
    assert str(other.explain()) == str(trace.explain())


# -------------------------------------------------------------------------- hooks
class Writer:
    """Remembers what it is told, with the signatures of TensorBoard's."""

    def __init__(self) -> None:
        self.scalars: dict[str, list[tuple[int, float]]] = {}
        self.histograms: dict[str, int] = {}

    def add_scalar(self, tag, scalar_value, global_step):
        assert math.isfinite(scalar_value)
        self.scalars.setdefault(tag, []).append((global_step, scalar_value))

    def add_histogram(self, tag, values, global_step):
        self.histograms[tag] = values.numel()


def test_tensorboard_gets_every_record_as_it_comes():
    writer = Writer()
    trace = classes(40).condition(callback=TensorBoard(writer, prefix="run1")).trace
    for stage in ("laplace", "variational"):
        own = [record for record in trace if record.stage == stage]
        assert writer.scalars[f"run1/{stage}/objective"] == [(r.kernel_passes, r.objective) for r in own]
        assert writer.scalars[f"run1/{stage}/class_residuals/2"] == [
            (r.kernel_passes, r.class_residuals[2]) for r in own
        ]


class Heard(Listener):
    """What a listener is told, in order."""

    def __init__(self):
        self.events = []

    def begin(self, stage, *, unit="pass", total=None, tolerance=None):
        self.events.append(("begin", stage, unit, total, tolerance))

    def __call__(self, record):
        self.events.append(record)

    def advance(self, stage, done):
        self.events.append(("advance", stage, done))

    def end(self, stage):
        self.events.append(("end", stage))


def test_a_listener_hears_of_stages_and_of_every_record():
    heard, kept = Heard(), TraceData()
    model = binary()
    trace = model.condition(callback=Listeners(heard, kept, None)).trace
    steps = {stage: [r for r in trace if r.stage == stage] for stage in ("laplace", "variational")}
    tolerance = model.solver.tolerance * 120
    assert heard.events == [
        event
        for stage, records in steps.items()
        for event in (("begin", stage, "pass", None, tolerance), *records, ("end", stage))
    ]
    assert kept.records == trace.records


def test_a_listener_hears_of_learning():
    heard = Heard()
    records = fit(binary(), max_iterations=3, calibrate=False, callback=heard).records
    assert heard.events[0] == ("begin", "learn", "step", 3, None)
    assert heard.events[-1] == ("end", "learn")
    assert [event for event in heard.events if not isinstance(event, tuple)] == records
    assert [e for e in heard.events if isinstance(e, tuple) and e[0] == "advance"] == [
        ("advance", "learn", i) for i in (1, 2, 3)
    ]


def test_a_solve_below_a_model_leaves_data_that_a_trace_reads():
    model = binary(60)
    prior = model.prior_at(model.train_inputs)
    operator = make_operator(prior.kernel, prior.features, num_kernels=prior.num_kernels)
    data = solve(operator, prior.mean.detach(), model.observations, SubspaceNewton()).trace
    assert type(data) is TraceData
    assert Trace.of(data).explain().limit == "converged"
    assert Trace.of(data).spectrum == data.spectrum


def test_tensorboard_gets_a_trace_afterwards_as_live():
    live, later = Writer(), Writer()
    x, y = make_binary(60, 12, dtype=torch.float32)
    kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel(ard_num_dims=12))
    model = SimpleGP(x, y, BernoulliLikelihood(), kernel=kernel)
    trace = fit(model, max_iterations=3, calibrate=False, callback=TensorBoard(live)).trace
    TensorBoard(later).write(trace)
    assert live.scalars.items() <= later.scalars.items()
    assert live.histograms["itergp/learn/covar_module.base_kernel.raw_lengthscale"] == 12
    assert later.histograms["itergp/spectrum"] == len(trace.spectrum)
    assert later.scalars["itergp/laplace/variance_explained"][0][1] == trace.stages[0].variance_explained


def test_the_real_tensorboard_writer(tmp_path):
    pytest.importorskip("tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(tmp_path) as writer:
        TensorBoard(writer).write(binary(40).condition().trace)
    assert any(file.stat().st_size > 1000 for file in tmp_path.iterdir())


def test_sparklines():
    assert sparkline([]) == sparkline([math.inf]) == ""
    assert sparkline([3.0, 3.0]) == "▁▁"
    assert sparkline([float(i) for i in range(100)])[-1] == "█"
    assert len(sparkline([float(i) for i in range(100)])) == 24


def test_live_in_a_terminal_shows_solve_and_learning():
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=100)
    x, y = make_binary(60, dtype=torch.float32)
    model = SimpleGP(x, y, BernoulliLikelihood())
    with Live("terminal", share=1.0, console=console) as live:
        result = fit(model, max_iterations=3, calibrate=False, callback=live)
        solution = model.condition(callback=live)
    assert live.trace.learning.records == result.records
    assert live.trace.records == solution.trace.records
    shown = stream.getvalue()
    for text in ("evaluation 3", "outputscale", "kernel passes", f"<= {solution.trace[-1].objective_gap:.2e}", "MiB"):
        assert text in shown


def test_live_draws_seldom_and_must_be_entered():
    drawn = []
    with Live("terminal", share=1e-6, console=Console(file=io.StringIO())) as live:
        live._screen.show = drawn.append
        binary().condition(callback=live)
        assert len(drawn) == 1
    assert len(drawn) == 2  # and once more at the end
    with pytest.raises(InputError, match="must be entered"):
        live(live.trace[0])
    with pytest.raises(InputError, match="`where` must be one of"):
        Live("nowhere")
    with pytest.raises(InputError, match="`share` must be in"):
        Live(share=0.0)


def test_live_in_a_notebook_replaces_one_picture(monkeypatch):
    pytest.importorskip("matplotlib")
    pictures = []

    class Handle:
        def update(self, image):
            pictures.append(image)

    def display(image, display_id):
        assert display_id is True
        pictures.append(image)
        return Handle()

    notebook = types.ModuleType("IPython.display")
    notebook.Image, notebook.display = lambda data: data, display
    package = types.ModuleType("IPython")
    package.version_info, package.get_ipython = (9, 0), lambda: None  # which matplotlib asks for
    monkeypatch.setitem(sys.modules, "IPython", package)
    monkeypatch.setitem(sys.modules, "IPython.display", notebook)
    with Live("notebook") as live:
        binary(40).condition(callback=live)
    assert len(pictures) >= 2
    assert all(picture[:4] == b"\x89PNG" for picture in pictures)
    monkeypatch.setitem(sys.modules, "IPython.display", None)
    with pytest.raises(InputError, match="needs matplotlib and IPython"), Live("notebook"):
        pass


# ------------------------------------------------------------------------- pictures
@pytest.fixture
def figure():
    """A new figure without pyplot."""
    return pytest.importorskip("matplotlib.figure").Figure(figsize=(12, 8), layout="constrained")


def overlaps(figure) -> list[tuple[str, str]]:
    """Pairs of texts of a figure whose boxes overlap."""
    from matplotlib.axis import Axis
    from matplotlib.text import Text

    figure.canvas.draw()
    ticks = {
        label
        for axes in figure.findobj(Axis)
        for tick in [*axes.get_major_ticks(), *axes.get_minor_ticks()]
        for label in (tick.label1, tick.label2)
    }
    texts = [
        text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip() and text not in ticks
    ]
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts]
    return [
        (a, b)
        for i, (a, one) in enumerate(boxes)
        for b, other in boxes[i + 1 :]
        if min(one.x1, other.x1) - max(one.x0, other.x0) > 1 and min(one.y1, other.y1) - max(one.y0, other.y0) > 1
    ]


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("name", ["bernoulli-logit", "categorical", "student-t"])
def test_the_dashboard_shows_the_trace(name, solver, figure):
    trace = make_model(name, solver=SOLVERS[solver]).condition().trace
    panels = trace.plot(figure)
    assert set(panels) == {"gap", "residuals", "steps", "rank", "spectrum", "time"}
    assert list(panels["spectrum"].lines[0].get_ydata()) == pytest.approx(trace.spectrum, rel=1e-6, abs=1e-5)
    assert len(panels["time"].patches) == 3
    assert len([line for line in panels["residuals"].lines if line.get_linestyle() == "-"]) == len(
        trace[0].class_residuals
    )
    text = figure.subfigs[1].texts[0].get_text()
    assert " ".join(text.split()).startswith("- " + " ".join(str(trace.explain()).split())[:60])


def test_the_dashboard_of_fit_shows_learning_and_texts_do_not_overlap():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    for trace in (learned(8).trace, classes(100).condition().trace):
        panels = trace.plot()
        drawn = panels["gap"].figure.figure
        assert ("parameters" in panels) == (trace.learning is not None)
        assert overlaps(drawn) == []
        plt.close(drawn)


def test_the_dashboard_of_a_run_that_goes_on(figure):
    from itergp.diagnostics.dashboard import plot_dashboard

    whole = learned(3).trace
    started = Trace()
    for record in whole.learning.records:
        started.add(record)
    assert set(plot_dashboard(started, figure)) == {"objective", "parameters"}
    figure.clear()
    started.add(whole[0])
    assert set(plot_dashboard(started, figure)) >= {"gap", "objective"}
    figure.clear()
    assert set(plot_dashboard(Trace(), figure)) == {"gap", "residuals", "steps", "rank", "spectrum", "time"}
    figure.canvas.draw()


def test_a_spectrum_needs_directions(figure):
    axes = figure.subplots()
    assert diagnostics.plot_spectrum(axes, [4.0, 0.5, 0.0]) is axes
    shown = axes.lines[0].get_ydata()
    assert list(shown[:2]) == [4.0, 0.5]
    assert shown[2] > 0.0
    with pytest.raises(InputError, match="must have at least one"):
        diagnostics.plot_spectrum(axes, [])


def test_relevance_is_sorted_and_relative_to_the_spread(figure):
    one, two, three = figure.subplots(3)
    scales = torch.tensor([[2.0, 0.5, 4.0]])
    assert diagnostics.plot_relevance(one, scales, names=["a", "b", "c"]) is one
    assert [label.get_text() for label in one.get_yticklabels()] == ["b", "a", "c"]
    assert [bar.get_width() for bar in one.patches] == pytest.approx([2.0, 0.5, 0.25])
    diagnostics.plot_relevance(two, scales, spread=torch.tensor([1.0, 1.0, 40.0]), most=2)
    assert [label.get_text() for label in two.get_yticklabels()] == ["2", "1"]
    assert "1 less relevant" in two.get_title()
    diagnostics.plot_relevance(three, torch.stack([scales, 4.0 * scales]))
    assert [bar.get_width() for bar in three.patches] == pytest.approx([1.0, 0.25, 0.125])
    with pytest.raises(InputError, match="`names` must have one entry per input, 3"):
        diagnostics.plot_relevance(one, scales, names=["a"])


@pytest.mark.parametrize("make", [binary, classes], ids=["two classes", "three classes"])
def test_a_class_map_shows_the_most_probable_class(make, figure):
    axes, model = figure.subplots(), make(60)
    assert diagnostics.plot_class_map(axes, model, resolution=8, limits=(-1.0, 1.0, -2.0, 2.0)) is axes
    picture = np.asarray(axes.images[0].get_array())
    ups, across = torch.linspace(-2, 2, 8).double(), torch.linspace(-1, 1, 8).double()
    x = torch.stack([across.repeat(8), ups.repeat_interleave(8)], -1)
    probs = diagnostics.class_probabilities(model.predict(x).probs)
    colors = np.array([h.get_facecolor()[0][:3] for h in axes.collections if h.get_label().startswith("class")])
    nearest = np.square(picture.reshape(-1, 1, 3) - colors).sum(-1).argmin(-1)
    sure = (probs.max(1).values > 0.7).numpy()
    assert sure.any()
    assert (nearest[sure] == probs.argmax(1).numpy()[sure]).all()
    assert len(axes.get_legend().get_texts()) == probs.shape[1]


@pytest.mark.parametrize("quantity", ["entropy", "combined", "mathematical", "computational"])
def test_an_uncertainty_map_shows_the_quantity(quantity, figure):
    axes, model = figure.subplots(), classes(60, solver=SubspaceNewton(covariance_rank=6))
    assert (
        diagnostics.plot_uncertainty_map(axes, model, quantity, latent=1, resolution=6, limits=(-1.0, 1.0, 0.0, 3.0))
        is axes
    )
    shown = np.asarray(axes.collections[0].get_array()).reshape(6, 6)
    corner = torch.tensor([[1.0, 0.0]]).double()  # right, at the bottom
    if quantity == "entropy":
        expected = float(torch.special.entr(model.predict(corner).probs).sum())
    else:
        expected = float(getattr(model.decompose_uncertainty(corner), quantity)[0, 1].sqrt())
    assert shown[0, -1] == pytest.approx(expected, rel=1e-6, abs=1e-9)
    assert len(figure.axes) == 2  # with a bar


def test_maps_of_some_of_many_inputs_hold_the_others_at_their_median(figure):
    axes = figure.subplots()
    x, y = make_binary(60, 4)
    model = SimpleGP(x, y, BernoulliLikelihood(), kernel=make_kernel(2.0, 10.0)).double().eval()
    diagnostics.plot_uncertainty_map(
        axes, model, "combined", columns=(3, 1), resolution=3, limits=(-1.0, 1.0, -1.0, 1.0)
    )
    point = x.median(0).values.clone()
    point[3], point[1] = -1.0, -1.0
    variance = float(model.decompose_uncertainty(point[None]).combined)
    assert np.asarray(axes.collections[0].get_array()).reshape(3, 3)[0, 0] == pytest.approx(math.sqrt(variance))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"columns": (0, 0)}, "`columns` must be two different inputs"),
        ({"columns": (0, 2)}, "`columns` must be two different inputs"),
        ({"resolution": 1}, "`resolution` must be at least 2"),
    ],
)
def test_maps_refuse_what_they_cannot_draw(options, message, figure):
    with pytest.raises(InputError, match=message):
        diagnostics.plot_class_map(figure.subplots(), binary(30), **options)


def test_maps_of_what_a_model_does_not_have(figure):
    axes = figure.subplots()
    counts = make_model("poisson")
    with pytest.raises(InputError, match="must predict classes"):
        diagnostics.plot_class_map(axes, counts)
    with pytest.raises(InputError, match="`quantity` must be one of"):
        diagnostics.plot_uncertainty_map(axes, counts, "everything")
    with pytest.raises(InputError, match=r"`latent` must be 0\.\.0"):
        diagnostics.plot_uncertainty_map(axes, counts, "combined", latent=1, resolution=3)
    assert make_inputs(1).shape == (1, 2)


def test_the_dashboard_needs_matplotlib(monkeypatch):
    trace = binary(30).condition().trace
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(InputError, match="needs matplotlib"):
        trace.plot()

"""Structures that compete on held-out rows."""

from __future__ import annotations

import itertools
import time
import warnings

import pytest
import torch
from gpytorch.constraints import GreaterThan
from gpytorch.kernels import MaternKernel, ScaleKernel
from helpers import assert_close

import itergp
from itergp.errors import InputError, ItergpWarning
from itergp.kernels import TiedMaternKernel
from itergp.learning import InputColumns, Structure, fitting, judging, structure_search
from itergp.learning.held_out import judging_splits
from itergp.learning.learner import Learner
from itergp.learning.structure_search import StructureSearch
from itergp.learning.structures import AUTOMATIC, candidates
from itergp.likelihoods import (
    BernoulliLikelihood,
    CategoricalLikelihood,
    GaussianLikelihood,
    HeteroscedasticGaussianLikelihood,
    LaplaceLikelihood,
    Likelihood,
    LogLogisticLikelihood,
    NegativeBinomialLikelihood,
    PoissonLikelihood,
    StudentTLikelihood,
    WeibullLikelihood,
)
from itergp.models import GP, QuantileTransform
from itergp.objectives import Deadline, PredictiveLogDensity
from itergp.records import Listeners
from itergp.solvers import few_values, solve

SIMPLE, ROUGH, RANKS = Structure("matern32"), Structure("laplacian"), Structure("laplacian", "ranks")


def boxes(num_rows: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Classes with edges along the axes, in skewed columns: what trees are good at."""
    generator = torch.Generator().manual_seed(seed)
    u = torch.rand(num_rows, 3, generator=generator, dtype=torch.float64)
    y = ((u[:, 0] * 4).floor() + (u[:, 1] * 4).floor()) % 2
    return torch.exp(4.0 * u), y.long()


def model_of(x: torch.Tensor, y: torch.Tensor) -> GP:
    return GP(x, y, BernoulliLikelihood())


@pytest.fixture(scope="module")
def chosen() -> tuple[GP, itergp.learning.FitResult]:
    model = model_of(*boxes(1500))
    return model, itergp.fit(model, structures=[SIMPLE, ROUGH, RANKS], max_iterations=10)


def test_the_better_structure_is_chosen(chosen):
    model, result = chosen
    assert result.comparison.chosen == str(RANKS)
    assert isinstance(model.input_transform, QuantileTransform)
    trials = {trial.structure: trial for trial in result.comparison.trials}
    assert list(trials) == [str(s) for s in (SIMPLE, ROUGH, RANKS)]
    assert trials[str(RANKS)].behind <= trials[str(RANKS)].standard_error
    assert trials[str(SIMPLE)].behind > trials[str(SIMPLE)].standard_error
    x, y = boxes(500, seed=1)
    assert float(-model.predict(x).log_prob(y).mean()) < 0.45  # without structure 0.6


def test_the_comparison_reads_as_a_table(chosen):
    lines = str(chosen[1].comparison).splitlines()
    assert len(lines) == 4
    assert lines[-1].startswith("laplacian on ranks")
    assert lines[-1].endswith("chosen")


@pytest.fixture(scope="module")
def noisy():
    """Comparisons of a constant noise with one that varies, of targets whose noise does and of others."""
    found = []
    for varies in (True, False):
        generator = torch.Generator().manual_seed(0)
        x = torch.linspace(-2.0, 2.0, 160, dtype=torch.float64)[:, None]
        noise = 0.02 + torch.sigmoid(6.0 * x[:, 0]) if varies else 0.3
        y = torch.sin(3.0 * x[:, 0]) + noise * torch.randn(160, generator=generator, dtype=torch.float64)
        model, options = GP(x, y, GaussianLikelihood()), {"objective": "predictive", "max_iterations": 1}
        result = itergp.fit(model, structures=[SIMPLE], likelihoods=[HeteroscedasticGaussianLikelihood()], **options)
        found.append((model, result))
    return found


def test_noise_that_varies_is_noticed(noisy):
    """Judged by a posterior that is integrated: the mode of a likelihood without a bound meets its targets, without noise."""
    model, result = noisy[0]
    assert type(model.likelihood) is HeteroscedasticGaussianLikelihood
    first, second = result.comparison.trials
    assert first.behind > 3.0 * first.standard_error
    assert second.log_density > -1.0
    looked_at = {approximation for approximation, _ in result.calibration.log_densities}
    assert looked_at == {"variational"}


def test_where_residuals_say_nothing_noise_does_not_vary(noisy):
    """The turn of two latent functions, many times as long as any other, is left out."""
    model, result = noisy[1]
    assert type(model.likelihood) is GaussianLikelihood
    assert len(result.comparison.trials) == 1


def test_residuals_of_noise_without_a_variance_say_nothing():
    x = torch.linspace(-2.0, 2.0, 60, dtype=torch.float64)[:, None]
    likelihood = StudentTLikelihood(deg_free=1.5, deg_free_constraint=GreaterThan(1.0))
    likelihood.requires_grad_(False)
    model, rival = GP(x, torch.sin(3.0 * x[:, 0]), likelihood), HeteroscedasticGaussianLikelihood()
    search = StructureSearch(model, [SIMPLE], (rival,), InputColumns.plain(1), 0, Deadline(), Listeners(), 1.0)
    assert len(search.run()[1].trials) == 1


def test_residuals_of_a_mode_are_over_the_noise_alone():
    """A posterior that was not asked for has no covariance; the prior's in its place would hide any noise."""
    x = torch.linspace(-2.0, 2.0, 60, dtype=torch.float64)[:, None]
    likelihood = StudentTLikelihood(noise=0.01)
    likelihood.requires_grad_(False)
    model, train, held_out = GP(x, torch.sin(3.0 * x[:, 0]), likelihood), torch.arange(0, 60, 2), torch.arange(1, 60, 2)
    found, _ = judging.held_out_residuals(model, model, train, held_out, Deadline())
    model.set_train_data(x[train], model.train_targets[train], strict=False)
    model.approximation = "laplace"
    mode = model.eval()(x[held_out]).mean
    noise = likelihood.predictive(mode[:, None], torch.zeros(30, 1, 1, dtype=torch.float64)).variance
    torch.testing.assert_close(found, (torch.sin(3.0 * x[held_out, 0]) - mode).square() / noise, rtol=0.05, atol=1e-4)


def test_modes_on_kinks_are_not_looked_for():
    assert judging.approximation_of(LaplaceLikelihood()) == "variational"


@pytest.mark.parametrize(
    ("likelihood", "predictive"),
    [
        (GaussianLikelihood(), "laplace"),
        (StudentTLikelihood(), "laplace"),
        (LaplaceLikelihood(), "variational"),
        (BernoulliLikelihood(), "plug-in"),
    ],
)
def test_candidates_learn_what_predictions_will_be(likelihood, predictive, monkeypatch):
    """A noise that is learned for the mode stands in for the variance around it, and lets rough kernels win."""
    x, y = boxes(120)
    targets = y if predictive == "plug-in" else y.double()
    known, evidence = set(), PredictiveLogDensity.evidence

    def noted(self, *others: object) -> torch.Tensor:
        known.add(self.predictive)
        return evidence(self, *others)

    monkeypatch.setattr(PredictiveLogDensity, "evidence", noted)
    model = GP(x, targets, likelihood)
    search = StructureSearch(model, [SIMPLE], (), InputColumns.plain(x.shape[1]), 0, Deadline(), Listeners(), 1.0)
    found, _ = search.run()
    assert known == {predictive}
    train, held_out = torch.arange(80), torch.arange(80, 120)
    densities, _ = judging.held_out_densities(found, model, train, held_out, Deadline())
    found.set_train_data(x[:80], targets[:80], strict=False)
    latent = found(x[80:])
    expected = found.predict(x[80:]).log_prob(targets[80:])
    if predictive == "plug-in":
        expected = found.calculus.log_density(latent.mean[:, None], targets[80:])
    torch.testing.assert_close(densities, expected.detach(), rtol=0.02, atol=0.02)


@pytest.mark.filterwarnings("ignore:Inputs should say something")  # after one step
def test_sums_start_at_the_prior_variance_of_other_candidates():
    """Not at halves of GPyTorch's default, which nobody asked for."""
    x, y = boxes(200)
    sums = Structure("matern12 + matern52")
    result = itergp.fit(model := model_of(x, y), structures=[sums], max_iterations=1, calibrate=False)
    assert result.comparison.chosen == str(sums)
    scales = [float(m.outputscale.detach()) for m in model.covar_module.modules() if isinstance(m, ScaleKernel)]
    assert sum(scales) > 2.0
    given = GP(x, y, BernoulliLikelihood(), kernel=ScaleKernel(MaternKernel()))
    given.covar_module.outputscale = 0.01
    itergp.fit(given, structures=[sums], max_iterations=1, calibrate=False)
    assert sum(float(m.outputscale.detach()) for m in given.covar_module.modules() if isinstance(m, ScaleKernel)) < 2.0


def test_the_course_of_a_comparison_says_who_was_out_when(chosen):
    trials = chosen[1].comparison.trials
    assert [len(trial.course) for trial in trials] == [trial.rounds for trial in trials]
    for number in range(max(trial.rounds for trial in trials)):
        assert min(trial.course[number][0] for trial in trials if len(trial.course) > number) == 0.0


def test_equal_seeds_choose_alike():
    results = []
    for _ in range(2):
        model = model_of(*boxes(300))
        comparison = itergp.fit(model, structures=[SIMPLE, RANKS], max_iterations=4, seed=3).comparison
        results.append(([trial.log_density for trial in comparison.trials], comparison.chosen))
    assert results[0] == results[1]


def test_of_equally_simple_candidates_the_better_is_kept():
    """Within a standard error of the best: in whatever order they are listed, and whichever kernel or likelihood it is."""
    x = torch.zeros(4, 3)

    def contestant(structure: Structure, likelihood: Likelihood, gain: float) -> structure_search._Contestant:
        model = GP(x, torch.ones(4), likelihood, kernel=structure.make_kernel(InputColumns.plain(3)))
        densities = {0: gain * torch.tensor([4.0, -2.0, 1.0, 1.0])}
        return structure_search._Contestant(structure, 0, str(gain), model, densities, rounds=1)

    weibull = contestant(Structure("matern32"), WeibullLikelihood(), 0.0)
    logistic = contestant(Structure("matern32"), LogLogisticLikelihood(), 0.2)
    rough = contestant(Structure("laplacian"), WeibullLikelihood(), 0.1)
    larger = contestant(Structure("matern12 + matern52"), WeibullLikelihood(), 0.3)
    smaller = contestant(Structure("matern32, one lengthscale"), WeibullLikelihood(), -0.5)
    for listed in itertools.permutations([weibull, logistic, rough, larger]):
        assert structure_search._simplest(list(listed)) is logistic
    assert structure_search._simplest([larger, smaller]) is smaller
    clear = contestant(Structure("matern32"), WeibullLikelihood(), 0.0)
    clear.densities[0] = clear.densities[0] + 2.0
    assert structure_search._simplest([smaller, clear]) is clear  # by the same on every row: no error


def test_the_simpler_is_kept_where_nothing_is_gained():
    x = torch.randn(400, 2, dtype=torch.float64)
    y = torch.randint(0, 2, (400,))
    with pytest.warns(ItergpWarning, match="no better than by a constant"):
        comparison = itergp.fit(model_of(x, y), structures="auto", max_iterations=4).comparison
    assert comparison.chosen == "matern32, one lengthscale"


def test_a_noise_is_learned_by_all():
    x = torch.rand(200, 1, dtype=torch.float64)
    y = torch.sin(12.0 * x[:, 0]) + 0.1 * torch.randn(200, dtype=torch.float64)
    model = GP(x, y, GaussianLikelihood())
    result = itergp.fit(model, structures=[SIMPLE, Structure("linear + matern32")], max_iterations=10)
    best = max(trial.log_density for trial in result.comparison.trials)
    assert 0.5 < best < 1.0  # of a known function 0.88
    assert 0.05 < model.likelihood.noise.detach().item() ** 0.5 < 0.2


def test_kernels_by_columns():
    columns = InputColumns(5, numeric=(0,), groups=(0, 1, 1, 1, 2), codes=(4,))
    x = torch.cat([torch.randn(30, 1), torch.eye(3)[torch.arange(30) % 3], torch.arange(30.0)[:, None] % 7], 1).double()
    for structure in AUTOMATIC:
        kernel, transform = structure.make_kernel(columns).double(), structure.make_transform(x, columns)
        covariance = kernel(x if transform is None else transform(x)).to_dense().detach()
        assert float(torch.linalg.eigvalsh(covariance)[0]) > -1e-10
        if transform is not None:
            assert torch.equal(transform(x)[:, 1:], x[:, 1:])
    tied = [m for m in SIMPLE.make_kernel(columns).modules() if isinstance(m, TiedMaternKernel)]
    assert tied[0].group_lengthscale.shape == (1, 2)  # the number and the one-hot columns
    kernel = Structure("laplacian").make_kernel(InputColumns.plain(3), torch.Size([4]))
    assert kernel.batch_shape == torch.Size([4])


def test_of_one_column_several_are_the_same():
    assert "matern32, one lengthscale" not in map(str, candidates("auto", InputColumns.plain(1), 1000))
    assert candidates("auto", InputColumns.plain(4), 1000) == AUTOMATIC
    assert len(candidates("auto", InputColumns.plain(4), 100)) == len(AUTOMATIC) - 2


def test_few_rows_keep_the_models_kernel():
    model = model_of(*boxes(40))
    kernel = model.covar_module
    assert itergp.fit(model, structures="auto", max_iterations=2).comparison is None
    assert model.covar_module is kernel


def test_several_classes_and_weights():
    x, y = boxes(240)
    y = y + (x[:, 2] > 20.0)
    weight = torch.rand(240, dtype=torch.float64)
    weight[:20] = 0.0
    model = GP(x, y, CategoricalLikelihood(3), sample_weight=weight)
    result = itergp.fit(model, structures=[SIMPLE, RANKS], max_iterations=4)
    assert result.comparison.num_held_out == 73
    assert result.solution.status.converged


@pytest.mark.parametrize("likelihood", [BernoulliLikelihood(), StudentTLikelihood()])
def test_few_rows_are_judged_by_dense_matrices(likelihood, monkeypatch):
    """Where these are exact, with the densities that kernel passes find."""
    x, y = boxes(240)
    model = GP(x, y if isinstance(likelihood, BernoulliLikelihood) else x[:, 0].log(), likelihood).eval()
    train, held_out, solvers = torch.arange(160), torch.arange(160, 240), []

    def densities() -> torch.Tensor:
        found, interrupted = judging.held_out_densities(model, model, train, held_out, Deadline())
        assert not interrupted
        return found

    def seen(operator: object, mean: object, observations: object, solver: object, **options: object) -> object:
        solvers.append(type(solver).__name__)
        return solve(operator, mean, observations, solver, **options)

    monkeypatch.setattr(judging, "solve", seen)
    dense = densities()
    monkeypatch.setattr(few_values, "_DENSE_ROWS", 0)
    torch.testing.assert_close(dense, densities(), rtol=1e-2, atol=1e-2)
    exact = model.calculus.curvature == "hessian"
    assert solvers == ["DenseNewton" if exact else "SubspaceNewton", "SubspaceNewton"]


def test_learning_integrates_what_structures_are_judged_by():
    """Or what the model predicts by, where nothing else is chosen afterwards."""
    x, _ = boxes(600)
    model = GP(x, x[:, 0].log(), StudentTLikelihood())
    assert model.approximation == "variational"
    for calibrate, predictive in ((True, "laplace"), (False, "variational")):
        settings = fitting.Settings("predictive", "adam", 4, 0.1, "auto", 0, calibrate, None, True, 0)
        assert [stage.objective.predictive for stage in fitting._stages(model, settings, renew_every=1)] == [predictive]


@pytest.mark.parametrize(("num_rows", "folds"), [(1000, 0), (1200, 4), (1700, 3), (2100, 1)])
def test_finalists_are_judged_by_nearly_every_row(num_rows, folds):
    model = model_of(*boxes(num_rows))
    splits = judging_splits(model.observations, most_to_learn=1000, seed=0)
    assert len(splits) == folds
    for train, held_out in splits:
        assert len(train) <= 1000
        assert not set(train.tolist()) & set(held_out.tolist())
    judges = [row for _, held_out in splits for row in held_out.tolist()]
    assert len(judges) == len(set(judges)) == (num_rows if folds > 1 else 1100 * folds)


def test_where_time_is_short_each_has_a_brief_turn(monkeypatch):
    """By a clock that only evaluations move: six longer turns would not fit."""
    now, evaluate, judge = 0.0, Learner.evaluate, structure_search.held_out_densities

    def rows_of(model: GP) -> int:
        return model.train_targets.shape[0]

    def slowly(self: Learner, objective: PredictiveLogDensity) -> float:
        nonlocal now
        now += objective.num_rows / 1000.0
        return evaluate(self, objective)

    def judged(model: GP, data: GP, train: torch.Tensor, *others: object) -> object:
        nonlocal now
        now += len(train) / 1000.0
        return judge(model, data, train, *others)

    monkeypatch.setattr(Learner, "evaluate", slowly)
    monkeypatch.setattr(structure_search, "held_out_densities", judged)
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    x, y = boxes(1600)
    result = itergp.fit(model_of(x, y), structures="auto", time_limit=90.0, calibrate=False, progress=False)
    rounds = [trial.rounds for trial in result.comparison.trials]
    assert min(rounds) >= 1  # one after another, each would have taken 9 of 30 seconds
    assert max(rounds) >= 2
    best = max(result.comparison.trials, key=lambda trial: (trial.rounds, trial.log_density))
    assert result.comparison.chosen == best.structure


def test_a_generous_time_limit_changes_no_choice():
    x, y = boxes(240)
    found = [
        itergp.fit(model_of(x, y), structures=[SIMPLE, RANKS], max_iterations=2, time_limit=limit).comparison
        for limit in (None, 1000.0)
    ]
    first, second = (
        [(trial.structure, trial.log_density, trial.rounds) for trial in comparison.trials] for comparison in found
    )
    assert first == second


def test_a_time_limit_bounds_the_whole_call():
    model = model_of(*boxes(3000))
    begun = time.perf_counter()
    result = itergp.fit(model, structures="auto", time_limit=1.0)
    assert time.perf_counter() - begun < 20.0  # one turn and one stage are always finished, on any machine
    assert any(trial.rounds < 2 for trial in result.comparison.trials)
    assert bool(torch.isfinite(model.predict(boxes(10)[0]).probs).all())


class Slow(StudentTLikelihood):
    """Moves a clock by one at a time."""

    now = 0.0

    def _derivatives(self, latent: torch.Tensor, *others: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        Slow.now += 1.0
        return super()._derivatives(latent, *others)


def slow_model(monkeypatch: pytest.MonkeyPatch) -> GP:
    monkeypatch.setattr(time, "perf_counter", lambda: Slow.now)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1500, 4, generator=generator, dtype=torch.float64)
    y = torch.sin(2.0 * x[:, 0]) + x[:, 1] + 0.1 * torch.randn(1500, generator=generator, dtype=torch.float64)
    return GP(x, y, Slow().double())


@pytest.mark.parametrize("limit", [300.0, 500.0])
@pytest.mark.parametrize("structures", ["auto", None])
def test_what_is_not_over_in_time_is_given_up(limit, structures, monkeypatch):
    """By a clock that only the likelihood moves: a step of learning that would take longer is none, nor is a candidate."""
    model, begun = slow_model(monkeypatch), Slow.now
    result = itergp.fit(model, structures=structures, time_limit=limit, progress=False)
    assert Slow.now - begun <= 1.1 * limit
    assert limit < 500.0 or result.calibration is not None  # there is time left for it
    assert result.reason == "the time limit was reached"
    y = model.train_targets
    constant = float(torch.distributions.Normal(y.mean(), y.std()).log_prob(y).mean())
    with torch.no_grad():
        assert float(model.predict(*model.train_inputs).log_prob(y).mean()) > constant + 0.5


def test_without_time_for_a_step_there_is_a_model():
    for structures in ("auto", None):
        x, y = boxes(300)
        model = model_of(x, y)
        result = itergp.fit(model, structures=structures, time_limit=1e-9, progress=False)
        assert result.records == []
        assert result.calibration is None
        with torch.no_grad():
            assert bool(torch.isfinite(model.predict(x).log_prob(y)).all())


def test_what_cannot_be_exchanged_is_refused():
    x, y = boxes(100)

    class Own(GP):
        def forward(self, x: torch.Tensor) -> object:
            return super().forward(2.0 * x)

    with pytest.raises(InputError, match=r"`structures` are those of an itergp.models.GP"):
        itergp.fit(Own(x, y, BernoulliLikelihood()), structures="auto")
    with pytest.raises(InputError, match=r"`structures` must be 'auto'"):
        itergp.fit(model_of(x, y), structures="all")
    with pytest.raises(InputError, match=r"`kernel` must be one of"):
        Structure("cubic")
    with pytest.raises(InputError, match=r"`scale` must be"):
        Structure("matern32", "logarithms")


class Killed(Exception):
    """What stands for the end of the process."""


def test_learning_goes_on_after_the_same_choice(tmp_path):
    def learn(**options: object) -> GP:
        model = model_of(*boxes(200))
        itergp.fit(model, structures=[SIMPLE, RANKS], max_iterations=10, **options)
        return model

    def kill(record: itergp.learning.FitRecord) -> None:
        if getattr(record, "iteration", 0) == 2:
            raise Killed("at the third step")

    kept = {"checkpoint": tmp_path / "fit.safetensors", "checkpoint_every": 0}
    with pytest.raises(Killed, match="at the third step"):
        learn(**kept, callback=kill)
    resumed, whole = learn(**kept), learn()
    for one, other in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert torch.equal(one, other)


def test_likelihoods_of_one_class_are_told_apart():
    x = torch.randn(200, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    model = model_of(x, (x[:, 0] > 0.0).long())
    comparison = itergp.fit(
        model, structures=[SIMPLE], likelihoods=[BernoulliLikelihood(link="probit")], max_iterations=2
    ).comparison
    assert len({trial.structure for trial in comparison.trials}) == 2
    assert comparison.likelihood == 1
    assert model.likelihood.link == "probit"


@pytest.mark.parametrize("index", [1, 2])
def test_an_interrupted_search_ends_with_what_it_knows(index, monkeypatch):
    turns, turn = [], StructureSearch._turn

    def interrupted(self: StructureSearch, *arguments: object) -> None:
        turns.append(arguments)
        if len(turns) > index:
            raise KeyboardInterrupt
        turn(self, *arguments)

    monkeypatch.setattr(StructureSearch, "_turn", interrupted)
    model = model_of(*boxes(200))
    result = itergp.fit(model, structures=[SIMPLE, ROUGH, RANKS], max_iterations=4)
    assert result.comparison.interrupted
    assert [trial.rounds for trial in result.comparison.trials] == [1] * index + [0] * (3 - index)
    assert result.reason == "learning was interrupted"
    assert result.records == []
    assert result.solution.status.converged


def test_missing_targets_say_nothing():
    x, y = boxes(240)
    missing = y.clone()
    missing[:40] = -1
    model = GP(x, missing, BernoulliLikelihood(), missing_targets=True)
    few = model_of(x[40:], y[40:])
    counts = [itergp.fit(m, structures=[SIMPLE, RANKS], max_iterations=2).comparison.num_held_out for m in (model, few)]
    assert counts[0] == counts[1] == 66


def test_levels_alone_have_a_kernel():
    columns = InputColumns(1, numeric=(), groups=(0,), codes=(0,))
    (structure,) = candidates("auto", columns, 1000)
    kernel = structure.make_kernel(columns).double()
    x = torch.arange(12, dtype=torch.float64).remainder(3).unsqueeze(-1)
    covariance = kernel(x).to_dense().detach()
    assert_close(covariance[0, 3], covariance[0, 0])
    assert float(covariance[0, 1]) < float(covariance[0, 0])
    assert structure.make_transform(x, columns) is None


@pytest.mark.filterwarnings("ignore:Inputs should say something")  # of counts that vary so much that it hardly shows
def test_likelihoods_have_their_turn_before_kernels(monkeypatch):
    """Where time ends the search: counts that vary more than Poisson's must not end with Poisson's."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 3, generator=generator, dtype=torch.float64)
    rate = torch.distributions.Gamma(0.5, 0.1 * torch.exp(-x[:, 0]))
    torch.manual_seed(0)
    y = torch.poisson(rate.sample())
    turns = 0

    def over(self) -> bool:
        nonlocal turns
        turns += 1
        return turns > 2

    monkeypatch.setattr(StructureSearch, "_over", over)
    model = GP(x, y, PoissonLikelihood())
    comparison = itergp.fit(
        model, structures="auto", likelihoods=[NegativeBinomialLikelihood()], max_iterations=2
    ).comparison
    assert comparison.likelihood == 1
    assert "NegativeBinomialLikelihood" in comparison.chosen


def test_a_constant_knows_no_groups_and_learns_its_noise():
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(200, 2, generator=generator, dtype=torch.float64)
    codes = torch.arange(200) % 10
    effect = torch.linspace(-1.0, 1.0, 10, dtype=x.dtype)[codes]
    noise = torch.randn(200, generator=generator, dtype=x.dtype)
    effect = effect + 0.1 * torch.randn(200, generator=generator, dtype=x.dtype)
    of_groups = InputColumns(3, (0, 1), (0, 1, 2), random_effects=((2, None),))
    for targets, columns, inputs, found in (
        (noise, InputColumns.plain(2), x, False),
        (effect, of_groups, torch.cat([x, codes[:, None].to(x)], 1), True),
    ):
        model = GP(inputs, targets / targets.std(), GaussianLikelihood())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ItergpWarning)
            comparison = itergp.fit(model, max_iterations=2, structures="auto", columns=columns).comparison
        assert comparison.found_something == found
        assert comparison.gain > 0.5 if found else comparison.gain < 0.1

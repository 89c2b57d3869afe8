"""Equal training rows share their latent values: the same posterior, found with the distinct rows alone."""

from __future__ import annotations

import copy
import pickle

import gpytorch
import pytest
import torch
from gpytorch.distributions import MultivariateNormal
from gpytorch.kernels import InducingPointKernel, Kernel, RBFKernel, ScaleKernel
from helpers import CASES, SimpleGP, assert_close, assert_same_posterior, make_inputs, make_kernel

import itergp
from itergp.likelihoods import (
    BernoulliLikelihood,
    CategoricalLikelihood,
    GaussianLikelihood,
    LaplaceSite,
    VariationalSite,
)
from itergp.models import NonConjugateGP
from itergp.numerics import DistinctRows
from itergp.objectives import ComputationAwareELBO, LaplaceEvidence, PredictiveLogDensity
from itergp.solvers import DenseNewton, IterNCGP, LinearTimeNewton, SubspaceNewton

KINDS, ROWS = 16, 40


def repeated(name: str, kinds: int = KINDS, rows: int = ROWS, dtype: torch.dtype = torch.float64):
    """Inputs of so many kinds in no order, with targets of their own, and weights of which some are zero."""
    case = CASES[name]
    which = torch.randint(kinds, (rows,), generator=torch.Generator().manual_seed(3))
    _, y = case.data(rows, dtype=dtype, seed=1)
    weight = 0.25 * (torch.arange(rows) % 5).to(dtype)
    return make_inputs(kinds, dtype=dtype)[which], y, weight


def both(name: str, **options):
    """A model whose equal rows share their latent values, and one whose do not."""
    x, y, weight = repeated(name)
    options = {"solver": DenseNewton(), "sample_weight": weight} | options
    made = [SimpleGP(x, y, CASES[name].make(), share_equal_rows=share, **options) for share in (True, False)]
    return tuple(model.double().eval() for model in made)


# --------------------------------------------------------------------- the posterior
@pytest.mark.parametrize("approximation", ["laplace", "variational"])
@pytest.mark.parametrize("name", list(CASES))
def test_the_posterior_is_that_of_all_rows(name, approximation):
    if not CASES[name].regular and approximation == "laplace":
        pytest.skip("its mode is not smooth")
    if name == "categorical" and approximation == "variational":
        pytest.skip("its samples differ from row to row")
    # Where the dense solver's rounds end before they have converged, another's are compared.
    solver = SubspaceNewton(tolerance=1e-12) if name == "heteroscedastic" else DenseNewton()
    shared, apart = both(name, approximation=approximation, solver=solver)
    assert shared.conditioned.operator.num_rows == shared.num_distinct_rows < ROWS == apart.num_distinct_rows
    solution, expected = shared.solution, apart.solution
    if name == "categorical":  # whose bound is an estimate from samples
        assert_close(solution.latent_values, expected.latent_values, "posterior")
        assert_close(solution.latent_covariance, expected.latent_covariance, "posterior")
    else:
        assert_same_posterior(shared, apart)
    assert solution.objective == pytest.approx(expected.objective, rel=1e-6)
    if approximation == "laplace":
        assert solution.log_marginal_likelihood == pytest.approx(expected.log_marginal_likelihood, rel=1e-6)


@pytest.mark.parametrize("name", ["categorical", "gaussian", "poisson-exposure"])
def test_missing_targets_say_nothing(name):
    x, y, weight = repeated(name)
    y = y.double().clone()
    y[::3] = float("nan")
    y[(x == x[1]).all(-1)] = float("nan")  # of one kind all of them
    options = {"solver": DenseNewton(), "approximation": "laplace", "missing_targets": True, "sample_weight": weight}
    made = [SimpleGP(x, y, CASES[name].make(), share_equal_rows=share, **options) for share in (True, False)]
    shared, apart = (model.double().eval() for model in made)
    assert shared.num_distinct_rows < ROWS
    assert_close(shared.solution.latent_values, apart.solution.latent_values, "posterior")
    assert_close(shared.solution.latent_covariance, apart.solution.latent_covariance, "posterior")


@pytest.mark.parametrize("learned", [False, True])
def test_known_noise_of_each_row_counts(learned):
    x, y, _ = repeated("gaussian")
    noise = torch.linspace(0.05, 2.0, ROWS, dtype=torch.float64)
    models = []
    for share in (True, False):
        likelihood = gpytorch.likelihoods.FixedNoiseGaussianLikelihood(noise, learn_additional_noise=learned)
        models.append(SimpleGP(x, y, likelihood, share_equal_rows=share, solver=DenseNewton()).double().eval())
    assert models[0].num_distinct_rows < ROWS
    assert_same_posterior(*models)


def test_samples_of_equal_rows_are_theirs_together():
    """Expectations over several latent functions: the site of a row is the sum of its observations' sites."""
    x, y, weight = repeated("categorical")
    model = SimpleGP(x, y, CASES["categorical"].make(), sample_weight=weight).double().eval()
    distinct, alone = DistinctRows.find([x]), model.observations
    together = alone.over(distinct)
    assert together.targets.shape == (KINDS, 3)
    assert together.total_weight == pytest.approx(float(weight.sum()))
    assert together.draws == ROWS // KINDS
    f = torch.randn(KINDS, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    covariance = torch.eye(3, dtype=torch.float64).expand(KINDS, 3, 3)
    site = VariationalSite.from_covariance(together, covariance)
    assert site.weights.shape == (32 * together.draws,)
    assert float(site.weights.sum()) == pytest.approx(1.0)
    spread = VariationalSite(alone, site.offsets[:, distinct.index], site.weights)
    assert site.log_density(f) == pytest.approx(spread.log_density(f[distinct.index]), rel=1e-12)
    for sums, terms in zip(site.derivatives(f), spread.derivatives(f[distinct.index]), strict=True):
        assert_close(sums, torch.zeros_like(sums).index_add_(0, distinct.index, terms), "local")


@pytest.mark.parametrize("solver", [SubspaceNewton(), IterNCGP(tolerance=1e-8), LinearTimeNewton(num_support=KINDS)])
def test_no_solver_knows(solver):
    shared, apart = both("bernoulli-logit", approximation="laplace", solver=solver)
    exact, _ = both("bernoulli-logit", approximation="laplace")
    assert shared.last_solution is None
    assert shared.solution.latent_values.shape == apart.solution.latent_values.shape
    assert_close(
        shared.latent_mean(make_inputs(5)), exact.latent_mean(make_inputs(5)), "posterior", dtype=torch.float32
    )


def test_float32_sums_in_double():
    """A thousand real targets at each row: what they add up to has the digits of a row's numbers."""
    x = make_inputs(4, dtype=torch.float32).repeat(1000, 1)
    y = torch.randn(4000, generator=torch.Generator().manual_seed(1))
    observations = SimpleGP(x, y, GaussianLikelihood()).observations
    together = observations.over(DistinctRows.find([x]))
    f = torch.zeros(4, 1)
    exact = (y.double() / 0.1).reshape(1000, 4).sum(0)  # of a noise variance that is set below
    observations.likelihood.noise = 0.1
    gradient, _ = LaplaceSite(together).derivatives(f)
    assert gradient.dtype == torch.float32
    assert_close(gradient[:, 0].double(), exact, "local", dtype=torch.float32)


# ---------------------------------------------------------------- what users see
def test_a_solution_has_an_entry_for_each_given_row():
    shared, apart = both("bernoulli-logit", approximation="laplace")
    x, solution, expected = shared.train_inputs[0], shared.solution, apart.solution
    assert solution is shared.solution
    assert solution.latent_values.shape == (ROWS, 1)
    assert solution.latent_covariance.shape == (ROWS, 1, 1)
    assert solution.curvature.shape == (ROWS, 1, 1)
    kernel = shared.covar_module(x).to_dense()
    mean = shared.mean_module(x).unsqueeze(-1)
    assert_close(mean + kernel @ solution.representer_weights, expected.latent_values, "posterior")
    actions = solution.all_actions().flatten(1)
    inner = torch.linalg.inv(torch.eye(actions.shape[1]).to(kernel) + actions.mT @ kernel @ actions)
    covariance = kernel - kernel @ actions @ inner @ actions.mT @ kernel
    assert_close(covariance.diagonal(), expected.latent_covariance.flatten(), "posterior")
    assert f"{KINDS} distinct of {ROWS} rows" in repr(solution)
    assert shared.train_inputs[0].shape == (ROWS, 2)
    assert shared.train_targets.shape == (ROWS,)


def test_posteriors_on_the_way_have_them_too():
    shared, _ = both("bernoulli-logit", solver=SubspaceNewton(num_blocks=2))
    seen = []
    shared.condition(on_posterior=lambda solution: seen.append(tuple(solution.latent_values.shape)))
    assert seen
    assert set(seen) == {(ROWS, 1)}


def test_the_plan_says_how_many_rows_are_distinct():
    shared, apart = both("bernoulli-logit")
    assert f"{KINDS} distinct of {ROWS} rows" in str(shared.plan())
    assert shared.plan().size.num_rows == KINDS
    assert f"on {ROWS} rows" in str(apart.plan())


# --------------------------------------------------------- where rows are not shared
class WhiteNoise(Kernel):
    """A kernel that tells a row from an equal one, in the way that GPyTorch users write it."""

    has_lengthscale = False

    def __init__(self, variance: float) -> None:
        super().__init__()
        self.variance = variance

    def forward(self, x1, x2, diag=False, **params):
        if diag:
            return torch.full(x1.shape[:-1], self.variance).to(x1)
        if x1.shape == x2.shape and torch.equal(x1, x2):
            return self.variance * torch.eye(x1.shape[-2]).to(x1)
        return torch.zeros(*x1.shape[:-1], x2.shape[-2]).to(x1)


class Numbered(NonConjugateGP):
    """A prior mean that knows the numbers of the rows."""

    def __init__(self, x, y, likelihood):
        super().__init__(x, y, likelihood)
        self.covar_module, self.offsets = make_kernel(), torch.nn.Parameter(torch.zeros(len(x)))

    def forward(self, x):
        return MultivariateNormal(self.offsets, self.covar_module(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("variance", [1.0, 1e-4])
def test_a_kernel_that_tells_equal_rows_apart_is_believed(variance, dtype):
    x, y, _ = repeated("gaussian", dtype=dtype)
    model = (
        SimpleGP(x, y, GaussianLikelihood(), kernel=ScaleKernel(RBFKernel()) + WhiteNoise(variance)).to(dtype).eval()
    )
    assert model.num_distinct_rows == ROWS


def test_so_are_inducing_points_whose_diagonal_is_the_rows_own():
    x, y, _ = repeated("gaussian")
    likelihood = GaussianLikelihood()
    kernel = InducingPointKernel(ScaleKernel(RBFKernel()), x[:3].clone(), likelihood)
    assert SimpleGP(x, y, likelihood, kernel=kernel).double().eval().num_distinct_rows == ROWS


@pytest.mark.parametrize("training", [False, True])
def test_so_is_a_forward_that_knows_the_numbers_of_rows(training):
    x, y, _ = repeated("gaussian")
    assert Numbered(x, y, GaussianLikelihood()).double().train(training).num_distinct_rows == ROWS


def test_derivatives_in_training_inputs_are_those_of_each_row():
    x, y, _ = repeated("bernoulli-logit")
    model = SimpleGP(x.requires_grad_(True), y, BernoulliLikelihood()).double().train()
    value = ComputationAwareELBO(model.likelihood, model, initialise_kernel=False)(model(*model.train_inputs), y)
    (gradient,) = torch.autograd.grad(value, x)
    assert bool((gradient.abs().sum(-1) > 0.0).all())


def test_few_equal_rows_are_left_alone():
    x = torch.cat([make_inputs(39), make_inputs(1)])
    model = SimpleGP(x, (x[:, 0] > 0).long(), BernoulliLikelihood()).double().eval()
    assert model.num_distinct_rows == 40


# -------------------------------------------------------------------- learning
class Batch(NonConjugateGP):
    """Models of several sets of targets."""

    def __init__(self, x, y, share):
        super().__init__(x, y, BernoulliLikelihood(), share_equal_rows=share, solver=DenseNewton())
        self.mean_module, self.covar_module = gpytorch.means.ConstantMean(), make_kernel()

    def forward(self, x):
        return MultivariateNormal(self.mean_module(x), self.covar_module(x))


OBJECTIVES = {
    "elbo": lambda m: ComputationAwareELBO(m.likelihood, m, initialise_kernel=False),
    "evidence": lambda m: LaplaceEvidence(m.likelihood, m, initialise_kernel=False),
    "plug-in": lambda m: PredictiveLogDensity(m.likelihood, m, tolerance=1e-10, initialise_kernel=False),
    "integrated": lambda m: PredictiveLogDensity(
        m.likelihood, m, predictive="variational", tolerance=1e-10, rank=40, initialise_kernel=False
    ),
}


@pytest.mark.parametrize("kind", list(OBJECTIVES))
@pytest.mark.parametrize("name", ["bernoulli-logit", "negative-binomial", "student-t", "categorical"])
def test_objectives_and_gradients_are_those_of_all_rows(name, kind):
    if name == "categorical" and kind in ("elbo", "integrated"):
        pytest.skip("its samples differ from row to row")
    found = []
    for model in both(name, approximation="laplace" if kind == "evidence" else "variational"):
        model.train()
        value = OBJECTIVES[kind](model)(model(*model.train_inputs), model.train_targets)
        names, parameters = zip(*model.named_parameters(), strict=True)
        found.append(
            (value.item(), dict(zip(names, torch.autograd.grad(value, parameters, allow_unused=True), strict=True)))
        )
    (ours, gradients), (expected, others) = found
    assert ours == pytest.approx(expected, rel=1e-5)
    for key, gradient in gradients.items():
        if gradient is not None:
            torch.testing.assert_close(gradient, others[key], rtol=2e-3, atol=2e-5)


def test_rows_are_held_out_not_kinds():
    """Some of a kind are learned from and others held out: the density is that of all rows by themselves."""
    shared, apart = both("bernoulli-logit", sample_weight=None)
    values = []
    for model in (shared, apart):
        model.train()
        objective = PredictiveLogDensity(
            model.likelihood, model, num_folds=ROWS, tolerance=1e-12, initialise_kernel=False, renew_every=None
        )
        values.append(objective(model(*model.train_inputs), model.train_targets).item())
        splits = objective.checkpoint_state().splits
    assert len(splits) == ROWS
    assert all(len(split.train) == ROWS - 1 for split in splits)
    assert values[0] == pytest.approx(values[1], rel=1e-6)


def test_batches_of_the_bound_are_of_given_rows():
    x, y, _ = repeated("bernoulli-logit")
    values = []
    for share in (True, False):
        solver = LinearTimeNewton(num_support=KINDS)
        model = SimpleGP(x, y, BernoulliLikelihood(), share_equal_rows=share, solver=solver).double().train()
        bound = ComputationAwareELBO(model.likelihood, model, batch_rows=10, initialise_kernel=False)
        with torch.no_grad():
            drawn = [float(bound(model(x), y)) for _ in range(200)]
            every = ComputationAwareELBO(model.likelihood, model, initialise_kernel=False)
            whole = float(every(model(x), y))
        mean, error = torch.tensor(drawn).mean(), torch.tensor(drawn).std() / 200**0.5
        assert abs(float(mean) - whole) < 5.0 * float(error)
        values.append(whole)
    assert values[0] > values[1]  # whose support has some rows twice


def test_fit_learns_the_same():
    fitted = []
    for model in both("bernoulli-logit", sample_weight=None, solver=SubspaceNewton()):
        itergp.fit(model, max_iterations=5, objective="predictive", seed=0)
        fitted.append(model)
    for ours, expected in zip(*(model.parameters() for model in fitted), strict=True):
        torch.testing.assert_close(ours, expected, rtol=2e-2, atol=2e-2)
    assert fitted[0].approximation == fitted[1].approximation


# ------------------------------------------------------------- other data, and files
def test_more_rows_start_from_the_posterior_of_those_before():
    shared, apart = both("bernoulli-logit", sample_weight=None, solver=SubspaceNewton(tolerance=1e-8))
    old, new = shared.train_inputs[0][:6], make_inputs(3, seed=9)
    for model in (shared, apart):
        model.condition()
        model.append_train_data(torch.cat([old, new]), torch.tensor([1, 0, 1, 1, 0, 0, 1, 1, 0]))
    cold = (
        SimpleGP(*shared.train_inputs, shared.train_targets, BernoulliLikelihood(), solver=shared.solver)
        .double()
        .eval()
    )
    shared.condition()
    assert shared.conditioned.operator.num_rows == KINDS + 3
    assert shared.solution.kernel_passes <= cold.condition().kernel_passes + 1
    assert_close(
        shared.latent_mean(make_inputs(5)), apart.latent_mean(make_inputs(5)), "posterior", dtype=torch.float32
    )
    assert_close(shared.latent_mean(make_inputs(5)), cold.latent_mean(make_inputs(5)), "posterior", dtype=torch.float32)


def test_rows_that_begin_or_cease_to_share_are_a_start_too():
    x = make_inputs(20)
    y = (x[:, 0] > 0).long()
    model = SimpleGP(x, y, BernoulliLikelihood(), solver=SubspaceNewton(tolerance=1e-8)).double().eval()
    model.condition()
    model.append_train_data(x, 1 - y)
    assert model.num_distinct_rows == 20
    expected = model.latent_mean(make_inputs(5))
    model.share_equal_rows = False
    assert model.current_solution is None
    assert_close(model.latent_mean(make_inputs(5)), expected, "posterior", dtype=torch.float32)
    assert model.last_solution.representer_weights.shape == (40, 1)
    model.share_equal_rows = True
    assert_close(model.latent_mean(make_inputs(5)), expected, "posterior", dtype=torch.float32)


def test_a_fantasy_at_known_inputs_is_one_of_more_rows():
    shared, apart = both("bernoulli-logit", sample_weight=None)
    x, y = shared.train_inputs[0][:4], torch.tensor([1, 1, 0, 1])
    ours, expected = (model.get_fantasy_model(x, y) for model in (shared, apart))
    assert ours.num_distinct_rows == KINDS
    assert_close(ours.latent_mean(make_inputs(5)), expected.latent_mean(make_inputs(5)), "posterior")


@pytest.mark.parametrize("how", ["file", "pickle", "copy"])
def test_what_is_kept_comes_back(how, tmp_path):
    model, _ = both("categorical", solver=SubspaceNewton())
    x = make_inputs(5, seed=5)
    expected, solution = model.predict(x).probs, model.solution
    if how == "file":
        model.save(tmp_path / "model.safetensors")
        other, _ = both("categorical", solver=SubspaceNewton())
        other.load(tmp_path / "model.safetensors")
    else:
        other = copy.deepcopy(model) if how == "copy" else pickle.loads(pickle.dumps(model))
    assert other.current_solution is not None
    assert torch.equal(other.predict(x).probs, expected)
    assert torch.equal(other.solution.latent_values, solution.latent_values)
    assert other.conditioned.operator.counts.passes == 0


def test_a_file_serves_a_model_whose_rows_do_not_share(tmp_path):
    shared, apart = both("bernoulli-logit")
    expected = shared.predict(make_inputs(5)).probs
    shared.save(tmp_path / "model.safetensors")
    apart.load(tmp_path / "model.safetensors")
    assert torch.equal(apart.predict(make_inputs(5)).probs, expected)


def test_an_interrupted_solve_goes_on_to_the_same_end(tmp_path):
    x, y, _ = repeated("categorical", kinds=60, rows=200)

    def made():
        return SimpleGP(x, y, CategoricalLikelihood(3), solver=SubspaceNewton(covariance_rank=8)).double().eval()

    whole, interrupted, resumed = made(), made(), made()
    expected = whole.condition()

    def stop(record):
        if record.kernel_passes >= 3:
            raise KeyboardInterrupt

    interrupted.condition(checkpoint=tmp_path / "run", checkpoint_every=0.0, callback=stop)
    found = resumed.condition(checkpoint=tmp_path / "run", checkpoint_every=0.0)
    assert torch.equal(found.representer_weights, expected.representer_weights)
    again = made()
    assert torch.equal(again.condition(checkpoint=tmp_path / "run").latent_values, expected.latent_values)
    assert torch.equal(again.latent_mean(x[:3]), resumed.latent_mean(x[:3]))


def test_a_batch_of_models_shares_within_each():
    x, _, _ = repeated("bernoulli-logit")
    y = torch.stack([(x[:, 0] > 0).long(), (x[:, 1] > 0).long()])
    made = [Batch(x, y, share).double().eval() for share in (True, False)]
    assert all(s.latent_values.shape == (ROWS, 1) for s in made[0].solution)
    new = make_inputs(5, seed=2)
    with torch.no_grad():
        assert_close(made[0](new).mean, made[1](new).mean, "posterior", dtype=torch.float32)


def test_dtypes_change_with_the_rows():
    model, _ = both("bernoulli-logit", sample_weight=None)
    model.condition()
    model.float()
    assert model.current_solution is None
    assert model.solution.latent_values.dtype == torch.float32


def test_uncertainty_is_that_of_all_rows():
    shared, apart = both(
        "bernoulli-logit", approximation="laplace", solver=SubspaceNewton(covariance_rank=3, tolerance=1e-9)
    )
    x = make_inputs(5)
    ours, expected = shared.decompose_uncertainty(x), apart.decompose_uncertainty(x)
    assert_close(ours.mathematical, expected.mathematical, "derivative")


def test_estimators_choose_their_solver_by_the_distinct_rows(monkeypatch):
    monkeypatch.setattr("itergp.sklearn.model._LINEAR_ROWS", 100)
    x = make_inputs(30).repeat(10, 1).numpy()
    y = (x[:, 0] > 0).astype(int)
    few = itergp.sklearn.GPClassifier(optimizer=None).fit(x, y)
    assert isinstance(few.model_.solver, SubspaceNewton)
    many = itergp.sklearn.GPClassifier(optimizer=None).fit(make_inputs(300).numpy(), y)
    assert isinstance(many.model_.solver, LinearTimeNewton)
    assert few.predict_proba(x[:3]).shape == (3, 2)
    few.partial_fit(x[:50], y[:50])
    assert few.model_.num_distinct_rows == 30

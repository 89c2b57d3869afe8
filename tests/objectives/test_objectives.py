"""Objectives for hyperparameters: values against exact evidences, gradients against finite differences."""

from __future__ import annotations

import itertools
import math
import time

import gpytorch
import gpytorch.likelihoods as gl
import pytest
import torch
from helpers import (
    CASES,
    REGULAR,
    SimpleGP,
    assert_close,
    make_batch_kernel,
    make_binary,
    make_classes,
    make_inputs,
    make_kernel,
    make_model,
    make_reals,
)

from itergp.likelihoods import (
    BernoulliLikelihood,
    BinomialLikelihood,
    CategoricalLikelihood,
    GaussianLikelihood,
    PoissonLikelihood,
    WeibullLikelihood,
)
from itergp.objectives import (
    NEVER,
    ComputationAwareELBO,
    Deadline,
    LaplaceEvidence,
    OutOfTimeError,
    PredictiveLogDensity,
    predictive_log_density,
)
from itergp.objectives.adjoint import solve_adjoint
from itergp.solvers import DenseNewton, SubspaceNewton, few_values, solve_problem
from itergp.solvers.subspace.recycled import search_space_of


def gradients(model, objective, step: float = 1e-5):
    """Pairs of the objective's gradient and its finite difference, for every element of every parameter."""
    model.train()
    call = lambda: objective(model(*model.train_inputs), model.train_targets)  # noqa: E731
    model.zero_grad()
    call().backward()
    pairs = []
    for parameter in model.parameters():
        if parameter.grad is None:
            continue
        for index in range(parameter.numel()):
            flat = parameter.data.view(-1)
            flat[index] += step
            above = call().item()
            flat[index] -= 2 * step
            below = call().item()
            flat[index] += step
            pairs.append((parameter.grad.view(-1)[index].item(), (above - below) / (2 * step)))
    assert pairs
    return pairs


def check_gradients(model, objective, step: float = 1e-5, rel: float = 1e-5):
    for analytic, numeric in gradients(model, objective, step):
        assert analytic == pytest.approx(numeric, rel=rel, abs=1e-2 * rel)


def adapted(name: str) -> SimpleGP:
    """A model with one of GPyTorch's likelihoods."""
    if name == "student-t":
        return SimpleGP(*make_reals(40), gl.StudentTLikelihood().double()).double()
    if name == "beta":
        x, y = make_reals(40)
        return SimpleGP(x, torch.sigmoid(y), gl.BetaLikelihood().double()).double()
    if name == "mixed-softmax":
        return SimpleGP(*make_classes(40), gl.SoftmaxLikelihood(num_features=2, num_classes=3).double()).double()
    return SimpleGP(*make_classes(40), CategoricalLikelihood(3), kernel=make_batch_kernel()).double()


@pytest.mark.parametrize("name", sorted(REGULAR))
@pytest.mark.parametrize("objective", [LaplaceEvidence, ComputationAwareELBO])
def test_gradients_equal_finite_differences(name, objective):
    model = make_model(name, solver=SubspaceNewton(covariance_rank=8))
    options = {"condition_every": 10_000} if objective is ComputationAwareELBO else {}
    check_gradients(model, objective(model.likelihood, model, **options))


@pytest.mark.parametrize("name", ["student-t", "mixed-softmax", "one-kernel-per-class"])
def test_gradients_of_the_laplace_evidence_for_other_likelihoods(name):
    model = adapted(name)
    evidence = LaplaceEvidence(model.likelihood, model, initialise_kernel=False)
    model.approximation, model.solver = "laplace", DenseNewton()
    found = model.eval().condition().log_marginal_likelihood
    value = evidence(model.train()(*model.train_inputs), model.train_targets).item()  # per row
    assert 40.0 * value == pytest.approx(float(found), abs=1e-3)
    check_gradients(model, LaplaceEvidence(model.likelihood, model))


def steep(name: str, solver) -> SimpleGP:
    """Data whose curvature is a million, or a hundred widths of a likelihood from the prior's mean."""
    x = torch.linspace(0.0, 3.0, 40, dtype=torch.float64)[:, None]
    f, generator = torch.sin(2.0 * x[:, 0]), torch.Generator().manual_seed(0)
    uniform, level, scale = torch.rand(40, generator=generator, dtype=torch.float64), 0.0, 1.0
    if name == "counts":
        likelihood, level = PoissonLikelihood(), 14.0
        y = torch.poisson((level + f).exp(), generator=generator)
    elif name == "trials":
        likelihood = BinomialLikelihood()
        successes = torch.binomial(torch.full_like(f, 1e6), torch.sigmoid(f), generator=generator)
        y = torch.stack([successes, torch.full_like(f, 1e6)], -1)
    elif name == "times":
        likelihood = WeibullLikelihood(shape=300.0)
        y = torch.stack([f.exp() * (-uniform.log()) ** (1.0 / 300.0), torch.ones_like(f)], -1)
    else:
        likelihood, scale = CategoricalLikelihood(3), 100.0
        y = (1.2 * (f + 1.2)).long().clamp(0, 2)
    model = SimpleGP(x, y, likelihood, kernel=make_kernel(0.7, scale), solver=solver).double()
    model.mean_module.constant.data.fill_(level)
    return model


@pytest.mark.parametrize("solver", [SubspaceNewton(tolerance=1e-10), DenseNewton()], ids=["subspace", "dense"])
@pytest.mark.parametrize("name", ["counts", "trials", "times", "classes"])
def test_gradients_at_the_ends_of_curvature(name, solver):
    """Under samples the turn of the finer ones depended on the marginal; dense steps lost their digits in exp(300)."""
    model = steep(name, solver)
    step = 1e-6 if name == "times" else 1e-5  # a longer one is cubic, of a shorter one rounding is left
    for objective in (
        LaplaceEvidence(model.likelihood, model),
        ComputationAwareELBO(model.likelihood, model, condition_every=10_000),
    ):
        for analytic, numeric in gradients(model, objective, step):
            assert analytic == pytest.approx(numeric, rel=1e-3, abs=1e-4)


def test_the_laplace_evidence_agrees_with_scikit_learn():
    process = pytest.importorskip("sklearn.gaussian_process")
    x, y = make_binary(60)
    theirs = process.GaussianProcessClassifier(
        process.kernels.ConstantKernel(4.0) * process.kernels.Matern(1.3, nu=1.5), optimizer=None, max_iter_predict=1000
    ).fit(x.numpy(), y.numpy())
    theta = theirs.kernel_.theta
    expected, slope = theirs.log_marginal_likelihood(theta, eval_gradient=True)
    model = SimpleGP(x, y, BernoulliLikelihood(), kernel=make_kernel(), mean=gpytorch.means.ZeroMean()).double().train()
    model.covar_module.outputscale, model.covar_module.base_kernel.lengthscale = 4.0, 1.3
    value = LaplaceEvidence(model.likelihood, model)(model(x), model.train_targets) * len(y)
    assert value.item() == pytest.approx(expected, abs=1e-6)
    # Theirs are derivatives with respect to logarithms.
    scale, lengthscale = model.covar_module.outputscale, model.covar_module.base_kernel.lengthscale
    raw = [model.covar_module.raw_outputscale, model.covar_module.base_kernel.raw_lengthscale]
    ours = torch.autograd.grad(value, raw)
    chain = [torch.autograd.grad(v.log().sum(), r)[0] for v, r in zip((scale, lengthscale), raw, strict=True)]
    for gradient, log_slope, reference in zip(ours, chain, slope, strict=True):
        assert (gradient / log_slope).item() == pytest.approx(reference, abs=1e-6)


def test_both_equal_the_exact_evidence_for_a_gaussian_likelihood():
    x, y = make_reals(50)
    likelihood = gl.GaussianLikelihood().double()
    likelihood.noise = 0.1
    model = (
        SimpleGP(x, y, likelihood, solver=SubspaceNewton(covariance_rank=50, max_rank=50, tolerance=1e-14))
        .double()
        .train()
    )
    with torch.no_grad():
        prior = model(x)
        exact = likelihood(prior).log_prob(y).item() / 50
        assert LaplaceEvidence(likelihood, model)(prior, y).item() == pytest.approx(exact, rel=1e-9)
        assert ComputationAwareELBO(likelihood, model)(prior, y).item() == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize("name", ["bernoulli-logit", "poisson", "categorical"])
def test_the_elbo_is_below_the_evidence_and_grows_with_rank(name):
    """The evidence by importance sampling from the Laplace posterior, with its standard error."""
    case = CASES[name]
    x, y = case.data(12)
    model = SimpleGP(x, y, case.make(), kernel=make_kernel(1.0, 1.5)).double()
    evidence, error = _sampled_evidence(model)
    bounds = []
    for rank in (1, 3, 10, 40):
        model.solver = SubspaceNewton(covariance_rank=rank, tolerance=1e-10)
        model.prediction_strategy = None
        model.train()
        bounds.append(ComputationAwareELBO(model.likelihood, model)(model(x), model.train_targets).item() * 12)
        model.prediction_strategy = None
    assert all(after >= before - 0.02 for before, after in itertools.pairwise(bounds))
    assert bounds[0] < bounds[-1] <= evidence + 4.0 * error
    assert bounds[-1] > evidence - 0.5  # and not far below


def _sampled_evidence(model, samples: int = 100_000):
    from itergp.likelihoods import as_likelihood

    model.solver, model.approximation = DenseNewton(), "laplace"
    solution = model.eval().condition()
    latents = solution.latent_values.shape[1]
    with torch.no_grad():
        matrix = model.covar_module(model.train_inputs[0]).to_dense()
        prior = torch.kron(matrix, torch.eye(latents, dtype=matrix.dtype))
        posterior = model(model.train_inputs[0]).covariance_matrix
        root = torch.linalg.cholesky(posterior + 1e-9 * torch.eye(len(posterior)))
        widened = 1.2 * root  # heavier than the target in every direction
        noise = torch.randn(samples, len(posterior), dtype=matrix.dtype)
        f = solution.latent_values.reshape(-1) + noise @ widened.mT
        fit = as_likelihood(model.likelihood).log_density(f.unflatten(-1, (-1, latents)), model.train_targets).sum(-1)
        normal = torch.distributions.MultivariateNormal
        log_prior = normal(torch.zeros(len(prior), dtype=matrix.dtype), prior + 1e-9 * torch.eye(len(prior))).log_prob(
            f
        )
        log_q = normal(solution.latent_values.reshape(-1), scale_tril=widened).log_prob(f)
        ratio = fit + log_prior - log_q
    evidence = torch.logsumexp(ratio, 0) - math.log(samples)
    error = (ratio - evidence).exp().std() / math.sqrt(samples)
    return float(evidence), float(error)


def test_learning_recovers_the_lengthscale_of_the_exact_evidence():
    """On a grid of lengthscales the bound's best is next to the Laplace evidence's best."""
    x, y = make_binary(150)
    lengthscales = torch.logspace(-1, 1, 9)
    best = []
    for objective in (LaplaceEvidence, ComputationAwareELBO):
        values = []
        for lengthscale in lengthscales:
            model = SimpleGP(x, y, BernoulliLikelihood(), kernel=make_kernel(float(lengthscale), 4.0)).double().train()
            model.solver = SubspaceNewton(covariance_rank=100)
            with torch.no_grad():
                values.append(objective(model.likelihood, model)(model(x), model.train_targets).item())
        best.append(max(range(len(values)), key=values.__getitem__))
    assert abs(best[0] - best[1]) <= 1


def test_the_cadence_of_conditioning_is_kept():
    model = make_model("bernoulli-logit", solver=SubspaceNewton(max_passes=500)).train()  # not by dense matrices
    objective = ComputationAwareELBO(model.likelihood, model, condition_every=3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    solutions = []
    for _ in range(6):
        optimizer.zero_grad()
        (-objective(model(*model.train_inputs), model.train_targets)).backward()
        solutions.append(model.last_solution)
        optimizer.step()
    assert len({id(solution) for solution in solutions}) == 2


def test_a_deep_kernel_learns_its_network():
    x, y = make_classes(60, num_columns=4)

    class Deep(SimpleGP):
        def __init__(self):
            super().__init__(x, y, CategoricalLikelihood(3))
            self.network = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 2))

        def forward(self, x):
            return super().forward(self.network(x))

    model = Deep().double().train()
    objective = ComputationAwareELBO(model.likelihood, model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    values = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = -objective(model(x), model.train_targets)
        loss.backward()
        assert all(bool(layer.weight.grad.abs().sum() > 0) for layer in model.network[::2])
        optimizer.step()
        values.append(-loss.item())
    assert values[-1] > values[0]
    assert model.eval().predict(make_inputs(5, 4)).probs.shape == (5, 3)


def test_priors_are_included_per_row():
    model = make_model("bernoulli-logit").train()
    objective = LaplaceEvidence(model.likelihood, model)
    plain = objective(model(*model.train_inputs), model.train_targets)
    prior = gpytorch.priors.GammaPrior(3.0, 6.0)
    model.covar_module.base_kernel.register_prior("lengthscale_prior", prior, "lengthscale")
    with_prior = objective(model(*model.train_inputs), model.train_targets)
    expected = prior.log_prob(model.covar_module.base_kernel.lengthscale).sum() / 40
    assert (with_prior - plain).item() == pytest.approx(expected.item(), rel=1e-6)


def test_bad_use_is_refused():
    model, other = make_model("bernoulli-logit").train(), make_model("gaussian")
    with pytest.raises(ValueError, match="must be a NonConjugateGP with this likelihood"):
        LaplaceEvidence(other.likelihood, model)
    objective = ComputationAwareELBO(model.likelihood, model)
    with pytest.raises(ValueError, match="needs the prior at all 40 training inputs"):
        objective(model.eval()(make_inputs(5)), model.train_targets)
    with pytest.raises(ValueError, match="own training targets"):
        objective(model.train()(*model.train_inputs), 1 - model.train_targets)
    with pytest.raises(ValueError, match="`condition_every` must be at least 1"):
        ComputationAwareELBO(model.likelihood, model, condition_every=0)
    beta = SimpleGP(make_inputs(20), torch.rand(20, dtype=torch.float64), gl.BetaLikelihood().double()).double().train()
    with pytest.raises(ValueError, match=r"curvature has a closed form\. Got BetaLikelihood"):
        LaplaceEvidence(beta.likelihood, beta)(beta(*beta.train_inputs), beta.train_targets)


@pytest.mark.parametrize("name", sorted(n for n in REGULAR if PredictiveLogDensity.supports(CASES[n].make())))
def test_gradients_of_the_predictive_log_density(name):
    model = make_model(name)
    objective = PredictiveLogDensity(model.likelihood, model, renew_every=None, tolerance=1e-22, warm_start=False)
    check_gradients(model, objective)


def only_passes(monkeypatch):
    for name in ("_EXACT_ROWS", "_HELD_ROWS", "_HELD_ROWS_WITHOUT_METRIC"):
        monkeypatch.setattr(predictive_log_density, name, 0)


@pytest.fixture(params=["dense factors", "passes"])
def way(request, monkeypatch):
    """Both ways in which the posterior of one latent function is found."""
    if request.param == "passes":
        only_passes(monkeypatch)


@pytest.mark.parametrize("name", ["bernoulli-logit", "categorical", "poisson", "gaussian"])
def test_gradients_of_the_variational_predictive(name, way):
    model = make_model(name)
    options = {"rank": 12, "renew_every": None, "tolerance": 1e-22, "warm_start": False}
    # The points that integrate the softmax turn with the covariance, and that turn is not part of the derivative.
    rel = 2e-3 if name == "categorical" else 1e-5
    check_gradients(model, PredictiveLogDensity(model.likelihood, model, predictive="variational", **options), rel=rel)


@pytest.mark.parametrize("predictive", ["plug-in", "variational"])
@pytest.mark.parametrize("name", ["student-t", "beta"])
def test_gradients_of_the_predictive_log_density_without_a_closed_hessian(name, predictive, way):
    """The adjoint then uses the exact Hessian, which may be indefinite, and not the stand-in of the solver."""
    model = adapted(name)
    options = {"predictive": predictive, "rank": 12, "renew_every": None, "tolerance": 1e-22, "warm_start": False}
    check_gradients(model, PredictiveLogDensity(model.likelihood, model, **options), rel=1e-4)


@pytest.mark.parametrize("predictive", ["plug-in", "laplace", "variational"])
@pytest.mark.parametrize("name", ["student-t", "beta"])
def test_modes_without_a_hessian_are_dense_where_rows_are_few(name, predictive, monkeypatch):
    """Found as nearly as learning asks for, with the value and the gradient of the exact mode."""
    model, solvers, found = make_model(name).train(), [], []

    def seen(problem, solver, **options):
        solvers[-1].add(type(solver).__name__)
        return solve_problem(problem, solver, **options)

    monkeypatch.setattr(predictive_log_density, "solve_problem", seen)
    for tolerance, rows in ((1e-4, 3000), (1e-20, 0)):
        monkeypatch.setattr(few_values, "_DENSE_ROWS_WITHOUT_HESSIAN", rows)
        solvers.append(set())
        model.zero_grad()
        objective = PredictiveLogDensity(model.likelihood, model, predictive=predictive, tolerance=tolerance)
        value = objective(model(*model.train_inputs), model.train_targets)
        value.backward()
        found.append([value.detach(), *(p.grad.clone() for p in model.parameters())])
    assert solvers == [{"DenseNewton"}, {"SubspaceNewton"}]
    for first, second in zip(*found, strict=True):
        assert torch.allclose(first, second, rtol=1e-2, atol=1e-3)


def test_folds_hold_every_row_out_once():
    model = make_model("bernoulli-logit").train()
    x = model.train_inputs[0]
    options = {"renew_every": None, "tolerance": 1e-22, "warm_start": False}
    objective = PredictiveLogDensity(model.likelihood, model, num_folds=4, **options)
    value = objective(model(x), model.train_targets).item()
    assert torch.cat([split.held_out for split in objective._splits]).sort().values.tolist() == list(range(40))
    total = 0.0
    for split in objective._splits:
        part = SimpleGP(x[split.train], model.train_targets[split.train], BernoulliLikelihood(), solver=DenseNewton())
        part.covar_module, part.mean_module, part.approximation = model.covar_module, model.mean_module, "laplace"
        predicted = part.eval().predict(x[split.held_out], tempering=math.inf)
        total += predicted.log_prob(model.train_targets[split.held_out]).sum().item()
    assert value == pytest.approx(total / 40, rel=1e-6)
    check_gradients(model, objective)


@pytest.mark.parametrize("predictive", ["plug-in", "laplace", "variational"])
@pytest.mark.parametrize("name", ["gaussian", "poisson", "negative-binomial", "bernoulli-probit", "ordinal-logit"])
def test_dense_factors_give_what_passes_and_all_actions_give(name, predictive, monkeypatch):
    model, found = make_model(name).train(), []
    model.sample_weight = torch.linspace(0.0, 2.0, len(model.train_targets), dtype=torch.float64)  # one says nothing
    for dense in (True, False):
        if not dense:
            only_passes(monkeypatch)
        options = {"predictive": predictive, "tempering": 0.5, "rank": 100, "tolerance": 1e-20}
        model.zero_grad()
        value = PredictiveLogDensity(model.likelihood, model, **options)(
            model(*model.train_inputs), model.train_targets
        )
        value.backward()
        # The noise moves the curvature too, which actions hold fixed.
        held = [p.grad.clone() for n, p in model.named_parameters() if "noise" not in n and p.grad is not None]
        found.append([value.detach(), *held])
    for first, second in zip(*found, strict=True):
        assert torch.allclose(first, second, rtol=1e-4, atol=1e-5)  # rounds end nearby


@pytest.mark.parametrize("predictive", ["plug-in", "variational"])
def test_with_gaussian_noise_the_density_of_held_out_rows_is_exact_in_every_hyperparameter(predictive):
    """Of the noise too, by which the covariance is conditioned: by dense formulas and automatic differentiation."""
    x, y = make_reals(60)
    model = SimpleGP(x, y, GaussianLikelihood(0.05)).double().train()
    objective = PredictiveLogDensity(model.likelihood, model, predictive=predictive, renew_every=1)
    objective(model(x), model.train_targets).backward()
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    (train, held_out), noise = (objective._splits[0].train, objective._splits[0].held_out), model.likelihood.noise
    kernel, mean = model.covar_module(x).to_dense(), model.mean_module(x)
    inside = kernel[train][:, train] + noise * torch.eye(len(train))
    across = torch.linalg.solve(inside, kernel[train][:, held_out])
    centre = mean[held_out] + across.T @ (model.train_targets - mean)[train]
    spread = (kernel.diagonal()[held_out] - (across * kernel[train][:, held_out]).sum(0)) * (predictive != "plug-in")
    oracle = torch.distributions.Normal(centre, (spread + noise).sqrt()).log_prob(model.train_targets[held_out]).mean()
    oracle.backward()
    for name, parameter in model.named_parameters():
        assert_close(found[name], parameter.grad, dtype=torch.float32)


@pytest.mark.parametrize("predictive", ["plug-in", "variational"])
def test_a_noise_below_the_rounding_of_kernel_entries_has_a_density_and_a_gradient(predictive):
    x, y = make_reals(60)
    kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel())
    kernel.base_kernel.lengthscale = 20.0
    model = SimpleGP(x.float(), y.float(), GaussianLikelihood(1e-7), kernel=kernel).float().train()
    value = PredictiveLogDensity(model.likelihood, model, predictive=predictive, initialise_kernel=False)(
        model(*model.train_inputs), model.train_targets
    )
    value.backward()
    assert math.isfinite(value.item())
    assert all(bool(torch.isfinite(parameter.grad).all()) for parameter in model.parameters())


def test_dense_factors_stay_within_the_memory_budget(monkeypatch):
    model, used = make_model("gaussian").train(), []
    held_out = PredictiveLogDensity._held_out_exactly
    monkeypatch.setattr(
        PredictiveLogDensity, "_held_out_exactly", lambda self, *parts: used.append(1) or held_out(self, *parts)
    )
    for budget in (10**9, 10**4):
        model.memory_budget = budget
        PredictiveLogDensity(model.likelihood, model)(model(*model.train_inputs), model.train_targets)
    assert used == [1]


def test_the_variational_predictive_is_that_of_the_other_rows():
    model = make_model("poisson").train()
    x = model.train_inputs[0]
    options = {"rank": 30, "renew_every": None, "tolerance": 1e-12, "holdout": 0.25}
    objective = PredictiveLogDensity(model.likelihood, model, predictive="variational", **options)
    value = objective(model(x), model.train_targets).item()
    split = objective._splits[0]
    part = SimpleGP(x[split.train], model.train_targets[split.train], PoissonLikelihood(), solver=DenseNewton())
    part.covar_module, part.mean_module = model.covar_module, model.mean_module
    exact = part.eval().predict(x[split.held_out]).log_prob(model.train_targets[split.held_out]).mean().item()
    assert value == pytest.approx(exact, abs=0.01)


def test_gradients_of_the_predictive_log_density_with_one_kernel_per_class():
    model = adapted("one-kernel-per-class")
    check_gradients(
        model,
        PredictiveLogDensity(model.likelihood, model, renew_every=None, tolerance=1e-22, warm_start=False),
        rel=1e-4,
    )
    model = adapted("mixed-softmax")
    check_gradients(
        model,
        PredictiveLogDensity(model.likelihood, model, renew_every=None, tolerance=1e-22, warm_start=False),
        rel=1e-4,
    )


def test_the_predictive_log_density_is_that_of_the_held_out_rows():
    x, y = make_binary(60)
    model = SimpleGP(x, y, BernoulliLikelihood()).double().train()
    objective = PredictiveLogDensity(model.likelihood, model, holdout=0.5, renew_every=None, tolerance=1e-12)
    value = objective(model(x), model.train_targets).item()
    train, held_out = objective._splits[0].train, objective._splits[0].held_out
    assert len(train) == len(held_out) == 30
    assert set(train.tolist()) | set(held_out.tolist()) == set(range(60))
    other = SimpleGP(x[train], y[train], BernoulliLikelihood(), kernel=model.covar_module, solver=DenseNewton())
    other.approximation, other.mean_module = "laplace", model.mean_module
    probs = other.double().eval().predict(x[held_out], tempering=math.inf)
    assert value == pytest.approx(probs.log_prob(y[held_out].double()).mean().item(), rel=1e-6)


def test_splits_are_renewed_and_repeatable():
    model = make_model("bernoulli-logit").train()
    splits = []
    for _ in range(2):
        objective = PredictiveLogDensity(model.likelihood, model, num_rows=20, renew_every=2, seed=3)
        for _ in range(4):
            objective(model(*model.train_inputs), model.train_targets)
            splits.append(objective._splits[0].held_out.tolist())
    assert splits[0] == splits[1] != splits[2] == splits[3]
    assert splits[:4] == splits[4:]
    assert len(splits[0]) == 5


def test_a_constant_kernel_learns_where_rows_have_neighbours():
    """Its entries are one number in memory."""
    x, y = make_binary(1100)
    model = SimpleGP(x, y, BernoulliLikelihood(), kernel=gpytorch.kernels.ConstantKernel()).double().train()
    value = ComputationAwareELBO(model.likelihood, model)(model(x), model.train_targets)
    assert bool(torch.isfinite(value))


# -------------------------------------------------------------------- deadlines
def test_a_deadline_is_before_now_or_after_it():
    assert NEVER.left() is None
    assert not NEVER.over
    NEVER.check()
    later, past = Deadline(time.perf_counter() + 100.0), Deadline(time.perf_counter() - 1.0)
    assert later.left() == pytest.approx(100.0, abs=10.0)
    assert not later.over
    later.check()
    assert past.left() == 0.0
    assert past.over
    with pytest.raises(OutOfTimeError, match=r"^$"):
        past.check()


@pytest.mark.parametrize("objective", [PredictiveLogDensity, ComputationAwareELBO, LaplaceEvidence])
def test_an_objective_has_no_value_once_time_is_up(objective):
    model = make_model("bernoulli-logit").train()
    made = objective(model.likelihood, model)
    made.deadline = Deadline(time.perf_counter() - 1.0)
    with pytest.raises(OutOfTimeError, match=r"^$"):
        made(model(*model.train_inputs), model.train_targets)


@pytest.mark.parametrize("definite", [True, False])
def test_an_adjoint_gives_up_when_time_is(definite):
    model = make_model("bernoulli-logit", solver=SubspaceNewton())
    solution, operator = model.condition(), model.conditioned.operator
    root = solution.curvature[:, 0].sqrt()
    apply = lambda z: root * z  # noqa: E731
    space = search_space_of(solution)
    arguments = (
        operator,
        space,
        solution.curvature,
        torch.ones_like(root),
        1e-10,
        (apply, apply) if definite else None,
    )
    with torch.no_grad():
        solve_adjoint(*arguments)
        with pytest.raises(OutOfTimeError, match=r"^$"):
            solve_adjoint(*arguments, Deadline(time.perf_counter() - 1.0))

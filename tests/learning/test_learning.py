"""Learning hyperparameters."""

from __future__ import annotations

import copy
import math

import gpytorch
import pytest
import torch
from helpers import (
    CASES,
    CORE,
    SimpleGP,
    assert_close,
    make_batch_kernel,
    make_binary,
    make_classes,
    make_inputs,
    make_kernel,
)

import itergp
from itergp.diagnostics import plot_trajectory
from itergp.errors import InputError
from itergp.kernels import (
    AdditiveLaplacianKernel,
    CategoricalKernel,
    LaplacianKernel,
    OrderedCategoricalKernel,
    TiedLaplacianKernel,
    TiedMaternKernel,
)
from itergp.learning import calibrate_predictions, calibration, fit
from itergp.learning.calibration import Calibration
from itergp.learning.humility import limit_lengthscales
from itergp.learning.learner import Adam, Learner, Stage, Stop
from itergp.learning.parameters import free_parameters
from itergp.learning.predictives import of_one_approximation
from itergp.likelihoods import (
    BernoulliLikelihood,
    CategoricalLikelihood,
    GaussianLikelihood,
    Observations,
    PoissonLikelihood,
)
from itergp.models import GP
from itergp.models.starting_values import initialise
from itergp.objectives import ComputationAwareELBO, Deadline, LaplaceEvidence, PredictiveLogDensity
from itergp.objectives.base import Objective
from itergp.posterior.tempering import EXPONENTS
from itergp.records.listeners import Listeners
from itergp.solvers import LinearTimeNewton, SubspaceNewton


def default_kernel() -> gpytorch.kernels.ScaleKernel:
    return gpytorch.kernels.ScaleKernel(gpytorch.kernels.MaternKernel(nu=1.5))


def binary(num_rows: int = 200, **options) -> SimpleGP:
    x, y = make_binary(num_rows, dtype=torch.float32)
    return SimpleGP(x, y, BernoulliLikelihood(), **options)


@pytest.mark.parametrize("objective", ["predictive", "elbo"])
@pytest.mark.parametrize("name", sorted(CORE))
def test_learning_improves_held_out_density(name, objective):
    case = CASES[name]
    x, y = case.data(240, dtype=torch.float32)
    kernel = make_kernel(lengthscale=0.05, scale=0.1)  # a bad start
    model = SimpleGP(x[:160], y[:160], case.make(), kernel=kernel).eval()
    targets = y[160:] if name == "categorical" else y[160:].float()
    with torch.no_grad():
        before = model.predict(x[160:]).log_prob(targets).mean()
    result = itergp.fit(model, objective=objective, optimizer="adam", max_iterations=25)
    with torch.no_grad():
        after = model.predict(x[160:]).log_prob(targets).mean()
    assert float(after) > float(before) + 0.02
    assert result.solution is model.solution
    assert len(result.records) == 25
    assert result.reason == "all iterations were taken"
    assert set(result.seconds) == {"learn", "calibrate", "condition"}
    assert not model.training


def test_equal_seeds_give_equal_results():
    results = [itergp.fit(binary(), objective="predictive", max_iterations=6, seed=seed) for seed in (3, 3, 4)]
    trajectories = [[record.objective for record in result.records] for result in results]
    assert trajectories[0] == trajectories[1] != trajectories[2]
    assert torch.equal(results[0].solution.representer_weights, results[1].solution.representer_weights)


def test_defaults_are_initialised_from_the_data_and_choices_are_kept():
    x = 100.0 * make_inputs(50, dtype=torch.float32)
    kernel = default_kernel()
    assert initialise(kernel, x) == ["outputscale", "base_kernel.lengthscale"]
    kernel.requires_grad_(False)
    assert float(kernel.base_kernel.lengthscale) == pytest.approx(0.5 * float(torch.pdist(x).median()), rel=1e-4)
    assert float(kernel.outputscale) == pytest.approx(10.0, rel=1e-4)
    chosen = make_kernel(2.0, 3.0)
    assert initialise(chosen, x) == []
    fixed = default_kernel()
    fixed.raw_outputscale.requires_grad_(False)
    assert initialise(fixed, x) == ["base_kernel.lengthscale"]


GK = gpytorch.kernels
STARTS = {  # a kernel of three columns, the kernel inside whose lengthscale it is, and the columns that this one sees
    "active dims": (lambda: GK.ScaleKernel(GK.MaternKernel(active_dims=[1])), "base_kernel", [1]),
    "active dims outside": (lambda: GK.ScaleKernel(GK.MaternKernel(), active_dims=[0, 2]), "base_kernel", [0, 2]),
    "active dims twice": (
        lambda: GK.ScaleKernel(GK.RBFKernel(active_dims=[2, 0])) * GK.RBFKernel(active_dims=[1]),
        "kernels.0.base_kernel",
        [0, 2],
    ),
    "one by one": (lambda: GK.AdditiveStructureKernel(GK.RBFKernel(), num_dims=3), "base_kernel", None),
    "a grid": (lambda: GK.GridInterpolationKernel(GK.RBFKernel(), 8, num_dims=3), "base_kernel", [0, 1, 2]),
}


@pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")  # but used
@pytest.mark.parametrize("name", STARTS)
def test_lengthscales_start_at_half_the_distance_in_the_columns_that_a_kernel_sees(name):
    make, inside, columns = STARTS[name]
    kernel, x = make(), make_inputs(30, 3, dtype=torch.float32) * torch.tensor([1.0, 10.0, 100.0])
    assert f"{inside}.lengthscale" in initialise(kernel, x)
    parts = x.T.unsqueeze(-1) if columns is None else x[:, columns].unsqueeze(0)
    expected = 0.5 * torch.cat([torch.pdist(part) for part in parts]).median()
    assert kernel.get_submodule(inside).lengthscale.item() == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize(
    "make",
    [
        GK.PeriodicKernel,
        lambda: GK.ArcKernel(GK.MaternKernel(), ard_num_dims=2),
        lambda: GK.CylindricalKernel(3, GK.PeriodicKernel()),
        lambda: CategoricalKernel(2),
    ],
)
def test_lengthscales_in_other_units_keep_their_default(make):
    kernel = make()
    before = [p.clone() for p in kernel.parameters()]
    assert initialise(kernel, 0.01 * make_inputs(20, 2, dtype=torch.float32)) == []
    assert all(torch.equal(a, b) for a, b in zip(kernel.parameters(), before, strict=True))


def test_lengthscales_of_absolute_differences_start_in_their_own_norm():
    x = make_inputs(30, 3, dtype=torch.float32) * torch.tensor([1.0, 10.0, 100.0])
    laplacian, additive, tied = LaplacianKernel(), AdditiveLaplacianKernel(3), TiedLaplacianKernel((0, 1, 1))
    for kernel in (laplacian, additive, tied):
        assert initialise(kernel, x) == ["lengthscale"]
        assert initialise(kernel, x) == []
    whole = 0.5 * float(torch.pdist(x, p=1.0).median())
    assert laplacian.lengthscale.item() == pytest.approx(whole, rel=1e-4)
    assert tied.group_lengthscale.flatten().tolist() == pytest.approx(2 * [whole], rel=1e-4)
    columns = [0.5 * float(torch.pdist(column.unsqueeze(-1)).median()) for column in x.T]
    assert additive.lengthscale.flatten().tolist() == pytest.approx(columns, rel=1e-4)
    rare = torch.cat([x, torch.eye(30)[:, :1]], -1)  # most rows are equal in the last column
    kernel = AdditiveLaplacianKernel(4)
    initialise(kernel, rare)
    assert kernel.lengthscale[0, 3].item() == pytest.approx(sum(columns) / 3, rel=1e-4)


@pytest.mark.parametrize(
    "solver", [SubspaceNewton(num_neighbours=4), LinearTimeNewton(num_support=16, num_neighbours=4)]
)
def test_kernels_of_the_packages_own_learn(solver):
    x, generator = make_inputs(60), torch.Generator().manual_seed(3)
    codes, levels = (torch.randint(0, 4, (60, 1), generator=generator).double() for _ in range(2))
    y = (2.0 * x[:, 0].sin() + codes[:, 0] + levels[:, 0] > 3.0).long()
    kernel = GK.ScaleKernel(
        TiedMaternKernel((0, 0), nu=1.5, active_dims=[0, 1])
        * CategoricalKernel(1, active_dims=[2])
        * OrderedCategoricalKernel(4, active_dims=[3])
    ) + GK.ScaleKernel(AdditiveLaplacianKernel(2, active_dims=[0, 1]))
    model = GP(torch.cat([x, codes, levels], -1), y, BernoulliLikelihood(), kernel=kernel.double(), solver=solver)
    before = [parameter.clone() for parameter in kernel.parameters()]
    result = itergp.fit(model, max_iterations=20)
    assert len(result.initialised) >= 4
    assert [n for (n, a), b in zip(kernel.named_parameters(), before, strict=True) if not bool((a != b).all())] == []
    probs = model.eval().predict(model.train_inputs[0]).probs
    assert bool((probs.round() == y).double().mean() > 0.9)


def test_the_radius_of_a_cylinder_has_its_own_units():
    x = 0.01 * make_inputs(20, 2, dtype=torch.float32)
    kernel = GK.CylindricalKernel(3, GK.MaternKernel())
    assert initialise(kernel, x) == ["radial_base_kernel.lengthscale"]
    radius = x.norm(dim=-1, keepdim=True)
    radius = 1.0 - (1.0 - radius ** kernel.alpha.detach()) ** kernel.beta.detach()
    expected = 0.5 * float(torch.pdist(radius).median())
    assert kernel.radial_base_kernel.lengthscale.item() == pytest.approx(expected, rel=1e-2)


def test_active_dims_inside_a_scaled_kernel_can_be_learned():
    result = itergp.fit(binary(60, kernel=GK.ScaleKernel(GK.MaternKernel(active_dims=[1]))), max_iterations=2)
    assert any(name.endswith("base_kernel.lengthscale") for name in result.initialised)


def test_an_optimiser_of_torch_learns_from_gpytorchs_defaults():
    x = torch.linspace(0, 1, 10).double()
    y = torch.cos(4 * torch.pi * x).sign().add(1).div(2)
    model = SimpleGP(x, y, gpytorch.likelihoods.BernoulliLikelihood(), kernel=GK.ScaleKernel(GK.RBFKernel())).double()
    kept = SimpleGP(x, y, gpytorch.likelihoods.BernoulliLikelihood(), kernel=GK.ScaleKernel(GK.RBFKernel())).double()
    itergp.objectives.ComputationAwareELBO(kept.likelihood, kept, initialise_kernel=False)
    assert not bool(kept.covar_module.raw_outputscale.any())
    optimizer = torch.optim.Adam(model.train().parameters(), lr=0.1)
    objective = itergp.objectives.ComputationAwareELBO(model.likelihood, model)
    assert len(objective.initialised) == 2
    for _ in range(50):
        optimizer.zero_grad()
        (-objective(model(x), y)).backward()
        optimizer.step()
    new = torch.linspace(0, 1, 101).double()
    with torch.no_grad():
        right = (model.eval().likelihood(model(new)).mean > 0.5) == (torch.cos(4 * torch.pi * new) > 0)
    assert float(right.double().mean()) > 0.8


def test_positive_parameters_move_by_their_logarithm():
    model = binary(50, kernel=make_kernel(2.0, 5.0)).double()
    for parameter in free_parameters(model):
        before = parameter.parameter.detach().clone()
        parameter.write()
        assert torch.allclose(parameter.parameter, before, atol=1e-6)
        if parameter.constraint is None:
            continue
        # The chain rule against a finite difference, through a function of the constrained value.
        parameter.parameter.grad = None
        parameter.constraint.transform(parameter.parameter).square().sum().backward()
        parameter.read_gradient()
        value = parameter.constraint.transform(parameter.parameter).detach()
        assert torch.allclose(parameter.variable.grad, 2.0 * value.square(), rtol=1e-5)


def test_a_noise_variance_moves_as_its_standard_deviation_does():
    x = make_inputs(20)
    model = SimpleGP(x, x[:, 0], GaussianLikelihood(noise=0.04)).double()
    noise = next(parameter for parameter in free_parameters(model) if parameter.name.endswith("noise"))
    assert noise.variable.item() == pytest.approx(math.log(0.2), rel=1e-5)
    assert noise.value.item() == pytest.approx(math.log(0.04), rel=1e-5)
    model.likelihood.noise.square().sum().backward()
    noise.read_gradient()
    assert noise.variable.grad.item() == pytest.approx(4.0 * 0.04**2, rel=1e-5)
    with torch.no_grad():
        noise.variable.sub_(math.log(10.0))
    noise.write()
    assert model.likelihood.noise.item() == pytest.approx(0.0004, rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_learned_noise_becomes_as_small_as_targets_without_noise_ask_for(dtype):
    x, new = make_inputs(120, 1, dtype=dtype, seed=1), make_inputs(60, 1, dtype=dtype, seed=2).clamp(-1.5, 1.5)
    kernel = GK.ScaleKernel(GK.RBFKernel())
    model = SimpleGP(x, torch.sin(2.0 * x[:, 0]), GaussianLikelihood(noise=0.1), kernel=kernel).to(dtype)
    itergp.fit(model, max_iterations=50)
    assert model.likelihood.noise.item() < 1e-4
    with torch.no_grad():
        predictive = model.predict(new)
        error = (predictive.mean - torch.sin(2.0 * new[:, 0])).square().mean().sqrt()
        assert float(error) < 0.02
        assert float(predictive.stddev.mean()) < 0.02


def test_a_noise_at_a_bound_that_shows_is_told():
    x = make_inputs(60, 1)
    likelihood = gpytorch.likelihoods.GaussianLikelihood()
    likelihood.noise = 1.1e-4
    model = SimpleGP(x, torch.sin(x[:, 0]), likelihood, kernel=GK.ScaleKernel(GK.RBFKernel())).double()
    with pytest.warns(itergp.ItergpWarning, match=r"raw_noise reached its lower bound, 0\.0001: .*noise_constraint"):
        itergp.fit(model, max_iterations=40)


def test_fixed_parameters_stay():
    model = binary()
    model.covar_module.outputscale = 7.0
    model.covar_module.raw_outputscale.requires_grad_(False)
    fit(model, max_iterations=4)
    assert model.covar_module.outputscale.item() == pytest.approx(7.0)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(ValueError, match=r"needs parameters to learn\. Got none"):
        fit(model)


def test_an_interrupt_and_the_clock_end_learning_with_a_posterior():
    def stop(record):
        if record.iteration == 2:
            raise KeyboardInterrupt

    result = fit(binary(), optimizer="adam", max_iterations=30, callback=stop)
    assert result.reason == "learning was interrupted"
    assert len(result.records) == 3
    assert result.solution.rank > 0
    result = fit(binary(), max_iterations=1000, time_limit=1e-6)
    assert result.reason == "the time limit was reached"
    assert result.records == []  # not even one step is over by then


def test_posteriors_on_the_way_leave_no_trace_in_what_is_learned():
    seen = []

    def look(solution):
        tempering = None if solution.rank else math.inf
        predictive = looked.predict(looked.train_inputs[0], tempering=tempering)
        nll = -float(predictive.log_prob(looked.train_targets).mean())
        seen.append((float(looked.covar_module.base_kernel.lengthscale.detach()), nll))

    looked, plain = binary(1200), binary(1200)
    options = {"objective": "predictive", "max_iterations": 16}
    result, expected = fit(looked, on_posterior=look, **options), fit(plain, **options)
    assert [r.objective for r in result.records] == [r.objective for r in expected.records]
    assert torch.equal(result.solution.representer_weights, expected.solution.representer_weights)
    assert looked.approximation == plain.approximation
    learned = list(dict.fromkeys(lengthscale for lengthscale, _ in seen))
    assert len(learned) >= 2  # at the start, after the first stage, and in the end, which is the best of all
    assert seen[-1][0] == float(plain.covar_module.base_kernel.lengthscale.detach())
    assert max(nll for _, nll in seen) < 0.69


def test_ctrl_c_at_a_look_ends_learning():
    def press(solution):
        raise KeyboardInterrupt

    model = binary(1200)
    result = fit(model, objective="predictive", on_posterior=press, max_iterations=6)
    assert result.reason == "learning was interrupted"
    assert result.records == []
    assert model.solver.gives_covariance
    assert model.solution is result.solution


def test_a_nan_keeps_the_last_good_parameters():
    model = binary()

    class Broken(ComputationAwareELBO):
        calls = 0

        def evidence(self, *arguments):
            Broken.calls += 1
            return super().evidence(*arguments) * (float("nan") if Broken.calls > 3 else 1.0)

    with pytest.warns(
        itergp.ItergpWarning, match="became NaN or infinite in evaluation 3; the last good parameters are kept"
    ):
        result = fit(model, objective=Broken(model.likelihood, model), max_iterations=10)
    assert result.reason == "the objective became NaN or infinite"
    assert len(result.records) == 3
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())
    assert bool(torch.isfinite(model.predict(make_inputs(5, dtype=torch.float32)).probs).all())


def test_an_objective_of_ones_own_and_a_wrong_name():
    model = binary(60).double()
    model.set_train_data(make_inputs(60), model.train_targets.double(), strict=False)
    result = fit(model, objective=LaplaceEvidence(model.likelihood, model), max_iterations=5)
    assert result.records[-1].objective > result.records[0].objective
    with pytest.raises(ValueError, match=r"`objective` must be 'auto', .* or an objective\. Got 'mll'"):
        fit(model, objective="mll")


def test_separable_classes_warn_of_a_diverging_scale():
    x = make_inputs(60, dtype=torch.float32)
    model = SimpleGP(x, (x[:, 0] > 0).long(), BernoulliLikelihood(), kernel=make_kernel(3.0, 2e5))
    with pytest.warns(itergp.ItergpWarning, match="raw_outputscale diverged, as it does when classes are separable"):
        fit(model, objective="predictive", max_iterations=8)


def test_ard_finds_the_relevant_input():
    x = make_inputs(400, num_columns=4, dtype=torch.float32)
    y = (torch.sin(3.0 * x[:, 1]) > 0).long()
    kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.MaternKernel(nu=1.5, ard_num_dims=4))
    model = SimpleGP(x, y, BernoulliLikelihood(), kernel=kernel)
    fit(model, max_iterations=30)
    lengthscales = kernel.base_kernel.lengthscale.detach().reshape(-1)
    assert int(lengthscales.argmin()) == 1
    others = lengthscales[[0, 2, 3]]
    assert float(others.min()) > 2.0 * float(lengthscales[1])


# ---------------------------------------------------------------------------- optimisers and stages
def test_stages_and_their_rows():
    x, y = make_binary(1400, dtype=torch.float32)
    model = SimpleGP(x, y, BernoulliLikelihood(), kernel=default_kernel())
    result = fit(model, max_iterations=10, max_rows=1200)
    assert [record.stage for record in result.records] == ["subset"] * 4 + ["refinement"] * 6
    assert [record.iteration for record in result.records] == list(range(10))
    seconds = [record.seconds for record in result.records]
    assert seconds == sorted(seconds)
    assert {record.stage for record in fit(binary(), max_iterations=3).records} == {"learn"}


@pytest.mark.parametrize("objective", ["predictive", "elbo", LaplaceEvidence])
def test_lbfgs_reaches_what_adam_reaches(objective):
    values = {}
    iterations = {"adam": 60, "lbfgs": 30} | ({"auto": 30} if objective == "elbo" else {})
    for optimizer, steps in iterations.items():
        model = binary(100, kernel=make_kernel(4.0, 1.0)).double()
        model.set_train_data(make_binary(100)[0], model.train_targets.double(), strict=False)
        goal = objective if isinstance(objective, str) else objective(model.likelihood, model)
        result = fit(
            model, objective=goal, optimizer=optimizer, max_iterations=steps, calibrate=False, learning_rate=0.3
        )
        if objective == "predictive":  # the split that L-BFGS sees
            mll = PredictiveLogDensity(model.likelihood, model, renew_every=None, tolerance=1e-6, warm_start=False)
        else:
            mll = LaplaceEvidence(model.likelihood, model)
        model.train()
        values[optimizer] = mll(model(*model.train_inputs), model.train_targets).item()
        model.eval()
        assert result.records[-1].objective > result.records[0].objective
    assert all(value > values["adam"] - 0.01 for value in values.values())


def test_adam_is_that_of_torch():
    start = torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ours, theirs = [start.clone(), start.clone()], start.clone().requires_grad_(True)
    mine, reference = Adam(ours, 0.2, 12), torch.optim.Adam([theirs], lr=0.2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(reference, 12)
    for _ in range(12):
        ours[0].grad, theirs.grad = 4.0 * ours[0] ** 3, 4.0 * theirs.detach() ** 3
        mine.step()
        reference.step()
        schedule.step()
        assert_close(ours[0], theirs.detach())
    assert torch.equal(ours[1], start)  # without a gradient it stays


def test_few_rows_are_learned_by_lbfgs():
    assert fit(binary(80)).reason == "the objective stopped improving"
    limited = binary(80)
    limited.solver = SubspaceNewton(covariance_rank=8)  # whose posterior is not the exact one
    assert fit(limited, objective="elbo", max_iterations=3).reason == "all iterations were taken"


def test_restarts_leave_a_bad_start_behind():
    models = [binary(150, kernel=make_kernel(40.0, 1e-4)) for _ in range(2)]
    options = {"objective": "predictive", "max_iterations": 12, "calibrate": False, "learning_rate": 0.1}
    alone, best = fit(models[0], **options), fit(models[1], num_restarts=3, **options)
    assert len(best.records) == 4 * len(alone.records)
    common = [PredictiveLogDensity(m.likelihood, m.train(), seed=2) for m in models]
    values = [mll(m(*m.train_inputs), m.train_targets).item() for mll, m in zip(common, models, strict=True)]
    assert values[1] > values[0]


def test_settled_parameters_end_a_stage():
    model = binary(80, kernel=make_kernel(1.0, 4.0))
    result = fit(model, objective="elbo", optimizer="adam", learning_rate=1e-5, max_iterations=40)
    assert result.reason == "the parameters settled"
    assert len(result.records) == 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "sgd"}, r"`optimizer` must be one of \('auto', 'adam', 'lbfgs'\)\. Got 'sgd'"),
        ({"max_iterations": 0}, r"`max_iterations` must be a positive whole number"),
        ({"learning_rate": -0.1}, r"`learning_rate` must be a positive number"),
        ({"max_rows": 2.5}, r"`max_rows` must be a positive whole number"),
        ({"num_restarts": -1}, r"`num_restarts` must be 0 or more\. Got -1"),
        ({"time_limit": 0}, r"`time_limit` must be a positive number"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(itergp.InputError, match=message):
        fit(binary(), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"predictive": "mcmc"}, r"`predictive` must be one of \('plug-in', 'laplace', 'variational'\)\. Got 'mcmc'"),
        ({"holdout": 1.0}, r"`holdout` must be between 0 and 1\. Got 1\.0"),
        ({"num_folds": 1}, r"`num_folds` must be between 2 and the number of rows, 200\. Got 1"),
    ],
)
def test_bad_options_of_the_predictive_objective(options, message):
    model = binary()
    with pytest.raises(itergp.InputError, match=message):
        PredictiveLogDensity(model.likelihood, model, **options)


def test_fixed_noise_rows_cannot_be_held_out():
    x, y = CASES["gaussian"].data(40, dtype=torch.float32)
    likelihood = gpytorch.likelihoods.FixedNoiseGaussianLikelihood(torch.linspace(0.1, 0.4, 40))
    model = SimpleGP(x, y, likelihood)
    with pytest.raises(itergp.InputError, match=r"rows are exchangeable.*Use ComputationAwareELBO"):
        PredictiveLogDensity(likelihood, model)
    result = fit(model, max_iterations=4)
    assert result.calibration is None
    assert result.records[-1].objective > result.records[0].objective


def test_an_interruption_keeps_what_was_learned():
    def interrupt(record):
        if record.iteration == 4:
            raise KeyboardInterrupt

    model = binary(150, kernel=make_kernel(0.05, 0.1))
    result = fit(model, objective="predictive", max_iterations=50, callback=interrupt)
    assert result.reason == "learning was interrupted"
    assert len(result.records) == 5
    assert float(model.covar_module.base_kernel.lengthscale.detach()) != pytest.approx(0.05, rel=0.01)
    assert result.solution is model.solution


# ---------------------------------------------------------------------------- what can be learned
class Deep(SimpleGP):
    """A kernel on what a network makes of the inputs, and a linear mean."""

    def __init__(self, x, y, likelihood):
        super().__init__(x, y, likelihood, mean=gpytorch.means.LinearMean(2), kernel=default_kernel())
        torch.manual_seed(0)
        self.network = torch.nn.Sequential(torch.nn.Linear(x.shape[1], 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))

    def forward(self, x):
        features = self.network(x)
        return gpytorch.distributions.MultivariateNormal(self.mean_module(features), self.covar_module(features))


def _composite() -> gpytorch.kernels.Kernel:
    first = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel(active_dims=(0,)))
    second = gpytorch.kernels.ScaleKernel(gpytorch.kernels.MaternKernel(nu=2.5, active_dims=(1,)))
    return first + second + gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel() * gpytorch.kernels.LinearKernel())


def _learnable(kind: str) -> SimpleGP:
    x, y = CASES["gaussian" if kind == "noise" else "categorical"].data(120, dtype=torch.float32)
    if kind == "deep":
        return Deep(x, y, CategoricalLikelihood(3))
    if kind == "class-specific kernels":
        return SimpleGP(x, y, CategoricalLikelihood(3), kernel=make_batch_kernel())
    if kind == "sums and products":
        return SimpleGP(x, y, CategoricalLikelihood(3), kernel=_composite())
    return SimpleGP(x, y, GaussianLikelihood(noise=1.0), kernel=default_kernel())


@pytest.mark.parametrize("objective", ["predictive", "elbo"])
@pytest.mark.parametrize("kind", ["deep", "class-specific kernels", "sums and products", "noise"])
def test_every_parameter_moves(kind, objective):
    model = _learnable(kind)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    options = {"optimizer": "adam", "max_iterations": 16, "learning_rate": 0.1, "initialise_kernel": False}
    result = fit(model, objective=objective, calibrate=False, **options)
    still = [name for name, p in model.named_parameters() if torch.equal(p, start[name])]
    assert not still
    assert result.records[-1].objective > result.records[0].objective - (0.2 if objective == "predictive" else 0.0)


def test_a_prior_holds_a_parameter_back():
    scales = []
    for prior in (None, gpytorch.priors.LogNormalPrior(0.0, 0.05)):
        kernel = make_kernel(1.0, 1.0)
        if prior is not None:
            kernel.register_prior("scale_prior", prior, "outputscale")
        fit(binary(200, kernel=kernel), objective="elbo", max_iterations=30)
        scales.append(float(kernel.outputscale.detach()))
    assert abs(scales[1] - 1.0) < 0.2 < abs(scales[0] - 1.0)


def test_botorch_fits_the_model():
    botorch = pytest.importorskip("botorch.fit")
    for objective in (LaplaceEvidence, ComputationAwareELBO):
        x, y = make_binary(60)
        model = SimpleGP(x, y, BernoulliLikelihood(), kernel=make_kernel(5.0, 1.0)).double().train()
        mll = objective(model.likelihood, model)
        before = mll(model(x), model.train_targets).item()
        botorch.fit_gpytorch_mll(mll)
        model.train()
        assert mll(model(x), model.train_targets).item() > before + 0.01
        slopes = torch.autograd.grad(mll(model(x), model.train_targets), list(model.covar_module.parameters()))
        assert all(abs(float(slope)) < 5e-3 for slope in slopes)


class Narrow(Objective):
    """The output scale is to be 1: a peak that long steps jump over."""

    def __call__(self, function_dist, target):
        return -self.model.covar_module.outputscale.log().abs().sqrt() - 1.0


def _learner(callback=None) -> Learner:
    model = binary(20, kernel=make_kernel(1.0, 9.0)).train()
    for parameter in model.parameters():
        parameter.requires_grad_(parameter is model.covar_module.raw_outputscale)
    return Learner(model, free_parameters(model), Deadline(), 0.0, Listeners(callback))


def test_the_mean_of_the_last_quarter_is_learned():
    path = []
    learner = _learner(lambda _: path.append(learner.variables()[0]))
    objective = Narrow(learner.model.likelihood, learner.model, initialise_kernel=False)
    assert learner.run(Stage("learn", objective, 16, 0.5)) is Stop.ITERATIONS
    assert len(path) == 16
    assert_close(learner.variables()[0], torch.stack(path[-4:]).mean(0))
    assert float((torch.stack(path[-4:]).mean(0) - torch.stack(path).mean(0)).abs()) > 0.01


def test_interrupted_lbfgs_ends_at_the_best_of_its_evaluations():
    values, path = [], []

    def stop(record):
        values.append(record.objective)
        path.append(learner.variables()[0])
        if len(values) > 1 and values[-2] < max(values[:-1]):
            raise KeyboardInterrupt  # before it knows the last

    learner = _learner(stop)
    objective = Narrow(learner.model.likelihood, learner.model, initialise_kernel=False)
    assert learner.run(Stage("learn", objective, 30, 0.5, "lbfgs")) is Stop.INTERRUPTED
    assert torch.equal(learner.variables()[0], path[values.index(max(values[:-1]))])


@pytest.mark.parametrize("rate", [0.05, 0.7, 3.0])
def test_learning_ends_at_the_best_of_start_path_and_end(rate):
    model = _learner().model
    objective = Narrow(model.likelihood, model, initialise_kernel=False)
    result = fit(
        model, objective=objective, max_iterations=7, learning_rate=rate, calibrate=False, initialise_kernel=False
    )
    best = max(record.objective for record in result.records)  # the start is the first of them
    assert float(objective(None, None).detach()) >= best - 1e-3 * abs(best)


# ---------------------------------------------------------------------------- calibration
def test_held_out_rows_are_not_known():
    """Labels of coins, which a posterior remembers and cannot foresee."""
    x = 100.0 * make_inputs(120, dtype=torch.float32)
    y = torch.randint(2, (120,), generator=torch.Generator().manual_seed(0))
    model = SimpleGP(x, y, BernoulliLikelihood(), kernel=make_kernel(0.1, 100.0))
    calibration = calibrate_predictions(model, num_rows=120)
    assert calibration.num_held_out == 120
    assert max(calibration.log_densities.values()) < -math.log(2.0) + 1e-3


def test_calibration_looks_at_one_posterior_where_both_are_the_same():
    x = make_inputs(80, dtype=torch.float32)
    model = SimpleGP(x, torch.sin(3.0 * x[:, 0]), GaussianLikelihood(0.01))
    calibration = calibrate_predictions(model)
    assert {approximation for approximation, _ in calibration.log_densities} == {"laplace"}


def test_calibration_finds_the_posterior_where_it_is_true():
    """Labels drawn from the model itself: integrating the posterior is then right, and plugging in overconfident."""
    generator = torch.Generator().manual_seed(0)
    x = make_inputs(900, 6, dtype=torch.float32)
    kernel = make_kernel(1.0, 100.0)
    root = torch.linalg.cholesky(kernel(x).to_dense().detach().double() + 1e-6 * torch.eye(900))
    f = root @ torch.randn(900, generator=generator, dtype=torch.float64)
    y = (torch.rand(900, generator=generator) < torch.sigmoid(f)).long()
    model = SimpleGP(x, y, BernoulliLikelihood(), kernel=kernel)
    calibration = calibrate_predictions(model, num_rows=900)
    assert calibration.num_held_out == 900
    assert calibration.tempering < 4.0
    densities = calibration.log_densities
    assert densities["variational", 0.0] > densities["variational", math.inf] + 0.01
    assert densities["variational", 0.0] > densities["laplace", math.inf]
    assert calibration.expected_calibration_error < 0.05


def test_the_calibrated_and_the_uncalibrated_predictive():
    x, y = make_classes(900, dtype=torch.float32)
    model = SimpleGP(x[:600], y[:600], CategoricalLikelihood(3), kernel=default_kernel())
    result = fit(model, max_iterations=10)
    calibration = result.calibration
    assert (model.approximation, model.tempering) == (calibration.approximation, calibration.tempering)
    compared = {a for a, _ in calibration.log_densities}
    assert {"laplace", calibration.approximation} <= compared
    assert {(a, p) for a in compared for p in (*EXPONENTS, math.inf)} <= set(calibration.log_densities)
    for approximation in compared:  # some candidate is all but the plugged-in mean
        densities = {p: value for (a, p), value in calibration.log_densities.items() if a == approximation}
        sharpest = densities[max(p for p in densities if p < math.inf)]
        assert sharpest == pytest.approx(densities[math.inf], rel=1e-3)
    with torch.no_grad():
        chosen = model.predict(x[600:])
        same = model.predict(x[600:], tempering=calibration.tempering)
        assert torch.equal(chosen.probs, same.probs)
        latent = model(x[600:])  # the posterior itself
        whole = model.predict(x[600:], tempering=0.0)
        assert_close(model.likelihood(latent).probs, whole.probs, dtype=torch.float32)
    again = copy.deepcopy(model)
    assert again.tempering == model.tempering


def test_what_calibration_chooses_is_the_models(monkeypatch):
    chosen = Calibration("laplace", 4.0, {}, 0.0, 10, None)
    monkeypatch.setattr("itergp.learning.fitting.calibrate_predictions", lambda *_, **__: chosen)
    model = binary(60)
    fit(model, max_iterations=1)
    assert (model.approximation, model.tempering) == ("laplace", 4.0)


def test_one_row_says_nothing_of_others():
    """Of one row nothing is held out; of two, one row at a time tells no approximation from another."""
    x, y = make_binary(20)
    weight = torch.zeros(20).double()
    weight[3] = 1.0
    model = SimpleGP(x, y, BernoulliLikelihood(), kernel=default_kernel(), sample_weight=weight)
    assert fit(model, max_iterations=2).calibration is None
    with pytest.raises(InputError, match="two or more"):
        calibrate_predictions(model)
    for number in (0, -3, 2.5):
        with pytest.raises(InputError, match="num_rows"):
            calibrate_predictions(model, num_rows=number)
    density = {
        (kind, 0.0): torch.tensor([value]).double() for kind, value in (("laplace", -1.0), ("variational", -0.5))
    }
    kept, _ = calibration.of_one_approximation(density, dict.fromkeys(density, 0.5))
    assert [*kept] == [("laplace", 0.0)]


def test_a_variational_posterior_of_few_rows_is_not_chosen_for_many_of_several_functions():
    x, y = make_classes(240, dtype=torch.float32)
    model = SimpleGP(x, y, CategoricalLikelihood(3), kernel=default_kernel())
    assert {a for a, _ in calibrate_predictions(model, num_rows=60).log_densities} == {"laplace"}
    assert {a for a, _ in calibrate_predictions(model, num_rows=240).log_densities} == {"laplace", "variational"}
    x, y = make_binary(240, dtype=torch.float32)  # neighbours see the same of more rows
    model = SimpleGP(x, y, BernoulliLikelihood(), kernel=default_kernel())
    assert {a for a, _ in calibrate_predictions(model, num_rows=60).log_densities} == {"laplace", "variational"}


@pytest.mark.parametrize(
    ("ahead", "spread", "kept"), [(0.1, 0.5, "variational"), (0.1, 5.0, "laplace"), (-0.1, 0.5, "laplace")]
)
def test_a_variational_posterior_is_chosen_if_it_is_a_standard_error_better(ahead, spread, kept):
    """By the best exponent of each; its humblest one is then as good as nothing."""
    noise = spread * torch.randn(100, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    base = -torch.ones(100, dtype=torch.float64)
    noise -= noise.mean()
    densities = {
        ("laplace", 0.0): base - 1.0,
        ("laplace", 8.0): base,
        ("laplace", math.inf): base + 9.0,  # not a candidate
        ("variational", 0.0): base - 2.0,
        ("variational", 8.0): base + ahead + noise,
    }
    shares = {key: 1.0 / (1.0 + key[1]) for key in densities if key[1] < math.inf}
    of_kept, _ = of_one_approximation(densities, shares)
    assert {approximation for approximation, _ in of_kept} == {kept}


@pytest.mark.parametrize(
    ("latents", "lead", "telling", "dropped"),
    [
        (1, -3.0, 1000, True),
        (1, -0.5, 60, True),
        (1, -0.5, 1000, False),
        (1, 0.5, 60, False),
        (3, -3.0, 1000, True),
        (3, 0.5, 60, True),
        (3, 0.5, 1000, False),
        (3, 1.5, 60, False),
    ],
)
def test_an_approximation_that_falls_behind_is_not_looked_at_again(latents, lead, telling, dropped, monkeypatch):
    """A standard error behind on any rows, or at all on as many as tell; of several functions, if not ahead by one."""
    make, likelihood = (
        (make_binary, BernoulliLikelihood()) if latents == 1 else (make_classes, CategoricalLikelihood(3))
    )
    model, asked = SimpleGP(*make(240, dtype=torch.float32), likelihood), []
    marginals = calibration.marginals

    def counted(*arguments):
        asked.append(arguments[4])
        return marginals(*arguments)

    monkeypatch.setattr(calibration, "marginals", counted)
    monkeypatch.setattr(calibration, "lead_of", lambda _: lead)
    monkeypatch.setattr(calibration, "_TELLING", telling)
    left = ("laplace",) if dropped else calibration.APPROXIMATIONS
    assert {a for a, _ in calibrate_predictions(model).log_densities} == set(left)
    assert asked == [calibration.APPROXIMATIONS, *[left] * 3]


def test_quarters_are_held_out_until_they_say_enough(monkeypatch):
    x, y = make_binary(3600, dtype=torch.float32)
    solver = SubspaceNewton(covariance_rank=3, num_neighbours=0)
    model = SimpleGP(x, y, BernoulliLikelihood(), kernel=gpytorch.kernels.LinearKernel(), solver=solver)
    assert calibrate_predictions(model).num_held_out == 2700
    monkeypatch.setattr(calibration, "_ENOUGH", 900)
    assert calibrate_predictions(model).num_held_out == 900


@pytest.mark.parametrize("exponent", [0.0, 128.0, 32768.0])
def test_of_more_rows_than_were_drawn_more_variance_is_taken_away(exponent, monkeypatch):
    """With several latent functions, whose covariance of the same rank says less of more rows."""
    monkeypatch.setattr(calibration, "humblest", lambda *_: (("laplace", exponent), 0.0))
    monkeypatch.setattr(calibration, "of_one_approximation", lambda *both: both)
    x, y = make_classes(240, dtype=torch.float32)
    several = SimpleGP(x, y, CategoricalLikelihood(3), kernel=default_kernel())
    assert calibrate_predictions(several, num_rows=240).tempering == exponent
    sharper = {0.0: 0.25, 128.0: 512.0, 32768.0: 32768.0}[exponent]
    assert calibrate_predictions(several, num_rows=60).tempering == sharper
    alone = SimpleGP(*make_binary(240, dtype=torch.float32), BernoulliLikelihood(), kernel=default_kernel())
    assert calibrate_predictions(alone, num_rows=60).tempering == exponent


def test_a_variational_posterior_is_a_candidate_where_it_takes_little_time():
    for classes, rows, both in ((3, 240, True), (3, 8000, True), (3, 9000, False), (10, 2000, True), (10, 8000, False)):
        observations = Observations(CategoricalLikelihood(classes), torch.zeros(rows, dtype=torch.int64))
        drawn = calibration._rows_to_draw(observations)
        split = calibration.quarters(observations, num_rows=drawn, seed=0)[0]
        found = calibration._approximations(observations, *(len(part) for part in split))
        assert found == (calibration.APPROXIMATIONS if both else ("laplace",))


def test_of_many_rows_two_thousand_are_held_out_of_as_many_as_pay():
    targets = torch.zeros(30_000)
    for likelihood, conditioned in ((BernoulliLikelihood(), 6000), (CategoricalLikelihood(26), 2307)):
        observations = Observations(likelihood, targets.long())
        drawn = calibration._rows_to_draw(observations)
        (train, held_out), *others = calibration.quarters(observations, num_rows=drawn, seed=0)
        assert len(train) == conditioned
        assert len(held_out) == min(2000, drawn // 4)
        assert len(torch.cat([train, held_out]).unique()) == drawn
        assert len(others) == (0 if drawn == 8000 else 3)


def test_few_rows_are_each_held_out_once_and_weights_count():
    model = binary(90)
    assert calibrate_predictions(model, num_rows=4000).num_held_out == 90
    x, y = make_binary(90, dtype=torch.float32)
    weight = (torch.arange(90) % 3 > 0).float()
    weighted = SimpleGP(x, y, BernoulliLikelihood(), sample_weight=weight)
    assert calibrate_predictions(weighted, num_rows=4000).num_held_out == 60


def test_the_trajectory_is_drawn():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    x, y = make_binary(1100, dtype=torch.float32)
    kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.MaternKernel(nu=1.5, ard_num_dims=2))
    result = fit(SimpleGP(x, y, BernoulliLikelihood(), kernel=kernel), max_iterations=5, max_rows=1050, calibrate=False)
    figure, axes = plt.subplots()
    assert plot_trajectory(axes, result.records) is axes
    lines = {line.get_label(): line.get_ydata() for line in axes.lines if not line.get_label().startswith("_")}
    assert set(lines) == {"constant", "outputscale", "lengthscale[0]", "lengthscale[1]"}
    moved = [record.parameters["covar_module.raw_outputscale"][0] for record in result.records]
    assert list(lines["outputscale"]) == moved
    assert len(axes.lines) == 5  # and one between the stages
    plt.close(figure)


def test_another_fit_forgets_the_tempering_of_the_last():
    model = binary()
    model.tempering = 2.0
    fit(model, max_iterations=2, calibrate=False)
    assert model.tempering == 0.0


@pytest.mark.parametrize("approximation", ["variational", "laplace"])
@pytest.mark.parametrize("calibrate", [True, False])
def test_what_is_learned_suits_the_prediction_that_will_be_made(calibrate, approximation, monkeypatch):
    """Without a choice on held-out rows predictions integrate the whole posterior."""
    seen = []
    run = Learner.run
    monkeypatch.setattr(
        Learner, "run", lambda self, stage: (seen.append(stage.objective.predictive), run(self, stage))[1]
    )
    model = SimpleGP(*CASES["poisson"].data(600, dtype=torch.float32), PoissonLikelihood())
    model.approximation = approximation
    fit(model, max_iterations=2, calibrate=calibrate)
    assert set(seen) == {"plug-in" if calibrate else approximation}


def test_starts_are_compared_by_what_is_learned():
    """On one split, by the same predictive distribution, and equal whenever it is evaluated."""
    model = binary(80).train()
    options = {
        "predictive": "variational",
        "num_folds": 3,
        "rank": 9,
        "num_rows": 60,
        "holdout": 0.4,
        "tolerance": 1e-5,
    }
    common = PredictiveLogDensity(model.likelihood, model, **options).on_one_split(7)
    assert {name: getattr(common, name) for name in options} == options
    values = [common(model(*model.train_inputs), model.train_targets).item() for _ in range(12)]
    assert len(set(values)) == 1
    again = common.on_one_split(7)(model(*model.train_inputs), model.train_targets).item()
    assert again == values[0]


# ---------------------------------------------------------------- limits of lengthscales
GK = gpytorch.kernels
LIMITED = {  # kernels of three columns, and those that each lengthscale belongs to
    "active": (lambda: GK.RBFKernel(active_dims=[2]), [[2]]),
    "scaled": (lambda: GK.ScaleKernel(GK.RBFKernel(active_dims=[1, 2], ard_num_dims=2)), [[1], [2]]),
    "sum": (lambda: GK.ScaleKernel(GK.RBFKernel(active_dims=[0])) + GK.MaternKernel(active_dims=[1, 2]), [[0], [1, 2]]),
    "of some": (
        lambda: GK.ScaleKernel(GK.RBFKernel() * GK.RBFKernel(active_dims=[0]), active_dims=[1, 2]),
        [[1, 2], [1]],
    ),
}


@pytest.mark.parametrize("name", LIMITED)
def test_lengthscales_are_limited_by_the_columns_that_a_kernel_sees(name):
    make, columns = LIMITED[name]
    x = make_inputs(150, 3) * torch.tensor([1.0, 10.0, 100.0])
    model = SimpleGP(x, (x[:, 2] > 0).long(), BernoulliLikelihood(), kernel=make()).double().eval()
    kernels = [
        kernel for kernel in model.covar_module.modules() if isinstance(kernel, GK.Kernel) and kernel.has_lengthscale
    ]
    for kernel in kernels:
        kernel.lengthscale = 1e4
    limit = limit_lengthscales(model)
    assert limit is not None
    found = torch.cat([kernel.lengthscale.detach().reshape(-1) for kernel in kernels])
    deviations = x.double().std(0, correction=0)
    expected = limit * torch.stack([deviations[own].square().mean().sqrt() for own in columns])
    assert_close(found, expected)


def test_a_noise_at_its_very_bound_leaves_it():
    x = torch.linspace(-3.0, 3.0, 60, dtype=torch.float64).unsqueeze(-1)
    y = torch.sin(x[:, 0]) + 0.3 * torch.randn(60, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    model = itergp.models.GP(x, y, gpytorch.likelihoods.GaussianLikelihood()).double()
    model.likelihood.noise = 1e-4  # whose raw value is minus infinity
    fit(model, optimizer="adam", max_iterations=8, calibrate=False)
    assert model.likelihood.noise.item() > 2.5e-4


def test_learning_starts_within_constraints():
    """Of which the start that the data ask for may know nothing."""
    interval, most = gpytorch.constraints.Interval(0.5, 0.6), gpytorch.constraints.Interval(0.0, 3.0)
    kernel = gpytorch.kernels.ScaleKernel(
        gpytorch.kernels.RBFKernel(lengthscale_constraint=interval), outputscale_constraint=most
    )
    x = torch.linspace(-3.0, 3.0, 40).unsqueeze(-1)
    model = itergp.models.GP(x, torch.sin(x[:, 0]), itergp.likelihoods.GaussianLikelihood(), kernel=kernel)
    result = fit(model, max_iterations=3)
    assert 0.5 < kernel.base_kernel.lengthscale.item() < 0.6
    assert 0.0 < kernel.outputscale.item() < 3.0
    assert result.solution.rank > 0

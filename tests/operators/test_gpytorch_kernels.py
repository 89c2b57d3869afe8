"""Models with any of GPyTorch's kernels, and with kernels of one's own, are those of ``ExactGP``."""

from __future__ import annotations

import copy
import math
import weakref
from collections.abc import Callable
from functools import partial

import gpytorch
import gpytorch.kernels as gk
import gpytorch.likelihoods as gl
import pytest
import torch
from gpytorch.distributions import MultivariateNormal
from helpers import SimpleGP, assert_close, make_inputs
from linear_operator.operators import LinearOperator
from torch import Tensor

import itergp
from itergp import InputError
from itergp.likelihoods import BernoulliLikelihood, CategoricalLikelihood, as_likelihood
from itergp.models import GP, NonConjugateGP
from itergp.objectives import ComputationAwareELBO, LaplaceEvidence
from itergp.operators import BlockedOperator, KernelOperator, Prior, make_operator
from itergp.operators.derived import TabulatedKernel, requires_grad, snapshot
from itergp.operators.distances import exact_distances
from itergp.operators.radial import evaluate_diagonal, evaluate_kernel
from itergp.operators.radial_derivatives import profile_derivative
from itergp.operators.radial_product import radial_product
from itergp.operators.recompute import Recomputation
from itergp.solvers import DenseNewton, IterNCGP, LinearTimeNewton, SubspaceNewton

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning"),
    pytest.mark.filterwarnings("ignore::gpytorch.utils.warnings.GPInputWarning"),
]
ROWS = 40
SOLVER = SubspaceNewton(tolerance=1e-10)


def _inputs(rows: int = ROWS, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(rows, 2, generator=generator, dtype=torch.float64)


def _targets(x: Tensor) -> Tensor:
    return torch.sin(6.0 * x.sum(-1)) + 0.1 * torch.cos(50.0 * x[:, 0])


def _gaussian(noise: float = 0.1) -> gl.GaussianLikelihood:
    made = gl.GaussianLikelihood().double()
    made.noise = noise
    return made


def _rbf() -> gk.Kernel:
    return gk.ScaleKernel(gk.RBFKernel())


def _short() -> gk.Kernel:
    """Short enough for inducing points whose matrix is well-conditioned."""
    made = _rbf()
    made.base_kernel.lengthscale = 0.2
    return made


class Louder(gk.RBFKernel):
    """Its ``forward`` takes a keyword."""

    def forward(self, x1, x2, diag=False, amplitude=1.0, **params):
        return amplitude * super().forward(x1, x2, diag=diag, **params)


class Normalised(gk.RBFKernel):
    """Divides by the largest input it is called with: no function of two rows."""

    def forward(self, x1, x2, diag=False, **params):
        largest = torch.maximum(x1.abs().max(), x2.abs().max())
        return super().forward(x1 / largest, x2 / largest, diag=diag, **params)


class Remembering(gk.RBFKernel):
    """Centres inputs by the mean of those it was first called with."""

    centre: Tensor | None = None

    def forward(self, x1, x2, diag=False, **params):
        if self.centre is None:
            self.centre = x1.detach().reshape(-1, x1.shape[-1]).mean(0)
        weight = 1.0 + 0.5 * (x1 - self.centre).sum(-1), 1.0 + 0.5 * (x2 - self.centre).sum(-1)
        base = super().forward(x1, x2, diag=diag, **params)
        return base * weight[0] * weight[1] if diag else base * weight[0][..., :, None] * weight[1][..., None, :]


def _bounded_grid(base: gk.Kernel) -> gk.Kernel:
    return gk.GridInterpolationKernel(base, grid_size=25, num_dims=2, grid_bounds=[(-0.1, 1.1)] * 2)


def _grid(base: gk.Kernel, dims: int = 2) -> gk.Kernel:
    return gk.GridInterpolationKernel(base, grid_size=25, num_dims=dims)


def _times(self, x):
    return MultivariateNormal(self.mean_module(x), self.covar_module(x) * self.covar_module(x))


def _by_column(self, x):
    return MultivariateNormal(self.mean_module(x), self.covar_module(x, last_dim_is_batch=True).sum(-3))


def _louder(self, x):
    return MultivariateNormal(self.mean_module(x), self.covar_module(x, amplitude=4.0))


def _evaluated(self, x):
    return MultivariateNormal(self.mean_module(x), self.covar_module(x).to_dense())


def _scaled_by_call(self, x):
    low, high = x.min(0).values, x.max(0).values
    z = (x - low) / (high - low)
    return MultivariateNormal(self.mean_module(z), self.covar_module(z))


# name -> kernel and forward, None for the usual one
MODELS: dict[str, tuple[Callable[[], gk.Kernel], Callable | None]] = {
    "rbf": (_rbf, None),
    "matern12": (lambda: gk.MaternKernel(nu=0.5), None),
    "matern32": (lambda: gk.MaternKernel(nu=1.5), None),
    "matern52": (lambda: gk.ScaleKernel(gk.MaternKernel(nu=2.5, ard_num_dims=2)), None),
    "rational quadratic": (gk.RQKernel, None),
    "periodic": (gk.PeriodicKernel, None),
    "linear": (gk.LinearKernel, None),
    "polynomial": (lambda: gk.PolynomialKernel(power=2), None),
    "spectral mixture": (lambda: gk.SpectralMixtureKernel(num_mixtures=2, ard_num_dims=2), None),
    "random features": (lambda: gk.RFFKernel(num_samples=30), None),
    "sum": (lambda: gk.RBFKernel() + gk.LinearKernel(), None),
    "product": (lambda: gk.RBFKernel(active_dims=[0]) * gk.PeriodicKernel(active_dims=[1]), None),
    "grid": (lambda: _bounded_grid(gk.RBFKernel()), None),
    "moving grid": (lambda: gk.ScaleKernel(_grid(gk.RBFKernel())), None),
    "additive moving grid": (lambda: gk.AdditiveStructureKernel(_grid(_rbf(), 1), num_dims=2), None),
    "additive structure": (lambda: gk.AdditiveStructureKernel(_rbf(), num_dims=2), None),
    "product structure": (lambda: gk.ProductStructureKernel(_rbf(), num_dims=2), None),
    "scaled product structure": (lambda: gk.ScaleKernel(gk.ProductStructureKernel(gk.RBFKernel(), num_dims=2)), None),
    "newton girard": (lambda: gk.NewtonGirardAdditiveKernel(gk.RBFKernel(), num_dims=2), None),
    "times": (_rbf, _times),
    "by column": (_rbf, _by_column),
    "keyword": (Louder, _louder),
    "evaluated": (_rbf, _evaluated),
    "normalised": (Normalised, None),
    "remembering": (Remembering, None),
    "scaled by call": (_rbf, _scaled_by_call),
    "inducing points": (lambda: gk.InducingPointKernel(_short(), _inputs(12, seed=5), _gaussian()), None),
}
WHOLE = ("times", "by column", "evaluated", "normalised", "product structure", "scaled by call")
models = pytest.mark.parametrize("name", MODELS)


def _model(base: type, name: str, y: Tensor, likelihood: gl.Likelihood, **options) -> gpytorch.models.GP:
    make, forward = MODELS[name]

    class Model(base):
        def __init__(self):
            super().__init__(_inputs(), y, likelihood, **options)
            self.mean_module = gpytorch.means.ConstantMean()
            self.covar_module = make()
            if isinstance(self.covar_module, gk.InducingPointKernel):
                self.covar_module.likelihood = likelihood

        def forward(self, x):
            if forward is not None:
                return forward(self, x)
            return MultivariateNormal(self.mean_module(x), self.covar_module(x))

    torch.manual_seed(3)
    return Model().double()


def _pair(name: str) -> tuple[gpytorch.models.ExactGP, NonConjugateGP]:
    y = _targets(_inputs())
    exact = _model(gpytorch.models.ExactGP, name, y, _gaussian()).eval()
    if name == "remembering":  # GPyTorch would show it the new inputs first
        exact.covar_module(_inputs()).to_dense()
    return exact, _model(NonConjugateGP, name, y, _gaussian(), solver=SOLVER).eval()


# ------------------------------------------------------------------ predictions
@models
def test_predictions_are_those_of_exact_gp(name):
    exact, ours = _pair(name)
    x = _inputs(7, seed=9)
    latents = []
    for model in (exact, ours):
        torch.manual_seed(4)  # random features are drawn now
        with torch.no_grad(), gpytorch.settings.fast_pred_var(False):
            latents.append(model(x))
    tolerance = 1e-3 if "grid" in name else 1e-5  # GPyTorch's predictions on grids are iterative
    for found, expected in ((latents[1].mean, latents[0].mean), (latents[1].variance, latents[0].variance)):
        assert float((found - expected).abs().max()) < tolerance * float(expected.abs().max())
    assert_close(ours.latent_mean(x)[:, 0], latents[1].mean, "posterior")
    assert_close(ours.predict(x).variance, latents[1].variance + 0.1, "posterior")


@models
def test_predictions_do_not_depend_on_what_else_is_asked_for(name):
    """The same rows alone and among others, and after others; what scales by all rows of a call is beyond that."""
    _, model = _pair(name)
    x = 0.2 + 0.6 * _inputs(9, seed=9)  # within the training inputs: nothing moves a grid, or an extreme
    with torch.no_grad():
        whole = model(x).mean
        parts = torch.cat([model(x[:4]).mean, model(x[4:5]).mean, model(x[5:]).mean])
    assert_close(parts, whole, "posterior")


@models
def test_derivatives_in_the_inputs_are_those_of_exact_gp(name):
    exact, ours = _pair(name)
    x = _inputs(3, seed=9)  # GPyTorch's kernels by column fail at as many rows as columns
    found = []
    for model in (exact, ours):
        torch.manual_seed(4)
        point = x.clone().requires_grad_(True)
        latent = model(point)
        (slope,) = torch.autograd.grad(latent.mean.sum() + latent.variance.sum(), point)
        hessian = torch.autograd.functional.hessian(lambda z, model=model: model(z).mean.sum(), x[:1])
        found.append((slope, hessian))
    for actual, expected in zip(found[1], found[0], strict=True):
        tolerance = 5e-3 if "grid" in name else 1e-4
        assert float((actual - expected).abs().max()) <= tolerance * float(expected.abs().max()) + 1e-10


@pytest.mark.parametrize("objective", ["elbo", "predictive"])
@models
def test_what_predicts_also_learns(name, objective):
    model = _model(NonConjugateGP, name, (_targets(_inputs()) > 0).long(), BernoulliLikelihood())
    path = []  # which a fit may give up again, if so few steps have not made the model better
    result = itergp.fit(
        model,
        objective=objective,
        max_iterations=3,
        callback=lambda _: path.append([value.detach().clone() for value in model.covar_module.parameters()]),
    )
    assert all(math.isfinite(record.objective) for record in result.records)
    assert not all(map(torch.equal, path[0], path[-1]))


@pytest.mark.parametrize("name", [name for name in MODELS if name != "newton girard"])  # which computes in float32
def test_gradients_of_the_elbo_are_finite_differences(name):
    """In training mode, of every hyperparameter of the kernel, at a fixed posterior."""
    likelihood = _gaussian()
    model = _model(NonConjugateGP, name, _targets(_inputs()), likelihood, solver=SOLVER).train()
    objective = ComputationAwareELBO(likelihood, model, condition_every=1000)

    def value() -> Tensor:
        return objective(model(*model.train_inputs), model.train_targets)

    value().backward()
    for parameter in list(model.covar_module.parameters())[:3]:
        slope = 0.0 if parameter.grad is None else float(parameter.grad.reshape(-1)[0])
        ends = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                parameter.reshape(-1)[0].add_(step)
                ends.append(float(value()))
                parameter.reshape(-1)[0].sub_(step)
        assert slope == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("name", WHOLE)
def test_what_is_no_function_of_two_rows_is_evaluated_whole(name):
    _, model = _pair(name)
    assert isinstance(model.conditioned.operator.kernel, TabulatedKernel)


@pytest.mark.parametrize("name", [name for name in MODELS if name not in WHOLE])
def test_functions_of_two_rows_are_evaluated_in_blocks(name):
    _, model = _pair(name)
    assert not isinstance(model.conditioned.operator.kernel, TabulatedKernel)


SOME = ("times", "scaled by call", "moving grid", "inducing points", "keyword")


@pytest.mark.parametrize("name", SOME)
def test_solvers_and_instruments_work_with_every_kind_of_kernel(name, tmp_path):
    x, y = _inputs(4, seed=9), (_targets(_inputs()) > 0).long()
    solvers = {
        "dense": DenseNewton(),
        "subspace": SOLVER,
        "published": IterNCGP(),
        "support": LinearTimeNewton(num_support=ROWS),
    }
    means = {}
    for kind, solver in solvers.items():
        model = _model(NonConjugateGP, name, y, BernoulliLikelihood(), solver=solver).eval()
        with torch.no_grad():
            solution = model.condition(checkpoint=tmp_path / kind)
            means[kind] = model(x).mean
            if solution.certificate is not None:
                assert bool((solution.certificate.latent_error(x) >= 0.0).all())
        assert model.plan().size.num_rows == ROWS
        with torch.no_grad():
            copied = copy.deepcopy(model)
            copied.mean_module.constant.add_(0.1)  # its posterior is found again
            copied.mean_module.constant.sub_(0.1)
            assert float((copied(x).mean - means[kind]).abs().max()) < 1e-3
    for kind in ("subspace", "published", "support"):
        assert float((means[kind] - means["dense"]).abs().max()) < 2e-2


@pytest.mark.parametrize("name", SOME)
def test_the_laplace_evidence_has_derivatives_for_every_kind_of_kernel(name):
    likelihood = BernoulliLikelihood()
    model = _model(NonConjugateGP, name, (_targets(_inputs()) > 0).long(), likelihood).train()
    objective = LaplaceEvidence(likelihood, model)
    parameter = next(p for n, p in model.covar_module.named_parameters() if "lengthscale" in n)

    def value() -> Tensor:
        return objective(model(*model.train_inputs), model.train_targets)

    value().backward()
    ends = []
    for step in (1e-4, -1e-4):
        with torch.no_grad():
            parameter.add_(step)
            ends.append(float(value()))
            parameter.sub_(step)
    assert float(parameter.grad) == pytest.approx((ends[0] - ends[1]) / 2e-4, rel=1e-3, abs=1e-7)


# ------------------------------------------------------------------ state and modes
def _dense_mean(model: NonConjugateGP, covariance: Tensor) -> Tensor:
    """Posterior mean at the rows below the training rows, from the covariance of all of them."""
    system = covariance[:ROWS, :ROWS] + model.likelihood.noise * torch.eye(ROWS, dtype=torch.float64)
    constant = model.mean_module.constant
    return constant + covariance[ROWS:, :ROWS] @ torch.linalg.solve(system, model.train_targets - constant)


def test_a_grid_grows_with_new_inputs_and_the_posterior_with_it():
    _, model = _pair("moving grid")
    near, far = _inputs(3, seed=9), torch.tensor([[1.6, 0.5], [-0.7, 1.4]], dtype=torch.float64)
    kernel = MODELS["moving grid"][0]().double()  # lays its grid over all rows that it is called with
    with torch.no_grad():
        before = model(near).mean
        union = torch.cat([_inputs(), far])
        assert_close(model(far).mean, _dense_mean(model, kernel(union, union).to_dense()), "posterior")
        again = model(near).mean
    assert float((before - again).abs().max()) < 0.1  # the grid is coarser now
    assert not torch.equal(before, again)


def _squared_matrix(self, x):
    covariance = self.covar_module(x)
    return MultivariateNormal(self.mean_module(x), covariance * covariance)


def test_a_grid_grows_where_the_covariance_is_evaluated_whole(monkeypatch):
    monkeypatch.setitem(MODELS, "squared grid", (lambda: _grid(gk.RBFKernel()), _squared_matrix))
    model = _model(NonConjugateGP, "squared grid", _targets(_inputs()), _gaussian(), solver=DenseNewton()).eval()
    kernel, far = _grid(gk.RBFKernel()).double(), torch.tensor([[1.6, 0.5], [-0.7, 1.4]], dtype=torch.float64)
    union = torch.cat([_inputs(), far])
    with torch.no_grad():
        model(_inputs(3, seed=9))
        assert_close(model(far).mean, _dense_mean(model, kernel(union, union).to_dense().square()), "posterior")


@pytest.mark.filterwarnings("ignore:A not p.d.")
@torch.no_grad()
def test_an_odd_number_of_roots_with_few_columns_is_refused():
    # GPyTorch pads their product with a root that is only right where roots are square: K / N in place of K.
    x = torch.cat([_inputs(), _inputs(seed=1)[:, :1]], -1)
    kernel, noise = gk.ProductStructureKernel(gk.ScaleKernel(gk.LinearKernel()), num_dims=3).double(), 0.1
    model = GP(x, _targets(x), _gaussian(noise), mean=gpytorch.means.ZeroMean(), kernel=kernel, solver=DenseNewton())
    with pytest.raises(InputError, match=r"variances of its rows by themselves.*inside a ScaleKernel"):
        model.eval()(x[:3])
    scaled = gk.ScaleKernel(kernel).double()
    model = GP(x, _targets(x), _gaussian(noise), mean=gpytorch.means.ZeroMean(), kernel=scaled, solver=DenseNewton())
    K = scaled.outputscale * kernel.base_kernel.outputscale**3 * kernel.base_kernel.base_kernel.variance.squeeze() ** 3
    K = K * (x.unsqueeze(-2) * x.unsqueeze(-3)).prod(-1)
    expected = K[:3] @ torch.linalg.solve(K + noise * torch.eye(len(x)), _targets(x))
    assert_close(model.eval()(x[:3]).mean, expected, "posterior")


class _Evaluated(NonConjugateGP):
    def __init__(self, x, y, likelihood, kernel, **options):
        super().__init__(x, y, likelihood, **options)
        self.mean_module, self.covar_module = gpytorch.means.ZeroMean(), kernel

    def forward(self, x):
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x).evaluate_kernel())


@pytest.mark.filterwarnings("ignore:A not p.d.")  # GPyTorch's, of the roots
@torch.no_grad()
def test_a_product_that_left_a_dense_matrix_is_looked_at_too():
    # The factor of the number of rows is within the dense product with another kernel.
    x = torch.cat([_inputs(), _inputs(seed=1)[:, :1]], -1)
    roots = gk.ProductStructureKernel(gk.LinearKernel(), num_dims=3)
    model = _Evaluated(
        x, _targets(x), _gaussian(0.1), gk.ScaleKernel(roots * gk.RBFKernel()), solver=DenseNewton()
    ).double()
    with pytest.raises(InputError, match="variances of its rows by themselves"):
        model.eval()(x[:3])
    fine = gk.ScaleKernel(gk.ProductStructureKernel(gk.RBFKernel(), num_dims=3) * gk.RBFKernel()).double()
    model = _Evaluated(x, _targets(x), _gaussian(0.1), fine, solver=DenseNewton()).double().eval()
    K = fine(x, x).to_dense()
    expected = K[:3] @ torch.linalg.solve(K + 0.1 * torch.eye(len(x)), _targets(x))
    assert_close(model(x[:3]).mean, expected, "posterior")


def test_rounding_does_not_lay_a_grid_anew():
    _, model = _pair("moving grid")
    with torch.no_grad():
        model(torch.tensor([[1.6, 0.5]], dtype=torch.float64))  # one side moves, the others end at training rows
        bounds = model.covar_module.base_kernel.grid_bounds
        weights = model.solution.representer_weights
        model(_inputs(3, seed=9))
        assert model.covar_module.base_kernel.grid_bounds == bounds
        assert model.solution.representer_weights is weights


@pytest.mark.parametrize(
    "make",
    [
        lambda: gk.IndexKernel(num_tasks=3, active_dims=[1]),
        lambda: gk.RBFKernel() * gk.ProductStructureKernel(_rbf(), num_dims=2),
        lambda: gk.AdditiveStructureKernel(_rbf(), num_dims=2) + gk.LinearKernel(),
    ],
)
def test_variances_of_kernels_whose_own_diagonal_fails(make, monkeypatch):
    """GPyTorch itself fails at some of these."""
    monkeypatch.setitem(MODELS, "failing", (make, None))
    x = _inputs(2, seed=9).round()
    monkeypatch.setitem(globals(), "_inputs", lambda rows=ROWS, seed=0, real=_inputs: real(rows, seed).round())
    model = _model(NonConjugateGP, "failing", _targets(_inputs()), _gaussian(), solver=DenseNewton()).eval()
    with torch.no_grad():
        entries = evaluate_kernel(model.covar_module, torch.cat([_inputs(), x]), torch.cat([_inputs(), x]), 1)[0]
        system, cross = entries[:ROWS, :ROWS] + 0.1 * torch.eye(ROWS), entries[ROWS:, :ROWS]
        expected = entries[ROWS:, ROWS:] - cross @ torch.linalg.solve(system, cross.mT)
        assert_close(model(x).variance, expected.diagonal(), "posterior")
        assert_close(model(x).covariance_matrix, expected, "posterior")


def test_a_snapshot_keeps_modes_and_lets_the_original_learn():
    likelihood = _gaussian()
    kernel = gk.ScaleKernel(gk.InducingPointKernel(gk.RBFKernel(), _inputs(5), likelihood)).double().eval()
    twin = snapshot(kernel)
    assert not any(module.training for module in twin.modules() if isinstance(module, gk.Kernel))
    assert all(parameter.requires_grad for parameter in (*kernel.parameters(), *likelihood.parameters()))
    assert not twin.raw_outputscale.requires_grad
    assert not twin.base_kernel.inducing_points.requires_grad


def test_changed_hyperparameters_reach_what_kernels_keep_in_evaluation_mode():
    model = _model(NonConjugateGP, "grid", _targets(_inputs()), _gaussian(), solver=DenseNewton()).eval()
    new = _inputs(5, seed=9)
    union = torch.cat([_inputs(), new])
    with torch.no_grad():
        model(new)
        for lengthscale in (0.4, 1.5):  # without a change of mode
            model.covar_module.base_kernel.lengthscale = lengthscale
            kernel = _bounded_grid(gk.RBFKernel()).double()
            kernel.base_kernel.lengthscale = lengthscale
            assert_close(model(new).mean, _dense_mean(model, kernel(union, union).to_dense()), "posterior")


def test_a_copy_of_a_model_with_inducing_points_predicts_the_same():
    _, model = _pair("inducing points")
    x = _inputs(5, seed=9)
    with torch.no_grad():
        expected = model(x).mean
        twin = copy.deepcopy(model)
        twin.set_train_data(targets=model.train_targets)  # the posterior is found again
        assert_close(twin(x).mean, expected, "posterior")


def test_inducing_points_have_one_prior_for_learning_and_one_for_predictions():
    likelihood = _gaussian()
    model = _model(NonConjugateGP, "inducing points", _targets(_inputs()), likelihood, solver=SOLVER)
    low_rank = model.train().solution
    complete = model.eval().solution
    assert not torch.allclose(low_rank.representer_weights, complete.representer_weights)
    exact = _model(gpytorch.models.ExactGP, "inducing points", _targets(_inputs()), _gaussian()).eval()
    x = _inputs(5, seed=9)
    with torch.no_grad():
        assert_close(model(x).mean, exact(x).mean, "posterior", dtype=torch.float32)


def test_the_loss_of_inducing_points_is_that_of_gpytorch():
    values = []
    for base, make in (
        (NonConjugateGP, partial(ComputationAwareELBO, initialise_kernel=False)),
        (gpytorch.models.ExactGP, gpytorch.mlls.ExactMarginalLogLikelihood),
    ):
        likelihood = _gaussian()
        options = {"solver": SubspaceNewton(tolerance=1e-10, covariance_rank=ROWS)} if base is NonConjugateGP else {}
        model = _model(base, "inducing points", _targets(_inputs()), likelihood, **options).train()
        value = make(likelihood, model)(model(_inputs()), model.train_targets)
        value.backward()
        values.append((value, model.covar_module.inducing_points.grad))
    assert_close(values[0][0], values[1][0], "posterior", dtype=torch.float32)
    assert_close(values[0][1], values[1][1], "posterior", dtype=torch.float32)


def test_the_diagonal_of_inducing_points_is_there_once():
    """Equal rows are other rows; a row with itself has the whole variance."""
    x = _inputs(6)
    kernel = gk.InducingPointKernel(_rbf(), _inputs(3, seed=5), BernoulliLikelihood()).double()
    for mode in (True, False):  # no Gaussian noise: one prior
        kernel.train(mode)
        itself, other = evaluate_kernel(kernel, x, x, 1), evaluate_kernel(kernel, x, x.clone(), 1)
        assert_close(itself.diagonal(dim1=1, dim2=2)[0], kernel.base_kernel(x, diag=True))
        assert_close(evaluate_diagonal(kernel, x, 1)[0], kernel.base_kernel(x, diag=True))
        assert float(other.detach().diagonal(dim1=1, dim2=2).max()) < float(kernel.base_kernel.outputscale.detach())
        operator, block = BlockedOperator(kernel, x), make_inputs(6, 2)
        assert_close(operator.matmul(block)[0], itself[0] @ block)
        with torch.no_grad():
            assert_close(operator.matmul(block)[0], itself[0] @ block)


def test_as_many_rows_as_columns():
    """GPyTorch takes the diagonals by column for a square matrix."""
    kernel, x = gk.AdditiveStructureKernel(gk.RBFKernel(), num_dims=2).double(), _inputs(2)
    assert_close(evaluate_diagonal(kernel, x, 1), torch.full((1, 2), 2.0, dtype=torch.float64))


@pytest.mark.parametrize("layer", [torch.nn.Dropout(0.5), torch.nn.BatchNorm1d(2)])
def test_layers_with_modes_ask_for_another_posterior(layer):
    class Deep(NonConjugateGP):
        def __init__(self):
            super().__init__(_inputs(), _targets(_inputs()), _gaussian())
            self.mean_module, self.covar_module = gpytorch.means.ZeroMean(), _rbf()
            self.layer = copy.deepcopy(layer)

        def forward(self, x):
            z = self.layer(x)
            return MultivariateNormal(self.mean_module(z), self.covar_module(z))

    model = Deep().double().train()
    learning = model.solution.representer_weights
    assert not torch.equal(model.eval().solution.representer_weights, learning)


# ------------------------------------------------------------------ keywords of forward
class Shifted(NonConjugateGP):
    """Its ``forward`` takes a keyword."""

    def __init__(self):
        super().__init__(_inputs(), _targets(_inputs()), _gaussian(), solver=SOLVER)
        self.mean_module, self.covar_module = gpytorch.means.ZeroMean(), Louder()

    def forward(self, x, amplitude=1.0):
        return MultivariateNormal(self.mean_module(x), self.covar_module(x, amplitude=amplitude))


def test_keywords_of_a_call_reach_forward_in_both_modes():
    model, x = Shifted().double(), _inputs(4, seed=9)
    assert_close(model.train()(_inputs(), amplitude=3.0).variance, torch.full((ROWS,), 3.0, dtype=torch.float64))
    model.eval()
    plain, loud = model(x).variance, model(x, amplitude=9.0).variance
    reference = _dense_variance(Louder().double(), x, 9.0)
    assert_close(loud, reference, "posterior")
    assert_close(model(x).variance, plain, "posterior")
    assert_close(model(x, amplitude=torch.tensor(9.0)).variance, loud, "posterior")
    with gpytorch.settings.prior_mode(True):
        assert_close(model(x, amplitude=2.0).variance, torch.full((4,), 2.0, dtype=torch.float64))


def _dense_variance(kernel: gk.Kernel, x: Tensor, amplitude: float) -> Tensor:
    def k(a: Tensor, b: Tensor) -> Tensor:
        return amplitude * gk.RBFKernel.forward(kernel, a, b)

    noisy = k(_inputs(), _inputs()) + 0.1 * torch.eye(ROWS, dtype=torch.float64)
    cross = k(x, _inputs())
    return k(x, x).diagonal() - (cross @ torch.linalg.solve(noisy, cross.mT)).diagonal()


def test_keywords_that_are_tensors_have_derivatives():
    amplitude = torch.nn.Parameter(torch.tensor(2.0, dtype=torch.float64))
    kernel, x = Louder().double(), _inputs(5)
    prior = Prior.from_forward(lambda x: MultivariateNormal(x.new_zeros(5), kernel(x, amplitude=amplitude)), (x,), 1)
    kernel.requires_grad_(False)
    assert requires_grad(prior.kernel)
    block = make_inputs(5, 1)
    product = make_operator(prior.kernel, prior.features, kind="blocked").matmul(block)
    (slope,) = torch.autograd.grad(product.sum(), amplitude)
    assert_close(slope, (product / amplitude).sum())
    assert not requires_grad(snapshot(prior.kernel))


# ------------------------------------------------------------------ integers
class Tasks(NonConjugateGP):
    """GPyTorch's Hadamard multitask notebook."""

    def __init__(self, task: Tensor | None, y: Tensor | None, likelihood: gl.Likelihood):
        super().__init__(None if task is None else (_inputs(), task), y, likelihood, solver=SOLVER)
        self.mean_module, self.covar_module = gpytorch.means.ConstantMean(), gk.RBFKernel()
        self.task = gk.IndexKernel(num_tasks=3, rank=1)

    def forward(self, x, i):
        return MultivariateNormal(self.mean_module(x), self.covar_module(x).mul(self.task(i)))


def _tasks(rows: int, seed: int) -> Tensor:
    return torch.randint(3, (rows, 1), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("integers", [True, False])
@pytest.mark.parametrize("noisy", [True, False])
def test_hadamard_multitask(noisy, integers):
    noise = torch.tensor([0.05, 0.2, 0.5], dtype=torch.float64) if noisy else torch.full((3,), 0.1)
    likelihood = _gaussian()
    if noisy:
        likelihood = gl.HadamardGaussianLikelihood(num_tasks=3).double()
        likelihood.noise = noise
    convert = (lambda t: t) if integers else (lambda t: t.double())
    task, new = convert(_tasks(ROWS, 1)), convert(_tasks(6, 2))
    model = Tasks(task, _targets(_inputs()), likelihood).double().eval()
    x = _inputs(6, seed=9)

    def k(a: Tensor, i: Tensor, b: Tensor, j: Tensor) -> Tensor:
        table = model.task.covar_matrix.to_dense()
        return model.covar_module(a, b).to_dense() * table[i[:, 0].long()][:, j[:, 0].long()]

    with torch.no_grad():
        latent = model(x, new)
        system = k(_inputs(), task, _inputs(), task) + torch.diag(noise.double()[task[:, 0].long()])
        cross = k(x, new, _inputs(), task)
        variance = k(x, new, x, new).diagonal() - (cross @ torch.linalg.solve(system, cross.mT)).diagonal()
        assert_close(latent.mean, cross @ torch.linalg.solve(system, model.train_targets), "posterior")
        assert_close(latent.variance, variance, "posterior")
        assert_close(model.predict((x, new)).variance, variance + noise.double()[new[:, 0].long()], "posterior")
    for objective in ("elbo", "predictive"):
        result = itergp.fit(model, objective=objective, max_iterations=2)
        assert torch.isfinite(result.solution.representer_weights).all()


def test_hadamard_likelihood_needs_the_task():
    likelihood = gl.HadamardGaussianLikelihood(num_tasks=2).double()
    with pytest.raises(
        InputError, match=r"one input of a single column with the task of each row, 0\.\.1\. Got 0 such"
    ):
        NonConjugateGP(_inputs(), _targets(_inputs()), likelihood)
    calculus = as_likelihood(likelihood, (_inputs(), _tasks(ROWS, 1).clamp_max(1)))
    with pytest.raises(InputError, match=r"needs the task of all rows\. Got 7 rows"):
        calculus.derivatives(torch.zeros(7, 1, dtype=torch.float64), torch.zeros(7, dtype=torch.float64))
    with pytest.raises(InputError, match=r"needs the task of new rows\. Got none\. Call model\.predict"):
        calculus.predictive(torch.zeros(ROWS, 1).double(), torch.zeros(ROWS, 1, 1).double())
    rows = torch.tensor([3, 1, 2])
    assert torch.equal(calculus.take(rows)._tasks, calculus._tasks[rows])
    column = gl.HadamardGaussianLikelihood(num_tasks=2, task_feature_index=1).double()
    x = torch.cat([_inputs()[:, :1], (_inputs()[:, 1:] > 0.5).double()], -1)
    assert torch.equal(as_likelihood(column, (x,)).observation_at((x,))["task"], x[:, 1].long())


@pytest.mark.parametrize("objective", ["elbo", "predictive"])
def test_index_kernels_learn(objective):
    x = torch.cat([_inputs(), _tasks(ROWS, 1).double()], -1)

    kernel = gk.RBFKernel(active_dims=[0, 1]) * gk.IndexKernel(num_tasks=3, active_dims=[2])
    model = SimpleGP(x, (_targets(x) > 0).long(), BernoulliLikelihood(), mean=gpytorch.means.ZeroMean(), kernel=kernel)
    model = model.double()
    factor, path = model.covar_module.kernels[1].covar_factor, []
    itergp.fit(model, objective=objective, max_iterations=2, callback=lambda _: path.append(factor.detach().clone()))
    assert not torch.equal(path[0], path[-1])


@pytest.mark.parametrize("batch", [(), (2,)])
def test_index_kernels_are_their_table(batch):
    kernel = gk.IndexKernel(num_tasks=4, rank=2, batch_shape=torch.Size(batch)).double()
    rows, cols = torch.tensor([[0.0], [3.0], [1.0]]).double(), torch.tensor([[2.0], [0.0]]).double()
    count = batch[0] if batch else 1
    table = kernel.covar_matrix.to_dense().reshape(count, 4, 4)
    assert_close(evaluate_kernel(kernel, rows, cols, count), table[:, [0, 3, 1]][:, :, [2, 0]])
    assert_close(evaluate_diagonal(kernel, rows, count), table.diagonal(dim1=1, dim2=2)[:, [0, 3, 1]])
    for wrong in (-1.0, 4.0, 1.5):
        bad = torch.full((1, 1), wrong, dtype=torch.float64)
        with pytest.raises(InputError, match=rf"num_tasks=4 must hold whole numbers 0\.\.3\. Got {wrong:g}"):
            evaluate_kernel(kernel, rows, bad, count)


@pytest.mark.parametrize("wrong", [3.0, -1.0, 1.5])
@pytest.mark.parametrize(
    "act",
    [
        lambda model, good, bad: (
            Tasks(bad, model.train_targets, _gaussian()).double().eval().predict((_inputs(), good))
        ),
        lambda model, good, bad: model.eval().predict((_inputs(), bad)),
        lambda model, good, bad: model.eval()(_inputs(), bad).mean,
        lambda model, good, bad: Tasks(bad, model.train_targets, _gaussian()).double()(_inputs(), bad),
        lambda model, good, bad: itergp.fit(Tasks(bad, model.train_targets, _gaussian()).double(), max_iterations=1),
        lambda model, good, bad: Tasks(None, None, _gaussian()).double().eval()(_inputs(), bad),
    ],
    ids=["training", "prediction", "call", "training mode", "fit", "prior"],
)
def test_tasks_outside_of_the_table(act, wrong, monkeypatch):
    good = _tasks(ROWS, 1).double()
    bad = good.clone()
    bad[5] = wrong
    model = Tasks(good, _targets(_inputs()), _gaussian()).double()
    message = rf"num_tasks=3 must hold whole numbers 0\.\.2\. Got {wrong:g}\. .* raise num_tasks"
    for product in (LinearOperator.mul, LinearOperator.__mul__):
        monkeypatch.setattr(
            Tasks,
            "forward",
            lambda m, x, i, times=product: MultivariateNormal(m.mean_module(x), times(m.covar_module(x), m.task(i))),
        )
        with pytest.raises(InputError, match=message):
            act(model, good, bad)
    assert "forward" not in vars(model.task), "the kernel is as it was"


def test_a_column_outside_of_the_table_in_training_mode():
    kernel = gk.RBFKernel(active_dims=[0, 1]) * gk.IndexKernel(num_tasks=3, active_dims=[2])
    x = torch.cat([_inputs(), torch.full((ROWS, 1), 1.5, dtype=torch.float64)], -1)
    model = SimpleGP(x, _targets(x), _gaussian(), kernel=kernel).double().train()
    with pytest.raises(InputError, match=r"num_tasks=3 must hold whole numbers 0\.\.2\. Got 1\.5"):
        model(x)


def test_scaled_index_kernels_of_several_functions():
    x = torch.arange(12).remainder(3).double().unsqueeze(-1)
    kernel = gk.ScaleKernel(
        gk.IndexKernel(num_tasks=3, rank=1, batch_shape=torch.Size([3]), active_dims=[0]), batch_shape=torch.Size([3])
    )
    model = (
        SimpleGP(x, torch.arange(12) % 3, CategoricalLikelihood(3), kernel=kernel, solver=DenseNewton()).double().eval()
    )
    solution = model.condition()
    expected = kernel(x).to_dense() @ solution.representer_weights.mT.unsqueeze(-1)
    assert_close(solution.latent_values, expected.squeeze(-1).mT.detach(), "posterior")


def test_integer_inputs_come_after_real_ones():
    task = _tasks(ROWS, 1)
    with pytest.raises(
        InputError, match=r"The first of `train_inputs` must be floating point\. Got torch.int64\. Put int"
    ):
        NonConjugateGP((task, _inputs()), _targets(_inputs()), _gaussian())
    model = NonConjugateGP((_inputs(), task.int()), _targets(_inputs()), _gaussian())
    assert model.train_inputs[1].dtype == torch.int64
    assert model.float().train_inputs[1].dtype == torch.int64


# ------------------------------------------------------------------ grids of GridKernel
def test_a_kernel_on_a_grid():
    grid = torch.linspace(0, 1, ROWS, dtype=torch.float64).unsqueeze(-1)
    y = _targets(grid.expand(-1, 2))
    found = []
    for base in (gpytorch.models.ExactGP, NonConjugateGP):

        class Model(base):
            def __init__(self):
                super().__init__(grid, y, _gaussian())
                self.mean_module = gpytorch.means.ZeroMean()
                self.covar_module = gk.GridKernel(gk.RBFKernel(), grid=grid)

            def forward(self, x):
                return MultivariateNormal(self.mean_module(x), self.covar_module(x))

        model = Model().double().eval()
        with torch.no_grad():
            found.append([model(x).mean for x in (grid, grid[:5] + 0.01)])
    for actual, expected in zip(found[1], found[0], strict=True):
        assert_close(actual, expected, "posterior", dtype=torch.float32)


def test_a_grid_whose_kernel_is_no_product_is_refused():
    lines = [torch.linspace(0, 1, 5, dtype=torch.float64)] * 2
    x = gpytorch.utils.grid.create_data_from_grid(lines)

    def prior(base: gk.Kernel) -> Prior:
        kernel = gk.GridKernel(base.double(), grid=lines)
        return Prior.from_forward(lambda x: MultivariateNormal(x.new_zeros(len(x)), kernel(x)), (x,), 1)

    entries = evaluate_kernel(prior(gk.RBFKernel()).kernel, x, x, 1)[0]
    assert_close(entries, gk.RBFKernel().double()(x).to_dense())
    with pytest.raises(InputError, match=r"must be a product of kernels of one dimension.*Got MaternKernel"):
        prior(gk.MaternKernel())


# ------------------------------------------------------------------ what cannot be
def _line() -> gk.Kernel:
    return gk.GridInterpolationKernel(gk.RBFKernel(), grid_size=20, num_dims=1)


def test_blocks_of_a_product_over_dimensions_of_grids():
    x, kernel = _inputs(), gk.ScaleKernel(gk.ProductStructureKernel(_line(), num_dims=2)).double().eval()
    lines = kernel.base_kernel.base_kernel(x, x, last_dim_is_batch=True).to_dense().detach()
    whole = kernel.outputscale.detach() * lines.prod(-3)
    assert_close(evaluate_kernel(kernel, x[:7], x, 1)[0].detach(), whole[:7], "posterior")
    assert_close(evaluate_diagonal(kernel, x, 1)[0].detach(), whole.diagonal(), "posterior")


@pytest.mark.filterwarnings("ignore:A not p.d.:linear_operator.utils.warnings.NumericalWarning")
def test_products_of_structured_matrices_of_many_rows_are_exact():
    x = _inputs(801)
    first, second = (
        gk.GridInterpolationKernel(gk.MaternKernel(nu=0.5), grid_size=200, num_dims=1, active_dims=[d]).double().eval()
        for d in range(2)
    )
    for kernel in (first, second):
        kernel.base_kernel.lengthscale = 0.02
    with torch.no_grad():
        prior = Prior.from_forward(
            lambda x: MultivariateNormal(torch.zeros_like(x[:, 0]), first(x) * second(x)), (x,), 1
        )
        entries = prior.kernel(prior.features, prior.features).to_dense()
        expected = first(x).to_dense() * second(x).to_dense()
    assert float((entries - expected).abs().max()) < 1e-7  # GPyTorch's jitter


def test_a_grid_that_moves_has_one_set_of_inputs():
    kernel = _line()

    def forward(x: Tensor) -> MultivariateNormal:
        return MultivariateNormal(torch.zeros_like(x[:, 0]), kernel(x) + kernel(0.5 * x))

    with pytest.raises(InputError, match="must be called with one set of inputs"):
        Prior.from_forward(forward, (_inputs()[:, :1],), 1)


@pytest.mark.parametrize("make", [gk.CosineKernel, gk.PeriodicKernel, partial(gk.PiecewisePolynomialKernel, q=2)])
def test_blocks_of_kernels_of_distances_far_from_zero(make):
    x = 1000.0 + _inputs().float()  # of which distances from products would have no digits left
    kernel = make().eval()
    exact = make().double().eval()(x.double()).to_dense().detach()
    for rows in (x[:7], x.clone()):
        block = evaluate_kernel(kernel, rows, x, 1)[0].detach()
        assert float((block - exact[: rows.shape[0]]).abs().max()) < 2e-3  # inputs are rounded to 6e-5 of a unit


@pytest.mark.parametrize("batch", [False, True])
def test_float32_inputs_many_lengthscales_apart_in_sums_and_products(batch):
    shape = torch.Size([2] if batch else [])
    kernels = (
        gk.RBFKernel(batch_shape=shape),
        gk.MaternKernel(nu=1.5, batch_shape=shape),
        gk.RQKernel(batch_shape=shape),
    )
    x = 300.0 * _inputs().float()
    entries = evaluate_kernel((kernels[0] * kernels[1] + kernels[2]).eval(), x, x.clone(), shape.numel()).detach()
    assert entries.dtype == torch.float32
    assert float((entries.diagonal(dim1=-1, dim2=-2) - 2.0).abs().max()) < 1e-5  # of a row with an equal one


def test_distances_from_differences_have_derivatives_of_any_order():
    first, second = (_inputs(rows, seed).requires_grad_() for rows, seed in ((5, 1), (7, 2)))
    assert torch.autograd.gradcheck(exact_distances, (first, second))
    assert torch.autograd.gradgradcheck(exact_distances, (first, second))
    distances = exact_distances(torch.cat([first, second]), second)
    assert all(bool(g.isfinite().all()) for g in torch.autograd.grad(distances.sum(), (first, second)))
    assert bool((distances[5:].diagonal() == 0.0).all())


def test_kernel_columns_have_the_variances_of_their_rows():
    x = torch.cat([_inputs(20), _inputs(20)]).float()  # where equal rows have not quite the same covariance
    operator = make_operator(gk.RBFKernel() + gk.MaternKernel(nu=1.5), 50.0 * x, kind="blocked")
    rows, found = torch.tensor([3, 21, 7]), []
    operator.with_columns(rows, lambda part, entries: found.append((part.start, entries)))
    columns = torch.cat([entries for _, entries in sorted(found, key=lambda pair: pair[0])], -2)
    assert torch.equal(columns[0, rows].diagonal(), operator.diagonal()[0, rows].detach())


def test_kernels_that_draw_anew_in_every_call_are_refused():
    class Noisy(gk.RBFKernel):
        def forward(self, x1, x2, diag=False, **params):
            return super().forward(x1, x2, diag=diag, **params) * torch.rand(())

    kernel, x = Noisy().double(), _inputs(6)
    with pytest.raises(InputError, match=r"must be the same in every call\. Got one that differs"):
        Prior.from_forward(lambda x: MultivariateNormal(x.new_zeros(6), kernel(x)), (x,), 1)


def test_a_whole_covariance_must_fit(monkeypatch):
    monkeypatch.setattr("itergp.operators.prior.free_memory", lambda device: 1000)
    kernel, x = _rbf().double(), _inputs(20)
    with pytest.raises(
        InputError, match=r"must fit into 50% of the free memory.*Got 20 rows.*k1 \* k2 with active_dims"
    ):
        Prior.from_forward(lambda x: MultivariateNormal(x.new_zeros(20), kernel(x) * kernel(x)), (x,), 1)


def test_covariances_that_are_not_known_are_refused():
    matrix = torch.arange(12.0).view(3, 4)
    kernel = TabulatedKernel(matrix)  # rows 1 to 3 of 4
    numbers = torch.arange(5.0).unsqueeze(-1)
    assert_close(evaluate_kernel(kernel, numbers[1:3], numbers[:4], 1)[0], matrix[:2])
    assert_close(evaluate_kernel(kernel, numbers[:1], numbers[2:4], 1)[0], matrix[1:, :1].mT)
    assert_close(evaluate_kernel(kernel, numbers[[3, 1]], numbers[[2, 0]], 1)[0], matrix[[2, 0]][:, [2, 0]])
    for first, second in ((0, 0), (1, 4), (4, 1)):
        with pytest.raises(InputError, match=r"known between training inputs and one set of new inputs"):
            evaluate_kernel(kernel, numbers[[first]], numbers[[second]], 1)
    with pytest.raises(InputError, match=r"known between training inputs and one set of new inputs"):
        _pair("times")[1].decompose_uncertainty(_inputs(3, seed=9))


def test_several_latent_functions_with_a_whole_covariance():
    x, y = _inputs(), torch.arange(ROWS) % 3

    class Model(NonConjugateGP):
        def __init__(self, whole: bool):
            super().__init__(x, y, CategoricalLikelihood(3), solver=SOLVER)
            self.mean_module = gpytorch.means.ZeroMean(batch_shape=torch.Size([3]))
            self.covar_module = gk.RBFKernel(batch_shape=torch.Size([3]))
            self.covar_module.lengthscale = torch.tensor([0.2, 0.4, 0.8]).view(3, 1, 1)
            self.whole = whole

        def forward(self, x):
            covariance = self.covar_module(x)
            return MultivariateNormal(self.mean_module(x), covariance.to_dense() if self.whole else covariance)

    new = _inputs(5, seed=9)
    whole, lazy = (Model(flag).double().eval() for flag in (True, False))
    with torch.no_grad():
        assert_close(whole(new).mean, lazy(new).mean, "posterior")
        assert_close(whole(new).covariance_matrix, lazy(new).covariance_matrix, "posterior")


# ------------------------------------------------------------------ GPyTorch's habits
def test_a_fantasy_model_has_seen_other_rows():
    _, model = _pair("rbf")
    x, y = _inputs(3, seed=7), torch.tensor([0.1, -0.2, 0.3], dtype=torch.float64)
    with torch.no_grad():
        before = model(x).mean
        fantasy = model.get_fantasy_model(x, y)
        reference = _dense_mean_of(torch.cat([_inputs(), x]), torch.cat([_targets(_inputs()), y]), x)
        assert_close(fantasy(x).mean, reference, "posterior")
        assert torch.equal(model(x).mean, before)
    assert model.get_fantasy_model(x, y.expand(2, 3)).data_batch_shape == (2,)
    with pytest.raises(InputError, match=r"and for no other\. Got some with GaussianLikelihood"):
        model.get_fantasy_model(x, y, noise=y)


def _dense_mean_of(rows: Tensor, y: Tensor, new: Tensor) -> Tensor:
    kernel = _rbf().double()
    with torch.no_grad():
        system = kernel(rows).to_dense() + 0.1 * torch.eye(len(rows), dtype=torch.float64)
        return kernel(new, rows).to_dense() @ torch.linalg.solve(system, y)


def test_training_inputs_have_derivatives_in_objectives_and_predictions():
    likelihood = _gaussian()
    model = _model(NonConjugateGP, "rbf", _targets(_inputs()), likelihood)
    x = _inputs().requires_grad_(True)
    model.set_train_data(x)
    model.train()
    ComputationAwareELBO(likelihood, model)(model(x), model.train_targets).backward()
    assert float(x.grad.abs().max()) > 0.0
    model.eval()
    model.solver = DenseNewton()
    prediction = model(_inputs(3, seed=9))
    assert prediction.mean.requires_grad
    with torch.no_grad():
        assert_close(model(_inputs(3, seed=9)).mean, prediction.mean, "posterior")
        assert_close(model(_inputs(3, seed=9)).covariance_matrix, prediction.covariance_matrix, "posterior")


# ------------------------------------------------------------------ operators of one's own
class Straightforward(KernelOperator):
    """The product as one would write it down."""

    def _matmul(self, block: Tensor) -> Tensor:
        return self.kernel(self.inputs).to_dense() @ block.expand(self.num_kernels, *block.shape[-2:])


def test_an_operator_of_ones_own():
    y = _targets(_inputs())
    own = _model(NonConjugateGP, "rational quadratic", y, _gaussian(), solver=SOLVER, operator=Straightforward).eval()
    usual = _model(NonConjugateGP, "rational quadratic", y, _gaussian(), solver=SOLVER).eval()
    x = _inputs(4, seed=9)
    with torch.no_grad():
        assert_close(own(x).mean, usual(x).mean, "posterior")
    assert isinstance(own.conditioned.operator, Straightforward)
    assert own.plan().operator == "Straightforward"
    with pytest.raises(
        InputError, match=r"`operator` must be one of .*or pass a subclass of itergp\.operators\.Kernel"
    ):
        _model(NonConjugateGP, "rbf", y, _gaussian(), operator=Tensor)


# ------------------------------------------------------------------ derivatives of products
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("smoothness", [0.5, 1.5, 2.5, math.inf])
def test_second_derivatives_of_radial_products(smoothness, symmetric):
    rows = _inputs(5, seed=1).unsqueeze(0).requires_grad_(True)
    cols = rows if symmetric else _inputs(6).unsqueeze(0).requires_grad_(True)
    scale = torch.tensor([1.7], dtype=torch.float64, requires_grad=True)
    stretch = torch.ones(1, dtype=torch.float64, requires_grad=True)
    block = make_inputs(cols.shape[1], 2, seed=2).unsqueeze(0).requires_grad_(True)

    def product(rows, cols, scale, block, stretch):
        columns = rows if symmetric else cols
        return radial_product(rows, columns, scale, block, smoothness, symmetric=symmetric, stretch=stretch)

    assert torch.autograd.gradgradcheck(product, (rows, cols, scale, block, stretch), atol=1e-6)


@pytest.mark.parametrize("smoothness", [0.5, 1.5, 2.5, math.inf])
def test_derivatives_of_profiles(smoothness):
    squared = torch.tensor([0.3, 1.0, 4.0], dtype=torch.float64)
    for order in range(4):
        step = 1e-5
        ends = [profile_derivative(squared + e, smoothness, order) for e in (step, -step)]
        assert torch.allclose(
            (ends[0] - ends[1]) / (2 * step), profile_derivative(squared, smoothness, order + 1), rtol=1e-5
        )


def test_recomputation_holds_one_block_and_gives_derivatives_of_any_order():
    x = make_inputs(6, 1).squeeze(-1).requires_grad_(True)
    again = Recomputation()
    parts = [again(lambda i=i: (x[i : i + 2].sin() * x.sum()).exp()) for i in (0, 2, 4)]
    direct = (x.sin() * x.sum()).exp()
    (slope,) = torch.autograd.grad(torch.cat(parts).sum(), x, create_graph=True)
    (expected,) = torch.autograd.grad(direct.sum(), x, create_graph=True)
    assert_close(slope, expected)
    (second,) = torch.autograd.grad(slope.square().sum(), x)
    (wanted,) = torch.autograd.grad(expected.square().sum(), x)
    assert_close(second, wanted)


def test_recomputation_frees_a_block_before_the_next():
    """Also while the graph is kept for other derivatives."""
    x = make_inputs(6, 1).squeeze(-1).requires_grad_(True)
    again, seen, alive = Recomputation(), [], []

    def part(i: int) -> Tensor:
        alive.append(sum(held() is not None for held in seen))
        between = x[i : i + 2].sin()
        seen.append(weakref.ref(between.untyped_storage()))
        return between.exp() * between

    total = torch.cat([again(lambda i=i: part(i)) for i in (0, 2, 4)]).sum()
    total.backward(retain_graph=True)
    assert alive == 6 * [0]
    assert sum(held() is not None for held in seen) == 1
    assert_close(x.grad, x.cos() * x.sin().exp() * (1.0 + x.sin()))


def test_what_differs_between_evaluations_has_no_derivatives():
    x, calls = torch.ones(2, requires_grad=True), []

    def changing() -> Tensor:
        calls.append(None)
        return x.exp() if len(calls) == 1 else x * 2.0

    value = Recomputation()(changing)
    with pytest.raises(InputError, match=r"must do the same in every call\. Got one that kept 1 tensors"):
        value.sum().backward()


# ------------------------------------------------------------------ groups of rows at once, as neighbours need them
class OfMatrices(gk.Kernel):
    """A kernel of a user's that expects two matrices."""

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **params) -> Tensor:
        if diag:
            return (x1 - x2).square().sum(-1).neg().exp()
        return (x1.unsqueeze(1) - x2.unsqueeze(0)).square().sum(-1).neg().exp()


class OfBatches(OfMatrices):
    """One that takes batches of matrices too."""

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **params) -> Tensor:
        return super().forward(x1, x2, diag=True) if diag else torch.cdist(x1, x2).square().neg().exp()


GROUPS = {
    "radial": (_rbf, True),
    "rational quadratic": (gk.RQKernel, True),
    "a sum of products": (
        lambda: gk.RBFKernel(active_dims=[0]) * gk.RQKernel(active_dims=[1]) + gk.LinearKernel(),
        True,
    ),
    "a grid": (lambda: gk.GridInterpolationKernel(gk.RBFKernel(), 20, num_dims=2), True),
    "inducing points": (lambda: gk.InducingPointKernel(gk.RBFKernel(), _inputs()[:5], _gaussian()), False),
    "of matrices": (OfMatrices, False),
    "of batches": (OfBatches, True),
}


@pytest.mark.parametrize("name", GROUPS)
def test_neighbours_are_where_entries_of_groups_can_be_had(name):
    make, expected = GROUPS[name]
    x = make_inputs(60, 2, seed=3)

    def model_of(**options):
        options |= {"mean": gpytorch.means.ZeroMean(), "kernel": make()}
        return SimpleGP(x, (x[:, 0] > 0).long(), BernoulliLikelihood(), **options).double().eval()

    model = model_of(solver=SubspaceNewton(covariance_rank=4, num_neighbours=5))
    assert model.conditioned.operator.evaluates_groups is expected
    exact = model_of()
    new = make_inputs(4, 2, seed=4)
    with torch.no_grad():
        assert (model.solution.local is not None) is expected
        assert bool((model(new).variance >= exact(new).variance - 1e-6).all())
        assert torch.isfinite(model.predict(new).probs).all()


def test_a_covariance_that_is_evaluated_whole_has_no_neighbours():
    x = make_inputs(60, 2, seed=3)

    class Model(NonConjugateGP):
        def __init__(self, whole: bool):
            solver = SubspaceNewton(covariance_rank=8, num_neighbours=5 if whole else 0, tolerance=1e-10)
            options = {"solver": solver, "approximation": "laplace"}
            super().__init__(x, (x[:, 0] > 0).long(), BernoulliLikelihood(), **options)
            self.mean_module, self.whole, self.covar_module = gpytorch.means.ZeroMean(), whole, _rbf()

        def forward(self, x):
            covariance = self.covar_module(x)
            return MultivariateNormal(self.mean_module(x), covariance.to_dense() if self.whole else covariance)

    whole, plain = (Model(flag).double().eval() for flag in (True, False))
    new = make_inputs(4, 2, seed=4)
    with torch.no_grad():
        assert not whole.conditioned.operator.evaluates_groups
        assert whole.solution.local is None
        assert_close(whole(new).mean, plain(new).mean, "posterior")
    for objective in ("elbo", "predictive"):
        itergp.fit(whole, objective=objective, max_iterations=1, calibrate=True)


def test_a_posterior_with_neighbours_serves_a_prior_that_is_evaluated_whole():
    x = make_inputs(60, 2, seed=3)

    class Model(NonConjugateGP):
        def __init__(self):
            solver = SubspaceNewton(covariance_rank=8, num_neighbours=5, tolerance=1e-10)
            super().__init__(x, (x[:, 0] > 0).long(), BernoulliLikelihood(), solver=solver)
            self.mean_module, self.covar_module = gpytorch.means.ZeroMean(), _rbf()

        def forward(self, x):
            centred = x - x.mean(0)  # of all rows, whatever they are
            return MultivariateNormal(self.mean_module(x), self.covar_module(centred))

    model, new = Model().double(), make_inputs(4, 2, seed=4)
    with torch.no_grad():
        found = model.train().solution
        assert found.local is not None
        seen = model.eval()(new)
        assert model.solution is found
        assert isinstance(model.conditioned.operator.kernel, TabulatedKernel)
        plain = Model().double().eval()
        expected = plain(new)
        assert plain.solution.local is None
    assert bool((seen.variance >= 0.0).all())
    assert_close(seen.mean, expected.mean, "posterior", dtype=torch.float32)

"""What cannot be used is refused before any heavy work, saying what must hold, what was got and what to do."""

from __future__ import annotations

import math

import gpytorch
import gpytorch.likelihoods as gl
import numpy as np
import pytest
import torch
from gpytorch.distributions import MultivariateNormal
from gpytorch.kernels import Kernel, MaternKernel, PolynomialKernel, RBFKernel, ScaleKernel
from helpers import (
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

from itergp import InputError, ItergpWarning, SolverError
from itergp.likelihoods import BernoulliLikelihood, CategoricalLikelihood, GaussianLikelihood, PoissonLikelihood
from itergp.models import GP, NonConjugateGP
from itergp.solvers import DenseNewton, IterNCGP, LinearTimeNewton, SubspaceNewton

NAN, INF = math.nan, math.inf
ROWS = 12
X, Y = make_binary(ROWS, dtype=torch.float32)


def _with(values: torch.Tensor, value: float, *where: int) -> torch.Tensor:
    values = values.clone()
    values[where] = value
    return values


# ----------------------------------------------------------------- constructor
BAD_INPUTS = {
    "nan": (
        _with(X, NAN, 3, 0),
        r"must be finite\. Got NaN or infinite values in 1 of 12 row\(s\)\. Drop those rows or impute",
    ),
    "infinity": (_with(_with(X, INF, 3, 0), -INF, 5, 1), r"must be finite\. Got NaN or infinite values in 2 of 12"),
    "no rows": (X[:0], r"must have at least one row\. Got none\. Check how the data were selected"),
    "three dimensions": (
        X[None],
        r"and `train_targets` must be as many data sets: targets of shape \(1, 12\) .*Got \(12,\)\.",
    ),
    "a number": (torch.tensor(1.0), r"must have shape \(N, D\), .* Got \(\)"),
    "integers": (X.long(), r"must be floating point\. Got torch\.int64\. Call \.float\(\) or \.double\(\)"),
    "a list": (
        X.tolist(),
        r"must be a torch tensor or a tuple of them\. Got a list of list\. Use torch\.as_tensor\(x\)",
    ),
    "a list of numbers": ([1.0, 2.0], r"must be a torch tensor or a tuple of them\. Got a list of float\. Use"),
    "an array of text": (np.array([["a"], ["b"]]), r"must be numbers\. Got ndarray of <U1\. Encode text"),
    "an array of integers": (np.ones((12, 2), dtype=int), r"must be floating point\. Got torch\.int64"),
    "arrays of two kinds": ((X.numpy(), X.double()), r"must share rows, dtype and device\."),
    "a float": (1.0, r"must be a torch tensor or a tuple of them\. Got float\."),
    "none": (None, r"must be a torch tensor or a tuple of them\. Got NoneType\."),
    "an empty tuple": ((), r"must be a torch tensor or a tuple of them\. Got nothing\."),
    "two dtypes": (
        (X, X.double()),
        r"must share rows, dtype and device\. Got \(\(12, 2\), torch\.float32, cpu\) and \(\(12, 2\), torch\.float64, cpu\)",
    ),
    "two numbers of rows": (
        (X, X[:5]),
        r"must share rows, dtype and device\. Got \(\(12, 2\), .* and \(\(5, 2\), .* Convert",
    ),
    "two devices": ((X, X.to("meta")), r"must share rows, dtype and device\. Got .*cpu\) and .*meta\)"),
}


@pytest.mark.parametrize("kind", BAD_INPUTS)
def test_training_inputs(kind):
    x, match = BAD_INPUTS[kind]
    with pytest.raises(InputError, match=f"`train_inputs` {match}"):
        SimpleGP(x, Y, BernoulliLikelihood())


BAD_TARGETS = {
    "fewer rows": (
        Y[:5],
        BernoulliLikelihood,
        r"must have the same number of rows\. Got 12 and 5\. Select the same rows",
    ),
    "no rows": (Y[:0], BernoulliLikelihood, r"must have the same number of rows\. Got 12 and 0"),
    "nan": (_with(Y.float(), NAN, 3), BernoulliLikelihood, r"`train_targets` must be finite\. Got 1 NaN or infinite"),
    "infinity": (
        _with(Y.float(), INF, 3),
        GaussianLikelihood,
        r"`train_targets` must be finite\. Got 1 NaN or infinite",
    ),
    "outside the support": (
        _with(Y, 2, 3),
        BernoulliLikelihood,
        r"must be labels 0 or 1 .*Got values \[2\]\. Re-encode",
    ),
    "negative": (_with(Y, -1, 3), PoissonLikelihood, r"must be counts 0, 1, 2, \.\.\. .*Got -1\. Check the column"),
    "too large": (
        _with(Y, 7, 3),
        lambda: CategoricalLikelihood(3),
        r"must be integers 0\.\.C-1 for CategoricalLikelihood\. Got values \[7\] with num_classes=3\. Re-encode",
    ),
    "not integers": (_with(Y.float(), 0.5, 3), lambda: CategoricalLikelihood(3), r"Got the non-integer 0\.5\. Encode"),
    "one-hot": (
        torch.eye(12),
        lambda: CategoricalLikelihood(12),
        r"shape \(N,\) .*Got \(12, 12\)\. .*not a one-hot row",
    ),
    "a column": (Y[:, None], BernoulliLikelihood, r"must have shape \(N,\) .*Got \(12, 1\)\. Pass one target per row"),
    "a number": (torch.tensor(1), BernoulliLikelihood, r"must have shape \(N,\) .*Got \(\)"),
    "a list": (
        Y.tolist(),
        BernoulliLikelihood,
        r"`train_targets` must be a torch tensor\. Got list\. Use torch\.as_tensor\(y\)",
    ),
    "text": (np.array(["a"] * 12), BernoulliLikelihood, r"`train_targets` must be numbers\. Got ndarray of <U1\."),
    "none": (None, BernoulliLikelihood, r"`train_targets` must be a torch tensor\. Got NoneType\."),
    "another dtype": (
        Y.double(),
        GaussianLikelihood,
        r"must share a dtype\. Got torch\.float32 and torch\.float64\. Convert one with \.to\(dtype\)",
    ),
    "another device": (Y.to("meta"), BernoulliLikelihood, r"must be on one device\. Got cpu and meta\. Move one with"),
    "gpytorch's": (_with(Y, 2, 3), gl.BernoulliLikelihood, r"must be labels 0 or 1 .*Got values \[2\]"),
}


@pytest.mark.parametrize("kind", BAD_TARGETS)
def test_training_targets(kind):
    y, likelihood, match = BAD_TARGETS[kind]
    with pytest.raises(InputError, match=match):
        SimpleGP(X, y, likelihood())


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"approximation": "mcmc"}, r"`approximation` must be one of \('variational', 'laplace'\)\. Got 'mcmc'"),
        ({"memory_budget": 0}, r"`memory_budget` must be a positive whole number or None\. Got 0\. Leave it out"),
        ({"memory_budget": -5}, r"`memory_budget` must be a positive whole number or None\. Got -5\."),
        (
            {"operator": "fast"},
            r"`operator` must be one of \('auto', 'dense', 'blocked', 'keops', 'scan', 'fourier', 'sharded'\)\. Got 'fast'",
        ),
    ],
)
def test_options(options, match):
    with pytest.raises(InputError, match=match):
        SimpleGP(X, Y, BernoulliLikelihood(), **options)


@pytest.mark.parametrize(
    "likelihood", ["bernoulli", None, BernoulliLikelihood, gl.LikelihoodList(gl.GaussianLikelihood())]
)
def test_likelihoods(likelihood):
    with pytest.raises(InputError, match=r"`likelihood` must be (an itergp or GPyTorch likelihood|one likelihood of)"):
        SimpleGP(X, Y, likelihood)


def test_messages_name_at_most_a_few_values():
    with pytest.raises(InputError, match=r"Got values \[3, 4, 5, 6, 7, 8, 9, 10\] with") as error:
        SimpleGP(make_inputs(500).float(), torch.arange(500), CategoricalLikelihood(3))
    assert len(str(error.value)) < 300
    with pytest.raises(InputError, match="Got") as error:
        SimpleGP([1.0] * 500, torch.arange(500), CategoricalLikelihood(3))
    assert len(str(error.value)) < 300


# ------------------------------------------------------------- one class only
@pytest.mark.parametrize("approximation", ["laplace", "variational"])
@pytest.mark.parametrize(
    "likelihood",
    [
        lambda: BernoulliLikelihood(),
        lambda: BernoulliLikelihood("probit"),
        lambda: CategoricalLikelihood(3),
        lambda: gl.BernoulliLikelihood(),
        lambda: gl.SoftmaxLikelihood(num_classes=3, mixing_weights=False),
        lambda: gl.SoftmaxLikelihood(num_features=2, num_classes=3),
    ],
)
def test_one_class_only_warns_and_works(likelihood, approximation):
    with pytest.warns(
        ItergpWarning, match=r"All 12 targets are of one class \(1\): .*favour it everywhere\. Check the labels"
    ):
        model = SimpleGP(X, torch.ones(12, dtype=torch.int64), likelihood(), approximation=approximation).eval()
    assert model.solution.status.reason.name in ("CONVERGED", "PRECISION")
    with torch.no_grad():
        probs = model.predict(X).probs
    assert float((probs if probs.dim() == 1 else probs[:, 1]).min()) > 0.4
    with pytest.warns(ItergpWarning, match="All 12 targets are of one class"):
        model.set_train_data(targets=torch.zeros(12, dtype=torch.int64))


def test_equal_counts_or_values_do_not_warn():
    for likelihood in (PoissonLikelihood(), GaussianLikelihood()):
        model = SimpleGP(X, torch.ones(12), likelihood).eval()
        assert model.solution.converged


# ------------------------------------------------------------------- condition
class Scripted(NonConjugateGP):
    """A model whose forward returns whatever a test wants."""

    def __init__(self, x, y, likelihood, returns, **kwargs):
        super().__init__(x, y, likelihood, **kwargs)
        self.returns = returns
        self.mean_module, self.covar_module = gpytorch.means.ZeroMean(), make_kernel()
        self.calls = 0

    def forward(self, *args):
        self.calls += 1
        return self.returns(self, *args)


FORWARDS = {
    "a tensor": (lambda m, x: m.mean_module(x), r"Got Tensor\. Return MultivariateNormal\(mean, covariance\)"),
    "a tuple": (lambda m, x: (m.mean_module(x), m.covar_module(x)), r"Got tuple\."),
    "fewer rows": (
        lambda m, x: MultivariateNormal(m.mean_module(x[:5]), m.covar_module(x[:5])),
        r"mean of shape \(5,\)",
    ),
    "a wrong batch": (
        lambda m, x: MultivariateNormal(m.mean_module(x), make_batch_kernel(5)(x)),
        r"Got a (mean|covariance) of shape \(5, 12",
    ),
    "two batches": (
        lambda m, x: MultivariateNormal(m.mean_module(x).expand(2, 3, 12), m.covar_module(x)),
        r"Got a mean of shape \(2, 3, 12\)\. Check that mean_module and covar_module use batch_shape",
    ),
    "jitter": (
        lambda m, x: MultivariateNormal(m.mean_module(x), m.covar_module(x).add_jitter(1e-3)),
        r"latent noise is not a kernel\. Drop the added jitter, or model noise in the likelihood",
    ),
}


@pytest.mark.parametrize(
    "act", [lambda m: m.condition(), lambda m: m(X), lambda m: m.predict(X), lambda m: m.latent_mean(X)]
)
@pytest.mark.parametrize("kind", FORWARDS)
def test_forward_of_the_wrong_kind(kind, act):
    returns, match = FORWARDS[kind]
    model = Scripted(X, Y, BernoulliLikelihood(), returns).eval()
    with pytest.raises(
        InputError, match=rf"forward must return a gpytorch MultivariateNormal over the 12 input rows.*{match}"
    ):
        act(model)


def _ordinary(model, x):
    return MultivariateNormal(model.mean_module(x), model.covar_module(x))


def test_parameters_of_another_dtype():
    model = Scripted(X.double(), Y, BernoulliLikelihood(), _ordinary).eval()
    match = (
        r"Model and data must share dtype and device\. Got parameter 'covar_module\.raw_outputscale' \(\(\), torch\.float32, "
        r"cpu\) and inputs \(\(12, 2\), torch\.float64, cpu\)\. Call model\.to\(dtype=\.\.\., device=\.\.\.\)"
    )
    with pytest.raises(InputError, match=match):
        model.condition()
    assert model.calls == 0
    assert model.double().condition().converged


def test_parameters_on_another_device():
    model = Scripted(X, Y, BernoulliLikelihood(), _ordinary).eval()
    model.covar_module.to("meta")
    with pytest.raises(
        InputError, match=r"must share dtype and device\. Got parameter 'covar_module.* meta\) and inputs .*cpu\)"
    ):
        model.predict(X)
    assert model.calls == 0


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_parameters_that_are_not_finite(value):
    model = make_model("bernoulli-logit")
    before = model.solution
    model.covar_module.base_kernel.raw_lengthscale.data.fill_(value)
    with pytest.raises(
        InputError, match=r"must be finite\. Got NaN or infinity in 'covar_module\.base_kernel\.raw_lengthscale'"
    ):
        model.predict(make_inputs(3))
    model.covar_module.base_kernel.lengthscale = 1.0
    assert model.solution.objective == pytest.approx(before.objective, rel=1e-2)


def test_a_noise_at_its_bound_is_finite():
    x, y = make_reals(12)
    model = GP(x, y, gpytorch.likelihoods.GaussianLikelihood()).double().eval()
    model.likelihood.noise = 1e-4
    assert not bool(torch.isfinite(model.likelihood.noise_covar.raw_noise))
    kernel = model.covar_module(x).to_dense().detach()
    expected = kernel[:3] @ torch.linalg.solve(
        kernel + 1e-4 * torch.eye(12).double(), y - model.mean_module(x).detach()
    )
    assert_close(model(x[:3]).mean, model.mean_module(x[:3]).detach() + expected, "posterior")


class Negative(RBFKernel):
    """Minus a kernel."""

    def forward(self, x1, x2, diag=False, **params):
        return -super().forward(x1, x2, diag=diag, **params)


class Distance(Kernel):
    """A distance is not a covariance."""

    def forward(self, x1, x2, diag=False, **params):
        return self.covar_dist(x1, x2, diag=diag)


class Similarity(Kernel):
    """A bounded similarity that looks like a kernel and is none."""

    def forward(self, x1, x2, diag=False, **params):
        distance = self.covar_dist(x1, x2, diag=diag)
        return (distance < 1.0).to(x1)


@pytest.mark.parametrize("solver", [SubspaceNewton(), DenseNewton()], ids=["subspace", "dense"])
@pytest.mark.parametrize("kernel", [Negative, Distance, Similarity, lambda: ScaleKernel(Negative())])
def test_kernels_that_are_not_positive_definite(kernel, solver, dtype):
    x, y = make_binary(100, dtype=dtype)
    model = SimpleGP(x, y, BernoulliLikelihood(), kernel=kernel(), solver=solver).to(dtype).eval()
    match = (
        r"must be positive semi-definite\. Got eigenvalue -.* on 64 training inputs\. Use a valid covariance function"
    )
    with pytest.raises(InputError, match=match):
        model.condition()


@pytest.mark.parametrize(("share", "refused"), [(2e-5, True), (1e-6, False)])
def test_a_kernel_that_is_not_positive_definite_by_little(share, refused):
    """In float64 no rounding explains what a fifty-thousandth of the largest eigenvalue is below zero."""

    class Shifted(RBFKernel):
        def forward(self, x1, x2, diag=False, **params):
            value = super().forward(x1, x2, diag=diag, **params)
            return value - (100.0 * share if diag else 100.0 * share * (x1[..., :, None, 0] == x2[..., None, :, 0]))

    x = make_inputs(64, 1)
    kernel = Shifted()
    kernel.lengthscale = 100.0  # of one function that is as good as constant: the largest eigenvalue is 64
    model = SimpleGP(x, torch.sin(x[:, 0]), GaussianLikelihood(noise=0.1), kernel=kernel).double().eval()
    if refused:
        with pytest.raises(InputError, match=r"must be positive semi-definite\. Got eigenvalue -.*largest 6"):
            model.condition()
    else:
        assert bool((model.condition().latent_covariance > 0.0).all())


class OneBadPair(Kernel):
    """Wrong for two rows only, which no sample of the inputs shows."""

    def __init__(self, rows):
        super().__init__()
        self.register_buffer("rows", rows)
        self.kernel = RBFKernel()

    def forward(self, x1, x2, diag=False, **params):
        value = self.kernel.forward(x1, x2, diag=diag, **params)
        if diag:
            return value
        first = [(x1 == row).all(-1) for row in self.rows]
        second = [(x2 == row).all(-1) for row in self.rows]
        pair = (first[0][..., :, None] & second[1][..., None, :]) | (first[1][..., :, None] & second[0][..., None, :])
        return torch.where(pair, 50.0, value)


@pytest.mark.parametrize(
    "solver",
    [SubspaceNewton(), SubspaceNewton(covariance_rank=64), DenseNewton(), IterNCGP(), LinearTimeNewton()],
    ids=lambda solver: type(solver).__name__,
)
def test_a_kernel_that_is_positive_definite_on_the_sample_only(solver):
    x, y = make_reals(200)
    model = SimpleGP(x, y, GaussianLikelihood(noise=0.1), kernel=OneBadPair(x[[5, 8]]), solver=solver).double().eval()
    with pytest.raises(
        SolverError, match=r"must be positive definite and (finite|free of NaN).*Check that the kernel is positive"
    ):
        model.condition()


@pytest.mark.parametrize("latents", [1, 3])
def test_a_kernel_that_is_positive_definite_on_the_training_inputs_only(latents):
    x, y = make_reals(30) if latents == 1 else make_classes(30)
    likelihood = GaussianLikelihood(noise=0.1) if latents == 1 else CategoricalLikelihood(3)
    new = make_inputs(4, seed=5)
    rows = torch.stack([x[5], new[2]])
    model = SimpleGP(x, y, likelihood, kernel=OneBadPair(rows), solver=DenseNewton()).double().eval()
    assert model.condition().converged
    assert bool((model(new[:2]).variance > 0.0).all())
    for predict in (lambda: model(new), lambda: model.predict(new)):
        with pytest.raises(
            InputError, match=r"must be positive semi-definite\. Got one that makes a posterior variance neg"
        ):
            predict()


def test_kernels_that_overflow():
    kernel = PolynomialKernel(power=4)
    x = 1e25 * X
    model = SimpleGP(x, Y, BernoulliLikelihood(), kernel=kernel).eval()
    with pytest.raises(
        InputError, match=r"The kernel must be finite\. Got NaN or infinite entries .*scale of the inputs"
    ):
        model.condition()


def test_failed_conditioning_keeps_the_earlier_posterior():
    model = make_model("bernoulli-logit")
    before = model.condition()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    model.covar_module.raw_outputscale.data.fill_(NAN)
    with pytest.raises(InputError, match="must be finite"):
        model.condition()
    model.load_state_dict(state)
    assert model.solution is before


# --------------------------------------------------------------------- predict
BAD_TEST_INPUTS = {
    "columns": (
        make_inputs(5, 3),
        r"must have the 2 column\(s\) of the training inputs\. Got 3\. Select the same features",
    ),
    "a single row": (make_inputs(5)[0], r"must have the 2 column\(s\) of the training inputs\. Got 1\."),
    "dtype": (
        make_inputs(5).float(),
        r"must have the dtype and device of the training inputs, \(\(40, 2\), torch\.float64, cpu\)\. Got \(\(5, 2\), "
        r"torch\.float32, cpu\)\. Convert them",
    ),
    "nan": (_with(make_inputs(5), NAN, 1, 1), r"must be finite\. Got NaN or infinite values in 1 of 5 row\(s\)"),
    "infinity": (_with(make_inputs(5), INF, 1, 1), r"must be finite\. Got NaN or infinite values in 1 of 5"),
    "no rows": (make_inputs(5)[:0], r"must have at least one row\. Got none"),
    "integers": (make_inputs(5).long(), r"must be floating point\. Got torch\.int64"),
    "three dimensions": (make_inputs(5)[None], r"must have shape \(N, D\), .*Got \(1, 5, 2\)"),
    "two inputs": (
        (make_inputs(5), make_inputs(5)),
        r"The model takes 1 input\(s\)\. Got 2\. Pass what `forward` takes",
    ),
    "a list": (make_inputs(5).tolist(), r"must be a torch tensor or a tuple of them\. Got (a list of )?list"),
    "an array": (make_inputs(5, 3).numpy(), r"must have the 2 column\(s\) of the training inputs\. Got 3\."),
    "an array with gaps": (
        _with(make_inputs(5), NAN, 1, 1).numpy(),
        r"must be finite\. Got NaN or infinite values in 1 of 5",
    ),
}


@pytest.fixture(scope="module")
def conditioned() -> SimpleGP:
    model = make_model("bernoulli-logit")
    model.condition()
    return model


@pytest.mark.parametrize("act", ["call", "predict", "latent_mean", "latent_error"])
@pytest.mark.parametrize("kind", BAD_TEST_INPUTS)
def test_test_inputs(kind, act, conditioned):
    x, match = BAD_TEST_INPUTS[kind]
    if (kind, act) == ("three dimensions", "call"):
        assert conditioned(x).mean.shape == (1, 5)  # a batch of inputs, which the others do not take
        return
    acts = {
        "call": lambda: conditioned(*(x if isinstance(x, tuple) else (x,))),
        "predict": lambda: conditioned.predict(x),
        "latent_mean": lambda: conditioned.latent_mean(x),
        "latent_error": lambda: conditioned.solution.certificate.latent_error(x),
    }
    with pytest.raises(InputError, match=match):
        acts[act]()


def test_bad_test_inputs_cost_nothing():
    model = Scripted(X, Y, BernoulliLikelihood(), _ordinary).eval()
    with pytest.raises(InputError, match="must have the 2 column"):
        model.predict(make_inputs(5, 3).float())
    assert model.calls == 0


@pytest.mark.parametrize("tempering", [-0.1, -INF, NAN, True, "much"])
def test_tempering(tempering, conditioned):
    with pytest.raises(InputError, match=r"`tempering` must be a number, 0 or more\. Got"):
        conditioned.predict(make_inputs(3), tempering=tempering)


def test_the_former_name_of_tempering(conditioned):
    with pytest.raises(InputError, match=r"`covariance_scale` has given way to `tempering`"):
        conditioned.predict(make_inputs(3), covariance_scale=0.0)


@pytest.mark.parametrize("level", [0.0, 1.0, -0.5, 1.5, NAN])
@pytest.mark.parametrize("name", ["bernoulli-logit", "poisson", "gaussian"])
def test_quantile_levels(name, level):
    predictive = make_model(name, 10).predict(make_inputs(3))
    with pytest.raises(InputError, match=r"`level` must be between 0 and 1\. Got .*\. Pass 0\.9 for the 90 % quantile"):
        predictive.quantile(level)


def test_quantile_levels_of_gpytorchs_likelihoods():
    model = SimpleGP(*make_reals(10), gl.StudentTLikelihood()).double().eval()
    with torch.no_grad(), pytest.raises(InputError, match=r"`level` must be between 0 and 1\. Got 2"):
        model.predict(make_inputs(3)).quantile(2)


def test_a_certificate_of_other_hyperparameters():
    model = make_model("bernoulli-logit")
    certificate = model.condition().certificate
    assert bool(torch.isfinite(certificate.latent_error(make_inputs(3))).all())
    model.covar_module.outputscale = 2.0
    with pytest.raises(
        InputError, match=r"belongs to hyperparameters or data that have since changed\. Take it from model\.solution"
    ):
        certificate.latent_error(make_inputs(3))


# --------------------------------------------------------------------- budgets
COUNTS = [0, -1, -0.5, 1.5, 3.0, NAN, INF, True, "3"]
AMOUNTS = [0, 0.0, -1, -1e-3, NAN, True, "3"]


@pytest.mark.parametrize("value", COUNTS, ids=repr)
@pytest.mark.parametrize(
    ("solver", "name"),
    [
        (SubspaceNewton, "max_passes"),
        (SubspaceNewton, "max_rank"),
        (SubspaceNewton, "num_blocks"),
        (SubspaceNewton, "covariance_rank"),
        (DenseNewton, "max_steps"),
    ],
)
def test_budgets_that_are_counted(solver, name, value):
    if name == "covariance_rank" and value == 0:
        assert solver(covariance_rank=0).covariance_rank == 0  # the prior's covariance
        return
    with pytest.raises(
        InputError, match=rf"`{name}` must be a positive whole number or None\. Got .*\. Leave it out for"
    ):
        solver(**{name: value})


@pytest.mark.parametrize("value", AMOUNTS, ids=repr)
@pytest.mark.parametrize("solver", [SubspaceNewton, DenseNewton])
@pytest.mark.parametrize("name", ["tolerance", "time_limit"])
def test_budgets_that_are_measured(solver, name, value):
    with pytest.raises(
        InputError, match=rf"`{name}` must be a positive number or None\. Got .*\. Leave it out for the default"
    ):
        solver(**{name: value})


def test_budgets_that_are_fine():
    solver = SubspaceNewton(
        max_passes=5, max_rank=np.int64(7), covariance_rank=3, time_limit=INF, tolerance=np.float32(0.1)
    )
    model = make_model("bernoulli-logit", solver=solver)
    assert model.solution.rank <= 3
    assert SubspaceNewton(max_passes=None, max_rank=None, time_limit=None) == SubspaceNewton()


# ---------------------------------------------------------- during the iteration
class Breaks(BernoulliLikelihood):
    """Returns NaN from the k-th evaluation of one of its parts on."""

    def __init__(self, part: str, after: int) -> None:
        super().__init__()
        self.part, self.left = part, after

    def _broken(self, part: str) -> bool:
        if part == self.part:
            self.left -= 1
        return part == self.part and self.left < 0

    def log_density(self, f, targets):
        value = super().log_density(f, targets)
        return value * NAN if self._broken("density") else value

    def derivatives(self, f, targets):
        g, W = super().derivatives(f, targets)
        gradient, curvature = self._broken("gradient"), self._broken("curvature")
        return g * NAN if gradient else g, W * NAN if curvature else W


SOLVERS = {"subspace": SubspaceNewton(tolerance=1e-8), "dense": DenseNewton()}


def _assert_usable(solution) -> None:
    tensors = (
        solution.representer_weights,
        solution.latent_values,
        solution.latent_covariance,
        solution.precision.factor,
    )
    assert all(bool(torch.isfinite(t).all()) for t in tensors)
    assert math.isfinite(solution.objective)
    assert "Solution(" in repr(solution)


@pytest.mark.parametrize("after", [0, 1, 2, 4])
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("part", ["density", "gradient", "curvature"])
@pytest.mark.parametrize("approximation", ["laplace", "variational"])
def test_nan_during_the_iteration(part, solver, approximation, after):
    x, y = make_binary(40)
    likelihood = Breaks(part, 10**6)
    model = SimpleGP(x, y, likelihood, solver=SOLVERS[solver], approximation=approximation).double().eval()
    before, predictions = model.condition(), model.latent_mean(x)
    state = {name: value.clone() for name, value in model.state_dict().items()}

    model.covar_module.outputscale = 40.0
    likelihood.left = after
    with pytest.raises(
        SolverError, match=r"(NaN or infinit|finite).* Check .*the error's `solution` is the last good"
    ) as error:
        model.condition()
    _assert_usable(error.value.solution)

    model.load_state_dict(state)  # the model keeps what it had
    likelihood.left = 10**6
    assert model.solution is before
    assert torch.equal(model.latent_mean(x), predictions)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("part", ["density", "gradient", "curvature"])
def test_nan_in_a_first_solve(part, solver):
    # Whenever it appears, either an error carries what was found before, or nothing had been found.
    x, y = make_binary(40)
    carried, after = 0, 0
    while True:
        model = SimpleGP(x, y, Breaks(part, after), solver=SOLVERS[solver]).double().eval()
        caught = None
        try:
            model.condition()
        except SolverError as error:
            caught = error
        if caught is None:
            break
        if caught.solution is not None:
            carried += 1
            _assert_usable(caught.solution)
        after += 1 + after // 3
    assert after >= 4
    assert 1 <= carried < after  # not before the first iterate
    assert model.solution.converged


def test_nan_before_the_first_iterate_has_no_solution():
    model = SimpleGP(X, Y, Breaks("gradient", 0)).eval()
    with pytest.raises(
        SolverError, match=r"The laplace objective .* became NaN or infinite after 0 kernel passes"
    ) as error:
        model.condition()
    assert error.value.solution is None


def test_targets_and_classes_that_differ():
    x, y = make_classes(12, 5)
    with pytest.raises(InputError, match=r"Got values \[3, 4\] with num_classes=3"):
        SimpleGP(x, y, CategoricalLikelihood(3))
    kernel = ScaleKernel(MaternKernel(batch_shape=torch.Size([4])), batch_shape=torch.Size([4]))
    model = SimpleGP(x, y, CategoricalLikelihood(5), kernel=kernel).double().eval()
    with pytest.raises(
        InputError, match=r"all 5 latent function\(s\) or with batch shape \(5,\)\. Got .* of shape \(4, 12"
    ):
        model.condition()


def test_forward_that_returns_nothing():
    class Nothing(SimpleGP):
        def forward(self, x):
            super().forward(x)

    x, y = make_binary(20)
    with pytest.raises(InputError, match=r"forward must return a gpytorch MultivariateNormal .* Got NoneType"):
        Nothing(x, y, BernoulliLikelihood()).double().eval().condition()


def test_parts_of_ones_own_that_lack_a_member_are_refused_before_anything_is_computed():
    class Half:
        init = step = status = finish = propose = None

    with pytest.raises(InputError, match=r"`solver` must have every member .*Got Half.*tolerance.*BaseSolver"):
        make_model("bernoulli-logit", solver=Half())
    half = Half()
    half.propose = lambda view: None
    with pytest.raises(InputError, match=r"`policy` must have every member .*sparse.*BasePolicy"):
        SubspaceNewton(policy=half)


# ------------------------------------------------------------ contexts and layouts
def test_inputs_without_columns_or_strides():
    x, y = make_binary(ROWS)
    made = lambda inputs: SimpleGP(inputs, y, BernoulliLikelihood())  # noqa: E731
    with pytest.raises(InputError, match=r"`train_inputs` must have at least one column\. Got shape \(12, 0\)"):
        made(x[:, :0])
    with pytest.raises(InputError, match=r"`train_inputs` must be dense\. Got torch\.sparse_coo\. Call"):
        made(x.to_sparse())


def test_a_prior_mean_that_is_not_finite():
    class Broken(gpytorch.means.Mean):
        def forward(self, x):
            return torch.where(x[..., 0] > 0.0, NAN, x[..., 0])

    x, y = make_reals(30)
    model = GP(x, y, GaussianLikelihood(), mean=Broken()).double().eval()
    with pytest.raises(
        InputError, match=r"prior mean must be finite\. Got NaN or infinite values at \d+ of 30 training"
    ):
        model.condition()


def test_autocast_rounds_nothing():
    x, y = make_reals(30, dtype=torch.float32)
    model = GP(x, y, GaussianLikelihood()).eval()
    refused = pytest.raises(
        InputError, match=r"Autocast must be off .* Got torch\.bfloat16\. Put torch\.autocast\('cpu'"
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with refused:
            model.condition()
        for predict in (model, model.predict, model.latent_mean):
            with refused:
                predict(x[:3])
        with torch.autocast("cpu", enabled=False):
            inside = model(x[:3]).mean
        with refused:
            model.train()(x)
        double = GP(x.double(), y.double(), GaussianLikelihood()).double().eval()
        assert torch.isfinite(double(x[:3].double()).mean).all()  # which it leaves as it is
    assert torch.equal(inside, model.eval()(x[:3]).mean)


@pytest.mark.parametrize("predict", ["call", "predict"])
def test_what_was_found_in_inference_mode_has_derivatives_later(predict):
    x, y = make_reals(30)
    model = GP(x, y, gl.GaussianLikelihood()).double().eval()
    call = lambda at: (model(at) if predict == "call" else model.predict(at)).mean  # noqa: E731
    with torch.inference_mode():
        inside = call(x[:3])
    at = x[:3].clone().requires_grad_()
    outside = call(at)
    torch.testing.assert_close(inside, outside.detach())
    outside.sum().backward()
    assert bool(at.grad.abs().sum() > 0.0)
    objective = gpytorch.mlls.ExactMarginalLogLikelihood(model.likelihood, model.train())
    objective(model(x), y).backward()


def test_a_model_made_in_inference_mode_predicts_there_and_outside():
    with torch.inference_mode():
        x, y = make_reals(30)
        model = GP(x, y, GaussianLikelihood()).double().eval()
        inside = model(x[:3]).mean
    assert torch.equal(inside, model(x[:3]).mean)


def test_transforms_of_functions_are_refused():
    x, y = make_reals(30)
    model = GP(x, y, GaussianLikelihood()).double().eval()
    with pytest.raises(InputError, match=r"must be readable .* Got a transform of torch\.func.*functional\.jacobian"):
        torch.func.jacrev(lambda at: model(at).mean)(x[:3])
    assert torch.autograd.functional.jacobian(lambda at: model(at).mean, x[:3]).shape == (3, 3, x.shape[1])


@pytest.mark.parametrize(
    ("act", "name"),
    [
        (lambda model: model.to("meta"), "training data and hyperparameters"),
        (lambda model: GP(X.to("meta"), Y.to("meta"), BernoulliLikelihood()), "train_inputs"),
        (lambda model: model.predict(X.to("meta")), "inputs"),
        (lambda model: model(X.to("meta")), "inputs"),
        (lambda model: model.set_train_data(X.to("meta"), Y.to("meta"), strict=False), "inputs"),
        (
            lambda model: NonConjugateGP(X, Y, BernoulliLikelihood(), sample_weight=torch.ones(ROWS, device="meta")),
            "sample_weight",
        ),
    ],
)
def test_tensors_without_values(act, name):
    model = GP(X, Y, BernoulliLikelihood()).eval()
    before = model.predict(X).probs
    with pytest.raises(
        InputError, match=rf"`{name}` must hold values\. Got a tensor on the meta device, .* such as 'cpu'"
    ):
        act(model)
    assert torch.equal(model.predict(X).probs, before), "the model is unchanged"


def test_a_model_is_not_emptied():
    model = GP(X, Y, BernoulliLikelihood()).eval()
    before = model.predict(X).probs
    with pytest.raises(
        InputError, match=r"must keep its data and hyperparameters\. Got to_empty, .* Use model\.to\(device\)"
    ):
        model.to_empty(device="cpu")
    assert torch.equal(model.predict(X).probs, before)


class Shifting(NonConjugateGP):
    """Writes into what it is called with."""

    def __init__(self, x, y):
        super().__init__(x, y, BernoulliLikelihood())
        self.covar_module = RBFKernel()

    def forward(self, x):
        x -= 0.5
        return MultivariateNormal(torch.zeros_like(x[:, 0]), self.covar_module(x))


@pytest.mark.parametrize(
    "act", [lambda m: m.eval()(X[:3].clone()), lambda m: m.eval().predict(X[:3].clone()), lambda m: m(X.clone())]
)
def test_a_forward_that_writes_into_the_training_data(act):
    with pytest.raises(InputError, match=r"must not write into its inputs, .* Write x = x - shift, .* its data again"):
        act(Shifting(X.clone(), Y))


def test_an_objective_of_gpytorchs_approximate_models_says_what_to_use():
    model = GP(X, Y, BernoulliLikelihood())
    assert not hasattr(model, "variational_strategy")
    objective = gpytorch.mlls.VariationalELBO(model.likelihood, model, ROWS)
    with pytest.raises(AttributeError, match=r"no variational_strategy\. Learn by itergp\.fit\(model\), or maximise"):
        objective(model(X), Y)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("call", [lambda model, x: model(x).mean, lambda model, x: model.predict(x).probs])
def test_posteriors_are_not_traced(call):
    model = GP(X, Y, BernoulliLikelihood()).eval()
    model.predict(X)
    with (
        torch.no_grad(),
        gpytorch.settings.trace_mode(),
        pytest.raises(InputError, match=r"under torch\.jit\.trace\. Keep"),
    ):
        torch.jit.trace(lambda x: call(model, x), X, check_trace=False)

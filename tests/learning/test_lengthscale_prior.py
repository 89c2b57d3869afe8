"""Lengthscales of many columns: alike, until the data say otherwise."""

from __future__ import annotations

import pickle

import pytest
import torch
from gpytorch.kernels import Kernel, MaternKernel, RBFKernel, ScaleKernel

import itergp
from itergp.errors import ItergpWarning
from itergp.kernels import LaplacianKernel
from itergp.learning import InputColumns, Structure, humility
from itergp.learning.humility import limit_lengthscales
from itergp.learning.lengthscale_prior import AlikeLengthscales, has_own_prior, keep_alike
from itergp.learning.structures import KERNELS
from itergp.likelihoods import BernoulliLikelihood, GaussianLikelihood, PoissonLikelihood
from itergp.models import GP


def test_only_differences_cost():
    prior, alike = AlikeLengthscales(), torch.full((1, 4), 3.0)
    assert float(prior.log_prob(alike).sum()) == 0.0
    apart = torch.tensor([[3.0, 3.0, 3.0, 30.0]])
    assert float(prior.log_prob(apart).sum()) < -1.0
    torch.testing.assert_close(prior.log_prob(apart), prior.log_prob(100.0 * apart))


@pytest.mark.parametrize("name", [name for name in KERNELS if name not in ("constant", "matern32, one lengthscale")])
def test_every_structure_has_it(name):
    kernel = Structure(name).make_kernel(InputColumns(5, (0, 1, 4), (0, 1, 2, 2, 3)))
    several = [m for m in kernel.modules() if isinstance(m, Kernel) and m.has_lengthscale]
    assert several
    assert all(isinstance(module.lengthscale_prior, AlikeLengthscales) for module in several)


def test_a_group_counts_once():
    columns = InputColumns(4, (0,), (0, 1, 1, 1))
    kernel = Structure("laplacian").make_kernel(columns).base_kernel
    kernel.group_lengthscale = torch.tensor([1.0, 4.0])
    ((_, module, prior, closure, _),) = kernel.named_priors()
    assert closure(module).shape[-1] == 2
    assert float(prior.log_prob(closure(module)).detach().sum()) < 0.0


@pytest.mark.parametrize("groups", [(0, 1, 2), (0, 1, 1)])
def test_a_kernel_with_it_pickles(groups):
    kernel = Structure("laplacian").make_kernel(InputColumns(3, (), groups))
    ((_, module, prior, closure, set_closure),) = pickle.loads(pickle.dumps(kernel)).named_priors()
    set_closure(module, torch.full((1, max(groups) + 1), 2.0))
    assert closure(module).unique().tolist() == [pytest.approx(2.0)]
    assert float(prior.log_prob(closure(module)).detach().sum()) == pytest.approx(0.0)


def test_a_users_prior_stays():
    import gpytorch

    own = gpytorch.priors.LogNormalPrior(0.0, 1.0)
    kernel = MaternKernel(ard_num_dims=3, lengthscale_prior=own)
    assert has_own_prior(keep_alike(kernel))
    assert kernel.lengthscale_prior is own
    assert not has_own_prior(keep_alike(LaplacianKernel(ard_num_dims=3)))


def test_lengthscales_are_still_shortened():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 3, generator=generator, dtype=torch.float64)
    y = (torch.rand(200, generator=torch.Generator().manual_seed(1)) < torch.sigmoid(x[:, 0])).long()
    kernel = Structure("matern32").make_kernel(InputColumns.plain(3))
    model = GP(x, y, BernoulliLikelihood(), kernel=kernel)
    kernel.base_kernel.lengthscale, kernel.outputscale = torch.tensor([1.0, 5.0, 5.0]), 1.0
    assert limit_lengthscales(model) is not None
    assert float(kernel.base_kernel.lengthscale.detach().max()) < 4.5


def test_limits_that_are_clearly_worse_are_not_looked_at_on_every_row(monkeypatch):
    """Nor those that are shorter."""
    x = torch.linspace(-3.0, 3.0, 120, dtype=torch.float64)[torch.randperm(120)].unsqueeze(-1)
    kernel, solved = ScaleKernel(RBFKernel()), []
    model = GP(x, 3.0 + x[:, 0], GaussianLikelihood(noise=1e-6), kernel=kernel)
    kernel.base_kernel.lengthscale, kernel.outputscale = 100.0, 1e4
    monkeypatch.setattr(humility, "LIMITS", (0.02, 0.01))
    whole = humility.solve
    monkeypatch.setattr(humility, "solve", lambda *args, **options: (solved.append(1), whole(*args, **options))[1])
    assert limit_lengthscales(model) is None
    assert len(solved) == 5  # four quarters, and one of the longer limit


def test_few_rows_find_no_chance_in_many_columns():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(150, 30, generator=generator, dtype=torch.float64)
    y = (torch.rand(150, generator=generator) < torch.sigmoid(x.sum(-1) / 4.0)).long()
    model = GP(x, y, BernoulliLikelihood())
    itergp.fit(model, structures=[Structure("laplacian")], calibrate=False, max_iterations=30)
    logarithms = model.covar_module.base_kernel.lengthscale.detach().log()
    assert float(logarithms.std()) < 0.5  # 0.9 without


def test_inputs_that_say_nothing_are_said_to():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(90, 200, generator=generator), torch.rand(90, generator=generator).round().long()
    with pytest.warns(ItergpWarning, match="no better than by a constant"):
        result = itergp.fit(GP(x, y, BernoulliLikelihood()), structures="auto", max_iterations=5)
    assert not result.comparison.found_something
    assert result.comparison.gain_error > 0.0


def test_what_inputs_say_is_known():
    x = torch.linspace(-2.0, 2.0, 120, dtype=torch.float64).unsqueeze(-1)
    counts = torch.poisson(torch.exp(1.0 + x[:, 0]), generator=torch.Generator().manual_seed(0))
    result = itergp.fit(GP(x, counts, PoissonLikelihood()), structures=[Structure("matern32")], max_iterations=5)
    assert result.comparison.gain > 3.0 * result.comparison.gain_error
    assert result.comparison.found_something

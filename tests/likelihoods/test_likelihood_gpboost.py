"""Evidences at fixed parameters against GPBoost, an independent implementation in C++; skipped where it is not installed."""

from __future__ import annotations

import gpytorch
import numpy as np
import pytest
import torch
from helpers import CASES, SimpleGP, make_kernel

from itergp.likelihoods import LogNormalLikelihood
from itergp.objectives import LaplaceEvidence

SCALE, LENGTHSCALE = 1.5, 0.8
# Our likelihood, theirs, and their auxiliary parameters.
RIVALS = {
    "bernoulli-logit": ("bernoulli_logit", None),
    "bernoulli-probit": ("bernoulli_probit", None),
    "poisson": ("poisson", None),
    "negative-binomial": ("negative_binomial", [2.0]),  # shape, the inverse of our dispersion
    "gamma": ("gamma", [3.0]),
    "student-t": ("t", [0.1**0.5, 4.0]),  # scale, the root of our noise, and degrees of freedom
    "gaussian": ("gaussian", None),
}


@pytest.mark.parametrize("name", RIVALS)
@pytest.mark.filterwarnings("ignore")
def test_evidence_equals_gpboosts(name):
    gpboost = pytest.importorskip("gpboost", exc_type=ImportError)
    likelihood, auxiliary = RIVALS[name]
    x, y = CASES[name].data(60)
    kernel = make_kernel(LENGTHSCALE, SCALE)
    ours = SimpleGP(x, y, CASES[name].make(), kernel=kernel, mean=gpytorch.means.ZeroMean()).double().train()
    value = LaplaceEvidence(ours.likelihood, ours)(ours(x), ours.train_targets).item() * 60
    theirs = gpboost.GPModel(
        gp_coords=x.numpy(), cov_function="matern", cov_fct_shape=1.5, likelihood=likelihood, gp_approx="none"
    )
    parameters = [SCALE, LENGTHSCALE] if name != "gaussian" else [0.1, SCALE, LENGTHSCALE]
    keywords = {} if auxiliary is None else {"aux_pars": np.array(auxiliary)}
    expected = -theirs.neg_log_likelihood(cov_pars=np.array(parameters), y=y.double().numpy(), **keywords)
    assert value == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_the_log_normal_evidence_is_that_of_the_logarithms():
    x, y = CASES["log-normal"].data(40)
    noise = 0.1
    model = SimpleGP(x, y, LogNormalLikelihood(noise=noise), mean=gpytorch.means.ZeroMean()).double().train()
    value = LaplaceEvidence(model.likelihood, model)(model(x), model.train_targets).item() * 40
    with torch.no_grad():
        covariance = model.covar_module(x).to_dense() + model.likelihood.noise * torch.eye(40).double()
        normal = torch.distributions.MultivariateNormal(torch.zeros(40).double(), covariance)
        expected = normal.log_prob(y.log()) - y.log().sum()
    assert value == pytest.approx(float(expected), rel=1e-9)

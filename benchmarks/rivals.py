"""What a practitioner would use instead, set up as their authors recommend; each returns class probabilities."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import gpytorch
import numpy as np
import torch

from benchmarks.data import Split
from itergp.cli.svgp import SVGP, fit_svgp, svgp_probs
from itergp.diagnostics import class_probabilities

SUBSET = 2000


def boosting(data: Split) -> torch.Tensor:
    """scikit-learn's HistGradientBoostingClassifier, defaults."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    model = HistGradientBoostingClassifier(random_state=0).fit(data.train_x.numpy(), data.train_y.numpy())
    return torch.tensor(model.predict_proba(data.test_x.numpy()))


def gpboost(data: Split) -> torch.Tensor:
    """GPBoost, all rows: Vecchia-Laplace, logit, Matern-3/2, iterative methods; its other defaults."""
    import gpboost as gpb

    model = gpb.GPModel(
        gp_coords=data.train_x.double().numpy(),
        cov_function="matern",
        cov_fct_shape=1.5,
        likelihood="bernoulli_logit",
        gp_approx="vecchia",
        matrix_inversion_method="iterative",
        seed=0,
    )
    model.fit(y=data.train_y.double().numpy(), params={"trace": False})
    predicted = model.predict(gp_coords_pred=data.test_x.double().numpy(), predict_response=True)
    return class_probabilities(torch.tensor(predicted["mu"]))


def scikit_learn(data: Split) -> torch.Tensor:
    """scikit-learn's GaussianProcessClassifier (one-vs-rest), 2,000 random rows, scaled Matern-3/2."""
    from sklearn.gaussian_process import GaussianProcessClassifier
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern

    rows = np.random.RandomState(0).permutation(len(data.train_y))[:SUBSET]
    kernel = ConstantKernel(10.0) * Matern(length_scale=0.5 * np.sqrt(2.0 * data.train_x.shape[1]), nu=1.5)
    model = GaussianProcessClassifier(kernel, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of bounds that were reached
        model.fit(data.train_x.numpy()[rows], data.train_y.numpy()[rows])
    return torch.tensor(model.predict_proba(data.test_x.numpy()))


def svgp(data: Split, seconds: float, callback: Callable[[torch.Tensor, float], None], num_inducing: int = 500) -> None:
    """GPyTorch SVGP: inducing points learned with kernel and mean by Adam (0.01), batches of 256 rows.

    Args:
        data: The data.
        seconds: Training time.
        callback: Gets the test probabilities and the training time so far, about 20 times; what it takes is not counted.
        num_inducing: Inducing points.
    """
    classes, columns = data.num_classes, data.train_x.shape[1]
    likelihood: gpytorch.likelihoods.Likelihood
    if classes == 2:
        likelihood, y = gpytorch.likelihoods.BernoulliLikelihood(), data.train_y.float()
    else:
        likelihood = gpytorch.likelihoods.SoftmaxLikelihood(num_classes=classes, mixing_weights=False)
        y = data.train_y
    base = gpytorch.kernels.MaternKernel(nu=1.5, ard_num_dims=columns if columns <= 100 else None)
    base.lengthscale = 0.5 * float(torch.pdist(data.train_x[:1000]).median())  # the start that ours has
    kernel = gpytorch.kernels.ScaleKernel(base)
    kernel.outputscale = 10.0

    def evaluate(model: SVGP, used: float) -> bool:
        callback(svgp_probs(model, likelihood, data.test_x), used)
        return False

    torch.manual_seed(0)
    fit_svgp(
        kernel,
        data.train_x,
        y,
        likelihood,
        num_inducing=num_inducing,
        seconds=seconds,
        learn_kernel=True,
        callback=evaluate,
    )

"""What a practitioner would use instead, set up as their authors recommend; each returns class probabilities."""

from __future__ import annotations

from collections.abc import Callable

import gpytorch
import torch

from benchmarks.data import Split
from itergp.cli.svgp import SVGP, fit_svgp, svgp_probs


def boosting(data: Split) -> torch.Tensor:
    """scikit-learn's HistGradientBoostingClassifier, defaults."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    model = HistGradientBoostingClassifier(random_state=0).fit(data.train_x.numpy(), data.train_y.numpy())
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

"""The picture of the page on likelihoods: each as a function of its latent value, for a few observations.

``python -m benchmarks.likelihood_figures`` writes it to ``docs/images``.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import torch
from PIL import Image

from itergp import likelihoods as li

PANELS = [
    ("Bernoulli, logit", li.BernoulliLikelihood(), [0, 1]),
    ("Bernoulli, probit", li.BernoulliLikelihood("probit"), [0, 1]),
    ("Bernoulli, cloglog", li.BernoulliLikelihood("cloglog"), [0, 1]),
    ("Categorical: f of one of 3 classes", li.CategoricalLikelihood(3), [0, 1]),
    ("Binomial, 10 trials", li.BinomialLikelihood(), [[0, 10], [3, 10], [9, 10]]),
    ("Ordinal, logit, 4 levels", li.OrdinalLikelihood(4), [0, 1, 2, 3]),
    ("Ordinal, probit, 4 levels", li.OrdinalLikelihood(4, "probit"), [0, 1, 2, 3]),
    ("Poisson, log", li.PoissonLikelihood(), [0, 1, 5]),
    ("Poisson, softplus", li.PoissonLikelihood("softplus"), [0, 1, 5]),
    ("Negative binomial", li.NegativeBinomialLikelihood(dispersion=0.5), [0, 1, 5]),
    ("Zero-inflated Poisson", li.ZeroInflatedPoissonLikelihood(inflation=0.3), [0, 1, 5]),
    ("Gaussian", li.GaussianLikelihood(noise=0.5), [-1.0, 2.0]),
    ("Heteroscedastic: f₂ at f₁ = 0", li.HeteroscedasticGaussianLikelihood(), [0.2, 1.0, 2.5]),
    ("Student-t", li.StudentTLikelihood(noise=0.3, deg_free=3.0), [-1.0, 2.0]),
    ("Laplace", li.LaplaceLikelihood(noise=0.3), [-1.0, 2.0]),
    ("Gamma, shape 3", li.GammaLikelihood(shape=3.0), [0.2, 1.0, 5.0]),
    ("Log-normal", li.LogNormalLikelihood(noise=0.5), [0.2, 1.0, 5.0]),
    ("Beta, precision 5", li.BetaLikelihood(precision=5.0), [0.1, 0.5, 0.9]),
    ("Weibull, shape 2; dashed censored", li.WeibullLikelihood(shape=2.0), [[1.0, 1], [1.0, 0], [4.0, 1]]),
    ("Exponential; dashed censored", li.ExponentialLikelihood(), [[1.0, 1], [1.0, 0], [4.0, 1]]),
]


@torch.no_grad()
def main() -> None:
    """Writes the picture."""
    plt.rcParams.update({"font.size": 7, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = plt.subplots(4, 5, figsize=(10.5, 6.6), sharex=True)
    latent = torch.linspace(-5.0, 5.0, 401)
    for axis, (name, likelihood, observations) in zip(axes.flat, PANELS, strict=True):
        f = torch.zeros(len(latent), likelihood.num_latents)
        f[:, 1 if likelihood.num_latents == 2 else 0] = latent
        for y in observations:
            row = likelihood.validate_targets(torch.tensor([y], dtype=torch.int64 if isinstance(y, int) else None))
            density = likelihood.log_density(f, row.expand(len(latent), *row.shape[1:])).exp()
            censored = isinstance(y, list) and y[1] == 0
            axis.plot(latent, density / density.max(), "--" if censored else "-", lw=1.2, label=_label(y))
        axis.set_title(name, fontsize=7.5)
        axis.set_yticks([])
        axis.legend(frameon=False, fontsize=6, handlelength=1.0, loc="best")
    for axis in axes[-1]:
        axis.set_xlabel("latent value f")
    figure.tight_layout()
    target = Path(__file__).parents[1] / "docs" / "images" / "likelihoods.png"
    figure.savefig(target, dpi=90)
    Image.open(target).convert("RGB").quantize(64).save(target, optimize=True)


def _label(y: object) -> str:
    return f"y = {y[0]:g}" if isinstance(y, list) else f"y = {y:g}"


if __name__ == "__main__":
    main()

"""The picture of the page on networks: digits turned away from what a network has seen.

``python -m benchmarks.network_figures`` writes it to ``docs/images``.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.ndimage import rotate
from sklearn.datasets import load_digits
from torch import nn

from itergp.likelihoods import CategoricalLikelihood
from itergp.models import NetworkGP

IMAGES = Path(__file__).parents[1] / "docs" / "images"
ANGLES = range(0, 91, 10)


def main() -> None:
    """Trains the network of the page, and draws accuracy and confidence by angle."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    digits = load_digits()
    x, y = torch.tensor(digits.data / 16.0, dtype=torch.float32), torch.tensor(digits.target)
    network = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    optimiser = torch.optim.Adam(network.parameters(), lr=0.01, weight_decay=1e-3)
    for _ in range(150):
        optimiser.zero_grad()
        nn.functional.cross_entropy(network(x[:1000]), y[:1000]).backward()
        optimiser.step()
    model = NetworkGP(network, x[:1000], y[:1000], CategoricalLikelihood(num_classes=10))
    print("evidence", model.learn_prior(rounds=2), "precision", model.prior_precision.tolist())
    rows: dict[str, list[float]] = {"right": [], "network itself": [], "with its posterior": []}
    for angle in ANGLES:
        images = rotate(x[1000:].view(-1, 8, 8).numpy(), angle, axes=(1, 2), reshape=False, order=1)
        turned = torch.tensor(np.ascontiguousarray(images)).reshape(-1, 64)
        with torch.no_grad():
            own = network(turned).softmax(-1)
        probs = model.predict(turned).probs
        rows["right"].append(float((own.argmax(-1) == y[1000:]).double().mean()))
        rows["network itself"].append(float(own.amax(-1).mean()))
        rows["with its posterior"].append(float(probs.amax(-1).mean()))
        losses = [-float(p.gather(1, y[1000:, None]).log().mean()) for p in (own, probs)]
        print(angle, {name: round(values[-1], 3) for name, values in rows.items()}, "NLL", losses)
    figure, axis = plt.subplots(figsize=(6.0, 3.2), layout="constrained")
    for (name, values), style in zip(rows.items(), ("k--", "C3", "C0"), strict=True):
        axis.plot(list(ANGLES), values, style, label=name if name == "right" else f"confidence, {name}")
    axis.set(xlabel="digits turned by, degrees", ylabel="share, probability", ylim=(0.0, 1.0))
    axis.legend(frameon=False)
    figure.savefig(IMAGES / "networks.png", dpi=120)


if __name__ == "__main__":
    main()

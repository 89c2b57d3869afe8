"""Which methods there are for a task."""

from __future__ import annotations

from itergp.baselines.boosting import Boosting, LightGBM
from itergp.baselines.linear import Linear
from itergp.baselines.methods import Baseline, Method


def simple_methods(task: str) -> list[Method]:
    """Boosting by scikit-learn and, if it is installed, LightGBM, a linear model, and last the baseline without inputs.

    Args:
        task: One of ``itergp.baselines.rows.TASKS``; of times there are the last two.
    """
    boosted = [Boosting(), LightGBM()] if LightGBM.installed() else [Boosting()]
    methods: list[Method] = [*boosted, Linear(), Baseline()]
    return [method for method in methods if task in method.tasks]

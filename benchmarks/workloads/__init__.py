"""Workloads by name. A new one is a small class, and a line in a list, of one of these modules."""

from __future__ import annotations

from functools import cache

from benchmarks.workloads.base import (
    CLASSES,
    COUNTS,
    END_TO_END,
    INFERENCE,
    ORDERED,
    RULESETS,
    TUNED,
    GivenKernel,
    Problem,
    TrainingData,
    Workload,
)
from benchmarks.workloads.local import local_files
from benchmarks.workloads.synthetic import MIXTURES
from benchmarks.workloads.tables import KEEL, OTHERS

__all__ = [
    "CLASSES",
    "COUNTS",
    "END_TO_END",
    "INFERENCE",
    "ORDERED",
    "RULESETS",
    "TUNED",
    "GivenKernel",
    "Problem",
    "TrainingData",
    "Workload",
    "workloads",
]


@cache
def workloads() -> dict[str, Workload]:
    """All workloads: those of packages, synthetic ones, and local files."""
    return {workload.name: workload for workload in (*KEEL, *OTHERS, *MIXTURES, *local_files())}

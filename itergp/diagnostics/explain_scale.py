"""What the latent values say about the prior, and the steps and residuals about the way to the mode."""

from __future__ import annotations

import math

from itergp.diagnostics.findings import Finding, number, share
from itergp.records import RunSettings, StageRecord, TraceData

_UNUSED = 5.0  # prior deviations are this many times the largest latent value: the scale is too large
_STRAINED = 4.0  # the largest latent value is this many prior deviations: the scale is too small
_CERTAIN = -0.005  # mean log-density of training labels, nats per row, above which the classes are as good as separated
_SHORT = 0.3  # share of steps that the line search shortened before it is worth a word
_LOPSIDED = 0.5  # share of the squared residual in one of several latent functions


def explain_scale(trace: TraceData, run: RunSettings, end: StageRecord) -> list[Finding]:
    """Whether classes are separable, and whether the output scale is too large or too small for the latent values."""
    findings = []
    # Both compare with the mode: a variational mean is moved outwards by its variance.
    mode = next((stage for stage in trace.stages if stage.stage == "laplace"), end)
    deviation, extreme = mode.prior_deviation, mode.latent_extreme
    in_figures = (
        f"the prior standard deviation is {number(deviation)} (output scale {number(deviation**2)}), and the latent values "
        f"at the mode go {number(extreme)} from the prior mean at most"
    )
    if run.labels and mode.log_density > _CERTAIN:
        findings.append(
            Finding(
                "separable",
                f"The data are separable under this kernel: training labels have probability {math.exp(mode.log_density):.4g} "
                "on average (geometric mean), and every larger output scale fits them better.",
                "Put a prior on the output scale, or learn it by the density of held-out rows (itergp.fit).",
            )
        )
    if extreme > 0.0 and deviation > _UNUSED * extreme:
        findings.append(
            Finding(
                "output_scale",
                f"The output scale is far larger than the data use: {in_figures}.",
                f"Lower the output scale towards {number(4.0 * extreme**2)}; that takes fewer passes and smaller ranks.",
            )
        )
    if extreme > _STRAINED * deviation > 0.0:
        findings.append(
            Finding(
                "output_scale_small",
                f"The output scale is too small for the data: {in_figures}, {number(extreme / deviation)} deviations.",
                "Raise the output scale, standardise the targets, or learn it (itergp.fit).",
            )
        )
    return findings


def explain_steps(trace: TraceData) -> list[Finding]:
    """Whether the line search had to shorten Newton steps."""
    steps = [record for record in trace if record.newton_steps]
    short = [record.step_length for record in steps if 0.0 < record.step_length < 1.0]
    increased = [record for record in steps if "increased" in record.event]
    if increased:
        return [
            Finding(
                "increases",
                f"{len(increased)} of {len(steps)} full Newton steps increased the objective: the linear system is a poor "
                "model of it where probabilities saturate.",
                'Use step="backtracking" or SubspaceNewton, or lower the output scale.',
            )
        ]
    if len(short) < max(2.0, _SHORT * len(steps)):
        return []
    return [
        Finding(
            "step_lengths",
            f"The line search shortened Newton steps in {len(short)} of {len(steps)} passes, to {number(min(short))} of their "
            "length at the least: the curvature changes along the way, as it does where probabilities saturate.",
            "A smaller output scale, or a warm start from one, takes longer steps.",
        )
    ]


def explain_residual(trace: TraceData, run: RunSettings) -> list[Finding]:
    """Whether one of several latent functions holds most of what is left to do."""
    norms = trace[-1].class_residuals if len(trace) else ()
    total = sum(value**2 for value in norms)
    if len(norms) < 3 or total <= 0.0:
        return []
    worst = max(range(len(norms)), key=lambda c: norms[c])
    part = norms[worst] ** 2 / total
    if part < _LOPSIDED:
        return []
    noun = "class" if run.labels else "latent function"
    return [
        Finding(
            "class_residual",
            f"{share(part)} of the squared residual is that of {noun} {worst} out of {len(norms)}.",
            f"Look at its rows: labels that contradict their neighbours, or a {noun} that needs a kernel of its own.",
        )
    ]

"""``explain``: what limited a run and what to change, in words, from what its trace recorded."""

from __future__ import annotations

from dataclasses import dataclass

from itergp.diagnostics.explain_covariance import explain_covariance
from itergp.diagnostics.explain_ending import explain_ending
from itergp.diagnostics.explain_fit import explain_learning
from itergp.diagnostics.explain_scale import explain_residual, explain_scale, explain_steps
from itergp.diagnostics.findings import Finding
from itergp.records import TraceData


@dataclass(frozen=True)
class Explanation:
    """Findings about a run, the most important first. ``str`` gives them as complete sentences.

    Attributes:
        findings: What was seen, each with what to change.
    """

    findings: tuple[Finding, ...]

    @property
    def limit(self) -> str:
        """The kind of the first finding: why the run ended where it did, such as ``"converged"`` or ``"passes"``."""
        return self.findings[0].kind

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of all findings."""
        return tuple(finding.kind for finding in self.findings)

    def __contains__(self, kind: str) -> bool:
        """Whether there is a finding of this kind."""
        return kind in self.kinds

    def __getitem__(self, kind: str) -> Finding:
        """The first finding of a kind; a KeyError if there is none."""
        for finding in self.findings:
            if finding.kind == kind:
                return finding
        raise KeyError(kind)

    def __str__(self) -> str:
        """One paragraph per finding."""
        return "\n".join(f"{finding.observed} {finding.change}".strip() for finding in self.findings)

    __repr__ = __str__


def explain(trace: TraceData) -> Explanation:
    """Reads a trace; see ``Trace.explain``."""
    if trace.settings is None or not trace.stages:
        unfinished = "The trace has no end of a stage: the run has not finished, or the trace was made by hand."
        return Explanation((Finding("unfinished", f"{unfinished} It has {len(trace.records)} steps.", ""),))
    run, end = trace.settings, trace.stages[-1]
    ending = explain_ending(trace, run, end)
    findings = [*ending, *explain_scale(trace, run, end)]
    if ending[0].kind not in ("converged", "stationary", "settled"):
        findings += [*explain_steps(trace), *explain_residual(trace, run)]
    findings += [*explain_covariance(trace, run, end), *explain_learning(trace)]
    return Explanation(tuple(findings))

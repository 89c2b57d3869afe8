"""The results as Markdown tables."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.posterior.results import Results

_RIVALS = {"vecchia": "Vecchia", "full_scale_vecchia": "full-scale Vecchia"}
_SHOWN = (1.0, 2.0, 4.0, 6.0, 10.0)  # distances from two moons
_OUTSIDE = ("default", "mode", "untempered", "exact")  # predictions whose AUROC is shown


def write(results: Results, path: Path) -> None:
    """All tables that there are results for."""
    parts = [
        _variance(results),
        _laplace(results),
        _calibration(results),
        _defaults(results),
        _moons(results),
        _coverage(results),
    ]
    path.write_text("\n".join(["# How good the posterior is", "", *(part for part in parts if part)]))


def _table(title: str, head: Iterable[str], rows: list[list[str]]) -> str:
    if not rows:
        return ""
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join([title, "", *("| " + " | ".join(line) + " |" for line in lines), ""])


def _ratios(line: dict[str, Any]) -> list[str]:
    return [f"{line['median']:.3f}", f"{line['least']:.4f}", f"{line['quantile']:.3f}", f"{line['seconds']:.1f}"]


def _variance(results: Results) -> str:
    lines = sorted(results.select("variance"), key=lambda a: (a["data"], a["dtype"], a["neighbours"], a["rank"]))
    rows = [
        [a["data"], a["dtype"], str(a["rank"]), str(a["neighbours"]), *_ratios(a), f"{a['residual']:.3f}"]
        for a in lines
    ]
    title = (
        "Variance over the exact one for the curvature of the solution, at 500 test rows; processor seconds, one thread, of conditioning "
        "and prediction."
    )
    head = ("data", "dtype", "r", "n", "median", "least", "95 %", "seconds", "residual")
    return _table(title, head, rows)


def _laplace(results: Results) -> str:
    rows = []
    for line in sorted(results.select("laplace"), key=lambda a: (a["data"], a["method"], str(a["setting"]))):
        first, second = line["setting"]
        ours = line["method"] == "itergp"
        name = f"itergp, r = {first}, n = {second}" if ours else f"GPBoost, {_RIVALS[first]}, {second} neighbours"
        if "failed" in line:
            rows.append([line["data"], name, line["failed"], "", "", "", "", ""])
            continue
        median, least, quantile, seconds = _ratios(line)
        rows.append(
            [line["data"], name, median, least, f"{line['low']:.3f}", quantile, f"{line['distance']:.3f}", seconds]
        )
    title = "Under Laplace's approximation, float64: variance over the exact one at the exact mode; distance is the mean of |log ratio|."
    return _table(title, ("data", "method", "median", "least", "5 %", "95 %", "distance", "seconds"), rows)


def _calibration(results: Results) -> str:
    rows = []
    for a in results.select("calibration"):
        chosen = f"{a['approximation']}, p = {float(a['tempering']):g}"
        figures = [f"{a['nll']:.4f}", f"{a['accuracy']:.3f}", f"{a['ece']:.3f}", f"{a['auroc']:.3f}"]
        rows.append([a["data"], a["prediction"], chosen, *figures])
    title = (
        "Test rows, and AUROC of the entropy against rows unlike the data; hyperparameters of one `itergp.fit`, seed 0."
    )
    return _table(title, ("data", "prediction", "is", "NLL", "accuracy", "calibration error", "AUROC"), rows)


def _defaults(results: Results) -> str:
    rows = []
    for name in dict.fromkeys(a["data"] for a in results.select("defaults")):
        lines = results.select("defaults", data=name)
        chosen = ", ".join(f"{a['approximation']} {float(a['tempering']):g}" for a in lines)
        mean = {
            key: sum(a[key] for a in lines) / len(lines)
            for key in ("default_nll", "mode_nll", *(f"{what}_auroc" for what in _OUTSIDE))
            if all(key in a for a in lines)
        }
        ratio = sum(a["default_nll"] / a["mode_nll"] for a in lines) / len(lines)
        figures = [f"{mean[key]:.4f}" for key in ("default_nll", "mode_nll")] + [f"{ratio:.4f}"]
        figures += [f"{mean[f'{what}_auroc']:.2f}" if f"{what}_auroc" in mean else "" for what in _OUTSIDE]
        rows.append([name, str(len(lines)), chosen, *figures])
    title = (
        'Default predictions of `itergp.fit(model, structures="auto")` beside the mode of the same model plugged in: test NLL, the mean '
        "ratio of the two, and AUROC of the entropy against rows unlike the data, also of the untempered posterior and the exact one."
    )
    head = ("data", "splits", "chosen", "NLL", "plugged in", "ratio", "AUROC", "plugged in", "untempered", "exact")
    return _table(title, head, rows)


def _moons(results: Results) -> str:
    rows = []
    for a in results.select("moons"):
        step = 10.0 / (len(a["line"]) - 1)
        far = [f"{a['line'][round(distance / step)]:.2f}" for distance in _SHOWN]
        rows.append([f"{a['rows']:,}", a["method"], f"{a['nll']:.4f}", *far])
    title = "Two moons: test NLL, and the probability of the first class at a distance from (0, 0.3)."
    return _table(title, ("rows", "method", "NLL", *(f"{distance:g}" for distance in _SHOWN)), rows)


def _coverage(results: Results) -> str:
    rows = []
    for a in results.select("coverage"):
        shares = [f"{a[part]:.3f} ({a[part + '_error']:.3f})" for part in ("latent", "response")]
        rows.append([a["observed"], f"{a['value']:g}", a["dtype"], str(a["rows"]), *shares, f"{a['converged']:.2f}"])
    title = (
        "Share of what is drawn from the model that lies within its 90 % intervals at known hyperparameters, with standard errors; "
        "by the mean of the log-rate of counts, and the deviation of the noise of reals. Converged: share of the solves."
    )
    head = ("drawn", "log-rate or noise", "dtype", "rows", "latent", "response", "converged")
    return _table(title, head, rows)

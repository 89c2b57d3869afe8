"""The page and the picture, from the lines of measurements alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

IMAGES = Path(__file__).parents[2] / "docs" / "images"
COLOURS = {"full": "#1b6ca8", "linear": "#c8553d", "svgp": "#7a7a7a"}


def write_report(lines: list[dict[str, Any]], folder: Path) -> None:
    """Writes ``scale.md`` and, with measurements of cost, the picture."""
    sections = [
        _kernel(lines),
        _mixture(lines),
        _flights(lines),
        _million(lines),
        _leaves(lines),
        _additive(lines),
        _pairs(lines),
    ]
    sections += [_file(lines), _maps(lines), _map_passes(lines), _cost(lines)]
    threads = sorted({line["threads"] for line in lines})
    counts = " or ".join(str(count) for count in threads)
    head = f"# Size\n\nFloat32, {counts} threads, each measurement in a process of its own (`python -m benchmarks.scale`).\n"
    text = "\n".join([head, *("\n".join(section) + "\n" for section in sections if section)])
    (folder / "scale.md").write_text(text)
    if any(line["group"] == "cost" for line in lines):
        draw_cost(lines)


def _of(lines: list[dict[str, Any]], item: str) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    for line in lines:
        if line["item"] == item:
            yield line["arguments"], line


def _kernel(lines: list[dict[str, Any]]) -> list[str]:
    rows = []
    for arguments, found in _of(lines, "kernel_pass"):
        if "failed" in found:
            rows.append(f"| {arguments['rows']} | {found['failed']} | | | |")
            continue
        first = found["by_rows"][0]
        for r in found["by_rows"]:
            growth = (r["seconds"] / first["seconds"]) / (r["rows"] / first["rows"]) ** 2
            rows.append(
                f"| {r['rows']:,} | {r['seconds']:.3f} | {r['rows'] ** 2 / 2 / r['seconds']:.2g} | "
                f"{r['plain_seconds'] / r['seconds']:.2f} | {growth:.2f} |"
            )
    if not rows:
        return []
    head = [
        "## A kernel pass",
        "",
        "Matern-3/2, 3 inputs, 10 columns; a plain loop over half the matrix in the same process.",
    ]
    columns = "| rows | s | entries/s | rate, plain loop = 1 | time over that of N^2 growth |"
    return [*head, "", columns, "|---|---|---|---|---|", *rows]


def _mixture(lines: list[dict[str, Any]]) -> list[str]:
    rows = []
    for name, item in (("mode alone", "mode"), ("Laplace, then variational, rank 100", "full")):
        for arguments, r in _of(lines, item):
            if "failed" in r:
                rows.append(f"| {name} | {arguments['rows']:,} | {r['failed']} | | | | |")
                continue
            rows.append(
                f"| {name} | {arguments['rows']:,} | {r['seconds']:.0f} | {r['passes']} | {r['nll']:.4f} | "
                f"{r['gap_per_row']:.1g} | {r['memory']:.1f} |"
            )
    if not rows:
        return []
    head = [
        "## Ten classes, full method",
        "",
        "Gaussian mixture, 3 inputs, hyperparameters given; gap certified per row.",
    ]
    return [
        *head,
        "",
        "| | rows | s | passes | test NLL | gap, nats | peak GiB |",
        "|---|---|---|---|---|---|---|",
        *rows,
    ]


def _flights(lines: list[dict[str, Any]]) -> list[str]:
    rows = []
    for arguments, r in sorted(_of(lines, "flights_in_time"), key=lambda pair: pair[0]["support"]):
        if "failed" in r:
            rows.append(f"| support of {arguments['support']:,} | {r['failed']} | | | |")
            continue
        rows.append(
            f"| support of {arguments['support']:,} | {r['seconds']:.0f} (learning {r['learning']:.0f}) | {r['nll']:.4f} | "
            f"{r['accuracy']:.4f} | {r['memory']:.1f} |"
        )
    boosted = {f"{r['boosting']:.4f}" for _, r in _of(lines, "flights_in_time") if "boosting" in r}
    for _, r in _of(lines, "flights_svgp"):
        rows.append(f"| SVGP, 1,000 inducing points | {r['seconds']:.0f} | {r['nll']:.4f} | | {r['memory']:.1f} |")
    if not rows:
        return []
    note = f"307,346 training rows, 7 inputs; from raw data to predictions. Gradient boosting: {', '.join(sorted(boosted))}."
    return ["## NYC flights", "", note, "", "| | s | test NLL | accuracy | peak GiB |", "|---|---|---|---|---|", *rows]


def _million(lines: list[dict[str, Any]]) -> list[str]:
    rows = [
        f"| {a['rows']:,} | {r['support']:,} | {r['seconds']:.0f} (learning {r['learning']:.0f}) | {r['nll']:.4f} | "
        f"{r['boosting']:.4f} | {r['memory']:.1f} |"
        for a, r in _of(lines, "million")
        if "failed" not in r
    ]
    if not rows:
        return []
    head = [
        "## A million rows",
        "",
        "Synthetic binary, 4 inputs; from raw data to predictions, defaults of LinearTimeNewton.",
    ]
    table = ["| rows | support | s | test NLL | gradient boosting | peak GiB |", "|---|---|---|---|---|---|"]
    return [*head, "", *table, *rows]


def _leaves(lines: list[dict[str, Any]]) -> list[str]:
    rows = []
    for a, r in _of(lines, "leaves"):
        name = f"{a['data']} | {a['rows']:,} | {'leaves' if a['method'] == 'leaves' else 'support'} of {a['size']:,}"
        if "failed" in r:
            rows.append(f"| {name} | | {r['failed']} | | | | |")
            continue
        leaves = f"{r['leaves']:,} of {r['leaf_rows']:,} in all" if r["leaves"] else ""
        gap = f"{r['gap_per_row']:.1g}" if "gap_per_row" in r else ""
        rows.append(
            f"| {name} | {leaves} | {r['seconds']:.1f} | {r['prediction']:.1f} | {r['nll']:.4f} | {gap} | {r['memory']:.1f} |"
        )
    if not rows:
        return []
    note = "The same hyperparameters, learned before; CPU seconds of one thread, predictions of 20,000 rows."
    columns = "| data | rows | | leaves | s | predictions, s | test NLL | gap per row, nats | peak GiB |"
    return ["## Leaves", "", note, "", columns, "|---|---|---|---|---|---|---|---|---|", *rows]


def _additive(lines: list[dict[str, Any]]) -> list[str]:
    rows = []
    for a, r in _of(lines, "additive"):
        if "failed" in r:
            rows.append(f"| {a['rows']:,} | {a['approximation']} | {r['failed']} | | | | | |")
            continue
        rows.append(
            f"| {a['rows']:,} | {a['approximation']} | {r['seconds']:.0f} | {r['passes']} | {r['gap_per_row']:.1g} | "
            f"{r['prediction']:.1f} | {r['nll']:.4f} | {r['memory']:.1f} |"
        )
    if not rows:
        return []
    head = [
        "## Additive kernels",
        "",
        "Synthetic binary, 10 inputs, every other function rough; `AdditiveLaplacianKernel`, hyperparameters given, all defaults; "
        "CPU seconds of one thread for mode and covariance, and for 10,000 predictions; gap certified per row.",
    ]
    table = [
        "| rows | | s | passes | gap, nats | predictions, s | test NLL | peak GiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    return [*head, "", *table, *rows]


def _pairs(lines: list[dict[str, Any]]) -> list[str]:
    passes, models = [], []
    for a, r in _of(lines, "pairs_pass"):
        if "failed" in r:
            passes.append(f"| {a['rows']:,} | {r['failed']} | | | | | | |")
            continue
        passes.append(
            f"| {a['rows']:,} | {r['pair, first']:.1f} | {r['pair, 1']:.2f} | {r['pair, 8']:.2f} | {r['column, 1']:.3f} | "
            f"{r['blocks']:.0f} | {r['pair, held']:.2f} | {r['error']:.0e} |"
        )
    for a, r in _of(lines, "pairs"):
        for name in ("with", "without") if "failed" not in r else ():
            one = r[name]
            models.append(
                f"| {a['rows']:,} | {name} | {one['seconds']:.0f} | {one['passes']} | {one['gap_per_row']:.1g} | "
                f"{one['prediction']:.1f} | {one['nll']:.4f} |"
            )
    if not passes and not models:
        return []
    head = [
        "## Pairs of inputs",
        "",
        "`PairwiseLaplacianKernel` of one pair, float32, CPU seconds of one thread; beside one column of one input, and one of blocks, "
        "extrapolated.",
        "",
        "| rows | first | 1 column | 8 columns | of one input | blocks | GiB held | error |",
        "|---|---|---|---|---|---|---|---|",
    ]
    between = [
        "",
        "Ten inputs and two pairs that interact, with and without a kernel of these pairs.",
        "",
        "| rows | pairs | s | passes | gap, nats | predictions, s | test NLL |",
        "|---|---|---|---|---|---|---|",
    ]
    return [*head, *passes, *(between if models else []), *models]


def _file(lines: list[dict[str, Any]]) -> list[str]:
    rows = []
    for a, r in _of(lines, "additive_file"):
        if "failed" in r:
            rows.append(f"| {a['rows']:,} | {r['failed']} | | | | | |")
            continue
        rows.append(
            f"| {a['rows']:,} | {r['rank']} | {r['read']:.0f} | {r['seconds']:.0f} | {r['prediction']:.0f} | {r['nll']:.4f} | "
            f"{r['memory']:.1f} |"
        )
    if not rows:
        return []
    head = [
        "## Additive kernels, from a Parquet file",
        "",
        "As above, Laplace; CPU seconds of one thread to read and encode, for mode and covariance, and for 10,000 predictions. As "
        "many actions as the memory budget, a quarter of what was free, has room for.",
    ]
    table = ["| rows | actions | read | s | predictions | test NLL | peak GiB |", "|---|---|---|---|---|---|---|"]
    return [*head, "", *table, *rows]


def _maps(lines: list[dict[str, Any]]) -> list[str]:
    found = []
    for item in ("maps_exact", "maps_itergp", "maps_gpboost"):
        for a, r in _of(lines, item):
            name = {"maps_exact": "dense, float64", "maps_itergp": a.get("method")}.get(item)
            if name is None:
                kind = {"vecchia": "Vecchia", "full_scale_vecchia": "VIF"}[a.get("approximation", "vecchia")]
                name = f"GPBoost {kind}, {a.get('inversion', 'iterative')}"
            found.append((a["rows"], name, r))
    rows = []
    for size, name, r in sorted(found, key=lambda entry: entry[0]):
        if "failed" in r:
            rows.append(f"| {size:,} | {name} | {r['failed']} | | | | | | |")
            continue
        gap = f"{r['gap_per_row']:.1g}" if r.get("gap_per_row") is not None else ""
        rows.append(
            f"| {size:,} | {name} | {r['seconds']:.1f} | {r['prediction']:.1f} | {gap} | {r['nll']:.4f} | "
            f"{r['latent_log_score']:.3f} | {r['variance_median']:.4f} | {r['log_likelihood']:.0f} |"
        )
    if not rows:
        return []
    head = [
        "## Maps",
        "",
        "Uniform inputs on the unit square, Matern-3/2 of variance 1 and range 1/20, logit (Kuendig & Sigrist 2024), hyperparameters "
        "given, Laplace; GPBoost with 20 neighbours. CPU seconds of one thread of a shared machine: posterior, or log-likelihood for "
        "GPBoost; then 10,000 predictions. Scores are of test labels and of the field itself, less is better.",
        "",
        "| rows | | s | predictions, s | gap, nats per row | NLL | score of the field | median variance | log-likelihood |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    return [*head, *rows]


def _map_passes(lines: list[dict[str, Any]]) -> list[str]:
    rows = [
        f"| {a['rows']:,} | {name} | {r['first']:.2f} | {r['seconds']:.3f} | {r['error']:.1g} |"
        for a, found in _of(lines, "maps_pass")
        if "failed" not in found
        for name, r in found["by_operator"].items()
    ]
    if not rows:
        return []
    head = [
        "## A kernel pass over a map",
        "",
        "One column, one thread; the error is relative to float64, of 2,000 rows.",
    ]
    return [*head, "", "| rows | operator | first, s | s | error |", "|---|---|---|---|---|", *rows]


def _cost(lines: list[dict[str, Any]]) -> list[str]:
    rows = []
    for item, key in (("cost", "method"), ("cost_svgp", None)):
        for arguments, r in _of(lines, item):
            name = {"full": "full", "linear": "linear time"}[arguments[key]] if key else "SVGP, 500, after"
            if "failed" in r:
                rows.append(f"| {name} | {arguments['rows']:,} | {r['failed']} | | | |")
                continue
            directions = f"{r['directions']:,}" if "directions" in r else ""
            rows.append(
                f"| {name} | {arguments['rows']:,} | {r['seconds']:.1f} | {directions} | {r['nll']:.4f} | {r['memory']:.1f} |"
            )
    if not rows:
        return []
    head = [
        "## Cost against rows",
        "",
        "The mode at given hyperparameters, synthetic binary, 4 inputs, one thread; an SVGP that trains.",
    ]
    return [*head, "", "| | rows | s | directions | test NLL | peak GiB |", "|---|---|---|---|---|---|", *rows]


def draw_cost(lines: list[dict[str, Any]]) -> None:
    """Time and test NLL against rows."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.6), layout="constrained")
    series = {
        "full": [(a["rows"], r) for a, r in _of(lines, "cost") if a["method"] == "full"],
        "linear": [(a["rows"], r) for a, r in _of(lines, "cost") if a["method"] == "linear"],
        "svgp": [(a["rows"], r) for a, r in _of(lines, "cost_svgp")],
    }
    labels = {"full": "SubspaceNewton", "linear": "LinearTimeNewton", "svgp": "SVGP, 500 inducing points, 30 s"}
    for name, points in series.items():
        points = sorted((rows, r) for rows, r in points if "failed" not in r)
        rows = [size for size, _ in points]
        left.loglog(
            rows, [r["seconds"] for _, r in points], "o-", color=COLOURS[name], label=labels[name], markersize=4
        )
        right.semilogx(rows, [r["nll"] for _, r in points], "o-", color=COLOURS[name], markersize=4)
    left.set(xlabel="training rows", ylabel="seconds to the mode", title="Time")
    right.set(xlabel="training rows", ylabel="test negative log-likelihood", title="Accuracy")
    left.legend(frameon=False, fontsize=8)
    figure.savefig(IMAGES / "scale.png", dpi=140)
    plt.close(figure)

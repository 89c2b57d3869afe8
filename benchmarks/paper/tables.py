"""One table, written as Markdown and as LaTeX."""

from __future__ import annotations

import platform
from pathlib import Path

import gpytorch
import torch

import itergp

_LATEX = {"%": r"\%", "&": r"\&", "_": r"\_", "#": r"\#", "±": r"$\pm$", "<": "$<$", ">": "$>$"}


def machine(device: str = "cpu") -> str:
    where = torch.cuda.get_device_name() if device.startswith("cuda") else f"{torch.get_num_threads()} CPU threads"
    return (
        f"{where}, {platform.machine()}, torch {torch.__version__}, gpytorch {gpytorch.__version__}, "
        f"itergp {itergp.__version__}"
    )


def write(folder: Path, name: str, title: str, notes: list[str], header: list[str], rows: list[list[str]]) -> None:
    """``name.md`` and ``name.tex`` with the same figures."""
    if any(len(row) != len(header) for row in rows):
        raise ValueError(
            f"Every row must have the {len(header)} cells of the header. Got {sorted({len(r) for r in rows})}."
        )
    lines = [f"# {title}", "", *[line for note in notes for line in (note, "")]]
    lines += ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    (folder / f"{name}.md").write_text("\n".join(lines) + "\n")
    body = [" & ".join(_escape(cell) for cell in row) + r" \\" for row in rows]
    latex = [
        f"% {title}. " + " ".join(notes),
        r"\begin{tabular}{l" + "r" * (len(header) - 1) + "}",
        r"\toprule",
        " & ".join(_escape(cell) for cell in header) + r" \\",
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}",
    ]
    (folder / f"{name}.tex").write_text("\n".join(latex) + "\n")
    print("\n".join(lines), flush=True)


def spread(values: list[float], digits: int = 4) -> str:
    """Mean and, for several values, standard deviation; a dash where there is none."""
    if any(value != value for value in values):
        return "-"
    data = torch.tensor(values, dtype=torch.float64)
    text = f"{float(data.mean()):.{digits}f}"
    return text if len(values) == 1 else f"{text} ± {float(data.std()):.{digits}f}"


def _escape(cell: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in cell)

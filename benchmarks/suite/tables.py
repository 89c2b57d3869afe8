"""Tables as Markdown and as LaTeX, and how numbers are written."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

_LATEX = {
    "\\": r"\textbackslash{}",
    "%": r"\%",
    "&": r"\&",
    "_": r"\_",
    "#": r"\#",
    "±": r"$\pm$",
    "<": "$<$",
    ">": "$>$",
    "∞": r"$\infty$",
    "τ": r"$\tau$",
}


@dataclass(frozen=True)
class Table:
    """A table; cells are text, and bold ones begin and end with ``**``.

    Attributes:
        name: Of the LaTeX file.
        title: A caption.
        header: Cells of the first line.
        rows: The other lines.
    """

    name: str
    title: str
    header: list[str]
    rows: list[list[str]]

    def __post_init__(self) -> None:
        """Checks that every line has as many cells as the header."""
        if any(len(row) != len(self.header) for row in self.rows):
            raise ValueError(
                f"Every row must have the {len(self.header)} cells of the header. Got "
                f"{sorted({len(row) for row in self.rows})} in {self.name}."
            )

    def markdown(self) -> str:
        """As Markdown."""
        lines = [self.header, ["---"] * len(self.header), *self.rows]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"

    def latex(self) -> str:
        """As LaTeX, for the package booktabs."""
        body = [" & ".join(map(_latex, row)) + r" \\" for row in self.rows]
        lines = [
            f"% {self.title}",
            r"\begin{tabular}{l" + "r" * (len(self.header) - 1) + "}",
            r"\toprule",
            " & ".join(map(_latex, self.header)) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
        ]
        return "\n".join(lines) + "\n"

    def write(self, folder: Path) -> Path:
        """Writes ``name.tex``."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.name}.tex"
        path.write_text(self.latex())
        return path


def _latex(cell: str) -> str:
    bold = cell.startswith("**") and cell.endswith("**") and len(cell) > 4
    text = "".join(_LATEX.get(letter, letter) for letter in cell.replace("**", "").replace("`", ""))
    return rf"\textbf{{{text}}}" if bold else text


def seconds(value: float) -> str:
    """Seconds with two or three digits; ∞ for a miss."""
    if not math.isfinite(value):
        return "∞"
    return f"{value:.2f}" if value < 10 else f"{value:,.0f}"


def factor(value: float) -> str:
    """A ratio with two digits."""
    if not math.isfinite(value):
        return "∞"
    return f"{value:.1f}" if value < 10 else f"{value:,.0f}"


def number(value: float, digits: int = 4) -> str:
    """A number, or a dash for a missing one."""
    return f"{value:.{digits}f}" if value is not None and math.isfinite(value) else "-"


def mark_best(cells: list[float], texts: list[str], *, largest: bool = False) -> list[str]:
    """Bold for the best of some numbers, by what is shown."""
    finite = [value for value in cells if math.isfinite(value)]
    if not finite:
        return texts
    best = texts[cells.index(max(finite) if largest else min(finite))]
    return [f"**{text}**" if text == best else text for text in texts]

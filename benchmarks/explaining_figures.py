"""The picture of the page on explaining a model, from the code on it.

``python -m benchmarks.explaining_figures`` writes ``explaining.png`` to ``docs/images``, and prints what the page prints.
"""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[1] / "docs"
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


def main() -> None:
    names: dict[str, Any] = {"__name__": "page"}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for code in BLOCK.findall((DOCS / "explaining.md").read_text()):
            exec(compile(code, "explaining.md", "exec"), names)
    names["axes"][0].figure.savefig(DOCS / "images" / "explaining.png", dpi=100)


if __name__ == "__main__":
    main()

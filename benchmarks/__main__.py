"""The benchmark suite: time to a target against every rival.

    python -m benchmarks list                          # workloads, methods, presets
    python -m benchmarks run --quick                   # five minutes, nothing to install beyond the dev extra
    python -m benchmarks run --preset reference --budget-minutes 40
    python -m benchmarks report                        # page, LaTeX tables and figures from the results alone
    python -m benchmarks micro main HEAD               # kernel pass, whitening, ...: ratios between two revisions
    python -m benchmarks compare main HEAD             # predictions, time and memory of two revisions on the same splits

`run` goes on where it was interrupted: one line of JSON for each run, which is never changed.
"""

from __future__ import annotations

import os
import sys

os.environ.setdefault("KEOPS_VERBOSE", "0")

from benchmarks.suite.cli import main

if __name__ == "__main__":
    sys.exit(main())

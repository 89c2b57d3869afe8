"""GPyTorch's own examples with ``ExactGP`` replaced, against a table of what is to come of each.

The environment variable ``ITERGP_GPYTORCH_CHECKOUT`` says where a checkout of GPyTorch is; its package is not used, only its
tests. ``gpytorch_conformance.json`` has one line for each of them: ``pass``; ``refused``, with what the error says; or
``irrelevant``, with the reason. It is that of GPyTorch's main branch at 7c4ec80f; in the release 1.15.2 one more test,
``TestLinearRegressionLargeD``, counts Cholesky factorisations.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

HERE = Path(__file__).parent
TABLE: dict[str, list[str]] = json.loads((HERE / "gpytorch_conformance.json").read_text())
CHECKOUT = os.environ.get("ITERGP_GPYTORCH_CHECKOUT")
LEFT_OUT = ("test_pyro_integration.py",)  # sampling hyperparameters is another matter


def _files(checkout: Path) -> list[str]:
    files = sorted((checkout / "test" / "examples").glob("test_*.py"))
    return [str(file) for file in files if "ExactGP" in file.read_text() and file.name not in LEFT_OUT]


def _outcomes(checkout: Path, folder: Path) -> dict[str, str]:
    """For every test nothing if it passed, otherwise what its error says."""
    report = folder / "report.xml"
    options = ["-q", "-p", "swap_exact_gp", "-p", "no:cacheprovider", "-W", "ignore", "--junitxml", str(report)]
    paths = [str(HERE), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", *options, *_files(checkout)]
    # Not in the checkout: the tests are to use the GPyTorch that is installed.
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=1800)
    assert report.exists(), done.stdout + done.stderr
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):
        names = case.attrib["classname"].split(".")[-2:]
        faults = [*case.findall("failure"), *case.findall("error")]
        found["::".join([*names, case.attrib["name"]])] = faults[0].attrib["message"] if faults else ""
    return found


def _fault(expected: list[str], message: str) -> str | None:
    """What is not as the table says, or None."""
    outcome, *reason = expected
    if outcome == "irrelevant":
        return None
    if outcome == "pass":
        return message and f"failed: {message}"
    as_refused = message.startswith("itergp.errors.InputError") and re.search(reason[0], message)
    return None if as_refused else f"was to be refused with {reason[0]!r}: {message or 'passed'}"


@pytest.mark.slow
@pytest.mark.skipif(CHECKOUT is None, reason="needs a checkout of GPyTorch in ITERGP_GPYTORCH_CHECKOUT")
def test_gpytorchs_examples_with_the_base_class_exchanged(tmp_path):
    assert CHECKOUT is not None
    outcomes = _outcomes(Path(CHECKOUT).resolve(), tmp_path)
    unknown = sorted(set(outcomes) - set(TABLE))
    assert not unknown, f"add to gpytorch_conformance.json: {unknown}"
    faults = {name: _fault(TABLE[name], message) for name, message in outcomes.items()}
    wrong = [f"{name} {fault}" for name, fault in sorted(faults.items()) if fault]
    assert not wrong, "\n".join(wrong)


def test_the_table_says_why():
    assert all(outcome in ("pass", "refused", "irrelevant") for outcome, *_ in TABLE.values())
    assert all(len(entry) == (1 if entry[0] == "pass" else 2) for entry in TABLE.values())
    assert sum(entry[0] == "pass" for entry in TABLE.values()) >= 66

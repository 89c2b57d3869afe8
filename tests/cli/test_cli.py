"""The command line and what people see: table, figure, progress, metrics, plots."""

from __future__ import annotations

import io

import pytest
import torch
from helpers import make_model
from rich.console import Console

from itergp import diagnostics
from itergp.cli import main
from itergp.diagnostics import ProgressBar, TraceRecord


def test_version_and_help(capsys):
    for words, expected in ((["--version"], "itergp 0."), (["--help"], "demo")):
        with pytest.raises(SystemExit, match="0"):
            main(words)
        assert expected in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        main([])


@pytest.mark.slow
def test_the_demo_runs_and_beats_the_rival(tmp_path, capsys):
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    figure = tmp_path / "demo.png"
    assert main(["demo", "--figure", str(figure)]) == 0
    printed = capsys.readouterr().out
    rows = {line.split("│")[1].strip(): line.split("│")[2:4] for line in printed.splitlines() if line.count("│") == 4}
    ours, rival = (float(cell) for cell in rows["negative log-likelihood (nats)"])
    assert ours < min(rival, 0.12)
    assert float(rows["accuracy"][0]) > 0.97
    assert float(rows["expected calibration error"][0]) < 0.08
    assert rows["certified gap to the exact mode"][0].strip().endswith("nats")
    assert figure.read_bytes()[:4] == b"\x89PNG"
    assert figure.stat().st_size > 50_000


def test_progress_shows_passes_objective_and_gap():
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=120)
    record = TraceRecord("laplace", 3, 0.1, 123.456, 0.5, 1.5, 9, 2, 1.0)
    with ProgressBar(console=console) as bar:
        bar.begin("laplace", tolerance=1e-3)
        bar(record)
        bar.end("laplace")
    shown = stream.getvalue()
    assert "pass   3" in shown
    assert "123.46" in shown
    assert "5.00e-01" in shown


def test_progress_reports_to_standard_error_only_when_asked(capsys):
    make_model("bernoulli-logit").condition()
    assert capsys.readouterr() == ("", "")
    make_model("bernoulli-logit").condition(progress=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "variational" in captured.err


def test_metrics_on_a_case_by_hand():
    probs = torch.tensor([[0.95, 0.05], [0.8, 0.2], [0.45, 0.55], [0.35, 0.65]])
    targets = torch.tensor([0, 1, 1, 1])
    assert diagnostics.accuracy(probs, targets) == pytest.approx(0.75)
    expected = -sum(torch.tensor([0.95, 0.2, 0.55, 0.65]).log()) / 4
    assert diagnostics.negative_log_likelihood(probs, targets) == pytest.approx(float(expected))
    # Bins of width 0.1: 0.95 right, 0.8 wrong, 0.55 right, 0.65 right.
    assert diagnostics.expected_calibration_error(probs, targets) == pytest.approx(
        (0.05 + 0.8 + 0.45 + 0.35) / 4, abs=1e-6
    )
    curve = diagnostics.reliability(probs, targets)
    assert int(curve.counts.sum()) == 4


def test_a_certain_and_right_classifier_is_calibrated():
    probs = torch.eye(3)[[0, 1, 2, 1]]
    assert diagnostics.expected_calibration_error(probs, torch.tensor([0, 1, 2, 1])) == 0.0
    assert diagnostics.negative_log_likelihood(probs, torch.tensor([0, 1, 2, 1])) == 0.0


def test_plots_return_their_axes():
    figure_module = pytest.importorskip("matplotlib.figure")
    axes = figure_module.Figure().subplots(1, 3)
    solution = make_model("categorical").condition()
    probs = torch.softmax(torch.randn(50, 3), -1)
    curve = diagnostics.reliability(probs, torch.randint(0, 3, (50,)))
    assert diagnostics.plot_reliability(axes[0], {"ours": curve}) is axes[0]
    assert diagnostics.plot_convergence(axes[1], solution.trace) is axes[1]
    assert len(axes[1].lines) >= 3
    assert diagnostics.plot_class_probabilities(axes[2], probs[0].tolist(), 1) is axes[2]
    assert len(axes[2].patches) == 3

"""Summary, plots, report and what notebooks show: for every estimator, complete, escaped, by itself."""

from __future__ import annotations

import importlib
import pickle
import re
from html.parser import HTMLParser

import gpytorch
import numpy as np
import pandas
import pytest
import torch
from explained import KINDS, NASTY, fitted, signal, table
from sklearn import config_context

from itergp import InputError
from itergp.baselines.rows import TASK_OF
from itergp.diagnostics.estimates import Estimate
from itergp.diagnostics.residual_noise import CountNoise
from itergp.explanation import baselines, held_out, scores
from itergp.explanation.kernel_text import KernelColumns, describe_kernel
from itergp.explanation.report import judge, make_report
from itergp.kernels import PairwiseLaplacianKernel
from itergp.sklearn import GPClassifier, GPCountRegressor, GPRegressor
from itergp.sklearn.comparison import as_rows, standard_methods

pyplot = pytest.importorskip("matplotlib.pyplot")
each = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(autouse=True)
def _no_figures():
    import matplotlib

    matplotlib.use("Agg")
    yield
    pyplot.close("all")


class Page(HTMLParser):
    """Tags that are open, text, and what is loaded."""

    VOID = ("meta", "img", "br")

    def __init__(self, text):
        super().__init__()
        self.open, self.text, self.loaded, self.tags = [], [], [], set()
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.loaded += [value for name, value in attrs if name in ("src", "href", "srcset", "data")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


# ---------------------------------------------------------------------- summary
@each
def test_a_summary_says_what_was_learned(kind):
    found = fitted(kind).summary()
    assert found.columns["relevance"].is_monotonic_decreasing
    assert found.columns["relevance"].sum() == pytest.approx(1.0)
    assert set(found.columns["column"]) == set(table().columns)
    assert found.num_rows == len(table())
    assert found.score.mean > found.baseline.mean + 2.0 * found.score.error
    assert found.limits[-1].kind in ("rows", "noise", "unclear")
    text = str(found)
    for word in ("Noise: ", "Held-out rows (each quarter in turn; ", "What limits it:", "curved"):
        assert word in text
    assert NASTY not in found._repr_html_()


def test_the_noise_is_in_the_units_of_the_target():
    words = fitted("real").summary().noise
    assert float(words.split("±")[1].split(":")[0]) == pytest.approx(2.0, rel=0.3)


def test_scores_are_those_of_models_without_the_rows():
    """The posterior of the others at the hyperparameters of all."""
    subject = fitted("real")._subject()
    learned, judged = held_out.split(subject)[0]
    model = held_out.conditioned_on(subject, learned)
    found = held_out.predict_rows(subject, subject.known_inputs(judged), subject.targets[judged], model)
    with torch.no_grad():
        predictive = model.predict(subject.inputs(subject.values[judged]))
        scaled = torch.as_tensor(subject.model_targets(subject.targets[judged]))
        expected = predictive.log_prob(scaled).numpy() - np.log(subject.unit)
    np.testing.assert_allclose(found.log_density, expected, rtol=1e-6)
    assert len(model.train_targets) == len(learned)
    own = held_out.predict_rows(subject, subject.known_inputs(judged), subject.targets[judged])
    assert own.log_density.mean() > found.log_density.mean()


@each
def test_the_estimator_and_an_explanation_agree_on_densities(kind):
    estimator = fitted(kind)
    subject = estimator._subject()
    found = held_out.predict_rows(subject, subject.inputs(subject.values[:20]), subject.targets[:20]).log_density
    rows = table().iloc[:20]
    y = subject.targets[:20]
    if kind == "counts":
        expected = estimator.predictive_log_density(rows, y[:, 0], exposure=y[:, 1])
    elif kind == "times":
        expected = estimator.predictive_log_density(rows, y[:, ::-1])
    else:
        y = np.array(subject.labels)[y.astype(int)] if subject.labels else y
        expected = estimator.predictive_log_density(rows, y == "True" if kind == "two classes" else y)
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-3)


def test_few_rows_and_known_noise_have_no_score():
    X = np.linspace(0.0, 1.0, 6)[:, None]
    few = GPRegressor(kernel="rbf", likelihood="gaussian", max_iterations=2).fit(X, X[:, 0]).summary()
    assert few.score is None
    assert "cannot be held out" in str(few)
    X = np.linspace(0.0, 1.0, 30)[:, None]
    known = GPRegressor(kernel="rbf", alpha=np.full(30, 0.1), max_iterations=2).fit(X, X[:, 0]).summary()
    assert known.noise == "as given by alpha"
    assert known.score is None


def test_columns_that_say_nothing_are_noticed():
    rng = np.random.default_rng(0)
    model = GPRegressor(kernel="rbf", likelihood="gaussian", max_iterations=5).fit(
        rng.normal(size=(80, 2)), rng.normal(size=80)
    )
    assert "columns" in [finding.kind for finding in model.summary().limits]


# ------------------------------------------------------------------------ scores
def test_scores_of_simple_predictions():
    y = np.array([0.0, 1.0, 1.0, 2.0])
    found = Estimate.of(y, np.ones(4))
    assert found.mean == 1.0
    assert found.error == pytest.approx(np.std(y, ddof=1) / 2.0)
    assert str(Estimate(-1.23456, 0.0123)) == "-1.235 ± 0.012"
    root = scores.error_score(np.array([4.0, 4.0]), np.ones(2), "real")
    assert (root.mean, root.error) == (2.0, 0.0)
    counts = np.random.default_rng(0).negative_binomial(2.0, 0.25, 4000).astype(float)  # mean 6, variance 24
    assert CountNoise.learn(counts, np.full(4000, 6.0), np.ones(4000)).size == pytest.approx(2.0, rel=0.2)


@each
def test_baselines_are_the_methods_of_comparisons(kind):
    """The same methods, and what these say of the same rows as a table."""
    subject = fitted(kind)._subject()
    keep, out = map(np.sort, held_out.split(subject)[0])
    every = subject.values, subject.targets, subject.weights
    learned, judged = (tuple(part[which] for part in every) for which in (keep, out))
    found = baselines.baselines(subject, learned, judged)
    task = TASK_OF[subject.observes]
    methods = standard_methods(task)[:0:-1]
    assert list(found)[:2] == [baselines.CONSTANT[subject.observes], baselines.LINEAR[subject.observes]]
    assert list(found)[2:] == [method.name for method in methods[2:]]
    plain, *others = (part.log_density.mean() for part in found.values())
    assert max(others) > plain + 0.05
    y = subject.targets
    known = {"exposure": y[:, 1]} if kind == "counts" else {}
    y = y[:, 0] if kind == "counts" else y[:, ::-1] if kind == "times" else y
    rows, _ = as_rows(table(), y, task=task, **known)
    parts = [rows.take(np.isin(np.arange(len(rows)), which)) for which in (keep, out)]
    for method, own in zip(methods, found.values(), strict=True):
        np.testing.assert_allclose(own.log_density, method.forecast(*parts, 0).log_density, rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------------- plots
@each
def test_effects_are_drawn(kind):
    axes = fitted(kind).plot_effects(interactions=None)
    assert len(axes) == len(table().columns)
    figure = axes[0].figure
    figure.canvas.draw()
    assert {panel.get_xlabel() for panel in axes} == set(table().columns)
    assert len({panel.get_ylim() for panel in axes}) == 1
    assert bool(figure.legends) == (kind in ("classes", "levels"))
    places = {panel.get_xlabel(): panel for panel in axes}
    assert [label.get_text() for label in places["city"].get_xticklabels()][1:] == ["Oslo", "Rome"]
    assert "missing" in [text.get_text() for text in places["up"].texts]
    assert "2021" in "".join(label.get_text() for label in places["when"].get_xticklabels()) + str(
        places["when"].xaxis.get_offset_text().get_text()
    )


def test_pairs_are_drawn_as_maps():
    model = fitted("real")
    axes = model.plot_effects(["up"], interactions=[("up", "city"), ("when", "curved")])
    assert [panel.get_xlabel() for panel in axes] == ["up", "up", "when"]
    single = model.plot_effects([], interactions=[("up", "city")])
    single.figure.canvas.draw()
    assert len(single.collections) == 1
    _, own = pyplot.subplots()
    assert model.plot_effects("up", ax=own) is own


def test_mistakes_in_plots_have_clear_errors():
    model = fitted("real")
    _, own = pyplot.subplots()
    with pytest.raises(InputError, match=r"`ax` must be as many axes as there are columns and pairs, 2\. Got 1"):
        model.plot_effects(["up", "city"], ax=own)
    with pytest.raises(InputError, match=r"`interactions` must be pairs of columns\. Got 'up'"):
        model.plot_effects(interactions=["up"])
    with pytest.raises(InputError, match="must name a column"):
        model.plot_effects([])


@pytest.mark.parametrize(
    ("module", "method"), [("matplotlib", "plot_effects"), ("pandas", "summary"), ("pandas", "effects")]
)
def test_what_is_missing_is_named(module, method, monkeypatch):
    real = importlib.import_module

    def without(name, *args):
        if name.partition(".")[0] == module:
            raise ImportError(name)
        return real(name, *args)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(ImportError, match=f"needs {module}. It is not installed. Install it with `pip install itergp"):
        getattr(fitted("real"), method)()


# ------------------------------------------------------------------------- report
@each
def test_a_report_is_one_page_by_itself(kind, tmp_path):
    path = tmp_path / "report.html"
    path.write_text("before")
    fitted(kind).report(path)
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert page.loaded
    assert all(value.startswith("data:image/png;base64,") for value in page.loaded)
    assert "http" not in re.sub(r"base64,[A-Za-z0-9+/=]+", "", text)  # four letters turn up in pictures by chance
    assert not {"script", "link", "iframe"} & page.tags
    assert "<b>&'" not in text
    said = " ".join(page.text)
    for word in ("this model", "regression", "How it was computed", "What they do", "Which columns matter"):
        assert word in said
    assert NASTY in said  # escaped, not lost
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]
    assert not pyplot.get_fignums()


def test_a_report_judges_by_rows_that_are_given():
    model, X = fitted("counts"), table()
    rng = np.random.default_rng(5)
    y = rng.poisson(np.exp(0.5 * signal(X)))
    subject = model._subject()
    found = judge(subject, model._unseen(X.iloc[:50], y[:50], None, {"exposure": 1.0}))
    assert not found.anew
    np.testing.assert_allclose(
        found.predictions["this model"].point, model.predict(X.iloc[:50], exposure=1.0), rtol=1e-6
    )
    own = found.predictions["this model"].log_density
    np.testing.assert_allclose(
        own, model.predictive_log_density(X.iloc[:50], y[:50], exposure=1.0), rtol=2e-3, atol=2e-3
    )


def test_without_rows_a_copy_learns_anew():
    model = fitted("two classes")
    before = {name: value.clone() for name, value in model.model_.state_dict().items()}
    found = judge(model._subject(), None)
    assert found.anew
    assert found.subject.model is not model.model_
    assert found.subject.num_rows == found.learned < len(table())
    assert found.learned + len(found.rows[1]) == len(table())
    for name, value in model.model_.state_dict().items():
        assert torch.equal(value, before[name])


def test_intervals_of_counts_hold_what_the_model_says():
    """Of counts that are drawn from its own predictions."""
    subject = fitted("counts")._subject()
    exposure = torch.as_tensor(subject.targets[:, 1])
    with torch.no_grad():
        drawn = (
            subject.model.predict(subject.inputs(subject.values), exposure=exposure).sample(torch.Size([10])).numpy()
        )
    found = [held_out.covered(subject, subject.values, np.column_stack([y, exposure])) for y in drawn]
    for level in held_out.COVERAGES:
        stated, inside = (np.concatenate([one[level][part] for one in found]) for part in (0, 1))
        assert (stated >= level - 1e-6).all()
        assert inside.mean() == pytest.approx(stated.mean(), abs=4.0 * 0.5 / np.sqrt(len(inside)))


def test_rates_have_no_density():
    rng = np.random.default_rng(0)
    X = rng.uniform(0.0, 1.0, (60, 1))
    model = GPCountRegressor(distribution="poisson", kernel="rbf", max_iterations=3).fit(
        X, rng.poisson(3.0, 60) / 2.0, sample_weight=np.full(60, 2.0)
    )
    found = model.summary()
    assert found.score is None
    assert found.error is not None
    assert "mean Poisson deviance" in make_report(model._subject())


def test_a_report_that_cannot_be_written_is_refused(tmp_path):
    with pytest.raises(InputError, match="`path` must be a file that can be written"):
        fitted("real").report(tmp_path / "nowhere" / "report.html")


# ---------------------------------------------------------------------- notebooks
def test_notebooks_show_a_fitted_estimator():
    model = fitted("real")
    assert "160 rows, 5 columns" in model._repr_html_()
    assert "160 rows" in model._repr_mimebundle_()["text/html"]
    bare = GPClassifier()
    assert "columns" not in bare._repr_html_().split("<style>")[0]
    with config_context(display="text"):
        assert not hasattr(model, "_repr_html_")
        assert "text/html" not in model._repr_mimebundle_()
    text = model._repr_html_()
    Page(text.split("<style>")[0])


# ------------------------------------------------------------------------- kernels
def test_a_kernel_prints_lengthscales_in_the_units_of_columns():
    model = fitted("real")
    text = str(model.kernel_)
    lengthscale = model.kernel_.base_kernel.lengthscale[0].detach()
    scale = table()["curved"].std(ddof=0)
    assert f"curved: {float(lengthscale[0]) * scale:.3g}" in text
    assert f"{model.kernel_.outputscale.item():.3g} * RBF(" in text
    for name in ("city", "when (years)", "when (season)", "up is missing"):
        assert f"{name}: " in text
    assert isinstance(model.kernel_, gpytorch.kernels.ScaleKernel)
    x = model.model_.train_inputs[0][:3]
    assert torch.equal(model.kernel_(x).to_dense(), model.model_.covar_module(x).to_dense())
    again = pickle.loads(pickle.dumps(model.kernel_))
    assert type(again) is gpytorch.kernels.ScaleKernel
    other = GPRegressor(kernel=model.kernel_, optimizer=None)
    assert other.get_params()["kernel"] is not None


def test_kernels_of_pairs_print_both_lengthscales_of_each():
    kernel = PairwiseLaplacianKernel([(0, 1), (1, 2)])
    kernel.lengthscale = torch.tensor([1.0, 2.0, 3.0, 4.0])
    text = describe_kernel(
        gpytorch.kernels.ScaleKernel(kernel), KernelColumns(["a", "b", "c"], np.array([1.0, 10.0, 1.0]))
    )
    assert "PairwiseLaplacian((a: 1, b: 20), (b: 30, c: 4), weights=0.5, 0.5)" in text.replace("0.5 | 0.5", "0.5, 0.5")


def test_kernels_of_ranks_say_so():
    rng = np.random.default_rng(0)
    X = pandas.DataFrame({"a": rng.normal(size=80), "c": rng.choice(["u", "v", "w"], 80)})
    from itergp.learning import Structure

    options = {"structures": [Structure("additive laplacian + laplacian", "ranks")], "max_rows": 60}
    model = GPRegressor(likelihood="gaussian", max_iterations=4, fit_options=options).fit(X, X.a)
    text = str(model.kernel_)
    assert "AdditiveLaplacian(rank of a: " in text
    assert ") + " in text
    assert "weights=(rank of a: " in text

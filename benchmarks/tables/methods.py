"""What is run on every table: the methods of ``itergp.sklearn.compare``, and rivals that only benchmarks need."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from itergp.baselines.boosting import Boosting, LightGBM
from itergp.baselines.encoding import CodedTable
from itergp.baselines.forecasts import Hazards, covered_times, of_labels
from itergp.baselines.linear import Linear
from itergp.baselines.means import Predictor, forecast_means
from itergp.baselines.methods import Baseline, Method
from itergp.baselines.rows import COUNTS, LABELLED, REGRESSION, SURVIVAL, Array, Forecast, Rows
from itergp.sklearn.comparison.methods import Own

OURS, BASELINE, LINEAR = "itergp", "baseline", "linear model"


@dataclass
class CatBoost(Method):
    """CatBoost with its defaults and early stopping on a tenth of the rows; levels as such."""

    name: str = "boosting (CatBoost)"
    tasks: Sequence[str] = (*LABELLED, COUNTS, REGRESSION)
    package: str = "catboost"

    def forecast(self, train: Rows, test: Rows, seed: int) -> Forecast:
        """See the base class."""
        import catboost

        coded = CodedTable.learn(train.table)
        (x, levels), (test_x, _) = coded.for_trees(train.table), coded.for_trees(test.table)
        labelled = train.task in LABELLED
        several = labelled and len(train.labels) > 2
        loss = "MultiClass" if several else "Logloss" if labelled else "Poisson" if train.task == COUNTS else "RMSE"
        kind = catboost.CatBoostClassifier if labelled else catboost.CatBoostRegressor

        def frame(x: Array) -> pd.DataFrame:
            made = pd.DataFrame(x)
            return made.astype({i: int for i in levels})

        def fit(x: Array, y: Array, weights: Array) -> Predictor:
            options = {"loss_function": loss, "random_seed": seed, "verbose": False, "allow_writing_files": False}
            model = kind(**options, thread_count=1, early_stopping_rounds=20)
            held_out = np.random.default_rng(seed).random(len(y)) < 0.1
            if labelled:
                held_out &= np.isin(y, np.unique(y[~held_out]))
            pools = [
                catboost.Pool(frame(x[part]), y[part], cat_features=levels, weight=weights[part])
                for part in (~held_out, held_out)
            ]
            model.fit(pools[0], eval_set=pools[1])
            if labelled:
                return lambda x: model.predict_proba(frame(x))
            return lambda x: model.predict(
                frame(x), prediction_type="Exponent" if loss == "Poisson" else "RawFormulaVal"
            )

        if labelled:
            return of_labels(fit(x, train.codes, train.weights)(test_x), train.labels, test)
        return forecast_means(fit, x, train, test_x, test, seed)


@dataclass
class Trees(Method):
    """Rivals that take columns of numbers and levels with gaps: XGBoost, an explainable boosting machine, and a forest.

    Attributes:
        kind: ``"xgboost"``, ``"ebm"`` or ``"forest"``.
    """

    kind: str = "xgboost"
    name: str = ""
    tasks: Sequence[str] = (*LABELLED, COUNTS, REGRESSION)
    package: str = ""

    def __post_init__(self) -> None:
        names = {"xgboost": "boosting (XGBoost)", "ebm": "EBM", "forest": "random forest"}
        packages = {"xgboost": "xgboost", "ebm": "interpret", "forest": "sklearn"}
        self.name, self.package = names[self.kind], packages[self.kind]

    def forecast(self, train: Rows, test: Rows, seed: int) -> Forecast:
        """See the base class."""
        coded = CodedTable.learn(train.table)
        (x, levels), (test_x, _) = coded.for_trees(train.table), coded.for_trees(test.table)
        make = {"xgboost": _xgboost, "ebm": _ebm, "forest": _forest}[self.kind]
        labelled = train.task in LABELLED
        for i in levels:  # a level that training did not have is no level
            test_x[test_x[:, i] > np.nanmax(x[:, i]), i] = np.nan

        def fit(x: Array, y: Array, weights: Array) -> Predictor:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Missing values detected")  # which EBM does not draw
                model = make(train.task, seed, levels, x.shape[1]).fit(x, y, sample_weight=weights)
            return model.predict_proba if labelled else model.predict

        if labelled:
            return of_labels(fit(x, train.codes, train.weights)(test_x), train.labels, test)
        return forecast_means(fit, x, train, test_x, test, seed)


def _xgboost(task: str, seed: int, levels: list[int], columns: int) -> Any:
    """Its defaults; levels as such."""
    import xgboost

    types = ["c" if index in levels else "q" for index in range(columns)]
    options: dict[str, Any] = {"random_state": seed, "n_jobs": 1, "enable_categorical": True, "feature_types": types}
    if task in LABELLED:
        return xgboost.XGBClassifier(**options)
    return xgboost.XGBRegressor(objective="count:poisson" if task == COUNTS else "reg:squarederror", **options)


def _ebm(task: str, seed: int, levels: list[int], columns: int) -> Any:
    """Its defaults; levels as such."""
    from interpret import glassbox

    types = ["nominal" if index in levels else "continuous" for index in range(columns)]
    options: dict[str, Any] = {"random_state": seed, "n_jobs": 1, "feature_types": types}
    if task in LABELLED:
        return glassbox.ExplainableBoostingClassifier(**options)
    return glassbox.ExplainableBoostingRegressor(objective="poisson_deviance" if task == COUNTS else "rmse", **options)


def _forest(task: str, seed: int, levels: list[int], columns: int) -> Any:
    """500 trees with leaves of ten rows, whose frequencies are probabilities (Malley et al. 2012); levels by their codes."""
    from sklearn import ensemble

    options: dict[str, Any] = {"n_estimators": 500, "min_samples_leaf": 10, "random_state": seed, "n_jobs": 1}
    if task in LABELLED:
        return ensemble.RandomForestClassifier(**options)
    options |= {"criterion": "poisson" if task == COUNTS else "squared_error"}
    return ensemble.RandomForestRegressor(**options, max_features=1.0 / 3.0)


@dataclass
class Lifelines(Method):
    """An accelerated failure time regression of lifelines with a small L2 penalty."""

    kind: str = "WeibullAFTFitter"
    name: str = ""
    tasks: Sequence[str] = (SURVIVAL,)
    package: str = "lifelines"
    penalty: float = 0.01

    def __post_init__(self) -> None:
        self.name = f"lifelines {self.kind.removesuffix('Fitter')}"

    def forecast(self, train: Rows, test: Rows, seed: int) -> Forecast:
        """See the base class."""
        import lifelines

        x, test_x = _numbers(train, test)
        frame = pd.DataFrame(x).assign(time=train.y[:, 0], event=train.y[:, 1])
        model = getattr(lifelines, self.kind)(penalizer=self.penalty)
        model.fit(frame.rename(columns=str), "time", "event")
        at = pd.DataFrame(test_x).rename(columns=str)
        time, event = test.y[:, 0], test.y[:, 1] == 1.0
        # Each row at its own time: the whole matrix of rows and times is more than is needed.
        later, hazard = np.empty(len(time)), np.empty(len(time))
        for row in range(len(time)):
            one, when = at.iloc[[row]], [time[row], time[row] * (1.0 + 1e-5)]
            cumulative = model.predict_cumulative_hazard(one, times=when).to_numpy()[:, 0]
            later[row], hazard[row] = np.exp(-cumulative[0]), np.diff(cumulative)[0] / (1e-5 * time[row])
        density = np.log(np.maximum(later, 1e-12)) + np.where(event, np.log(np.maximum(hazard, 1e-12)), 0.0)
        return Forecast(density, model.predict_median(at).to_numpy(), covered_times(later, test))


@dataclass
class SurvivalEnsemble(Method):
    """An ensemble of scikit-survival; its survival curves get a hazard that is constant between quantiles of the events."""

    kind: str = "RandomSurvivalForest"
    name: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    tasks: Sequence[str] = (SURVIVAL,)
    package: str = "sksurv"

    def __post_init__(self) -> None:
        self.name = f"scikit-survival {self.kind}"

    def forecast(self, train: Rows, test: Rows, seed: int) -> Forecast:
        """See the base class."""
        from sksurv import ensemble
        from sksurv.util import Surv

        x, test_x = _numbers(train, test)
        time, event = train.y[:, 0], train.y[:, 1] == 1.0
        model = getattr(ensemble, self.kind)(random_state=seed, **self.options)
        model.fit(x, Surv.from_arrays(event, time))
        starts = Hazards.intervals(time, event)
        ends = np.append(starts[1:], max(time[event].max(), 1.01 * starts[-1]))
        curves = np.stack([curve(np.clip(ends, *curve.domain)) for curve in model.predict_survival_function(test_x)])
        return Hazards.of_survival(np.append(starts, ends[-1]), curves).forecast(test)


def _numbers(train: Rows, test: Rows) -> tuple[Array, Array]:
    """Both tables as linear models like them, dense, each level but the first of a column."""
    coded = CodedTable.learn(train.table)
    encode = coded.for_lines()
    x = encode.fit_transform(coded.transform(train.table))
    test_x = encode.transform(coded.transform(test.table))
    dense = [part.toarray() if hasattr(part, "toarray") else np.asarray(part) for part in (x, test_x)]
    kept = dense[0].std(0) > 0.05  # rare levels make regressions without a strong penalty diverge
    return dense[0][:, kept], dense[1][:, kept]


def methods(time_limit: float | None = None) -> dict[str, Method]:
    """All methods by name.

    Args:
        time_limit: Seconds of a fit of this package; None for its default, none.
    """
    options = {} if time_limit is None else {"fit_options": {"time_limit": time_limit}}
    aft = [Lifelines(kind) for kind in ("WeibullAFTFitter", "LogLogisticAFTFitter", "LogNormalAFTFitter")]
    ensembles = [
        SurvivalEnsemble("RandomSurvivalForest", options={"min_samples_leaf": 15, "n_jobs": 1}),
        SurvivalEnsemble("GradientBoostingSurvivalAnalysis"),
    ]
    trees = [Trees("xgboost"), Trees("ebm"), Trees("forest")]
    every = [
        Own(options, name=OURS),
        Boosting(),
        LightGBM(),
        CatBoost(),
        *trees,
        Linear(),
        *aft,
        *ensembles,
        Baseline(),
    ]
    return {method.name: method for method in every}


def missing(method: Method) -> str:
    """The package that a method needs and that is not installed, or nothing."""
    package = "lightgbm" if isinstance(method, LightGBM) else getattr(method, "package", "")
    return "" if not package or importlib.util.find_spec(package) else package


def quiet() -> None:
    """Silences warnings of rivals."""
    warnings.simplefilter("ignore")

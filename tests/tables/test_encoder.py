"""Any table becomes numbers that say what the table says, and a bad one gets one sentence with column and row."""

from __future__ import annotations

import datetime
import decimal
import json
import math
import warnings

import numpy as np
import pandas
import pyarrow
import pytest
from scipy import sparse
from sklearn.utils.estimator_checks import parametrize_with_checks

from itergp import InputError, ItergpWarning
from itergp.persistence import from_state, to_state
from itergp.tables import CategoricalColumn, TableEncoder, decode

ROWS = 60
RNG = np.random.default_rng(0)
BASE = pandas.DataFrame({"a": RNG.normal(size=ROWS), "b": RNG.normal(size=ROWS)})
DAYS = pandas.date_range("2020-01-01", periods=ROWS, freq="37h")
TEXT = RNG.choice(["u", "v", "w"], ROWS)


def every_kind():
    """A frame with a column of every kind that pandas has."""
    rng = np.random.default_rng(1)
    table = BASE.assign(
        gaps=np.where(np.arange(ROWS) % 5 == 0, np.nan, rng.normal(size=ROWS)),
        category=pandas.Categorical(rng.choice(["x", "y", "z"], ROWS)),
        numbered=pandas.Categorical(rng.choice([1, 10, 2], ROWS)),
        ordered=pandas.Categorical(rng.choice(["lo", "mid", "hi"], ROWS), ["lo", "mid", "hi"], ordered=True),
        truth=rng.random(ROWS) > 0.5,
        nullable=pandas.array(rng.integers(0, 5, ROWS), dtype="Int64"),
        real=pandas.array(rng.normal(size=ROWS), dtype="Float64"),
        maybe=pandas.array(rng.random(ROWS) > 0.5, dtype="boolean"),
        string=pandas.array(rng.choice(list("abc"), ROWS), dtype="string"),
        objects=rng.choice(np.array(["u", "v", None], dtype=object), ROWS),
        many=rng.choice([f"level {i}" for i in range(20)], ROWS),
        written=[str(value) if i % 9 else "?" for i, value in enumerate(rng.normal(size=ROWS))],
        date=DAYS,
        zoned=DAYS.tz_localize("Europe/Oslo"),
        day=[datetime.date(2019, 1, 1) + datetime.timedelta(days=i) for i in range(ROWS)],
        iso=pandas.date_range("2021", periods=ROWS).strftime("%Y-%m-%d"),
        span=pandas.to_timedelta(rng.integers(0, 99, ROWS), unit="h"),
        month=pandas.period_range("2020-01", periods=ROWS, freq="M"),
        decimals=[decimal.Decimal(int(i)) for i in rng.integers(0, 99, ROWS)],
        clock=[datetime.time(i % 24, 3) for i in range(ROWS)],
        interval=pandas.cut(rng.normal(size=ROWS), 3),
    )
    table.loc[3, "nullable"] = table.loc[5, "maybe"] = pandas.NA
    table.loc[7, "date"] = pandas.NaT
    return table


def fit(X, **options):
    """An encoder that had nothing to warn of."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return TableEncoder(**options).fit(X)


def encoded(X, **options):
    return fit(X, **options).transform(X)


def column(encoder, name):
    return next(column for column in encoder.columns_ if column.name == name)


@parametrize_with_checks([TableEncoder()])
@pytest.mark.filterwarnings("ignore")
def test_scikit_learns_checks(estimator, check):
    check(estimator)


def test_every_kind_of_column_is_understood():
    table = every_kind()
    encoder = fit(table)
    values = encoder.transform(table)
    assert values.dtype == np.float64
    assert np.isfinite(values).all()
    assert values.shape == (ROWS, len(encoder.get_feature_names_out()))
    assert len(set(encoder.get_feature_names_out())) == values.shape[1]
    assert sorted(i for group in encoder.columns_ for i in group.indices) == list(range(values.shape[1]))
    roles = {name: column(encoder, name).role for name in table.columns}
    assert {name for name, role in roles.items() if role == "categorical"} == {
        "category", "numbered", "truth", "maybe", "string", "objects", "many",
    }  # fmt: skip
    assert {name for name, role in roles.items() if role == "date"} == {"date", "zoned", "day", "iso", "month"}
    assert {name for name, role in roles.items() if role == "ordered"} == {"ordered", "interval"}
    assert {group.name for group in encoder.columns_ if group.role == "gap"} == {"gaps", "nullable", "written", "date"}


def test_columns_are_matched_by_name_and_kept_in_a_file():
    table = every_kind()
    encoder = fit(table)
    expected = encoder.transform(table)
    np.testing.assert_array_equal(encoder.transform(table[table.columns[::-1]]), expected)
    state = to_state(encoder)
    assert not state.arrays
    state.values.update(json.loads(json.dumps(state.values)))
    again = from_state(TableEncoder, state)
    np.testing.assert_array_equal(again.transform(table), expected)
    assert again.columns_ == encoder.columns_
    assert again.n_features_in_ == len(table.columns)


def test_containers_of_one_table_are_encoded_alike():
    table = every_kind().drop(columns=["month", "interval", "decimals"])
    expected = encoded(table)
    backed = table.convert_dtypes(dtype_backend="pyarrow")
    for other in (pyarrow.Table.from_pandas(table), backed):
        np.testing.assert_allclose(encoded(other), expected, rtol=1e-12)
    plain = table.drop(columns=["ordered", "numbered"])  # Python objects do not say what these are
    for other in (plain.to_dict("list"), plain.to_dict("records")):
        np.testing.assert_allclose(encoded(other), encoded(plain), rtol=1e-12)


def test_arrays_of_numbers_stay_what_they_are():
    values = RNG.normal(size=(ROWS, 3))
    for X in (values, values.tolist(), sparse.csr_matrix(values), sparse.csc_array(values), pandas.DataFrame(values)):
        np.testing.assert_array_equal(encoded(X), values)
    structured = np.array([(1, 2.5), (2, 4.0)], dtype=[("n", int), ("x", float)])
    np.testing.assert_array_equal(encoded(structured), [[1.0, 2.5], [2.0, 4.0]])
    np.testing.assert_array_equal(encoded(np.array([[1, "p"], [2, "q"]], dtype=object)), [[1.0, 0.0], [2.0, 1.0]])
    np.testing.assert_array_equal(encoded([[1, "p"], [2, "q"]]), [[1.0, 0.0], [2.0, 1.0]])


def test_gaps_become_the_median_and_a_mark():
    table = BASE.assign(c=[math.nan, *range(ROWS - 1)])
    encoder = fit(table)
    values = encoder.transform(table)
    assert values[0, 2] == np.median(range(ROWS - 1))
    np.testing.assert_array_equal(values[:, 3], [1.0] + [0.0] * (ROWS - 1))
    assert column(encoder, "c").num_gaps == 1
    with pytest.warns(ItergpWarning, match=r"no value in 1 row\(s\) of column 'a', first in row 2\. The median"):
        filled = encoder.transform(table.assign(a=BASE.a.where(np.arange(ROWS) != 2)))
    assert filled[2, 0] == BASE.a.median()


def test_levels_and_what_the_training_data_did_not_have():
    table = BASE.assign(two=TEXT == "u", few=TEXT, many=[f"l{i % 15}" for i in range(ROWS)])
    encoder = fit(table)
    two, few, many = (column(encoder, name) for name in ("two", "few", "many"))
    assert isinstance(few, CategoricalColumn)
    assert [c.coding for c in (two, few, many)] == ["binary", "one-hot", "codes"]
    assert [c.num_levels for c in (two, few, many)] == [2, 3, 15]
    values = encoder.transform(table)
    np.testing.assert_array_equal(values[:, 2], TEXT == "u")
    np.testing.assert_array_equal(values[:, 3:6], TEXT[:, None] == ["u", "v", "w"])
    assert set(values[:, 6]) == set(range(15))
    for other in ("new", None):
        unseen = encoder.transform(table.assign(two=other, few=other, many=other))
        assert set(unseen[:, 2]) == {0.5}
        assert set(unseen[:, 3:6].ravel()) == {0.0}
        assert set(unseen[:, 6]) == {15.0}
    codes = fit(table, one_hot_max_levels=1)
    assert [c.indices for c in codes.columns_] == [(0,), (1,), (2,), (3,), (4,)]


def test_levels_are_compared_as_they_are_written():
    table = BASE.assign(c=pandas.Categorical(RNG.choice([1, 10, 2], ROWS)), t=TEXT == "u")
    encoder = fit(table)
    assert column(encoder, "c").levels == ("1", "2", "10")
    expected = encoder.transform(table)
    for change in (float, str, int):
        np.testing.assert_array_equal(encoder.transform(table.assign(c=table.c.astype(change))), expected)
        np.testing.assert_array_equal(encoder.transform(table.assign(t=table.t.astype(change))), expected)


def test_a_gap_is_a_level_where_training_had_some():
    table = BASE.assign(c=np.where(np.arange(ROWS) % 3 == 0, None, TEXT))
    encoder = fit(table)
    found = column(encoder, "c")
    assert found.gap_level
    assert found.num_levels == 4
    np.testing.assert_array_equal(encoder.transform(table)[:, 5], np.arange(ROWS) % 3 == 0)
    assert encoder.get_feature_names_out()[-1] == "c=gap"


def test_dates_have_the_parts_that_vary():
    days = pandas.to_datetime(["2023-01-01", "2024-07-02", "2024-12-31"] * 20)
    encoder = fit(BASE.assign(d=days))
    assert [c.part for c in encoder.columns_ if c.name == "d"] == ["trend", "season", "weekday"]
    trend, sine, cosine = encoder.transform(BASE.assign(d=days))[1, 2:5]
    assert trend == pytest.approx(54.5, abs=0.01)
    angle = 2.0 * math.pi * 183 / 366
    np.testing.assert_allclose([sine, cosine], [math.sin(angle), math.cos(angle)])
    hours = pandas.date_range("2024-03-01", periods=ROWS, freq="min")
    assert [c.part for c in fit(BASE.assign(d=hours)).columns_ if c.name == "d"] == ["trend", "hour"]


def test_dates_of_a_zone_are_by_its_clock():
    table = BASE.assign(d=DAYS.tz_localize("Europe/Oslo"))
    encoder = fit(table)
    np.testing.assert_array_equal(encoder.transform(table), encoded(BASE.assign(d=DAYS)))
    elsewhere = table.assign(d=table.d.dt.tz_convert("Asia/Tokyo"))
    np.testing.assert_allclose(encoder.transform(elsewhere), encoder.transform(table))
    with pytest.raises(InputError, match=r"Column 'd' of `X` must have a time zone.*Got no time zone"):
        encoder.transform(BASE.assign(d=DAYS))


def test_what_says_nothing_is_left_out_and_named():
    table = BASE.assign(one=7, none=np.nan, copy=BASE.a, name=[f"id {i}" for i in range(ROWS)])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        encoder = TableEncoder().fit(table)
    said = " ".join(str(warning.message) for warning in caught)
    assert {c.name: c.noticed for c in encoder.columns_ if c.role == "dropped"} == {
        "one": ("constant",),
        "none": ("no values",),
        "copy": ("duplicate of 'a'",),
        "name": ("id-like",),
    }
    for words in (
        "one value only in 1 of 6: 'one'",
        "none in 1 of 6: 'none'",
        "copies in 1 of 6: 'copy'",
        "row in 1 of 6: 'name'",
    ):
        assert words in said
    np.testing.assert_array_equal(encoder.transform(table), BASE)
    kept = fit(table.drop(columns="name"), drop=False)
    assert [c.indices for c in kept.columns_] == [(0,), (1,), (2,), (3,), (4,)]


def test_few_rows_leave_nothing_out():
    row = pandas.DataFrame({"a": [1.0], "c": ["x"]})
    assert encoded(row).shape == (1, 2)
    assert encoded(pandas.DataFrame({"a": [1.0, 2.0], "c": ["x", "y"]})).tolist() == [[1.0, 0.0], [2.0, 1.0]]


def test_what_is_noticed_about_numbers():
    rng = np.random.default_rng(0)
    table = BASE.assign(
        amounts=np.where(rng.random(ROWS) < 0.5, 0.0, np.exp(2.0 * rng.normal(size=ROWS))),
        row=range(1, ROWS + 1),
        count=rng.poisson(5.0, ROWS),
    )
    encoder = fit(table)
    assert column(encoder, "amounts").noticed == ("skewed", "zero-inflated")
    assert column(encoder, "row").noticed == ("whole numbers", "row numbers")
    assert column(encoder, "count").noticed == ("whole numbers",)
    assert column(encoder, "a").noticed == ()
    assert "amounts  numeric" in str(encoder.columns_)


def with_cell(row, value, name="a"):
    table = BASE.astype(object)
    table.at[row, name] = value
    return table


KNOWN = BASE.assign(c=TEXT, d=DAYS)
PROSE = [
    f"A long text about row {i}, with many words, such as people write them in a field for remarks" for i in range(ROWS)
]

# what is wrong -> (what is done, what is said)
MISTAKES = {
    "infinity": (lambda: fit(with_cell(3, math.inf).astype(float)), r"Column 'a' .* finite\. Got inf in row 3, .* 1 of 60 row"),
    "infinity in an array": (lambda: fit(BASE.to_numpy() * math.inf), r"Column 0 of `X` must be finite\. Got -?inf in row 0"),
    "two kinds": (
        lambda: fit(with_cell(3, "x")),
        r"Column 'a' of `X` must hold values of one kind\. Got numbers \(0\.\d+ in row 0\) and text \('x' in row 3\)\. Convert",
    ),
    "truth and numbers": (lambda: fit(with_cell(3, True)), r"numbers .* and truth values \(True in row 3\)"),
    "lists": (lambda: fit(with_cell(3, [1.0])), r"Column 'a' .* not 'list'\. Got one in row 3\. Make columns"),
    "free text": (lambda: fit(KNOWN.assign(t=PROSE)), r"Column 't' .*Got free text: 60 different texts .*Leave it out, or"),
    "two of a name": (lambda: fit(pandas.concat([BASE, BASE[["a"]]], axis=1)), r"different names\. Got 'a' twice\. Rename"),
    "no rows": (lambda: fit(BASE[:0]), r"must have rows and columns\. Found array with 0 sample\(s\)"),
    "no columns": (lambda: fit(BASE[[]]), r"must have rows and columns\. Found array with 0 feature\(s\)"),
    "identifiers only": (lambda: fit({"c": [f"i{i}" for i in range(30)]}), r"says something .*Got identifiers only, in 'c'"),
    "no table": (lambda: fit(None), r"must be a table.*Got NoneType\. Pass a data frame"),
    "one column alone": (lambda: fit(BASE.a), r"Got a 1D array of shape \(60,\)\. Reshape your data: X\.to_frame\(\)"),
    "complex numbers": (lambda: fit(BASE.assign(c=1j)), r"Column 'c' of `X` must be real numbers\. Got complex"),
    "too large": (lambda: fit(np.array([[10**400, 1.0]], dtype=object)), r"Column 0 .*Got one in row 0 that is not \(int"),
    "two zones": (lambda: fit(BASE.assign(d=["2020-01-01T00:00Z", "2020-01-02"] * 30)), r"one in row 0 and none in row 1"),
    "no such date": (lambda: fit(BASE.assign(d=["2020-01-01", "2020-13-01"] * 30)), r"Got '2020-13-01' in row 1\. Correct"),
    "a column missing": (lambda: fit(KNOWN).transform(KNOWN[["a", "c", "d"]]), r"training data\. Got none called 'b'\. Select"),
    "another column": (lambda: fit(KNOWN).transform(KNOWN.assign(z=1)), r"training data\. Got 'z', unseen at fit time\. Sel"),
    "fewer columns": (lambda: fit(BASE.to_numpy()).transform(np.ones((3, 1))), r"X has 1 features, but TableEncoder is exp"),
    "text for numbers": (
        lambda: fit(KNOWN).transform(KNOWN.assign(a=["1.5", "x"] * 30)),
        r"Column 'a' of `X` must be numbers, as in the training data\. Got 'x' in row 1\. Correct or drop",
    ),
    "numbers for dates": (lambda: fit(KNOWN).transform(KNOWN.assign(d=1.0)), r"Column 'd' of `X` must be dates, as in the"),
    "a sparse matrix too large": (
        lambda: fit(sparse.csr_matrix((10**6, 10**6))),
        r"must fit into memory once dense\. Got 1,000,000 x 1,000,000, .*TruncatedSVD",
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gets_a_sentence(mistake):
    act, match = MISTAKES[mistake]
    with pytest.raises((InputError, TypeError), match=match) as caught:
        act()
    assert str(caught.value).rstrip().endswith(".")
    assert len(str(caught.value)) < 420


def test_a_table_without_names_is_taken_in_order():
    encoder = fit(BASE)
    with pytest.warns(ItergpWarning, match="X does not have valid feature names"):
        np.testing.assert_array_equal(encoder.transform(BASE.to_numpy()), BASE)


def test_names_need_not_be_text():
    frame = BASE.rename(columns={"a": 1})
    np.testing.assert_array_equal(fit(frame).transform(frame[["b", 1]]), BASE)
    assert not hasattr(fit(frame), "feature_names_in_")


# ------------------------------------------------------------------------ and back
@pytest.mark.parametrize("most_one_hot", [1, 10])
def test_decoded_rows_say_what_encoded_ones_say(most_one_hot):
    """Encoded anew, decoded rows are the same; levels that training did not have are gaps."""
    rng = np.random.default_rng(0)
    table = pandas.DataFrame(
        {
            "number": np.where(rng.random(60) < 0.2, np.nan, rng.normal(size=60)),
            "two": rng.choice(["yes", "no"], 60),
            "city": rng.choice(["Oslo", "Rome", "Bonn", None], 60),
            "grade": pandas.Categorical(rng.choice(["low", "mid", "top"], 60), ["low", "mid", "top"], ordered=True),
            "when": pandas.date_range("2021-03-01", periods=60, freq="5D"),
            "same": 1.0,
        }
    )
    encoder = TableEncoder(one_hot_max_levels=most_one_hot, groups=["two"])
    with pytest.warns(ItergpWarning, match="one value only"):
        encoded = encoder.fit_transform(table)
    back = decode(encoder.columns_, encoded)
    assert [np.isnan(column).sum() for column in back.columns[:1]] == [table["number"].isna().sum()]
    assert [*back.columns[1]] == [*table["two"]]
    assert [level for level in back.columns[2] if level == level] == [*table["city"].dropna()]
    again = TableEncoder(one_hot_max_levels=most_one_hot).fit_transform(back)
    np.testing.assert_array_equal(np.sort(again, 1), np.sort(encoded, 1))
    unseen = decode(encoder.columns_, encoder.transform(table.assign(two="perhaps", city="Paris")))
    assert unseen.columns[1].isna().all()
    assert unseen.columns[2].isna().all()

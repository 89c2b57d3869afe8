"""What a run leaves behind, as data: records of its steps, the trace that holds them, and those that listen to it."""

from itergp.records.listeners import Listener, Listeners, as_listener
from itergp.records.records import FitRecord, LearningTrace, Record, RunSettings, StageRecord, TraceRecord
from itergp.records.trace import TraceData

__all__ = [
    "FitRecord",
    "LearningTrace",
    "Listener",
    "Listeners",
    "Record",
    "RunSettings",
    "StageRecord",
    "TraceData",
    "TraceRecord",
    "as_listener",
]

"""Results that papers report: facts with their source, shown apart from ours and never ranked with them."""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from .leaderboard import Leaderboard

_FOLDER = files("steer_analysis") / "reported"
_SOURCES = "sources.json"
_WORDS = ("model", "setting", "method")
_AVERAGE = "average"
REPORTED_MARK = "reported"


@dataclass(frozen=True)
class ReportedRow:
    """A line of a paper's table; accuracies in per cent as printed, by suite."""

    model: str
    setting: str
    method: str
    accuracy: Mapping[str, float]
    average: float


@dataclass(frozen=True)
class Reported:
    """One paper's rows and what it says of how they were measured. ``metrics``: ``avg@32`` by suite."""

    title: str
    arxiv: str
    place: str
    metrics: Mapping[str, str]
    decoding: str
    grader: str
    interval: str
    training_seeds: str
    note: str
    rows: Sequence[ReportedRow]

    @property
    def suites(self) -> tuple[str, ...]:
        return tuple(self.metrics)

    @property
    def source(self) -> str:
        """Where the numbers stand."""
        return f"{self.title}, arXiv {self.arxiv}; {self.place}"

    @property
    def about(self) -> str:
        """How they were measured, in one sentence."""
        by_metric: dict[str, list[str]] = {}
        for suite, metric in self.metrics.items():
            by_metric.setdefault(metric, []).append(suite)
        named = "; ".join(f"{metric} on {', '.join(suites)}" for metric, suites in by_metric.items())
        return (
            f"{named}; {self.decoding}; grader: {self.grader}; intervals {self.interval}; "
            f"training seeds {self.training_seeds}"
        )


@cache
def load_reported() -> tuple[Reported, ...]:
    """Every paper's rows that this package ships."""
    sources: dict[str, Any] = json.loads((_FOLDER / _SOURCES).read_text(encoding="utf-8"))
    return tuple(Reported(**about, rows=_rows(name, tuple(about["metrics"]))) for name, about in sources.items())


def _rows(name: str, suites: Sequence[str]) -> tuple[ReportedRow, ...]:
    lines = csv.DictReader((_FOLDER / name).read_text(encoding="utf-8").splitlines())
    return tuple(
        ReportedRow(
            **{word: line[word] for word in _WORDS},
            accuracy={suite: float(line[suite]) for suite in suites},
            average=float(line[_AVERAGE]),
        )
        for line in lines
    )


def beside(board: Leaderboard) -> tuple[Reported, ...]:
    """The papers that report a suite of this leaderboard."""
    ours = {table.protocol.suite for table in board.tables}
    return tuple(one for one in load_reported() if ours & set(one.suites))

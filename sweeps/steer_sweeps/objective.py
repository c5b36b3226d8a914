"""What a study optimises and what it demands: numbers computed from a run's own ``metrics.jsonl``."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Direction = Literal["maximize", "minimize"]
Rows = Sequence[Mapping[str, Any]]
HOURS = ("wall_hours", "gpu_hours")
"""What a constraint may bound beside metrics: hours of a trial by the clock, and those times its GPUs."""


class Section(BaseModel):
    """Base of every part of a sweep: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Objective(Section):
    """Which metric of ``metrics.jsonl`` is optimised, and how its values over the run become one."""

    metric: str = Field(pattern=r"^(eval|train)/.+")
    reduce: Literal["last", "max", "mean_last_2"] = "last"
    direction: Direction | None = None
    """Of ``objectives``. A single ``objective`` has it beside it."""

    def value(self, rows: Rows) -> float:
        """The objective of a run. Raises ``ValueError`` when it has none: a failure is never a number."""
        values = [row[self.metric] for row in rows if self.metric in row]
        if not values:
            raise ValueError(f"the metrics have no {self.metric}")
        used = values if self.reduce == "max" else values[-2:] if self.reduce == "mean_last_2" else values[-1:]
        numbers = _numbers(self.metric, used)
        return max(numbers) if self.reduce == "max" else sum(numbers) / len(numbers)

    def intermediate(self, rows: Rows) -> list[tuple[int, float]]:
        """Training step and value of every evaluation so far, in order, for a pruner; what is no number is left out. A
        step that was run again, from a checkpoint, has its last value."""
        found = {int(row["step"]): row[self.metric] for row in rows if self.metric in row and "step" in row}
        return [(step, float(value)) for step, value in sorted(found.items()) if _is_number(value)]


class Constraint(Section):
    """A bound a trial must keep to be the best: on a metric over its run, or on the hours it took."""

    metric: str
    reduce: Literal["min", "max", "mean", "last"] = "last"
    at_least: float | None = None
    at_most: float | None = None

    @model_validator(mode="after")
    def _makes_sense(self) -> "Constraint":
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError("give exactly one of at_least, at_most; for both bounds give two constraints")
        if self.metric in HOURS:
            if "reduce" in self.model_fields_set and self.reduce != "last":
                raise ValueError(f"reduce = {self.reduce!r}: {self.metric} is one number, there is nothing to reduce")
        elif not self.metric.startswith(("eval/", "train/")):
            raise ValueError(f"metric = {self.metric!r}: must be eval/..., train/..., {' or '.join(HOURS)}")
        return self

    def value(self, rows: Rows, hours: Mapping[str, float]) -> float:
        """By how much the bound is missed, in the metric's unit; at most 0 when it is kept.

        ``hours``: ``wall_hours`` and ``gpu_hours`` of the trial. Raises ``ValueError`` when there is no number.
        """
        if self.metric in HOURS:
            measured = hours[self.metric]
        else:
            measured = self._reduced([row[self.metric] for row in rows if self.metric in row])
        if self.at_least is not None:
            return self.at_least - measured
        assert self.at_most is not None
        return measured - self.at_most

    def _reduced(self, values: Sequence[Any]) -> float:
        if not values:
            raise ValueError(f"the metrics have no {self.metric}, which a constraint bounds")
        numbers = _numbers(self.metric, values[-1:] if self.reduce == "last" else values)
        return {"min": min, "max": max}.get(self.reduce, lambda all_: sum(all_) / len(all_))(numbers)


def _numbers(metric: str, values: Sequence[Any]) -> list[float]:
    numbers = [float(one) for one in values if _is_number(one)]
    if len(numbers) < len(values):
        raise ValueError(f"{metric} is no number in {len(values) - len(numbers)} of the {len(values)} rows used")
    return numbers


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)

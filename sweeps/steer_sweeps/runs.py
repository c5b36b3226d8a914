"""A running trial as its controller knows it: one run for every training seed, and how each stands."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from optuna.trial import FrozenTrial
from steer_experiments.failures import Failure
from steer_experiments.run_dir import MetricsReader, RunDir, Status

from .executors.base import Executor
from .space import Values
from .trials import Arm, Configuration

SECONDS_PER_HOUR = 3600.0


@dataclass(eq=False)
class SeedRun:
    """The run of a trial with one training seed. Times are of this process's monotonic clock; no other is compared."""

    seed: int
    run: RunDir
    job: str
    executor: Executor
    handle: str | None = None
    values: list[float] | None = None
    """Its objectives, once it has ended well."""
    limits: list[float] = field(default_factory=list)
    """Its constraints; at most 0 is kept."""
    hours: float = 0.0
    failure: Failure | None = None
    asked_to_stop: float | None = None
    began: float | None = None
    """When this controller first saw it at work; None for one that was over before, or waits in a queue."""
    moved: float = 0.0
    """When it last showed a sign of life."""
    watched: bool = False
    """Whether this controller saw its job before it was over."""
    taken_over: bool = False
    """An earlier try of the configuration finished it."""
    status: Status | None = None
    reported: int = 0
    """How many intermediate values of it are in the storage."""
    _before_s: float = 0.0
    _signs: tuple[object, ...] = ()

    def __post_init__(self) -> None:
        self.metrics = MetricsReader(self.run.metrics)

    @property
    def over(self) -> bool:
        return self.values is not None or self.failure is not None

    @property
    def open(self) -> bool:
        """Whether a job of it is somewhere, as far as anybody knows."""
        return self.handle is not None and not self.over

    def look(self) -> bool:
        """Notice signs of life: whether its status or metrics changed. Raises ``ValueError`` for a damaged status."""
        now, signs = time.monotonic(), (_sign(self.run.status), _sign(self.run.metrics))
        if self.began is None:
            self.began = self.moved = now
            self.status = self.run.read_status()
            self._before_s = self.status.seconds if self.status else 0.0
        if signs == self._signs:
            return False
        self._signs, self.moved = signs, now
        self.status = self.run.read_status()
        return True

    def seconds(self) -> float:
        """How long it has been at work, also under earlier controllers."""
        told = self.status.seconds if self.status else 0.0
        if self.began is None or (self.status and self.status.ended and told):
            return told
        return max(told, self._before_s + time.monotonic() - self.began)


def _sign(path: Any) -> object:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


@dataclass(eq=False)
class Trial:
    """A trial we look after. ``name`` is what people call it; ``ending``: why it is being stopped early."""

    arm: Arm
    frozen: FrozenTrial
    configuration: Configuration
    name: str
    values: Values
    runs: list[SeedRun]
    gpus: int = 0
    ending: Failure | None = None
    pruned: bool = False

    @property
    def run(self) -> RunDir:
        """The run that is at work, or the last one."""
        return next((one.run for one in self.runs if one.open), self.runs[-1].run)

    @property
    def failure(self) -> Failure | None:
        return next((one.failure for one in self.runs if one.failure), None)

    def wanted(self, one_at_a_time: bool) -> list[SeedRun]:
        """The runs to submit now. With a pruner one at a time: it decides between them."""
        if self.ending or self.pruned or self.failure:
            return []
        waiting = [one for one in self.runs if one.handle is None and not one.over]
        if one_at_a_time:
            return [] if any(one.open for one in self.runs) else waiting[:1]
        return waiting

    @property
    def finished(self) -> bool:
        """Whether nothing more will happen to it: no job is left, and none will be submitted."""
        return not any(one.open for one in self.runs) and (
            bool(self.ending or self.pruned or self.failure) or all(one.over for one in self.runs)
        )

    def means(self) -> list[float]:
        """Every objective's mean over the training seeds that have ended well."""
        done = [one.values for one in self.runs if one.values is not None]
        return [sum(column) / len(column) for column in zip(*done, strict=True)]

    def attributes(self) -> dict[str, Any]:
        """What is written when it ends. A constraint is broken when it is with any seed."""
        own = sum(one.hours for one in self.runs if not one.taken_over)
        found: dict[str, Any] = {"gpu_hours": own * self.gpus}
        limits = [one.limits for one in self.runs if one.limits]
        if limits:
            found["constraints"] = [max(column) for column in zip(*limits, strict=True)]
        return found

    def gpu_hours_now(self) -> float:
        """GPU-hours so far, of this try."""
        runs = [one for one in self.runs if not one.taken_over]
        return self.gpus * sum(one.seconds() / SECONDS_PER_HOUR if one.open else one.hours for one in runs)


def recalled(run: SeedRun, attributes: Mapping[str, Any]) -> SeedRun:
    """The run with what the storage knows of it."""
    run.handle = attributes.get(f"handle/{run.seed}")
    run.values = attributes.get(f"value/{run.seed}")
    run.hours = attributes.get(f"hours/{run.seed}", 0.0)
    run.limits = attributes.get(f"limits/{run.seed}", [])
    run.taken_over = f"source/{run.seed}" in attributes
    return run

"""The trials of a study, a row each, for people: how each stands, and which of many are shown."""

import json
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState
from steer_experiments.run_dir import MetricsReader, RunDir, Status
from steer_experiments.watch import Progress, progress_of

from .study import Arm, Study
from .winner import Front, feasible, signs_of

SHOW_ALL = 24
"""A study of at most so many trials is shown whole."""
LAST_ENDED, MOST_RUNNING = 8, 32
TAIL_BYTES = 64 * 1024
"""Of the metrics of a trial that has ended: enough for its last step and evaluation."""
Key = tuple[str, int]


@dataclass(frozen=True)
class Row:
    """One trial. ``left``: seconds to its end, about; ``seeds``: those done and all; ``best``: the best so far, or on
    the Pareto front."""

    name: str
    state: str
    params: str
    seeds: tuple[int, int]
    progress: Progress
    total: int | None
    left: float | None
    gpus: int
    values: tuple[float, ...]
    note: str
    best: bool = False


def state_of(trial: FrozenTrial) -> str:
    """How a trial ended: ``complete``, ``infeasible`` (complete, but a constraint is broken), ``pruned``, or the class
    of its failure (``failed`` where that is ``training``, which looks like a state); ``running`` or ``waiting``
    before."""
    if trial.state == TrialState.COMPLETE:
        return "complete" if feasible(trial) else "infeasible"
    if trial.state == TrialState.FAIL:
        outcome = str(trial.user_attrs.get("outcome", "failed"))
        return "failed" if outcome == "training" else outcome
    return trial.state.name.lower()


def is_ours(trial: FrozenTrial) -> bool:
    """Whether this study ran it: a trial of a warm start comes from another."""
    return "config" in trial.user_attrs and trial.state != TrialState.WAITING


def all_trials(study: Study) -> list[tuple[Arm, FrozenTrial]]:
    """Every trial that was started, as far as the index knows, baselines first, by number."""
    found = []
    for arm in study.arms:
        ours = [one for tries in arm.tries.values() for one in tries if is_ours(one)]
        found += [(arm, one) for one in sorted(ours, key=lambda one: one.number)]
    return found


def rows(study: Study) -> list[Row]:
    """All trials that were started, as they stand now."""
    study.refresh()
    look = Look(study)
    look.update()
    return look.every()


@dataclass
class Look:
    """A study as a person sees it, again and again. Looking costs what changed: ended trials are counted once, and only
    the few that are shown are read. Bring the study's index up to date before :meth:`update`."""

    study: Study
    counts: Counter[str] = field(default_factory=Counter)
    """Ended trials by :func:`state_of`."""
    front: Front = field(init=False)
    _ended: set[Key] = field(default_factory=set)
    _last: deque[tuple[Arm, FrozenTrial]] = field(default_factory=lambda: deque(maxlen=LAST_ENDED))
    _readers: dict[Path, MetricsReader] = field(default_factory=dict)
    _rows: dict[Key, Row] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.front = Front(signs_of(self.study.sweep))

    def update(self) -> None:
        """Take in the trials that ended since the last time."""
        new = []
        for arm in self.study.arms:
            for tries in arm.tries.values():
                for trial in tries:
                    if trial.state.is_finished() and (arm.kind, trial.number) not in self._ended and is_ours(trial):
                        new.append((arm, trial))
        for arm, trial in sorted(new, key=lambda one: str(one[1].datetime_complete)):
            self._ended.add((arm.kind, trial.number))
            self.counts[state_of(trial)] += 1
            self._last.append((arm, trial))
            if arm.searched:
                self.front.add(trial)

    def running(self) -> list[tuple[Arm, FrozenTrial]]:
        return [(arm, one) for arm in self.study.arms for one in arm.unfinished.values() if is_ours(one)]

    def every(self) -> list[Row]:
        return [self.row(arm, one) for arm, one in all_trials(self.study)]

    def selected(self) -> list[Row]:
        """All rows of a small study; of a large one the best, what ended last, and what runs."""
        running = self.running()
        if len(self._ended) + len(running) <= SHOW_ALL:
            shown = all_trials(self.study)
        else:
            best = [(self.study.searched, one) for one in self.front.trials[:LAST_ENDED]]
            last = [one for one in self._last if one[1].state.is_finished()]
            shown = list({(arm.kind, one.number): (arm, one) for arm, one in [*best, *last]}.values())
            shown += running[:MOST_RUNNING]
        found = {(arm.kind, one.number): self.row(arm, one) for arm, one in shown}
        ended = {(arm.kind, one.number) for arm, one in shown if one.state.is_finished()}
        self._rows = {key: row for key, row in self._rows.items() if key in ended}
        paths = {run.path for arm, one in running for run in self.study.run_dirs(arm, one)}
        self._readers = {path: reader for path, reader in self._readers.items() if path in paths}
        return list(found.values())

    def summary(self) -> str:
        """One line: how many trials are in which state, and the best value so far."""
        ranked = sorted(self.counts.items(), key=lambda one: (-one[1], one[0]))
        parts = [f"{len(self.running())} running", *(f"{n} {state}" for state, n in ranked)]
        line, best = ", ".join(parts), self.front.trials
        if best and len(self.front.signs) > 1:
            return f"{line}; Pareto front of {len(best)}"
        return f"{line}; best {best[0].values[0]:.4f} (trial {best[0].number})" if best else line

    # -- one trial -----------------------------------------------------------------------------------------------------

    def row(self, arm: Arm, trial: FrozenTrial) -> Row:
        key = (arm.kind, trial.number)
        best = arm.searched and any(one.number == trial.number for one in self.front.trials)
        if trial.state.is_finished() and key in self._rows and self._rows[key].best == best:
            return self._rows[key]
        row = self._running(arm, trial) if trial.state == TrialState.RUNNING else self._ended_row(arm, trial, best)
        if trial.state.is_finished():
            self._rows[key] = row
        return row

    def _ended_row(self, arm: Arm, trial: FrozenTrial, best: bool) -> Row:
        seen = [self._read_ended(run) for run in self.study.run_dirs(arm, trial)]
        known = [one for one in seen if one[0]]
        status, progress, damage = known[-1] if known else seen[-1]
        done = sum(one is not None and one.state == "finished" for one, _, _ in seen)
        return Row(
            name=self.study.run_name(arm, trial),
            state=state_of(trial),
            params=params_text(self.study, arm, trial),
            seeds=(done, len(seen)),
            progress=progress,
            total=status.total_steps if status else None,
            left=None,
            gpus=0,
            values=tuple(trial.values or ()),
            note=plain(str(trial.user_attrs.get("reason", "") or damage)),
            best=best,
        )

    def _running(self, arm: Arm, trial: FrozenTrial) -> Row:
        seen = [self._read(run) for run in self.study.run_dirs(arm, trial)]
        at_work = [one for one in seen if one[0] and not one[0].ended]
        status, progress, damage = at_work[0] if at_work else next((one for one in seen if one[0] is None), seen[-1])
        waiting = sum(one is None for one, _, _ in seen)
        per_run = int(trial.user_attrs.get("executor", {}).get("gpus_per_trial", 0))
        return Row(
            name=self.study.run_name(arm, trial),
            state=_running_state(status),
            params=params_text(self.study, arm, trial),
            seeds=(sum(one is not None and one.state == "finished" for one, _, _ in seen), len(seen)),
            progress=progress,
            total=status.total_steps if status else None,
            left=_left([(one, known) for one, known, _ in at_work], waiting),
            gpus=per_run * len(at_work),
            values=(),
            note=plain(damage),
        )

    def _read(self, run: RunDir) -> tuple[Status | None, Progress, str]:
        """Status, progress, and what is damaged: a look at a study must not end because of one run's file."""
        reader = self._readers.setdefault(run.path, MetricsReader(run.metrics))
        try:
            return run.read_status(), self._progress(reader.read()), ""
        except (ValueError, OSError) as error:
            return None, Progress(), str(error)

    def _read_ended(self, run: RunDir) -> tuple[Status | None, Progress, str]:
        try:
            return run.read_status(), self._progress(_last_rows(run.metrics)), ""
        except (ValueError, OSError) as error:
            return None, Progress(), str(error)

    def _progress(self, metrics: Sequence[Mapping[str, Any]]) -> Progress:
        """Its validation is the last value of what the study optimises first."""
        metric, found = self.study.sweep.objective.metric, progress_of(metrics)
        values = [row[metric] for row in metrics if row.get(metric) is not None]
        return replace(found, validation=values[-1]) if values else found


def _running_state(status: Status | None) -> str:
    """Of a trial that has not ended in the study; one whose run is over is about to."""
    if status is None:
        return "starting"
    return "ending" if status.ended else status.state


def _left(at_work: Sequence[tuple[Status | None, Progress]], waiting: int) -> float | None:
    """Seconds until the slowest run has ended and those that wait have followed it; None where no run knows."""
    known = [(one, status.total_steps) for status, one in at_work if status]
    lefts = [one.seconds_left(total) for one, total in known]
    wholes = [(total or 0) * (one.seconds_per_step or 0.0) for one, total in known]
    if not lefts or any(one is None for one in lefts):
        return None
    return max(one or 0.0 for one in lefts) + waiting * max(wholes)


def _last_rows(path: Path) -> list[dict[str, Any]]:
    """The last complete lines of a metrics file, as many as its last 64 KiB hold."""
    try:
        with path.open("rb") as file:
            start = max(0, path.stat().st_size - TAIL_BYTES)
            file.seek(start)
            lines = file.read().split(b"\n")
    except FileNotFoundError:
        return []
    found = []
    for line in lines[1 if start else 0 :]:
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, UnicodeDecodeError):
            continue
        if isinstance(row, dict) and "step" in row and "time" in row:
            found.append(row)
    return found


# -- words -------------------------------------------------------------------------------------------------------------


def params_text(study: Study, arm: Arm, trial: FrozenTrial) -> str:
    """What was drawn, by short names; of a baseline what it sets."""
    values = study.sweep.baselines[trial.user_attrs["config"]].set if arm.baseline else trial.params
    return keys_text(values)


def keys_text(values: Mapping[str, Any]) -> str:
    shorts = [_short_name(key) for key in values]
    names = [short if shorts.count(short) == 1 else key for short, key in zip(shorts, values, strict=True)]
    return " ".join(f"{name}={_value(value)}" for name, value in zip(names, values.values(), strict=True))


def _short_name(key: str) -> str:
    parts = key.split(".")
    return ".".join(parts[-2:]) if parts[-1].isdecimal() else parts[-1]


def _value(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def plain(text: str) -> str:
    """The first line, without what a terminal would obey."""
    line = text.split("\n")[0]
    return "".join(one if one.isprintable() else "?" for one in line)

"""What a person sees of a study: a live table on a terminal, lines elsewhere, the tables of status and best."""

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text
from steer_experiments.run_dir import RunDir, Status
from steer_experiments.watch import Progress, progress_of, show

from .controller import Trial
from .spec import Sweep
from .study import Arm, Study, best

LINES_EVERY_S = 30.0
TABLE_EVERY_S = 2.0
COLUMNS = ("trial", "state", "parameters", "step", "validation", "entropy", "left", "objective", "note")


@dataclass(frozen=True)
class Row:
    """One trial, for people."""

    name: str
    state: str
    params: str
    progress: Progress
    total: int | None
    objective: float | None
    note: str

    def cells(self) -> tuple[str, ...]:
        left = self.progress.seconds_left(self.total) if self.state == "running" else None
        return (
            *(self.name, self.state, self.params, f"{self.progress.step}/{self.total or '?'}"),
            *(show(self.progress.validation), show(self.progress.entropy)),
            "" if left is None else f"{left // 60:.0f}:{left % 60:02.0f}",
            *(show(self.objective), self.note),
        )


def rows(study: Study) -> list[Row]:
    """Every trial that was started, baselines first."""
    arms = (study.baselines, study.searched)
    return [_row(study, arm, one) for arm in arms for one in arm.trials() if one.state != TrialState.WAITING]


def _row(study: Study, arm: Arm, trial: FrozenTrial) -> Row:
    run, state = study.run_dir(arm, trial), trial.state.name.lower()
    status, progress, damage = _read(run)
    if trial.state == TrialState.RUNNING:
        state = status.state if status else "starting"
    elif trial.state == TrialState.FAIL:
        state = str(trial.user_attrs.get("outcome", "failed"))
    note = str(trial.user_attrs.get("reason", "") or damage).split("\n")[0]
    params = " ".join(f"{key.split('.')[-1]}={_short(value)}" for key, value in trial.params.items())
    total = status.total_steps if status else None
    return Row(run.path.name, state, params, progress, total, trial.value, note)


def _read(run: RunDir) -> tuple[Status | None, Progress, str]:
    """Status, progress, and what is damaged: a look at a study must not end because of one run's file."""
    try:
        return run.read_status(), progress_of(run.read_metrics()), ""
    except ValueError as error:
        return None, Progress(), str(error)


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def table(study: Study) -> Table:
    """The study as a table."""
    found = Table(*COLUMNS, title=f"{study.sweep.name}: {study.sweep.objective.metric}", title_justify="left")
    for row in rows(study):
        found.add_row(*(Text(cell) for cell in row.cells()))  # Text: a reason may hold what rich takes for markup
    return found


@dataclass
class Screen:
    """``tell`` prints one event; ``watch`` keeps the table, or a line a trial now and then, up to date."""

    study: Study
    console: Console
    live: Live | None = None
    _updated: float = field(default_factory=time.monotonic)

    def tell(self, line: str) -> None:
        if self.live:
            self.live.console.print(line, markup=False, highlight=False)
        else:
            print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)

    def watch(self, running: Sequence[Trial]) -> None:
        every = TABLE_EVERY_S if self.live else LINES_EVERY_S
        if time.monotonic() - self._updated < every:
            return
        self._updated = time.monotonic()
        if self.live:
            self.live.update(table(self.study), refresh=True)
            return
        for trial in running:
            status, progress, damage = _read(trial.run)
            total = status.total_steps if status else None
            state = damage or (status.state if status else "starting")
            self.tell(f"trial {trial.name}: {state}  {progress.line(total)}")


@contextmanager
def screen(study: Study) -> Iterator[Screen]:
    """A screen for this terminal, or for a log; ends with the table of all trials."""
    console = Console()
    if not sys.stdout.isatty():
        yield Screen(study, console)
        print_table(study)
        return
    with Live(table(study), console=console, auto_refresh=False) as live:
        found = Screen(study, console, live)
        yield found
        live.update(table(study), refresh=True)


def print_table(study: Study) -> None:
    """The table once; as wide as it needs where the output is no terminal."""
    Console(width=None if sys.stdout.isatty() else 200).print(table(study))


def describe_plan(sweep: Sweep, path: Path) -> str:
    """What ``sweep run`` would do, for ``--dry-run``."""
    lines = [f"study {sweep.name} in {path}, {sweep.slots} at a time, {sweep.direction} {sweep.objective.metric}"]
    lines += [f"baseline {one.name}: {_keys(one.set)}" for one in sweep.baselines]
    lines += [f"trial {index}: {_keys(params)}, the rest sampled" for index, params in enumerate(sweep.enqueue)]
    lines.append(f"{sweep.n_trials - len(sweep.enqueue)} trials sampled by {sweep.sampler['name']} from:")
    return "\n".join([*lines, *(f"  {key}: {dimension}" for key, dimension in sweep.space.items())])


def _keys(values: Mapping[str, object]) -> str:
    return ", ".join(f"{key}={value}" for key, value in values.items()) or "the recipe as it is"


def describe_best(study: Study) -> str:
    """The best searched trial: objective, parameters, run directory; or that there is none yet."""
    found = best(study)
    if found is None or found.complete is None:
        return f"{study.path}: no searched trial is complete yet"
    where: Path = study.run_dir(found.arm, found.complete).path
    params = [f"  {key}: {value}" for key, value in found.complete.params.items()]
    n = sum(one.complete is not None for one in study.configurations() if not one.arm.baseline)
    return "\n".join([f"{study.sweep.objective.metric} = {found.value:.4f}  (best of {n})", *params, f"  {where}"])

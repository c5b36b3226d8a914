"""What a person sees of a study: a live table on a terminal, lines elsewhere, the tables of status and best."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text
from steer_experiments.watch import show

from .controller import Trial
from .objective import Objective
from .rows import SHOW_ALL, Look, Row, rows
from .storage import AWAY_S
from .study import Configuration, Study
from .winner import winners_of

__all__ = ["Screen", "describe_best", "print_table", "rows", "screen", "table", "watch_study"]

LINES_EVERY_S = 30.0
TABLE_EVERY_S = 2.0
MOST_LINES = 16
LOG_WIDTH = 200
"""Of a table that goes to no terminal."""
WIDE = ("parameters", "note")
MARK = "*"


def table(study: Study, shown: Sequence[Row], whole: bool = True) -> Table:
    """Rows as a table; a line a trial unless ``whole``. Columns that would say the same of all are left out."""
    found = Table(title=_title(study), title_justify="left")
    names = _columns(study, shown)
    for name in names:  # where a terminal is narrow the wide columns give way
        found.add_column(name, no_wrap=name not in WIDE, max_width=60 if name in WIDE and not whole else None)
    for row in shown:
        cells = _cells(study, row)
        found.add_row(*(_cell(cells[name], short=name in WIDE and not whole) for name in names))
    return found


def _cell(text: str, short: bool) -> Text:
    """Not as plain text: a reason may hold what rich takes for markup."""
    return Text(text, no_wrap=True, overflow="ellipsis") if short else Text(text, overflow="fold")


def _title(study: Study) -> str:
    objectives = ", ".join(f"{one.direction} {one.metric}" for one in study.sweep.all_objectives)
    return f"{study.sweep.name}: {objectives}   {MARK} best so far".replace("[", r"\[")


def _columns(study: Study, shown: Sequence[Row]) -> list[str]:
    seeds = ["seeds"] if any(row.seeds[1] > 1 for row in shown) else []
    gpus = ["GPUs"] if study.sweep.executor.gpus_per_trial or any(row.gpus for row in shown) else []
    first = ["trial", "state", "parameters", *seeds, "step", "accuracy", "entropy", "left", *gpus]
    return [*first, *_objective_names(study.sweep.all_objectives), "note"]


def _objective_names(objectives: Sequence[Objective]) -> list[str]:
    """One is called the objective; several by the ends of their metrics."""
    if len(objectives) == 1:
        return ["objective"]
    ends = [one.metric.rsplit("/", 1)[-1] for one in objectives]
    return [
        end if ends.count(end) == 1 else f"{one.metric} {one.reduce}" for end, one in zip(ends, objectives, strict=True)
    ]


def _cells(study: Study, row: Row) -> dict[str, str]:
    names = _objective_names(study.sweep.all_objectives)
    values = [show(value, 4) for value in row.values] or ["-"] * len(names)
    return {
        "trial": row.name + (MARK if row.best else ""),
        "state": row.state,
        "parameters": row.params,
        "seeds": f"{row.seeds[0]}/{row.seeds[1]}",
        "step": f"{row.progress.step}/{row.total or '?'}",
        "accuracy": show(row.progress.validation),
        "entropy": show(row.progress.entropy),
        "left": "" if row.left is None else duration(row.left),
        "GPUs": str(row.gpus or ""),
        "note": row.note,
    } | dict(zip(names, values, strict=True))


def duration(seconds: float) -> str:
    """``3:05`` (minutes) or ``2h10``."""
    whole = int(seconds)
    return f"{whole // 3600}h{whole % 3600 // 60:02d}" if whole >= 3600 else f"{whole // 60}:{whole % 60:02d}"


# -- live --------------------------------------------------------------------------------------------------------------


def _picture(look: Look, every: bool = False) -> Group:
    """The rows worth a look (or every one), and one line on all."""
    look.update()
    shown = look.every() if every else look.selected()
    return Group(table(look.study, shown, whole=every), Text(look.summary()))


@dataclass
class Screen:
    """``tell`` prints one event; ``watch`` keeps the table, or lines now and then, up to date."""

    study: Study
    look: Look
    live: Live | None = None
    _updated: float = field(default_factory=time.monotonic)
    _steps: dict[str, int] = field(default_factory=dict)

    def tell(self, line: str) -> None:
        if self.live:
            self.live.console.print(line, markup=False, highlight=False)
        else:
            print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)

    def watch(self, running: Sequence[Trial]) -> None:
        """Called at every poll of the controller, which keeps the study's index up to date."""
        every = TABLE_EVERY_S if self.live else LINES_EVERY_S
        if time.monotonic() - self._updated < every:
            return
        self._updated = time.monotonic()
        if self.live:
            self.live.update(_picture(self.look), refresh=True)
        else:
            self._lines(running)

    def _lines(self, running: Sequence[Trial]) -> None:
        """What moved since the last lines, and how the study stands."""
        self.look.update()
        lines, steps = [], dict[str, int]()
        for trial in running:
            row = self.look.row(trial.arm, trial.frozen)
            steps[trial.name] = row.progress.step
            if self._steps.get(trial.name) != row.progress.step or row.note:
                done = f"  seeds {row.seeds[0]}/{row.seeds[1]}" if row.seeds[1] > 1 else ""
                lines.append(f"trial {trial.name}: {row.note or row.state}  {row.progress.line(row.total)}{done}")
        self._steps = steps
        more = [f"and {len(lines) - MOST_LINES} more"] if len(lines) > MOST_LINES else []
        for line in [*lines[:MOST_LINES], *more, *([self.look.summary()] if lines else [])]:
            self.tell(line)


@contextmanager
def screen(study: Study) -> Iterator[Screen]:
    """A screen for this terminal, or for a log; ends with the table."""
    study.refresh()
    look = Look(study)
    if not sys.stdout.isatty():
        yield Screen(study, look)
        print_table(study)
        return
    with Live(_picture(look), console=Console(), auto_refresh=False) as live:
        yield Screen(study, look, live)
        study.refresh()
        live.update(_picture(look), refresh=True)


def print_table(study: Study, every: bool = False) -> None:
    """The table once, of all trials with ``every``; as wide as it needs where the output is no terminal."""
    study.refresh()
    look, console = Look(study), Console(width=None if sys.stdout.isatty() else LOG_WIDTH)
    console.print(_picture(look, every))
    n = sum(look.counts.values()) + len(look.running())
    if n > SHOW_ALL and not every:
        console.print(Text(f"the best, the last and the running of {n} trials; steer sweep status --all shows all"))


def watch_study(study: Study, every: bool = False, every_s: float | None = None) -> None:
    """The table of a study that somebody runs, kept up to date until Ctrl-C. In a log it is printed when it changed."""
    study.patience.away_s = AWAY_S
    look, last = Look(study), ""
    try:
        if sys.stdout.isatty():
            with Live(console=Console(), auto_refresh=False) as live:
                while True:
                    study.refresh()
                    live.update(_picture(look, every), refresh=True)
                    time.sleep(every_s or TABLE_EVERY_S)
        console = Console(width=LOG_WIDTH)
        while True:
            study.refresh()
            with console.capture() as captured:
                console.print(_picture(look, every))
            if captured.get() != last:
                last = captured.get()
                print(time.strftime("%H:%M:%S"), last, sep="\n", end="", flush=True)
            time.sleep(every_s or LINES_EVERY_S)
    except KeyboardInterrupt:
        return


# -- the best ----------------------------------------------------------------------------------------------------------


def describe_best(study: Study) -> str:
    """The best searched trial that keeps to the constraints (of several objectives the Pareto front) and the best
    finalist: objectives, parameters, run directories; or that there is none yet."""
    found = study.configurations()
    parts = []
    for kind, what in (("searched", "best"), ("finalist", "best finalist")):
        arm = [one for one in found if one.arm.kind == kind and one.complete]
        best = winners_of(study, arm)
        if len(study.sweep.directions) > 1 and best:
            parts.append(f"Pareto front: {len(best)} of {len(arm)} trials ({what})")
        parts += [_described(study, one, f"{what} of {len(arm)}") for one in best]
    if parts:
        return "\n".join(parts)
    n = sum(one.complete is not None for one in found if one.arm.searched)
    if n:
        return f"{study.path}: none of the {n} complete trials keeps to the constraints"
    return f"{study.path}: no searched trial is complete yet"


def _described(study: Study, one: Configuration, what: str) -> str:
    trial = one.complete
    assert trial is not None
    values = zip(study.sweep.all_objectives, trial.values or (), strict=True)
    seeds = study.seeds(one.arm)
    lines = [", ".join(f"{objective.metric} = {value:.4f}" for objective, value in values) + f"  ({what})"]
    lines += [f"  {key}: {value}" for key, value in trial.params.items()]
    if len(seeds) > 1:
        each = [trial.user_attrs.get(f"value/{seed}", ()) for seed in seeds]
        shown = [
            f"{seed}: " + "/".join(f"{value:.4f}" for value in given) for seed, given in zip(seeds, each, strict=True)
        ]
        lines.append(f"  mean of n = {len(seeds)} training seeds ({', '.join(shown)})")
    return "\n".join([*lines, *(f"  {run.path}" for run in study.run_dirs(one.arm, trial))])

"""After the last trial: what the study found and what it cost, then evaluation, leaderboard and report, by the commands
anybody has."""

import subprocess
import sys
from collections.abc import Callable

from steer_experiments.run_dir import write_text
from steer_openrlhf.errors import ConfigError

from .display import describe_best
from .export import exported, hours_by_state
from .importance import importance_lines
from .study import Study
from .winner import write_winners

STEER = (sys.executable, "-m", "steer_sweeps")
SUMMARY = "summary.txt"


def write_results(study: Study, tell: Callable[[str], None]) -> int:
    """Everything at the end of a study; 0 when all was well. ``steer eval`` skips what is evaluated."""
    write_summary(study, tell)
    runs = [str(run.path) for run in study.completed_runs()]
    if not runs:
        tell("no trial is complete: nothing to evaluate")
        return 1
    where = str(study.path)
    codes = []
    for words in (
        ["eval", *runs],
        ["leaderboard", where, "--output", where],
        ["report", where],
    ):
        tell(f"steer {words[0]} ...")
        codes.append(subprocess.run([*STEER, *words], check=False).returncode)
    return int(any(codes))  # also for a command that was killed, whose code is negative


def write_summary(study: Study, tell: Callable[[str], None]) -> None:
    """``summary.txt``, ``trials.csv`` and the winner's recipe in the study directory; the summary is told too."""
    lines = [describe_best(study)]
    try:
        lines += [f"recipe: {path}" for path in write_winners(study)]
    except ConfigError as error:
        lines += error.mistakes
    try:
        lines += ["", *importance_lines(study)]
    except ConfigError as error:
        lines += ["", *error.mistakes]
    lines += ["", *cost_lines(study)]
    write_text(study.path / SUMMARY, "\n".join([f"study {study.sweep.name}", "", *lines]) + "\n")
    write_text(study.path / "trials.csv", exported(study, "csv"))
    for line in lines:
        tell(line)


def cost_lines(study: Study) -> list[str]:
    """Trials, hours and GPU-hours by how the trials ended, the most expensive first."""
    found = sorted(hours_by_state(study).items(), key=lambda one: (-one[1][2], -one[1][1]))
    total = tuple(map(sum, zip(*(one for _, one in found), strict=True))) if found else (0, 0.0, 0.0)
    lines = [f"{'state':<16}{'trials':>8}{'hours':>12}{'GPU-hours':>12}"]
    for state, (n, hours, gpu_hours) in [*found, ("all", total)]:
        lines.append(f"{state:<16}{n:>8}{hours:>12.3f}{gpu_hours:>12.3f}")
    return lines


def unfinished_lines(study: Study) -> tuple[list[str], bool]:
    """What is missing at the end, and what to do; and whether something failed. Pruned is an end as good as any, and
    what was never started the budget decided."""
    found = study.configurations()
    failed = [one for one in found if one.tries and not one.complete and not one.pruned]
    waiting = [one for one in found if not one.tries]
    lines = [f"{one.name}: no result after {len(one.tries)} tries; {one.reason()}" for one in failed]
    if failed:
        lines.append(f"to try these again, mend the cause, then: steer sweep retry {study.path}")
    if waiting:
        lines.append(f"{len(waiting)} configurations were not started; raise the budget to go on")
    return lines, bool(failed)

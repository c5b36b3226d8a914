"""After the last trial: evaluate the checkpoints, then the leaderboard and the report, by the commands anybody has."""

import subprocess
import sys
from collections.abc import Callable

from .study import Study

STEER = (sys.executable, "-m", "steer_sweeps")


def write_results(study: Study, tell: Callable[[str], None]) -> int:
    """Leaderboard and report of a study; 0 when all commands were well. ``steer eval`` skips what is evaluated."""
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

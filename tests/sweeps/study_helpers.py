"""What tests of studies share: programs, behaviours, and what must hold at the end of every study."""

import json
import subprocess
import sys
import time
from pathlib import Path

from optuna.trial import TrialState
from steer_experiments.run_dir import RunDir
from steer_sweeps.study import Study, read_study

HERE = Path(__file__).parent
LONG_S = 120.0


def lines_of(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []


def behave(home: Path, **behaviours: str) -> None:
    (home / "behaviour.json").write_text(json.dumps(behaviours))


def outcomes(study: Study) -> dict[str, str]:
    """Run -> how its trial stands in Optuna."""
    arms = (study.baselines, study.searched)
    found = [(study.run_dir(arm, one).path.name, one) for arm in arms for one in arm.trials()]
    return {name: one.user_attrs.get("outcome", one.state.name.lower()) for name, one in found}


def controller_program(sweep_file: Path, study: Path, *words: str) -> "subprocess.Popen[str]":
    command = [sys.executable, str(HERE / "controller_program.py"), str(sweep_file), str(study), *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def assert_nothing_lost_or_repeated(home: Path, configurations: int) -> None:
    study = read_study(home / "study")
    found = study.configurations()
    assert [one.name for one in found if one.complete is None] == []
    assert len(found) == configurations
    for one in found:
        assert sum(trial.state == TrialState.COMPLETE for trial in one.tries) == 1
        assert not any(trial.state in (TrialState.RUNNING, TrialState.WAITING) for trial in one.tries)
    ended = lines_of(home / "ends.log")
    complete = [run.path.name for run in study.completed_runs()]
    assert sorted(ended) == sorted(complete)  # every good end became the result of its configuration, once
    starts = lines_of(home / "starts.log")
    assert len(starts) == len(set(starts))  # no run directory was used twice
    enqueued = next(one for one in found if (one.arm.baseline, one.index) == (False, 0))
    assert enqueued.complete is not None
    assert enqueued.complete.params == {"steer.lambda_min": 0.7}  # and not drawn anew


def started(home: Path, run: str) -> RunDir:
    found = RunDir(home / "study" / "trials" / run)
    end = time.monotonic() + LONG_S
    while not (status := found.read_status()) or status.state != "running":
        assert time.monotonic() < end, "the trial did not start"
        time.sleep(0.02)
    return found

"""What goes wrong in weeks: each fault is made for real, and afterwards nothing is lost and the study can go on."""

import os
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import psutil
import pytest
from optuna.trial import TrialState
from steer_experiments.processes import is_alive
from steer_experiments.run_dir import RunDir
from steer_sweeps.controller import Controller
from steer_sweeps.executors.base import ExecutorError, Job, JobState
from steer_sweeps.executors.local import LocalExecutor
from steer_sweeps.study import open_study, read_study
from study_helpers import (
    LONG_S,
    assert_nothing_lost_or_repeated,
    behave,
    controller_program,
    lines_of,
    outcomes,
    started,
)

HERE = Path(__file__).parent
TRIAL = (sys.executable, str(HERE / "trial_program.py"), "{config}", "{run_dir}")
Make = Callable[..., Any]


def run(control: Make, sweep: Make, home: Path, silence_s: float = 60.0, **changes: Any) -> Controller:
    controller: Controller = control(home / "study", sweep(**{"baselines": []} | changes))
    controller.attendant.silence_s, controller.attendant.patience_s = silence_s, 0.5
    assert controller.run() is True
    return controller


def left_over(home: Path) -> list[psutil.Process]:
    """Processes of the study that still run."""
    word = str(home / "study")
    return [one for one in psutil.process_iter() if any(word in part for part in _words(one))]


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return []


# -- trials ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("behaviour", ["hang", "deaf"])
def test_a_trial_that_hangs_without_output_is_ended(control: Make, sweep: Make, tmp_path: Path, behaviour: str) -> None:
    """Also one that does not listen when it is asked to end."""
    behave(tmp_path, **{"0": behaviour})
    controller = run(control, sweep, tmp_path, n_trials=2, silence_s=8.0)  # a busy machine starts a trial in 3 s
    trials = controller.study.searched.trials()
    assert [one.user_attrs.get("outcome") for one in trials if one.state == TrialState.FAIL] == ["timeout"]
    assert trials[0].user_attrs["reason"].startswith("hung: wrote neither heartbeat nor metrics")
    status = RunDir(tmp_path / "study" / "trials" / "0").read_status()
    assert status
    assert status.ended
    assert not is_alive(status.pid, status.pid_created)
    assert all(one.complete for one in controller.study.configurations())
    assert left_over(tmp_path) == []


def test_a_killed_trial_is_repeated_with_its_reason_kept(
    control: Make, sweep: Make, sweep_file: Make, tmp_path: Path
) -> None:
    behave(tmp_path, **{"0": "hang"})
    program = controller_program(sweep_file(n_trials=2, baselines=[]), tmp_path / "study")
    status = started(tmp_path, "0").read_status()
    assert status
    os.kill(status.pid, signal.SIGKILL)
    output, _ = program.communicate(timeout=LONG_S)
    assert output.endswith("nothing left\n")
    failed = read_study(tmp_path / "study").searched.trials()[0]
    assert failed.user_attrs["outcome"] == "infrastructure"
    assert "killed by SIGKILL" in failed.user_attrs["reason"]
    assert_nothing_lost_or_repeated(tmp_path, 2)


def test_a_torn_last_line_of_the_metrics_is_left_out(control: Make, sweep: Make, tmp_path: Path) -> None:
    behave(tmp_path, **{"0": "torn"})
    controller = run(control, sweep, tmp_path, n_trials=1)
    assert outcomes(controller.study) == {"0": "complete"}


# -- executors ---------------------------------------------------------------------------------------------------------


class Unreliable(LocalExecutor):
    """Of four calls of a kind the first is lost on the way there, the second's answer on the way back."""

    calls: ClassVar[Counter[str]] = Counter()

    def submit(self, job: Job) -> str:
        return self._perhaps("submit", partial(super().submit, job))

    def state(self, handle: str) -> JobState:
        return self._perhaps("state", partial(super().state, handle))

    def find(self, name: str) -> str | None:
        return self._perhaps("find", partial(super().find, name))

    def free(self) -> int:
        return self._perhaps("free", super().free)

    def _perhaps(self, name: str, action: Callable[[], Any]) -> Any:
        self.calls[name] += 1
        if self.calls[name] % 4 == 1:
            raise ExecutorError(f"{name}: the cluster is not there")
        found = action()
        if self.calls[name] % 4 == 2:
            raise ExecutorError(f"{name}: the cluster went away")
        return found


def test_an_executor_that_often_does_not_answer_loses_nothing(sweep: Make, tmp_path: Path) -> None:
    study = open_study(tmp_path / "study", sweep(n_trials=5))
    lines: list[str] = []
    executor = Unreliable(study.sweep.executor, study.path)
    controller = Controller(study, lines.append, TRIAL, poll_s=0.02, executor=executor)
    controller.trouble_s = 0.02
    assert controller.run() is True
    assert_nothing_lost_or_repeated(tmp_path, 6)
    assert set(outcomes(study).values()) == {"complete"}
    assert min(executor.calls[name] for name in ("submit", "state", "free")) > 8
    assert any("the executor does not answer, trying again" in line for line in lines)


# -- disks -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a megabyte where the first trial will run."""
    path = tmp_path / "study" / "trials" / "0"
    path.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(path)]
    if os.getuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("this user may not mount a small file system")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


def test_a_full_disk_in_the_run_directory_costs_one_try(
    control: Make, sweep: Make, tmp_path: Path, small_disk: Path
) -> None:
    behave(tmp_path, **{"0": "fill"})
    controller = run(control, sweep, tmp_path, n_trials=2)
    failed = controller.study.searched.trials()[0]
    assert failed.user_attrs["outcome"] == "infrastructure"
    assert "No space left on device" in failed.user_attrs["reason"]
    assert all(one.complete for one in controller.study.configurations())


def test_a_run_directory_that_cannot_be_written_costs_one_try(
    control: Make, sweep: Make, tmp_path: Path, small_disk: Path
) -> None:
    """It is full before the run has started."""
    subprocess.run(["dd", "if=/dev/zero", f"of={small_disk / 'x'}"], check=False, capture_output=True)
    controller = run(control, sweep, tmp_path, n_trials=2)
    failed = controller.study.searched.trials()[0]
    assert failed.user_attrs["outcome"] == "infrastructure"
    assert "No space left on device" in failed.user_attrs["reason"]
    assert all(one.complete for one in controller.study.configurations())


def test_a_full_disk_under_the_journal_is_waited_for(control: Make, sweep: Make, tmp_path: Path) -> None:
    """A limit on file sizes tears a line of the journal just as a full disk does, until it is lifted."""
    controller: Controller = control(tmp_path / "study", sweep(n_trials=2, baselines=[]))
    size = (tmp_path / "study" / "journal.log").stat().st_size
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    lifted = []

    def lift() -> None:
        lifted.append(1)
        resource.setrlimit(resource.RLIMIT_FSIZE, old)

    controller.study.patience.meanwhile = lift
    controller._meanwhile = lift  # type: ignore[method-assign]
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 300, old[1]))
    try:
        assert controller.run() is True
    finally:
        lift()
        signal.signal(signal.SIGXFSZ, handler)
    assert len(lifted) > 1
    assert any("does not answer, trying again: OSError" in line for line in controller.lines)  # type: ignore[attr-defined]
    assert outcomes(controller.study) == {"0": "complete", "1": "complete"}
    assert outcomes(read_study(tmp_path / "study")) == outcomes(controller.study)


# -- clocks ------------------------------------------------------------------------------------------------------------


def test_a_clock_that_jumps_changes_nothing(sweep_file: Make, tmp_path: Path) -> None:
    """Hours back and forth, in the controller and in its trials, with a controller killed in between."""
    site, looks = tmp_path / "site", tmp_path / "looks"
    site.mkdir()
    looks.mkdir()
    (site / "sitecustomize.py").write_text((HERE / "jumping_clock.py").read_text())
    path = sweep_file(n_trials=3, retries=0, trial_timeout_hours=0.5, budget={"hours": 1.0})
    behave(tmp_path, ppo="slow")
    words = [sys.executable, str(HERE / "controller_program.py"), str(path), str(tmp_path / "study")]
    search = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))
    env = os.environ | {"PYTHONPATH": search, "CLOCK_LOOKS": str(looks)}
    first = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)
    started(tmp_path, "ppo")
    first.kill()
    first.communicate()
    output = subprocess.run(words, capture_output=True, text=True, env=env, timeout=LONG_S, check=True).stdout
    assert output.endswith("nothing left\n")
    assert_nothing_lost_or_repeated(tmp_path, 4)
    assert set(outcomes(read_study(tmp_path / "study")).values()) == {"complete"}  # nothing timed out, or ran twice
    assert max(int(one.read_text()) for one in looks.iterdir()) > 3  # the clock was looked at, and it jumped


# -- being asked to stop -----------------------------------------------------------------------------------------------


def test_asked_twice_a_controller_ends_trials_that_do_not_listen(
    control: Make, sweep: Make, sweep_file: Make, tmp_path: Path
) -> None:
    behave(tmp_path, ppo="deaf", **{"0": "hang"})
    program = controller_program(sweep_file(n_trials=2, retries=0), tmp_path / "study")
    runs = [started(tmp_path, "ppo"), started(tmp_path, "0")]
    program.send_signal(signal.SIGINT)
    end = time.monotonic() + LONG_S
    while (status := runs[1].read_status()) is None or status.state != "stopped":
        assert time.monotonic() < end
        time.sleep(0.02)
    assert program.poll() is None  # it waits for the other
    program.send_signal(signal.SIGINT)
    output, _ = program.communicate(timeout=LONG_S)
    assert output.endswith("stopped\n"), output
    assert left_over(tmp_path) == []
    assert set(outcomes(read_study(tmp_path / "study")).values()) == {"interrupted"}
    behave(tmp_path)
    controller: Controller = control(tmp_path / "study", sweep(n_trials=2, retries=0))
    assert controller.run() is True
    assert_nothing_lost_or_repeated(tmp_path, 3)
    assert len(lines_of(tmp_path / "starts.log")) == 5

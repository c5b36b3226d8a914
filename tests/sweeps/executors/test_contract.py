"""What every place does alike, with real small programs: nothing started twice, nothing lost, nothing left behind."""

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from executor_places import Place, alive, most_at_once, until
from pydantic import TypeAdapter
from steer_sweeps.executors.base import JobState
from steer_sweeps.executors.config import ExecutorConfig

Values = dict[str, Any]


def status_of(place: Place, name: str) -> Any:
    return place.run(name).read_status()


def test_a_job_runs_and_its_files_come_back(place: Place) -> None:
    executor, job = place.executor(), place.job(place.name(0))
    assert executor.find(job.name) is None
    handle = place.submit(executor, job)
    assert executor.state(handle) in (JobState.pending, JobState.running, JobState.ended)
    place.settle(executor, handle)
    assert executor.state(handle) == JobState.ended
    assert executor.exit_note(handle) == ""
    assert status_of(place, job.name).state == "finished"
    assert [row["step"] for row in place.run(job.name).read_metrics()] == [1, 2]
    assert place.run(job.name).host_args.exists()
    assert executor.find(job.name) == handle


def test_submitting_twice_starts_once(place: Place) -> None:
    executor, other, job = place.executor(), place.executor(), place.job(place.name(1))
    handle = place.submit(executor, job)
    assert executor.submit(job) == handle
    assert other.submit(job) == handle
    place.settle(executor, handle)
    assert other.submit(job) == handle
    place.settle(other, handle)
    assert len(place.lines("start")) == 1


def test_a_killed_controllers_job_is_found_and_not_doubled(place: Place) -> None:
    name, config = place.name(2), TypeAdapter(ExecutorConfig).dump_json(place.config).decode()
    program = str(Path(__file__).with_name("executor_controller.py"))
    killed = subprocess.run([sys.executable, program, config, str(place.folder), name, "slow"], timeout=120)
    assert killed.returncode == -signal.SIGKILL
    executor = place.executor()
    handle = executor.find(name)
    assert handle is not None
    assert executor.submit(place.job(name, "slow")) == handle
    place.settle(executor, handle)
    assert status_of(place, name).state == "finished"
    assert len(place.lines("start")) == 1


@pytest.mark.parametrize(("do", "state", "note"), [("crash", "failed", "exit code 3"), ("vanish", "running", "KILL")])
def test_the_end_is_explained(place: Place, do: str, state: str, note: str) -> None:
    """A program that says that it failed, and one that was killed and could not say anything."""
    executor, name = place.executor(), place.name(do)
    handle = place.submit(executor, place.job(name, do))
    place.settle(executor, handle)
    assert executor.state(handle) == JobState.ended
    assert note in executor.exit_note(handle)
    assert status_of(place, name).state == state


@pytest.mark.parametrize(("do", "force"), [("hang", False), ("hang", True), ("deaf", True)])
def test_cancelled_jobs_leave_no_process(place: Place, do: str, force: bool) -> None:
    """A polite end is the run's own; a forced one asks nobody. Asking twice is harmless, also when it is over."""
    executor, name = place.executor(), place.name(do)
    handle = place.submit(executor, place.job(name, do))
    until(lambda: place.lines("start"))
    executor.cancel(handle, force)
    executor.cancel(handle, force)
    place.settle(executor, handle)
    until(lambda: not alive(place.pids()))
    assert force or status_of(place, name).state == "stopped"
    executor.cancel(handle)
    executor.cancel(handle, force=True)
    assert executor.state(handle) == JobState.ended


def test_a_job_can_be_cancelled_before_it_listens(place: Place) -> None:
    executor = place.executor()
    handle = place.submit(executor, place.job(place.name("early"), "hang"))
    executor.cancel(handle)
    place.settle(executor, handle)
    until(lambda: not alive(place.pids()))
    assert executor.free() == 2


def test_more_jobs_than_slots(place: Place) -> None:
    executor, names = place.executor(), [place.name(index) for index in range(5)]
    handles = [place.submit(executor, place.job(name)) for name in names]
    place.settle(executor, *handles)
    assert [status_of(place, name).state for name in names] == ["finished"] * 5
    assert len(place.lines("start")) == 5
    assert most_at_once(place) <= 2
    assert executor.free() == 2


@pytest.mark.parametrize("name", ["", "../x", "a b", "a;b", "-rf", "x" * 101, "ä", "a\nb"])
def test_a_name_that_is_not_safe_everywhere_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="job name"):
        Place(TypeAdapter(ExecutorConfig).validate_python({"name": "local"}), Path("/nowhere")).named(name)

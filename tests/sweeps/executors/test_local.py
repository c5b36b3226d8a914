"""Trials on one machine: devices of their own, whoever else runs trials there, and nothing kept from the next one."""

import os
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest
from executor_places import OVER, Place, alive, until
from pydantic import TypeAdapter, ValidationError
from steer_openrlhf.errors import ConfigError
from steer_sweeps.executors import devices as gpus
from steer_sweeps.executors.base import ExecutorError, JobState, make_executor
from steer_sweeps.executors.config import ExecutorConfig, LocalConfig
from steer_sweeps.executors.locks import is_locked, try_lock
from steer_sweeps.executors.records import Record, marked, record_of

FOUR = ["0", "1", "2", "3"]


def overlaps(place: Place) -> list[tuple[str, str]]:
    """Pairs of trials that had a device in common at the same time, from what the trials themselves saw."""
    ends = {line["pids"][0]: line for line in place.lines("start")}
    spans = []
    for line in ends.values():
        end = next(one["at"] for one in place.lines("end") if one["pid"] == line["pids"][0])
        spans.append((line["at"], end, set(line["devices"].split(","))))
    return [
        (str(a), str(b)) for i, a in enumerate(spans) for b in spans[:i] if a[0] < b[1] and b[0] < a[1] and a[2] & b[2]
    ]


@pytest.mark.parametrize("need", [1, 2, 3])
def test_trials_have_devices_of_their_own(at: Any, need: int) -> None:
    place = at(LocalConfig(slots=4, gpus_per_trial=need, devices=FOUR))
    executor = place.executor()
    handles = [place.submit(executor, place.job(f"gpu-{index}", "good", need)) for index in range(5)]
    place.settle(executor, *handles)
    seen = [line["devices"].split(",") for line in place.lines("start")]
    assert [len(one) for one in seen] == [need] * 5
    assert {device for one in seen for device in one} <= set(FOUR)
    assert overlaps(place) == []


def test_two_controllers_share_the_slots_of_a_host(at: Any) -> None:
    """Both see the same four devices and two slots; together they never use more."""
    place = at(LocalConfig(slots=2, gpus_per_trial=2, devices=FOUR))
    first, second = place.executor(), place.executor()
    place.submit(first, place.job("a", "hang", 2))
    assert second.free() == 1
    place.submit(second, place.job("b", "hang", 2))
    assert (first.free(), second.free()) == (0, 0)
    with pytest.raises(ExecutorError, match="no free slot"):
        first.submit(place.job("c", "hang", 2))
    until(lambda: len(place.lines("start")) == 2)
    assert len({device for line in place.lines("start") for device in line["devices"].split(",")}) == 4
    first.cancel("b", force=True)  # any controller may
    assert first.free() == 1
    assert second.state("b") == JobState.ended
    assert second.exit_note("b") == "killed on request"


def test_a_big_trial_is_not_starved_by_small_ones_of_another_study(at: Any, tmp_path: Path) -> None:
    """Three of four devices are busy, and a small study would take each that comes free. It has to wait its turn."""
    small = at(LocalConfig(slots=8, gpus_per_trial=1, devices=FOUR))
    big = Place(LocalConfig(slots=1, gpus_per_trial=4, devices=FOUR), tmp_path / "big")
    runs, waits = small.executor(), big.executor()
    for index in range(3):
        small.submit(runs, small.job(f"small-{index}", "hang", 1))
    assert waits.free() == 0  # from now on it waits
    assert runs.free() == 0
    with pytest.raises(ExecutorError, match="no free devices"):
        runs.submit(small.job("small-3", "hang", 1))
    for index in range(3):
        runs.cancel(f"small-{index}", force=True)
    assert runs.free() == 0
    waits.submit(big.job("big", "hang", 4))
    assert big.executor().free() == 0
    waits.cancel("big", force=True)
    assert runs.free() == 4
    waits.close()


def test_a_controller_that_does_not_ask_any_more_keeps_nobody_waiting(at: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    place = at(LocalConfig(slots=4, gpus_per_trial=1, devices=FOUR))
    executor = place.executor()
    executor.submit(place.job("one", "hang", 1))
    forgetful = make_executor(LocalConfig(slots=1, gpus_per_trial=4, devices=FOUR), place.folder / "other")
    assert forgetful.free() == 0
    assert executor.free() == 0
    monkeypatch.setattr(gpus, "WAITING_S", 0.0)
    assert executor.free() == 3
    forgetful.close()


def test_more_gpus_than_there_are_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert gpus.present() == ["2", "5"]
    with pytest.raises(ConfigError, match="this machine shows 2 GPUs"):
        make_executor(LocalConfig(gpus_per_trial=3), tmp_path)
    with pytest.raises(ValidationError, match="more than the 1 devices"):
        LocalConfig(gpus_per_trial=2, devices=["0"])
    with pytest.raises(ValidationError, match="different device numbers"):
        LocalConfig(devices=["0", "../0"])


def test_a_submit_that_was_killed_before_the_start_is_done_again(at: Any) -> None:
    """Its record is there; nothing was started, and no lock is held."""
    place = at(LocalConfig())
    executor, job = place.executor(), place.job("half")
    record_of(place.study, "half").write(job, host=os.uname().nodename)
    assert executor.find("half") is None
    place.settle(executor, executor.submit(job))
    assert len(place.lines("start")) == 1


def test_a_job_whose_shell_vanished_too_is_lost(at: Any) -> None:
    """As after a restart of the host: no exit code, no end state."""
    place = at(LocalConfig())
    executor = place.executor()
    executor.submit(place.job("gone", "hang"))
    until(lambda: place.lines("start"))
    processes = [psutil.Process(pid) for pid in marked(place.study / "jobs" / "gone")]
    for process in processes:
        process.suspend()  # else the shell notes how its child ended
    for process in processes:
        process.kill()
    until(lambda: executor.state("gone") in OVER)
    assert executor.state("gone") == JobState.lost
    assert "vanished" in executor.exit_note("gone")
    assert executor.free() == 1
    assert not alive(place.pids())


def test_a_run_of_another_host_is_judged_by_whether_its_heartbeat_moves(at: Any, monkeypatch: Any) -> None:
    place = at(LocalConfig())
    executor, record = place.executor(), record_of(place.study, "far")
    record.write(place.job("far"), host="another-host")
    assert executor.state("far") == JobState.running
    monkeypatch.setattr("steer_sweeps.executors.local.FOREIGN_S", 0.0)
    assert executor.state("far") == JobState.lost
    (record.path / "exit").write_text("137\n")
    assert executor.state("far") == JobState.ended
    assert executor.exit_note("far") == "killed by SIGKILL"


def test_an_unknown_job_is_an_error(at: Any) -> None:
    with pytest.raises(ValueError, match="no such job"):
        at(LocalConfig()).executor().state("nobody")


# -- what nvidia-smi says ----------------------------------------------------------------------------------------------

SMI = "0, GPU-aaa, 81\n1, GPU-bbb, 40960\n2, GPU-ccc, 3\n3, GPU-ddd, [N/A]\n"


def test_a_device_in_use_is_not_given_out() -> None:
    """By a process that is listed (2), or by memory nobody is listed for (1)."""
    assert gpus.busy(gpus.parse_gpus(SMI), "GPU-ccc\nGPU-ccc\n") == {"1", "GPU-bbb", "2", "GPU-ccc"}
    assert gpus.busy(gpus.parse_gpus("0, GPU-aaa, 0\n"), "\n") == set()
    for wrong in ("No devices were found\n", "0; GPU-aaa; 1\n"):
        with pytest.raises(ValueError, match="nvidia-smi said"):
            gpus.parse_gpus(wrong)


def test_memory_still_in_use_keeps_a_device_back(at: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program named nvidia-smi answers from two files, as the real one does."""
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "nvidia-smi").write_text(f'#!/bin/sh\ncase "$1" in *apps*) ;; *) cat {tmp_path}/smi.txt;; esac\n')
    (tools / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tools), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (tmp_path / "smi.txt").write_text("0, GPU-aaa, 0\n1, GPU-bbb, 20000\n")
    place = at(LocalConfig(slots=2, gpus_per_trial=1))
    executor = place.executor()
    assert executor.free() == 1
    place.submit(executor, place.job("one", "slow", 1))
    assert executor.free() == 0
    (tmp_path / "smi.txt").write_text("0, GPU-aaa, 0\n1, GPU-bbb, 12\n")
    assert executor.free() == 1
    place.submit(executor, place.job("two", "slow", 1))
    place.settle(executor, "one", "two")
    assert sorted(line["devices"] for line in place.lines("start")) == ["0", "1"]
    (tmp_path / "smi.txt").write_text("NVIDIA-SMI has failed\n")
    with pytest.raises(ExecutorError, match="nvidia-smi said"):
        executor.free()
    (tmp_path / "smi.txt").write_text("")


# -- locks -------------------------------------------------------------------------------------------------------------


def test_a_lock_is_held_by_one_and_seen_by_all(tmp_path: Path) -> None:
    path = tmp_path / "a" / "lock"
    assert not is_locked(path)
    handle = try_lock(path)
    assert handle is not None
    assert try_lock(path) is None
    assert is_locked(path)
    os.close(handle)
    assert not is_locked(path)


def test_of_many_that_try_one_gets_it(tmp_path: Path) -> None:
    path, got = tmp_path / "lock", []
    threads = [threading.Thread(target=lambda: got.append(try_lock(path))) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(handle is not None for handle in got) == 1


def test_a_polite_request_is_made_once(tmp_path: Path) -> None:
    """A second signal kills a run that is cleaning up."""
    record = Record(tmp_path)
    assert [record.first_to_ask() for _ in range(3)] == [True, False, False]


# -- the section executor ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "wrong"),
    [
        ({"name": "k8s"}, "name"),
        ({"name": "local", "slot": 2}, "slot"),
        ({"name": "ray"}, "address"),
        ({"name": "ray", "address": "http://user:secret@host:8265"}, "address"),
        ({"name": "slurm", "extra": {"job-name": "x"}}, "job-name"),
        ({"name": "slurm", "extra": {"a;b": "x"}}, "a;b"),
        ({"name": "slurm", "time_minutes": 0}, "time_minutes"),
    ],
)
def test_a_wrong_section_is_refused(given: dict[str, Any], wrong: str) -> None:
    with pytest.raises(ValidationError, match=wrong):
        TypeAdapter(ExecutorConfig).validate_python(given)

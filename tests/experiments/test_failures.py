"""The class of a failure, from what a run and the place that ran it left behind."""

from pathlib import Path

import pytest
from steer_experiments.checks import explain
from steer_experiments.failures import classify
from steer_experiments.run_dir import RunDir, State, Status, now


def run_with(path: Path, state: State | None, reason: str | None = None, log: str = "", said: str = "") -> RunDir:
    run = RunDir(path)
    if state is not None:
        run.write_status(
            Status(state=state, reason=reason, pid=1, pid_created=1.0, step=3, started=now(), updated=now())
        )
    if log:
        run.log.write_text(log)
    if said:
        run.supervisor.write_text(said)
    return run


RAYLET = "Raylet is terminated. Possible reasons include: (1) SIGKILL by the user or system OOM killer, (2) x"
OOM = "step 4\ntorch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB\n"


@pytest.mark.parametrize(
    ("kind", "state", "reason", "log", "note"),
    [
        ("out_of_memory", "failed", "the process ended with exit code 1", OOM, ""),
        ("out_of_memory", "failed", "the process was killed by SIGKILL: out of memory: lower the ...", "", ""),
        ("out_of_memory", None, None, OOM, "killed by SIGKILL"),
        ("out_of_memory", "running", None, "", "Slurm: OUT_OF_MEMORY"),
        ("infrastructure", "failed", "the process was killed by SIGKILL", "", ""),
        ("infrastructure", "failed", "the process ended with exit code 1", "NCCL error in: reduce.cu", ""),
        ("infrastructure", "failed", "the process ended with exit code 1", "ray.exceptions.RayActorError: x", ""),
        ("infrastructure", "failed", "the process ended with exit code 1: no space left on the disk: ...", "", ""),
        ("infrastructure", "failed", "OSError: [Errno 28] No space left on device: 'x'", OOM, ""),
        ("infrastructure", "failed", "the process ended with exit code 1", RAYLET, ""),
        ("infrastructure", "failed", "the process ended with exit code 1", "Failed to connect to GCS within 60 s", ""),
        ("infrastructure", "running", None, "", "killed by SIGKILL"),
        ("infrastructure", "running", None, "", "Slurm: NODE_FAIL"),
        ("infrastructure", None, None, "", ""),
        ("infrastructure", None, None, "x: another process is running this run", "ended with exit code 2"),
        ("timeout", "failed", "stalled: no metrics for 5 minutes (stall_minutes)", OOM, ""),
        ("timeout", "running", None, "", "Slurm: TIMEOUT"),
        ("nan", "failed", "the process ended with exit code 1", "RuntimeError: loss is nan at step 3", ""),
        ("config", "failed", "ConfigError: 1 mistake", "", ""),
        ("config", "failed", "the process ended with exit code 2", "x.py: error: unrecognized arguments: --x", ""),
        ("preempted", "running", None, "", "Slurm: PREEMPTED"),
        ("preempted", "stopped", "stopped by SIGTERM", "", "Slurm: PREEMPTED"),
        ("interrupted", "stopped", "stopped by SIGINT", "", ""),
        ("training", "failed", "the grader failed: it is gone", "IndexError: list index out of range", ""),
        ("training", "failed", "the metrics end at step 3 of 8", "room for zoom", ""),
    ],
)
def test_classes(tmp_path: Path, kind: str, state: State | None, reason: str | None, log: str, note: str) -> None:
    assert classify(run_with(tmp_path, state, reason, log), note).kind == kind


def test_what_ray_only_guesses_is_no_explanation() -> None:
    assert explain([RAYLET]) is None
    assert str(explain([RAYLET, "std::bad_alloc"])).startswith("out of memory")


def test_bad_input_of_the_command_is_a_config_failure(tmp_path: Path) -> None:
    found = classify(run_with(tmp_path, None, said="steer: 2 mistakes:\n  - x = 1\n"), "ended with exit code 2")
    assert found.kind == "config"
    assert found.reason.splitlines()[0] == (
        "its process vanished before it wrote a status; ended with exit code 2; last lines of supervisor.txt:"
    )
    assert found.reason.endswith("  - x = 1")


def test_the_reason_has_the_last_lines_of_the_log(tmp_path: Path) -> None:
    log = "".join(f"line {number}\n" for number in range(100))
    found = classify(run_with(tmp_path, "running", log=log), "killed by SIGKILL")
    first, *tail = found.reason.splitlines()
    assert first == "its process vanished in state running at step 3; killed by SIGKILL; last lines of log.txt:"
    assert tail == [f"line {number}" for number in range(85, 100)]


def test_a_damaged_status_is_a_failure_of_its_own(tmp_path: Path) -> None:
    run = run_with(tmp_path, "running")
    run.status.write_text("{")
    assert classify(run).kind == "infrastructure"
    assert "is not JSON" in classify(run).reason

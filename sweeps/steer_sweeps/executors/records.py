"""``<study>/jobs/<name>/``: what a controller wrote down about a job before it started it, and what the job left there.
Any later controller, on any host that shares the study, reads it."""

import json
import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steer_experiments.run_dir import RunDir, Status, read_json, write_text

from .base import ExecutorError, Job

JOBS, LIVE = "jobs", "jobs-live"
JOB_VARIABLE = "STEER_JOB"
"""In the environment of everything a job starts: its record's path, by which leftovers are found."""

KILL_S, POLL_S = 60.0, 0.02


@dataclass(frozen=True)
class Record:
    """One job's folder. ``started`` holds the process number of its shell (or Slurm's), ``exit`` its exit code."""

    path: Path

    @property
    def lock(self) -> Path:
        return self.path / "lock"

    @property
    def started(self) -> Path:
        return self.path / "started"

    @property
    def wish(self) -> Path:
        """Holds ``stop`` or ``kill`` when somebody asked for it."""
        return self.path / "wish"

    @property
    def slurm_id(self) -> Path:
        return self.path / "slurm_id"

    @property
    def live(self) -> Path:
        """There while the job counts among its study's slots."""
        return self.path.parent.parent / LIVE / self.path.name

    def mark_live(self) -> None:
        self.live.parent.mkdir(exist_ok=True)
        self.live.touch()

    def known(self) -> bool:
        return (self.path / "job.json").exists()

    def read(self) -> dict[str, Any]:
        """What was written down. Raises ``ValueError`` for a job nobody knows."""
        found = read_json(self.path / "job.json")
        if found is None:
            raise ValueError(f"{self.path}: no such job")
        return found

    def write(self, job: Job, **more: Any) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        facts = {"run_dir": str(job.run_dir), "gpus": job.gpus} | more
        write_text(self.path / "job.json", json.dumps(facts), sync=False)  # after a power cut there is no job either

    def run(self) -> RunDir:
        return RunDir(self.read()["run_dir"])

    def exit_code(self) -> int | None:
        """The shell's: more than 128 means a signal."""
        try:
            text = (self.path / "exit").read_text().strip()
        except FileNotFoundError:
            return None
        return int(text) if text.isdigit() else None

    def ask(self, wish: str) -> None:
        if self.wished() != "kill":
            write_text(self.wish, wish)

    def wished(self) -> str:
        return self.wish.read_text() if self.wish.exists() else ""

    def first_to_ask(self) -> bool:
        """True once in all time: a second SIGTERM kills a run that is cleaning up."""
        try:
            (self.path / "asked").touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


def record_of(study_dir: Path, name: str) -> Record:
    return Record(study_dir / JOBS / name)


def live_jobs(study_dir: Path) -> list[Record]:
    """Jobs that were submitted and are not known to be over, whoever submitted them."""
    folder = study_dir / LIVE
    return [record_of(study_dir, path.name) for path in sorted(folder.iterdir())] if folder.is_dir() else []


def status_of(record: Record) -> Status | None:
    """The run's status; None too for a damaged one, which the controller judges."""
    try:
        return record.run().read_status()
    except ValueError:
        return None


def how(code: int) -> str:
    """A shell's exit code in words."""
    if code > 128:
        try:
            return f"killed by {signal.Signals(code - 128).name}"
        except ValueError:
            return f"ended with exit code {code}"
    return "" if code == 0 else f"ended with exit code {code}"


def marked(record: Path) -> set[int]:
    """Process numbers of this host that carry the job's mark. (Ray's own titles overwrite theirs: look there too.)"""
    needle, found = f"{JOB_VARIABLE}={record}\0".encode(), set()
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/environ", "rb", buffering=0) as file:
                    if needle in file.read():
                        found.add(int(name))
            except OSError:  # gone, or somebody else's
                continue
    return found


def end_marked(record: Path, patience_s: float) -> None:
    """End all that carries the mark: SIGTERM, SIGKILL after ``patience_s``, and again, for what is killed may just have
    started something. (Not waited for by number: an orphan's number lives until init looks.)"""
    end = time.monotonic() + patience_s
    polite = patience_s > 0
    while left := marked(record) - {os.getpid()}:
        late = time.monotonic() >= end
        if late or polite:
            for pid in left:
                _send(pid, signal.SIGKILL if late else signal.SIGTERM)
        polite = False
        if time.monotonic() > end + KILL_S:
            raise ExecutorError(f"processes {sorted(left)} of {record.name} cannot be killed")
        time.sleep(POLL_S)


def _send(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def variables(job: Job, record: Path) -> Mapping[str, str]:
    return {**job.env, JOB_VARIABLE: str(record)}


def replaced(command: Sequence[str], old: str, new: str | None) -> list[str]:
    """The command with the interpreter of this machine exchanged for the nodes' own."""
    return [new if new and word == old else word for word in command]

"""What the tests of all places share: a study directory, jobs that do something known, and their ledger."""

import json
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from steer_experiments.run_dir import RunDir, write_yaml
from steer_sweeps.executors.base import Executor, ExecutorError, Job, JobState, make_executor
from steer_sweeps.executors.config import ExecutorConfig

HERE = Path(__file__).parent
PATIENCE_S = 120.0
OVER = (JobState.ended, JobState.lost)


def until(condition: Callable[[], Any], patience_s: float = PATIENCE_S) -> Any:
    """The condition's first true value; fails when there is none for so long."""
    end = time.monotonic() + patience_s
    while not (found := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
    return found


@dataclass
class Place:
    """A study whose jobs run in one place; ``config`` is the section ``executor``."""

    config: ExecutorConfig
    folder: Path
    made: list[Executor] = field(default_factory=list)
    tag: str = field(default_factory=lambda: uuid.uuid4().hex[:8])
    """A cluster sees the jobs of many tests: their names differ."""

    def executor(self) -> Executor:
        self.made.append(make_executor(self.config, self.study))
        return self.made[-1]

    @property
    def study(self) -> Path:
        return self.folder / "study"

    @property
    def ledger(self) -> Path:
        return self.folder / "ledger.jsonl"

    def run(self, name: str) -> RunDir:
        return RunDir(self.study / "trials" / name)

    def name(self, index: object) -> str:
        return f"study-{self.tag}-{index}-s0-a1"

    def named(self, name: str) -> Job:
        return Job(name, ("true",), self.study / "trials" / "x")

    def job(self, name: str, do: str = "good", gpus: int = 0, program: str = "executor_trial.py", **more: Any) -> Job:
        run = self.run(name)
        run.path.mkdir(parents=True, exist_ok=True)
        write_yaml(run.config, {"do": do, "ledger": str(self.ledger)} | more)
        command = (sys.executable, str(HERE / program), str(run.config), str(run.path))
        return Job(name, command, run.path, gpus)

    def lines(self, what: str) -> list[dict[str, Any]]:
        text = self.ledger.read_text() if self.ledger.exists() else ""
        return [line for line in map(json.loads, text.splitlines()) if line["what"] == what]

    def pids(self) -> list[int]:
        return [pid for line in self.lines("start") for pid in line["pids"]]

    def settle(self, executor: Executor, *handles: str) -> None:
        """Until all are over, their files brought back."""
        until(lambda: all(executor.state(handle) in OVER for handle in handles))
        for handle in handles:
            executor.sync(handle)

    def submit(self, executor: Executor, job: Job) -> str:
        """As a controller does: when there is room, and again when the place says not now."""

        def tried() -> str | None:
            try:
                return executor.submit(job) if executor.free() > 0 else None
            except ExecutorError as error:
                print(f"not now: {error}")
                return None

        return str(until(tried))

    def end_all(self) -> None:
        """Kill what is left, as the end of a test."""
        for job in (self.study / "jobs").glob("*"):
            with suppress(ExecutorError):  # the test ended the place itself
                self.made[0].cancel(job.name, force=True)
        for one in self.made:
            one.close()


def alive(pids: list[int]) -> list[int]:
    found = []
    for pid in pids:
        try:
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                found.append(pid)
        except psutil.NoSuchProcess:
            continue
    return found


def most_at_once(place: Place) -> int:
    """The largest number of trials that ran at one moment, from their own notes."""
    moments = [(line["at"], 1) for line in place.lines("start")] + [(line["at"], -1) for line in place.lines("end")]
    running, most = 0, 0
    for _, change in sorted(moments):
        running += change
        most = max(most, running)
    return most

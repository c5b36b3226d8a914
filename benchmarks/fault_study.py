"""A study under test: its controllers as real processes, what its storage says, and what is left on the machine."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml
from fault_trial import METRIC
from optuna.trial import TrialState
from steer_experiments.processes import is_alive
from steer_experiments.run_dir import RunDir, Status, read_json
from steer_sweeps.executors.locks import is_locked
from steer_sweeps.executors.records import JOB_VARIABLE
from steer_sweeps.study import Study, read_study
from steer_sweeps.trials import Configuration

HERE = Path(__file__).resolve().parent
RECIPE = HERE.parent / "experiments" / "recipes" / "tiny" / "smoke.yaml"
SLOTS, RETRIES = 3, 8
POLL_S, GRACE_S = 0.1, 30.0
LONGEST_S = {"small": 240.0, "real": 1500.0}
"""How long any one thing may take before it counts as a study that does not go on."""


class StudyFailedError(RuntimeError):
    """The study did not do what it must; the message says what, with the end of its controllers' output."""


@dataclass(frozen=True)
class Running:
    """A trial that is at work."""

    name: str
    run: RunDir
    status: Status
    facts: dict[str, Any]

    @property
    def processes(self) -> list[int]:
        """Its supervisor's and, of a small trial, its worker's process number."""
        return [self.status.pid, *([self.facts["worker"]] if "worker" in self.facts else [])]


@dataclass
class StudyUnderTest:
    """A study in ``home/study`` whose controllers are processes of their own; they write to ``home/output.txt``."""

    home: Path
    trials: str
    n: int
    slots: int = SLOTS
    storage: str | None = None
    controllers: list[subprocess.Popen[bytes]] = field(default_factory=list)
    _study: Study | None = None

    def __post_init__(self) -> None:
        self.path, self.output = self.home / "study", self.home / "output.txt"
        self.path.mkdir(parents=True, exist_ok=True)
        recipe, self.sweep = self.home / "recipe.yaml", self.home / "sweep.yaml"
        short = {"data": {"max_samples": 256}, "eval": {"steps": 2}}  # four steps
        recipe.write_text(yaml.safe_dump({"base": str(RECIPE), "name": "faults", "openrlhf": short}))
        self.sweep.write_text(
            yaml.safe_dump(
                {
                    "name": "faults",
                    "recipe": str(recipe),
                    "n_trials": self.n,
                    "sampler": {"name": "RandomSampler", "seed": 0},
                    "direction": "maximize",
                    "objective": {"metric": METRIC},
                    "space": {"steer.lambda_min": {"float": [0.5, 0.95]}},
                    "slots": self.slots,
                    "retries": RETRIES,
                    "storage": self.storage,
                }
            )
        )

    # -- controllers ---------------------------------------------------------------------------------------------------

    def start(self, count: int = 1, **variables: str) -> None:
        command = [sys.executable, str(HERE / "fault_controller.py"), self.trials, str(self.sweep), str(self.path)]
        with self.output.open("ab") as output:
            for _ in range(count):
                self.controllers.append(
                    subprocess.Popen(command, stdout=output, stderr=output, env=os.environ | variables)
                )

    def alive(self) -> list[subprocess.Popen[bytes]]:
        return [one for one in self.controllers if one.poll() is None]

    def signal(self, number: signal.Signals) -> None:
        for one in self.alive():
            one.send_signal(number)

    def kill_controllers(self) -> None:
        self.signal(signal.SIGKILL)
        self.ends()

    def ends(self) -> list[int]:
        """Wait for every controller; their exit codes."""
        end = time.monotonic() + LONGEST_S[self.trials]
        codes = []
        for one in self.controllers:
            try:
                codes.append(one.wait(max(0.1, end - time.monotonic())))
            except subprocess.TimeoutExpired:
                raise self.failed("a controller does not end") from None
        self.controllers = []
        return codes

    def wait(self, what: str, condition: Callable[[], Any], controlled: bool = True) -> Any:
        """Until the condition holds; what it gave. With ``controlled`` somebody must look after the study meanwhile."""
        end = time.monotonic() + LONGEST_S[self.trials]
        while not (found := condition()):
            if controlled and not self.alive() and not condition():
                raise self.failed(f"every controller has ended (too few trials? --n), and still not: {what}")
            if time.monotonic() > end:
                raise self.failed(f"after {LONGEST_S[self.trials]:.0f} s still not: {what}")
            time.sleep(POLL_S)
        return found

    def failed(self, what: str) -> StudyFailedError:
        tail = "\n".join(self.output.read_text(errors="replace").splitlines()[-25:]) if self.output.exists() else ""
        return StudyFailedError(f"{what}\nthe controllers' last lines:\n{tail}")

    # -- what it says --------------------------------------------------------------------------------------------------

    @property
    def study(self) -> Study:
        if self._study is None:
            self.wait("study.yaml is written", (self.path / "study.yaml").exists)
            self._study = read_study(self.path)
        return self._study

    def configurations(self) -> list[Configuration]:
        return self.study.configurations()

    def results(self) -> dict[str, tuple[float, float]]:
        """Of every configuration with a result its parameter and its objective."""
        found = [one for one in self.configurations() if one.complete]
        return {one.name: (one.complete.params["steer.lambda_min"], one.value) for one in found if one.complete}

    def doubled(self) -> list[str]:
        """Configurations with more than one result."""
        ends = {one.name: [trial.state for trial in one.tries] for one in self.configurations()}
        return [name for name, states in ends.items() if states.count(TrialState.COMPLETE) > 1]

    def failures(self) -> dict[tuple[str, int], tuple[str, str]]:
        """Of every try without a result the class of its failure, and the first line of the reason."""
        found = {}
        for one in self.configurations():
            for trial in one.tries:
                if trial.state == TrialState.FAIL:
                    why = str(trial.user_attrs.get("reason", "")).splitlines()
                    key = one.name, trial.number
                    found[key] = str(trial.user_attrs.get("outcome")), why[0] if why else ""
        return found

    def at_work(self, step: int = 1) -> list[Running]:
        """Trials that run now and have taken ``step`` steps. (A status that cannot be read is no trial at work.)"""
        found = []
        for arm, trial in self.study.running():
            run, status = self.study.run_dir(arm, trial), None
            status, facts = run.read_status(), read_json(run.status)
            if status is None or facts is None or status.ended or status.step < step:
                continue
            if is_alive(status.pid, status.pid_created):
                found.append(Running(str(trial.user_attrs["config"]), run, status, facts))
        return found

    def victim(self, step: int = 1) -> Running:
        found: list[Running] = self.wait(f"a trial has taken {step} steps", lambda: self.at_work(step))
        return found[0]

    # -- what is left of it --------------------------------------------------------------------------------------------

    def leaked(self) -> list[str]:
        """What belongs to jobs that are over, after some patience: processes that carry their mark."""
        return _after_patience(lambda: [one for one in _marked(self.path) if not is_locked(one[1] / "lock")])

    def left(self) -> list[str]:
        """Whatever is left of the study: processes, and directories of its trials' Rays, after some patience."""
        return _after_patience(self._anything)

    def _anything(self) -> list[tuple[str, Path]]:
        found = _marked(self.path) + _naming(self.path)
        for file in self.path.glob("trials/*/status.json"):
            where = (read_json(file) or {}).get("ray_temp_dir")
            if where and Path(where).exists():
                found.append((f"directory {where}", Path(where)))
            found += _naming(Path(where)) if where else []
        return found


def _after_patience(look: Callable[[], list[tuple[str, Path]]]) -> list[str]:
    end = time.monotonic() + GRACE_S
    while (found := look()) and time.monotonic() < end:
        time.sleep(0.5)
    return sorted({one for one, _ in found})


def _marked(study: Path) -> list[tuple[str, Path]]:
    """Processes that a job of the study has started, and the job's record."""
    needle, found = f"{JOB_VARIABLE}={study}/".encode(), []
    for process in psutil.process_iter():
        try:
            words = Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
            record = next((word for word in words if word.startswith(needle)), None)
            if record is not None:
                name = f"process {process.pid} ({process.name()})"
                found.append((name, Path(record.decode().split("=", 1)[1])))
        except (OSError, psutil.NoSuchProcess):
            continue
    return found


def _naming(folder: Path) -> list[tuple[str, Path]]:
    """Processes, other than this one, with the folder in their command line."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and any(f"{folder}/" in f"{word}/" for word in process.cmdline()):
                found.append((f"process {process.pid} ({process.name()})", folder))
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found

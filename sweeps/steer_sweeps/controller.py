"""Run a study to its end, a few trials at a time, and survive being killed anywhere.

Every trial is a ``steer train`` process of its own, in its own session: it goes on when the controller is killed. It
inherits a locked file (``<study>/locks/<run>``); whether it lives is whether that lock is held, which the kernel knows
from before the process exists until it is gone. All else is read from files: the run's status and Optuna's journal.
"""

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from optuna.trial import FrozenTrial
from steer_experiments import processes
from steer_experiments.checks import verify_host_args
from steer_experiments.config import flag_of
from steer_experiments.recipes import flatten
from steer_experiments.run_dir import RunDir, read_json, write_yaml
from steer_openrlhf.errors import ConfigError

from .space import Values
from .study import Arm, Configuration, Study

POLL_S = 1.0
TRIAL_COMMAND = (sys.executable, "-m", "steer_experiments.train", "{config}", "--run-dir", "{run_dir}")


@dataclass(frozen=True)
class Trial:
    """A trial that runs, as far as anybody knows."""

    arm: Arm
    frozen: FrozenTrial
    run: RunDir
    name: str


class Controller:
    """``command`` is a template with ``{config}`` and ``{run_dir}``: any program that honours the run directory's
    contract. ``tell`` is called with one line for every event."""

    def __init__(
        self,
        study: Study,
        tell: Callable[[str], None],
        command: Sequence[str] = TRIAL_COMMAND,
        poll_s: float = POLL_S,
    ) -> None:
        self.study, self.tell, self.command, self.poll_s = study, tell, command, poll_s
        self.running: list[Trial] = []
        self._children: list[subprocess.Popen[bytes]] = []

    def run(self, watch: Callable[[Sequence[Trial]], None] = lambda running: None) -> bool:
        """Until nothing is owed (True) or somebody asks to stop (False). ``watch`` sees what runs, every poll."""
        with processes.stop_requests() as stop:
            self._adopt()
            while True:
                self._collect(vanished="failed")
                if stop:
                    self._end_all()
                    return False
                self._start_due()
                if not self.running:
                    return True
                watch(self.running)
                time.sleep(self.poll_s)

    # -- starting ------------------------------------------------------------------------------------------------------

    def _start_due(self) -> None:
        sweep = self.study.sweep
        for configuration in self.study.configurations():
            if len(self.running) >= sweep.slots:
                return
            if configuration.due(sweep.retries):
                self._start(configuration)

    def _start(self, configuration: Configuration) -> None:
        frozen, values = self.study.ask(configuration)
        run = self.study.run_dir(configuration.arm, frozen)
        trial = Trial(configuration.arm, frozen, run, run.path.name)
        try:
            name = configuration.name if configuration.arm.baseline else trial.name
            experiment = self.study.sweep.experiment(name, values)
        except ConfigError as error:
            self._fail(trial, "invalid", str(error))
            return
        run.path.mkdir(parents=True, exist_ok=True)
        write_yaml(run.config, experiment.resolved())
        self._spawn(trial)
        self.running.append(trial)
        self.tell(f"trial {trial.name}: started" + "".join(f"  {key}={_short(value)}" for key, value in values.items()))

    def _spawn(self, trial: Trial) -> None:
        lock = self._lock_path(trial)
        lock.parent.mkdir(exist_ok=True)
        fields = {"config": str(trial.run.config), "run_dir": str(trial.run.path)}
        with lock.open("a") as held, (trial.run.path / "supervisor.txt").open("ab") as output:
            fcntl.flock(held, fcntl.LOCK_EX)
            self._children.append(
                subprocess.Popen(
                    [word.format(**fields) for word in self.command],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    pass_fds=[held.fileno()],
                )
            )

    # -- ending --------------------------------------------------------------------------------------------------------

    def _adopt(self) -> None:
        """Take over what an earlier controller left: trials that still run, and trials nobody has judged."""
        for arm, frozen in self.study.running():
            run = self.study.run_dir(arm, frozen)
            trial = Trial(arm, frozen, run, run.path.name)
            self.running.append(trial)
            if self._alive(trial):
                self.tell(f"trial {trial.name}: still running, adopted")
        self._collect(vanished="interrupted")

    def _collect(self, vanished: str) -> None:
        """Judge every trial whose process has gone. ``vanished``: what one without an end state counts as."""
        for child in self._children:
            child.poll()
        for trial in list(self.running):
            if not self._alive(trial):
                self.running.remove(trial)
                self._judge(trial, vanished)

    def _judge(self, trial: Trial, vanished: str) -> None:
        try:
            status = trial.run.read_status()
        except ValueError as error:
            self._fail(trial, "failed", str(error))
            return
        if status and status.ray_temp_dir:
            processes.remove_ray_dir(status.ray_temp_dir)
        if status and status.state == "finished":
            self._accept(trial)
        elif status and status.state == "failed":
            self._fail(trial, "failed", status.reason or "no reason given")
        elif status and status.state == "stopped":
            self._fail(trial, "interrupted", status.reason or "stopped")
        else:
            where = f"in state {status.state} at step {status.step}" if status else "before it wrote a status"
            self._fail(trial, vanished, f"its process vanished {where}")

    def _accept(self, trial: Trial) -> None:
        """A result counts only when the training used every value of the trial and the objective is a number."""
        values = self.study.values(trial.arm, trial.frozen)
        try:
            host_args = read_json(trial.run.host_args)
            wrong = verify_host_args(_flags(values), host_args) if host_args else ["host_args.json is missing"]
            if wrong:
                raise ValueError("; ".join(wrong))
            value = self.study.sweep.objective.value(trial.run.read_metrics())
        except ValueError as error:
            self._fail(trial, "failed", str(error))
            return
        self.study.complete(trial.arm, trial.frozen, value)
        self.tell(f"trial {trial.name}: complete  {self.study.sweep.objective.metric}={_short(value)}")

    def _fail(self, trial: Trial, outcome: str, reason: str) -> None:
        self._note(trial, "stopped" if outcome == "interrupted" else "failed", reason)
        self.study.fail(trial.arm, trial.frozen, outcome, reason)
        self.tell(f"trial {trial.name}: {outcome}: {reason.splitlines()[0] if reason else ''}")

    def _note(self, trial: Trial, state: Literal["failed", "stopped"], reason: str) -> None:
        """Into the run's own status, which is all that the leaderboard and the report read: a run that vanished, or
        that finished and was not accepted, must not look as if it still ran, or as a result."""
        try:
            status = trial.run.read_status()
        except ValueError:
            return  # a damaged status says itself that something is wrong
        if status and status.state not in ("failed", "stopped"):
            trial.run.write_status(status.changed(state=state, reason=reason))

    def _end_all(self) -> None:
        """Ask every running trial to stop and wait: each ends its training and says that it was stopped."""
        self.tell(f"stopping {len(self.running)} running trials; the same command continues the study")
        asked: set[str] = set()
        while self.running:
            for trial in self.running:
                status = trial.run.read_status()
                ready = status and not status.ended and processes.is_alive(status.pid, status.pid_created)
                if status and ready and trial.name not in asked:
                    asked.add(trial.name)
                    os.kill(status.pid, signal.SIGTERM)
            time.sleep(min(self.poll_s, 0.2))
            self._collect(vanished="interrupted")

    def _alive(self, trial: Trial) -> bool:
        lock = self._lock_path(trial)
        if not lock.exists():
            return False
        with lock.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    def _lock_path(self, trial: Trial) -> Path:
        return self.study.path / "locks" / trial.name


def _flags(values: Values) -> dict[str, object]:
    """Dotted config keys (a value may be a mapping) as flags; keys that are no flags are left out."""
    flat = flatten(values)
    return {flag: value for key, value in flat.items() if (flag := flag_of(key)) is not None}


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)

"""A study on disk: Optuna's journal, and which configurations it still owes.

Two Optuna studies share one journal. ``<name>`` holds the searched trials; ``<name>/baselines`` the fixed arms, because
a trial without parameters in the first would count among the sampler's start-up trials, empty its search space, and
could become ``best_trial``. A *configuration* is a place in one of them (user attribute ``config``); every try of it is
a trial.
"""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState
from steer_experiments.recipes import read_yaml
from steer_experiments.run_dir import RunDir, write_yaml
from steer_openrlhf.errors import ConfigError

from .space import Values, sample
from .spec import RECIPE, Sweep, make_sampler, recorded_sweep

BASELINES = "/baselines"
JOURNAL = "journal.log"
MAY_CHANGE = ("n_trials", "slots", "retries")
"""What a study may be continued with differently; with anything else changed its trials could not be compared."""


class FlockJournalLock(JournalFileOpenLock):
    """Optuna's own journal locks are files that stay behind when their holder is killed. The kernel lifts this one."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self._path = path
        self._handle: int | None = None

    def acquire(self) -> bool:
        self._handle = os.open(self._path, os.O_CREAT | os.O_RDWR, 0o644)
        fcntl.flock(self._handle, fcntl.LOCK_EX)
        return True

    def release(self) -> None:
        assert self._handle is not None
        os.close(self._handle)
        self._handle = None


@dataclass(frozen=True)
class Arm:
    """One of the two Optuna studies. ``baseline`` says which."""

    optuna: optuna.Study
    baseline: bool

    def trials(self) -> list[FrozenTrial]:
        return self.optuna.get_trials(deepcopy=False)


@dataclass(frozen=True)
class Configuration:
    """What the study owes: place ``index`` of an arm, and how it stands."""

    arm: Arm
    index: int
    name: str
    tries: tuple[FrozenTrial, ...]

    @property
    def complete(self) -> FrozenTrial | None:
        return next((one for one in self.tries if one.state == TrialState.COMPLETE), None)

    @property
    def value(self) -> float:
        """The objective of a complete configuration."""
        assert self.complete is not None
        assert self.complete.value is not None
        return self.complete.value

    @property
    def waiting(self) -> bool:
        """Whether a trial of it is in the journal that was never started: a controller was killed in between."""
        return any(one.state == TrialState.WAITING for one in self.tries)

    def failures(self) -> int:
        """Tries that failed by themselves; those that were interrupted do not count."""
        return sum(one.user_attrs.get("outcome") == "failed" for one in self.tries)

    def reason(self) -> str:
        """Why the last try gave no result."""
        last = self.tries[-1].user_attrs if self.tries else {}
        return f"{last.get('outcome', 'not started')}: {last.get('reason', 'nothing was recorded')}".split("\n")[0]

    def due(self, retries: int) -> bool:
        """Whether a trial of it must be started now."""
        busy = self.complete or any(one.state == TrialState.RUNNING for one in self.tries)
        hopeless = any(one.user_attrs.get("outcome") == "invalid" for one in self.tries)
        return not busy and not hopeless and self.failures() <= retries


class Study:
    """A study directory. ``trials/<run>`` are run directories: a number for a searched trial, a baseline's name
    (with ``~<number>`` for a repeated one: no baseline has such a name)."""

    def __init__(self, path: Path, sweep: Sweep) -> None:
        self.path, self.sweep = path, sweep
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        lock = FlockJournalLock(path / "journal.lock")
        self.storage = JournalStorage(JournalFileBackend(str(path / JOURNAL), lock))
        self.searched = self._arm(sweep.name, baseline=False)
        self.baselines = self._arm(sweep.name + BASELINES, baseline=True)

    def _arm(self, name: str, baseline: bool) -> Arm:
        try:
            study = optuna.load_study(study_name=name, storage=self.storage)
        except KeyError:
            study = optuna.create_study(study_name=name, storage=self.storage, direction=self.sweep.direction)
        return Arm(study, baseline)

    def configurations(self) -> list[Configuration]:
        """Everything the study owes, baselines first; before both what waits, because Optuna asks for it first."""
        found = []
        for arm, names in (
            (self.baselines, [one.name for one in self.sweep.baselines]),
            (self.searched, [str(index) for index in range(self.sweep.n_trials)]),
        ):
            trials = arm.trials()
            for index, name in enumerate(names):
                tries = tuple(one for one in trials if one.user_attrs.get("config") == index)
                found.append(Configuration(arm, index, name, tries))
        return sorted(found, key=lambda one: not one.waiting)

    def running(self) -> list[tuple[Arm, FrozenTrial]]:
        arms = (self.baselines, self.searched)
        return [(arm, one) for arm in arms for one in arm.trials() if one.state == TrialState.RUNNING]

    def ask(self, configuration: Configuration) -> tuple[FrozenTrial, Values]:
        """Start a trial of a configuration: its number is fixed, its values are drawn, and both are in the journal.

        Killed anywhere in between, a waiting or running trial of the configuration stays, and is found again.
        """
        arm, index = configuration.arm, configuration.index
        if not configuration.waiting:
            arm.optuna.enqueue_trial(self._params(configuration), user_attrs={"config": index})
        arm.optuna.sampler = make_sampler(self.sweep, index)
        while (trial := arm.optuna.ask()).user_attrs.get("config") != index:
            stray = self.storage.get_trial(trial._trial_id)  # a waiting one, of a sweep that was made shorter since
            self.fail(arm, stray, "interrupted", "the sweep no longer asks for it")
        values = self.sweep.baselines[index].set if arm.baseline else sample(trial, self.sweep.typed_space)
        return self.storage.get_trial(trial._trial_id), values

    def _params(self, configuration: Configuration) -> dict[str, Any]:
        """What the sweep file enqueues, and what tries before have drawn (a killed one perhaps not everything)."""
        given = [] if configuration.arm.baseline else self.sweep.enqueue
        params = dict(given[configuration.index]) if configuration.index < len(given) else {}
        for one in configuration.tries:
            params |= one.params
        return params

    def values(self, arm: Arm, trial: FrozenTrial) -> Values:
        """The config keys of a trial, from the journal."""
        if arm.baseline:
            return self.sweep.baselines[trial.user_attrs["config"]].set
        return sample(optuna.trial.FixedTrial(trial.params), self.sweep.typed_space)

    def run_dir(self, arm: Arm, trial: FrozenTrial) -> RunDir:
        name = str(trial.number)
        if arm.baseline:
            index = trial.user_attrs["config"]
            first = not any(one.number < trial.number for one in arm.trials() if one.user_attrs.get("config") == index)
            own = self.sweep.baselines[index].name
            name = own if first else f"{own}~{trial.number}"
        return RunDir(self.path / "trials" / name)

    def complete(self, arm: Arm, trial: FrozenTrial, value: float) -> None:
        """A result. Telling it again changes nothing."""
        arm.optuna.tell(trial.number, value, skip_if_finished=True)

    def fail(self, arm: Arm, trial: FrozenTrial, outcome: str, reason: str) -> None:
        """No result: ``failed`` counts as a try, ``interrupted`` does not, ``invalid`` is never tried again."""
        self.storage.set_trial_user_attr(trial._trial_id, "outcome", outcome)
        self.storage.set_trial_user_attr(trial._trial_id, "reason", reason)
        arm.optuna.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)

    def completed_runs(self) -> list[RunDir]:
        """The run directories of all results, baselines first."""
        return [self.run_dir(one.arm, one.complete) for one in self.configurations() if one.complete]


def _drop_torn_end(journal: Path) -> None:
    """Cut an incomplete last line, left by a killed writer: the next line would be appended to it, and both be lost."""
    if not journal.exists():
        return
    with journal.open("r+b") as file:
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)


def open_study(path: Path, sweep: Sweep) -> Study:
    """The study in ``path``, new or continued. Call it under :func:`only_controller`.

    Raises:
        ConfigError: the directory holds another study, or this one with settings that make its trials incomparable.
    """
    path.mkdir(parents=True, exist_ok=True)
    record, now = path / "study.yaml", sweep.resolved()
    if record.exists():
        old = read_yaml(record)
        changed = [key for key in now if key not in MAY_CHANGE and now[key] != old.get(key)]
        if changed:
            raise ConfigError(
                [
                    f"{path} holds a study with another {key}: give another --study-dir, or restore the sweep file"
                    for key in changed
                ]
            )
    write_yaml(record, now)
    _drop_torn_end(path / JOURNAL)  # under the lock: nobody writes now
    return Study(path, sweep)


def read_study(path: Path) -> Study:
    """A study as it stands, without its recipe, to look at. Raises :class:`ConfigError` where there is none."""
    record = path / "study.yaml"
    if not record.is_file():
        raise ConfigError([f"{path}: is no study directory (it has no study.yaml); steer sweep run makes one"])
    tree = {key: value for key, value in read_yaml(record).items() if key != RECIPE}
    return Study(path, recorded_sweep(tree))


@contextmanager
def only_controller(path: Path, tell: Callable[[str], None] = print) -> Iterator[None]:
    """One controller a study: waits for another one (a killed ``make`` leaves it at work) and says so. The kernel lifts
    the lock when its holder dies."""
    path.mkdir(parents=True, exist_ok=True)
    with (path / "controller.lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            tell(f"another controller is running this study; waiting for it (steer sweep status {path} shows it)")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def best(study: Study) -> Configuration | None:
    """The searched configuration with the best objective, or None."""
    done = [one for one in study.configurations() if one.complete and not one.arm.baseline]
    sign = 1 if study.sweep.direction == "maximize" else -1
    return max(done, key=lambda one: sign * one.value, default=None)

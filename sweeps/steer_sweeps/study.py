"""A study: Optuna's storage, and which configurations it still owes.

Up to three Optuna studies share one storage. ``<name>`` holds the searched trials; ``<name>/baselines`` the fixed arms,
because a trial without parameters in the first would count among the sampler's start-up trials, empty its search space,
and could become ``best_trial``; ``<name>/finalists`` the best ones, run again with more seeds.

User attributes of a trial: ``config`` (what it was started for), ``owner``, ``attempt``; of its run with a training
seed: ``handle/<seed>`` (where it is not the job's name), ``value/<seed>`` (a list, one number an objective),
``hours/<seed>``, ``limits/<seed>`` (its constraints), ``source/<seed>`` (the run directory of an earlier try that had
finished it); at the end ``gpu_hours`` (of this try), ``constraints``, and of one without a result ``outcome`` (the
class of its failure, or ``pruned``) and ``reason``.
"""

import uuid
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState
from steer_experiments.recipes import read_yaml
from steer_experiments.run_dir import RunDir, write_text, write_yaml
from steer_openrlhf.errors import ConfigError

from .executors.locks import locked
from .space import Values, is_inside, sample
from .spec import RECIPE, Sweep, make_pruner, make_sampler, recorded_sweep, warm_trials
from .storage import JOURNAL, Patience, open_storage, together
from .trials import Arm, Configuration, Kind

__all__ = ["JOURNAL", "Arm", "Configuration", "Study", "best", "open_study", "read_study"]

BASELINES = "/baselines"
FINALISTS = "/finalists"
SETUP_LOCK = "study.lock"
STOP = "stop"
NOW = "now "
"""What a request to stop begins with that wants running trials to be ended by force."""
LOOKING_S = 10.0
"""How long somebody who only looks waits for a storage that is away."""
MAY_CHANGE = (*("n_trials", "slots", "executor", "retries", "budget", "trial_timeout_hours", "storage", "finalists"),)
"""What a study may be continued with differently; with anything else changed its trials could not be compared."""
FORGIVEN = "forgiven"


class Drawing(optuna.Study):
    """The study as a sampler sees it. Grid and brute-force samplers stop Optuna's loop when all is drawn; there is no
    such loop here, and the study itself knows what it owes."""

    def stop(self) -> None:
        """Nothing to stop."""


class Study:
    """A study directory. ``trials/<run>`` are run directories (with several training seeds ``trials/<run>/seed-<s>``):
    a number for a searched trial, a baseline's name (with ``~<number>`` for a repeated one: no baseline has such a
    name), ``<number>~final`` for a finalist.

    Every method that reads or writes the storage waits while it is away (:class:`.storage.Patience`)."""

    def __init__(self, path: Path, sweep: Sweep) -> None:
        self.path, self.sweep = path, sweep
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.patience = Patience()
        self.storage = open_storage(path, sweep.storage, durable=sweep.executor.name != "local")
        self.pruner = make_pruner(sweep)
        self.searched = self._arm("searched", sweep.name)
        self.baselines = self._arm("baseline", sweep.name + BASELINES)
        self.finalists = self._arm("finalist", sweep.name + FINALISTS) if sweep.finalists else None
        self._chosen_at: object = None
        self._chosen_then: list[Configuration] = []
        self._searched_places = [(index, str(index)) for index in range(sweep.n_trials)]

    def _arm(self, kind: Kind, name: str) -> Arm:
        pruner = self.pruner if kind == "searched" else optuna.pruners.NopPruner()
        try:
            study = optuna.load_study(study_name=name, storage=self.storage, pruner=pruner)
        except KeyError:
            study = optuna.create_study(
                study_name=name,
                storage=self.storage,
                directions=self.sweep.directions,
                pruner=pruner,
                load_if_exists=True,  # another controller may have been quicker
            )
        arm = Arm(study, kind)
        self._read_forgiven(arm)
        return arm

    def _read_forgiven(self, arm: Arm) -> None:
        arm.forgiven = {int(index): n for index, n in arm.optuna.user_attrs.get(FORGIVEN, {}).items()}

    @cached_property
    def token(self) -> str:
        """What the names of this study's jobs begin with: like no other study's, also after one of the same name."""
        file = self.path / "token"
        with locked(self.path / SETUP_LOCK):
            if not file.exists():
                write_text(file, f"{self.sweep.name[:40]}-{uuid.uuid4().hex[:8]}")
        return file.read_text()

    # -- what is owed --------------------------------------------------------------------------------------------------

    @property
    def arms(self) -> list[Arm]:
        """Baselines first: what everything is compared with comes first."""
        return [self.baselines, self.searched, *([self.finalists] if self.finalists else [])]

    def refresh(self) -> None:
        """Bring what is known of the trials up to date."""
        for arm in self.arms:
            self.patience(arm.refresh)
            self.patience(partial(self._read_forgiven, arm))

    def places(self, arm: Arm) -> list[tuple[int, str]]:
        """Index and name of every configuration of an arm, by what is known now."""
        if arm.kind == "baseline":
            return [(index, one.name) for index, one in enumerate(self.sweep.baselines)]
        if arm.kind == "searched":
            return self._searched_places
        return [(one.index, f"final-{one.index}") for one in self._chosen()]

    def _chosen(self) -> list[Configuration]:
        """The finalists: the best of the search, once nothing more of it is owed."""
        if self.sweep.finalists is None or self.searched.unfinished:
            return []
        key = self.searched.read, tuple(self.searched.forgiven.items())
        if key != self._chosen_at:
            search = [self.searched.configuration(*place) for place in self._searched_places]
            over = all(one.settled(self.sweep.retries) for one in search)
            self._chosen_then = ranked(self, search)[: self.sweep.finalists.n] if over else []
            self._chosen_at = key
        return self._chosen_then

    def configurations(self) -> list[Configuration]:
        """Everything the study owes, baselines first."""
        self.refresh()
        return [arm.configuration(*place) for arm in self.arms for place in self.places(arm)]

    def running(self) -> list[tuple[Arm, FrozenTrial]]:
        """Trials in the storage that have not ended, whoever looks after them."""
        self.refresh()
        return [(arm, one) for arm in self.arms for one in arm.unfinished.values()]

    def forgive(self, configuration: Configuration) -> None:
        """Forget its failures, so that it is tried again, also by controllers that are at work."""
        arm, failed = configuration.arm, [one for one in configuration.tries if one.state == TrialState.FAIL]
        forgiven = {str(index): n for index, n in arm.forgiven.items()} | {str(configuration.index): len(failed)}
        self.patience(lambda: arm.optuna.set_user_attr(FORGIVEN, forgiven))
        self._read_forgiven(arm)

    def request_stop(self, now: bool = False) -> None:
        """Ask every controller that is at work to stop, as Ctrl-C does, or with ``now`` as the second one does."""
        write_text(self.path / STOP, (NOW if now else "") + uuid.uuid4().hex)

    def stop_request(self) -> str:
        """The last one: a controller stops when another comes."""
        try:
            return (self.path / STOP).read_text()
        except FileNotFoundError:
            return ""

    def gpu_hours(self) -> dict[str, float]:
        """GPU-hours of the ended trials, by how they ended."""
        found: dict[str, float] = {}
        for arm in self.arms:
            for how, hours in arm.gpu_hours.items():
                found[how] = found.get(how, 0.0) + hours
        return found

    # -- where things are ----------------------------------------------------------------------------------------------

    def seeds(self, arm: Arm) -> tuple[int, ...]:
        """The training seeds of an arm's trials."""
        if arm.kind == "finalist":
            assert self.sweep.finalists is not None
            return self.sweep.finalists.seeds
        return self.sweep.seeds

    def run_name(self, arm: Arm, trial: FrozenTrial) -> str:
        if arm.kind == "finalist":
            return f"{trial.number}~final"
        if arm.kind == "searched":
            return str(trial.number)
        own = self.sweep.baselines[trial.user_attrs["config"]].name
        return own if arm.first_try(trial) else f"{own}~{trial.number}"

    def run_dirs(self, arm: Arm, trial: FrozenTrial) -> list[RunDir]:
        """The run directories of a trial, one a training seed; those an earlier try had finished are its."""
        found, seeds = [], self.seeds(arm)
        for seed in seeds:
            source = trial.user_attrs.get(f"source/{seed}")
            own = self.run_name(arm, trial) + (f"/seed-{seed}" if len(seeds) > 1 else "")
            found.append(RunDir(self.path / "trials" / (source or own)))
        return found

    def run_dir(self, arm: Arm, trial: FrozenTrial) -> RunDir:
        """The run directory of a trial's first seed."""
        return self.run_dirs(arm, trial)[0]

    def completed_runs(self) -> list[RunDir]:
        """The run directories of all results, baselines first."""
        found = self.configurations()
        return [run for one in found if one.complete for run in self.run_dirs(one.arm, one.complete)]

    def values(self, arm: Arm, trial: FrozenTrial) -> Values:
        """The config keys of a trial, from the storage."""
        if arm.kind == "baseline":
            return self.sweep.baselines[trial.user_attrs["config"]].set
        return sample(optuna.trial.FixedTrial(trial.params), self.sweep.typed_space)

    # -- trials --------------------------------------------------------------------------------------------------------

    def draw(self, arm: Arm, trial: FrozenTrial) -> Values:
        """The values of a trial that was begun; drawn, and in the storage, if they are not yet."""
        if arm.kind == "searched":
            self.patience(lambda: self._draw(arm, self.storage.get_trial(trial._trial_id)))
        return self.values(arm, self.latest(trial))

    def _draw(self, arm: Arm, trial: FrozenTrial) -> None:
        """Parameters that a controller drew before it was killed stay, and the others are drawn beside them."""
        if is_inside(trial.params, self.sweep.typed_space):
            return
        if trial.params:
            fixed = trial.system_attrs.get("fixed_params", {}) | trial.params
            self.storage.set_trial_system_attr(trial._trial_id, "fixed_params", fixed)
        asked = optuna.trial.Trial(self._drawing(arm, trial), trial._trial_id)
        with together(self.storage):
            sample(asked, self.sweep.typed_space)

    def _drawing(self, arm: Arm, trial: FrozenTrial) -> Drawing:
        sampler = make_sampler(self.sweep, trial.user_attrs["config"])
        return Drawing(arm.optuna.study_name, self.storage, sampler=sampler, pruner=arm.optuna.pruner)

    def latest(self, trial: FrozenTrial) -> FrozenTrial:
        return self.patience(lambda: self.storage.get_trial(trial._trial_id))

    def note(self, trial: FrozenTrial, **attributes: Any) -> None:
        """Write user attributes of a running trial. One that has ended meanwhile is left as it is."""
        self.patience(lambda: self._write(trial, lambda: self._set(trial, attributes)))

    def report(self, trial: FrozenTrial, values: Sequence[tuple[int, float]]) -> None:
        """Intermediate values (step, value) that were not reported yet."""
        if not values:
            return

        def write() -> None:
            for step, value in values:
                self.storage.set_trial_intermediate_value(trial._trial_id, step, value)

        self.patience(lambda: self._write(trial, write))

    def should_prune(self, arm: Arm, trial: FrozenTrial) -> bool:
        """What Optuna's pruner says of the values reported so far."""
        return self.patience(lambda: bool(arm.optuna.pruner.prune(arm.optuna, self.latest(trial))))

    def complete(self, arm: Arm, trial: FrozenTrial, values: Sequence[float], **attributes: Any) -> None:
        """A result. Telling it again changes nothing."""
        if "constraints" in attributes:  # the sampler reads them when the result is told
            self.note(trial, constraints=attributes["constraints"])
        self._end(arm, trial, TrialState.COMPLETE, values, attributes)

    def prune(self, arm: Arm, trial: FrozenTrial, reason: str, **attributes: Any) -> None:
        """Stopped early by the pruner: its value is the last one reported, as Optuna has it."""
        if "constraints" in attributes:
            self.note(trial, constraints=attributes["constraints"])
        self._end(arm, trial, TrialState.PRUNED, None, {"outcome": "pruned", "reason": reason} | attributes)

    def fail(self, arm: Arm, trial: FrozenTrial, outcome: str, reason: str, **attributes: Any) -> None:
        """No result; ``outcome`` is the class of the failure, which decides whether it is tried again."""
        self._end(arm, trial, TrialState.FAIL, None, {"outcome": outcome, "reason": reason} | attributes)

    def _end(
        self,
        arm: Arm,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
        attributes: Mapping[str, Any],
    ) -> None:
        """Attributes and end of a trial, on a journal in one write. Done again, it changes nothing."""

        def write() -> None:
            if self.storage.get_trial(trial._trial_id).state.is_finished():
                return
            self._set(trial, attributes)
            if trial.state == TrialState.WAITING:
                self.storage.set_trial_state_values(trial._trial_id, state)
            else:
                value = None if values is None else list(values)
                self._drawing(arm, trial).tell(trial.number, value, state=state, skip_if_finished=True)

        self.patience(lambda: self._write(trial, write))

    def _set(self, trial: FrozenTrial, attributes: Mapping[str, Any]) -> None:
        for key, value in attributes.items():
            self.storage.set_trial_user_attr(trial._trial_id, key, value)

    def _write(self, trial: FrozenTrial, action: Any) -> None:
        """Write about a trial; what comes after its end is refused by the storage, and that is well."""
        try:
            with together(self.storage):
                action()
        except UpdateFinishedTrialError:
            pass
        while True:
            try:
                self.storage.get_trial(trial._trial_id)
                return
            except UpdateFinishedTrialError:  # a journal says so when the line is read, once for every line
                continue


def open_study(path: Path, sweep: Sweep) -> Study:
    """The study in ``path``, new or continued; several controllers may do so at once.

    Raises:
        ConfigError: the directory holds another study, or this one with settings that make its trials incomparable; or
            its storage cannot be reached.
    """
    path.mkdir(parents=True, exist_ok=True)
    with locked(path / SETUP_LOCK):
        record, now = path / "study.yaml", sweep.resolved()
        if record.exists():
            old = read_yaml(record)
            _refuse_another(path, old, now)
        if not record.exists() or old != now:
            write_yaml(record, now)
        study = Study(path, sweep)
        _warm_up(study)
    return study


def _refuse_another(path: Path, old: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Keys that an older version did not know have their defaults."""
    known = recorded_sweep({key: value for key, value in old.items() if key != RECIPE}).model_dump(mode="json")
    known[RECIPE] = old.get(RECIPE)
    if "seeds" not in old:
        known["seeds"] = now["seeds"][:1]  # the recipe's own, which is compared with the recipe
    changed = [key for key in now if key not in MAY_CHANGE and now[key] != known.get(key)]
    if changed:
        raise ConfigError(
            [
                f"{path} holds a study with another {key}: give another --study-dir, or restore the sweep file"
                for key in changed
            ]
        )


def _warm_up(study: Study) -> None:
    """Add the completed trials of another study, each once, also when this was killed in the middle."""
    if study.sweep.warm_start is None:
        return
    known = {one.user_attrs.get("source") for one in study.searched.trials()}
    for trial in warm_trials(study.sweep):
        if trial.user_attrs["source"] not in known:
            study.searched.optuna.add_trial(trial)


def read_study(path: Path) -> Study:
    """A study as it stands, without its recipe, to look at. Raises :class:`ConfigError` where there is none."""
    record = path / "study.yaml"
    if not record.is_file():
        raise ConfigError([f"{path}: is no study directory (it has no study.yaml); steer sweep run makes one"])
    tree = {key: value for key, value in read_yaml(record).items() if key != RECIPE}
    study = Study(path, recorded_sweep(tree))
    study.patience.away_s = LOOKING_S
    return study


def ranked(study: Study, configurations: Sequence[Configuration]) -> list[Configuration]:
    """Complete configurations, best first. Those that keep to the constraints stand before those that do not."""
    sign = -1 if study.sweep.directions[0] == "maximize" else 1
    done = [one for one in configurations if one.complete]
    return sorted(done, key=lambda one: (_excess(one), sign * one.value, one.index))


def _excess(configuration: Configuration) -> float:
    """By how much its constraints are broken in all; 0 when it keeps to them."""
    assert configuration.complete is not None
    return sum(max(0.0, one) for one in configuration.complete.user_attrs.get("constraints", ()))


def best(study: Study) -> Configuration | None:
    """The searched configuration with the best (first) objective that keeps to the constraints, or None."""
    found = ranked(study, [one for one in study.configurations() if one.arm.searched])
    return found[0] if found and _excess(found[0]) == 0 else None

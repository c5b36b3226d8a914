"""The trials of a study by what they were started for, kept up to date at the cost of what changed.

A *configuration* is a place in an arm (user attribute ``config``); every try of it is an Optuna trial.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import optuna
from optuna.trial import FrozenTrial, TrialState
from steer_experiments.failures import NEVER_AGAIN, UNCOUNTED

Kind = Literal["baseline", "searched", "finalist"]
LETTERS: dict[Kind, str] = {"baseline": "b", "searched": "t", "finalist": "f"}
MOST_UNCOUNTED = 100
"""Ends without a fault of the configuration (interrupted, preempted) after which it is given up all the same."""
LIVE = (TrialState.RUNNING, TrialState.WAITING)
SETTLED = (TrialState.COMPLETE, TrialState.PRUNED)


@dataclass(frozen=True)
class Configuration:
    """What the study owes: place ``index`` of an arm, and how it stands. ``tries`` are in the order of their numbers;
    ``forgiven``: how many of its failures somebody asked to forget."""

    arm: "Arm"
    index: int
    name: str
    tries: tuple[FrozenTrial, ...]
    forgiven: int = 0

    @property
    def complete(self) -> FrozenTrial | None:
        return next((one for one in self.tries if one.state == TrialState.COMPLETE), None)

    @property
    def pruned(self) -> FrozenTrial | None:
        return next((one for one in self.tries if one.state == TrialState.PRUNED), None)

    @property
    def value(self) -> float:
        """The (first) objective of a complete configuration."""
        assert self.complete is not None
        assert self.complete.values is not None
        return self.complete.values[0]

    @property
    def live(self) -> list[FrozenTrial]:
        return [one for one in self.tries if one.state in LIVE]

    def outcomes(self) -> list[str]:
        """Why its failed tries failed, in order, without those that are forgiven."""
        failed = [one for one in self.tries if one.state == TrialState.FAIL]
        return [str(one.user_attrs.get("outcome", "interrupted")) for one in failed[self.forgiven :]]

    def failures(self) -> int:
        """Tries that failed by themselves; those that were interrupted do not count."""
        return sum(one not in UNCOUNTED for one in self.outcomes())

    def reason(self) -> str:
        """Why the last try gave no result."""
        last = self.tries[-1].user_attrs if self.tries else {}
        return f"{last.get('outcome', 'not started')}: {last.get('reason', 'nothing was recorded')}".split("\n")[0]

    def settled(self, retries: int) -> bool:
        """Whether nothing more is owed for it: a result, pruned, or given up."""
        if any(one.state in SETTLED for one in self.tries):
            return True
        if self.live:
            return False
        outcomes = self.outcomes()
        hopeless = any(one in NEVER_AGAIN for one in outcomes)
        return hopeless or self.failures() > retries or len(outcomes) > retries + MOST_UNCOUNTED

    def due(self, retries: int) -> bool:
        """Whether a trial of it must be started now."""
        return not self.live and not self.settled(retries)


@dataclass(eq=False)
class Arm:
    """One of the Optuna studies of a storage, and an index of its trials."""

    optuna: optuna.Study
    kind: Kind
    tries: dict[int, list[FrozenTrial]] = field(default_factory=dict)
    unfinished: dict[int, FrozenTrial] = field(default_factory=dict)
    forgiven: dict[int, int] = field(default_factory=dict)
    gpu_hours: dict[str, float] = field(default_factory=dict)
    """GPU-hours of the ended trials, by how they ended."""
    read: int = 0
    """How many trials the index knows."""
    _places: dict[int, int] = field(default_factory=dict)

    @property
    def baseline(self) -> bool:
        return self.kind == "baseline"

    @property
    def searched(self) -> bool:
        return self.kind == "searched"

    def trials(self) -> list[FrozenTrial]:
        """Every trial as the storage has it now."""
        return self.refresh()

    def lease(self, index: int) -> str:
        return f"{LETTERS[self.kind]}{index}"

    def refresh(self) -> list[FrozenTrial]:
        """Bring the index up to date. A trial that ended never changes again, so only the others are looked at."""
        found = self.optuna.get_trials(deepcopy=False)
        for number in [*self.unfinished, *range(self.read, len(found))]:
            self._take(found[number])
        self.read = len(found)
        return found

    def _take(self, trial: FrozenTrial) -> None:
        if trial.state.is_finished():
            self.unfinished.pop(trial.number, None)
            how = str(trial.user_attrs.get("outcome", trial.state.name.lower()))
            self.gpu_hours[how] = self.gpu_hours.get(how, 0.0) + float(trial.user_attrs.get("gpu_hours", 0.0))
        else:
            self.unfinished[trial.number] = trial
        index = trial.user_attrs.get("config")
        if index is None:
            return
        tries = self.tries.setdefault(index, [])
        place = self._places.setdefault(trial.number, len(tries))
        tries[place : place + 1] = [trial]

    def configuration(self, index: int, name: str) -> Configuration:
        """How one configuration stands, by the index as it is."""
        return Configuration(self, index, name, tuple(self.tries.get(index, ())), self.forgiven.get(index, 0))

    def first_try(self, trial: FrozenTrial) -> bool:
        tries = self.tries.get(trial.user_attrs["config"], ())
        return not any(one.number < trial.number for one in tries)


class Owed:
    """Which configurations of an arm are due, lowest first. A settled one is looked at once: it stays settled, unless
    it is forgiven."""

    def __init__(self, arm: Arm, retries: int) -> None:
        self.arm, self.retries = arm, retries
        self._first = 0
        self._forgiven = dict(arm.forgiven)

    def due(self, places: "list[tuple[int, str]]") -> Iterator[Configuration]:
        """The due ones among ``places`` (index and name), which may only grow at its end."""
        self._look_again()
        for place in range(self._first, len(places)):
            found = self.arm.configuration(*places[place])
            if found.settled(self.retries):
                self._first += place == self._first
            elif not found.live:
                yield found

    def over(self, places: "list[tuple[int, str]]") -> bool:
        """Whether every configuration is settled."""
        self._look_again()
        for place in range(self._first, len(places)):
            if not self.arm.configuration(*places[place]).settled(self.retries):
                return False
            self._first += place == self._first
        return True

    def _look_again(self) -> None:
        """Somebody asked that failed configurations be tried again."""
        if self._forgiven != self.arm.forgiven:
            self._first, self._forgiven = 0, dict(self.arm.forgiven)

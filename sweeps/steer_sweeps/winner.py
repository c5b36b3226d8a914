"""Which trials of a study won, and their recipes as files that ``steer train`` takes."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from optuna.trial import FrozenTrial, TrialState
from steer_experiments.recipes import read_yaml
from steer_experiments.run_dir import write_text
from steer_openrlhf.errors import ConfigError

from .spec import Sweep
from .study import Configuration, Study, ranked

WINNER = "winner"


def feasible(trial: FrozenTrial) -> bool:
    """Whether it keeps to every constraint of its study."""
    return all(one <= 0 for one in trial.user_attrs.get("constraints", ()))


def signs_of(sweep: Sweep) -> tuple[int, ...]:
    """What every objective is multiplied with so that more is better."""
    return tuple(1 if one == "maximize" else -1 for one in sweep.directions)


@dataclass
class Front:
    """The complete and feasible trials that no other is better than: with one objective the best (the first of equal
    ones), with several the Pareto front, best first objective first. Adding one costs as much as the front is long."""

    signs: tuple[int, ...]
    trials: list[FrozenTrial] = field(default_factory=list)

    def add(self, trial: FrozenTrial) -> None:
        if trial.state != TrialState.COMPLETE or not feasible(trial):
            return
        mine = self._scores(trial)
        if len(self.signs) == 1:
            first = not self.trials or _earlier(mine, trial, self._scores(self.trials[0]), self.trials[0])
            self.trials = [trial] if first else self.trials
            return
        if any(_dominates(self._scores(one), mine) for one in self.trials):
            return
        kept = [one for one in self.trials if not _dominates(mine, self._scores(one))]
        self.trials = sorted([*kept, trial], key=lambda one: (-self._scores(one)[0], one.number))

    def _scores(self, trial: FrozenTrial) -> list[float]:
        assert trial.values is not None
        return [sign * value for sign, value in zip(self.signs, trial.values, strict=True)]


def _earlier(mine: Sequence[float], trial: FrozenTrial, its: Sequence[float], other: FrozenTrial) -> bool:
    """Whether ``trial`` stands before ``other``: by value, then by configuration, as the study ranks them."""
    key = -mine[0], trial.user_attrs.get("config", trial.number)
    return key < (-its[0], other.user_attrs.get("config", other.number))


def _dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    """At least as good in everything, better in something."""
    return all(a >= b for a, b in zip(one, other, strict=True)) and list(one) != list(other)


def winners(study: Study) -> list[Configuration]:
    """The best feasible configuration, with several objectives the Pareto front; of the finalists once one is
    complete, else of the search."""
    found = study.configurations()
    finals = [one for one in found if one.arm.kind == "finalist" and one.complete]
    return winners_of(study, finals or [one for one in found if one.arm.searched])


def winners_of(study: Study, configurations: Sequence[Configuration]) -> list[Configuration]:
    """The same, of some configurations."""
    done = [one for one in ranked(study, configurations) if one.complete and feasible(one.complete)]
    if len(study.sweep.directions) == 1:
        return done[:1]
    front = Front(signs_of(study.sweep))
    for one in done:
        assert one.complete is not None
        front.add(one.complete)
    numbers = [one.number for one in front.trials]
    return sorted(
        (one for one in done if one.complete and one.complete.number in numbers),
        key=lambda one: numbers.index(one.complete.number) if one.complete else 0,
    )


def write_winners(study: Study) -> list[Path]:
    """``winner.yaml`` in the study directory; with several objectives ``winner-<trial>.yaml`` for each trial of the
    front. Files of an earlier end that no longer win go. Raises :class:`ConfigError` when a run's config is gone."""
    files = {}
    for one in winners(study):
        assert one.complete is not None
        name = WINNER if len(study.sweep.directions) == 1 else f"{WINNER}-{study.run_name(one.arm, one.complete)}"
        files[study.path / f"{name}.yaml"] = recipe_text(study, one, name)
    for path, text in files.items():
        write_text(path, text)
    for path in study.path.glob(f"{WINNER}*.yaml"):
        if path not in files:
            path.unlink(missing_ok=True)
    return list(files)


def recipe_text(study: Study, configuration: Configuration, name: str) -> str:
    """The recipe of a complete configuration: everything its (first) run was made of, which gives the same flags."""
    trial = configuration.complete
    assert trial is not None
    config = study.run_dir(configuration.arm, trial).config
    try:
        tree = read_yaml(config)
    except ConfigError as error:
        raise ConfigError([f"the recipe of trial {configuration.name}: {one}" for one in error.mistakes]) from None
    n = len(study.seeds(configuration.arm))
    shown = zip(study.sweep.all_objectives, trial.values or (), strict=True)
    lines = [
        f"Trial {study.run_name(configuration.arm, trial)} of the study {study.sweep.name}, mean of n = {n} seeds: "
        + ", ".join(f"{one.metric} ({one.reduce}) = {value:.6g}" for one, value in shown),
        "steer train THIS_FILE trains it again; seed=... for another seed.",
    ]
    tree["name"] = f"{study.sweep.name}-{name}".replace("~", "-")
    body = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=120)
    return "".join(f"# {line}\n" for line in lines) + body

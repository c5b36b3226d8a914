"""Completed trials of another study as knowledge for this one. The other study is only read."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState, create_trial
from pydantic import Field
from steer_experiments.recipes import read_yaml
from steer_openrlhf.errors import ConfigError

from .objective import Section
from .relations import all_hold
from .samplers import FEASIBLE_BY
from .space import distributions, is_inside
from .storage import JOURNAL, resolved_url

if TYPE_CHECKING:
    from .spec import Sweep

SOURCE = "source"
"""The user attribute of a trial that another study ran: ``<its directory, as in the sweep file>#<trial number>``."""


class WarmStart(Section):
    """Results of another study that the sampler knows from the start. They count as no trial of this one."""

    study: str
    """Its directory, relative to the sweep file."""
    top: int | None = Field(default=None, ge=1)
    """Only its best so many (of one objective, those that keep to the constraints first); None: all."""


def warm_trials(sweep: "Sweep") -> list[FrozenTrial]:
    """Completed trials of the other study that lie inside this one's space, as trials to add, in their old order.

    Raises :class:`ConfigError` when the other study is none, or its results are not this study's kind.
    """
    if sweep.warm_start is None:
        return []
    path = (sweep.folder / sweep.warm_start.study).resolve()
    other = _recorded(path)
    if wrong := _incomparable(sweep, other):
        raise ConfigError([f"warm_start.study = {str(path)!r}: {one}" for one in wrong])
    known = distributions(sweep.typed_space)
    inside = [one for one in _completed(path, other) if _fits(sweep, one)]
    if sweep.warm_start.top is not None:
        best = sorted(inside, key=lambda one: _rank(sweep, one))[: sweep.warm_start.top]
        inside = sorted(best, key=lambda one: one.number)
    source = sweep.warm_start.study
    return [_adopted(one, source, known, keep_steps=sweep.seeds == other.seeds) for one in inside]


def warm_mistakes(sweep: "Sweep") -> list[str]:
    try:
        found = warm_trials(sweep)
    except ConfigError as error:
        return error.mistakes
    if sweep.warm_start and not found:
        return [
            f"warm_start.study = {sweep.warm_start.study!r}: has no completed trial inside this space; leave it out"
        ]
    return []


def _recorded(path: Path) -> "Sweep":
    from .spec import RECIPE, recorded_sweep

    record = path / "study.yaml"
    if not record.is_file():
        raise ConfigError([f"warm_start.study = {str(path)!r}: is no study directory (it has no study.yaml)"])
    return recorded_sweep({key: value for key, value in read_yaml(record).items() if key != RECIPE})


def _incomparable(sweep: "Sweep", other: "Sweep") -> list[str]:
    mistakes = []
    for what in ("all_objectives", "constraints"):
        ours, theirs = ([one.model_dump() for one in getattr(one, what)] for one in (sweep, other))
        if ours != theirs:
            name = "objective" if what == "all_objectives" else "constraints"
            mistakes.append(f"its {name} is {theirs}, this study's is {ours}: its results say nothing here")
    if sweep.warm_start and sweep.warm_start.top and len(sweep.directions) > 1:
        mistakes.append("top: with several objectives nothing says which are the best; leave it out")
    return mistakes


def _completed(path: Path, other: "Sweep") -> list[FrozenTrial]:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        storage = _journal(path) if other.storage is None else _database(other.storage)
        study = optuna.load_study(study_name=other.name, storage=storage)
    except KeyError:
        return []
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def _journal(path: Path) -> BaseStorage:
    if not (path / JOURNAL).is_file():  # Optuna would make one
        raise ConfigError([f"warm_start.study = {str(path)!r}: has no {JOURNAL}"])
    return JournalStorage(JournalFileBackend(str(path / JOURNAL)))


def _database(url: str) -> BaseStorage:
    full = resolved_url(url, os.environ)
    try:
        from sqlalchemy.exc import SQLAlchemyError

        return RDBStorage(full, skip_table_creation=True)
    except ImportError as error:
        raise ConfigError([f"warm_start: the storage {url!r} needs a driver ({error}); pip install it"]) from None
    except (SQLAlchemyError, StorageInternalError) as error:
        kind = type(error).__name__  # its text may hold the password
        raise ConfigError(
            [f"warm_start: the storage {url!r} cannot be read ({kind}); start it, or leave it out"]
        ) from None


def _fits(sweep: "Sweep", trial: FrozenTrial) -> bool:
    return is_inside(trial.params, sweep.typed_space) and all_hold(sweep.typed_relations, trial.params)


def _rank(sweep: "Sweep", trial: FrozenTrial) -> tuple[float, float, int]:
    excess = sum(max(0.0, one) for one in trial.user_attrs.get(FEASIBLE_BY, ()))
    assert trial.value is not None
    return excess, -trial.value if sweep.directions[0] == "maximize" else trial.value, trial.number


def _adopted(trial: FrozenTrial, source: str, known: dict[str, BaseDistribution], keep_steps: bool) -> FrozenTrial:
    """The trial as one of this study. Intermediate values stay only where their steps mean the same here."""
    constraints = trial.user_attrs.get(FEASIBLE_BY)
    return create_trial(
        state=TrialState.COMPLETE,
        values=trial.values,
        params=trial.params,
        distributions={name: known[name] for name in trial.params},
        user_attrs={SOURCE: f"{source}#{trial.number}"} | ({} if constraints is None else {FEASIBLE_BY: constraints}),
        system_attrs={} if constraints is None else {"constraints": list(constraints)},
        intermediate_values=trial.intermediate_values if keep_steps else {},
    )

"""Beginning a trial so that nothing is begun twice: by two controllers at once, or after one was killed.

The lease of a configuration is taken first. Its trial is created running, in one write, with everything that earlier
tries already found out. Should a lease fail (a file system without working locks), two trials of one configuration
exist for a moment: the one with the lowest number is the real one, the others end as ``duplicate`` and never run.
"""

from collections.abc import Mapping
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from .study import Study
from .trials import SETTLED, Arm, Configuration

TAKEN_OVER = ("value", "hours", "limits", "source")
"""What a new try takes over of a training seed that an earlier try finished (attributes ``<name>/<seed>``)."""


def begin(
    study: Study, configuration: Configuration, owner: str, executor: Mapping[str, Any], new: bool
) -> FrozenTrial | None:
    """The running trial of a configuration whose lease we hold: the one that is there, or with ``new`` a new one. None
    when nothing is owed after all. Done again after a failure in between, it finds what it left."""
    return study.patience(lambda: _begin(study, configuration, owner, executor, new))


def _begin(study: Study, old: Configuration, owner: str, executor: Mapping[str, Any], new: bool) -> FrozenTrial | None:
    arm = old.arm
    arm.refresh()
    now = arm.configuration(old.index, old.name)
    created = None
    if not now.live:
        if not new or now.settled(study.sweep.retries):
            return None
        attributes = {"config": old.index, "owner": owner, "attempt": len(now.tries), "executor": dict(executor)}
        created = study.storage.create_new_trial(_study_id(study, arm), _template(study, now, attributes))
        arm.refresh()
        now = arm.configuration(old.index, old.name)
    first = _only_one(study, now)
    if first is None or (created is not None and first._trial_id != created):
        return None
    if first.state == TrialState.WAITING:  # enqueued by an older version that was killed then
        study.storage.set_trial_state_values(first._trial_id, TrialState.RUNNING)
    return study.storage.get_trial(first._trial_id)


def _only_one(study: Study, configuration: Configuration) -> FrozenTrial | None:
    """The live trial with the lowest number; the others end here. None when there is a result already."""
    settled = any(one.state in SETTLED for one in configuration.tries)
    live = configuration.live
    for other in live if settled else live[1:]:
        study.fail(configuration.arm, other, "duplicate", "another controller began the same configuration")
    return None if settled or not live else live[0]


def fail_strays(study: Study, arm: Arm) -> None:
    """End what waits or runs for a configuration the sweep no longer asks for, and nobody looks after."""
    known = {index for index, _ in study.places(arm)}
    for trial in list(arm.unfinished.values()):
        if trial.user_attrs.get("config") not in known and trial.state == TrialState.WAITING:
            study.fail(arm, trial, "interrupted", "the sweep no longer asks for it")


def _study_id(study: Study, arm: Arm) -> int:
    return study.storage.get_study_id_from_name(arm.optuna.study_name)


def _template(study: Study, configuration: Configuration, attributes: dict[str, Any]) -> FrozenTrial:
    """A running trial of a configuration, as it enters the storage."""
    found = _taken_over(study, configuration)
    seeds = [str(seed) for seed in study.seeds(configuration.arm)]
    values = {seeds.index(key.split("/", 1)[1]): one[0] for key, one in found.items() if key.startswith("value/")}
    chosen = _searched_trial(study, configuration)
    return optuna.trial.create_trial(
        state=TrialState.RUNNING,
        user_attrs=attributes | found,
        system_attrs={"fixed_params": _params(study, configuration)},
        intermediate_values=values if len(study.sweep.directions) == 1 else {},
        params=chosen.params if chosen else {},
        distributions=chosen.distributions if chosen else {},
    )


def _searched_trial(study: Study, configuration: Configuration) -> FrozenTrial | None:
    """What a finalist repeats."""
    if configuration.arm.kind != "finalist":
        return None
    return study.searched.configuration(configuration.index, "").complete


def _params(study: Study, configuration: Configuration) -> dict[str, Any]:
    """What the sweep file enqueues, and what tries before have drawn (a killed one perhaps not everything)."""
    given = study.sweep.enqueue if configuration.arm.searched else []
    params = dict(given[configuration.index]) if configuration.index < len(given) else {}
    for one in configuration.tries:
        params |= one.params
    return params


def _taken_over(study: Study, configuration: Configuration) -> dict[str, Any]:
    """Attributes of the training seeds that earlier tries finished. With one seed there is nothing to take over."""
    arm, found = configuration.arm, dict[str, Any]()
    seeds = study.seeds(arm)
    if len(seeds) == 1:
        return found
    for trial in configuration.tries:
        for seed, run in zip(seeds, study.run_dirs(arm, trial), strict=True):
            if f"value/{seed}" in trial.user_attrs:
                names = (f"{name}/{seed}" for name in TAKEN_OVER)
                found |= {name: trial.user_attrs[name] for name in names if name in trial.user_attrs}
                found[f"source/{seed}"] = str(run.path.relative_to(study.path / "trials"))
    return found

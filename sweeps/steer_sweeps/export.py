"""The trials of a study as a file for other tools: one row each, with the same columns however far the study is."""

import csv
import io
import json
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from .objective import Constraint, Objective
from .rows import plain, state_of
from .space import dimensions
from .study import Arm, Study
from .winner import feasible

FORMATS = ("csv", "json")
SECONDS_PER_HOUR = 3600.0
WARM_START = "warm start"
Record = dict[str, Any]


def records(study: Study) -> list[Record]:
    """Every trial of the storage, also of a warm start: nested, ``None`` for what is not known."""
    study.refresh()
    found = []
    for arm in study.arms:
        for trial in study.patience(arm.trials):
            found.append(_record(study, arm, trial))
    return found


def _record(study: Study, arm: Arm, trial: FrozenTrial) -> Record:
    own, sweep, attributes = "config" in trial.user_attrs, study.sweep, trial.user_attrs
    ended = trial.state.is_finished()
    values = dict(zip(map(objective_name, sweep.all_objectives), trial.values or (), strict=False))
    limits = dict(zip(map(constraint_name, sweep.constraints), attributes.get("constraints", ()), strict=False))
    seeds = list(study.seeds(arm)) if own else []
    return {
        "arm": arm.kind if own else WARM_START,
        "trial": study.run_name(arm, trial) if own else None,
        "number": trial.number,
        "configuration": attributes.get("config"),
        "attempt": attributes.get("attempt", 0) if own else None,
        "state": trial.state.name.lower(),
        "outcome": attributes.get("outcome") or state_of(trial),
        "feasible": feasible(trial) if trial.state == TrialState.COMPLETE else None,
        "reason": plain(str(attributes.get("reason", ""))) or None,
        "source": None if own else attributes.get("source"),
        "started": trial.datetime_start.isoformat(timespec="seconds") if trial.datetime_start else None,
        "ended": trial.datetime_complete.isoformat(timespec="seconds") if trial.datetime_complete else None,
        "hours": hours_of(study, arm, trial) if own else None,
        "gpu_hours": attributes.get("gpu_hours") if ended else None,
        "values": values,
        "constraints": limits,
        "params": dict(trial.params),
        "seeds": seeds,
        "seed_values": {str(seed): attributes.get(f"value/{seed}") for seed in seeds} if len(seeds) > 1 else {},
        "run_dirs": [str(run.path) for run in study.run_dirs(arm, trial)] if own else [],
    }


def hours_of(study: Study, arm: Arm, trial: FrozenTrial) -> float | None:
    """Hours of the trial's own runs together, by their own clocks; None when none was ever started. What a try took
    over of an earlier one is that one's."""
    found = []
    for seed, run in zip(study.seeds(arm), study.run_dirs(arm, trial), strict=True):
        if f"source/{seed}" in trial.user_attrs:
            continue
        try:
            status = run.read_status()
        except (ValueError, OSError):
            continue
        if status is not None:
            found.append(status.seconds / SECONDS_PER_HOUR)
    return sum(found) if found else None


def objective_name(one: Objective) -> str:
    return f"{one.metric} {one.reduce}"


def constraint_name(one: Constraint) -> str:
    """``train/steer/entropy min >= 0.3``; its value is by how much that is missed."""
    bound = f">= {one.at_least:g}" if one.at_least is not None else f"<= {one.at_most:g}"
    return f"{one.metric} {one.reduce} {bound}"


# -- formats -----------------------------------------------------------------------------------------------------------

NESTED = {"values": "value", "constraints": "constraint", "params": "param"}
"""Mappings of a record, and what the names of their columns begin with."""
LISTS = ("seeds", "run_dirs")


def columns(study: Study) -> list[str]:
    """The columns of the CSV: they follow from the sweep alone."""
    sweep = study.sweep
    names = {
        "values": [objective_name(one) for one in sweep.all_objectives],
        "constraints": [constraint_name(one) for one in sweep.constraints],
        "params": [name for name, _ in dimensions(sweep.typed_space)],
    }
    first = [*("arm", "trial", "number", "configuration", "attempt", "state", "outcome", "feasible", "reason")]
    first += [*("source", "started", "ended", "hours", "gpu_hours")]
    return [*first, *(f"{NESTED[part]} {name}" for part in NESTED for name in names[part]), *LISTS]


def to_csv(study: Study, found: list[Record]) -> str:
    """Comma-separated, a header line; an empty cell is what is not known; lists have a space between their elements."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns(study), extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for record in found:
        flat = {key: value for key, value in record.items() if key not in NESTED}
        for part, prefix in NESTED.items():
            flat |= {f"{prefix} {name}": value for name, value in record[part].items()}
        flat |= {name: " ".join(map(str, record[name])) for name in LISTS}
        writer.writerow({key: "" if value is None else value for key, value in flat.items()})
    return stream.getvalue()


def to_json(study: Study, found: list[Record]) -> str:
    """One object: the study, and its trials as nested records."""
    objectives = [
        {"name": objective_name(one), "metric": one.metric, "reduce": one.reduce, "direction": one.direction}
        for one in study.sweep.all_objectives
    ]
    whole = {"study": study.sweep.name, "path": str(study.path), "objectives": objectives, "trials": found}
    return json.dumps(whole, indent=1, allow_nan=False) + "\n"


def exported(study: Study, kind: str) -> str:
    """The whole file as text. ``kind``: one of :data:`FORMATS`."""
    return {"csv": to_csv, "json": to_json}[kind](study, records(study))


def hours_by_state(study: Study) -> dict[str, tuple[int, float, float]]:
    """How many trials ended (or run) in each state, their hours and their GPU-hours."""
    study.refresh()
    found: dict[str, tuple[int, float, float]] = {}
    for arm in study.arms:
        for tries in arm.tries.values():
            for trial in tries:
                n, hours, gpu = found.get(state := state_of(trial), (0, 0.0, 0.0))
                own = hours_of(study, arm, trial) or 0.0
                found[state] = n + 1, hours + own, gpu + float(trial.user_attrs.get("gpu_hours", 0.0))
    return found

"""What a study would do, for ``steer sweep run --dry-run``: in words, and as the exact command of its first runs."""

import json
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from optuna.trial import FrozenTrial
from pydantic import BaseModel
from steer_experiments.recipes import parse_yaml

from .samplers import draw_in_memory
from .space import Values, values_of
from .spec import Objective, Sweep
from .warm_start import warm_trials

SHOWN = 5
"""How many searched trials are drawn ahead."""


def plan_lines(sweep: Sweep, path: Path) -> list[str]:
    """The study in ``path``, line by line. Nothing is written; the first trials are drawn in memory, with the seeds the
    study will use."""
    lines = [f"study {sweep.name} in {path}", *(f"  {one}" for one in _settings(sweep))]
    for baseline in sweep.baselines:
        lines += _runs(sweep, path, f"baseline {baseline.name}", baseline.name, baseline.set)
    drawn = first_trials(sweep, min(SHOWN, sweep.n_trials))
    for index, params in enumerate(drawn):
        if params is None:
            lines.append(f"trial {index}: depends on the results of the trials before it")
        else:
            lines += _runs(sweep, path, f"trial {index}", str(index), values_of(params, sweep.typed_space))
    if sweep.n_trials > len(drawn):
        lines.append(f"then {sweep.n_trials - len(drawn)} trials more, {sweep.n_trials} trials in all")
    lines.append(f"searched by {sweep.sampler['name']}:")
    lines += [f"  {key}: {_flow(dimension)}" for key, dimension in sweep.space.items()]
    return lines + [f"  where {one}" for one in sweep.relations]


def first_trials(sweep: Sweep, n: int) -> list[dict[str, Any] | None]:
    """The parameters of the first ``n`` configurations; None for one that depends on results. (Found by drawing them
    while all before still run, and after different results.)"""
    known = warm_trials(sweep)
    outcomes = (lambda index: None, lambda index: float(index), lambda index: -float(index))
    draws = [draw_in_memory(sweep, n, told, known=known) for told in outcomes]
    return [one.params if _same(one, others) else None for one, *others in zip(*draws, strict=True)]


def _same(trial: FrozenTrial, others: list[FrozenTrial]) -> bool:
    return all(one.params == trial.params for one in others)


def _settings(sweep: Sweep) -> Iterator[str]:
    """One line for every part of the sweep file that says more than its default."""
    n, seeds = sweep.n_trials + len(sweep.baselines), list(sweep.seeds)
    yield f"{n} configurations ({len(sweep.baselines)} baselines), seeds {seeds}: {n * len(seeds)} runs"
    for one in sweep.all_objectives:
        yield _objective(one)
    for constraint in sweep.constraints:
        yield f"constraint: {_set_fields(constraint)}"
    yield f"sampler: {_flow(sweep.sampler)}"
    yield f"pruner: {_flow(sweep.pruner)}"
    yield f"executor: {_set_fields(sweep.executor)}"
    limits = {key: value for key, value in sweep.budget.model_dump().items() if value is not None}
    yield f"budget: {', '.join(f'{value:g} {key}' for key, value in limits.items()) or 'no limit'}"
    if sweep.trial_timeout_hours is not None:
        yield f"a trial is ended after {sweep.trial_timeout_hours:g} h"
    yield f"storage: {sweep.storage or 'journal.log in the study directory'}"
    if sweep.warm_start:
        yield f"warm start: {len(warm_trials(sweep))} trials of {sweep.warm_start.study}"
    if sweep.finalists:
        yield f"finalists: the best {sweep.finalists.n} again with seeds {list(sweep.finalists.seeds)}"


def _objective(one: Objective) -> str:
    return f"{one.direction} {one.metric} ({one.reduce})"


def _set_fields(model: BaseModel) -> str:
    return _flow({"name": getattr(model, "name", None)} | model.model_dump(mode="json", exclude_defaults=True))


def _flow(value: Any) -> str:
    """Plain data as YAML on one line."""
    if isinstance(value, Mapping):
        value = {key: one for key, one in value.items() if one is not None}
    return yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10**6).strip().removesuffix("\n...")


# -- commands ----------------------------------------------------------------------------------------------------------


def _runs(sweep: Sweep, path: Path, what: str, name: str, values: Values) -> list[str]:
    shown = ", ".join(f"{key}={_text(value)}" for key, value in values.items()) or "the recipe as it is"
    lines = [f"{what}: {shown}"]
    for seed in sweep.seeds:
        run = path / "trials" / name / (f"seed-{seed}" if len(sweep.seeds) > 1 else "")
        lines.append(f"  {shlex.join(command(sweep, name, values, seed, run))}")
    return lines


def command(sweep: Sweep, name: str, values: Values, seed: int, run_dir: Path) -> list[str]:
    """``steer train ...`` that does what a trial of the study does."""
    recipe = sweep.folder / sweep.recipe
    here = Path.cwd()
    shown = recipe.resolve().relative_to(here) if recipe.resolve().is_relative_to(here) else recipe
    keys = {**sweep.overrides, "name": f"{sweep.name}-{name}", "seed": seed}
    keys = {key: value for key, value in keys.items() if key not in values} | values
    words = [f"{key}={_text(value)}" for key, value in keys.items()]
    return ["steer", "train", str(shown), *words, "--run-dir", str(run_dir)]


def _text(value: Any) -> str:
    """A value as ``key=value`` reads it back."""
    plain = isinstance(value, str) and value and "\n" not in value
    try:
        if plain and parse_yaml(value) == value:
            return str(value)
    except yaml.YAMLError:
        pass
    return json.dumps(value)

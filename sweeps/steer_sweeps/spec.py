"""A sweep file, typed and checked: what is searched, on which recipe, and what it is compared with."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError
from steer_experiments.config import Experiment, build_experiment, flag_of
from steer_experiments.recipes import Tree, read_recipe, read_yaml, set_keys
from steer_openrlhf.errors import ConfigError, mistakes_of, suggest

from .space import Space, Values, check_params, corners, keys, parse_space, sample

RECIPE = "recipe_resolved"
"""The key of ``study.yaml`` that holds the recipe with the overrides, so that a changed recipe is noticed."""


class Section(BaseModel):
    """Base of every part of a sweep: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Objective(Section):
    """Which validation metric of ``metrics.jsonl`` is optimised, and how its values over the run become one."""

    metric: str = Field(pattern=r"^eval/.+")
    reduce: Literal["last", "max", "mean_last_2"] = "last"

    def value(self, rows: Sequence[Mapping[str, Any]]) -> float:
        """The objective of a run. Raises ``ValueError`` when it has none: a failure is never a number."""
        values = [row[self.metric] for row in rows if self.metric in row]
        if not values:
            raise ValueError(f"the metrics have no {self.metric}")
        used = values if self.reduce == "max" else values[-2:] if self.reduce == "mean_last_2" else values[-1:]
        numbers = [one for one in used if isinstance(one, int | float) and math.isfinite(one)]
        if len(numbers) < len(used):
            raise ValueError(f"{self.metric} is no number in {len(used) - len(numbers)} of the {len(used)} rows used")
        return max(numbers) if self.reduce == "max" else sum(numbers) / len(numbers)


class Baseline(Section):
    """An arm that is not searched: the recipe with some keys set."""

    name: str = Field(pattern=r"^[A-Za-z][A-Za-z0-9_.-]*$")
    set: Tree = {}


class Sweep(Section):
    """A study: ``n_trials`` searched configurations and the baselines, each a run of ``recipe`` with ``overrides``."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    recipe: str
    overrides: Tree = {}
    n_trials: int = Field(default=6, ge=1)
    sampler: Tree = {"name": "TPESampler"}
    """An Optuna sampler and its arguments; ``seed`` (default 0) is the study's."""
    direction: Literal["maximize", "minimize"] = "maximize"
    objective: Objective
    space: Tree
    enqueue: list[Tree] = []
    baselines: list[Baseline] = []
    slots: int = Field(default=1, ge=1)
    """Runs at a time. On a GPU machine give each what it needs: they share what they see."""
    retries: int = Field(default=1, ge=0)
    """How often a configuration whose run failed is tried again."""
    _tree: Tree = PrivateAttr(default_factory=dict)
    _space: Space = PrivateAttr(default_factory=dict)

    @property
    def typed_space(self) -> Space:
        return self._space

    def experiment(self, name: str, values: Values) -> Experiment:
        """The run with these config keys set. Raises :class:`ConfigError` when the combination makes no sense."""
        return build_experiment(self._tree | {"name": f"{self.name}-{name}"}, values.items())

    def resolved(self) -> Tree:
        """Everything a result depends on, as plain data: what ``study.yaml`` holds."""
        return self.model_dump(mode="json") | {RECIPE: self.experiment("base", {}).resolved()}


def load_sweep(path: Path) -> Sweep:
    """A sweep file, its recipe and its space checked on each other. Raises :class:`ConfigError` with every mistake."""
    tree = read_yaml(path)
    try:
        sweep = Sweep.model_validate(tree)
    except ValidationError as error:
        mistakes = mistakes_of(error, fields=[*Sweep.model_fields, *Objective.model_fields, *Baseline.model_fields])
        raise ConfigError(mistakes + _mistakes(partial(parse_space, tree.get("space")))) from None
    mistakes = _mistakes(partial(sampler_class, sweep.sampler))
    try:
        sweep._space = parse_space(sweep.space)
        if not mistakes:
            mistakes += _sampler_mistakes(sweep)
    except ConfigError as error:
        mistakes += error.mistakes
    try:
        sweep._tree = _overridden(sweep, path.parent)
        mistakes += _applied(sweep)
    except ConfigError as error:
        mistakes += error.mistakes
    if mistakes:
        raise ConfigError(list(dict.fromkeys(mistakes)))
    return sweep


def recorded_sweep(tree: Tree) -> Sweep:
    """A sweep from ``study.yaml``'s own fields: enough to look at a study, not to start a run."""
    sweep = Sweep.model_validate(tree)
    sweep._space = parse_space(sweep.space)
    return sweep


def _overridden(sweep: Sweep, folder: Path) -> Tree:
    tree, mistakes = set_keys(read_recipe(folder / sweep.recipe), sweep.overrides.items())
    if mistakes:
        raise ConfigError([f"overrides: {one}" for one in mistakes])
    return tree


def _applied(sweep: Sweep) -> list[str]:
    """Mistakes that show only when baselines, the ends of the space and the enqueued trials are put into the recipe."""
    plain = _mistakes(partial(sweep.experiment, "base", {}))
    if plain:
        return plain
    space, mistakes = sweep.typed_space, []
    for key in keys(space):
        if flag_of(key) is None:
            mistakes.append(f"space.{key}: becomes no flag of the training, so a trial could not be checked for it")
    for values in corners(space) if space else ():
        mistakes += [f"space: {one}" for one in _mistakes(partial(sweep.experiment, "corner", values))]
    for position, params in enumerate(sweep.enqueue):
        mistakes += [f"enqueue.{position}: {one}" for one in check_params(params, space)]
    if len(sweep.enqueue) > sweep.n_trials:
        mistakes.append(f"enqueue: {len(sweep.enqueue)} trials, but n_trials = {sweep.n_trials}")
    names = [baseline.name for baseline in sweep.baselines]
    mistakes += [f"baselines: the name {name} is used twice" for name in {n for n in names if names.count(n) > 1}]
    for baseline in sweep.baselines:
        wrong = _mistakes(partial(sweep.experiment, baseline.name, baseline.set))
        mistakes += [f"baselines.{baseline.name}: {one}" for one in wrong]
    return mistakes


def _mistakes(action: Callable[[], object]) -> list[str]:
    try:
        action()
    except ConfigError as error:
        return error.mistakes
    return []


def sampler_class(given: Mapping[str, Any]) -> type[Any]:
    """Optuna's sampler class of ``sampler: {name: ..., <its arguments>}``. Raises :class:`ConfigError`."""
    from optuna import samplers

    known = [name for name in samplers.__all__ if name.endswith("Sampler") and not name.startswith("Base")]
    name = str(given.get("name"))
    if name not in known:
        raise ConfigError([f"sampler.name = {name!r}: unknown; known: {', '.join(known)}; {suggest(name, known)}"])
    found: type[Any] = getattr(samplers, name)
    accepted = list(inspect.signature(found).parameters)
    wrong = [key for key in given if key not in ("name", "seed", *accepted)]
    seed = given.get("seed", 0)
    mistakes = [f"sampler.{key}: unknown; {suggest(key, accepted) or f'known: {accepted}'}" for key in wrong]
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        mistakes.append(f"sampler.seed = {seed!r}: must be a whole number, at least 0")
    if mistakes:
        raise ConfigError(mistakes)
    return found


def _sampler_mistakes(sweep: Sweep) -> list[str]:
    """Arguments the sampler itself refuses, found by drawing a few trials of the space in memory."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction=sweep.direction)
    try:
        for index in range(2):
            study.sampler = make_sampler(sweep, index)
            trial = study.ask()
            sample(trial, sweep.typed_space)
            study.tell(trial, 0.0)
    except (TypeError, ValueError, ImportError, AttributeError) as error:
        return [f"sampler = {sweep.sampler}: Optuna refuses it: {error}"]
    return []


def make_sampler(sweep: Sweep, index: int) -> Any:
    """A sampler seeded by the study's seed and the configuration's index: a study that was interrupted, or repeated a
    failed run, draws what it would have drawn, given the same results so far. (With several slots, which results are
    there depends on which runs were faster.)"""
    from numpy.random import SeedSequence

    found = sampler_class(sweep.sampler)
    arguments = {key: value for key, value in sweep.sampler.items() if key not in ("name", "seed")}
    accepted = inspect.signature(found).parameters
    if "seed" in accepted:
        arguments["seed"] = int(SeedSequence([sweep.sampler.get("seed", 0), index]).generate_state(1)[0])
    if "constant_liar" in accepted and sweep.slots > 1:
        arguments.setdefault("constant_liar", True)
    return found(**arguments)

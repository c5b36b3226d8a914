"""A sweep file, typed and checked: what is searched, on which recipe, where, and what it is compared with.

``sweeps/SWEEPS.md`` says every key in words.
"""

import os
import random
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field, PrivateAttr, ValidationError, field_validator, model_validator
from steer_experiments.config import Experiment, build_experiment, flag_of
from steer_experiments.recipes import Tree, flatten, read_recipe, read_yaml, set_keys
from steer_openrlhf.errors import ConfigError, mistakes_of

from .executors.config import ExecutorConfig, LocalConfig, RayConfig, SlurmConfig
from .named import class_of
from .objective import Constraint, Direction, Objective, Section
from .pruners import make_pruner, pruner_mistakes
from .relations import Relation, completed, kept_corners, parse_relations
from .sampler_checks import sampler_mistakes
from .samplers import make_sampler
from .space import Space, Values, check_params, keys, parse_space, values_of
from .storage import resolved_url
from .warm_start import WarmStart, warm_mistakes, warm_trials

__all__ = [
    "RECIPE",
    "Baseline",
    "Budget",
    "Constraint",
    "Finalists",
    "Objective",
    "Sweep",
    "WarmStart",
    "load_sweep",
    "make_pruner",
    "make_sampler",
    "recorded_sweep",
    "warm_trials",
]

RECIPE = "recipe_resolved"
"""The key of ``study.yaml`` that holds the recipe with the overrides, so that a changed recipe is noticed."""
_PASSWORD = re.compile(r"://[^/@:]*:([^@]*)@|[?&]\w*pass\w*=([^&]*)")
EXECUTORS = (LocalConfig, RayConfig, SlurmConfig)
T = TypeVar("T")


class Baseline(Section):
    """An arm that is not searched: the recipe with some keys set."""

    name: str = Field(pattern=r"^[A-Za-z][A-Za-z0-9_.-]*$")
    set: Tree = Field(default_factory=dict)


class Budget(Section):
    """What a study may spend before it starts no new trial; those that run are let to end. None: no limit."""

    gpu_hours: float | None = Field(default=None, gt=0)
    """Hours of all trials so far, times each one's GPUs."""
    hours: float | None = Field(default=None, gt=0)
    """Hours in which a controller of the study was at work."""


class Finalists(Section):
    """After the search its best ``n`` trials that keep to the constraints run again, with these training seeds."""

    n: int = Field(ge=1)
    seeds: tuple[int, ...] = Field(min_length=1)

    @field_validator("seeds")
    @classmethod
    def _seeds(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        return _different(value)


class Sweep(Section):
    """A study: ``n_trials`` searched configurations and the baselines, each a run of ``recipe`` with ``overrides``."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    recipe: str
    overrides: Tree = Field(default_factory=dict)
    n_trials: int = Field(default=6, ge=1)
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    """Training seeds of every trial and baseline; a trial's value is the mean over them. Left out: the recipe's."""
    sampler: Tree = Field(default={"name": "TPESampler"})
    """An Optuna sampler and its arguments; ``seed`` (default 0) is the study's."""
    pruner: Tree = Field(default={"name": "NopPruner"})
    """An Optuna pruner and its arguments."""
    direction: Direction = "maximize"
    objective: Objective
    """The first of ``objectives`` where there are several."""
    objectives: list[Objective] = Field(default_factory=list)
    constraints: list[Constraint] = Field(default_factory=list)
    space: Tree
    relations: list[str] = Field(default_factory=list)
    enqueue: list[Tree] = Field(default_factory=list)
    baselines: list[Baseline] = Field(default_factory=list)
    warm_start: WarmStart | None = None
    finalists: Finalists | None = None
    executor: ExecutorConfig = LocalConfig()
    slots: int = Field(default=1, ge=1)
    """Runs at a time: the executor's, in short for ``executor: {name: local, slots: ...}``."""
    retries: int = Field(default=1, ge=0)
    """How often a configuration whose run failed is tried again."""
    budget: Budget = Budget()
    trial_timeout_hours: float | None = Field(default=None, gt=0)
    """A trial that runs longer is ended, and has failed."""
    storage: str | None = None
    """An Optuna database URL, ``${VARIABLE}`` for what is secret; None: the journal in the study directory."""
    _tree: Tree = PrivateAttr(default_factory=dict)
    _space: Space = PrivateAttr(default_factory=dict)
    _relations: list[Relation] = PrivateAttr(default_factory=list)
    _folder: Path = PrivateAttr(default_factory=Path)

    @model_validator(mode="before")
    @classmethod
    def _shorthands(cls, tree: Any) -> Any:
        return _with_executor(_with_objectives(tree)) if isinstance(tree, Mapping) else tree

    @field_validator("seeds")
    @classmethod
    def _seeds(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        return _different(value)

    @field_validator("storage")
    @classmethod
    def _no_password(cls, value: str | None) -> str | None:
        if value is not None and not re.match(r"[a-z][a-z0-9+_]*://|\$\{\w+\}", value):
            raise ValueError("must be a database URL, as in postgresql+psycopg://user:${PASSWORD}@host/name")
        given = [one for found in _PASSWORD.findall(value or "") for one in found]
        if any(re.sub(r"\$\{\w+\}", "", one) for one in given):
            raise ValueError("holds a password, and study.yaml would keep it: write ${A_VARIABLE} in its place")
        return value

    @property
    def typed_space(self) -> Space:
        return self._space

    @property
    def typed_relations(self) -> list[Relation]:
        return self._relations

    @property
    def all_objectives(self) -> list[Objective]:
        """One or several, each with its direction."""
        found = self.objectives or [self.objective]
        return [one if one.direction else one.model_copy(update={"direction": self.direction}) for one in found]

    @property
    def directions(self) -> list[Direction]:
        return [one.direction or self.direction for one in self.all_objectives]

    @property
    def folder(self) -> Path:
        """Where the sweep file is: its paths are relative to it."""
        return self._folder

    def experiment(self, name: str, values: Values, seed: int | None = None) -> Experiment:
        """The run with these config keys set, and with this training seed (None: the recipe's) where they set none.

        Raises :class:`ConfigError` when the combination makes no sense.
        """
        seeded = [] if seed is None else [("seed", seed)]
        return build_experiment(self._tree | {"name": f"{self.name}-{name}"}, [*seeded, *values.items()])

    def resolved(self) -> Tree:
        """Everything a result depends on, as plain data: what ``study.yaml`` holds."""
        return self.model_dump(mode="json") | {RECIPE: self.experiment("base", {}).resolved()}


def _different(seeds: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise ValueError(f"{list(seeds)}: must be different whole numbers, at least 0")
    return seeds


def _with_objectives(tree: Mapping[str, Any]) -> Tree:
    """The first of several objectives is *the* objective too; a single one may have its direction in it."""
    found, several = dict(tree), tree.get("objectives")
    first = several[0] if isinstance(several, list) and several else None
    if isinstance(first, Mapping) and found.get("objective") is None:
        found["objective"] = first
    direction = found["objective"].get("direction") if isinstance(found.get("objective"), Mapping) else None
    if direction is not None:
        found.setdefault("direction", direction)
    return found


def _with_executor(tree: Tree) -> Tree:
    """``slots`` and the executor's own are one number."""
    given = {} if tree.get("executor") is None else tree["executor"]
    if not isinstance(given, Mapping):
        return tree
    place = {"name": "local"} | dict(given)
    for source, target in ((tree, place), (place, tree)):
        slots = source.get("slots")
        if isinstance(slots, int) and slots >= 1:
            target.setdefault("slots", slots)
    return tree | {"executor": place}


# -- reading -----------------------------------------------------------------------------------------------------------

STAND_INS: Tree = {"name": "x", "recipe": "", "objective": {"metric": "eval/x"}, "space": {}}
"""For required keys that are missing or wrong, so that the others can still be looked at."""


def load_sweep(path: Path) -> Sweep:
    """A sweep file, its recipe and its space checked on each other. Raises :class:`ConfigError` with every mistake."""
    tree, mistakes = read_yaml(path), list[str]()
    sweep, bad = _typed(tree, mistakes)
    recipe = None if "recipe" in bad or sweep is None else _try(mistakes, partial(_overridden, sweep, path.parent))
    if sweep is not None:
        if recipe is not None and "seeds" not in tree and isinstance(seed := recipe.get("seed", 0), int) and seed >= 0:
            sweep = sweep.model_copy(update={"seeds": (seed,)})
        sweep._tree, sweep._folder = recipe or {}, path.parent.absolute()
        found = _cross_mistakes(sweep, tree, bad, recipe is not None)
        mistakes += [one for one in found if not any(re.search(rf"(?<![\w.]){re.escape(key)}\b", one) for key in bad)]
    if mistakes or sweep is None:
        raise ConfigError(list(dict.fromkeys(mistakes)))
    return sweep


def recorded_sweep(tree: Tree) -> Sweep:
    """A sweep from ``study.yaml``'s own fields: enough to look at a study, not to start a run."""
    sweep = Sweep.model_validate(tree)
    sweep._space = parse_space(sweep.space)
    sweep._relations = parse_relations(sweep.relations, sweep._space)
    return sweep


def _try(mistakes: list[str], action: Callable[[], T]) -> T | None:
    """The result, or None with what was wrong added to ``mistakes``."""
    try:
        return action()
    except ConfigError as error:
        mistakes += error.mistakes
        return None


def _mistakes(action: Callable[[], object]) -> list[str]:
    found: list[str] = []
    _try(found, action)
    return found


def _typed(tree: Tree, mistakes: list[str]) -> tuple[Sweep | None, list[str]]:
    """The typed sweep, and the keys that were wrong; those are at their defaults in it."""
    try:
        return Sweep.model_validate(tree), []
    except ValidationError as error:
        bad = list(dict.fromkeys(str(item["loc"][0]) for item in error.errors() if item["loc"]))
        if "objectives" in bad and "objective" not in tree:
            bad.append("objective")
        found = [_plain(one) for one in mistakes_of(error, fields=_known_keys())]
    mistakes += [one for one in found if "objective" in tree or not one.startswith("objective.")]
    rest = {key: value for key, value in tree.items() if key not in bad}
    stand_ins = {key: value for key, value in STAND_INS.items() if key not in rest}
    try:
        return Sweep.model_validate(stand_ins | rest), bad
    except ValidationError:
        return None, bad


def _plain(mistake: str) -> str:
    """The executor's kind is no part of a key's name."""
    mistake = re.sub(r"^executor\.(local|ray|slurm)\b", "executor", mistake)
    found = re.search(r"^executor = .*tag '(.*?)' found.*tags: (.*)", mistake)
    return f"executor.name = {found[1]!r}: unknown; known: {found[2]}" if found else mistake


def _known_keys() -> list[str]:
    parts = (Sweep, Objective, Constraint, Baseline, Budget, Finalists, WarmStart, *EXECUTORS)
    return list(dict.fromkeys(key for part in parts for key in part.model_fields))


def _overridden(sweep: Sweep, folder: Path) -> Tree:
    tree, mistakes = set_keys(read_recipe(folder / sweep.recipe), sweep.overrides.items())
    if mistakes:
        raise ConfigError([f"overrides: {one}" for one in mistakes])
    return tree


# -- one part against another ------------------------------------------------------------------------------------------


def _cross_mistakes(sweep: Sweep, tree: Tree, bad: list[str], with_recipe: bool) -> list[str]:
    """Everything that needs more than one key to be seen."""
    mistakes = _mistakes(partial(class_of, sweep.sampler, "sampler", "sampler"))
    well = not mistakes
    mistakes += _own_mistakes(sweep, tree) + pruner_mistakes(sweep)
    if "space" not in bad:
        space = _try(mistakes, partial(parse_space, sweep.space))
        sweep._space = space or {}
        relations = _try(mistakes, partial(parse_relations, sweep.relations, sweep._space)) if space else None
        sweep._relations = relations or []
        enqueued = _enqueue_mistakes(sweep) if space else []
        if space and relations is not None and well and not enqueued and not bad:
            mistakes += sampler_mistakes(sweep)
        mistakes += enqueued
    if with_recipe:
        mistakes += _applied(sweep)
    return mistakes or warm_mistakes(sweep)


def _own_mistakes(sweep: Sweep, tree: Tree) -> list[str]:
    mistakes, first = [], sweep.objective
    if sweep.objectives and first != sweep.objectives[0]:
        mistakes.append("objective and objectives are both given: give one of them")
    if first.direction not in (None, sweep.direction):
        mistakes.append(f"direction = {sweep.direction}, but objective.direction = {first.direction}: give one of them")
    if not first.metric.startswith("eval/"):
        mistakes.append(
            f"objective.metric = {first.metric!r}: must be a metric of the validation split, eval/...; what a training "
            "saw does not say what it learned"
        )
    for position, one in enumerate(sweep.objectives):
        if one.direction is None:
            mistakes.append(f"objectives.{position}: direction is required: maximize or minimize")
    metrics = [(one.metric, one.reduce) for one in sweep.objectives]
    mistakes += [f"objectives: {one[0]} is given twice" for one in sorted({m for m in metrics if metrics.count(m) > 1})]
    if sweep.slots != sweep.executor.slots:
        mistakes.append(f"slots = {sweep.slots}, but executor.slots = {sweep.executor.slots}: give one of them")
    if sweep.storage is not None:
        mistakes += _mistakes(partial(resolved_url, sweep.storage, os.environ))
    return mistakes + _seed_mistakes(sweep, tree)


def _seed_mistakes(sweep: Sweep, tree: Tree) -> list[str]:
    if "seeds" not in tree:
        return []
    places = {"space": sweep.space, "overrides": flatten(sweep.overrides)}
    places |= {f"baselines.{one.name}.set": one.set for one in sweep.baselines}
    return [
        f"{where}.seed: seeds has the training seeds of every trial; give one of them"
        for where in places
        if "seed" in places[where]
    ]


def _enqueue_mistakes(sweep: Sweep) -> list[str]:
    mistakes, space = [], sweep.typed_space
    for position, params in enumerate(sweep.enqueue):
        wrong = check_params(params, space)
        rng = random.Random(position)
        if not wrong and sweep.typed_relations and completed(space, sweep.typed_relations, params, rng) is None:
            wrong = [f"with {params} no draw holds {', '.join(map(str, sweep.typed_relations))}"]
        mistakes += [f"enqueue.{position}: {one}" for one in wrong]
    if len(sweep.enqueue) > sweep.n_trials:
        mistakes.append(f"enqueue: {len(sweep.enqueue)} trials, but n_trials = {sweep.n_trials}")
    return mistakes


def _applied(sweep: Sweep) -> list[str]:
    """Mistakes that show only when baselines and the ends of the space are put into the recipe."""
    mistakes: list[str] = []
    plain = _try(mistakes, partial(sweep.experiment, "base", {}))
    if plain is None:
        return mistakes
    space, gpus = sweep.typed_space, sweep.executor.gpus_per_trial
    if 0 < gpus < plain.ray.num_gpus:
        mistakes.append(
            f"executor.gpus_per_trial = {gpus}, but the recipe's ray.num_gpus = {plain.ray.num_gpus}: a trial would "
            "wait for GPUs that it never gets; give it as many"
        )
    for key in keys(space):
        if flag_of(key) is None:
            mistakes.append(f"space.{key}: becomes no flag of the training, so a trial could not be checked for it")
    for params in kept_corners(space, sweep.typed_relations) if space else ():
        values = values_of(params, space)
        mistakes += [f"space: {one}" for one in _mistakes(partial(sweep.experiment, "corner", values))]
    names = [baseline.name for baseline in sweep.baselines]
    mistakes += [
        f"baselines: the name {name} is used twice" for name in sorted({n for n in names if names.count(n) > 1})
    ]
    for baseline in sweep.baselines:
        wrong = _mistakes(partial(sweep.experiment, baseline.name, baseline.set))
        mistakes += [f"baselines.{baseline.name}: {one}" for one in wrong]
    return mistakes

"""The search space: a mapping of config keys to what they are drawn from, sampled define-by-run.

    steer.lambda_min: {float: [0.5, 0.95]}              # also log: true, or step: 0.05
    train_steps:      {int: [1, 8]}
    steer.side:       {categorical: [both, falling, rising]}
    damping:          {choose: {by_floor: {steer.lambda_min: {float: [0.5, 0.95]}},
                                by_k:     {steer.k: {float: [0.1, 100], log: true}}}}

``choose`` draws a branch, then what the branch holds; the keys of the branches not drawn are set to null.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import BaseTrial
from steer_openrlhf.errors import ConfigError, suggest

KINDS = ("float", "int", "categorical", "choose")
OPTIONS = {"float": ("log", "step"), "int": ("log", "step"), "categorical": (), "choose": ()}


@dataclass(frozen=True)
class Choose:
    """A conditional branch. ``branches``: name -> the space that is sampled when it is drawn."""

    branches: Mapping[str, "Space"]

    def keys(self) -> list[str]:
        """Every config key any branch may set."""
        return [key for branch in self.branches.values() for key in keys(branch)]


Dimension: TypeAlias = BaseDistribution | Choose
Space: TypeAlias = Mapping[str, Dimension]
Values: TypeAlias = dict[str, Any]


def parse_space(tree: Any) -> Space:
    """The typed space of a sweep's ``space:``. Raises :class:`ConfigError` with every mistake."""
    mistakes: list[str] = []
    space = _space(tree, "space", mistakes)
    names = list(_names(space))
    repeated = sorted({name for name in names if names.count(name) > 1})
    mistakes += [f"space: {name} is given twice; a key, or a choice, stands in one place" for name in repeated]
    if mistakes:
        raise ConfigError(mistakes)
    return space


def _space(tree: Any, where: str, mistakes: list[str]) -> dict[str, Dimension]:
    if not isinstance(tree, Mapping) or not tree:
        mistakes.append(f"{where} = {tree!r}: must be a mapping of config keys, with at least one")
        return {}
    found = {str(key): _dimension(value, f"{where}.{key}", mistakes) for key, value in tree.items()}
    return {key: dimension for key, dimension in found.items() if dimension is not None}


def _dimension(tree: Any, where: str, mistakes: list[str]) -> Dimension | None:
    kinds = [kind for kind in KINDS if isinstance(tree, Mapping) and kind in tree]
    if len(kinds) != 1:
        mistakes.append(f"{where} = {tree!r}: must have exactly one of {', '.join(KINDS)}")
        return None
    kind = kinds[0]
    for option in tree:
        if option != kind and option not in OPTIONS[kind]:
            hint = suggest(str(option), OPTIONS[kind]) or f"allowed: {', '.join(OPTIONS[kind]) or 'nothing else'}"
            mistakes.append(f"{where}.{option}: unknown key; {hint}")
            return None
    if kind == "choose":
        return _choose(tree[kind], where, mistakes)
    try:
        return _categorical(tree[kind]) if kind == "categorical" else _range(kind, tree)
    except (TypeError, ValueError) as error:
        mistakes.append(f"{where} = {dict(tree)!r}: {error}")
        return None


def _choose(tree: Any, where: str, mistakes: list[str]) -> Choose | None:
    if not isinstance(tree, Mapping) or len(tree) < 2:
        mistakes.append(f"{where}.choose = {tree!r}: must be a mapping of at least two branches")
        return None
    return Choose({str(name): _space(branch, f"{where}.choose.{name}", mistakes) for name, branch in tree.items()})


def _categorical(choices: Any) -> CategoricalDistribution:
    plain = isinstance(choices, list) and all(isinstance(one, None | bool | int | float | str) for one in choices)
    if not plain or not choices or len({repr(one) for one in choices}) < len(choices):
        raise ValueError("must be a list of different plain values (text, number, true, false, null)")
    return CategoricalDistribution(choices)


def _range(kind: str, tree: Mapping[str, Any]) -> FloatDistribution | IntDistribution:
    bounds, log, step = tree[kind], tree.get("log", False), tree.get("step")
    numbers = isinstance(bounds, list) and len(bounds) == 2 and all(_is_number(one, kind) for one in bounds)
    if not numbers or not bounds[0] < bounds[1]:
        raise ValueError(f"must be [low, high] with low < high, both {kind}")
    if not isinstance(log, bool):
        raise ValueError("log must be true or false")
    if step is not None and not (_is_number(step, kind) and step > 0):
        raise ValueError(f"step must be a positive {kind}")
    if kind == "int":
        return IntDistribution(bounds[0], bounds[1], log=log, step=step or 1)
    return FloatDistribution(float(bounds[0]), float(bounds[1]), log=log, step=step)


def _is_number(value: Any, kind: str) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return isinstance(value, int) if kind == "int" else math.isfinite(value)


def _names(space: Space) -> Iterator[str]:
    """Every name Optuna sees: config keys, and the names of choices."""
    for name, dimension in space.items():
        yield name
        if isinstance(dimension, Choose):
            for branch in dimension.branches.values():
                yield from _names(branch)


def keys(space: Space) -> list[str]:
    """Every config key the space may set."""
    return [
        key
        for name, dimension in space.items()
        for key in (dimension.keys() if isinstance(dimension, Choose) else [name])
    ]


def sample(trial: BaseTrial, space: Space) -> Values:
    """Draw every dimension; config key -> value, None for the keys of branches that were not drawn."""
    values: Values = {}
    for name, dimension in space.items():
        if isinstance(dimension, Choose):
            branch = trial.suggest_categorical(name, list(dimension.branches))
            values |= dict.fromkeys(dimension.keys()) | sample(trial, dimension.branches[str(branch)])
        else:
            values[name] = _draw(trial, name, dimension)
    return values


def _draw(trial: BaseTrial, name: str, dimension: BaseDistribution) -> Any:
    if isinstance(dimension, FloatDistribution):
        return trial.suggest_float(name, dimension.low, dimension.high, log=dimension.log, step=dimension.step)
    if isinstance(dimension, IntDistribution):
        return trial.suggest_int(name, dimension.low, dimension.high, log=dimension.log, step=dimension.step)
    assert isinstance(dimension, CategoricalDistribution)
    return trial.suggest_categorical(name, list(dimension.choices))


def corners(space: Space) -> Iterator[Values]:
    """Values that together show every bound, every choice and every branch at least once: what is tried on the recipe
    before a study starts."""
    parts = [list(_ends(name, dimension)) for name, dimension in space.items()]
    first = _merged(part[0] for part in parts)
    yield first
    for part in parts:
        yield from (first | other for other in part[1:])


def _ends(name: str, dimension: Dimension) -> Iterator[Values]:
    if isinstance(dimension, Choose):
        for branch in dimension.branches.values():
            yield from (dict.fromkeys(dimension.keys()) | corner for corner in corners(branch))
    elif isinstance(dimension, CategoricalDistribution):
        yield from ({name: choice} for choice in dimension.choices)
    else:
        assert isinstance(dimension, FloatDistribution | IntDistribution)
        yield from ({name: dimension.low}, {name: dimension.high})


def _merged(parts: Iterable[Values]) -> Values:
    merged: Values = {}
    for part in parts:
        merged |= part
    return merged


def check_params(params: Mapping[str, Any], space: Space) -> list[str]:
    """Mistakes in the parameters of an enqueued trial: unknown names, values outside. Missing ones are sampled."""
    known = dict(_dimensions(space))
    mistakes = []
    for name, value in params.items():
        if name not in known:
            mistakes.append(f"{name}: is not in the space; {suggest(name, known) or 'known: ' + ', '.join(known)}")
        elif not _contains(known[name], value):
            mistakes.append(f"{name} = {value!r}: is outside of the space")
    return mistakes


def _contains(dimension: Dimension, value: Any) -> bool:
    if isinstance(dimension, Choose):
        return value in dimension.branches
    if isinstance(dimension, CategoricalDistribution):
        return value in dimension.choices
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and bool(dimension._contains(dimension.to_internal_repr(value)))


def _dimensions(space: Space) -> Iterator[tuple[str, Dimension]]:
    for name, dimension in space.items():
        yield name, dimension
        if isinstance(dimension, Choose):
            for branch in dimension.branches.values():
                yield from _dimensions(branch)

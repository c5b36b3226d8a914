"""The search space: a mapping of config keys to what they are drawn from, sampled define-by-run.

    steer.lambda_min: {float: [0.5, 0.95]}              # also log: true, or step: 0.05
    train_steps:      {int: [1, 8]}
    steer.side:       {categorical: [both, falling, rising]}
    damping:          {choose: {by_floor: {steer.lambda_min: {float: [0.5, 0.95]}},
                                by_k:     {steer.k: {float: [0.1, 100], log: true}}}}

``choose`` draws a branch, then what the branch holds; the keys of the branches not drawn are set to null.

The elements of a key that is a list are drawn one by one, and stand together (here ``steer.band: [low, high]``):

    steer.band.0: {float: [-0.1, 0.05]}
    steer.band.1: {float: [-0.05, 0.1]}

*Parameters* are what Optuna sees: a value for every name drawn. *Values* are config keys.
"""

import math
import random
import re
from collections.abc import Callable, Iterator, Mapping
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
Params: TypeAlias = dict[str, Any]
Values: TypeAlias = dict[str, Any]
_ELEMENT = re.compile(r"(.+)\.(\d+)")


def parse_space(tree: Any) -> Space:
    """The typed space of a sweep's ``space:``. Raises :class:`ConfigError` with every mistake."""
    mistakes: list[str] = []
    space = _space(tree, "space", mistakes)
    names = [name for name, _ in dimensions(space)]
    repeated = sorted({name for name in names if names.count(name) > 1})
    mistakes += [f"space: {name} is given twice; a key, or a choice, stands in one place" for name in repeated]
    mistakes += _list_mistakes(space)
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


def dimensions(space: Space) -> Iterator[tuple[str, Dimension]]:
    """Every name Optuna sees, in all branches: config keys (and elements of lists), and the names of choices."""
    for name, dimension in space.items():
        yield name, dimension
        if isinstance(dimension, Choose):
            for branch in dimension.branches.values():
                yield from dimensions(branch)


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """The same, as Optuna's distributions."""
    return {name: _distribution(dimension) for name, dimension in dimensions(space)}


def _distribution(dimension: Dimension) -> BaseDistribution:
    return CategoricalDistribution(list(dimension.branches)) if isinstance(dimension, Choose) else dimension


def keys(space: Space) -> list[str]:
    """Every config key the space may set."""
    found = [
        key
        for name, dimension in space.items()
        for key in (dimension.keys() if isinstance(dimension, Choose) else [_key(name)])
    ]
    return list(dict.fromkeys(found))


def _key(name: str) -> str:
    """``steer.band.0`` -> ``steer.band``."""
    element = _ELEMENT.fullmatch(name)
    return element[1] if element else name


def _list_mistakes(space: Space) -> list[str]:
    """Lists with missing elements: what would stand there?"""
    mistakes, found = [], _elements(space)
    for key, indices in found.items():
        if sorted(indices) != list(range(len(indices))) or len(indices) < 2:
            mistakes.append(f"space: {key}.<number> has the elements {sorted(indices)}; give all from 0, at least two")
        if key in space:
            mistakes.append(f"space: {key} is given as a whole and by its elements; give one")
    for dimension in space.values():
        for branch in dimension.branches.values() if isinstance(dimension, Choose) else ():
            mistakes += _list_mistakes(branch)
    return mistakes


def _elements(space: Space) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for name in space:
        if element := _ELEMENT.fullmatch(name):
            found.setdefault(element[1], []).append(int(element[2]))
    return found


# -- drawing -----------------------------------------------------------------------------------------------------------


def walk(space: Space, pick: Callable[[str, BaseDistribution], Any]) -> Params:
    """The parameters that ``pick`` gives, asked define-by-run: a branch first, then what it holds."""
    params: Params = {}
    for name, dimension in space.items():
        params[name] = pick(name, _distribution(dimension))
        if isinstance(dimension, Choose):
            params |= walk(dimension.branches[str(params[name])], pick)
    return params


def values_of(params: Mapping[str, Any], space: Space) -> Values:
    """Config key -> value, None for the keys of branches that were not drawn."""
    values: Values = {}
    for name, dimension in space.items():
        if isinstance(dimension, Choose):
            values |= dict.fromkeys(dimension.keys()) | values_of(params, dimension.branches[str(params[name])])
        elif (key := _key(name)) == name:
            values[name] = params[name]
        elif key not in values:
            values[key] = [params[f"{key}.{index}"] for index in range(len(_elements(space)[key]))]
    return values


def sample(trial: BaseTrial, space: Space) -> Values:
    """Draw every dimension; the values of a ``FixedTrial`` are those of the trial it repeats."""
    return values_of(walk(space, lambda name, distribution: _suggest(trial, name, distribution)), space)


def _suggest(trial: BaseTrial, name: str, dimension: BaseDistribution) -> Any:
    if isinstance(dimension, FloatDistribution):
        return trial.suggest_float(name, dimension.low, dimension.high, log=dimension.log, step=dimension.step)
    if isinstance(dimension, IntDistribution):
        return trial.suggest_int(name, dimension.low, dimension.high, log=dimension.log, step=dimension.step)
    assert isinstance(dimension, CategoricalDistribution)
    return trial.suggest_categorical(name, list(dimension.choices))


def draw(space: Space, rng: random.Random, fixed: Mapping[str, Any] | None = None) -> Params:
    """Parameters drawn uniformly (in the logarithm where a dimension says so); those of ``fixed`` are as given."""
    given = fixed or {}
    return walk(space, lambda name, dimension: given[name] if name in given else uniform(dimension, rng))


def uniform(dimension: BaseDistribution, rng: random.Random) -> Any:
    """One value of a distribution."""
    if isinstance(dimension, CategoricalDistribution):
        return rng.choice(dimension.choices)
    assert isinstance(dimension, FloatDistribution | IntDistribution)
    low, high, whole = dimension.low, dimension.high, isinstance(dimension, IntDistribution)
    if dimension.log:
        half = 0.5 if whole else 0.0
        value = math.exp(rng.uniform(math.log(low - half), math.log(high + half)))
        return min(max(round(value) if whole else value, low), high)
    if dimension.step is None:
        return rng.uniform(low, high)
    return rng.choice(all_values(dimension) or [low])


def all_values(dimension: BaseDistribution) -> list[Any] | None:
    """Every value of a distribution, or None when there is no end of them."""
    if isinstance(dimension, CategoricalDistribution):
        return list(dimension.choices)
    assert isinstance(dimension, FloatDistribution | IntDistribution)
    if dimension.step is None:
        return [dimension.low] if dimension.single() else None
    if dimension.log:
        return list(range(int(dimension.low), int(dimension.high) + 1))
    n = round((dimension.high - dimension.low) / dimension.step) + 1
    values = [min(dimension.low + index * dimension.step, dimension.high) for index in range(n)]
    return values if isinstance(dimension, IntDistribution) else [float(f"{one:.12g}") for one in values]


def corners(space: Space) -> Iterator[Params]:
    """Parameters that together show every bound, every choice and every branch at least once: what is tried on the
    recipe before a study starts."""
    parts = [list(_ends(name, dimension)) for name, dimension in space.items()]
    yield _merged(part[0] for part in parts)
    for position, part in enumerate(parts):
        others = _merged(other[0] for place, other in enumerate(parts) if place != position)
        yield from (others | end for end in part[1:])


def _ends(name: str, dimension: Dimension) -> Iterator[Params]:
    if isinstance(dimension, Choose):
        for branch_name, branch in dimension.branches.items():
            yield from ({name: branch_name} | corner for corner in corners(branch))
    elif isinstance(dimension, CategoricalDistribution):
        yield from ({name: choice} for choice in dimension.choices)
    else:
        assert isinstance(dimension, FloatDistribution | IntDistribution)
        yield from ({name: dimension.low}, {name: dimension.high})


def _merged(parts: Iterator[Params]) -> Params:
    merged: Params = {}
    for part in parts:
        merged |= part
    return merged


# -- parameters given --------------------------------------------------------------------------------------------------


def check_params(params: Mapping[str, Any], space: Space) -> list[str]:
    """Mistakes in the parameters of an enqueued trial: unknown names, values outside. Missing ones are sampled."""
    known = dict(dimensions(space))
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


def is_inside(params: Mapping[str, Any], space: Space) -> bool:
    """Whether these are the complete parameters of one configuration of the space, and nothing more."""
    try:
        drawn = walk(space, lambda name, _: params[name])
    except KeyError:
        return False
    return drawn.keys() == params.keys() and not check_params(params, space)

"""Relations between what is searched: ``steer.band.0 < steer.band.1``. Parsed, never evaluated as code.

A relation binds only where both sides are drawn: a key of a branch that was not taken makes it void.
"""

import math
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from steer_openrlhf.errors import ConfigError, suggest

from .space import Choose, Params, Space, all_values, corners, dimensions, draw

TRIES = 10_000
CORNER_TRIES = 500
PROBES = 2_000
RAREST = 0.002
"""The smallest share of all draws that must keep the relations."""
_SIGN = re.compile(r"(<=|<)")
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


@dataclass(frozen=True)
class Relation:
    """``left < right``, or ``<=`` where not ``strict``. A side is a parameter's name or a number."""

    left: str | float
    right: str | float
    strict: bool

    def __str__(self) -> str:
        return f"{self.left} {'<' if self.strict else '<='} {self.right}"

    def names(self) -> list[str]:
        return [side for side in (self.left, self.right) if isinstance(side, str)]

    def binds(self, params: Mapping[str, Any]) -> bool:
        return all(name in params for name in self.names())

    def holds(self, params: Mapping[str, Any]) -> bool:
        """Also where it does not bind."""
        if not self.binds(params):
            return True
        left, right = (params[side] if isinstance(side, str) else side for side in (self.left, self.right))
        return bool(left < right if self.strict else left <= right)


def all_hold(relations: Sequence[Relation], params: Mapping[str, Any]) -> bool:
    return all(relation.holds(params) for relation in relations)


def groups(relations: Sequence[Relation], params: Mapping[str, Any]) -> list[tuple[list[str], list[Relation]]]:
    """The relations that bind these parameters, those that share a name together, each with its names."""
    found: list[tuple[set[str], list[Relation]]] = []
    for relation in (one for one in relations if one.binds(params)):
        names, together = set(relation.names()), [relation]
        for group in [one for one in found if one[0] & names]:
            found.remove(group)
            names, together = names | group[0], group[1] + together
        found.append((names, together))
    return [([name for name in params if name in names], together) for names, together in found]


# -- reading -----------------------------------------------------------------------------------------------------------


def parse_relations(texts: Sequence[str], space: Space) -> list[Relation]:
    """Raises :class:`ConfigError` with every mistake, also where so few draws hold that a study would not get on."""
    relations, mistakes = [], []
    for position, text in enumerate(texts):
        found, wrong = _parse(text, space)
        relations += found
        mistakes += [f"relations.{position} = {text!r}: {one}" for one in wrong]
    if not mistakes and relations:
        mistakes = _rare(relations, space)
    if mistakes:
        raise ConfigError(mistakes)
    return relations


def _parse(text: str, space: Space) -> tuple[list[Relation], list[str]]:
    """``a < b <= c`` is two relations."""
    parts = [part.strip() for part in _SIGN.split(text)]
    if len(parts) < 3 or not all(parts):
        return [], ["must be keys of the space, or numbers, with < or <= between them, as in a < b"]
    sides, mistakes = [_side(one, space) for one in parts[::2]], []
    for side in sides:
        if isinstance(side, str):
            mistakes += _side_mistakes(side, space)
    relations = [
        Relation(left, right, sign == "<") for left, sign, right in zip(sides, parts[1::2], sides[1:], strict=False)
    ]
    mistakes += [f"{one}: no key of the space stands in it" for one in relations if not one.names()]
    mistakes += [f"{one}: both sides are the same" for one in relations if one.left == one.right]
    return relations, mistakes


def _side(text: str, space: Space) -> str | float:
    return float(text) if _NUMBER.fullmatch(text) and text not in dict(dimensions(space)) else text


def _side_mistakes(name: str, space: Space) -> list[str]:
    known = dict(dimensions(space))
    if name not in known:
        return [f"{name} is not in the space; {suggest(name, known) or 'known: ' + ', '.join(known)}"]
    dimension = known[name]
    if isinstance(dimension, Choose):
        return [f"{name} is a choice between branches, which has no order"]
    found = dimension.choices if isinstance(dimension, CategoricalDistribution) else ()
    if not all(isinstance(one, int | float) and not isinstance(one, bool) for one in found):
        return [f"{name} has values that are no numbers: {list(found)}"]
    return []


def _rare(relations: Sequence[Relation], space: Space) -> list[str]:
    """Groups of relations that nearly every draw breaks."""
    rng, seen, kept = random.Random(0), dict[str, int](), dict[str, int]()
    for _ in range(PROBES):
        params = draw(space, rng)
        for _, together in groups(relations, params):
            text = ", ".join(str(one) for one in together)
            seen[text] = seen.get(text, 0) + 1
            kept[text] = kept.get(text, 0) + all_hold(together, params)
    return [
        f"relations: only {kept[text]} of {n} draws hold {text}: "
        + ("none is left; mend the relation or the ranges" if not kept[text] else "narrow the ranges")
        for text, n in seen.items()
        if kept[text] < max(1, RAREST * n)
    ]


# -- drawing under relations -------------------------------------------------------------------------------------------


def completed(
    space: Space, relations: Sequence[Relation], fixed: Mapping[str, Any], rng: random.Random, tries: int = TRIES
) -> Params | None:
    """Parameters with these ones fixed, the rest drawn uniformly until every relation holds; None when none does."""
    for _ in range(tries):
        params = draw(space, rng, fixed)
        broken = [one for one in relations if not one.holds(params)]
        if not broken:
            return params
        if any(one.names() and set(one.names()) <= fixed.keys() for one in broken):
            return None  # another draw changes nothing
    return None


def narrowed(
    name: str, space: Mapping[str, BaseDistribution], relations: Sequence[Relation], kept: Mapping[str, Any]
) -> BaseDistribution | None:
    """What is left of a name's distribution beside the values kept, and the ranges of all other names; None: nothing.

    At the edge of a chain of whole numbers too much may be left: look whether the relations hold.
    """
    lows, highs = dict[str, float](), dict[str, float]()
    for one in {side for relation in relations for side in relation.names()}:
        listed = [kept[one]] if one in kept else _ends_of(space[one])
        lows[one], highs[one] = min(listed), max(listed)
    for _ in relations:  # a chain is at most so long
        for relation in relations:
            left, right = relation.left, relation.right
            if isinstance(left, str):
                highs[left] = min(highs[left], highs[right] if isinstance(right, str) else right)
            if isinstance(right, str):
                lows[right] = max(lows[right], lows[left] if isinstance(left, str) else left)
    return _cut(space[name], lows[name], highs[name])


def _ends_of(dimension: BaseDistribution) -> list[float]:
    if isinstance(dimension, CategoricalDistribution):
        return [float(one) for one in dimension.choices if isinstance(one, int | float)]
    assert isinstance(dimension, FloatDistribution | IntDistribution)
    return [dimension.low, dimension.high]


def _cut(dimension: BaseDistribution, low: float, high: float) -> BaseDistribution | None:
    """The open interval of a continuous distribution, or the listed values from ``low`` to ``high``."""
    if isinstance(dimension, FloatDistribution) and dimension.step is None:
        low = dimension.low if low <= dimension.low else math.nextafter(low, math.inf)
        high = dimension.high if high >= dimension.high else math.nextafter(high, -math.inf)
        return FloatDistribution(low, high, log=dimension.log) if low <= high else None
    values = [one for one in all_values(dimension) or () if low <= one <= high]
    if not values:
        return None
    if isinstance(dimension, IntDistribution):
        return IntDistribution(values[0], values[-1], log=dimension.log, step=dimension.step)
    if isinstance(dimension, FloatDistribution):
        return FloatDistribution(values[0], values[-1], step=dimension.step)
    return CategoricalDistribution(values)


def kept_corners(space: Space, relations: Sequence[Relation]) -> Iterator[Params]:
    """As :func:`.space.corners`; where a relation is broken, each value at a bound with others that keep it, if any."""
    rng = random.Random(0)
    for corner in corners(space):
        broken = [one for one in relations if not one.holds(corner)]
        if not broken:
            yield corner
            continue
        names = sorted({name for one in broken for name in one.names()})
        for name in names:
            fixed = {key: value for key, value in corner.items() if key == name or key not in names}
            if (found := completed(space, relations, fixed, rng, CORNER_TRIES)) is not None:
                yield found

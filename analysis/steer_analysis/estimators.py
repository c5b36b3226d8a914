"""How accurate the entropy-change estimators are: pure functions of probe steps (METHODS sections 1, 1b and 4).

``Omega`` predicts a token's first-order entropy change; the probe measured what happened. **Target-wise**: Omega at a
token against the measured change at that position. **Source-wise**: against ``influence``, what the token's own update
does to the mean entropy. **Sums**: the mean Omega of a step against the measured change of the mean. Shape letter: N
tokens of all steps.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .agreement import Agreement, Clusters, Value, agreement, ratio
from .probes import ProbeStep

Floats = NDArray[np.floating]
Flags = NDArray[np.bool_]

TRUTH = "influence"
"""The estimator the others are compared with source-wise."""
CLUSTERED_BY = ("sequence", "step")


@dataclass(frozen=True)
class Pooled:
    """The steps end to end. ``cluster`` is the step of each token, or its sequence when there is one step only."""

    steps: Sequence[ProbeStep]
    step: Clusters
    """Position of each token's step in ``steps``, ``[N]``."""
    cluster: Clusters
    clustered_by: str

    def column(self, key: str) -> Floats:
        return np.concatenate([one.columns[key] for one in self.steps])

    def omega(self, name: str) -> Floats:
        """An estimator's Omega; NaN in steps without it."""
        return np.concatenate([omega_of(one, name) for one in self.steps])

    @property
    def change(self) -> Floats:
        return np.concatenate([one.change for one in self.steps])


def pool(steps: Sequence[ProbeStep]) -> Pooled:
    """The steps end to end, with the clusters the bootstrap draws."""
    step = np.concatenate([np.full(one.sequence.size, index) for index, one in enumerate(steps)])
    several = len(steps) > 1
    return Pooled(steps, step, step if several else steps[0].sequence, CLUSTERED_BY[several])


def omega_of(step: ProbeStep, name: str) -> Floats:
    """An estimator's Omega in a step; NaN for every token when the step has none."""
    return step.omega.get(name, np.full(step.sequence.size, np.nan, dtype=np.float32))


@dataclass(frozen=True)
class Accuracy:
    """One estimator's agreement, pooled and by training step."""

    pooled: Agreement
    steps: Mapping[int, Agreement]


def target_wise(pooled: Pooled, name: str) -> Accuracy:
    """Omega at each token against the measured change of entropy at that token's position."""
    whole = agreement(pooled.omega(name), pooled.change, pooled.cluster)
    present = [one for one in pooled.steps if name in one.omega]
    return Accuracy(whole, {one.step: agreement(one.omega[name], one.change, one.sequence) for one in present})


def source_wise(pooled: Pooled, name: str) -> Accuracy | None:
    """An estimator against ``influence``, token by token; None without ``influence``, and for itself."""
    present = [one for one in pooled.steps if name in one.omega and TRUTH in one.omega]
    if name == TRUTH or not present:
        return None
    whole = agreement(pooled.omega(name), pooled.omega(TRUTH), pooled.cluster)
    return Accuracy(whole, {one.step: agreement(one.omega[name], one.omega[TRUTH], one.sequence) for one in present})


@dataclass(frozen=True)
class StepSum:
    """A step's predicted and measured change of mean entropy over the same tokens; ``predicted`` per unit step size."""

    predicted: Value
    measured: Value


@dataclass(frozen=True)
class Sums:
    """One estimator's predicted totals: each step, and over steps (a step is one pair and one cluster)."""

    over_steps: Agreement
    steps: Mapping[int, StepSum]


def sums(pooled: Pooled, name: str) -> Sums:
    """Mean Omega of the probed tokens of each step against the measured change of their mean entropy."""
    found = {one.step: _step_sum(one, name) for one in pooled.steps if name in one.omega}
    predicted = np.array([_number(one.predicted) for one in found.values()])
    measured = np.array([_number(one.measured) for one in found.values()])
    return Sums(agreement(predicted, measured, np.arange(len(found))), found)


def _step_sum(step: ProbeStep, name: str) -> StepSum:
    omega, change = step.omega[name], step.change
    both = np.isfinite(omega) & np.isfinite(change)
    return StepSum(mean(omega, both, step.sequence), mean(change, both, step.sequence))


def _number(value: Value) -> float:
    return np.nan if value.value is None else value.value


def mean(values: Floats, among: Flags, cluster: Clusters) -> Value:
    """Mean of the finite ``values`` among some tokens, with its interval over clusters."""
    counted = among & np.isfinite(values)
    return ratio(np.where(counted, values, 0), counted, cluster)


@dataclass(frozen=True)
class Kind:
    """A quadrant: the sign of the advantage and whether pi is above exp(-H)."""

    name: str
    meaning: str
    positive: bool
    above: bool


QUADRANTS = (
    Kind("I", "exploitation", True, True),
    Kind("II", "exploration", True, False),
    Kind("III", "suppression", False, False),
    Kind("IV", "error correction", False, True),
)
NEITHER, ALL = "neither", "all"
"""Rows beside the quadrants: A = 0 or pi = exp(-H), and every token."""


def quadrant_masks(pooled: Pooled) -> dict[str, Flags]:
    """Which tokens each quadrant has, ``[N]`` each, with :data:`NEITHER` and :data:`ALL`. Tokens whose advantage,
    log-probability or entropy is not finite are in none."""
    advantages, log_prob = pooled.column("advantages"), pooled.column("log_prob_before")
    above_by = log_prob + pooled.column("entropy_before")  # pi > exp(-H) is log pi + H > 0
    finite = np.isfinite(advantages) & np.isfinite(above_by)
    masks = {}
    for kind in QUADRANTS:
        right_sign = advantages > 0 if kind.positive else advantages < 0
        masks[kind.name] = finite & right_sign & (above_by > 0 if kind.above else above_by < 0)
    masks[NEITHER] = finite & ((advantages == 0) | (above_by == 0))
    return masks | {ALL: finite}


@dataclass(frozen=True)
class Quadrant:
    """What a quadrant's tokens are and do. ``omega`` is each estimator's mean, ``mass`` each intervention's
    ``sum|A'| / sum|A|``."""

    name: str
    tokens: int
    share: Value
    change: Value
    omega: Mapping[str, Value]
    mass: Mapping[str, Value]


def quadrants(pooled: Pooled, names: Sequence[str], shaped: Mapping[str, Floats]) -> list[Quadrant]:
    """The quadrant table: I to IV, then the tokens on no side, then all.

    Args:
        names: the estimators.
        shaped: intervention -> the advantages it gives each token, ``[N]``.
    """
    masks = quadrant_masks(pooled)
    advantages, change = pooled.column("advantages"), pooled.change
    omegas = {name: pooled.omega(name) for name in names}
    return [
        Quadrant(
            name=name,
            tokens=int(mask.sum()),
            share=ratio(mask, masks[ALL], pooled.cluster),
            change=mean(change, mask, pooled.cluster),
            omega={key: mean(omega, mask, pooled.cluster) for key, omega in omegas.items()},
            mass={key: weight_mass(new, advantages, mask, pooled.cluster) for key, new in shaped.items()},
        )
        for name, mask in masks.items()
    ]


def weight_mass(shaped: Floats, advantages: Floats, among: Flags, cluster: Clusters) -> Value:
    """``sum |A'| / sum |A|`` over some tokens: 1 where an intervention changes nothing. Undefined where every A is 0.
    A token whose A' or A is not finite is left out of both sums."""
    counted = among & np.isfinite(shaped) & np.isfinite(advantages)
    return ratio(np.where(counted, np.abs(shaped), 0), np.where(counted, np.abs(advantages), 0), cluster)


def sample(count: int, wanted: int, seed: int) -> NDArray[np.int64]:
    """At most ``wanted`` of ``count`` positions, drawn without replacement and ascending: what a picture shows."""
    if count <= wanted:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, wanted, replace=False))

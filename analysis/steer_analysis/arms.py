"""Arms: runs that differ in nothing but their training seed. An arm is one row of the leaderboard."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from .runs import Run, differing_settings, short_names


@dataclass(frozen=True)
class Arm:
    """One row's runs, by seed. ``parameters`` are the settings in which it differs from other arms."""

    label: str
    parameters: str
    runs: tuple[Run, ...]

    @property
    def method(self) -> str:
        return self.runs[0].method

    @property
    def seeds(self) -> tuple[int | None, ...]:
        return tuple(run.seed for run in self.runs)

    @property
    def named(self) -> str:
        """``trial 3 (steer, lambda_min=0.7)``; a baseline that is named after its method is not named twice."""
        more = ", ".join(word for word in (self.method, self.parameters) if word and word != self.label)
        return f"{self.label} ({more})" if more else self.label


def group_runs(runs: Sequence[Run]) -> list[Arm]:
    """The arms of ``runs``, in order of their first run.

    A second run with a seed its arm has already is no further seed: it opens another arm.
    """
    arms: list[list[Run]] = []
    places: dict[str, list[list[Run]]] = defaultdict(list)
    for run in runs:
        same = places[_identity(run)]
        fitting = next((arm for arm in same if run.seed is not None and run.seed not in _seeds(arm)), None)
        if fitting is None:
            fitting = []
            same.append(fitting)
            arms.append(fitting)
        fitting.append(run)
    keys = differing_settings(runs)
    names = short_names(keys)
    labels = _labels(arms)
    ordered = [tuple(sorted(arm, key=lambda run: run.seed if run.seed is not None else -1)) for arm in arms]
    return [Arm(label, parameters(arm[0], keys, names), arm) for label, arm in zip(labels, ordered, strict=True)]


def _identity(run: Run) -> str:
    return json.dumps([str(run.study), run.method, sorted(run.settings.items())], sort_keys=True, default=repr)


def _seeds(arm: Sequence[Run]) -> set[int | None]:
    return {run.seed for run in arm}


def _labels(arms: Sequence[Sequence[Run]]) -> list[str]:
    """What the labels of an arm's runs have in common; all labels where that would not be unique."""
    labels = [_common(arm) for arm in arms]
    return [
        label if labels.count(label) == 1 else ", ".join(run.label for run in arm)
        for label, arm in zip(labels, arms, strict=True)
    ]


def _common(arm: Sequence[Run]) -> str:
    """``grpo`` of ``grpo-0`` and ``grpo-1``; ``trial 3`` of ``trial 3 seed 0`` and ``trial 3 seed 1``."""
    if len(arm) == 1:
        return arm[0].label
    letters = takewhile(lambda same: len(set(same)) == 1, zip(*(run.label for run in arm), strict=False))
    common = "".join(same[0] for same in letters).rstrip("0123456789").rstrip("-_., ").removesuffix("seed")
    return common.rstrip("-_., ") or f"{arm[0].label} and {len(arm) - 1} more"


def parameters(run: Run, keys: Sequence[str], names: Mapping[str, str]) -> str:
    """``lambda_min=0.7, k=2``: those of ``keys`` that this run has."""
    given = [(names[key], run.settings[key]) for key in keys if run.settings.get(key) is not None]
    return ", ".join(f"{name}={short(value)}" for name, value in given)


def short(value: Any) -> str:
    """A setting as text: four digits of a number with a point."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)

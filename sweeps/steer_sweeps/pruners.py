"""Optuna's pruners as a study uses them. With one seed a trial reports its objective's metric at every evaluation (the
training step is Optuna's step); with several it reports each seed's objective (the seed's place is Optuna's step)."""

import math
from typing import TYPE_CHECKING, Any

import optuna
from steer_openrlhf.errors import ConfigError

from .named import REFUSALS, build, class_of

if TYPE_CHECKING:
    from .spec import Sweep

WILCOXON, NOP, PATIENT = "WilcoxonPruner", "NopPruner", "PatientPruner"


def make_pruner(sweep: "Sweep") -> Any:
    """The study's pruner. Raises whatever Optuna raises for arguments it refuses."""
    return build(sweep.pruner, "pruner", lambda _: {}, {})


def pruner_mistakes(sweep: "Sweep") -> list[str]:
    """What is wrong with the pruner: its name and arguments, what it cannot judge here, and what Optuna refuses."""
    try:
        class_of(sweep.pruner, "pruner", "pruner")
    except ConfigError as error:
        return error.mistakes
    mistakes = _unfit(sweep, _innermost(sweep.pruner))
    return mistakes or _refused(sweep)


def _innermost(given: Any) -> dict[str, Any]:
    while given.get("wrapped_pruner"):
        given = given["wrapped_pruner"]
    return dict(given)


def _unfit(sweep: "Sweep", inner: dict[str, Any]) -> list[str]:
    n = len(sweep.seeds)
    name = str(inner["name"] if n == 1 else sweep.pruner["name"])  # patience counts evaluations, so not seeds
    if NOP in (name, inner["name"]):
        return []
    if len(sweep.directions) > 1:
        return [f"pruner.name = {name!r}: with several objectives nothing says which trial is worse; leave pruner out"]
    if name == WILCOXON:
        p = inner.get("p_threshold", 0.1)
        if n > 1 and isinstance(p, int | float) and 0.5 ** (n - 1) >= p > 0:
            needed = math.floor(math.log2(1 / p)) + 2
            smallest = f"the smallest p of {n - 1} pairs is {0.5 ** (n - 1):.3g}"
            return [
                f"pruner.name = {name!r}: with {n} seeds it can stop no trial before its last seed ({smallest}, "
                f"p_threshold is {p}): give {needed} seeds, or raise p_threshold"
            ]
        return (
            []
            if n > 1
            else [f"pruner.name = {name!r}: compares seed by seed, but seeds = {list(sweep.seeds)}: give more"]
        )
    if n > 1:
        return [
            f"pruner.name = {name!r}: compares evaluations during one training, but a trial has {n} seeds, whose order "
            f"means nothing: take {WILCOXON}, or one seed"
        ]
    return []


def _refused(sweep: "Sweep") -> list[str]:
    """Arguments that Optuna itself refuses, found by letting it judge a few trials in memory."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(directions=sweep.directions, pruner=make_pruner(sweep))
        for value in (0.1, 0.3, 0.2) if len(sweep.directions) == 1 else ():
            trial = study.ask()
            for step in range(3):
                trial.report(value + step / 10, step)
                trial.should_prune()
            study.tell(trial, value)
    except REFUSALS as error:
        return [f"pruner = {sweep.pruner}: Optuna refuses it: {error}"]
    return []

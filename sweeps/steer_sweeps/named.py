"""Optuna's own classes by their names and arguments, as a sweep file gives them: ``{name: TPESampler, group: true}``.

An argument that is itself an object is a mapping with a name again: ``wrapped_pruner: {name: MedianPruner}``.
"""

import importlib.util
import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from optuna import pruners, samplers
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import nsgaii
from steer_openrlhf.errors import ConfigError, suggest

MODULES = {"sampler": samplers, "pruner": pruners, "crossover": nsgaii, "mutation": nsgaii}
KINDS = {
    "sampler": "Sampler",
    "base_sampler": "Sampler",
    "independent_sampler": "Sampler",
    "pruner": "Pruner",
    "wrapped_pruner": "Pruner",
    "crossover": "Crossover",
    "mutation": "Mutation",
}
"""Where an object may stand, and how the names of the classes that fit end."""
FUNCTIONS = (
    *("gamma", "weights", "child_generation_strategy", "after_trial_strategy"),
    *("elite_population_selection_strategy", "source_trials", "reference_points"),
)
"""Arguments that are functions, trials or arrays: no file can hold them."""
NEEDS = {
    "CmaEsSampler": ("cmaes",),
    "GPSampler": ("scipy", "torch"),
    "QMCSampler": ("scipy",),
    "WilcoxonPruner": ("scipy",),
}
"""Packages that Optuna loads only when the class is used."""

REFUSALS = (
    *(ArithmeticError, AssertionError, AttributeError, ImportError),
    *(LookupError, RuntimeError, TypeError, ValueError),
)
"""What Optuna raises for arguments it cannot use."""


def known(kind: str) -> dict[str, type[Any]]:
    """Every class of Optuna that may stand at ``kind`` (a key of :data:`KINDS`), by name."""
    module = MODULES["sampler" if kind.endswith("sampler") else "pruner" if kind.endswith("pruner") else kind]
    names = [name for name in module.__all__ if name.endswith(KINDS[kind]) and not name.startswith("Base")]
    return {name: getattr(module, name) for name in names}


def class_of(given: Any, kind: str, where: str) -> type[Any]:
    """The class of ``{name: ..., <its arguments>}``. Raises :class:`ConfigError` with every mistake in it."""
    if not isinstance(given, Mapping):
        raise ConfigError(
            [f"{where} = {given!r}: must be a mapping with a name, as in {{name: {next(iter(known(kind)))}}}"]
        )
    name, classes = str(given.get("name")), known(kind)
    if name not in classes:
        hint = suggest(name, classes)
        raise ConfigError([f"{where}.name = {name!r}: unknown; known: {', '.join(classes)}" + (hint and f"; {hint}")])
    mistakes = [
        f"{where}.name = {name!r}: needs the package {package}, which is not installed: pip install {package}"
        for package in NEEDS.get(name, ())
        if importlib.util.find_spec(package) is None
    ]
    accepted = _accepted(classes[name])
    for key, value in given.items():
        mistakes += _argument(key, value, accepted, where)
    if mistakes:
        raise ConfigError(mistakes)
    return classes[name]


def _accepted(found: type[Any]) -> list[str]:
    return list(inspect.signature(found).parameters)


def _argument(key: str, value: Any, accepted: list[str], where: str) -> list[str]:
    """What is wrong with one argument."""
    if key == "name":
        return []
    if key == "seed" and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
        return [f"{where}.seed = {value!r}: must be a whole number, at least 0"]
    if key == "seed" and where == "sampler":
        return []  # the study's, for a sampler that draws nothing at random too
    if key not in accepted:
        usable = [one for one in accepted if one not in (*FUNCTIONS, "constraints_func")]
        return [f"{where}.{key}: unknown; {suggest(key, usable) or f'known: {usable}'}"]
    if key == "constraints_func":
        return [f"{where}.{key}: comes from the sweep's own constraints"]
    if key in FUNCTIONS:
        return [f"{where}.{key}: is no plain value, so a sweep file cannot give it; leave it out"]
    if key in KINDS and value is not None:
        try:
            class_of(value, key, f"{where}.{key}")
        except ConfigError as error:
            return error.mistakes
    return []


def build(
    given: Mapping[str, Any],
    kind: str,
    own: Callable[[str], Mapping[str, Any]],
    ours: Mapping[str, type[Any]],
    where: str = "",
) -> Any:
    """The object. ``own(name)``: arguments of ours, each laid over the file's where the class accepts it; ``ours``:
    classes that stand in for Optuna's of that name.

    Raises whatever Optuna raises for arguments it refuses.
    """
    where = where or kind
    found = class_of(given, kind, where)
    arguments = {key: value for key, value in given.items() if key in _accepted(found) and key != "seed"}
    for key, value in arguments.items():
        if key in KINDS and value is not None:
            arguments[key] = build(value, key, own, ours, f"{where}.{key}")
    found = ours.get(found.__name__, found)
    accepted = _accepted(found)
    arguments |= {key: value for key, value in own(found.__name__).items() if key in accepted}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        warnings.simplefilter("ignore", FutureWarning)  # constraints_func, which Optuna 4 needs and 5 still takes
        return found(**arguments)

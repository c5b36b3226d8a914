"""Whether a sampler can draw this study's space, found before the study exists: by its name and arguments, by what is
known of it, and by letting it draw a few trials in memory."""

import inspect
import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from steer_openrlhf.errors import ConfigError

from .named import REFUSALS, class_of
from .relations import all_hold
from .samplers import draw_in_memory, grid, numeric_everywhere, too_large
from .space import Choose, Params, Space, all_values, check_params, dimensions

if TYPE_CHECKING:
    from .spec import Sweep

QUICK = {"n_startup_trials": 1, "population_size": 4}
"""Arguments under which a sampler leaves its random start at once."""
DRAWS, MODEL_DRAWS = 2, 6
FINITE = ("GridSampler", "BruteForceSampler")
SCANNED = 200_000


def sampler_mistakes(sweep: "Sweep") -> list[str]:
    """Everything that is wrong with the sampler, in sentences."""
    try:
        found = class_of(sweep.sampler, "sampler", "sampler")
    except ConfigError as error:
        return error.mistakes
    mistakes = _unfit(sweep, found)
    return mistakes or _refused(sweep)


def _unfit(sweep: "Sweep", found: type[Any]) -> list[str]:
    name, space = found.__name__, sweep.typed_space
    if name == "CmaEsSampler":
        return _cma_es(sweep)
    if name == "GPSampler" and all(isinstance(one, Choose) for one in space.values()):
        return [f"sampler.name = {name!r}: models what every trial has, and all here is conditional: take TPESampler"]
    if name == "PartialFixedSampler":
        given = sweep.sampler.get("fixed_params")
        wrong = check_params(given, space) if isinstance(given, dict) else [f"{given!r}: must be a mapping of keys"]
        wrong += [] if "base_sampler" in sweep.sampler else ["base_sampler is required and was not given"]
        return [f"sampler.fixed_params: {one}" for one in wrong]
    return _too_few(sweep, name) if name in FINITE else []


def _cma_es(sweep: "Sweep") -> list[str]:
    mistakes = []
    if len(numeric_everywhere(sweep.typed_space)) < 2:
        mistakes.append("needs two numbers that every trial has, the rest it draws at random: take TPESampler")
    if sweep.constraints:
        mistakes.append("knows no constraints and would go where they are broken: take TPESampler, GPSampler or NSGAII")
    if len(sweep.directions) > 1:
        mistakes.append("knows one objective only: take TPESampler, NSGAIISampler or GPSampler")
    return [f"sampler.name = 'CmaEsSampler': {one}" for one in mistakes]


def _too_few(sweep: "Sweep", name: str) -> list[str]:
    """A sampler that goes through a finite space once cannot give more trials than that has."""
    space = sweep.typed_space
    try:
        if name == "GridSampler":
            return _grid(sweep)
    except ConfigError as error:
        return error.mistakes
    endless = [key for key, one in dimensions(space) if not isinstance(one, Choose) and all_values(one) is None]
    if endless:
        return [f"sampler = {name}: {key} has no step, so it has no end of values; give it a step" for key in endless]
    scanned = itertools.islice(_all(space), SCANNED)
    n = sum(
        1 for _ in itertools.islice((one for one in scanned if all_hold(sweep.typed_relations, one)), sweep.n_trials)
    )
    return _asks_for(sweep, name, n)


def _grid(sweep: "Sweep") -> list[str]:
    given, space = sweep.sampler.get("search_space"), sweep.typed_space
    points = grid(space) if given is None else given
    if not isinstance(points, dict) or not all(isinstance(one, list) and one for one in points.values()):
        return [f"sampler.search_space = {points!r}: must be a mapping of keys to lists of values"]
    wrong = [one for key, values in points.items() for value in values for one in check_params({key: value}, space)]
    wrong += [f"{name}: is missing" for name, _ in dimensions(space) if name not in points]
    if wrong:
        return [f"sampler.search_space: {one}" for one in dict.fromkeys(wrong)]
    if wrong := too_large(points):
        return wrong
    every = (dict(zip(points, point, strict=True)) for point in itertools.product(*points.values()))
    n = sum(all_hold(sweep.typed_relations, one) for one in every)
    return _asks_for(sweep, "GridSampler", n + len(sweep.enqueue))


def _asks_for(sweep: "Sweep", name: str, n: int) -> list[str]:
    if n >= sweep.n_trials:
        return []
    return [f"n_trials = {sweep.n_trials}: {name} has only {n} different configurations here; give n_trials: {n}"]


def _all(space: Space) -> Iterator[Params]:
    """Every configuration of a finite space."""
    parts = [list(_part(name, dimension)) for name, dimension in space.items()]
    for chosen in itertools.product(*parts):
        yield {key: value for part in chosen for key, value in part.items()}


def _part(name: str, dimension: Any) -> Iterator[Params]:
    if isinstance(dimension, Choose):
        for branch_name, branch in dimension.branches.items():
            yield from ({name: branch_name} | rest for rest in _all(branch))
    else:
        yield from ({name: value} for value in all_values(dimension) or ())


def _refused(sweep: "Sweep") -> list[str]:
    """What Optuna refuses: two trials with the arguments as they are, and a few for which it needs its model."""
    accepted = inspect.signature(class_of(sweep.sampler, "sampler", "sampler")).parameters
    quick = {key: value for key, value in QUICK.items() if key in accepted}
    try:
        draw_in_memory(sweep, min(DRAWS, sweep.n_trials), lambda index: float(index))
        draw_in_memory(sweep, min(MODEL_DRAWS, sweep.n_trials), lambda index: float(index % 3), arguments=quick)
    except ConfigError as error:
        return error.mistakes
    except REFUSALS as error:
        return [f"sampler = {sweep.sampler}: Optuna refuses it: {error or type(error).__name__}"]
    return []

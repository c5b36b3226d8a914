"""Optuna's samplers as a study uses them: every configuration is drawn by a sampler of its own, seeded by the study's
seed and the configuration's index, under the study's relations and constraints.

So a study that was interrupted, or repeated a failed run, draws what it would have drawn, given the same results so
far. (With several slots, which results are there depends on which runs were faster.)
"""

import copy
import math
import random
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import optuna
from numpy.random import SeedSequence
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from steer_openrlhf.errors import ConfigError

from .named import build
from .relations import Relation, all_hold, completed, groups, narrowed
from .space import Choose, Space, all_values, dimensions, distributions, sample, uniform, walk

if TYPE_CHECKING:
    from .spec import Sweep

FEASIBLE_BY = "constraints"
"""The user attribute that holds a trial's constraint values, at most 0 where they are kept."""
BLIND_TRIES, MODEL_TRIES = 50, 6
"""How often a sampler is asked again while relations are broken: one that learns from no result, and a model."""
QMC_STRIDE = 1 << 14
LARGEST_GRID = 10_000


class GridSampler(optuna.samplers.GridSampler):
    """Configuration ``index`` gets the ``index``-th point of the shuffled grid that keeps the relations.

    Optuna's own gives no point to a trial that was enqueued, which all of a study are; and it stops a loop that an
    ask-and-tell study does not have.
    """

    def __init__(
        self,
        search_space: Mapping[str, Sequence[Any]],
        seed: int | None = None,
        index: int = 0,
        relations: Sequence[Relation] = (),
    ) -> None:
        super().__init__(search_space, seed)
        names = self._param_names
        points = (dict(zip(names, point, strict=True)) for point in self._all_grids)
        self._kept = [number for number, point in enumerate(points) if all_hold(relations, point)]
        self._index = index

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        grid_id = self._kept[self._index % len(self._kept)]
        study._storage.set_trial_system_attr(trial._trial_id, "search_space", self._search_space)
        study._storage.set_trial_system_attr(trial._trial_id, "grid_id", grid_id)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """Nothing: the study knows itself when it ends."""


class BruteForceSampler(optuna.samplers.BruteForceSampler):
    """Optuna's own, without the attempt to stop a loop that an ask-and-tell study does not have."""

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """Nothing: the study knows itself when it ends."""


class QMCSampler(optuna.samplers.QMCSampler):
    """Configuration ``index`` gets point ``index`` of the sequence over all dimensions, those of every branch too.

    Optuna's own counts every ask, also that of a repeated trial, and takes the dimensions of the first trial only.
    Asked again, for another draw under relations, it goes on far ahead, where no other configuration has its points.
    """

    def __init__(
        self,
        index: int = 0,
        space: Mapping[str, BaseDistribution] | None = None,
        seed: int | None = None,
        warn_independent_sampling: bool = False,
        **arguments: Any,
    ) -> None:
        super().__init__(seed=seed, warn_independent_sampling=warn_independent_sampling, **arguments)
        self._index, self._space = index, dict(space or {})

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {name: one for name, one in self._space.items() if not one.single()}

    def _find_sample_id(self, study: Study, search_space: dict[str, BaseDistribution]) -> int:
        found = self._index
        self._index += QMC_STRIDE
        return found


class CmaEsSampler(optuna.samplers.CmaEsSampler):
    """Optuna's own, which seeds a draw by the trial's number too, so that a repeated trial would change all later ones:
    here it is the configuration's index."""

    def __init__(
        self, index: int = 0, seed: int | None = None, warn_independent_sampling: bool = False, **arguments: Any
    ) -> None:
        super().__init__(seed=seed, warn_independent_sampling=warn_independent_sampling, **arguments)
        self._index = index

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        trial = copy.copy(trial)
        trial.number = self._index
        return super().sample_relative(study, trial, search_space)


class RelationSampler(BaseSampler):
    """Another sampler under relations: what breaks one is drawn again, the keys of its relations together and nothing
    else, so that the share of a branch does not depend on how often its relations hold. One that learns from no result
    is asked again; a model's proposal is kept as far as it goes (:meth:`_near`).

    The distributions that Optuna sees stay those of the space, so models, importance and replays know nothing of this.
    """

    def __init__(
        self,
        base: BaseSampler,
        space: Space,
        relations: Sequence[Relation],
        seed: int,
        fixed: Mapping[str, Any] | None = None,
    ) -> None:
        self._base, self._space, self._relations, self._fixed = base, space, relations, dict(fixed or {})
        self._distributions = distributions(space)
        self._rng = random.Random(seed)
        self._blind = isinstance(base, optuna.samplers.RandomSampler | QMCSampler | BruteForceSampler)

    def reseed_rng(self) -> None:
        self._base.reseed_rng()
        self._rng.seed()

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return dict(self._distributions)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        fixed = self._fixed | trial.system_attrs.get("fixed_params", {}) | trial.params
        params = self._drawn(study, trial, fixed)
        for names, together in groups(self._relations, params):
            if not all_hold(together, params):
                params |= self._again(study, trial, params, [one for one in names if one not in fixed], together)
        return params

    def _again(
        self, study: Study, trial: FrozenTrial, params: Mapping[str, Any], names: list[str], together: list[Relation]
    ) -> dict[str, Any]:
        others = {name: value for name, value in params.items() if name not in names}
        found = {name: params[name] for name in names}
        for _ in range((BLIND_TRIES if self._blind else MODEL_TRIES) if names else 0):
            before, new = found, self._drawn(study, trial, others)
            found = {name: new[name] for name in names}
            if all_hold(together, others | found):
                return found
            if found == before:
                break  # a sampler without a choice
        if not self._blind and all_hold(together, others | (near := self._near(study, trial, others, found, together))):
            return near
        drawn = completed(self._space, together, others, self._rng)
        if drawn is None:
            raise ConfigError([f"relations: no draw holds {', '.join(map(str, together))} beside {others}"])
        return {name: drawn[name] for name in names}

    def _near(
        self,
        study: Study,
        trial: FrozenTrial,
        others: Mapping[str, Any],
        proposed: Mapping[str, Any],
        together: list[Relation],
    ) -> dict[str, Any]:
        """A model's proposal with as few keys drawn again as can be, from what the others leave of their ranges. (Were
        it only refused, a model would learn nothing where it wants to look, and propose the same for ever.)"""
        found: dict[str, Any] = {}
        for name in self._rng.sample(list(proposed), len(proposed)):
            left = narrowed(name, self._distributions, together, {**others, **found})
            if left is None:
                return dict(proposed)
            if left._contains(left.to_internal_repr(proposed[name])):
                found[name] = proposed[name]
            elif isinstance(left, CategoricalDistribution) or left.single():
                found[name] = uniform(left, self._rng)
            else:
                found[name] = self._base.sample_independent(study, trial, name, left)
        return found

    def _drawn(self, study: Study, trial: FrozenTrial, fixed: Mapping[str, Any]) -> dict[str, Any]:
        """Every parameter, as the base sampler draws it beside what is fixed."""
        trial = copy.copy(trial)
        trial.params, trial.distributions = {}, {}
        proposed = self._base.sample_relative(study, trial, self._base.infer_relative_search_space(study, trial))

        def pick(name: str, distribution: BaseDistribution) -> Any:
            if name in fixed:
                value = fixed[name]
            elif distribution.single():
                value = (all_values(distribution) or [None])[0]
            elif name in proposed and distribution._contains(distribution.to_internal_repr(proposed[name])):
                value = proposed[name]
            else:
                value = self._base.sample_independent(study, trial, name, distribution)
            trial.params = trial.params | {name: value}
            trial.distributions = trial.distributions | {name: distribution}
            return value

        return walk(self._space, pick)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """What a value would be without relations: for a name that is not in the space."""
        return self._base.sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        self._base.before_trial(study, trial)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        self._base.after_trial(study, trial, state, values)


OURS = {one.__name__: one for one in (GridSampler, BruteForceSampler, QMCSampler, CmaEsSampler)}


def make_sampler(sweep: "Sweep", index: int, arguments: Mapping[str, Any] | None = None) -> Any:
    """The sampler of configuration ``index``. ``arguments``: laid over the sweep file's.

    Raises whatever Optuna raises for arguments it refuses.
    """
    space, seed = sweep.typed_space, int(sweep.sampler.get("seed", 0))
    own_seed = int(SeedSequence([seed, index]).generate_state(1)[0])
    whole = {"seed": seed, "relations": sweep.typed_relations, "space": distributions(space)}

    def own(name: str) -> Mapping[str, Any]:
        found = dict(arguments or {}) | {"seed": own_seed, "index": index, "warn_independent_sampling": False}
        if name in ("GridSampler", "QMCSampler"):  # one order for all configurations; each takes its place in it
            found |= whole
        if name == "GridSampler":
            found |= {"index": index - len(sweep.enqueue)}
            found |= {} if "search_space" in sweep.sampler else {"search_space": grid(space)}
        if sweep.executor.slots > 1 and "constant_liar" not in sweep.sampler:
            found |= {"constant_liar": True}
        if sweep.constraints:
            found |= {"constraints_func": partial(constraints_of, n=len(sweep.constraints))}
        return found

    base = build(sweep.sampler, "sampler", own, OURS)
    if not sweep.typed_relations or isinstance(base, GridSampler):
        return base
    return RelationSampler(base, space, sweep.typed_relations, own_seed, sweep.sampler.get("fixed_params"))


def constraints_of(trial: FrozenTrial, n: int) -> Sequence[float]:
    """For Optuna. A trial that was pruned before its constraints were known counts as one that broke them all by 1."""
    return tuple(trial.user_attrs.get(FEASIBLE_BY, (1.0,) * n))


def grid(space: Space) -> dict[str, list[Any]]:
    """Every value of every dimension. Raises :class:`ConfigError` where there is no end of them."""
    found, mistakes = {}, []
    for name, dimension in dimensions(space):
        if isinstance(dimension, Choose):
            mistakes.append(f"sampler = GridSampler: {name} is a choice; BruteForceSampler goes through branches")
        elif (values := all_values(dimension)) is None:
            mistakes.append(f"sampler = GridSampler: {name} has no step, so it has no end of values; give it a step")
        else:
            found[name] = values
    mistakes += [] if mistakes else too_large(found)
    if mistakes:
        raise ConfigError(mistakes)
    return found


def too_large(points: Mapping[str, Sequence[Any]]) -> list[str]:
    n = math.prod(map(len, points.values()))
    wrong = f"sampler = GridSampler: the grid has {n} points, more than {LARGEST_GRID}; take larger steps"
    return [wrong] if n > LARGEST_GRID else []


# -- in memory ---------------------------------------------------------------------------------------------------------

Told = Callable[[int], float | None]
"""What a trial drawn in memory is told: the objective of the configuration with this index; None: it still runs."""


def draw_in_memory(
    sweep: "Sweep", n: int, told: Told, known: Sequence[FrozenTrial] = (), arguments: Mapping[str, Any] | None = None
) -> list[FrozenTrial]:
    """The first ``n`` configurations as a study would draw them if their results were these ones. ``known``: trials of
    another study, there from the start."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(study_name=sweep.name, directions=sweep.directions)
    for one in known:
        study.add_trial(one)
    for index in range(n):
        given = sweep.enqueue[index] if index < len(sweep.enqueue) else {}
        study.enqueue_trial(dict(given), user_attrs={"config": index})
        study.sampler = make_sampler(sweep, index, arguments)
        trial = study.ask()
        sample(trial, sweep.typed_space)
        if (value := told(index)) is not None:
            trial.set_user_attr(FEASIBLE_BY, [0.0] * len(sweep.constraints))
            study.tell(trial, [value] * len(sweep.directions))
    return study.get_trials(deepcopy=False)[len(known) :]


def numeric_everywhere(space: Space) -> list[str]:
    """The numbers that every configuration has: what a sampler that models one fixed space can model."""
    return [
        name
        for name, dimension in space.items()
        if not isinstance(dimension, Choose | CategoricalDistribution) and not dimension.single()
    ]

"""Every sampler of Optuna by its name: what it draws, that an interruption changes nothing, what it cannot do."""

import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState
from scipy.stats import qmc
from steer_openrlhf.errors import ConfigError
from steer_sweeps.named import known
from steer_sweeps.samplers import draw_in_memory, make_sampler
from steer_sweeps.space import is_inside, sample
from steer_sweeps.spec import Sweep, load_sweep

Make = Callable[..., Any]
LR = "openrlhf.actor.adam.lr"
PLAIN = {
    "steer.lambda_min": {"float": [0.5, 0.9], "step": 0.1},
    "steer.side": {"categorical": ["both", "falling", "rising"]},
}
NUMBERS = {"steer.lambda_min": {"float": [0.5, 0.95]}, LR: {"float": [1e-5, 1e-3], "log": True}}
BRANCHES = {
    "strength": {
        "choose": {
            "floor": {"steer.lambda_min": {"float": [0.5, 0.9], "step": 0.2}},
            "decay": {"steer.k": {"int": [1, 2]}},
        }
    },
    "steer.side": {"categorical": ["both", "falling"]},
}
BAND = {
    "steer.band.0": {"float": [-0.1, 0.1], "step": 0.05},
    "steer.band.1": {"float": [-0.1, 0.1], "step": 0.05},
    "steer.estimator": {"categorical": ["influence"]},
}
RELATION = ["steer.band.0 < steer.band.1"]
NO_FLOOR = {"steer.lambda_min": None}

CASES: dict[str, dict[str, Any]] = {
    "tpe": {"sampler": {"name": "TPESampler", "n_startup_trials": 2}, "space": NUMBERS},
    "tpe-branches": {"sampler": {"name": "TPESampler", "multivariate": True, "group": True}, "space": BRANCHES},
    "tpe-band": {"sampler": {"name": "TPESampler", "n_startup_trials": 2}, "space": BAND, "relations": RELATION},
    "random": {"sampler": {"name": "RandomSampler", "seed": 4}, "space": BRANCHES},
    "gp": {"sampler": {"name": "GPSampler", "n_startup_trials": 4}, "space": NUMBERS},
    "gp-band": {"sampler": {"name": "GPSampler", "n_startup_trials": 4}, "space": BAND, "relations": RELATION},
    "cma": {"sampler": {"name": "CmaEsSampler"}, "space": NUMBERS},
    "cma-margin": {
        "sampler": {"name": "CmaEsSampler", "with_margin": True, "independent_sampler": {"name": "TPESampler"}},
        "space": NUMBERS,
    },
    "nsga2": {"sampler": {"name": "NSGAIISampler", "population_size": 3}, "space": BRANCHES},
    "nsga2-sbx": {
        "sampler": {"name": "NSGAIISampler", "population_size": 3, "crossover": {"name": "SBXCrossover", "eta": 3}},
        "space": NUMBERS,
    },
    "nsga3": {"sampler": {"name": "NSGAIIISampler", "population_size": 3}, "space": NUMBERS},
    "qmc": {"sampler": {"name": "QMCSampler", "scramble": True, "seed": 7}, "space": BRANCHES},
    "qmc-halton": {"sampler": {"name": "QMCSampler", "qmc_type": "halton"}, "space": BAND, "relations": RELATION},
    "grid": {"sampler": {"name": "GridSampler", "seed": 1}, "space": PLAIN},
    "grid-band": {"sampler": {"name": "GridSampler"}, "space": BAND, "relations": RELATION},
    "brute-force": {"sampler": {"name": "BruteForceSampler"}, "space": BRANCHES},
    "brute-force-band": {"sampler": {"name": "BruteForceSampler"}, "space": BAND, "relations": RELATION},
    "partial": {
        "sampler": {
            "name": "PartialFixedSampler",
            "fixed_params": {"steer.side": "rising"},
            "base_sampler": {"name": "QMCSampler"},
        },
        "space": PLAIN,
    },
}


def overrides(space: dict[str, Any]) -> dict[str, Any]:
    """The recipe has ``lambda_min``, beside which neither ``k`` nor a band makes sense."""
    return {} if "steer.lambda_min" in space else {"steer.lambda_min": 0.5 if "steer.band.0" in space else None}


@pytest.fixture
def case(sweep_file: Make, request: pytest.FixtureRequest) -> Sweep:
    given = CASES[request.param]
    return load_sweep(sweep_file(enqueue=[], n_trials=6, overrides=overrides(given["space"]), **given))


def test_every_sampler_of_optuna_has_a_case() -> None:
    assert {one["sampler"]["name"] for one in CASES.values()} == set(known("sampler"))


def told(trial: FrozenTrial) -> float:
    """Some objective that depends on the parameters."""
    return sum(value if isinstance(value, float) else len(str(value)) for value in trial.params.values())


def draw(sweep: Sweep, study: optuna.Study, index: int) -> dict[str, Any]:
    """One configuration as a study draws it, and its result."""
    study.enqueue_trial({}, user_attrs={"config": index})
    study.sampler = make_sampler(sweep, index)
    trial = study.ask()
    sample(trial, sweep.typed_space)
    study.tell(trial, told(study.trials[trial.number]))
    return trial.params


def fresh(sweep: Sweep) -> optuna.Study:
    return optuna.create_study(study_name=sweep.name, direction="maximize")


@pytest.mark.parametrize("case", list(CASES), indirect=True)
def test_what_is_drawn_does_not_depend_on_an_interruption(case: Sweep) -> None:
    whole, broken = fresh(case), fresh(case)
    drawn = [draw(case, whole, index) for index in range(6)]
    assert all(is_inside(params, case.typed_space) for params in drawn)
    assert all(relation.holds(params) for relation in case.typed_relations for params in drawn)
    for index in range(6):  # everything again, and after each trial one that fails and is repeated with its parameters
        assert draw(case, broken, index) == drawn[index], index
        repeat(case, broken, index)


def repeat(sweep: Sweep, study: optuna.Study, index: int) -> None:
    study.enqueue_trial(study.trials[-1].params, user_attrs={"config": index})
    study.sampler = make_sampler(sweep, index)
    trial = study.ask()
    sample(trial, sweep.typed_space)
    study.tell(trial, state=TrialState.FAIL)


@pytest.mark.parametrize(
    "case", ["tpe-band", "gp-band", "cma", "nsga2-sbx", "qmc-halton", "grid-band", "brute-force-band"], indirect=True
)
def test_a_real_study_draws_them(case: Sweep, control: Make, tmp_path: Path) -> None:
    """Two at a time, so that samplers see trials that run; the study then holds what they drew."""
    controller = control(tmp_path / "study", case.model_copy(update={"baselines": []}))
    assert controller.run()
    trials = controller.study.searched.trials()
    assert [one.state for one in trials] == [TrialState.COMPLETE] * 6
    assert all(is_inside(one.params, case.typed_space) for one in trials)
    assert all(relation.holds(one.params) for relation in case.typed_relations for one in trials)
    finite = case.sampler["name"] in ("GridSampler", "BruteForceSampler")
    assert not finite or len({str(one.params) for one in trials}) == 6


def test_the_study_seed_changes_what_is_drawn(sweep: Make) -> None:
    def first(seed: int) -> dict[str, Any]:
        found = sweep(sampler={"name": "RandomSampler", "seed": seed}, enqueue=[])
        return draw_in_memory(found, 1, lambda index: None)[0].params

    assert first(0) == first(0) != first(1)


@pytest.mark.parametrize("scramble", [False, True])
def test_quasi_random_points_are_those_of_the_sequence(sweep: Make, scramble: bool) -> None:
    given = {"name": "QMCSampler", "scramble": scramble, "seed": 3}
    space = {"steer.lambda_min": {"float": [0.5, 1]}, LR: {"float": [0, 0.125]}}
    found = sweep(sampler=given, space=space, enqueue=[], n_trials=8)
    drawn = [one.params for one in draw_in_memory(found, 8, float)]
    rows = np.array([[(one["steer.lambda_min"] - 0.5) / 0.5, one[LR] / 0.125] for one in drawn])
    points = qmc.Sobol(2, scramble=scramble, seed=3).random(8)[:, ::-1]  # the file has its keys in alphabetical order
    assert np.allclose(rows, points)


def test_a_grid_is_gone_through_once(sweep: Make) -> None:
    found = sweep(sampler={"name": "GridSampler"}, space=PLAIN, n_trials=16, enqueue=[{"steer.lambda_min": 0.7}])
    drawn = [tuple(one.params.values()) for one in draw_in_memory(found, 16, float)]
    every = itertools.product([0.5, 0.6, 0.7, 0.8, 0.9], ["both", "falling", "rising"])
    assert sorted(drawn[1:]) == sorted(every)
    assert drawn[1:] != sorted(drawn[1:])  # in a shuffled order


def test_a_grid_under_relations_has_the_points_that_keep_them(sweep: Make) -> None:
    changes = {"sampler": {"name": "GridSampler"}, "space": BAND, "relations": RELATION, "enqueue": []}
    found = sweep(**changes, n_trials=10, overrides={"steer.lambda_min": 0.5})
    steps = [-0.1, -0.05, 0.0, 0.05, 0.1]
    drawn = [(one.params["steer.band.0"], one.params["steer.band.1"]) for one in draw_in_memory(found, 10, float)]
    assert sorted(drawn) == [(low, high) for low in steps for high in steps if low < high]


def test_brute_force_goes_through_every_branch_once(sweep: Make) -> None:
    given = {"sampler": {"name": "BruteForceSampler"}, "space": BRANCHES, "overrides": NO_FLOOR, "enqueue": []}
    drawn = draw_in_memory(sweep(**given, n_trials=10), 10, float)
    assert len({tuple(sorted(one.params.items())) for one in drawn}) == 10  # (3 floors + 2 decays) x 2 sides


def test_constraints_reach_the_sampler(sweep: Make) -> None:
    """The more the better, but only up to 0.6: without the constraint TPE goes to 0.95."""
    found: Sweep = sweep(
        space={"steer.lambda_min": {"float": [0.5, 0.95]}},
        sampler={"name": "TPESampler", "n_startup_trials": 8},
        constraints=[{"metric": "train/steer/entropy", "at_least": 0.3}],
        enqueue=[],
        n_trials=40,
    )
    study = fresh(found)
    for index in range(40):
        study.enqueue_trial({}, user_attrs={"config": index})
        study.sampler = make_sampler(found, index)
        trial = study.ask()
        value = sample(trial, found.typed_space)["steer.lambda_min"]
        trial.set_user_attr("constraints", [value - 0.6])
        study.tell(trial, value)
    late = [one.params["steer.lambda_min"] for one in study.trials[-15:]]
    assert sum(value <= 0.65 for value in late) >= 10
    assert study.trials[0].constraints  # what Optuna itself keeps


@pytest.mark.parametrize(
    "name", ["TPESampler", "NSGAIISampler", "NSGAIIISampler", "GPSampler", "RandomSampler", "QMCSampler"]
)
def test_several_objectives(sweep: Make, name: str) -> None:
    both = [
        {"metric": "eval/score", "direction": "maximize"},
        {"metric": "train/steer/entropy", "direction": "maximize"},
    ]
    found: Sweep = sweep(objective=None, objectives=both, sampler={"name": name}, space=NUMBERS)
    assert found.directions == ["maximize", "maximize"]
    assert len(draw_in_memory(found, 3, float)[-1].values or ()) == 2


BAD: list[tuple[dict[str, Any], str]] = [
    ({"sampler": {"name": "TPESampler", "gamma": 3}}, "sampler.gamma: is no plain value"),
    ({"sampler": {"name": "TPESampler", "constraints_func": 3}}, "comes from the sweep's own constraints"),
    ({"sampler": {"name": "TPESampler", "n_startup_trials": "three"}}, "Optuna refuses it"),
    ({"sampler": {"name": "RandomSampler", "multivariate": True}}, "sampler.multivariate: unknown"),
    (
        {"sampler": {"name": "NSGAIISampler", "crossover": {"name": "SBX"}}},
        "sampler.crossover.name = 'SBX': unknown; known: BLX",
    ),
    ({"sampler": {"name": "NSGAIISampler", "population_size": 1}}, "Optuna refuses it"),
    ({"sampler": {"name": "CmaEsSampler", "independent_sampler": {"name": "Tpe"}}}, "sampler.independent_sampler.name"),
    ({"sampler": {"name": "CmaEsSampler"}, "space": PLAIN}, "needs two numbers that every trial has"),
    ({"sampler": {"name": "CmaEsSampler"}, "space": BRANCHES}, "needs two numbers that every trial has"),
    (
        {"sampler": {"name": "CmaEsSampler"}, "constraints": [{"metric": "gpu_hours", "at_most": 1}]},
        "knows no constraints",
    ),
    ({"sampler": {"name": "GridSampler"}}, "has no step, so it has no end of values"),
    ({"sampler": {"name": "GridSampler"}, "space": BRANCHES}, "strength is a choice; BruteForceSampler"),
    ({"sampler": {"name": "GridSampler"}, "space": PLAIN, "n_trials": 17}, "has only 16 different configurations"),
    (
        {"sampler": {"name": "GridSampler", "search_space": {"steer.lambda_min": [0.7, 2.0]}}, "space": PLAIN},
        "sampler.search_space: steer.lambda_min = 2.0: is outside",
    ),
    (
        {"sampler": {"name": "GridSampler", "search_space": {"steer.lambda_min": [0.7]}}, "space": PLAIN},
        "sampler.search_space: steer.side: is missing",
    ),
    ({"sampler": {"name": "BruteForceSampler"}}, "has no step, so it has no end of values"),
    (
        {"sampler": {"name": "BruteForceSampler"}, "space": PLAIN, "n_trials": 20},
        "has only 15 different configurations",
    ),
    ({"sampler": {"name": "PartialFixedSampler", "fixed_params": {"x": 1}}}, "base_sampler is required"),
    (
        {
            "sampler": {
                "name": "PartialFixedSampler",
                "fixed_params": {"x": 1},
                "base_sampler": {"name": "RandomSampler"},
            }
        },
        "sampler.fixed_params: x: is not in the space",
    ),
    (
        {
            "sampler": {"name": "GPSampler"},
            "space": {"way": {"choose": {"a": NUMBERS, "b": {"steer.eta": {"int": [1, 2]}}}}},
        },
        "all here is conditional",
    ),
    ({"sampler": {"name": "QMCSampler", "qmc_type": "sobel"}}, "Optuna refuses it"),
    ({"sampler": "TPESampler"}, "sampler = 'TPESampler'"),
]


@pytest.mark.parametrize(("changes", "wanted"), BAD, ids=[wanted for _, wanted in BAD])
def test_a_sampler_that_cannot_draw_the_space_is_refused(sweep_file: Make, changes: Any, wanted: str) -> None:
    given = {"space": NUMBERS, "enqueue": [{"steer.lambda_min": 0.7}] if "n_trials" in changes else []}
    with pytest.raises(ConfigError) as caught:
        load_sweep(sweep_file(**(given | changes)))
    assert any(wanted in one for one in caught.value.mistakes), caught.value.mistakes


@pytest.mark.parametrize(
    ("name", "package"), [("CmaEsSampler", "cmaes"), ("GPSampler", "torch"), ("QMCSampler", "scipy")]
)
def test_a_missing_package_is_named(sweep_file: Make, monkeypatch: pytest.MonkeyPatch, name: str, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # what Python itself takes for "cannot be imported"
    with pytest.raises(ConfigError, match=rf"needs the package {package}.*pip install {package}"):
        load_sweep(sweep_file(sampler={"name": name}, space=NUMBERS))

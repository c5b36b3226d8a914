"""Every key of a sweep file: what it becomes, what is refused, all mistakes at once, and what is written down."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from steer_openrlhf.errors import ConfigError
from steer_sweeps.executors.config import LocalConfig, RayConfig
from steer_sweeps.spec import RECIPE, load_sweep, recorded_sweep

Make = Callable[..., Any]
BAND = {"steer.band.0": {"float": [-0.1, 0.1]}, "steer.band.1": {"float": [-0.1, 0.1]}}
INFLUENCE = {"steer.estimator": "influence"}
TWO = [{"metric": "eval/score", "direction": "maximize"}, {"metric": "train/steer/entropy", "direction": "minimize"}]
FULL: dict[str, Any] = {
    "seeds": [0, 1, 2],
    "sampler": {"name": "TPESampler", "seed": 5, "multivariate": True},
    "pruner": {"name": "WilcoxonPruner", "p_threshold": 0.3},
    "constraints": [
        {"metric": "train/steer/entropy", "reduce": "min", "at_least": 0.3},
        {"metric": "gpu_hours", "at_most": 2},
    ],
    "space": BAND,
    "relations": ["steer.band.0 < steer.band.1"],
    "overrides": INFLUENCE,
    "enqueue": [{"steer.band.0": -0.02}],
    "finalists": {"n": 2, "seeds": [3, 4]},
    "slots": None,
    "executor": {"name": "local", "slots": 3},
    "budget": {"gpu_hours": 100, "hours": 48},
    "trial_timeout_hours": 1.5,
}


def mistakes_of(path: Path) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_sweep(path)
    return caught.value.mistakes


def test_a_sweep_with_every_key(sweep: Make) -> None:
    found = sweep(**FULL)
    assert (found.seeds, found.directions, found.slots) == ((0, 1, 2), ["maximize"], 3)
    assert found.executor == LocalConfig(slots=3)
    assert (found.budget.gpu_hours, found.budget.hours, found.trial_timeout_hours) == (100, 48, 1.5)
    assert [one.value([], {"wall_hours": 1, "gpu_hours": 3}) for one in found.constraints[1:]] == [1]
    assert (found.finalists.n, found.finalists.seeds) == (2, (3, 4))


@pytest.mark.parametrize("changes", [{}, FULL, {"objective": None, "objectives": TWO}], ids=["small", "full", "two"])
def test_what_is_recorded_is_the_same_sweep(sweep: Make, changes: dict[str, Any]) -> None:
    found = sweep(**changes)
    tree = yaml.safe_load(yaml.safe_dump(found.resolved()))
    again = recorded_sweep({key: value for key, value in tree.items() if key != RECIPE})
    assert again.model_dump() == found.model_dump()
    assert (again.typed_space, again.typed_relations) == (found.typed_space, found.typed_relations)
    assert again.all_objectives == found.all_objectives


# -- seeds -------------------------------------------------------------------------------------------------------------


def test_the_training_seed_of_a_run(sweep: Make) -> None:
    found = sweep(seeds=[3, 4])
    assert [found.experiment("x", {}, seed).seed for seed in found.seeds] == [3, 4]
    assert found.experiment("x", {}).seed == 0  # the recipe's
    assert found.experiment("x", {"seed": 9}, 3).seed == 9  # what a trial sets itself


def test_without_seeds_it_is_the_recipes(sweep: Make) -> None:
    assert sweep(overrides={"seed": 7}).seeds == (7,)
    assert sweep().seeds == (0,)


@pytest.mark.parametrize(
    "changes",
    [
        {"overrides": {"seed": 7}},
        {"space": {"seed": {"int": [0, 9]}}, "enqueue": []},
        {"baselines": [{"name": "a", "set": {"seed": 1}}]},
    ],
    ids=str,
)
def test_a_seed_in_two_places_is_refused(sweep_file: Make, changes: dict[str, Any]) -> None:
    load_sweep(sweep_file(**changes))
    assert any("seed: seeds has the training seeds" in one for one in mistakes_of(sweep_file(seeds=[1], **changes)))


# -- objectives, executor ----------------------------------------------------------------------------------------------


def test_several_objectives_have_directions_each(sweep: Make) -> None:
    found = sweep(objective=None, objectives=TWO)
    assert found.directions == ["maximize", "minimize"]
    assert found.objective.metric == "eval/score"
    assert sweep(objective={"metric": "eval/score", "direction": "minimize"}).directions == ["minimize"]


def test_slots_are_the_executors(sweep: Make) -> None:
    assert sweep(slots=3).executor == LocalConfig(slots=3)
    assert sweep(slots=None, executor={"slots": 4}).slots == 4
    ray = {"name": "ray", "address": "http://head:8265", "gpus_per_trial": 2}
    found = sweep(slots=2, executor=ray)
    assert found.executor == RayConfig(slots=2, gpus_per_trial=2, address="http://head:8265")
    assert sweep(slots=None).slots == 1


# -- what is refused ---------------------------------------------------------------------------------------------------

BAD: list[tuple[dict[str, Any], str]] = [
    ({"seeds": []}, "seeds = []"),
    ({"seeds": [1, 1]}, "seeds: [1, 1]: must be different whole numbers"),
    ({"seeds": [-1]}, "must be different whole numbers, at least 0"),
    ({"seeds": 3}, "seeds = 3"),
    ({"objectives": TWO, "objective": {"metric": "eval/other"}}, "objective and objectives are both given"),
    ({"objectives": [{"metric": "eval/a"}], "objective": None}, "objectives.0: direction is required"),
    ({"objectives": [TWO[0], TWO[0]], "objective": None}, "objectives: eval/score is given twice"),
    ({"objectives": TWO[::-1], "objective": None}, "must be a metric of the validation split"),
    ({"objectives": [{"metric": "x"}], "objective": None}, "objectives.0.metric = 'x'"),
    (
        {"direction": "minimize", "objective": {"metric": "eval/a", "direction": "maximize"}},
        "objective.direction = maximize",
    ),
    ({"constraints": [{"metric": "wall_hours"}]}, "constraints.0: give exactly one of at_least, at_most"),
    ({"constraints": [{"metric": "gpu_hours", "at_most": 1, "atmost": 2}]}, "did you mean 'at_most'?"),
    (
        {"relations": ["steer.lambda_min < steer.k"]},
        "relations.0 = 'steer.lambda_min < steer.k': steer.k is not in the space",
    ),
    (
        {
            "space": BAND,
            "overrides": INFLUENCE,
            "relations": ["steer.band.0 < steer.band.1"],
            "enqueue": [{"steer.band.0": 0.05, "steer.band.1": -0.05}],
        },
        "enqueue.0: with {'steer.band.0': 0.05, 'steer.band.1': -0.05} no draw holds",
    ),
    (
        {"space": BAND, "enqueue": [], "overrides": INFLUENCE},
        "LOW must be smaller than HIGH",
    ),  # nothing keeps the ends in order
    ({"budget": {"gpu_hours": 0}}, "budget.gpu_hours = 0"),
    ({"budget": {"gpu_hour": 1}}, "budget.gpu_hour: unknown key; did you mean 'gpu_hours'?"),
    ({"trial_timeout_hours": -1}, "trial_timeout_hours = -1"),
    ({"warm_start": {"study": "gone"}}, "is no study directory"),
    ({"finalists": {"n": 0, "seeds": [1]}}, "finalists.n = 0"),
    ({"finalists": {"n": 1}}, "finalists.seeds: is required"),
    ({"finalists": {"n": 1, "seeds": [1, 1]}}, "must be different whole numbers"),
    ({"executor": {"name": "slrum"}}, "executor.name = 'slrum': unknown; known: 'local', 'ray', 'slurm'"),
    ({"executor": {"name": "local", "slots": 3}}, "slots = 2, but executor.slots = 3"),
    ({"executor": {"name": "local", "partition": "a"}}, "executor.partition: unknown key"),
    ({"executor": {"gpus_per_trial": 1}}, "the recipe's ray.num_gpus = 2: a trial would wait for GPUs"),
    ({"storage": "study.db"}, "storage: must be a database URL"),
    ({"storage": "postgresql://me:hush@host/db"}, "storage: holds a password"),
    ({"storage": "postgresql://me@host/db?password=hush"}, "storage: holds a password"),
    (
        {"storage": "postgresql://me:${STEER_TEST_UNSET}@host/db"},
        "the environment variable STEER_TEST_UNSET is not set",
    ),
]


@pytest.mark.parametrize(("changes", "wanted"), BAD, ids=[wanted for _, wanted in BAD])
def test_a_bad_key_is_refused(sweep_file: Make, changes: dict[str, Any], wanted: str) -> None:
    found = mistakes_of(sweep_file(**changes))
    assert any(wanted in one for one in found), found
    assert not any("hush" in one for one in found)


def test_mistakes_of_every_part_come_at_once(sweep_file: Make) -> None:
    """Types, names, Optuna's arguments, the space, relations, the recipe: one message, and nothing twice."""
    bad = {
        "n_trails": 3,
        "n_trials": 0,
        "seeds": [1, 1],
        "sampler": {"name": "Best"},
        "pruner": {"name": "MedianPruner", "n_startup": 1},
        "constraints": [{"metric": "x", "at_most": 1}],
        "space": {"steer.lambda_min": {"float": [0.5, 0.9]}, "steer.lambda_max": {"flaot": [1, 2]}},
        "enqueue": [],
        "budget": {"hours": -1},
        "baselines": [{"name": "a", "set": {"steer.lambda_mim": 1}}],
        "overrides": {"ray.num_cpus": 0},
    }
    found = mistakes_of(sweep_file(**bad))
    starts = [
        "n_trails:",
        "n_trials =",
        "seeds",
        "sampler.name",
        "pruner.n_startup",
        "constraints.0",
        "space.steer.lambda_max",
    ]
    starts += ["budget.hours", "ray.num_cpus"]
    assert [sum(one.startswith(start) for one in found) for start in starts] == [1] * len(starts), found
    assert len(found) == len(starts), found


def test_a_missing_key_hides_no_other_mistake(sweep_file: Make) -> None:
    found = mistakes_of(sweep_file(objective=None, recipe=None, sampler={"name": "Best"}))
    assert [one.split(" ")[0] for one in found] == ["recipe:", "objective:", "sampler.name"]


def test_a_password_in_the_environment_is_never_written(sweep: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEER_TEST_PASSWORD", "hush")
    found = sweep(storage="postgresql://me:${STEER_TEST_PASSWORD}@host/db")
    assert "hush" not in yaml.safe_dump(found.resolved())
    assert "${STEER_TEST_PASSWORD}" in yaml.safe_dump(found.resolved())


# -- the band, as a trial ----------------------------------------------------------------------------------------------


def test_a_band_reaches_the_training_as_a_list(sweep: Make) -> None:
    from optuna.trial import FixedTrial
    from steer_sweeps.space import sample

    found = sweep(space=BAND, overrides=INFLUENCE, relations=["steer.band.0 < steer.band.1"], enqueue=[])
    values = sample(FixedTrial({"steer.band.0": -0.03, "steer.band.1": 0.01}), found.typed_space)
    assert found.experiment("x", values).steer["band"] == [-0.03, 0.01]

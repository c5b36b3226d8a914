"""Trials of another study as knowledge for this one: which are taken, as what, and that the other is only read."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState, create_trial
from steer_experiments.run_dir import write_yaml
from steer_openrlhf.errors import ConfigError
from steer_sweeps.space import distributions
from steer_sweeps.spec import Sweep, load_sweep, make_sampler, warm_trials

Make = Callable[..., Any]
WIDE = {"steer.lambda_min": {"float": [0.1, 1.0]}}
ENTROPY = {"metric": "train/steer/entropy", "at_least": 0.3}


@pytest.fixture
def other(tmp_path: Path, sweep: Make) -> Callable[..., Path]:
    """Another study: lambda_min and its objective for each trial (None: failed), and constraint values."""

    def make(results: Sequence[tuple[float, float | None]], limits: Sequence[float] = (), **changes: Any) -> Path:
        path = tmp_path / "other"
        path.mkdir()
        found: Sweep = sweep(**({"name": "other", "space": WIDE, "enqueue": []} | changes))
        write_yaml(path / "study.yaml", found.resolved())
        storage = JournalStorage(JournalFileBackend(str(path / "journal.log")))
        study = optuna.create_study(
            study_name="other", directions=found.directions, storage=found.storage or storage, load_if_exists=True
        )
        for position, (value, result) in enumerate(results):
            study.add_trial(
                create_trial(
                    state=TrialState.FAIL if result is None else TrialState.COMPLETE,
                    values=None if result is None else [result] * len(found.directions),
                    params={"steer.lambda_min": value},
                    distributions=distributions(found.typed_space),
                    user_attrs={"config": position} | ({"constraints": [limits[position]]} if limits else {}),
                    intermediate_values={4: 0.2},
                )
            )
        return path

    return make


RESULTS = [(0.6, 0.3), (0.2, 0.9), (0.7, None), (0.8, 0.5), (0.9, 0.4)]  # 0.2 is outside, 0.7 failed


def start(sweep: Make, path: Path, **changes: Any) -> Sweep:
    top = changes.pop("top", None)
    found: Sweep = sweep(warm_start={"study": str(path), "top": top}, **changes)
    return found


def test_completed_trials_inside_the_space_are_taken(sweep: Make, other: Make) -> None:
    path = other(RESULTS)
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    found = start(sweep, path)
    trials = warm_trials(found)
    assert [one.params["steer.lambda_min"] for one in trials] == [0.6, 0.8, 0.9]
    assert [one.value for one in trials] == [0.3, 0.5, 0.4]
    assert [one.user_attrs for one in trials] == [{"source": f"{path}#{number}"} for number in (0, 3, 4)]
    assert all(one.distributions == distributions(found.typed_space) for one in trials)
    assert all(one.intermediate_values == {4: 0.2} for one in trials)
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before


def test_the_best_of_them(sweep: Make, other: Make) -> None:
    path = other(RESULTS)
    assert [one.value for one in warm_trials(start(sweep, path, top=2))] == [0.5, 0.4]
    assert len(warm_trials(start(sweep, path, top=10))) == 3


def test_the_best_keep_to_the_constraints(sweep: Make, other: Make) -> None:
    path = other([(0.6, 0.3), (0.7, 0.9), (0.8, 0.4)], limits=[0.0, 0.5, -1.0], constraints=[ENTROPY])
    found = warm_trials(start(sweep, path, top=2, constraints=[ENTROPY]))
    assert [one.value for one in found] == [0.3, 0.4]
    assert [one.constraints for one in found] == [{"0": 0.0}, {"0": -1.0}]


def test_steps_that_mean_something_else_are_left_behind(sweep: Make, other: Make) -> None:
    path = other(RESULTS)
    assert all(not one.intermediate_values for one in warm_trials(start(sweep, path, seeds=[0, 1])))


def test_relations_hold_for_them_too(sweep: Make, other: Make) -> None:
    path = other(RESULTS)
    found = start(sweep, path, relations=["steer.lambda_min < 0.85"])
    assert [one.params["steer.lambda_min"] for one in warm_trials(found)] == [0.6, 0.8]


def test_the_sampler_learns_from_them(sweep: Make, other: Make) -> None:
    """Thirty results that are better the higher: with its start-up trials thus done TPE draws high from its first."""
    path = other([(0.5 + place / 67, place / 67) for place in range(30)])
    sampler = {"name": "TPESampler", "n_startup_trials": 10}

    def first_draws(found: Sweep) -> list[float]:
        study = optuna.create_study(direction="maximize")
        study.add_trials(warm_trials(found))
        drawn = []
        for index in range(10):
            study.sampler = make_sampler(found, index)
            drawn.append(study.ask().suggest_float("steer.lambda_min", 0.5, 0.95))
        return drawn

    warm, cold = start(sweep, path, sampler=sampler, enqueue=[]), sweep(sampler=sampler, enqueue=[])
    assert sum(first_draws(warm)) / 10 > 0.82 > sum(first_draws(cold)) / 10


def test_a_study_in_a_database(sweep: Make, other: Make, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'study.db'}"
    path = other(RESULTS, storage=url)
    assert len(warm_trials(start(sweep, path))) == 3
    assert len(RDBStorage(url).get_all_studies()) == 1


def test_a_database_that_is_not_there_is_a_mistake(sweep_file: Make, other: Make, tmp_path: Path) -> None:
    path = other(RESULTS, storage=f"sqlite:///{tmp_path / 'study.db'}")
    (tmp_path / "study.db").unlink()
    with pytest.raises(ConfigError, match=r"study\.db' cannot be read"):
        load_sweep(sweep_file(warm_start={"study": str(path)}))


@pytest.mark.parametrize(
    ("theirs", "ours", "wanted"),
    [
        ({"objective": {"metric": "eval/other"}}, {}, "its objective is"),
        ({"direction": "minimize"}, {}, "its objective is"),
        ({}, {"constraints": [ENTROPY]}, "its constraints is"),
        ({}, {"space": {"steer.lambda_min": {"float": [0.3, 0.5]}}, "enqueue": []}, "has no completed trial inside"),
        ({}, {"space": {"openrlhf.actor.adam.lr": {"float": [0, 1]}}, "enqueue": []}, "has no completed trial inside"),
    ],
    ids=str,
)
def test_results_of_another_kind_are_refused(
    sweep_file: Make, other: Make, theirs: dict[str, Any], ours: dict[str, Any], wanted: str
) -> None:
    path = other(RESULTS, **theirs)
    with pytest.raises(ConfigError, match=wanted):
        load_sweep(sweep_file(warm_start={"study": str(path)}, **ours))


def test_a_directory_without_a_study_is_refused(sweep_file: Make, other: Make, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no study directory"):
        load_sweep(sweep_file(warm_start={"study": "elsewhere"}))
    path = other(RESULTS)
    (path / "journal.log").unlink()
    with pytest.raises(ConfigError, match=r"has no journal\.log"):
        load_sweep(sweep_file(warm_start={"study": str(path)}))
    assert not (path / "journal.log").exists()

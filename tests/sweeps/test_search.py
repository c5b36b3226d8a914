"""What a study does with its results: pruning as Optuna has it, training seeds, several objectives, constraints,
finalists, knowledge of another study, budgets."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from steer_experiments.run_dir import RunDir
from steer_sweeps.controller import Controller
from steer_sweeps.spec import make_pruner
from steer_sweeps.study import best, read_study
from study_helpers import behave, lines_of, outcomes
from trial_program import CURVE, quality

Make = Callable[..., Any]
FIELD = "steer.lambda_min"
NOTHING: list[Any] = []


def run(control: Make, sweep: Make, home: Path, **changes: Any) -> Controller:
    controller: Controller = control(home / "study", sweep(**{"baselines": NOTHING, "slots": 1} | changes))
    assert controller.run() is True
    return controller


def points(*values: float) -> dict[str, Any]:
    return {"enqueue": [{FIELD: value} for value in values], "n_trials": len(values)}


@pytest.mark.parametrize(
    "pruner",
    [
        {"name": "MedianPruner", "n_startup_trials": 1, "n_warmup_steps": 2},
        {"name": "SuccessiveHalvingPruner", "min_resource": 1, "reduction_factor": 2},
        {"name": "PatientPruner", "wrapped_pruner": {"name": "MedianPruner", "n_startup_trials": 1}, "patience": 1},
        {"name": "HyperbandPruner", "min_resource": 1, "max_resource": 5, "reduction_factor": 2},
        {"name": "ThresholdPruner", "lower": 0.575, "n_warmup_steps": 2},
    ],
    ids=lambda one: one["name"],
)
def test_trials_are_pruned_exactly_as_optuna_would(control: Make, sweep: Make, tmp_path: Path, pruner: Any) -> None:
    """The same reports, handed to a plain study in memory one by one."""
    behave(tmp_path, steer="curve")
    values = (0.8, 0.9, 0.5, 0.7)
    controller = run(control, sweep, tmp_path, pruner=pruner, **points(*values))
    plain = optuna.create_study(study_name="small", direction="maximize", pruner=make_pruner(controller.study.sweep))
    for value in values:
        trial = plain.ask({FIELD: optuna.distributions.FloatDistribution(value, value)})
        state, told = TrialState.COMPLETE, None
        for step, added in enumerate(CURVE, start=1):
            told = quality(value, 0) + added
            trial.report(told, step)
            if trial.should_prune():
                state, told = TrialState.PRUNED, None
                break
        plain.tell(trial, told, state=state)
    found = controller.study.searched.trials()
    assert [one.state for one in found] == [one.state for one in plain.trials]
    assert TrialState.PRUNED in [one.state for one in found]
    for ours, theirs in zip(found, plain.trials, strict=True):
        assert ours.intermediate_values == pytest.approx(theirs.intermediate_values)
        assert ours.value == pytest.approx(theirs.value)
    pruned = next(one for one in found if one.state == TrialState.PRUNED)
    assert pruned.user_attrs["outcome"] == "pruned"
    assert pruned.user_attrs["reason"].startswith("pruned at step")
    assert run(control, sweep, tmp_path, pruner=pruner, **points(*values)).lines == []  # type: ignore[attr-defined]


def test_a_pruned_run_is_stopped(control: Make, sweep: Make, tmp_path: Path) -> None:
    behave(tmp_path, **{"0": "curve", "1": "slow-curve"})
    pruner = {"name": "ThresholdPruner", "lower": 0.57}
    controller = run(control, sweep, tmp_path, pruner=pruner, **points(0.9, 0.5))
    assert outcomes(controller.study) == {"0": "complete", "1": "pruned"}
    status = RunDir(tmp_path / "study" / "trials" / "1").read_status()
    assert status
    assert status.state == "stopped"
    assert lines_of(tmp_path / "ends.log") == ["0"]


def test_the_value_is_the_mean_over_the_training_seeds(control: Make, sweep: Make, tmp_path: Path) -> None:
    controller = run(control, sweep, tmp_path, seeds=[1, 5, 3], slots=3, **points(0.7, 0.6))
    for trial, value in zip(controller.study.searched.trials(), (0.7, 0.6), strict=True):
        wanted = [quality(value, seed) for seed in (1, 5, 3)]
        assert trial.value == pytest.approx(sum(wanted) / 3)
        assert trial.intermediate_values == pytest.approx(dict(enumerate(wanted)))
        assert [trial.user_attrs[f"value/{seed}"] for seed in (1, 5, 3)] == [[pytest.approx(one)] for one in wanted]
    assert sorted(lines_of(tmp_path / "starts.log")) == sorted(f"{n}/seed-{s}" for n in (0, 1) for s in (1, 5, 3))
    runs = controller.study.run_dirs(controller.study.searched, controller.study.searched.trials()[0])
    assert [one.path.name for one in runs] == ["seed-1", "seed-5", "seed-3"]
    assert len(controller.study.completed_runs()) == 6


def test_a_new_try_takes_over_the_seeds_that_ended_well(control: Make, sweep: Make, tmp_path: Path) -> None:
    behave(tmp_path, **{"0/seed-1": "crash"})
    controller = run(control, sweep, tmp_path, seeds=[0, 2, 1], slots=1, **points(0.7))
    failed, again = controller.study.searched.trials()
    assert (failed.state, again.state) == (TrialState.FAIL, TrialState.COMPLETE)
    assert again.value == pytest.approx(sum(quality(0.7, seed) for seed in range(3)) / 3)
    assert sorted(lines_of(tmp_path / "ends.log")) == ["0/seed-0", "0/seed-2", "1/seed-1"]  # nothing ran twice
    names = [str(one.path.relative_to(tmp_path / "study/trials")) for one in controller.study.completed_runs()]
    assert names == ["0/seed-0", "0/seed-2", "1/seed-1"]


def test_hopeless_trials_are_stopped_between_seeds(control: Make, sweep: Make, tmp_path: Path) -> None:
    seeds, pruner = list(range(6)), {"name": "WilcoxonPruner", "p_threshold": 0.1}
    controller = run(control, sweep, tmp_path, seeds=seeds, pruner=pruner, **points(0.9, 0.6))
    good, hopeless = controller.study.searched.trials()
    assert (good.state, hopeless.state) == (TrialState.COMPLETE, TrialState.PRUNED)
    assert len(good.intermediate_values) == 6
    n = len(hopeless.intermediate_values)
    assert 2 <= n < 6
    assert sum(one.startswith("1/") for one in lines_of(tmp_path / "starts.log")) == n


def test_several_objectives_and_constraints(control: Make, sweep: Make, tmp_path: Path) -> None:
    objectives = [
        {"metric": "eval/score", "reduce": "last", "direction": "maximize"},
        {"metric": "eval/second", "reduce": "last", "direction": "maximize"},
    ]
    constraints = [
        {"metric": "eval/score", "reduce": "last", "at_most": 0.575},
        {"metric": "wall_hours", "at_most": 1},
    ]
    several = {"objective": None, "objectives": objectives, "sampler": {"name": "NSGAIISampler"}}
    controller = run(control, sweep, tmp_path, constraints=constraints, **several, **points(0.9, 0.6, 0.5))
    for trial, value in zip(controller.study.searched.trials(), (0.9, 0.6, 0.5), strict=True):
        score = quality(value, 0)
        assert trial.values == pytest.approx([score, -score])
        broken, hours = trial.user_attrs["constraints"]
        assert broken == pytest.approx(score - 0.575)
        assert -1 < hours < 0
        assert list(trial.constraints.values()) == pytest.approx([broken, hours])  # what Optuna's samplers see
    found = best(controller.study)
    assert found is not None
    assert found.index == 1  # 0.9 is better, but breaks the bound


def test_finalists_run_again_with_more_seeds(control: Make, sweep: Make, tmp_path: Path) -> None:
    changes = {"finalists": {"n": 2, "seeds": [4, 5]}, "slots": 2}
    controller = run(control, sweep, tmp_path, **changes, **points(0.6, 0.9, 0.8, 0.7))
    assert controller.study.finalists is not None
    found = controller.study.finalists.trials()
    assert [one.params for one in found] == [{FIELD: 0.9}, {FIELD: 0.8}]
    assert [one.user_attrs["config"] for one in found] == [1, 2]
    for trial in found:
        wanted = sum(quality(trial.params[FIELD], seed) for seed in (4, 5)) / 2
        assert trial.value == pytest.approx(wanted)
    assert {"0~final/seed-4", "1~final/seed-5"} <= set(lines_of(tmp_path / "ends.log"))
    study = read_study(tmp_path / "study")
    assert [one.name for one in study.configurations()][-2:] == ["final-1", "final-2"]
    assert len(study.completed_runs()) == 8
    assert best(study).index == 1  # type: ignore[union-attr]  # the search's own


def test_a_warm_start_adds_results_once(control: Make, sweep: Make, tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    run(control, sweep, tmp_path / "old", **points(0.6, 0.9))
    changes = {"warm_start": {"study": str(tmp_path / "old" / "study")}}
    for n in (1, 2):
        controller = run(control, sweep, tmp_path, **changes, enqueue=[], n_trials=n)
        found = controller.study.searched.trials()
        assert [one.params[FIELD] for one in found][:2] == [0.6, 0.9]
        assert len(found) == 2 + n
    assert sorted(lines_of(tmp_path / "starts.log")) == ["2", "3"]
    assert len(controller.study.configurations()) == 2
    assert best(controller.study).complete.number >= 2  # type: ignore[union-attr]  # not another study's


def test_beyond_its_budget_a_study_starts_nothing(control: Make, sweep: Make, tmp_path: Path) -> None:
    """A GPU-hour is counted for every GPU of a trial, also one that failed."""
    behave(tmp_path, **{"0": "crash"})
    place = {"name": "local", "slots": 1, "gpus_per_trial": 2, "devices": ["0", "1"]}
    limits = {"executor": place, "slots": None, "retries": 0}
    controller = run(control, sweep, tmp_path, budget={"gpu_hours": 1e-4}, **limits, **points(0.5, 0.6, 0.7, 0.8))
    trials = controller.study.searched.trials()
    assert 1 <= len(trials) < 4
    hours = [one.user_attrs["gpu_hours"] for one in trials]
    assert all(one > 0 for one in hours)
    assert sum(hours) >= 1e-4
    assert controller.study.gpu_hours()["training"] == hours[0]
    assert any("the budget is spent" in line for line in controller.lines)  # type: ignore[attr-defined]
    controller = run(control, sweep, tmp_path, budget={"hours": 1e-7}, **limits, **points(0.5, 0.6, 0.7, 0.8))
    assert len(controller.study.searched.trials()) == len(trials)
    controller = run(control, sweep, tmp_path, **limits, **points(0.5, 0.6, 0.7, 0.8))
    assert len(controller.study.searched.trials()) == 4


def test_a_trial_that_takes_too_long_is_ended(control: Make, sweep: Make, tmp_path: Path) -> None:
    behave(tmp_path, **{"0": "hang"})
    controller = run(control, sweep, tmp_path, trial_timeout_hours=1.5 / 3600, retries=0, **points(0.5))
    (trial,) = controller.study.searched.trials()
    assert trial.user_attrs["outcome"] == "timeout"
    assert trial.user_attrs["reason"].startswith("ran longer than trial_timeout_hours")

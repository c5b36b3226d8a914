"""Every pruner of Optuna by its name: what it gets, and where it has nothing to judge."""

import sys
from collections.abc import Callable
from typing import Any

import optuna
import pytest
from steer_openrlhf.errors import ConfigError
from steer_sweeps.named import known
from steer_sweeps.spec import load_sweep, make_pruner

Make = Callable[..., Any]
GOOD: list[dict[str, Any]] = [
    {"name": "NopPruner"},
    {"name": "MedianPruner", "n_startup_trials": 2, "n_warmup_steps": 4},
    {"name": "PercentilePruner", "percentile": 25.0},
    {"name": "SuccessiveHalvingPruner", "min_resource": 1, "reduction_factor": 3},
    {"name": "HyperbandPruner", "max_resource": 24},
    {"name": "ThresholdPruner", "lower": 0.1},
    {"name": "PatientPruner", "wrapped_pruner": {"name": "MedianPruner"}, "patience": 2},
    {"name": "PatientPruner", "wrapped_pruner": None, "patience": 2},
    {"name": "WilcoxonPruner", "p_threshold": 0.3},
]
SEVERAL = [{"metric": "eval/score", "direction": "maximize"}, {"metric": "eval/other", "direction": "minimize"}]


@pytest.mark.parametrize("pruner", GOOD, ids=str)
def test_every_pruner_is_optunas_own(sweep: Make, pruner: dict[str, Any]) -> None:
    seeds = [0, 1, 2] if pruner["name"] == "WilcoxonPruner" else [0]
    found = make_pruner(sweep(pruner=pruner, seeds=seeds))
    assert type(found) is getattr(optuna.pruners, pruner["name"])


def test_every_pruner_of_optuna_has_a_case() -> None:
    assert {one["name"] for one in GOOD} == set(known("pruner"))


def test_arguments_reach_the_wrapped_pruner(sweep: Make) -> None:
    """Two trials from 0.5 down, then one from 0.1: it is below the median at once, and stopped when it has fallen for
    longer than one step."""
    wrapped = {"name": "MedianPruner", "n_startup_trials": 2}
    pruner = make_pruner(sweep(pruner={"name": "PatientPruner", "wrapped_pruner": wrapped, "patience": 1}))
    study = optuna.create_study(direction="maximize", pruner=pruner)
    for value, wanted in ((0.5, [False] * 4), (0.5, [False] * 4), (0.1, [False, False, True, True])):
        trial, pruned = study.ask(), []
        for step in range(4):
            trial.report(value - step / 100, step)
            pruned.append(trial.should_prune())
        study.tell(trial, value)
        assert pruned == wanted


def test_wilcoxon_stops_a_hopeless_trial_before_its_last_seed(sweep: Make) -> None:
    """Worse on all of the first four seeds: p = 1/16 < 0.1. After three it is 1/8, too much."""
    pruner = make_pruner(sweep(pruner={"name": "WilcoxonPruner", "p_threshold": 0.1}, seeds=[0, 1, 2, 3, 4]))
    study = optuna.create_study(direction="maximize", pruner=pruner)
    best = study.ask()
    for place, value in enumerate([0.5, 0.6, 0.4, 0.55, 0.5]):
        best.report(value, place)
    study.tell(best, 0.51)
    hopeless, pruned = study.ask(), []
    for place, value in enumerate([0.3, 0.35, 0.3, 0.28]):
        hopeless.report(value, place)
        pruned.append(hopeless.should_prune())
    assert pruned == [False, False, False, True]


BAD: list[tuple[dict[str, Any], str]] = [
    (
        {"pruner": {"name": "MedianPruner", "n_startup": 3}},
        "pruner.n_startup: unknown; did you mean 'n_startup_trials'?",
    ),
    ({"pruner": {"name": "ASHA"}}, "pruner.name = 'ASHA': unknown; known: Hyperband"),
    ({"pruner": {"name": "PercentilePruner", "percentile": 200}}, "Optuna refuses it"),
    ({"pruner": {"name": "ThresholdPruner"}}, "Optuna refuses it"),
    (
        {"pruner": {"name": "PatientPruner", "patience": 1, "wrapped_pruner": {"name": "Median"}}},
        "pruner.wrapped_pruner.name",
    ),
    ({"pruner": {"name": "MedianPruner"}, "seeds": [0, 1]}, "a trial has 2 seeds, whose order means nothing"),
    ({"pruner": {"name": "WilcoxonPruner"}}, "compares seed by seed, but seeds = [0]"),
    (
        {"pruner": {"name": "WilcoxonPruner"}, "seeds": [0, 1, 2]},
        "the smallest p of 2 pairs is 0.25, p_threshold is 0.1): give 5",
    ),
    (
        {
            "pruner": {"name": "PatientPruner", "patience": 1, "wrapped_pruner": {"name": "WilcoxonPruner"}},
            "seeds": [0, 1, 2, 3, 4],
        },
        "whose order means nothing",
    ),
    (
        {"pruner": {"name": "MedianPruner"}, "objective": None, "objectives": SEVERAL},
        "with several objectives nothing says",
    ),
    ({"pruner": []}, "pruner = []"),
]


@pytest.mark.parametrize(("changes", "wanted"), BAD, ids=[wanted for _, wanted in BAD])
def test_a_pruner_that_cannot_judge_is_refused(sweep_file: Make, changes: dict[str, Any], wanted: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_sweep(sweep_file(**changes))
    assert any(wanted in one for one in caught.value.mistakes), caught.value.mistakes


def test_the_seeds_wilcoxon_asks_for_are_enough(sweep_file: Make) -> None:
    for p, n in ((0.1, 5), (0.25, 4), (0.3, 3), (0.05, 6)):
        with pytest.raises(ConfigError, match=f"give {n} seeds"):
            load_sweep(sweep_file(pruner={"name": "WilcoxonPruner", "p_threshold": p}, seeds=list(range(n - 1))))
        load_sweep(sweep_file(pruner={"name": "WilcoxonPruner", "p_threshold": p}, seeds=list(range(n))))


def test_a_missing_package_is_named(sweep_file: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(ConfigError, match="needs the package scipy"):
        load_sweep(sweep_file(pruner={"name": "WilcoxonPruner", "p_threshold": 0.3}, seeds=[0, 1, 2]))

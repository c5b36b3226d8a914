"""Sweep files, the objective, and the command."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from steer_openrlhf.errors import ConfigError
from steer_sweeps.spec import Objective, load_sweep

TINY = Path(__file__).parents[2] / "experiments" / "recipes" / "tiny"
METRIC = "eval/score"
Make = Callable[..., Any]


@pytest.mark.parametrize("path", [TINY / "sweep.yaml", TINY / "smoke-sweep.yaml"], ids=lambda path: path.stem)
def test_every_sweep_in_the_project_is_well(path: Path) -> None:
    sweep = load_sweep(path)
    assert "ppo" in [one.name for one in sweep.baselines]
    assert sweep.objective.metric == "eval/eval_tiny_validation_pass1"


def test_the_tiny_study_is_large_enough() -> None:
    sweep = load_sweep(TINY / "sweep.yaml")
    assert (sweep.n_trials, [one.name for one in sweep.baselines]) == (6, ["ppo", "uniform"])
    arms = [sweep.experiment(one.name, one.set) for one in sweep.baselines]
    assert [(one.name, one.loss) for one in arms] == [("tiny-ppo", "ppo"), ("tiny-uniform", "uniform")]
    assert arms[0].steer == {}


# -- the objective -----------------------------------------------------------------------------------------------------


def metrics(*values: float | None) -> list[dict[str, Any]]:
    return [{"step": step, METRIC: value} for step, value in enumerate(values)] + [{"step": 9, "train/x": 1.0}]


@pytest.mark.parametrize(("reduce", "value"), [("last", 0.5), ("max", 0.9), ("mean_last_2", 0.7)])
def test_how_values_become_one(reduce: Any, value: float) -> None:
    assert Objective(metric=METRIC, reduce=reduce).value(metrics(0.1, 0.9, 0.5)) == pytest.approx(value)


@given(reduce=st.sampled_from(["last", "max", "mean_last_2"]), known=st.lists(st.floats(0, 1), max_size=4))
def test_what_is_no_number_is_never_one(reduce: Any, known: list[float]) -> None:
    with pytest.raises(ValueError, match=r"no number|have no"):
        Objective(metric=METRIC, reduce=reduce).value(metrics(*known, None))
    with pytest.raises(ValueError, match="have no"):
        Objective(metric="eval/other", reduce=reduce).value(metrics(*known))


def test_only_validation_metrics_can_be_optimised(sweep_file: Make) -> None:
    with pytest.raises(ConfigError, match=r"objective\.metric"):
        load_sweep(sweep_file(objective={"metric": "train/rollout/reward_mean"}))


# -- files -------------------------------------------------------------------------------------------------------------

SIDE = {"steer.side": {"categorical": ["both", "left"]}}


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"n_trails": 3}, "n_trails: unknown key; did you mean 'n_trials'?"),
        ({"n_trials": 0}, "n_trials = 0"),
        ({"recipe": "gone.yaml"}, "gone.yaml: cannot be read"),
        ({"space": {"steer.lambda_min": {"float": [0.5, 1.5]}}}, "space: steer.lambda_min = 1.5: input should be less"),
        ({"space": SIDE, "enqueue": []}, "space: steer.side = 'left': allowed: both, falling, rising"),
        ({"space": {"steer.k": {"float": [1, 2]}}, "enqueue": []}, "are both given"),
        ({"space": {"steer.lambda_mni": {"float": [0.5, 0.9]}}, "enqueue": []}, "did you mean 'steer.lambda_min'?"),
        ({"space": {"ray.num_cpus": {"int": [1, 2]}}, "enqueue": []}, "ray.num_cpus: becomes no flag of the training"),
        ({"enqueue": [{"steer.lambda_min": 0.2}]}, "enqueue.0: steer.lambda_min = 0.2: is outside"),
        ({"enqueue": [{}] * 4}, "enqueue: 4 trials, but n_trials = 3"),
        ({"baselines": [{"name": "a"}, {"name": "a"}]}, "the name a is used twice"),
        ({"baselines": [{"name": "a", "set": {"steer.k": 1}}]}, "baselines.a: steer: k = 1 and lambda_min = 0.7"),
        ({"baselines": [{"name": "7"}]}, "baselines.0.name = '7'"),
        ({"sampler": {"name": "TPESampeler"}}, "did you mean 'TPESampler'?"),
        ({"sampler": {"name": "TPESampler", "n_startup": 3}}, "did you mean 'n_startup_trials'?"),
        ({"sampler": {"name": "TPESampler", "seed": -1}}, "sampler.seed = -1"),
        ({"overrides": {"steer.lambda_min": 2}}, "steer.lambda_min = 2: input should be less"),
        ({"overrides": {"seed.x": 2}}, "overrides: seed.x: 'seed' is 0"),
    ],
)
def test_a_bad_sweep_is_refused(sweep_file: Make, changes: dict[str, Any], wanted: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_sweep(sweep_file(**changes))
    assert any(wanted in one for one in caught.value.mistakes), caught.value.mistakes


def test_mistakes_of_all_parts_come_at_once(sweep_file: Make) -> None:
    bad = {
        "enqueue": [{"steer.lambda_min": 2}],
        "sampler": {"name": "Best"},
        "baselines": [{"name": "a", "set": {"x": 1}}],
    }
    with pytest.raises(ConfigError) as caught:
        load_sweep(sweep_file(**bad))
    assert [one.split(":")[0].split(" ")[0] for one in caught.value.mistakes] == [
        "sampler.name",
        "enqueue.0",
        "baselines.a",
    ]


def test_overrides_reach_every_run(sweep: Make) -> None:
    found = sweep(overrides={"openrlhf.eval.steps": 3, "ray": {"num_cpus": 1}})
    experiment = found.experiment("x", {"steer.lambda_min": 0.6})
    assert (experiment.openrlhf["eval"]["steps"], experiment.ray.num_cpus, experiment.ray.num_gpus) == (3, 1, 2)
    assert (experiment.name, experiment.steer["lambda_min"]) == ("small-x", 0.6)


# -- the command -------------------------------------------------------------------------------------------------------


def steer(*words: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "steer_sweeps", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_a_dry_run_changes_nothing(sweep_file: Make, tmp_path: Path) -> None:
    done = steer("sweep", "run", str(sweep_file()), "--study-dir", str(tmp_path / "study"), "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "sampler: {name: TPESampler}" in done.stdout
    assert "baseline ppo: openrlhf.actor.policy_loss_type=ppo, steer=null" in done.stdout
    assert not (tmp_path / "study").exists()


def test_a_bad_sweep_is_refused_by_the_command_before_anything_exists(sweep_file: Make, tmp_path: Path) -> None:
    done = steer("sweep", "run", str(sweep_file(slots=0, retries=-1)), "--study-dir", str(tmp_path / "study"))
    assert done.returncode == 2
    assert "2 mistakes" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "study").exists()


def test_status_of_no_study_is_a_message(tmp_path: Path) -> None:
    done = steer("sweep", "status", str(tmp_path))
    assert (done.returncode, "is no study directory" in done.stderr) == (2, True)

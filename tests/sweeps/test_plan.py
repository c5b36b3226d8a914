"""The plan of ``--dry-run``: its trials are those the study runs, its commands are what the trials are."""

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from steer_experiments.config import load_recipe
from steer_sweeps.plan import command, first_trials, plan_lines
from steer_sweeps.space import values_of
from steer_sweeps.spec import Sweep

Make = Callable[..., Any]
BAND = {
    "steer.band.0": {"float": [-0.1, 0.1]},
    "steer.band.1": {"float": [-0.1, 0.1]},
    "openrlhf.actor.lr_scheduler": {"categorical": ["constant", "cosine"]},
}
RELATION = ["steer.band.0 < steer.band.1"]
SIDES = [{"name": "odd", "set": {"steer.estimator": "influence", "env": {"A_B": "x y 'z' $HOME", "ON": "true"}}}]


def test_the_trials_of_the_plan_are_those_of_the_study(sweep: Make, control: Make, tmp_path: Path) -> None:
    found: Sweep = sweep(n_trials=3, slots=1)
    controller = control(tmp_path / "study", found)
    assert controller.run()
    ran = [one.params for one in sorted(controller.study.searched.trials(), key=lambda one: one.number)]
    assert first_trials(found, 3) == ran


def test_trials_that_depend_on_results_are_not_foretold(sweep: Make) -> None:
    found = sweep(n_trials=4, sampler={"name": "TPESampler", "n_startup_trials": 2}, enqueue=[])
    foretold = first_trials(found, 4)
    assert [params is None for params in foretold] == [False, False, True, True]
    random = sweep(n_trials=4, sampler={"name": "RandomSampler"}, enqueue=[])
    assert None not in first_trials(random, 4)


@pytest.mark.parametrize("seed", [0, 3])
def test_a_command_of_the_plan_is_the_run_of_the_trial(sweep: Make, seed: int, tmp_path: Path) -> None:
    found: Sweep = sweep(
        space=BAND,
        relations=RELATION,
        overrides={"steer.estimator": "influence", "ray": {"num_cpus": 1}, "openrlhf.actor.adam.lr": 3.0e-6},
        enqueue=[],
        baselines=SIDES,
        seeds=[seed],
    )
    params = first_trials(found, 1)[0]
    assert params is not None
    arms = {"0": values_of(params, found.typed_space), "odd": found.baselines[0].set}
    for name, values in arms.items():
        words = shlex.split(shlex.join(command(found, name, values, seed, tmp_path / name)))
        assert words[:2] == ["steer", "train"]
        assert words[-2:] == ["--run-dir", str(tmp_path / name)]
        assert load_recipe(words[2], words[3:-2]) == found.experiment(name, values, seed)


def test_the_plan_says_everything(sweep: Make, tmp_path: Path) -> None:
    found: Sweep = sweep(
        seeds=[0, 1, 2],
        n_trials=8,
        pruner={"name": "WilcoxonPruner", "p_threshold": 0.3},
        constraints=[{"metric": "gpu_hours", "at_most": 2}],
        budget={"gpu_hours": 100, "hours": 48},
        trial_timeout_hours=1.5,
        finalists={"n": 2, "seeds": [7, 8]},
        executor={"name": "ray", "address": "http://head:8265"},
    )
    lines = plan_lines(found, tmp_path)
    for wanted in (
        "  9 configurations (1 baselines), seeds [0, 1, 2]: 27 runs",
        "  maximize eval/score (last)",
        "  constraint: {metric: gpu_hours, at_most: 2.0}",
        "  pruner: {name: WilcoxonPruner, p_threshold: 0.3}",
        "  executor: {name: ray, slots: 2, address: 'http://head:8265'}",
        "  budget: 100 gpu_hours, 48 hours",
        "  a trial is ended after 1.5 h",
        "  storage: journal.log in the study directory",
        "  finalists: the best 2 again with seeds [7, 8]",
        "baseline ppo: openrlhf.actor.policy_loss_type=ppo, steer=null",
        "trial 0: steer.lambda_min=0.7",
        "then 3 trials more, 8 trials in all",
    ):
        assert wanted in lines, wanted
    commands = [line for line in lines if line.startswith("  steer train ")]
    assert len(commands) == 6 * 3
    assert commands[-1].endswith(f"--run-dir {tmp_path}/trials/4/seed-2")
    assert list(tmp_path.iterdir()) == [tmp_path / "sweep.yaml"]  # nothing was written


def test_a_secret_is_not_shown(sweep: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEER_TEST_PASSWORD", "hush")
    lines = plan_lines(sweep(storage="postgresql://me:${STEER_TEST_PASSWORD}@host/db"), tmp_path)
    assert "  storage: postgresql://me:${STEER_TEST_PASSWORD}@host/db" in lines
    assert "hush" not in "\n".join(lines)


def test_a_plan_is_light(sweep_file: Make, tmp_path: Path) -> None:
    import subprocess

    code = (
        "import sys; from pathlib import Path; from steer_sweeps.spec import load_sweep; "
        "from steer_sweeps.plan import plan_lines; plan_lines(load_sweep(Path(sys.argv[1])), Path('x')); "
        "print([one for one in ('torch', 'ray', 'vllm', 'deepspeed', 'scipy', 'transformers') if one in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(sweep_file())], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

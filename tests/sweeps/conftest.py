"""A small study whose trials end in a fraction of a second."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from steer_sweeps.controller import Controller
from steer_sweeps.spec import Sweep, load_sweep
from steer_sweeps.study import Study, open_study

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # so that tests find the programs and helpers beside them by their names
RECIPE = HERE.parents[1] / "experiments" / "recipes" / "tiny" / "steer.yaml"

SWEEP: dict[str, Any] = {
    "name": "small",
    "recipe": str(RECIPE),
    "n_trials": 3,
    "objective": {"metric": "eval/score"},
    "space": {"steer.lambda_min": {"float": [0.5, 0.95]}},
    "enqueue": [{"steer.lambda_min": 0.7}],
    "baselines": [{"name": "ppo", "set": {"openrlhf.actor.policy_loss_type": "ppo", "steer": None}}],
    "slots": 2,
}


@pytest.fixture
def sweep_file(tmp_path: Path) -> Callable[..., Path]:
    """Writes the small sweep with some keys changed (None removes one)."""

    def write(**changes: Any) -> Path:
        path = tmp_path / "sweep.yaml"
        merged = {key: value for key, value in (SWEEP | changes).items() if value is not None}
        path.write_text(yaml.safe_dump(merged))
        return path

    return write


@pytest.fixture
def sweep(sweep_file: Callable[..., Path]) -> Callable[..., Sweep]:
    return lambda **changes: load_sweep(sweep_file(**changes))


@pytest.fixture
def control() -> Callable[..., Controller]:
    """A controller of a study whose trials are ``trial_program.py``; ``.lines`` collects what it tells."""

    def make(path: Path, sweep: Sweep) -> Controller:
        study: Study = open_study(path, sweep)
        command = (sys.executable, str(HERE / "trial_program.py"), "{config}", "{run_dir}")
        lines: list[str] = []
        controller = Controller(study, lines.append, command, poll_s=0.02)
        controller.pause_s = 0.05
        controller.lines = lines  # type: ignore[attr-defined]
        return controller

    return make

"""The plugin's state in OpenRLHF's checkpoints: real ``save_ckpt`` and ``load_ckpt`` of a real DeepSpeed engine."""

from pathlib import Path
from typing import Any

import pytest
import torch
from real_trainer import Case, Layout
from steer_openrlhf.actor_trainer import STATE

CASES = [
    Case("entropic", {"entropic.high_prob": 0.4}),
    Case("steer", {"steer.estimator": "influence", "steer.band": [-1e-3, 1e-3], "steer.band_warmup": 1}),
    Case("ppo"),
]
LEARNING = {"actor.adam.lr": 1e-3}


def save(worker: Any, folder: Path, client: dict[str, Any]) -> None:
    """As OpenRLHF's ``PolicyModelActor.save_checkpoint`` calls it."""
    worker.strategy.save_ckpt(worker.actor.model, str(folder), "step1", 3, 1000, client, metric_value=0.5)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.loss)
def test_a_resumed_run_is_the_uninterrupted_one(case: Case, make_worker: Any, tmp_path: Path) -> None:
    """Weights, Adam's moments and the plugin's state: three rollouts, and two with a checkpoint between them and the
    third in a new engine, trainer and strategy."""
    worker = make_worker(Layout(micro=4), LEARNING)
    trainer = worker.trainer(case)
    for seed in range(2):
        saved = worker.updates(trainer, seed=seed)
    save(worker, tmp_path, {"global_step": 17})
    whole = worker.updates(trainer, seed=2)
    weights = {name: weight.detach().clone() for name, weight in worker.model.named_parameters()}

    resumed = make_worker(Layout(micro=4), LEARNING)
    assert resumed.trainer(case)._state() != saved.state
    path, states = resumed.strategy.load_ckpt(resumed.actor.model, str(tmp_path))
    assert path is not None
    assert states["global_step"] == 17  # OpenRLHF's own is still there
    assert states[STATE] == saved.state
    trainer = resumed.trainer(case)
    assert trainer._state() == saved.state
    after = resumed.updates(trainer, seed=2)
    assert after.state == whole.state
    for name, weight in resumed.model.named_parameters():
        assert torch.equal(weight, weights[name]), name


def test_a_checkpoint_without_our_state_is_read(make_worker: Any, tmp_path: Path) -> None:
    """One that OpenRLHF wrote without the plugin, and a folder without any."""
    worker = make_worker(Layout(micro=4))
    save(worker, tmp_path / "stock", {"global_step": 3})
    assert worker.strategy.load_ckpt(worker.actor.model, str(tmp_path / "stock"))[1]["global_step"] == 3
    assert worker.strategy.steer_restored is None
    assert worker.trainer(CASES[0])._state()["rollouts"] == 0
    assert worker.strategy.load_ckpt(worker.actor.model, str(tmp_path / "nothing")) == (None, {})

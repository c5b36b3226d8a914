"""What the two controllers do over optimizer steps and rollouts."""

import math
from typing import Any

import pytest
import torch
from steer_openrlhf.interventions import configs, controllers
from steer_openrlhf.interventions.controllers import ControlSummary


def summary(entropy: float) -> ControlSummary:
    one = torch.ones((), dtype=torch.float64)
    return ControlSummary(entropy * one, one, 0 * one)


def test_entropic_sums_the_error_and_bounds_its_output() -> None:
    config = configs.EntropicConfig(target_entropy=0.5, kp=1.0, ki=0.1)
    state, outputs = {"momentum": 0.9, "update": 3.0}, []
    for entropy in (0.7, 0.4, 5.0, 0.5):  # errors .2, -.1, 4.5, 0; sums .2, .1, 4.6, 4.6
        state, after = controllers.control_entropic(state, summary(entropy), config)
        outputs.append(after.output.item())
    assert outputs == pytest.approx([0.22, -0.09, 1.0, 0.46])
    assert state == {"momentum": 0.9, "update": 3.0, "integral": pytest.approx(4.6)}


def test_entropic_pushes_back_at_its_lower_bound() -> None:
    config = configs.EntropicConfig(target_entropy=3.0, limit=0.4)
    assert controllers.control_entropic({}, summary(0.0), config)[1].output.item() == -0.4


def test_a_step_without_entropy_moves_no_controller() -> None:
    state, after = controllers.control_entropic({"integral": 2.0}, summary(math.nan), configs.EntropicConfig())
    assert (state, after.output.item()) == ({"integral": 2.0}, 0.0)
    before = {"lambda": 0.5, "lambda_next": 0.55, "update": 0.0}
    config = configs.PositiveReweightConfig()
    state, after = controllers.control_positive_reweight(before, summary(math.nan), config)
    assert state == {"lambda": 0.55, "lambda_next": 0.55, "update": 0.0}
    assert after.output.item() == pytest.approx(0.55)


def test_positive_reweight_moves_once_a_rollout_and_stays_in_bounds() -> None:
    config = configs.PositiveReweightConfig(target_entropy=0.2, delta=0.4, initial=0.5)
    state: dict[str, float] = {"momentum": 0.9}
    used = []
    for entropy in (0.3, 0.3, 0.1, 0.1, 0.1, 0.2):  # up, up, down, down, down; the last is not below
        for update in range(3):  # later updates of the rollout see another entropy, and the same weight
            state["update"] = float(update)
            seen = entropy if update == 0 else 1 - entropy
            state, after = controllers.control_positive_reweight(state, summary(seen), config)
            used.append(after.output.item())
    assert used[::3] == used[1::3] == used[2::3]
    assert used[::3] == pytest.approx([0.5, 0.9, 1.0, 0.6, 0.2, 0.0])
    assert state["lambda_next"] == pytest.approx(0.4)
    assert state["momentum"] == 0.9


def test_positive_reweight_without_the_hosts_counters_moves_every_step() -> None:
    config = configs.PositiveReweightConfig(initial=0.5)
    state, _ = controllers.control_positive_reweight({}, summary(9.0), config)
    assert controllers.control_positive_reweight(state, summary(9.0), config)[1].output.item() == pytest.approx(0.55)


def test_the_state_reaches_the_loss_once_a_step(step: Any, adapted: Any, call: Any) -> None:
    """Two steps of the adapted loss: the integral counts both, and the second pushes harder."""
    loss = adapted("entropic", step, target_entropy=0.1, kp=0.0, ki=0.01, limit=9.0, high_prob=0.4)
    outputs = []
    for _ in range(2):
        call(loss, step)
        outputs.append(loss.info["steer/controller_output"].item())
    assert outputs[1] == pytest.approx(2 * outputs[0])
    assert loss.state["integral"] == pytest.approx(outputs[1] / 0.01)

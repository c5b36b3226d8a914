"""The adaptive entropy coefficient: worked by hand, and through OpenRLHF's own trainer."""

import math
from typing import Any

import pytest
import torch
from real_trainer import Case
from steer_openrlhf.config import EntropyBonusConfig
from steer_openrlhf.entropy_bonus import adapted, applied

CONFIG = EntropyBonusConfig(target=0.2, delta=1e-4, maximum=5e-4)


@pytest.mark.parametrize(
    ("coefficient", "entropy", "expected"),
    [
        (1e-4, 0.19, 2e-4),  # below the target: up by delta
        (2e-4, 0.2, 1e-4),  # at it: down, as above it
        (2e-4, 0.9, 1e-4),
        (5e-5, 0.9, 0.0),  # never below 0
        (4.5e-4, 0.1, 5e-4),  # never above the maximum
        (5e-4, 0.1, 5e-4),
        (3e-4, math.nan, 3e-4),  # an entropy that is no number says nothing
    ],
)
def test_the_next_coefficient_by_hand(coefficient: float, entropy: float, expected: float) -> None:
    assert adapted(coefficient, entropy, CONFIG) == pytest.approx(expected, abs=1e-12)


def test_it_is_applied_at_or_below_the_target_only() -> None:
    assert [applied(3e-4, entropy, CONFIG) for entropy in (0.1, 0.2, 0.2001, 5.0)] == [3e-4, 3e-4, 0.0, 0.0]
    assert applied(3e-4, math.nan, CONFIG) == 0.0


def test_five_steps_by_hand() -> None:
    coefficient, seen = 1e-4, []
    for entropy in (0.1, 0.1, 0.3, 0.15, 0.25):
        coefficient = adapted(coefficient, entropy, CONFIG)
        seen.append(applied(coefficient, entropy, CONFIG))
    assert seen == pytest.approx([2e-4, 3e-4, 0.0, 3e-4, 0.0])


def adaptive(target: float, **flags: Any) -> Case:
    bonus = {"steer.entropy_bonus.target": target, "steer.entropy_bonus.delta": 0.01}
    return Case("ppo", {"actor.entropy_coef": 0.02, **bonus, "steer.entropy_bonus.maximum": 0.045, **flags})


@pytest.mark.parametrize(("target", "expected"), [(2.0, [0.02, 0.03, 0.04, 0.045]), (0.5, [0.02, 0.0, 0.0, 0.0])])
def test_the_trainer_moves_it_once_an_optimizer_step(worker: Any, target: float, expected: list[float]) -> None:
    """The policy's mean entropy is 1.2 nats. Both micro-batches of a step have the same coefficient, and the first step
    has the one that was given."""
    run = worker.rollout(adaptive(target, **{"train.max_epochs": 4}))
    seen = [call.experience.info["steer/entropy_coef"].item() for call in run.calls]
    assert seen == pytest.approx([one for one in expected for _ in range(2)])
    assert 0.5 < run.status["steer/entropy"] < 2.0


def test_the_loss_has_the_coefficient_that_is_logged(worker: Any) -> None:
    """Its second step's gradient is that of a fixed coefficient of .03, and no other's."""
    found = worker.rollout(adaptive(2.0, **{"train.max_epochs": 2})).gradients[1]
    distances = []
    for fixed in (0.02, 0.03):
        run = worker.rollout(Case("ppo", {"actor.entropy_coef": fixed, "train.max_epochs": 2}))
        distances.append(max((found[name] - one).abs().max().item() for name, one in run.gradients[1].items()))
    assert distances[1] < 1e-5 < 1e-3 < distances[0]


def test_a_restored_run_goes_on_as_if_nothing_had_been(worker: Any) -> None:
    """What the last step before the checkpoint has measured moves the first step after it."""
    case = adaptive(2.0, **{"train.max_epochs": 2})
    trainer = worker.trainer(case)
    before, whole = worker.updates(trainer), worker.updates(trainer)
    worker.strategy.steer_restored = before.state
    try:
        after = worker.updates(worker.trainer(case))
    finally:
        del worker.strategy.steer_restored
    coefficients = [
        [call.experience.info["steer/entropy_coef"].item() for call in run.calls] for run in (before, whole, after)
    ]
    assert coefficients[0] == pytest.approx([0.02, 0.02, 0.03, 0.03])
    assert coefficients[1] == pytest.approx([0.04, 0.04, 0.045, 0.045])
    assert coefficients[2] == coefficients[1]
    assert after.state == whole.state
    assert torch.tensor(after.state["entropy"]).gt(0).all()

"""The released code's mode, through the real trainer, against a slow loop written from METHODS sections 1 and 2.

``reference`` Omega: ``(A / clamp(pi_old, 1e-8, 1)) x (1 - x)(log x + H)``, x = clamp(pi, 1e-8, 1 - 1e-8), H of the
policy before the rollout's first update; max and min over one micro-batch. Probabilities and entropies are made anew
from the policy's logits, in Python's floats.
"""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from real_trainer import OLD_TEMPERATURE, TEMPERATURE, Call, Case, Layout

COMPATIBLE = {"steer.scope": "microbatch", "steer.estimator": "reference"}
EXP = {**COMPATIBLE, "steer.lambda_min": 0.8, "steer.norm_floor": 0.02}
LINEAR = {**COMPATIBLE, "steer.weight": "linear", "steer.lambda_min": 0.8, "steer.lambda_max": 1.2}


def distribution(logits: list[float], temperature: float) -> list[float]:
    top = max(logits)
    weights = [math.exp((logit - top) / temperature) for logit in logits]
    return [weight / sum(weights) for weight in weights]


def entropy(pi: list[float]) -> float:
    return -sum(p * math.log(p) for p in pi if p > 0)


@torch.no_grad()
def rows_of(worker: Any, experience: Any, index: int) -> list[list[float]]:
    """The logits behind each response token of a sample, from a forward on it alone."""
    present = experience.attention_mask[index].bool()
    sequence = experience.sequences[index][present]
    count = int(experience.action_mask[index].sum())
    logits = worker.model(sequence[None]).logits[0].double()
    return [logits[len(sequence) - 1 - count + step].tolist() for step in range(count)]


def slow_omegas(worker: Any, call: Call, entropy_temperature: float) -> dict[tuple[int, int], float]:
    """|Omega| of every response token of a micro-batch, by (sample, column)."""
    experience, found = call.experience, {}
    for index in range(len(experience.sequences)):
        columns = experience.action_mask[index].nonzero().flatten().tolist()
        for column, logits in zip(columns, rows_of(worker, experience, index), strict=True):
            label = int(experience.sequences[index][column + 1])
            x = min(max(distribution(logits, TEMPERATURE)[label], 1e-8), 1 - 1e-8)
            old = min(max(math.exp(float(experience.action_log_probs[index, column])), 1e-8), 1.0)
            h = entropy(distribution(logits, entropy_temperature))
            advantage = float(experience.advantages[index, column])
            found[index, column] = abs(advantage / old * x * (1 - x) * (math.log(x) + h))
    return found


def exp_weight(omega: float, omegas: list[float], floor: float = 0.02) -> float:
    k = -math.log(0.8) / max(*omegas, floor)
    return min(max(math.exp(-k * omega), 0.8), 1.0)


def linear_weight(omega: float, omegas: list[float]) -> float:
    low, high = min(omegas), max(omegas)
    if high == low:
        return 1.0
    return 1.2 - (omega - low) * (1.2 - 0.8) / (high - low)


def deviation(worker: Any, call: Call, weight: Any, entropy_temperature: float) -> tuple[float, int]:
    """Largest difference between what the loss was given and the slow weight times A, and of how many tokens."""
    omegas = slow_omegas(worker, call, entropy_temperature)
    worst = 0.0
    for place, omega in omegas.items():
        advantage = float(call.experience.advantages[place])
        expected = advantage * weight(omega, list(omegas.values()))
        worst = max(worst, abs(float(call.advantages[place]) - expected) / max(abs(advantage), 1.0))
    return worst, len(omegas)


@pytest.mark.parametrize(("flags", "weight"), [(EXP, exp_weight), (LINEAR, linear_weight)], ids=["exp", "linear"])
@pytest.mark.parametrize("micro", [8, 4, 2])
def test_it_is_the_released_code(flags: Any, weight: Any, micro: int, make_worker: Any, worker: Any) -> None:
    worker = worker if micro == 4 else make_worker(Layout(micro=micro, left=1))
    run = worker.rollout(Case("steer", flags))
    assert len(run.calls) == 8 // micro
    counts = 0
    for call in run.calls:
        worst, count = deviation(worker, call, weight, OLD_TEMPERATURE)
        assert worst < 2e-6
        counts += count
    assert counts == 33


@pytest.mark.parametrize(("flags", "weight"), [(EXP, exp_weight), (LINEAR, linear_weight)], ids=["exp", "linear"])
def test_the_entropy_is_the_old_policys(flags: Any, weight: Any, worker: Any) -> None:
    """The present policy's, which differs here, gives other weights."""
    run = worker.rollout(Case("steer", flags))
    assert max(deviation(worker, call, weight, TEMPERATURE)[0] for call in run.calls) > 1e-3


def test_the_old_entropy_stays_that_of_before_the_first_update(worker: Any) -> None:
    """Three updates of a rollout, each after a shuffle of its own: the entropies travel with their samples."""
    run = worker.rollout(Case("steer", {**EXP, "train.max_epochs": 3}))
    assert len(run.calls) == 6
    for call in run.calls:
        assert deviation(worker, call, exp_weight, OLD_TEMPERATURE)[0] < 2e-6


def test_the_floor_of_the_normaliser(worker: Any) -> None:
    """Where every |Omega| is below it, weights stay near 1."""
    small = [replace(sample, advantage=1e-4) for sample in worker.samples]
    trainer = worker.trainer(Case("steer", EXP))
    for call in worker.updates(trainer, small).calls:
        omegas = slow_omegas(worker, call, OLD_TEMPERATURE)
        assert max(omegas.values()) < 0.02
        assert deviation(worker, call, exp_weight, OLD_TEMPERATURE)[0] < 1e-9
        assert deviation(worker, call, lambda o, all_: exp_weight(o, all_, 0.0), OLD_TEMPERATURE)[0] > 1e-6


def test_nothing_of_it_is_logged_or_kept_in_the_batch(worker: Any) -> None:
    run = worker.rollout(Case("steer", EXP))
    assert not any("old_entropy" in name for call in run.calls for name in call.experience.info)
    assert not any("old_entropy" in name for name in run.status)

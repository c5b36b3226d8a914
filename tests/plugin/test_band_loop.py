"""The entropy band in closed loops with a known plant: kept, followed, out of reach, resumed."""

import json
from typing import Any, NamedTuple

import pytest
import torch
from steer_openrlhf import band
from steer_openrlhf.band import BandSummary, State
from steer_openrlhf.config import SteerConfig
from steer_openrlhf.interventions import steer
from steer_openrlhf.tokens import RolloutChange

SEEDS = range(5)
LOOP = {"band": (-0.002, 0.006), "normalizer": "quantile", "quantile": 0.9}


def config_of(**fields: Any) -> SteerConfig:
    return SteerConfig(**{"estimator": "influence", "lambda_min": 0.1} | fields)


class Rollout(NamedTuple):
    change: float
    entropy: float
    summary: BandSummary
    metrics: dict[str, float]


class Plant:
    """Entropy that follows the momentum-filtered sum of the weighted Omegas with a step size nobody is told, plus
    noise of the measurement. Omega is heavy-tailed; left alone the entropy moves by about .006 a rollout."""

    def __init__(
        self, seed: int, momentum: float = 0.9, noise: float = 3e-4, direction: int = -1, drift: float = 0.0
    ) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.momentum, self.noise, self.direction = momentum, noise, direction
        self.drift = drift
        self.entropy, self.gamma, self.moment, self.steps = 1.0, 1e-3, 0.0, 0

    def rollout(self, state: State, config: SteerConfig, updates: int = 4) -> tuple[State, Rollout]:
        before = self.entropy
        for update in range(updates):
            omega = torch.randn(200, generator=self.generator) * 3 + 1.5 * self.direction
            omega = omega * 4 * torch.rand(200, generator=self.generator) ** 3
            signal = torch.stack([omega, torch.full((200,), self.entropy)], -1) if config.leveled else omega
            state |= {"updates": float(updates), "update": float(update), "momentum": self.momentum}
            state, summary = steer.control(state, steer.summarize(signal, config), config)
            assert isinstance(summary, BandSummary)
            weighted = float((band.band_weights(omega, summary, config) * omega).double().mean())
            self.moment = self.momentum * self.moment + (1 - self.momentum) * weighted
            self.steps += 1
            self.entropy += self.gamma * self.moment / (1 - self.momentum**self.steps)
        self.entropy += self.drift
        change = self.entropy - before + self.noise * float(torch.randn((), generator=self.generator))
        state, metrics = band.observe(state, RolloutChange(before, before + change, updates), config)
        return state, Rollout(change, self.entropy, summary, metrics)

    def run(self, config: SteerConfig, rollouts: int, drift: float = 1.0) -> list[Rollout]:
        state: State = {}
        history = []
        for _ in range(rollouts):
            state, one = self.rollout(state, config)
            self.gamma *= drift
            history.append(one)
        return history


def share_in_band(histories: list[list[Rollout]]) -> float:
    last = [history[-1].metrics for history in histories]
    return sum(one["band_steps_in_band"] for one in last) / sum(one["band_steps"] for one in last)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("normalizer", ["quantile", "max"])
def test_a_reachable_band_is_kept(momentum: float, normalizer: str) -> None:
    config = config_of(band=(-0.002, 0.006), normalizer=normalizer)
    histories = [Plant(seed, momentum).run(config, 50) for seed in SEEDS]
    free = [one.change for history in histories for one in history[:3]]
    assert max(free) < -0.002  # without damping every rollout is outside
    assert share_in_band(histories) >= 0.9
    for history in histories:
        assert history[-1].metrics["band_gamma"] == pytest.approx(1e-3, rel=0.4)
        late = [one.change for one in history[10:]]
        assert -0.002 < sum(late) / len(late) < 0.001  # the weakest damping: near the low end, no further


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_what_the_updates_do_beside_their_first_order_effect_is_made_up_for(momentum: float) -> None:
    """Entropy falls by .0015 a rollout whatever the weights are, which a regression through the origin never learns:
    with one, 65 % stayed in the band. The noise alone, around the middle, allows 90 %."""
    config = config_of(band=(-0.002, 0.002), lambda_min=0.01)
    histories = [Plant(seed, momentum, noise=1.2e-3, drift=-0.0015).run(config, 100) for seed in SEEDS]
    assert share_in_band(histories) >= 0.84
    late = [one.change for history in histories for one in history[50:]]
    assert abs(sum(late) / len(late)) < 3e-4


@pytest.mark.parametrize("drift", [0.98, 1.02])
def test_the_calibration_follows_a_drifting_step_size(drift: float) -> None:
    """It forgets, some 20 rollouts late; what it misses meanwhile counts as drift of the entropy and is made up for."""
    histories = [Plant(seed, noise=1e-4).run(config_of(**LOOP), 50, drift) for seed in SEEDS]
    assert share_in_band(histories) >= 0.85
    for history in histories:
        assert (history[-1].metrics["band_gamma"] / 1e-3 - 1) / (drift - 1) > 5  # it moved the right way, over 10 %


def test_an_unreachable_band_is_reported() -> None:
    config = config_of(**LOOP | {"lambda_min": 0.9})
    for seed in SEEDS:
        late = Plant(seed).run(config, 20)[5:]
        assert all(not one.summary.damping.reached and one.summary.damping.strength == 1 for one in late)
        assert late[-1].metrics["band_steps_in_band"] < 0.2 * late[-1].metrics["band_steps"]


@pytest.mark.parametrize(("limit", "direction"), [("entropy_floor", -1), ("entropy_ceiling", 1)])
def test_a_floor_stops_the_fall_and_a_ceiling_the_rise(limit: str, direction: int) -> None:
    for seed in SEEDS:
        history = Plant(seed, direction=direction).run(config_of(**{limit: 1.0 + direction * 0.1}), 60)
        passed = [(one.entropy - 1.0) * direction for one in history]
        assert max(passed) < 0.12  # three rollouts of undamped change
        assert passed[-1] > 0.08
        left_alone = Plant(seed, direction=direction).run(config_of(band=(-1.0, 1.0)), 60)
        assert (left_alone[-1].entropy - 1.0) * direction > 0.2


def test_a_resumed_run_follows_the_same_trajectory() -> None:
    config = config_of(**LOOP, entropy_floor=0.98)
    whole, halves = Plant(3), Plant(3)
    expected = whole.run(config, 14)
    state: State = {}
    found = []
    for _ in range(14):
        state, one = halves.rollout(state, config)
        state = json.loads(json.dumps(state, allow_nan=False))
        found.append(one)
    assert [one.metrics for one in found] == [one.metrics for one in expected]
    assert [one.entropy for one in found] == [one.entropy for one in expected]

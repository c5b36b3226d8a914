"""The entropy band: values worked by hand, and a grid search as the slow reference of the damping."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from steer_openrlhf import band
from steer_openrlhf.band import FULL_DECAY, BandSummary, Damping, Range, State
from steer_openrlhf.config import SteerConfig
from steer_openrlhf.interventions import steer
from steer_openrlhf.tokens import RolloutChange, Tokens

OMEGA = torch.tensor([-4.0, -2.0, 1.0, 3.0], dtype=torch.float64)  # mean -.5
FOUR = torch.tensor(4.0, dtype=torch.float64)
ANY = Range(-math.inf, math.inf)


def config_of(**fields: Any) -> SteerConfig:
    return SteerConfig(**{"estimator": "influence", "lambda_min": 0.1} | fields)


def measured(state: State, change: float, config: SteerConfig) -> tuple[State, dict[str, float]]:
    return band.observe(state, RolloutChange(1.0, 1.0 + change, 1), config)


def calibrated(x: float, y: float, config: SteerConfig) -> State:
    """As after ``band_warmup`` rollouts that predicted ``x`` per unit step and measured ``y``."""
    state: State = {}
    for _ in range(config.band_warmup or 0):
        state, _ = measured(state | {"band_sum": x}, y, config)
    return state


def step(state: State, omega: torch.Tensor, config: SteerConfig, **about: float) -> tuple[State, BandSummary]:
    about = {"updates": 1.0, "update": 0.0, "momentum": 0.0} | about
    state, summary = steer.control(state | about, steer.summarize(omega, config), config)
    assert isinstance(summary, BandSummary)
    return state, summary


def mean_of(omega: torch.Tensor, damping: Damping, norm: torch.Tensor, lambda_min: float) -> float:
    summary = BandSummary(omega, norm, damping=damping)
    return float((band.band_weights(omega, summary, config_of(lambda_min=lambda_min)) * omega).mean())


# -- the damping -----------------------------------------------------------------------------------------------------


def test_inside_the_range_nothing_is_damped() -> None:
    for want in (ANY, Range(-0.5, 0.0), Range(-1.0, -0.5)):
        assert band.weakest_damping(OMEGA, FOUR, want, 0.1) == Damping(0, 0.0, 0.0, True)


def test_falling_tokens_by_hand() -> None:
    """Both falling weights 1/2 and sqrt(1/2) at decay ln 2: the sum is -2 - 2 sqrt(1/2) + 4."""
    want = (4 - 2 - 2 * math.sqrt(0.5)) / 4
    found = band.weakest_damping(OMEGA, FOUR, Range(want, math.inf), 0.1)
    assert (found.side, found.reached) == (-1, True)
    assert found.decay == pytest.approx(math.log(2), rel=1e-9)
    assert found.strength == pytest.approx((6 - 2 - 2 * math.sqrt(0.5)) / (0.9 * 6))


def test_rising_tokens_by_hand_with_one_at_the_floor() -> None:
    """lambda_min .5: at decay 2 ln 2 the token at 3 would weigh 2^-1.5 and is held at .5, that at 1 weighs 2^-.5."""
    want = (-6 + 1.5 + math.sqrt(0.5)) / 4
    found = band.weakest_damping(OMEGA, FOUR, Range(-math.inf, want), 0.5)
    assert (found.side, found.reached) == (1, True)
    assert found.decay == pytest.approx(2 * math.log(2), rel=1e-9)


def test_out_of_reach_is_all_of_the_side_at_the_minimum_and_says_so() -> None:
    want = Range(1.0, math.inf)  # (4 - .5 * 6) / 4 = .25 is the most there is
    found = band.weakest_damping(OMEGA, FOUR, want, 0.5)
    assert found == Damping(-1, FULL_DECAY, 1.0, reached=False)
    weights = band.band_weights(OMEGA.float(), BandSummary(OMEGA, FOUR, damping=found), config_of(lambda_min=0.5))
    assert weights.tolist() == [0.5, 0.5, 1.0, 1.0]


def test_no_tokens_or_none_on_the_side_is_out_of_reach() -> None:
    for omega in (torch.zeros(0), torch.zeros(3), torch.ones(3), torch.tensor([math.nan])):
        assert not band.weakest_damping(omega, FOUR, Range(2.0, math.inf), 0.1).reached


def test_not_finite_omega_weighs_one_and_is_in_no_sum() -> None:
    omega = torch.cat([OMEGA, torch.tensor([math.nan, math.inf, -math.inf], dtype=torch.float64)])
    want = Range(0.1, math.inf)
    found = band.weakest_damping(omega, FOUR, want, 0.1)
    assert found == band.weakest_damping(OMEGA, FOUR, want, 0.1)
    weights = band.band_weights(omega, BandSummary(omega, FOUR, damping=found), config_of())
    assert weights[4:].tolist() == [1.0, 1.0, 1.0]


GRID_STEP = 1.005
GRID = [1e-2 * GRID_STEP**power for power in range(2000)]


def slow_mean(values: list[float], decay: float, norm: float, lambda_min: float) -> float:
    """Of the damped falling and the untouched rising values, one by one."""
    return sum(x * max(lambda_min, math.exp(-decay * -x / norm)) if x < 0 else x for x in values) / len(values)


@pytest.mark.parametrize("normalizer", ["max", "quantile"])
@pytest.mark.parametrize("seed", range(4))
def test_the_decay_is_the_smallest_of_a_grid_that_is_enough(seed: int, normalizer: str) -> None:
    omega = torch.randn(40, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) ** 3 - 0.4
    summary = steer.summarize(omega, config_of(normalizer=normalizer, band=(-1.0, 1.0)))
    assert isinstance(summary, BandSummary)
    want = Range(float(omega.mean()) + 0.2, math.inf)
    found = band.weakest_damping(omega, summary.norm, want, 0.1)
    enough = [decay for decay in GRID if slow_mean(omega.tolist(), decay, float(summary.norm), 0.1) >= want.low]
    assert found.reached
    assert min(enough) / GRID_STEP <= found.decay <= min(enough)
    assert mean_of(omega, found, summary.norm, 0.1) == pytest.approx(want.low, abs=1e-9)
    weaker = replace(found, decay=found.decay * 0.999)
    assert mean_of(omega, weaker, summary.norm, 0.1) < want.low


omegas = st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=30)


@given(
    omegas, st.floats(-50, 50), st.floats(0, 50), st.floats(0.01, 1.0), st.sampled_from([torch.float32, torch.float64])
)
def test_weights_are_bounded_one_sided_and_bring_the_mean_home(
    values: list[float], low: float, width: float, lambda_min: float, dtype: torch.dtype
) -> None:
    omega, want, config = torch.tensor(values, dtype=dtype), Range(low, low + width), config_of(lambda_min=lambda_min)
    norm = omega.abs().max().clamp(min=torch.finfo(dtype).tiny)
    found = band.weakest_damping(omega, norm, want, lambda_min)
    weights = band.band_weights(omega, BandSummary(omega, norm, damping=found), config)
    assert ((weights >= torch.tensor(lambda_min, dtype=dtype)) & (weights <= 1)).all()
    assert (weights[omega * found.side <= 0] == 1).all()
    assert 0 <= found.strength <= 1
    mean, scale = float((weights * omega).double().mean()), float(omega.double().abs().mean()) + 1
    if found.reached:
        assert want.low - 1e-5 * scale <= mean <= want.high + 1e-5 * scale
    else:
        assert mean < want.low + 1e-5 * scale if found.side < 0 else mean > want.high - 1e-5 * scale


@given(omegas, st.floats(-50, 50), st.floats(0, 50))
def test_a_tighter_band_never_damps_less(values: list[float], low: float, more: float) -> None:
    omega = torch.tensor(values, dtype=torch.float64)
    norm = omega.abs().max().clamp(min=1e-300)
    loose, tight = (band.weakest_damping(omega, norm, Range(end, math.inf), 0.1) for end in (low, low + more))
    assert tight.decay >= loose.decay
    assert tight.strength >= loose.strength
    assert loose.reached or not tight.reached


def test_a_million_tokens_in_float32() -> None:
    omega = torch.randn(1_000_000, generator=torch.Generator().manual_seed(0)) ** 3 * 1e-4 - 1e-4
    norm = omega.abs().max()
    found = band.weakest_damping(omega, norm, Range(-5e-5, math.inf), 0.1)
    assert mean_of(omega.double(), found, norm.double(), 0.1) == pytest.approx(-5e-5, rel=1e-6)


# -- one optimizer step ----------------------------------------------------------------------------------------------


def test_first_moment_and_rollout_sum_by_hand() -> None:
    config, state = config_of(band=(-1.0, 1.0)), {}
    about = {"updates": 2.0, "momentum": 0.9}
    state, _ = step(state, torch.tensor([1.0, 3.0]), config, update=0.0, **about)
    assert (state["band_t"], state["band_moment"], state["band_sum"]) == pytest.approx((1, 0.2, 2.0))
    state, _ = step(state, torch.tensor([-1.0, -1.0]), config, update=1.0, **about)
    second = (0.9 * 0.2 - 0.1) / (1 - 0.81)
    assert (state["band_t"], state["band_moment"], state["band_sum"]) == pytest.approx((2, 0.08, 2.0 + second))
    state, _ = step(state, torch.zeros(2), config, update=0.0, **about)  # the next rollout: the moment goes on
    assert state["band_moment"] == pytest.approx(0.072)
    assert state["band_sum"] == pytest.approx(0.072 / (1 - 0.9**3))


def test_each_step_gets_its_share_of_what_is_left_by_hand() -> None:
    config = config_of(band=(-0.3, 1.0), band_warmup=1)
    state = calibrated(-2.0, -1.0, config)  # gamma 1/2
    state, first = step(state, torch.tensor([-0.1, -0.1]), config, updates=3.0)
    assert (first.damping.side, first.predicted, first.gamma) == (0, pytest.approx(-0.05), 0.5)
    state, second = step(state, torch.tensor([-3.0, 1.0]), config, updates=3.0, update=1.0)
    assert second.damping.side == -1  # -.5 was predicted; (-.3 + .05) / 2 is its share
    assert second.predicted == pytest.approx(-0.125)
    _, third = step(state, torch.tensor([-3.0, 1.0]), config, updates=3.0, update=2.0)
    assert third.predicted == pytest.approx(-0.125)


def test_momentum_is_part_of_the_prediction() -> None:
    config = config_of(band=(-0.05, 1.0), band_warmup=1)
    state = calibrated(-1.0, -1.0, config) | {"band_moment": -0.1, "band_t": 1000.0}
    _, damped = step(state, torch.tensor([-1.0, 1.7]), config, momentum=0.9)  # -.09 + .1 * .35 = -.055
    _, inside = step(state, torch.tensor([-1.0, 2.0]), config, momentum=0.9)  # -.09 + .1 * .5 = -.04
    assert (damped.damping.side, damped.predicted) == (-1, pytest.approx(-0.05))
    assert (inside.damping.side, inside.predicted) == (0, pytest.approx(-0.04))


def test_a_moment_beyond_reach_is_reported() -> None:
    config = config_of(band=(-0.05, 1.0), band_warmup=1)
    state = calibrated(-1.0, -1.0, config) | {"band_moment": -1.0, "band_t": 1000.0}
    _, summary = step(state, torch.tensor([-1.0, 2.0]), config, momentum=0.9)
    assert summary.damping == Damping(-1, FULL_DECAY, 1.0, reached=False)
    assert summary.predicted == pytest.approx(-0.9 + 0.1 * 0.95)


def test_uniform_accounts_for_the_weights_it_applies() -> None:
    config = config_of(band=(-0.25, 1.0), band_warmup=1)
    state = calibrated(-1.0, -1.0, config) | {"updates": 1.0, "update": 0.0, "momentum": 0.0}
    summary = steer.summarize(OMEGA, config)
    after, steered = steer.control(state, summary, config)
    uniform_after, uniform = steer.control_uniform(state, summary, config)
    assert isinstance(steered, BandSummary)
    assert isinstance(uniform, BandSummary)
    assert uniform.mean_weight == steered.mean_weight < 1
    assert after["band_sum"] == pytest.approx(-0.25)
    assert uniform_after["band_sum"] == pytest.approx(-0.5 * steered.mean_weight)


def test_unknown_keys_of_the_state_are_kept_and_the_given_state_is_not_written() -> None:
    config, given_state = config_of(band=(-1.0, 1.0)), {"other": 7.0, "updates": 1.0, "update": 0.0, "momentum": 0.9}
    kept = dict(given_state)
    state, _ = step(given_state, OMEGA, config)
    state, _ = measured(state, 0.1, config)
    assert state["other"] == 7.0
    assert given_state == kept


# -- calibration -----------------------------------------------------------------------------------------------------


def test_gamma_is_weighted_least_squares_through_the_origin() -> None:
    config, state = config_of(band=(-1.0, 1.0), band_memory=0.5), {}
    for x, y in ((1.0, 2.0), (2.0, 3.0), (-1.0, -4.0)):
        state, metrics = measured(state | {"band_sum": x}, y, config)
    expected = (0.25 * 2 + 0.5 * 6 + 4) / (0.25 * 1 + 0.5 * 4 + 1)
    assert metrics["band_gamma"] == pytest.approx(expected)
    assert band.calibration(state, config) == pytest.approx(expected)


@pytest.mark.parametrize(("x", "y"), [(1.0, -1.0), (0.0, 1.0), (1e-200, 1.0), (1.0, 0.0), (1e200, 1.0)], ids=str)
def test_no_information_or_a_wrong_sign_is_a_state_without_damping(x: float, y: float) -> None:
    config = config_of(band=(-0.1, 0.1))
    state = calibrated(x, y, config)
    _, metrics = measured(state | {"band_sum": x}, y, config)
    assert "band_gamma" not in metrics
    _, summary = step(state, OMEGA, config)
    assert summary.damping.side == 0
    shown = steer._band_metrics(summary)
    assert shown == {"band_strength": 0.0, "band_side": 0.0, "band_calibrated": 0.0}
    assert all(math.isfinite(value) for value in state.values())


def test_nothing_is_damped_before_the_warm_up_ends() -> None:
    config, state = config_of(band=(-0.1, 0.1), band_warmup=3), {}
    for rollout in range(4):
        state, summary = step(state, OMEGA, config)
        assert summary.damping.side == (0 if rollout < 3 else -1)
        state, metrics = measured(state, -0.5, config)
        assert metrics["band_steps"] == max(rollout - 2, 0)
        assert ("band_gamma" in metrics) == (rollout >= 2)


def test_an_unmeasured_rollout_is_counted_and_teaches_nothing() -> None:
    config = config_of(band=(-0.1, 0.1))
    before = calibrated(-1.0, -0.5, config) | {"band_sum": 1.0}
    after, metrics = measured(before, math.nan, config)
    assert (metrics.pop("band_gamma"), metrics.pop("band_drift")) == pytest.approx((0.5, 0.0))
    assert metrics == {"band_steps": 0.0, "band_steps_in_band": 0.0, "band_unmeasured": 1.0}
    assert {name: after[name] for name in before if name != "band_sum"} == {
        name: before[name] for name in before if name != "band_sum"
    }


def test_margin_is_two_standard_deviations_at_most_to_the_middle() -> None:
    state = {"band_weight": 4.0, "band_square": 0.03}
    assert band.margin(state, ANY) == pytest.approx(2 * 0.1)
    assert band.margin(state, Range(-0.05, 0.05)) == pytest.approx(0.05)
    assert band.margin(calibrated(1.0, 1.0, config_of(band=(-1.0, 1.0), band_warmup=1)), ANY) == 0


def test_drift_and_deviation_by_hand() -> None:
    """gamma = 1 from the warm-up. Then .01 is predicted, too little to learn gamma from, and .03 and .05 more come."""
    config = config_of(band=(-1.0, 1.0), band_warmup=1, band_memory=0.5)
    state = calibrated(1.0, 1.0, config)
    state = state | {"band_weight": 2.0, "band_square": 0.1}  # a noise of .3, beside which .01 is nothing
    state, _ = measured(state | {"band_sum": 0.01}, 0.04, config)
    assert band.drift(state) == pytest.approx(0.03 / 2)
    state, metrics = measured(state | {"band_sum": 0.01}, 0.06, config)
    assert metrics["band_drift"] == pytest.approx((0.5 * 0.03 + 0.05) / 2)
    assert metrics["band_gamma"] == 1.0
    assert state["band_square"] == pytest.approx(0.25 * 0.1 + 0.5 * 0.03**2 + (0.05 - 0.015) ** 2)


def test_the_drift_is_taken_out_of_what_a_step_may_do() -> None:
    config = config_of(band=(-0.3, 1.0), band_warmup=1)
    state = calibrated(-2.0, -1.0, config) | {"band_over": -0.1, "band_weight": 1.0}
    _, summary = step(state, torch.tensor([-3.0, 1.0]), config)
    assert summary.predicted == pytest.approx(-0.2)  # and the drift brings it to -.3


# -- floor and ceiling -----------------------------------------------------------------------------------------------


def test_floor_and_ceiling_move_the_ends_of_the_band() -> None:
    both = config_of(band=(-0.1, 0.2), entropy_floor=0.5, entropy_ceiling=1.5)
    assert [band.limits(both, entropy) for entropy in (0.4, 0.5, 1.5, 1.6, None)] == [
        (0.0, 0.2),
        (-0.1, 0.2),
        (-0.1, 0.2),
        (-0.1, 0.0),
        (-0.1, 0.2),
    ]
    alone = config_of(entropy_floor=0.5)
    assert [band.limits(alone, entropy) for entropy in (0.4, 0.6)] == [(0.0, math.inf), (-math.inf, math.inf)]
    assert band.limits(config_of(band=(0.1, 0.2), entropy_floor=0.5), 0.4) == (0.1, 0.2)


def test_the_first_step_of_a_rollout_decides_for_all_of_it() -> None:
    config = config_of(entropy_floor=0.5, band_warmup=1)

    def signal(entropy: float) -> torch.Tensor:
        return torch.stack([OMEGA, torch.full_like(OMEGA, entropy)], -1)

    state = calibrated(-1.0, -1.0, config)
    state, first = step(state, signal(0.4), config, updates=2.0)
    state, second = step(state, signal(0.6), config, updates=2.0, update=1.0)
    assert (first.damping.side, second.damping.side, state["band_entropy"]) == (-1, -1, pytest.approx(0.4))
    _, metrics = measured(state, -0.01, config)
    assert metrics["band_in_band"] == 0
    state, free = step(state, signal(0.6), config, updates=2.0)
    assert free.damping.side == 0
    state, unknown = step(state, signal(math.nan), config)
    assert (unknown.damping.side, unknown.entropy, "band_entropy" in state) == (0, None, False)


# -- in the intervention ---------------------------------------------------------------------------------------------


def with_influence(tokens: Tokens) -> Tokens:
    generator = torch.Generator().manual_seed(11)
    return replace(tokens, influence_BT=torch.randn(tokens.mask_BT.shape, generator=generator, dtype=torch.float64))


@pytest.mark.parametrize("levels", [{}, {"entropy_floor": 0.1}])
@pytest.mark.parametrize("uniform", [False, True])
def test_from_tokens_to_advantages(make_tokens: Callable[..., Tokens], levels: Any, uniform: bool) -> None:
    config = config_of(band=(-0.01, 0.01), band_warmup=1, **levels)
    tokens = with_influence(make_tokens(seed=2))
    mask = tokens.mask_BT.bool()
    summary = steer.summarize(steer.signal(tokens, config), config)
    state = calibrated(-1.0, -1.0, config) | {"updates": 1.0, "update": 0.0, "momentum": 0.0}
    state, summary = (steer.control_uniform if uniform else steer.control)(state, summary, config)
    shaped = (steer.shape_uniform if uniform else steer.shape)(tokens, summary, config)
    weights = (shaped.advantages_BT / tokens.advantages_BT)[mask]
    omega = (tokens.gradient_BT() * tokens.ratio_BT() * tokens.advantages_BT * tokens.influence_BT)[mask]
    assert weights.min() < 1
    assert shaped.metrics["band_calibrated"] == 1
    assert shaped.metrics["band_predicted"].item() == pytest.approx(float((weights * omega).mean()))
    if uniform:
        assert shaped.metrics["weight_std"].item() == pytest.approx(0.0, abs=1e-12)
    else:
        assert abs(shaped.metrics["band_predicted"].item()) == pytest.approx(0.01)
    assert all(value.ndim == 0 and value.isfinite() for value in shaped.metrics.values())


@pytest.mark.parametrize(
    "fields", [{"lambda_min": 0.4}, {"k": 3.0}, {"weight": "linear", "estimator": "paper"}], ids=str
)
def test_without_a_band_control_hands_back_what_it_got(make_tokens: Callable[..., Tokens], fields: Any) -> None:
    config, tokens, state = SteerConfig(**fields), make_tokens(), {"other": 1.0}
    summary = steer.summarize(steer.signal(tokens, config), config)
    for control in (steer.control, steer.control_uniform):
        after, same = control(state, summary, config)
        assert after is state
        assert same is summary
    assert not any(name.startswith("band") for name in steer.shape(tokens, summary, config).metrics)

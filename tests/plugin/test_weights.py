"""STEER's weights: values worked by hand, and what must not matter."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from steer_openrlhf.config import SteerConfig
from steer_openrlhf.weights import omega_weights, summarize_omega

OMEGA = torch.tensor([0.0, 0.1, -0.2, 0.4], dtype=torch.float64)


def weights(omega: torch.Tensor, **fields: object) -> list[float]:
    config = SteerConfig(**fields)  # type: ignore[arg-type]
    return omega_weights(omega, summarize_omega(omega, config), config).tolist()


def test_lambda_min_is_reached_at_the_largest_omega() -> None:
    assert weights(OMEGA, lambda_min=0.5) == pytest.approx([1.0, 0.5**0.25, 0.5**0.5, 0.5])


def test_absolute_k_by_hand() -> None:
    assert weights(OMEGA, k=3.0) == pytest.approx([1.0, math.exp(-0.3), math.exp(-0.6), math.exp(-1.2)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("floor", [0.0, 0.02])
def test_without_a_band_the_weights_are_the_formulas_own_bits(dtype: torch.dtype, floor: float) -> None:
    omega = (torch.randn(1000, generator=torch.Generator().manual_seed(1)) ** 3 * 1e-3).to(dtype)
    config = SteerConfig(lambda_min=0.7, norm_floor=floor, estimator="influence")
    found = omega_weights(omega, summarize_omega(omega, config), config)
    norm = omega.abs().max().clamp(min=floor)
    expected = torch.exp(math.log(0.7) * (omega.abs() / norm)).clamp(min=0.7, max=1.0)
    assert torch.equal(found, expected)
    assert not config.banded


def test_released_floor_keeps_small_changes_nearly_untouched() -> None:
    small = OMEGA / 100  # largest .004, floor .02: the exponent is a fifth of the way
    assert weights(small, lambda_min=0.8, norm_floor=0.02)[3] == pytest.approx(0.8**0.2)


def test_linear_by_hand_and_its_midpoint() -> None:
    assert weights(OMEGA, weight="linear") == pytest.approx([1.2, 1.1, 1.0, 0.8])
    assert weights(torch.full((3,), 0.7), weight="linear") == pytest.approx([1.0] * 3)


def test_sides_damp_only_their_own_sign() -> None:
    assert weights(OMEGA, lambda_min=0.5, side="falling") == pytest.approx([1.0, 1.0, 0.5, 1.0])
    assert weights(OMEGA, lambda_min=0.5, side="rising") == pytest.approx([1.0, 0.5**0.25, 1.0, 0.5])


def test_all_zero_omega_leaves_every_weight_at_one() -> None:
    assert weights(torch.zeros(4), lambda_min=0.5) == [1.0] * 4


def test_quantile_is_robust_to_one_outlier_where_max_is_not() -> None:
    omega = torch.cat([torch.linspace(0.1, 0.2, 99), torch.tensor([1e4])])
    assert min(weights(omega, lambda_min=0.5)[:99]) > 0.99
    assert max(weights(omega, lambda_min=0.5, normalizer="quantile", quantile=0.99)) < 0.75


def test_quantile_is_the_smallest_value_with_that_share_below() -> None:
    config = SteerConfig(normalizer="quantile", quantile=0.5)
    assert summarize_omega(torch.tensor([4.0, 1.0, 3.0, 2.0]), config).norm.item() == 2.0


def test_not_finite_omega_weighs_one_and_does_not_reach_the_normaliser() -> None:
    omega = torch.tensor([math.nan, math.inf, -math.inf, 0.5])
    assert weights(omega, lambda_min=0.5) == pytest.approx([1.0, 1.0, 1.0, 0.5])


def test_mean_weight_of_the_summary_is_the_mean_of_the_weights() -> None:
    config = SteerConfig(lambda_min=0.6, side="falling")
    summary = summarize_omega(OMEGA, config)
    assert summary.mean_weight.item() == pytest.approx(omega_weights(OMEGA, summary, config).mean().item())


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50), st.randoms(), st.floats(0.01, 1.0))
def test_bounds_and_order(values: list[float], random: object, lambda_min: float) -> None:
    omega = torch.tensor(values, dtype=torch.float64)
    found = torch.tensor(weights(omega, lambda_min=lambda_min), dtype=torch.float64)
    assert ((found >= lambda_min) & (found <= 1)).all()
    order = list(range(len(values)))
    random.shuffle(order)  # type: ignore[attr-defined]
    assert weights(omega[order], lambda_min=lambda_min) == found[order].tolist()

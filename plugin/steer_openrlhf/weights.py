"""STEER's weights from Omega (METHODS section 2; arXiv 2510.10150). Pure functions of tensors and the config."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .config import SteerConfig


@dataclass(frozen=True)
class OmegaSummary:
    """Of all tokens in scope: the normaliser, smallest and largest ``|Omega|`` of the damped side, and the mean weight
    over every token (damped or not). Scalars (0-d tensors); ``norm`` is 0 when no token is damped."""

    norm: Tensor
    low: Tensor
    high: Tensor
    mean_weight: Tensor


def on_side(omega: Tensor, side: str) -> Tensor:
    """Which tokens are damped: both, ``falling`` (Omega < 0, they lower entropy) or ``rising``. Never NaN or inf."""
    chosen = {"both": torch.ones_like(omega, dtype=torch.bool), "falling": omega < 0, "rising": omega > 0}[side]
    return chosen & omega.isfinite()


def summarize_omega(omega_N: Tensor, config: SteerConfig) -> OmegaSummary:
    """The summary of the N response tokens in scope; independent of their order and of how they were cut."""
    magnitude_M = omega_N[on_side(omega_N, config.side)].abs()
    zero = omega_N.new_zeros(())
    if magnitude_M.numel() == 0:
        return OmegaSummary(zero, zero, zero, zero + 1)
    low, high = magnitude_M.min(), magnitude_M.max()
    norm = high if config.quantile is None else _quantile(magnitude_M, config.quantile)
    partial = OmegaSummary(norm, low, high, zero + 1)
    mean = omega_weights(omega_N, partial, config).double().mean().to(omega_N.dtype)
    return OmegaSummary(norm, low, high, mean)


def _quantile(values_M: Tensor, q: float) -> Tensor:
    """The smallest value with at least a share ``q`` of the values at or below it (``torch.quantile`` ends at 2^24)."""
    rank = min(max(math.ceil(q * values_M.numel()), 1), values_M.numel())
    return values_M.kthvalue(rank).values


def omega_weights(omega: Tensor, summary: OmegaSummary, config: SteerConfig) -> Tensor:
    """Weights of the same shape as ``omega``; 1 on tokens that are not damped. Sources: :func:`exp_weights`,
    :func:`linear_weights`."""
    by = exp_weights if config.weight == "exp" else linear_weights
    return torch.where(on_side(omega, config.side), by(omega.abs(), summary, config), torch.ones_like(omega))


def exp_weights(magnitude: Tensor, summary: OmegaSummary, config: SteerConfig) -> Tensor:
    """``exp(-k |Omega|)`` (arXiv 2510.10150, section 4). With ``lambda_min``: ``k = -ln(lambda_min) / max(norm,
    floor)`` and the weight never below ``lambda_min``; when every Omega is 0 every weight is 1."""
    if config.k is not None:
        return torch.exp(-config.k * magnitude)
    assert config.lambda_min is not None
    return torch.exp(math.log(config.lambda_min) * (magnitude / normaliser(summary, config))).clamp(
        min=config.lambda_min, max=1.0
    )


def normaliser(summary: OmegaSummary, config: SteerConfig) -> Tensor:
    """What |Omega| is divided by (0-d): the summary's ``norm``, at least ``norm_floor``, never 0."""
    return summary.norm.clamp(min=max(config.norm_floor, torch.finfo(summary.norm.dtype).tiny))


def linear_weights(magnitude: Tensor, summary: OmegaSummary, config: SteerConfig) -> Tensor:
    """``lambda_max - (|Omega| - min)(lambda_max - lambda_min)/(max - min)``, the released code's other form; constant
    ``|Omega|`` gives the midpoint. The released 0.8/1.2 raise the mean weight above 1: like a larger learning rate.
    """
    assert config.lambda_min is not None
    assert config.lambda_max is not None
    top = summary.norm if config.normalizer == "quantile" else summary.high
    spread = top - summary.low
    share = ((magnitude - summary.low) / spread.clamp(min=torch.finfo(magnitude.dtype).tiny)).clamp(0.0, 1.0)
    share = torch.where(spread > 0, share, torch.full_like(share, 0.5))
    return config.lambda_max - share * (config.lambda_max - config.lambda_min)

"""The interventions ``steer`` (arXiv 2510.10150) and its control ``uniform``: Omega -> weight -> weighted advantage.

A weight w > 0 on the per-token loss is exactly the same weight on the advantage, because every branch of OpenRLHF's
``PolicyLoss`` is positively homogeneous in the advantage. Nothing of the loss is repeated here. With an entropy band,
floor or ceiling (:mod:`steer_openrlhf.band`) the weights follow what the entropy does; without one none of that runs.
"""

import torch
from torch import Tensor

from .. import band
from ..band import BandSummary
from ..config import SteerConfig
from ..omega import ESTIMATORS
from ..tokens import RolloutChange, Shaped, Tokens
from ..weights import OmegaSummary, normaliser, omega_weights, summarize_omega

QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
AT_MINIMUM = 1.01  # a weight within 1 % of lambda_min counts as being there


Summary = OmegaSummary | BandSummary
State = dict[str, float]


def signal(tokens: Tokens, config: SteerConfig) -> Tensor:
    """Omega of the response tokens of a micro-batch, ``[N]``; with their entropy ``[N, 2]``, for a floor or ceiling."""
    mask_BT = tokens.mask_BT.bool()
    omega_N = ESTIMATORS[config.estimator](tokens)[mask_BT]
    return torch.stack([omega_N, tokens.entropy_BT[mask_BT]], dim=-1) if config.leveled else omega_N


def summarize(signals: Tensor, config: SteerConfig) -> Summary:
    """The normaliser and mean weight over all tokens in scope; for a band, all it needs to find its damping."""
    if not config.banded:
        return summarize_omega(signals, config)
    omega_N = signals[:, 0] if config.leveled else signals
    known = config.leveled and bool(signals[:, 1].isfinite().any())
    entropy = band.finite_mean(signals[:, 1]) if known else None
    return BandSummary(omega_N, normaliser(summarize_omega(omega_N, config), config), entropy)


def control(state: State, summary: Summary, config: SteerConfig) -> tuple[State, Summary]:
    """The band's damping of this optimizer step; nothing without a band."""
    return band.control(state, summary, config) if isinstance(summary, BandSummary) else (state, summary)


def control_uniform(state: State, summary: Summary, config: SteerConfig) -> tuple[State, Summary]:
    """As :func:`control`, for weights that are all equal to the mean weight."""
    return band.control(state, summary, config, uniform=True) if isinstance(summary, BandSummary) else (state, summary)


def observe(state: State, change: RolloutChange, config: SteerConfig) -> tuple[State, dict[str, float]]:
    """The band's calibration and account of a rollout; only called with a band (``Intervention.observes``)."""
    return band.observe(state, change, config)


def shape(tokens: Tokens, summary: Summary, config: SteerConfig) -> Shaped:
    """Advantages times ``exp(-k|Omega|)`` (or the linear form, or the band's). The weights carry no gradient."""
    omega_BT = ESTIMATORS[config.estimator](tokens)
    if isinstance(summary, BandSummary):
        weights_BT = band.band_weights(omega_BT, summary, config)
    else:
        weights_BT = omega_weights(omega_BT, summary, config)
    return _shaped(tokens, omega_BT, weights_BT, summary, config)


def shape_uniform(tokens: Tokens, summary: Summary, config: SteerConfig) -> Shaped:
    """The control arm: every weight equal to STEER's mean weight, to tell its gain from a smaller learning rate."""
    omega_BT = ESTIMATORS[config.estimator](tokens)
    weights_BT = torch.ones_like(omega_BT) * summary.mean_weight
    return _shaped(tokens, omega_BT, weights_BT, summary, config)


def _shaped(tokens: Tokens, omega_BT: Tensor, weights_BT: Tensor, summary: Summary, config: SteerConfig) -> Shaped:
    metrics = _metrics(tokens, omega_BT, weights_BT, config)
    if isinstance(summary, BandSummary):
        metrics |= {name: omega_BT.new_tensor(value) for name, value in _band_metrics(summary).items()}
    return Shaped(tokens.advantages_BT * weights_BT, metrics)


def _band_metrics(summary: BandSummary) -> dict[str, float]:
    """Of one optimizer step; OpenRLHF averages them over a rollout. What only a calibrated band has is absent before:
    gamma, the predicted change of this step (nats per token), and whether it lies in the step's share of the band."""
    damping = summary.damping
    metrics = {"band_strength": damping.strength, "band_side": float(damping.side), "band_calibrated": 0.0}
    if summary.gamma is None or summary.predicted is None:
        return metrics
    known = {"band_gamma": summary.gamma, "band_predicted": summary.predicted, "band_reached": float(damping.reached)}
    return metrics | known | {"band_calibrated": 1.0}


def _metrics(tokens: Tokens, omega_BT: Tensor, weights_BT: Tensor, config: SteerConfig) -> dict[str, Tensor]:
    """Scalars over the response tokens of the micro-batch: weights, |Omega| and its quantiles, and the share that was
    not finite. OpenRLHF averages them over micro-batches, ranks and updates, as it does its own."""
    mask_BT = tokens.mask_BT.bool()
    omega_N, weights_N = omega_BT[mask_BT], weights_BT[mask_BT]
    finite_N = omega_N[omega_N.isfinite()]
    some = finite_N if finite_N.numel() else omega_BT.new_zeros(1)
    weights_N = weights_N if weights_N.numel() else omega_BT.new_ones(1)
    floor = config.lambda_min if config.lambda_min is not None else 0.0
    metrics = {
        "weight_mean": weights_N.mean(),
        "weight_std": weights_N.std(correction=0),
        "weight_at_min": (weights_N <= floor * AT_MINIMUM).to(weights_N.dtype).mean(),
        "omega_mean": some.mean(),
        "omega_abs_mean": some.abs().mean(),
        "omega_abs_max": some.abs().max(),
        "nonfinite_omega": (~omega_N.isfinite()).to(omega_BT.dtype).sum() / max(omega_N.numel(), 1),
    }
    ordered = some.abs().sort().values
    for name, q in QUANTILES.items():
        metrics[f"omega_abs_{name}"] = ordered[min(int(q * ordered.numel()), ordered.numel() - 1)]
    return metrics

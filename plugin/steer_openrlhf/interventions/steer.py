"""The interventions ``steer`` (arXiv 2510.10150) and its control ``uniform``: Omega -> weight -> weighted advantage.

A weight w > 0 on the per-token loss is exactly the same weight on the advantage, because every branch of OpenRLHF's
``PolicyLoss`` is positively homogeneous in the advantage. Nothing of the loss is repeated here.
"""

import torch
from torch import Tensor

from ..config import SteerConfig
from ..omega import ESTIMATORS
from ..tokens import Shaped, Tokens
from ..weights import OmegaSummary, omega_weights, summarize_omega

QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
AT_MINIMUM = 1.01  # a weight within 1 % of lambda_min counts as being there


def signal(tokens: Tokens, config: SteerConfig) -> Tensor:
    """Omega of the response tokens of a micro-batch, ``[N]``."""
    return ESTIMATORS[config.estimator](tokens)[tokens.mask_BT.bool()]


def summarize(signal_N: Tensor, config: SteerConfig) -> OmegaSummary:
    """The normaliser and mean weight over all tokens in scope."""
    return summarize_omega(signal_N, config)


def shape(tokens: Tokens, summary: OmegaSummary, config: SteerConfig) -> Shaped:
    """Advantages times ``exp(-k|Omega|)`` (or the linear form). The weights carry no gradient."""
    omega_BT = ESTIMATORS[config.estimator](tokens)
    weights_BT = omega_weights(omega_BT, summary, config)
    return Shaped(tokens.advantages_BT * weights_BT, _metrics(tokens, omega_BT, weights_BT, config))


def shape_uniform(tokens: Tokens, summary: OmegaSummary, config: SteerConfig) -> Shaped:
    """The control arm: every weight equal to STEER's mean weight, to tell its gain from a smaller learning rate."""
    omega_BT = ESTIMATORS[config.estimator](tokens)
    weights_BT = torch.ones_like(omega_BT) * summary.mean_weight
    return Shaped(tokens.advantages_BT * weights_BT, _metrics(tokens, omega_BT, weights_BT, config))


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

"""``clip_b`` and ``clip_v``: mask outliers of the entropy discriminator ``S = pi (log pi + H)`` (arXiv 2602.03392).

A step of weight A changes the entropy by ``-A (S - E[S])`` to first order (their Theorem 3.3). With the deviation
``D = E[S] - S``, E over the batch (``clip_b``) or over the vocabulary of the token (``clip_v``; E[S] is
:attr:`..tokens.Tokens.collision_BT`), a token lowers entropy by ``-A D``.

The released code (Trinity-RFT, ``ClipBAdvantageFn``, ``ClipVAdvantageFn``) masks only tokens with A < 0 and
``D > mu std(D)``: ``side negative``, the default. ``lowering`` adds those with A > 0 and ``D < -mu std(D)``, which
lower entropy too; ``all`` masks ``|D| > mu std(D)``, the two-sided outliers, as the paper's text may be read.

Deviations: statistics are of the optimizer step and the present policy, theirs of the rollout and the old one. Masked
tokens keep the denominator, theirs leave it. A deviation that is not finite masks nothing and is counted.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..tokens import Shaped, Tokens
from .common import columns, finite_mean, floor_share, known, largest, masked_out, mean_over, nonfinite
from .configs import ClipBConfig, ClipVConfig

SMALLEST_STD = 1e-12  # below it nothing is an outlier, as in the released code


@dataclass(frozen=True)
class DeviationSummary:
    """Of the step, 0-d tensors: mean of S subtracted by ``clip_b`` (0 for ``clip_v``), population standard deviation of
    the deviation, and the violation from which on an outlier is masked (-inf: all of them)."""

    center: Tensor
    std: Tensor
    threshold: Tensor


def discriminator(tokens: Tokens) -> Tensor:
    """``S = pi (log pi + H)`` of each token, nats. Returns ``s_BT``."""
    return tokens.log_probs_BT.exp() * (tokens.log_probs_BT + tokens.entropy_BT)


def violation(deviation: Tensor, advantages: Tensor, side: str) -> Tensor:
    """How far out a token is on the masked side, in units of D; -inf on the other side, where A = 0, and where D is
    not finite."""
    lowering = -torch.sign(advantages) * deviation
    chosen = {"negative": advantages < 0, "lowering": advantages != 0, "all": advantages != 0}[side]
    value = deviation.abs() if side == "all" else lowering
    return torch.where(chosen & deviation.isfinite(), value, torch.full_like(value, -torch.inf))


def signal_clip_b(tokens: Tokens, config: ClipBConfig) -> Tensor:
    """``-S`` and advantage of each response token, ``[N, 2]``."""
    return columns(tokens, -discriminator(tokens), tokens.advantages_BT)


def signal_clip_v(tokens: Tokens, config: ClipVConfig) -> Tensor:
    """``E[S] - S`` and advantage of each response token, ``[N, 2]``."""
    return columns(tokens, tokens.collision_BT - discriminator(tokens), tokens.advantages_BT)


def summarize_clip_b(signal_N2: Tensor, config: ClipBConfig) -> DeviationSummary:
    """Centre, spread and, with ``max_share``, the threshold of the farthest outliers."""
    center = finite_mean(signal_N2[:, 0])
    return _summarize(signal_N2, center, config)


def summarize_clip_v(signal_N2: Tensor, config: ClipVConfig) -> DeviationSummary:
    """As :func:`summarize_clip_b`, around 0: the deviation's expectation over the vocabulary vanishes."""
    return _summarize(signal_N2, signal_N2.new_zeros(()), config)


def _summarize(signal_N2: Tensor, center: Tensor, config: ClipBConfig | ClipVConfig) -> DeviationSummary:
    value_N, advantage_N = signal_N2.unbind(-1)
    spread = (value_N[value_N.isfinite()] - finite_mean(value_N)).square().mean().sqrt()
    out_N = violation(value_N - center, advantage_N, config.side)
    outliers_M = out_N[(out_N > config.mu * spread) & (spread > SMALLEST_STD)]
    threshold = value_N.new_full((), -torch.inf)
    if config.max_share is not None:
        threshold = largest(outliers_M, floor_share(config.max_share, value_N.numel()))
    return DeviationSummary(center, spread, threshold)


def shape_clip_b(tokens: Tokens, summary: DeviationSummary, config: ClipBConfig) -> Shaped:
    """Weight 0 on outliers of S around its mean over the batch: ``mu`` 2.5, useful 2-3 (see the module)."""
    return _shape(tokens, -discriminator(tokens), summary, config)


def shape_clip_v(tokens: Tokens, summary: DeviationSummary, config: ClipVConfig) -> Shaped:
    """Weight 0 on outliers of S around its mean over the vocabulary: ``mu`` 8.5, useful 7.5-8.5, and of these only the
    ``max(1, floor(max_share N))`` farthest out (1e-4 in the released code; see the module)."""
    return _shape(tokens, tokens.collision_BT - discriminator(tokens), summary, config)


def _shape(tokens: Tokens, value_BT: Tensor, summary: DeviationSummary, config: ClipBConfig | ClipVConfig) -> Shaped:
    value_BT = value_BT.double()
    out_BT = violation(value_BT - summary.center, tokens.advantages_BT.double(), config.side)
    outlier_BT = (out_BT > config.mu * summary.std) & (summary.std > SMALLEST_STD)
    masked_BT = outlier_BT & (out_BT >= summary.threshold)
    metrics = {
        "share_outliers": mean_over(outlier_BT.double(), tokens.mask_BT),
        "deviation_std": known(summary.std),
        "deviation_mean": mean_over(value_BT - summary.center, tokens.mask_BT),
        "nonfinite_deviation": nonfinite(value_BT, tokens.mask_BT),
    }
    return masked_out(tokens, masked_BT, **metrics)

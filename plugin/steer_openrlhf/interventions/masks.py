"""Tokens kept or dropped by their entropy: ``forking_tokens`` (80/20 rule) and ``erc`` (entropy ratio clipping)."""

from dataclasses import dataclass

from torch import Tensor

from ..tokens import Shaped, Tokens
from .common import ceil_share, columns, known, largest, masked_out, mean_over, nonfinite, reweighted
from .configs import ErcConfig, ForkingTokensConfig

RATIO_EPSILON = 1e-8  # nats, added to both entropies in the released code: the ratio of a certain token is 1


@dataclass(frozen=True)
class ForkingSummary:
    """Of the step: the entropy (nats) from which on a token is kept, +inf when none is finite, and the weight of a kept
    token, tokens per kept token. 0-d tensors."""

    threshold: Tensor
    weight: Tensor


def signal_forking_tokens(tokens: Tokens, config: ForkingTokensConfig) -> Tensor:
    """Entropy of each response token, ``[N]``."""
    return columns(tokens, tokens.entropy_BT).squeeze(-1)


def summarize_forking_tokens(entropy_N: Tensor, config: ForkingTokensConfig) -> ForkingSummary:
    """The threshold ``ceil(keep N)`` tokens reach, and how many tokens there are for one that is kept."""
    threshold = largest(entropy_N, ceil_share(config.keep, entropy_N.numel()))
    kept = (entropy_N.isfinite() & (entropy_N >= threshold)).double().sum()
    return ForkingSummary(threshold, entropy_N.numel() / kept.clamp(min=1))


def shape_forking_tokens(tokens: Tokens, summary: ForkingSummary, config: ForkingTokensConfig) -> Shaped:
    """Only tokens among the top ``keep`` by entropy are trained, and the loss is their mean (arXiv 2506.01939;
    20 %): weight ``N / kept`` on them, 0 elsewhere, so that OpenRLHF's token mean over N divides by the kept count.

    Deviations: exact for ``--actor.loss_agg_mode token-mean`` only. The threshold is the step's and of the present
    policy. A token whose entropy is not finite cannot be among the top and is not trained; it is counted.
    """
    entropy_BT = tokens.entropy_BT.double()
    kept_BT = entropy_BT.isfinite() & (entropy_BT >= summary.threshold)
    metrics = {
        "entropy_threshold": known(summary.threshold),
        "nonfinite_entropy": nonfinite(tokens.entropy_BT, tokens.mask_BT),
    }
    return reweighted(tokens, kept_BT * summary.weight, kept_BT, **metrics)


def shape_erc(tokens: Tokens, summary: None, config: ErcConfig) -> Shaped:
    """No gradient where ``(H + 1e-8) / (H_old + 1e-8)`` is not inside ``(low, high)`` (arXiv 2512.05591 and its
    released code; 0.95 and 1.05). Dropped tokens keep the denominator. H_old is of the policy before the rollout's
    first update, so the first update drops nothing.

    Deviations: the released code keeps the dropped tokens' value in the reported loss, here it is 0; the gradient is
    the same. A ratio that is not finite drops nothing and is counted.
    """
    assert tokens.old_entropy_BT is not None
    ratio_BT = (tokens.entropy_BT + RATIO_EPSILON) / (tokens.old_entropy_BT + RATIO_EPSILON)
    above_BT, below_BT = ratio_BT >= config.high, ratio_BT <= config.low
    dropped_BT = ratio_BT.isfinite() & (above_BT | below_BT)
    metrics = {
        "entropy_ratio_mean": mean_over(ratio_BT, tokens.mask_BT, empty=1.0),
        "share_above": mean_over((dropped_BT & above_BT).double(), tokens.mask_BT),
        "share_below": mean_over((dropped_BT & below_BT).double(), tokens.mask_BT),
        "nonfinite_entropy_ratio": nonfinite(ratio_BT, tokens.mask_BT),
    }
    return masked_out(tokens, dropped_BT, **metrics)

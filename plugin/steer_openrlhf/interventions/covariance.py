"""``clip_cov`` and ``kl_cov``: tokens of large covariance between log-prob and advantage (arXiv 2505.22617, verl).

``cov = (A - mean A)(log pi - mean log pi)``, means over all response tokens of the optimizer step. The released code
takes means and selections within a micro-batch of one GPU, so its methods depend on packing; here they are of the step.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..tokens import NO_CLIP, Shaped, Tokens
from .common import columns, finite_mean, floor_share, known, largest, masked_out, mean_over, share, smallest
from .configs import ClipCovConfig, KlCovConfig


@dataclass(frozen=True)
class CovSummary:
    """Of the step: mean advantage and mean log-prob (nats) of all response tokens, and the threshold of the selection,
    on the token's random number (``clip_cov``, at most) or on its covariance (``kl_cov``, at least). 0-d tensors."""

    advantage: Tensor
    log_prob: Tensor
    threshold: Tensor

    def covariance(self, advantages: Tensor, log_probs: Tensor) -> Tensor:
        """``(A - mean A)(log pi - mean log pi)``, float64."""
        return (advantages.double() - self.advantage) * (log_probs.double() - self.log_prob)


def _summarize(advantage_N: Tensor, log_prob_N: Tensor) -> CovSummary:
    return CovSummary(finite_mean(advantage_N), finite_mean(log_prob_N), advantage_N.new_zeros(()))


def _clipped(tokens: Tokens) -> Tensor:
    """Tokens that PPO's clipping already stops."""
    return (tokens.gradient_BT() == 0) & (tokens.advantages_BT != 0)


def signal_clip_cov(tokens: Tokens, config: ClipCovConfig) -> Tensor:
    """Advantage, log-prob, whether clipped, and random number of each response token, ``[N, 4]``."""
    assert tokens.random_BT is not None
    return columns(tokens, tokens.advantages_BT, tokens.log_probs_BT, _clipped(tokens), tokens.random_BT)


def summarize_clip_cov(signal_N4: Tensor, config: ClipCovConfig) -> CovSummary:
    """The random number up to which eligible tokens are drawn: ``max(1, floor(ratio N))`` of them, N all tokens."""
    advantage_N, log_prob_N, clipped_N, random_N = signal_N4.unbind(-1)
    means = _summarize(advantage_N, log_prob_N)
    covariance_N = means.covariance(advantage_N, log_prob_N)
    eligible_N = (covariance_N > config.lb) & (covariance_N < config.ub) & (clipped_N == 0)
    count = floor_share(config.ratio, covariance_N.numel())
    return CovSummary(means.advantage, means.log_prob, smallest(random_N[eligible_N], count))


def shape_clip_cov(tokens: Tokens, summary: CovSummary, config: ClipCovConfig) -> Shaped:
    """Weight 0 on ``max(1, floor(ratio N))`` tokens drawn at random among ``lb < cov < ub`` that PPO does not clip
    (arXiv 2505.22617, Clip-Cov; 2e-4, 1 and 5 are verl's ``compute_policy_loss_clip_cov``). The denominator stays.

    Deviations: the draw takes the tokens of smallest :func:`..tokens.token_uniforms`, so equal answers to one prompt,
    which share their numbers, are drawn together. A token that dual clip stops counts as clipped.
    """
    assert tokens.random_BT is not None
    covariance_BT = summary.covariance(tokens.advantages_BT, tokens.log_probs_BT)
    eligible_BT = (covariance_BT > config.lb) & (covariance_BT < config.ub) & ~_clipped(tokens)
    chosen_BT = eligible_BT & (tokens.random_BT.double() <= summary.threshold)
    metrics = {"share_eligible": share(eligible_BT, tokens.mask_BT)}
    return masked_out(tokens, chosen_BT, **_metrics(tokens, covariance_BT), **metrics)


def signal_kl_cov(tokens: Tokens, config: KlCovConfig) -> Tensor:
    """Advantage and log-prob of each response token, ``[N, 2]``."""
    return columns(tokens, tokens.advantages_BT, tokens.log_probs_BT)


def summarize_kl_cov(signal_N2: Tensor, config: KlCovConfig) -> CovSummary:
    """The covariance from which on a token is under the penalty: ``max(1, floor(ratio N))`` tokens."""
    advantage_N, log_prob_N = signal_N2.unbind(-1)
    means = _summarize(advantage_N, log_prob_N)
    covariance_N = means.covariance(advantage_N, log_prob_N)
    count = floor_share(config.ratio, covariance_N.numel())
    return CovSummary(means.advantage, means.log_prob, largest(covariance_N, count))


def shape_kl_cov(tokens: Tokens, summary: CovSummary, config: KlCovConfig) -> Shaped:
    """``-A r`` without clipping, plus ``beta |log pi - log pi_old|`` on the ``max(1, floor(ratio N))`` tokens of
    largest covariance (arXiv 2505.22617, KL-Cov; 2e-4 and 1 are verl's ``compute_policy_loss_kl_cov``).

    Deviation: only tokens of positive covariance, so a step of zero advantages, where every covariance ties at 0, has
    no penalty. ``--actor.eps_clip_low_high`` does nothing; ``--actor.dual_clip`` would still bound A < 0: leave it out.
    """
    covariance_BT = summary.covariance(tokens.advantages_BT, tokens.log_probs_BT)
    chosen_BT = tokens.mask_BT.bool() & (covariance_BT >= summary.threshold) & (covariance_BT > 0)
    old_BT, penalty_BT = tokens.old_log_probs_BT, config.beta * chosen_BT.to(tokens.log_probs_BT.dtype)
    distance_BT = (tokens.log_probs_BT - old_BT).abs()
    metrics = {
        "share_selected": share(chosen_BT, tokens.mask_BT),
        "cov_threshold": known(summary.threshold),
        "penalty_mean": mean_over(penalty_BT * distance_BT, tokens.mask_BT),
    }
    return Shaped(
        tokens.advantages_BT,
        metrics | _metrics(tokens, covariance_BT),
        clip=NO_CLIP,
        extra_loss=lambda log_probs_BT: penalty_BT * (log_probs_BT - old_BT).abs(),
    )


def _metrics(tokens: Tokens, covariance_BT: Tensor) -> dict[str, Tensor]:
    covariance_N = covariance_BT[tokens.mask_BT.bool()]
    spread = covariance_N.abs().max() if covariance_N.numel() else covariance_BT.new_zeros(())
    return {"cov_mean": mean_over(covariance_BT, tokens.mask_BT), "cov_abs_max": torch.nan_to_num(spread)}

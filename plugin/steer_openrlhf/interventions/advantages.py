"""Advantages shaped by sign, entropy or surprisal: ``entropy_advantage``, ``w_reinforce``, ``stare``."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..tokens import Shaped, Tokens
from .common import ceil_share, columns, finite_mean, known, largest, mean_over, nonfinite, reweighted, share
from .configs import EntropyAdvantageConfig, StareConfig, WReinforceConfig


def shape_entropy_advantage(tokens: Tokens, summary: None, config: EntropyAdvantageConfig) -> Shaped:
    """``A + min(alpha H, |A| / kappa)``, H without gradient (arXiv 2506.14758; alpha 0.4, kappa 2 are its defaults).

    kappa > 1 keeps the sign. A token with A = 0, or whose entropy is not finite, gets nothing. H is the present
    policy's, as in the released code.
    """
    limit_BT = tokens.advantages_BT.abs() / config.kappa
    wanted_BT = config.alpha * torch.nan_to_num(tokens.entropy_BT, nan=0.0, posinf=0.0, neginf=0.0).clamp(min=0)
    bonus_BT = torch.minimum(wanted_BT.to(limit_BT.dtype), limit_BT)
    mask_BT = tokens.mask_BT
    metrics = {
        "share_selected": share(bonus_BT > 0, mask_BT),
        "share_at_limit": share((bonus_BT > 0) & (wanted_BT >= limit_BT), mask_BT),
        "bonus_mean": mean_over(bonus_BT, mask_BT),
        "nonfinite_entropy": nonfinite(tokens.entropy_BT, mask_BT),
    }
    return Shaped(tokens.advantages_BT + bonus_BT, metrics)


def shape_w_reinforce(tokens: Tokens, summary: None, config: WReinforceConfig) -> Shaped:
    """``lambda_positive A`` where A > 0, ``lambda_negative A`` where A < 0 (arXiv 2506.01347, W-REINFORCE, lambda 0.1;
    PSR is 1 and 0, NSR 0 and 1).

    Deviation: the paper's advantage is the reward itself, +1 or -1. Here it is whatever ``--algo.advantage.estimator``
    gives; for advantages without group normalisation see ``INTERVENTIONS.md``. PPO's clipping stays, as in their code.
    """
    advantages_BT = tokens.advantages_BT
    ones_BT = torch.ones_like(advantages_BT)
    weights_BT = torch.where(advantages_BT > 0, config.lambda_positive * ones_BT, config.lambda_negative * ones_BT)
    weights_BT = torch.where(advantages_BT == 0, ones_BT, weights_BT)
    metrics = {"share_positive": share(advantages_BT > 0, tokens.mask_BT)}
    return reweighted(tokens, weights_BT, weights_BT != 1, **metrics)


@dataclass(frozen=True)
class StareSummary:
    """Of the step: mean entropy H (nats, NaN when none is finite), and the surprisals (nats) from which on a token
    belongs to the top share of the tokens with A > 0 and with A < 0 (+inf without such tokens). 0-d tensors."""

    entropy: Tensor
    positive: Tensor
    negative: Tensor


def signal_stare(tokens: Tokens, config: StareConfig) -> Tensor:
    """Entropy, surprisal and advantage of each response token, ``[N, 3]``."""
    return columns(tokens, tokens.entropy_BT, -tokens.log_probs_BT, tokens.advantages_BT)


def summarize_stare(signal_N3: Tensor, config: StareConfig) -> StareSummary:
    """Both thresholds: ``ceil(share n)`` of the n tokens of a sign, at least one."""
    entropy_N, surprisal_N, advantage_N = signal_N3.unbind(-1)
    positive_M, negative_M = surprisal_N[advantage_N > 0], surprisal_N[advantage_N < 0]
    top_positive, top_negative = (
        largest(part_M, ceil_share(config.share, part_M.numel())) for part_M in (positive_M, negative_M)
    )
    return StareSummary(finite_mean(entropy_N), top_positive, top_negative)


def shape_stare(tokens: Tokens, summary: StareSummary, config: StareConfig) -> Shaped:
    """While mean H < target: ``weight A`` on the top ``share`` by surprisal ``-log pi`` among A > 0, and
    ``weight_negative A`` on those among A < 0 (arXiv 2606.19236, section 4 and its released code: 10 %, 1.1, target
    0.3; variant O1 has ``weight_negative`` 1, C2 0.9). Otherwise, and if no entropy is finite, every weight is 1.

    Deviations: their top share is taken within a micro-batch and their gate from the rollout's entropy; both are of the
    optimizer step here. The adaptive schedule of their section 4.4 is left out.
    """
    surprisal_BT, advantages_BT = -tokens.log_probs_BT.double(), tokens.advantages_BT
    gate = summary.entropy < config.target_entropy
    positive_BT = gate & (advantages_BT > 0) & (surprisal_BT >= summary.positive)
    negative_BT = gate & (advantages_BT < 0) & (surprisal_BT >= summary.negative) & (config.weight_negative != 1)
    weights_BT = torch.ones_like(advantages_BT)
    weights_BT = torch.where(positive_BT, config.weight * weights_BT, weights_BT)
    weights_BT = torch.where(negative_BT, config.weight_negative * weights_BT, weights_BT)
    metrics = {
        "gate": gate.to(advantages_BT.dtype),
        "step_entropy": known(summary.entropy),
        "nonfinite_entropy": nonfinite(tokens.entropy_BT, tokens.mask_BT),
    }
    return reweighted(tokens, weights_BT, positive_BT | negative_BT, **metrics)

"""Feedback on the mean entropy of the optimizer step: ``entropic`` (PI controller) and ``positive_reweight``."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..tokens import MAX_LOG_RATIO, Shaped, Tokens
from .common import columns, finite_mean, known, mean_over, nonfinite, reweighted, share
from .configs import EntropicConfig, PositiveReweightConfig

State = dict[str, float]


@dataclass(frozen=True)
class ControlSummary:
    """Of the step: mean entropy (nats, NaN when none is finite), how many tokens there are for one of high probability
    (``entropic``), and the controller's output, set by ``control``. 0-d tensors."""

    entropy: Tensor
    tokens_per_high: Tensor
    output: Tensor


def signal_entropic(tokens: Tokens, config: EntropicConfig) -> Tensor:
    """Entropy and log-prob of each response token, ``[N, 2]``."""
    return columns(tokens, tokens.entropy_BT, tokens.log_probs_BT)


def summarize_entropic(signal_N2: Tensor, config: EntropicConfig) -> ControlSummary:
    """Mean entropy, and tokens per token of high probability."""
    entropy_N, log_prob_N = signal_N2.unbind(-1)
    high = (log_prob_N > math.log(config.high_prob)).double().sum()
    zero = entropy_N.new_zeros(())
    return ControlSummary(finite_mean(entropy_N), log_prob_N.numel() / high.clamp(min=1), zero)


def control_entropic(state: State, summary: ControlSummary, config: EntropicConfig) -> tuple[State, ControlSummary]:
    """``a = clip(kp (H - H*) + ki sum (H - H*), +-limit)``, the sum over this and all earlier steps (arXiv 2511.15248;
    1, 0.01 and +-1). ``integral`` is the sum, nats. A step without a finite entropy moves nothing and has a = 0.

    Deviation: the released code adds the present error after use, a difference of ki times it. The sum is not bounded,
    as there.
    """
    error = float(summary.entropy) - config.target_entropy
    if not math.isfinite(error):
        return state, summary
    integral = state.get("integral", 0.0) + error
    output = min(max(config.kp * error + config.ki * integral, -config.limit), config.limit)
    return {**state, "integral": integral}, replace(summary, output=torch.full_like(summary.entropy, output))


def shape_entropic(tokens: Tokens, summary: ControlSummary, config: EntropicConfig) -> Shaped:
    """PPO plus ``a (-r |A|)``, without clipping, averaged over the tokens of ``pi > high_prob`` (arXiv 2511.15248
    and its released code; 0.95). Above the target a > 0 raises these tokens' probability, which lowers entropy.

    Deviations: the mean is over the high tokens of the optimizer step, theirs over those of a micro-batch (exact for
    ``--actor.loss_agg_mode token-mean``). ``--actor.dual_clip`` bounds PPO's part only, as there.
    """
    high_BT = tokens.mask_BT.bool() & (tokens.log_probs_BT.double() > math.log(config.high_prob))
    scale = summary.output * summary.tokens_per_high
    pushed_BT = (high_BT * scale * tokens.advantages_BT.abs()).to(tokens.advantages_BT.dtype)
    old_BT = tokens.old_log_probs_BT
    metrics = {
        "share_selected": share(high_BT & (pushed_BT != 0), tokens.mask_BT),
        "share_high": share(high_BT, tokens.mask_BT),
        "controller_output": summary.output,
        "step_entropy": known(summary.entropy),
        "entropy_error": known(summary.entropy - config.target_entropy),
        "nonfinite_entropy": nonfinite(tokens.entropy_BT, tokens.mask_BT),
    }

    def extra(log_probs_BT: Tensor) -> Tensor:
        return -pushed_BT * (log_probs_BT - old_BT).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()

    return Shaped(tokens.advantages_BT, metrics, extra_loss=extra)


def signal_positive_reweight(tokens: Tokens, config: PositiveReweightConfig) -> Tensor:
    """Entropy of each response token, ``[N]``."""
    return columns(tokens, tokens.entropy_BT).squeeze(-1)


def summarize_positive_reweight(entropy_N: Tensor, config: PositiveReweightConfig) -> ControlSummary:
    """Mean entropy; the output is the weight, until ``control`` says otherwise the first one."""
    one = entropy_N.new_ones(())
    return ControlSummary(finite_mean(entropy_N), one, config.initial * one)


def control_positive_reweight(
    state: State, summary: ControlSummary, config: PositiveReweightConfig
) -> tuple[State, ControlSummary]:
    """``lambda_{k+1} = clip(lambda_k -+ delta, 0, 1)``: down when H_k < H*, else up (arXiv 2511.05993, their
    entropy-guided variant; lambda_0 = 0, delta 0.05, H* 0.2). k counts rollouts: H_k is of a rollout's first update,
    and the weight holds for all of its updates. Without a finite entropy it stays.

    ``lambda`` is the weight in force, ``lambda_next`` the next rollout's.
    """
    weight = state.get("lambda", config.initial)
    if state.get("update", 0.0) == 0:
        weight = state.get("lambda_next", config.initial)
        moved, entropy = weight, float(summary.entropy)
        if math.isfinite(entropy):
            moved = weight - config.delta if entropy < config.target_entropy else weight + config.delta
        state = {**state, "lambda": weight, "lambda_next": min(max(moved, 0.0), 1.0)}
    return state, replace(summary, output=torch.full_like(summary.entropy, weight))


def shape_positive_reweight(tokens: Tokens, summary: ControlSummary, config: PositiveReweightConfig) -> Shaped:
    """``lambda A`` where A > 0, A elsewhere (arXiv 2511.05993, section 7.3), lambda from
    :func:`control_positive_reweight`. Their stage-based and epoch-wise schedules of lambda are left out.
    """
    positive_BT = tokens.advantages_BT > 0
    weights_BT = torch.where(positive_BT, summary.output.to(tokens.advantages_BT.dtype), 1.0)
    metrics = {
        "lambda": summary.output,
        "step_entropy": known(summary.entropy),
        "share_positive": mean_over(positive_BT.double(), tokens.mask_BT),
        "nonfinite_entropy": nonfinite(tokens.entropy_BT, tokens.mask_BT),
    }
    return reweighted(tokens, weights_BT, positive_BT & (weights_BT != 1), **metrics)

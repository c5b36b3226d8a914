"""Other clip ranges, and gradient beyond them: ``dcpo`` and ``ce_gppo``."""

import torch
from torch import Tensor

from ..tokens import Shaped, Tokens
from .common import mean_over, share
from .configs import CeGppoConfig, DcpoConfig


def dynamic_bounds(old_probs: Tensor, config: DcpoConfig) -> tuple[Tensor, Tensor]:
    """``.5 + .5 sqrt(max(1 - 4 eps_low/q, 0))`` and ``.5 + .5 sqrt(1 + 4 eps_high/q)``, the latter at most r_max: the
    smallest and largest ratio of a token of old probability q (arXiv 2509.02333, dynamic-adaptive clipping; the
    released ``get_clip_low_high``)."""
    low = 0.5 + 0.5 * (1 - 4 * config.eps_low / old_probs).clamp(min=0).sqrt()
    high = 0.5 + 0.5 * (1 + 4 * config.eps_high / old_probs).sqrt()
    return low, high.clamp(max=config.r_max)


def shape_dcpo(tokens: Tokens, summary: None, config: DcpoConfig) -> Shaped:
    """PPO with the clip range of :func:`dynamic_bounds`: rare tokens may move farther (arXiv 2509.02333; 0.16, 0.2, and
    10 as the largest ratio). ``--actor.eps_clip_low_high`` does nothing.

    Deviations: this is the paper's clipping alone, without its advantage standardisation over steps and its loss
    aggregation. The paper stops A < 0 above the ratio r_max as well: give ``--actor.dual_clip 10`` for that.
    """
    ratio_BT, advantages_BT = tokens.ratio_BT(), tokens.advantages_BT
    smallest_q = torch.finfo(ratio_BT.dtype).tiny
    low_BT, high_BT = dynamic_bounds(tokens.old_log_probs_BT.exp().clamp(min=smallest_q), config)
    stopped_BT = ((advantages_BT > 0) & (ratio_BT > high_BT)) | ((advantages_BT < 0) & (ratio_BT < low_BT))
    before_BT = (tokens.gradient_BT() == 0) & (advantages_BT != 0)
    metrics = {
        "share_selected": share(stopped_BT, tokens.mask_BT),
        "share_freed": share(before_BT & ~stopped_BT, tokens.mask_BT),
        "clip_low_mean": mean_over(1 - low_BT, tokens.mask_BT),
        "clip_high_mean": mean_over(high_BT - 1, tokens.mask_BT),
    }
    return Shaped(advantages_BT, metrics, clip=(1 - low_BT, high_BT - 1))


def shape_ce_gppo(tokens: Tokens, summary: None, config: CeGppoConfig) -> Shaped:
    """Tokens beyond the clip range keep a bounded gradient: ``beta1 (1 - eps_low) A`` where A < 0 and r < 1 - eps_low,
    ``beta2 (1 + eps_high) A`` where A > 0 and r > 1 + eps_high, times ``grad log pi`` (arXiv 2509.20712; the
    released code has 0.75 and 1, the paper 0.5 and 1 too).

    Written as ``-coefficient A (r / sg(r) - 1)`` on top of PPO's loss, so the value of the loss is PPO's; the released
    code's value has beta in it, the gradient is the same. What dual clip stops (A < 0, r > c) stays stopped, as there.
    """
    ratio_BT, advantages_BT, clip = tokens.ratio_BT(), tokens.advantages_BT, tokens.clip
    inside_BT = tokens.mask_BT.bool()
    low_BT = inside_BT & (advantages_BT < 0) & (ratio_BT < 1 - clip.low)
    high_BT = inside_BT & (advantages_BT > 0) & (ratio_BT > 1 + clip.high)
    coefficient_BT = config.beta1 * (1 - clip.low) * low_BT + config.beta2 * (1 + clip.high) * high_BT
    kept_BT = coefficient_BT * advantages_BT
    metrics = {
        "share_selected": share(low_BT | high_BT, tokens.mask_BT),
        "share_low": share(low_BT, tokens.mask_BT),
        "share_high": share(high_BT, tokens.mask_BT),
    }

    def extra(log_probs_BT: Tensor) -> Tensor:
        return -kept_BT * torch.expm1(log_probs_BT - log_probs_BT.detach())

    return Shaped(advantages_BT, metrics, extra_loss=extra)

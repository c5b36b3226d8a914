"""Estimators of a token's first-order entropy change Omega (signed: > 0 raises entropy; nats per unit step).

Three are tabular. A policy-gradient step of weight w on the sampled action a moves the logits of a softmax by
eta*w*(e_a - pi), and dH/dz_b = -pi_b (log pi_b + H). Hence dH/(eta w) = S - pi_a (log pi_a + H): ``exact``. If only the
sampled logit moved (Assumption 1 of arXiv 2510.10150), dH/(eta w) = -pi_a (1 - pi_a)(log pi_a + H): ``paper``.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from .tokens import Tokens

PROB_FLOOR = 1e-8  # the released code clamps pi and pi_old here


def exact(tokens: Tokens) -> Tensor:
    """``-I r A [pi (log pi + H) - S]``: right for a tabular softmax. Returns ``omega_BT``."""
    pi_BT = tokens.log_probs_BT.exp()
    change_BT = tokens.collision_BT - pi_BT * (tokens.log_probs_BT + tokens.entropy_BT)
    return tokens.gradient_BT() * tokens.ratio_BT() * tokens.advantages_BT * change_BT


def paper(tokens: Tokens) -> Tensor:
    """``-I r A pi (1-pi)(log pi + H)``: arXiv 2510.10150v4 Eq. 6-8 at the realised token. Returns ``omega_BT``."""
    pi_BT, rest_BT = tokens.log_probs_BT.exp(), -torch.expm1(tokens.log_probs_BT)
    change_BT = -pi_BT * rest_BT * (tokens.log_probs_BT + tokens.entropy_BT)
    return tokens.gradient_BT() * tokens.ratio_BT() * tokens.advantages_BT * change_BT


def reference(tokens: Tokens) -> Tensor:
    """``(A / clamp(pi_old, 1e-8, 1)) x (1-x)(log x + H)``, x = clamp(pi, 1e-8, 1-1e-8): the authors' released code
    (``compute_token_weights``), with H of the policy before the rollout's first update, as theirs. Only its absolute
    value means anything: no I, no r, no sign. Returns ``omega_BT``.
    """
    entropy_BT = tokens.entropy_BT if tokens.old_entropy_BT is None else tokens.old_entropy_BT
    x_BT = tokens.log_probs_BT.exp().clamp(PROB_FLOOR, 1 - PROB_FLOOR)
    scale_BT = tokens.advantages_BT / tokens.old_log_probs_BT.exp().clamp(PROB_FLOOR, 1.0)
    return scale_BT * x_BT * (1 - x_BT) * (x_BT.log() + entropy_BT)


def influence(tokens: Tokens) -> Tensor:
    """``I r A <grad log pi, P grad mean H>``: what this token's own update does to the mean entropy of the batch, so
    its sum means something (METHODS 1b). Whoever made ``tokens.influence_BT`` decides how far gradients are followed:
    through the whole network, or its language-model head only. Returns ``omega_BT``.
    """
    assert tokens.influence_BT is not None, "the intervention did not name influence among its needs"
    return tokens.gradient_BT() * tokens.ratio_BT() * tokens.advantages_BT * tokens.influence_BT


ESTIMATORS: dict[str, Callable[[Tokens], Tensor]] = {
    "exact": exact,
    "paper": paper,
    "reference": reference,
    "influence": influence,
    "influence_head": influence,
}

"""Slow references, token by token in plain Python from the logits, written from the papers and their released code.

Each returns what the loss of every token is and its derivative by the token's log-prob. They are compared with the real
PolicyLoss under the adapter, on random tokens of which some are clipped.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

LOW, HIGH = 0.2, 0.28  # the stock fixture's clip range


@dataclass
class Token:
    """One response token; ``expected_s`` is the expectation over the vocabulary of pi (log pi + H)."""

    log_prob: float
    old: float
    advantage: float
    entropy: float
    old_entropy: float
    expected_s: float
    random: float
    dual: float | None

    @property
    def ratio(self) -> float:
        return math.exp(self.log_prob - self.old)

    @property
    def s(self) -> float:
        return math.exp(self.log_prob) * (self.log_prob + self.entropy)

    @property
    def clipped(self) -> bool:
        """Whether PPO's clipping, or dual clip, takes the gradient away."""
        return self.advantage != 0 and self.ppo()[1] == 0

    def ppo(self, advantage: float | None = None, low: float = LOW, high: float = HIGH) -> tuple[float, float]:
        """Loss ``-min(r A, clip(r) A)`` with dual clip, and its derivative."""
        a, r = self.advantage if advantage is None else advantage, self.ratio
        clipped = min(max(r, 1 - low), 1 + high)
        loss, slope = (-r * a, -r * a) if -r * a >= -clipped * a else (-clipped * a, 0.0)
        if a < 0 and self.dual is not None and loss > -self.dual * a:
            loss, slope = -self.dual * a, 0.0
        return loss, slope


Answer = list[tuple[float, float]]
Reference = Callable[[list[Token], dict[str, Any]], Answer]


def read(batch: dict[str, torch.Tensor], dual: float | None) -> list[Token]:
    """Every response token, its statistics summed over the vocabulary in a loop."""
    found = []
    for row, column in batch["action_mask"].nonzero().tolist():
        at, label = (row, column), int(batch["labels"][row, column])
        logits = batch["logits"][at].tolist()
        top = max(logits)
        total = sum(math.exp(z - top) for z in logits)
        log_pi = [z - top - math.log(total) for z in logits]
        entropy = -sum(math.exp(lp) * lp for lp in log_pi)
        expected_s = sum(math.exp(lp) * math.exp(lp) * (lp + entropy) for lp in log_pi)
        old, advantage, old_entropy, random = (
            float(batch[name][at]) for name in ("old_log_probs", "advantages", "old_entropy", "random")
        )
        found.append(Token(log_pi[label], old, advantage, entropy, old_entropy, expected_s, random, dual))
    return found


def weighted(tokens: list[Token], weight: Callable[[Token], float]) -> Answer:
    return [(weight(t) * t.ppo()[0], weight(t) * t.ppo()[1]) for t in tokens]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def entropy_advantage(tokens: list[Token], c: dict[str, Any]) -> Answer:
    return [t.ppo(t.advantage + min(c["alpha"] * t.entropy, abs(t.advantage) / c["kappa"])) for t in tokens]


def w_reinforce(tokens: list[Token], c: dict[str, Any]) -> Answer:
    return weighted(tokens, lambda t: c["lambda_positive"] if t.advantage > 0 else c["lambda_negative"])


def stare(tokens: list[Token], c: dict[str, Any]) -> Answer:
    weights = [1.0] * len(tokens)
    if mean([t.entropy for t in tokens]) < c["target_entropy"]:
        for sign, weight in ((1, c["weight"]), (-1, c["weight_negative"])):
            candidates = [i for i, t in enumerate(tokens) if t.advantage * sign > 0]
            candidates.sort(key=lambda i: tokens[i].log_prob)
            for i in candidates[: math.ceil(c["share"] * len(candidates) - 1e-9)]:
                weights[i] = weight
    return [(w * t.ppo()[0], w * t.ppo()[1]) for w, t in zip(weights, tokens, strict=True)]


def covariances(tokens: list[Token]) -> list[float]:
    a, lp = mean([t.advantage for t in tokens]), mean([t.log_prob for t in tokens])
    return [(t.advantage - a) * (t.log_prob - lp) for t in tokens]


def clip_cov(tokens: list[Token], c: dict[str, Any]) -> Answer:
    eligible = [i for i, cov in enumerate(covariances(tokens)) if c["lb"] < cov < c["ub"] and not tokens[i].clipped]
    eligible.sort(key=lambda i: tokens[i].random)
    drawn = eligible[: max(1, int(c["ratio"] * len(tokens)))]
    return [(0.0, 0.0) if i in drawn else t.ppo() for i, t in enumerate(tokens)]


def kl_cov(tokens: list[Token], c: dict[str, Any]) -> Answer:
    order = sorted(range(len(tokens)), key=lambda i: -covariances(tokens)[i])
    chosen = order[: max(1, int(c["ratio"] * len(tokens)))]
    answer = []
    for i, t in enumerate(tokens):
        loss = slope = -t.advantage * t.ratio
        if i in chosen:
            loss += c["beta"] * abs(t.log_prob - t.old)
            slope += c["beta"] * math.copysign(1.0, t.log_prob - t.old)
        answer.append((loss, slope))
    return answer


def forking_tokens(tokens: list[Token], c: dict[str, Any]) -> Answer:
    order = sorted(range(len(tokens)), key=lambda i: -tokens[i].entropy)
    kept = order[: math.ceil(c["keep"] * len(tokens))]
    scale = len(tokens) / len(kept)  # the mean over the kept, seen through a mean over all
    return [(scale * t.ppo()[0], scale * t.ppo()[1]) if i in kept else (0.0, 0.0) for i, t in enumerate(tokens)]


def erc(tokens: list[Token], c: dict[str, Any]) -> Answer:
    return weighted(tokens, lambda t: float(c["low"] < (t.entropy + 1e-8) / (t.old_entropy + 1e-8) < c["high"]))


def clip_b(tokens: list[Token], c: dict[str, Any]) -> Answer:
    """Trinity-RFT's ClipBAdvantageFn, but masked tokens stay in the denominator."""
    center = mean([t.s for t in tokens])
    std = math.sqrt(mean([(t.s - center) ** 2 for t in tokens]))
    return weighted(tokens, lambda t: 0.0 if t.advantage < 0 and t.s - center < -c["mu"] * std else 1.0)


def clip_v(tokens: list[Token], c: dict[str, Any]) -> Answer:
    """Trinity-RFT's ClipVAdvantageFn, likewise."""
    deviations = [t.expected_s - t.s for t in tokens]
    std = math.sqrt(mean([(d - mean(deviations)) ** 2 for d in deviations]))
    out = [i for i, t in enumerate(tokens) if t.advantage < 0 and deviations[i] > c["mu"] * std]
    out.sort(key=lambda i: -deviations[i])
    masked = out[: max(1, int(c["max_share"] * len(tokens)))]
    return [(0.0, 0.0) if i in masked else t.ppo() for i, t in enumerate(tokens)]


def opefo(tokens: list[Token], c: dict[str, Any]) -> Answer:
    pi = {
        "exact": lambda t: t.expected_s - t.s,
        "paper": lambda t: -t.s * (1 - math.exp(t.log_prob)),
    }[c["estimator"]]
    change = [0.0 if t.clipped else t.ratio * t.advantage * pi(t) for t in tokens]
    lowering, raising = -sum(x for x in change if x < 0), sum(x for x in change if x > 0)
    coefficient = (lowering - raising) / (lowering + raising)
    factor = [1 + coefficient if x > 0 else 1 - coefficient if x < 0 else 1.0 for x in change]
    return [(f * t.ppo()[0], f * t.ppo()[1]) for f, t in zip(factor, tokens, strict=True)]


def dcpo(tokens: list[Token], c: dict[str, Any]) -> Answer:
    answer = []
    for t in tokens:
        q = math.exp(t.old)
        low = 0.5 + 0.5 * math.sqrt(max(1 - 4 * c["eps_low"] / q, 0))
        high = min(0.5 + 0.5 * math.sqrt(1 + 4 * c["eps_high"] / q), c["r_max"])
        answer.append(t.ppo(low=1 - low, high=high - 1))
    return answer


def ce_gppo(tokens: list[Token], c: dict[str, Any]) -> Answer:
    """Gradient of the released compute_gppo_loss_general_beta; PPO's value."""
    answer = []
    for t in tokens:
        loss, slope = t.ppo()
        if t.advantage < 0 and t.ratio < 1 - LOW:
            slope = -c["beta1"] * (1 - LOW) * t.advantage
        if t.advantage > 0 and t.ratio > 1 + HIGH:
            slope = -c["beta2"] * (1 + HIGH) * t.advantage
        answer.append((loss, slope))
    return answer


def entropic(tokens: list[Token], c: dict[str, Any]) -> Answer:
    """Released compute_policy_loss_entropic: the pushed tokens are averaged among themselves."""
    error = mean([t.entropy for t in tokens]) - c["target_entropy"]
    a = min(max(c["kp"] * error + c["ki"] * error, -c["limit"]), c["limit"])
    high = [t for t in tokens if t.log_prob > math.log(c["high_prob"])]
    answer = []
    for t in tokens:
        loss, slope = t.ppo()
        if t in high:
            push = -a * t.ratio * abs(t.advantage) * len(tokens) / len(high)
            loss, slope = loss + push, slope + push
        answer.append((loss, slope))
    return answer


def positive_reweight(tokens: list[Token], c: dict[str, Any]) -> Answer:
    return weighted(tokens, lambda t: c["initial"] if t.advantage > 0 else 1.0)


CASES: list[tuple[str, Reference, dict[str, Any]]] = [
    ("entropy_advantage", entropy_advantage, {"alpha": 0.4, "kappa": 2.0}),
    ("entropy_advantage", entropy_advantage, {"alpha": 0.05, "kappa": 1.5}),
    ("w_reinforce", w_reinforce, {"lambda_positive": 0.1, "lambda_negative": 1.0}),
    ("stare", stare, {"target_entropy": 2.0, "share": 0.3, "weight": 1.5, "weight_negative": 0.5}),
    ("stare", stare, {"target_entropy": 0.1, "share": 0.3, "weight": 1.5, "weight_negative": 0.5}),
    ("clip_cov", clip_cov, {"ratio": 0.1, "lb": 0.2, "ub": 5.0}),
    ("clip_cov", clip_cov, {"ratio": 0.9, "lb": -1.0, "ub": 0.5}),
    ("kl_cov", kl_cov, {"ratio": 0.2, "beta": 0.7}),
    ("forking_tokens", forking_tokens, {"keep": 0.2}),
    ("forking_tokens", forking_tokens, {"keep": 0.75}),
    ("erc", erc, {"low": 0.95, "high": 1.05}),
    ("erc", erc, {"low": 0.7, "high": 1.5}),
    ("clip_b", clip_b, {"mu": 0.5}),
    ("clip_b", clip_b, {"mu": 1.0}),
    ("clip_v", clip_v, {"mu": 0.3, "max_share": 0.1}),
    ("clip_v", clip_v, {"mu": 0.3, "max_share": 1.0}),
    ("opefo", opefo, {"estimator": "exact"}),
    ("opefo", opefo, {"estimator": "paper"}),
    ("dcpo", dcpo, {"eps_low": 0.16, "eps_high": 0.2, "r_max": 10.0}),
    ("dcpo", dcpo, {"eps_low": 0.05, "eps_high": 0.3, "r_max": 2.0}),
    ("ce_gppo", ce_gppo, {"beta1": 0.75, "beta2": 1.0}),
    ("entropic", entropic, {"target_entropy": 0.1, "kp": 1.0, "ki": 0.01, "limit": 1.0, "high_prob": 0.4}),
    ("entropic", entropic, {"target_entropy": 1.5, "kp": 0.5, "ki": 0.3, "limit": 5.0, "high_prob": 0.4}),
    ("positive_reweight", positive_reweight, {"initial": 0.35}),
]


def label(part: Any) -> str:
    return part.__name__ if callable(part) else str(part)[:60]


CLOSED_GATE = CASES[4]
WITH_DUAL = [(*case, dual) for case in CASES for dual in (None, 1.6) if not (case[0] == "kl_cov" and dual)]
"""Without kl_cov under dual clip: the paper has no clipping at all."""


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize(("name", "reference", "fields", "dual"), WITH_DUAL, ids=label)
def test_the_loss_is_that_of_the_slow_reference(
    name: str, reference: Reference, fields: dict[str, Any], dual: float | None, seed: int, make_step: Any, run: Any
) -> None:
    batch = make_step(seed=seed)
    tokens = read(batch, dual)
    expected = reference(tokens, fields)
    assert any(t.clipped for t in tokens)
    found = run(name, batch, {"dual_clip": dual}, **fields)
    inside = batch["action_mask"].bool()
    slopes = torch.tensor([slope for _, slope in expected], dtype=torch.float64) / len(tokens)
    torch.testing.assert_close(found.gradient[inside], slopes, rtol=1e-4, atol=1e-7)
    assert found.value.item() == pytest.approx(sum(loss for loss, _ in expected) / len(tokens), rel=1e-4, abs=1e-6)
    assert not found.gradient[~inside].any()


@pytest.mark.parametrize(
    ("name", "reference", "fields"),
    [case for case in CASES if case is not CLOSED_GATE],
    ids=label,
)
def test_the_references_differ_from_ppo(
    name: str, reference: Reference, fields: dict[str, Any], make_step: Any
) -> None:
    """A reference that changes nothing could not tell a working intervention from none."""
    tokens = read(make_step(), None)
    assert reference(tokens, fields) != [t.ppo() for t in tokens]


def test_with_its_gate_closed_stare_is_ppo(make_step: Any) -> None:
    _, reference, fields = CLOSED_GATE
    tokens = read(make_step(), None)
    assert reference(tokens, fields) == [t.ppo() for t in tokens]

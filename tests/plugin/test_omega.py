"""The estimators against finite differences of a softmax's entropy, and the identities METHODS states."""

import math
from collections.abc import Callable

import pytest
import torch
from steer_openrlhf.omega import exact, paper, reference
from steer_openrlhf.tokens import Clip, Tokens, token_statistics

VOCABULARIES = [2, 5, 50, 1000]
STEP = 1e-4


def entropy_of(logits: torch.Tensor) -> float:
    return float(token_statistics(logits.unsqueeze(0), torch.tensor([0])).entropy)


def one_token(logits: torch.Tensor, action: int, advantage: float = 1.0) -> Tokens:
    stats = [part.reshape(1, 1) for part in token_statistics(logits.unsqueeze(0), torch.tensor([action]))]
    ones = torch.ones(1, 1, dtype=torch.float64)
    return Tokens(stats[0], stats[0], advantage * ones, ones, stats[1], stats[2], Clip(0.2, 0.28))


def some_logits(vocabulary: int) -> torch.Tensor:
    return torch.randn(vocabulary, dtype=torch.float64, generator=torch.Generator().manual_seed(vocabulary)) * 2


@pytest.mark.parametrize("advantage", [1.0, -0.5])
@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_exact_is_the_entropy_change_of_a_full_policy_gradient_step(vocabulary: int, advantage: float) -> None:
    logits = some_logits(vocabulary)
    for action in range(0, vocabulary, max(vocabulary // 5, 1)):
        direction = -torch.softmax(logits, -1)
        direction[action] += 1
        change = entropy_of(logits + STEP * direction) - entropy_of(logits - STEP * direction)
        found = exact(one_token(logits, action, advantage)).item()
        assert found == pytest.approx(advantage * change / (2 * STEP), abs=1e-7)


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_paper_is_the_change_when_only_the_sampled_logit_moves(vocabulary: int) -> None:
    logits = some_logits(vocabulary)
    for action in range(0, vocabulary, max(vocabulary // 5, 1)):
        direction = torch.zeros_like(logits)
        direction[action] = 1 - torch.softmax(logits, -1)[action]  # d log pi_a / dz_a
        change = entropy_of(logits + STEP * direction) - entropy_of(logits - STEP * direction)
        assert paper(one_token(logits, action)).item() == pytest.approx(change / (2 * STEP), abs=1e-7)


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_exact_has_mean_zero_over_the_policy(vocabulary: int) -> None:
    logits = some_logits(vocabulary)
    pi = torch.softmax(logits, -1)
    mean = sum(float(pi[a]) * exact(one_token(logits, a)).item() for a in range(vocabulary))
    assert mean == pytest.approx(0.0, abs=1e-12)


def test_exact_is_twice_paper_for_two_tokens() -> None:
    logits = torch.tensor([0.3, -1.1], dtype=torch.float64)
    for action in (0, 1):
        token = one_token(logits, action)
        assert exact(token).item() == pytest.approx(2 * paper(token).item(), rel=1e-12)


def test_paper_misses_a_rare_token_beside_a_peak() -> None:
    """METHODS 1: about 900 times too small where a .9 peak stands beside the sampled rare token."""
    pi = torch.tensor([0.9, 1e-4, 0.0999], dtype=torch.float64)
    token = one_token(pi.log(), 1)
    assert exact(token).item() / paper(token).item() > 100


def test_reference_repeats_the_released_formula_loop_by_loop(make_tokens: Callable[..., Tokens]) -> None:
    tokens = make_tokens()
    found = reference(tokens)
    for row in range(found.shape[0]):
        for column in range(found.shape[1]):
            x = min(max(math.exp(tokens.log_probs_BT[row, column]), 1e-8), 1 - 1e-8)
            old = min(max(math.exp(tokens.old_log_probs_BT[row, column]), 1e-8), 1.0)
            entropy = float(tokens.entropy_BT[row, column])
            expected = float(tokens.advantages_BT[row, column]) / old * x * (1 - x) * (math.log(x) + entropy)
            assert found[row, column].item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("estimator", [exact, paper])
def test_clipped_tokens_have_no_influence(estimator: object, make_tokens: Callable[..., Tokens]) -> None:
    tokens = make_tokens(drift=2.0)
    clipped = tokens.gradient_BT() == 0
    assert clipped.any()
    assert (estimator(tokens)[clipped] == 0).all()  # type: ignore[operator]

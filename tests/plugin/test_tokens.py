"""Token statistics against a slow loop, and their behaviour at the edges."""

import math

import pytest
import torch
from steer_openrlhf.tokens import Clip, Tokens, masked_rows, masked_statistics, row_statistics, token_statistics


def slow_statistics(logits: list[float], label: int) -> tuple[float, float, float]:
    top = max(logits)
    weights = [math.exp(z - top) for z in logits]
    pi = [w / sum(weights) for w in weights]
    entropy = -sum(p * math.log(p) for p in pi if p > 0)
    collision = sum(p * p * (math.log(p) + entropy) for p in pi if p > 0)
    return math.log(pi[label]), entropy, collision


@pytest.mark.parametrize("vocabulary", [2, 5, 50, 1000])
def test_statistics_equal_a_slow_loop(vocabulary: int) -> None:
    logits = torch.randn(7, vocabulary, dtype=torch.float64, generator=torch.Generator().manual_seed(vocabulary)) * 4
    labels = torch.arange(7) % vocabulary
    found = token_statistics(logits, labels)
    for row in range(7):
        expected = slow_statistics(logits[row].tolist(), int(labels[row]))
        assert [float(part[row]) for part in found] == pytest.approx(expected, rel=1e-10, abs=1e-12)


def test_uniform_distribution_by_hand() -> None:
    found = token_statistics(torch.zeros(1, 8), torch.tensor([3]))
    assert found.log_prob.item() == pytest.approx(-math.log(8))
    assert found.entropy.item() == pytest.approx(math.log(8))
    assert found.collision.item() == pytest.approx(0.0, abs=1e-6)  # log pi + H = 0 everywhere


def test_minus_infinity_is_probability_zero_and_nan_stays_nan() -> None:
    logits = torch.tensor([[0.0, 0.0, -math.inf], [0.0, math.nan, 0.0]])
    found = token_statistics(logits, torch.tensor([0, 0]))
    assert found.entropy[0].item() == pytest.approx(math.log(2))
    assert math.isfinite(found.collision[0].item())
    assert math.isnan(found.entropy[1].item())


@pytest.mark.parametrize("chunk", [1, 3, 1000])
def test_chunks_and_masked_tokens_change_nothing(chunk: int) -> None:
    generator = torch.Generator().manual_seed(1)
    logits, labels = torch.randn(2, 5, 9, generator=generator), torch.randint(0, 9, (2, 5), generator=generator)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 0]])
    whole = token_statistics(logits.reshape(10, 9), labels.reshape(10))
    broken = torch.where(mask.bool().unsqueeze(-1), logits, torch.full_like(logits, math.nan))
    found = masked_statistics(broken, labels, mask, chunk)
    for part, expected in zip(found, whole, strict=True):
        assert torch.equal(part[mask.bool()], expected.reshape(2, 5)[mask.bool()])
        assert torch.equal(part[~mask.bool()], torch.zeros(3))


def test_statistics_carry_no_graph_and_keep_nothing_of_vocabulary_size() -> None:
    logits = torch.randn(2, 3, 50_000, requires_grad=True)
    found = masked_statistics(logits, torch.zeros(2, 3, dtype=torch.long), torch.ones(2, 3), 2)
    assert all(
        not part.requires_grad and part.shape == (2, 3) and part.untyped_storage().nbytes() == 24 for part in found
    )


def test_gradient_indicator_is_where_stock_clipping_stops() -> None:
    log_ratio = torch.log(torch.tensor([[1.0, 1.29, 1.27, 0.79, 0.81, 0.79, 11.0, 9.0]]))
    advantage = torch.tensor([[1.0, 1.0, 1.0, 1.0, -1.0, -1.0, -1.0, -1.0]])
    zero = torch.zeros(1, 8)
    clip = Clip(0.2, 0.28, dual=10.0)
    tokens = Tokens(log_ratio, zero, advantage, torch.ones(1, 8), zero, zero, clip)
    assert tokens.gradient_BT().tolist() == [[1, 0, 1, 1, 1, 0, 0, 1]]


def test_sequence_ratio_is_the_masked_mean() -> None:
    log_probs = torch.tensor([[0.1, 0.3, 9.0]])
    tokens = Tokens(
        log_probs,
        torch.zeros(1, 3),
        torch.ones(1, 3),
        torch.tensor([[1.0, 1.0, 0.0]]),
        *[torch.zeros(1, 3)] * 2,
        Clip(0.2, 0.2, sequence_level=True),
    )
    assert tokens.ratio_BT()[0, 0].item() == pytest.approx(math.exp(0.2))


@pytest.mark.parametrize("spread", [0.0, 1.0, 30.0, 1e4])
@pytest.mark.parametrize("vocabulary", [1, 3, 5000])
def test_float32_is_near_float64_and_bf16_is_read_as_it_is(vocabulary: int, spread: float) -> None:
    logits = torch.randn(5, vocabulary, generator=torch.Generator().manual_seed(0)) * spread
    labels = torch.arange(5) % vocabulary
    for given in (logits, logits.bfloat16(), logits.half()):
        found, expected = row_statistics(given, labels, 0.7), row_statistics(given.double(), labels, 0.7)
        for part, other, rounding in zip(found, expected, (spread, 0.0, 0.0, spread), strict=True):
            torch.testing.assert_close(part.double(), other, rtol=4e-6, atol=4e-6 + 1e-6 * rounding)


def test_entropy_is_never_negative_and_log_prob_never_positive() -> None:
    logits = torch.randn(400, 50, generator=torch.Generator().manual_seed(0)) * torch.logspace(-2, 3, 400)[:, None]
    found = token_statistics(logits, logits.argmax(-1))
    assert (found.entropy >= 0).all()
    assert (found.log_prob <= 0).all()


def test_log_total_is_the_softmax_denominator() -> None:
    """log(1 + 1 + 2) = log 4, whatever is added to the logits."""
    logits = torch.tensor([[0.0, 0.0, math.log(2)]]) + torch.tensor([[0.0], [7.0]])
    found = row_statistics(logits, torch.tensor([2, 0]))
    assert found.log_total.tolist() == pytest.approx([math.log(4), math.log(4) + 7])
    assert found.log_prob.tolist() == pytest.approx([math.log(0.5), math.log(0.25)])


@pytest.mark.parametrize("kind", ["window", "transposed", "expanded", "one row", "one column"])
def test_rows_of_any_layout_are_found(kind: str) -> None:
    whole = torch.randn(4, 6, 9, generator=torch.Generator().manual_seed(1))
    logits = {
        "window": whole[1:, 2:5],
        "transposed": whole.transpose(0, 1),
        "expanded": whole[:, :1].expand(4, 5, 9),
        "one row": whole[2:3, 1:],
        "one column": whole[:, 3:4],
    }[kind]
    labels = torch.arange(logits[..., 0].numel()).reshape(logits.shape[:2]) % 9
    mask = torch.rand(labels.shape, generator=torch.Generator().manual_seed(2)) < 0.7
    found = masked_rows(logits, labels, mask, 3)
    expected = row_statistics(logits[mask].contiguous(), labels[mask])
    for part, other in zip(found, expected, strict=True):
        torch.testing.assert_close(part[mask], other)


def test_nothing_under_the_mask_is_nothing() -> None:
    logits, labels = torch.randn(2, 3, 7), torch.zeros(2, 3, dtype=torch.long)
    assert not any(part.any() for part in masked_rows(logits, labels, torch.zeros(2, 3), 4))
    assert masked_statistics(logits[:0], labels[:0], torch.zeros(0, 3), 4).entropy.shape == (0, 3)

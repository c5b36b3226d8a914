"""The pseudo-random numbers of tokens: splitmix64 in Python's big integers, and what a number may depend on."""

import pytest
import torch
from scipy.stats import chi2
from steer_openrlhf.tokens import _mix, token_uniforms
from torch import Tensor

WORD = 2**64
GOLDEN = 0x9E3779B97F4A7C15
PUBLISHED = (6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821)
"""The first outputs of splitmix64 (Vigna's C code) from the state 1234567."""


def slow_mix(x: int) -> int:
    """splitmix64's finaliser: shifts and constants of Stafford's variant 13."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) % WORD
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) % WORD
    return x ^ (x >> 31)


def slow_uniform(prefix: list[int], seed: int) -> float:
    """Of the last token of a prefix without padding."""
    total = sum(slow_mix((token * GOLDEN + place) % WORD) for place, token in enumerate(prefix, start=1))
    return (slow_mix((total + slow_mix(seed % WORD)) % WORD) >> 11) / 2**53


def unsigned(x: Tensor) -> list[int]:
    return [int(one) % WORD for one in x]


def whole(sequences: Tensor, actions: int = 4, seed: int = 5, attention: Tensor | None = None) -> Tensor:
    present = torch.ones_like(sequences) if attention is None else attention
    return token_uniforms(sequences, present, actions, seed)


def random_sequences(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 150_000, (rows, columns), generator=torch.Generator().manual_seed(seed))


def test_the_reference_is_the_published_generator() -> None:
    assert tuple(slow_mix((1234567 + step * GOLDEN) % WORD) for step in range(1, 6)) == PUBLISHED


def test_the_mix_is_splitmix64() -> None:
    words = [0, 1, 2**63, WORD - 1, GOLDEN, *(pow(7, power, WORD) for power in range(1, 200))]
    signed = torch.tensor([word - WORD if word >= 2**63 else word for word in words])
    assert unsigned(_mix(signed)) == [slow_mix(word) for word in words]


@pytest.mark.parametrize("seed", [0, 1, 42_000_126, 2**40, -3])
def test_every_number_equals_the_slow_reference(seed: int) -> None:
    sequences = random_sequences(3, 7)
    found = whole(sequences, 7, seed)
    expected = [[slow_uniform(row[: end + 1], seed) for end in range(7)] for row in sequences.tolist()]
    assert found.tolist() == expected


def test_padding_on_either_side_and_its_content_do_not_matter() -> None:
    sequences = random_sequences(4, 6)
    expected = whole(sequences)
    for fill in (0, 77):
        left = torch.cat([torch.full((4, 3), fill), sequences], dim=1)
        present = (torch.arange(9) >= 3).long().expand(4, 9)
        assert torch.equal(whole(left, 4, attention=present), expected)
        right = torch.cat([sequences, torch.full((4, 2), fill)], dim=1)
        present = (torch.arange(8) < 6).long().expand(4, 8)
        assert torch.equal(whole(right, 6, attention=present)[:, :4], expected)


def test_order_of_the_samples_does_not_matter() -> None:
    sequences, order = random_sequences(5, 6), torch.tensor([3, 1, 4, 0, 2])
    assert torch.equal(whole(sequences[order]), whole(sequences)[order])


def test_the_whole_prefix_counts_and_nothing_after_it() -> None:
    sequences = random_sequences(1, 8)
    for changed in range(8):
        other = sequences.clone()
        other[0, changed] += 1
        differs = (whole(other, 8) != whole(sequences, 8))[0].tolist()
        assert differs == [False] * changed + [True] * (8 - changed)


def test_two_tokens_swapped_are_another_prefix() -> None:
    sequences = torch.tensor([[3, 9, 4], [9, 3, 4]])
    first, second = whole(sequences, 2)
    assert (first != second).all()


def test_the_seed_changes_every_number() -> None:
    sequences = random_sequences(50, 20)
    assert (whole(sequences, 20, 1) != whole(sequences, 20, 2)).all()


@pytest.mark.parametrize("seed", [0, 1, 2, 1_000_003])
def test_they_are_uniform(seed: int) -> None:
    """Chi-square over 64 cells of 40000 numbers, at one in a thousand; and neighbours are uncorrelated."""
    numbers = whole(random_sequences(400, 100, seed=9), 100, seed)
    assert 0 <= numbers.min().item() < 1e-3
    assert 1 - 1e-3 < numbers.max().item() < 1
    counts = torch.histc(numbers.flatten(), bins=64, min=0.0, max=1.0)
    expected = numbers.numel() / 64
    assert ((counts - expected) ** 2 / expected).sum().item() < chi2.ppf(0.999, 63)
    pairs = torch.stack([numbers[:, :-1].flatten(), numbers[:, 1:].flatten()])
    assert abs(torch.corrcoef(pairs)[0, 1].item()) < 4 / numbers.numel() ** 0.5


def test_consecutive_steps_draw_independently() -> None:
    """The trainer's seed rises by one with each optimizer step."""
    sequences = random_sequences(400, 50, seed=3)
    pairs = torch.stack([whole(sequences, 50, 7 * 1_000_003 + step).flatten() for step in (1, 2)])
    assert abs(torch.corrcoef(pairs)[0, 1].item()) < 4 / pairs.shape[1] ** 0.5

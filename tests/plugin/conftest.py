"""Micro-batches of tokens with a real softmax behind each, for the tests of the mathematics."""

from collections.abc import Callable

import pytest
import torch
from steer_openrlhf.tokens import Clip, Tokens, masked_statistics

MakeTokens = Callable[..., Tokens]


@pytest.fixture
def make_tokens() -> MakeTokens:
    def make(
        rows: int = 3,
        columns: int = 5,
        vocabulary: int = 11,
        seed: int = 0,
        clip: Clip | None = None,
        drift: float = 0.1,
    ) -> Tokens:
        generator = torch.Generator().manual_seed(seed)
        logits = torch.randn(rows, columns, vocabulary, generator=generator, dtype=torch.float64) * 2
        labels = torch.randint(0, vocabulary, (rows, columns), generator=generator)
        lengths = torch.randint(1, columns + 1, (rows, 1), generator=generator)
        mask = (torch.arange(columns) < lengths).double()
        stats = masked_statistics(logits, labels, mask, chunk_tokens=4)
        old = stats.log_prob + drift * torch.randn(rows, columns, generator=generator, dtype=torch.float64) * mask
        advantages = torch.randn(rows, 1, generator=generator, dtype=torch.float64).expand(rows, columns) * mask
        return Tokens(stats.log_prob, old, advantages, mask, stats.entropy, stats.collision, clip or Clip(0.2, 0.28))

    return make

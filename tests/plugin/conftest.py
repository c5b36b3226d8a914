"""Micro-batches of tokens with a real softmax behind each, for the tests of the mathematics; and OpenRLHF's real policy
worker in this process, for those of the trainer."""

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from steer_experiments.environment import private_extensions
from steer_openrlhf import cpu, host
from steer_openrlhf.tokens import Clip, Tokens, masked_statistics

sys.path.insert(0, str(Path(__file__).parent))  # spawned ranks find real_trainer by its name, as the tests do
import real_trainer

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


@contextmanager
def variables(values: Mapping[str, str]) -> Iterator[None]:
    """Environment variables of this process, for a while: others' subprocesses must not inherit them."""
    kept = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(kept)


@pytest.fixture(scope="session")
def extensions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Where DeepSpeed finds its C++ parts; for spawned ranks too."""
    if not cpu.no_gpu():
        pytest.skip("gloo ranks on CPU, as the plugin arranges them where there is no GPU")
    return private_extensions(tmp_path_factory.mktemp("extensions"))


@pytest.fixture(scope="session")
def make_worker(extensions: dict[str, str]) -> Iterator[Callable[..., Any]]:
    """``make_worker(Layout(), flags)``: OpenRLHF's policy worker, alone in its group."""
    host.install()
    needed = extensions | real_trainer.environment(0, 1, real_trainer.free_port())

    def make(*args: Any) -> Any:
        with variables(needed):
            return real_trainer.Worker(*args)

    yield make
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@pytest.fixture(scope="session")
def worker(make_worker: Callable[..., Any]) -> Any:
    """One that takes eight samples a step in two micro-batches; its weights never move."""
    return make_worker(real_trainer.Layout(micro=4))

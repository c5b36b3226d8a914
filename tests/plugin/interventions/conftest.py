"""Optimizer steps with a real softmax behind every token, run through OpenRLHF's real PolicyLoss."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from steer_openrlhf import host
from steer_openrlhf.loss import InterventionLoss
from steer_openrlhf.registry import INTERVENTIONS
from steer_openrlhf.tokens import TokenStatistics, masked_statistics

Batch = dict[str, torch.Tensor]
NEEDED = {
    "old_entropy": "old_entropy_BT",
    "random": "random_BT",
    "influence": "influence_BT",
    "influence_head": "influence_BT",
}


@dataclass
class Ran:
    """Of one call of the adapted loss: its value, gradient by log-prob, metrics, and the adapter itself."""

    value: torch.Tensor
    gradient: torch.Tensor
    info: dict[str, torch.Tensor]
    loss: InterventionLoss


@pytest.fixture(scope="session")
def stock() -> Callable[..., torch.nn.Module]:
    host.install()
    from openrlhf.models import PolicyLoss

    return lambda **fields: PolicyLoss(**{"clip_eps_low": 0.2, "clip_eps_high": 0.28, **fields})


@pytest.fixture
def make_step() -> Callable[..., Batch]:
    def make(rows: int = 6, columns: int = 7, vocabulary: int = 9, seed: int = 1, drift: float = 0.5) -> Batch:
        generator = torch.Generator().manual_seed(seed)

        def normal(*size: int) -> torch.Tensor:
            return torch.randn(*size, generator=generator, dtype=torch.float64)

        old_logits = normal(rows, columns, vocabulary) * 2
        logits = old_logits + drift * normal(rows, columns, vocabulary)
        labels = torch.multinomial(old_logits.softmax(-1).flatten(0, 1), 1, generator=generator).view(rows, columns)
        mask = (torch.arange(columns) < torch.randint(2, columns + 1, (rows, 1), generator=generator)).double()
        now, before = (masked_statistics(part, labels, mask, chunk_tokens=5) for part in (logits, old_logits))
        return {
            "logits": logits,
            "labels": labels,
            "log_probs": now.log_prob,
            "old_log_probs": before.log_prob,
            "advantages": (normal(rows, 1) * 2).expand(rows, columns) * mask,
            "action_mask": mask,
            "entropy": now.entropy,
            "collision": now.collision,
            "old_entropy": before.entropy,
            "random": torch.rand(rows, columns, generator=generator, dtype=torch.float64),
            "influence": normal(rows, columns),
            "influence_head": normal(rows, columns),
        }

    return make


@pytest.fixture
def step(make_step: Callable[..., Batch]) -> Batch:
    return make_step()


@pytest.fixture
def adapted(stock: Callable[..., torch.nn.Module]) -> Callable[..., InterventionLoss]:
    """An :class:`InterventionLoss` that sees one micro-batch; only what the intervention ``needs`` is given to it."""

    def make(name: str, batch: Batch, base: dict[str, Any] | None = None, **fields: Any) -> InterventionLoss:
        chosen = INTERVENTIONS[name]
        config = chosen.config(**fields)
        loss = InterventionLoss(stock(**(base or {})), chosen, config, gather=lambda signal: signal)
        loss.statistics = TokenStatistics(batch["log_probs"].detach(), batch["entropy"], batch["collision"])
        loss.extras = {NEEDED[need]: batch[need] for need in chosen.needs(config)}
        return loss

    return make


@pytest.fixture
def call() -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    """Value and gradient of a loss on a micro-batch, normalised by ``count`` tokens as OpenRLHF's optimizer step is."""

    def run(loss: torch.nn.Module, batch: Batch, count: Any = None) -> tuple[torch.Tensor, torch.Tensor]:
        log_probs = batch["log_probs"].detach().requires_grad_()
        count = batch["action_mask"].sum() if count is None else count
        value, *_ = loss(
            log_probs,
            batch["old_log_probs"],
            batch["advantages"],
            action_mask=batch["action_mask"],
            dp_size=1,
            batch_num_tokens=count,
        )
        return value.detach(), torch.autograd.grad(value, log_probs)[0]

    return run


@pytest.fixture
def run(adapted: Any, call: Any) -> Callable[..., Ran]:
    """One optimizer step of one micro-batch."""

    def make(name: str, batch: Batch, base: dict[str, Any] | None = None, **fields: Any) -> Ran:
        loss = adapted(name, batch, base, **fields)
        value, gradient = call(loss, batch)
        return Ran(value, gradient, loss.info, loss)

    return make

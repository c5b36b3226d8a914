"""Ground truth for the estimators: some sequences of a rollout, measured before and after its updates.

Nothing here changes a gradient. The sequences are the first ``--steer.probe.sequences`` of each rank's replay buffer.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .network import Network
from .omega import ESTIMATORS
from .tokens import Clip, RolloutChange, Tokens, TokenStatistics

NETWORK = ("influence_head", "influence")
FOLDER = "probe"


@dataclass(frozen=True)
class Before:
    """What was measured before the updates: batches (OpenRLHF experiences) with their statistics and estimates."""

    batches: Sequence[Any]
    statistics: Sequence[TokenStatistics]
    omega: Sequence[Mapping[str, Tensor]]


def measure_before(network: Network, batches: Sequence[Any], clip: Clip, estimators: Sequence[str]) -> Before:
    """Statistics of the batches, and ``omega_BT`` of every estimator as if they were one optimizer step."""
    network.actor.eval()
    statistics = [network.measure(batch) for batch in batches]
    scores: dict[str, Sequence[Tensor]] = {}
    if "influence_head" in estimators:
        scores["influence_head"] = network.head_influence_of(batches)
    if "influence" in estimators:
        scores["influence"] = network.influence_of(batches)
    omega = []
    for index, (batch, one) in enumerate(zip(batches, statistics, strict=True)):
        found = {}
        for name in estimators:
            score_BT = scores[name][index] if name in scores else None
            found[name] = ESTIMATORS[name](_tokens(batch, one, clip, score_BT))
        omega.append(found)
    return Before(batches, statistics, omega)


def _tokens(batch: Any, statistics: TokenStatistics, clip: Clip, influence_BT: Tensor | None) -> Tokens:
    mask_BT = batch.action_mask.float()
    old_BT, advantages_BT = (
        torch.where(mask_BT.bool(), part.float(), 0.0) for part in (batch.action_log_probs, batch.advantages)
    )
    return Tokens(
        statistics.log_prob, old_BT, advantages_BT, mask_BT, statistics.entropy, statistics.collision, clip,
        influence_BT=influence_BT,
    )  # fmt: skip


def measure_after(network: Network, before: Before) -> list[TokenStatistics]:
    """Statistics of the same batches under the weights of now."""
    network.actor.eval()
    return [network.measure(batch) for batch in before.batches]


def change_of(network: Network, before: Before, after: Sequence[TokenStatistics], updates: int) -> RolloutChange:
    """Mean entropies before and after over the measured tokens of all ranks that are finite in both."""
    sums = torch.zeros(3, dtype=torch.float64)
    for batch, old, new in zip(before.batches, before.statistics, after, strict=True):
        good = batch.action_mask.bool() & old.entropy.isfinite() & new.entropy.isfinite()
        parts = [old.entropy[good].double().sum(), new.entropy[good].double().sum(), good.double().sum()]
        sums += torch.stack(parts).cpu()
    first, last, count = network.reduce(sums.to(before.statistics[0].entropy.device)).tolist()
    nothing = float("nan")
    return RolloutChange(first / count if count else nothing, last / count if count else nothing, updates)


def write(
    path: Path, before: Before, after: Sequence[TokenStatistics], clip: Clip, numbers: Mapping[str, float | int]
) -> None:
    """One probe file: float32 arrays ``[B, T]``, right-padded with 0, and the numbers. Whole or not at all."""
    columns: dict[str, list[Tensor]] = {}
    for batch, old, new, omega in zip(before.batches, before.statistics, after, before.omega, strict=True):
        row = {
            "mask": batch.action_mask, "advantages": batch.advantages, "old_log_probs": batch.action_log_probs,
            "log_prob_before": old.log_prob, "entropy_before": old.entropy, "collision_before": old.collision,
            "log_prob_after": new.log_prob, "entropy_after": new.entropy,
            **{f"omega_{name}": value for name, value in omega.items()},
        }  # fmt: skip
        for name, value in row.items():
            columns.setdefault(name, []).append(value.detach().float().cpu())
    arrays: dict[str, Any] = {name: _padded(parts) for name, parts in columns.items()}
    arrays |= {name: np.asarray(value) for name, value in numbers.items()}
    arrays |= {"clip_low": np.asarray(float(clip.low)), "clip_high": np.asarray(float(clip.high))}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)
    os.replace(temporary, path)


def _padded(parts: Sequence[Tensor]) -> Any:
    longest = max(part.shape[1] for part in parts)
    return torch.cat([torch.nn.functional.pad(part, (0, longest - part.shape[1])) for part in parts]).numpy()

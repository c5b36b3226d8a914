"""Probes of a real policy: what is measured before and after an update, and the files it is read back from."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from real_trainer import OLD_TEMPERATURE, TEMPERATURE, Case
from steer_openrlhf import probe
from steer_openrlhf.tokens import Clip, TokenStatistics

ESTIMATORS = ("exact", "paper", "reference", "influence_head", "influence")
CLIP = Clip(0.2, 0.28)


@pytest.fixture
def network(worker: Any) -> Any:
    return worker.trainer(Case("steer", {"steer.probe.every": 1})).network


@pytest.fixture
def batches(worker: Any) -> list[Any]:
    """Two micro-batches of unequal length (four samples, then three), and all of them with a response."""
    found = worker.batches(worker.samples[:7], 4)
    assert found[0].action_mask.shape[1] != found[1].action_mask.shape[1]
    return found


@torch.no_grad()
def slow_statistics(worker: Any, batch: Any, row: int, temperature: float) -> tuple[list[float], list[float]]:
    """Log-probs and entropies of a sample's response tokens, from a forward on it alone, in float64."""
    sequence = batch.sequences[row][batch.attention_mask[row].bool()]
    count = int(batch.action_mask[row].sum())
    log_pi = (worker.model(sequence[None]).logits[0].double() / temperature).log_softmax(-1)
    rows = log_pi[len(sequence) - 1 - count : len(sequence) - 1]
    labels = sequence[len(sequence) - count :]
    return rows.gather(-1, labels[:, None])[:, 0].tolist(), (-(rows.exp() * rows).sum(-1)).tolist()


def test_before_and_after_are_the_policys_statistics(worker: Any, network: Any, batches: list[Any]) -> None:
    before = probe.measure_before(network, batches, CLIP, ())
    worker.actor.temperature = TEMPERATURE
    after = probe.measure_after(network, before)
    for found, temperature in ((before.statistics, OLD_TEMPERATURE), (after, TEMPERATURE)):
        for batch, one in zip(batches, found, strict=True):
            for row in range(len(batch.sequences)):
                log_probs, entropies = slow_statistics(worker, batch, row, temperature)
                mask = batch.action_mask[row].bool()
                assert one.log_prob[row][mask].tolist() == pytest.approx(log_probs, abs=2e-5)
                assert one.entropy[row][mask].tolist() == pytest.approx(entropies, abs=2e-5)


def test_the_change_is_the_mean_over_all_tokens(worker: Any, network: Any, batches: list[Any]) -> None:
    before = probe.measure_before(network, batches, CLIP, ())
    worker.actor.temperature = TEMPERATURE
    change = probe.change_of(network, before, probe.measure_after(network, before), updates=3)
    for found, temperature in ((change.entropy_before, OLD_TEMPERATURE), (change.entropy_after, TEMPERATURE)):
        entropies = [
            entropy
            for batch in batches
            for row in range(len(batch.sequences))
            for entropy in slow_statistics(worker, batch, row, temperature)[1]
        ]
        assert found == pytest.approx(sum(entropies) / len(entropies), abs=1e-5)
    assert change.updates == 3
    assert change.entropy_before - change.entropy_after > 0.05


def spoiled(statistics: TokenStatistics, row: int, column: int) -> TokenStatistics:
    entropy = statistics.entropy.clone()
    entropy[row, column] = torch.nan
    return statistics._replace(entropy=entropy)


def test_a_token_that_is_not_finite_in_one_is_left_out_of_both(network: Any, batches: list[Any]) -> None:
    before = probe.measure_before(network, batches, CLIP, ())
    after = probe.measure_after(network, before)
    first, second = (int(batch.action_mask[0].nonzero()[0]) for batch in batches)
    holed = dataclasses.replace(before, statistics=[spoiled(before.statistics[0], 0, first), before.statistics[1]])
    change = probe.change_of(network, holed, [after[0], spoiled(after[1], 0, second)], 1)
    kept = [batch.action_mask.bool().clone() for batch in batches]
    kept[0][0, first] = kept[1][0, second] = False
    expected = torch.cat([one.entropy[mask] for one, mask in zip(before.statistics, kept, strict=True)])
    assert change.entropy_before == pytest.approx(expected.double().mean().item(), rel=1e-6)
    assert change.entropy_after == pytest.approx(change.entropy_before, rel=1e-6)


def test_nothing_finite_is_no_change_of_nought(network: Any, batches: list[Any]) -> None:
    before = probe.measure_before(network, batches, CLIP, ())
    nothing = [one._replace(entropy=torch.full_like(one.entropy, torch.nan)) for one in before.statistics]
    change = probe.change_of(network, dataclasses.replace(before, statistics=nothing), before.statistics, 2)
    assert math.isnan(change.entropy_before)
    assert math.isnan(change.entropy_after)


def test_a_file_is_read_back(worker: Any, network: Any, batches: list[Any], tmp_path: Path) -> None:
    before = probe.measure_before(network, batches, CLIP, ESTIMATORS)
    worker.actor.temperature = TEMPERATURE
    after = probe.measure_after(network, before)
    path = tmp_path / "probe" / "step000002.rank0.npz"
    probe.write(path, before, after, CLIP, {"step": 2, "updates": 1, "learning_rate": 0.5})
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    assert [one.name for one in path.parent.iterdir()] == [path.name]  # nothing temporary is left
    numbers = {"step": 2, "updates": 1, "learning_rate": 0.5, "clip_low": 0.2, "clip_high": 0.28}
    assert {name: arrays.pop(name).item() for name in numbers} == numbers
    rows, longest = 7, max(batch.action_mask.shape[1] for batch in batches)
    assert {one.shape for one in arrays.values()} == {(rows, longest)}
    assert {one.dtype for one in arrays.values()} == {np.dtype("float32")}
    start = 0
    for index, batch in enumerate(batches):
        size, width = batch.action_mask.shape
        columns = {
            "mask": batch.action_mask, "advantages": batch.advantages, "old_log_probs": batch.action_log_probs,
            "log_prob_before": before.statistics[index].log_prob, "entropy_before": before.statistics[index].entropy,
            "collision_before": before.statistics[index].collision, "log_prob_after": after[index].log_prob,
            "entropy_after": after[index].entropy,
        } | {f"omega_{name}": before.omega[index][name] for name in ESTIMATORS}  # fmt: skip
        assert set(columns) == set(arrays)
        for name, expected in columns.items():
            block = arrays[name][start : start + size]
            assert np.array_equal(block[:, :width], expected.float().numpy()), name
            assert not block[:, width:].any(), name  # right-padded with 0
        start += size
    assert np.abs(arrays["omega_influence"]).max() > 0


def test_a_file_keeps_what_is_not_finite(network: Any, batches: list[Any], tmp_path: Path) -> None:
    """It is for the analysis to count."""
    before = probe.measure_before(network, batches, CLIP, ())
    column = int(batches[0].action_mask[1].nonzero()[0])
    after = [spoiled(before.statistics[0], 1, column), before.statistics[1]]
    probe.write(tmp_path / "one.npz", before, after, CLIP, {})
    with np.load(tmp_path / "one.npz") as file:
        assert np.argwhere(np.isnan(file["entropy_after"])).tolist() == [[1, column]]
        assert np.isfinite(file["entropy_before"]).all()


def test_the_trainer_writes_every_second_rollout(worker: Any, tmp_path: Path) -> None:
    """OpenRLHF's number of the first rollout is 1. With a learning rate of 0 the change is the temperature's alone."""
    flags = {"steer.probe.every": 2, "steer.probe.sequences": 5, "steer.run_dir": str(tmp_path)}
    trainer = worker.trainer(Case("clip_b", flags))
    runs = [worker.updates(trainer) for _ in range(3)]
    files = sorted(path.name for path in (tmp_path / probe.FOLDER).iterdir())
    assert files == ["step000002.rank0.npz"]
    assert ["steer/entropy_before" in run.status for run in runs] == [False, True, False]
    assert runs[1].status["steer/entropy_before"] - runs[1].status["steer/entropy_after"] > 0.05
    with np.load(tmp_path / probe.FOLDER / files[0]) as file:
        mask = file["mask"].astype(bool)
        assert mask.sum(1).tolist() == [len(one.response) for one in worker.samples[:5]]
        assert {name for name in file.files if name.startswith("omega_")} == {f"omega_{name}" for name in ESTIMATORS}
        assert file["entropy_before"][mask].mean() == pytest.approx(runs[1].status["steer/entropy_before"], rel=1e-5)
        assert file["entropy_after"][mask].mean() == pytest.approx(runs[1].status["steer/entropy_after"], rel=1e-5)
        assert file["learning_rate"] == 0


def test_probing_changes_no_gradient(worker: Any, tmp_path: Path) -> None:
    flags = {"steer.probe.every": 1, "steer.run_dir": str(tmp_path)}
    plain, probed = worker.rollout(Case("steer")), worker.rollout(Case("steer", flags))
    for name, expected in plain.gradients[0].items():
        assert torch.equal(probed.gradients[0][name], expected), name

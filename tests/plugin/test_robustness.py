"""What is not a number stops at the plugin, and is counted. Through OpenRLHF's real trainer, loss and policy.

Broken logits come from the real network: one token of the vocabulary makes what stands behind it NaN or infinite, in
the head's input (:func:`broken_at`), or in all activations of its sequence (:func:`broken_embedding`).
"""

import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from real_trainer import VOCABULARY, Case, Recorded, Sample
from steer_openrlhf.metrics import MetricsLogger
from steer_openrlhf.registry import INTERVENTIONS
from torch import Tensor

MARK = VOCABULARY - 1
PLACE = (2, 3)  # sample and response token that are the mark: the token after it is not finite
CASES: dict[str, Case] = {name: Case(name) for name in INTERVENTIONS} | {
    "steer influence": Case("steer", {"steer.estimator": "influence"}),
    "steer influence_head": Case("steer", {"steer.estimator": "influence_head"}),
    "steer reference": Case("steer", {"steer.estimator": "reference"}),
    "steer band": Case("steer", {"steer.estimator": "influence_head", "steer.band": [-1e-3, 1e-3]}),
    "opefo influence": Case("opefo", {"opefo.estimator": "influence"}),
    "clip_v acting": Case("clip_v", {"clip_v.mu": 0.3, "clip_v.max_share": 0.1}),
    "clip_b acting": Case("clip_b", {"clip_b.mu": 0.5}),
    "stare acting": Case("stare", {"stare.target_entropy": 2.0, "stare.share": 0.3}),
    "clip_cov acting": Case("clip_cov", {"clip_cov.ratio": 0.2, "clip_cov.lb": 0.1}),
    "probe of every estimator": Case("steer", {"steer.probe.every": 1}),
}
STATISTICS_OF_ADVANTAGES = {"steer/cov_threshold", "steer/rising_share_of_flow"}
"""Those of :data:`steer_openrlhf.interventions.common.STEP_STATISTICS` that a step without advantages does not have."""
every = pytest.mark.parametrize("name", CASES)


@pytest.fixture
def marked(worker: Any) -> list[Sample]:
    """The samples with the mark in one place, and nowhere else."""
    samples = []
    for number, sample in enumerate(worker.samples):
        response = sample.response.clone().clamp(max=MARK - 1)
        if number == PLACE[0]:
            response[PLACE[1]] = MARK
        samples.append(replace(sample, prompt=sample.prompt.clamp(max=MARK - 1), response=response))
    return samples


@contextmanager
def broken_at(model: Any, value: float) -> Iterator[None]:
    """The head's input becomes ``value`` where the mark stands, by hooks on the real modules."""
    seen: list[Tensor] = []
    embedding = model.get_input_embeddings().register_forward_pre_hook(lambda _, args: seen.append(args[0]))

    def spoil(_: Any, args: tuple[Tensor]) -> tuple[Tensor]:
        return (torch.where((seen[-1] == MARK).unsqueeze(-1), value, args[0]),)

    head = model.get_output_embeddings().register_forward_pre_hook(spoil, prepend=True)
    try:
        yield
    finally:
        embedding.remove()
        head.remove()


@contextmanager
def broken_embedding(model: Any) -> Iterator[None]:
    """The mark's embedding is NaN: attention carries it through its sequence."""
    weight = model.get_input_embeddings().weight
    kept = weight[MARK].detach().clone()
    with torch.no_grad():
        weight[MARK] = torch.nan
    try:
        yield
    finally:
        with torch.no_grad():
            weight[MARK] = kept


@contextmanager
def broken_everywhere(model: Any) -> Iterator[None]:
    """No token has an entropy: the head's input is NaN."""
    spoil = model.get_output_embeddings().register_forward_pre_hook(lambda _, args: (args[0] * torch.nan,))
    try:
        yield
    finally:
        spoil.remove()


def scalars(summary: Any) -> Iterator[float]:
    """The numbers of a step's summary; the band's also has every Omega, finite or not, and uses the finite ones."""
    fields = dataclasses.fields(summary) if dataclasses.is_dataclass(summary) else ()
    for one in (getattr(summary, part.name) for part in fields):
        if isinstance(one, float) or (isinstance(one, Tensor) and one.ndim == 0):
            yield float(one)


def plugin_metrics(run: Recorded) -> Iterator[tuple[str, float]]:
    for call in run.calls:
        yield from ((name, float(value)) for name, value in call.experience.info.items() if name.startswith("steer/"))


def nothing_leaves(run: Recorded, summary: Any, without_one: AbstractSet[str] = frozenset()) -> None:
    """No NaN in advantages, clip ranges, metrics, summary or state; none in the gradient of a token with a log-prob.
    Metrics of a statistic the step is ``without_one`` of are NaN."""
    for call in run.calls:
        assert call.advantages.isfinite().all()
        assert all(torch.as_tensor(end).isfinite().all() for end in call.clip)
        assert call.gradient is not None
        assert call.gradient[call.log_probs.isfinite()].isfinite().all()
    broken = {name for name, value in plugin_metrics(run) if not math.isfinite(value)}
    assert broken <= without_one
    assert not any(math.isnan(one) for one in scalars(summary))
    assert all(math.isfinite(value) for value in run.state["loss"].values())


def counted(run: Recorded, metric: str) -> float:
    """How many tokens of the step a metric's shares are of."""
    shares = [float(call.experience.info[metric]) * float(call.experience.action_mask.sum()) for call in run.calls]
    return sum(shares)


@pytest.mark.parametrize(
    ("name", "value"), [*((name, math.nan) for name in CASES), *((name, math.inf) for name in list(CASES)[-10:])]
)
def test_one_broken_row_of_logits(name: str, value: float, worker: Any, marked: list[Sample]) -> None:
    trainer = worker.trainer(CASES[name])
    with broken_at(worker.model, value):
        run = worker.updates(trainer, marked, learn=False)
    nothing_leaves(run, getattr(trainer.actor_loss_fn, "summary", None))
    assert counted(run, "steer/nonfinite_entropy") == pytest.approx(1)
    for metric in {metric for metric, _ in plugin_metrics(run) if metric.startswith("steer/nonfinite_")}:
        assert counted(run, metric) == pytest.approx(1), metric


@every
def test_a_broken_sequence(name: str, worker: Any, marked: list[Sample]) -> None:
    """The three tokens behind the mark are counted, and those before it that the attention kernel's 0 times NaN
    reaches."""
    trainer = worker.trainer(CASES[name])
    with broken_embedding(worker.model):
        run = worker.updates(trainer, marked, learn=False)
    nothing_leaves(run, getattr(trainer.actor_loss_fn, "summary", None))
    assert 3 <= round(counted(run, "steer/nonfinite_entropy"), 4) <= len(marked[PLACE[0]].response)


def weights_of(run: Recorded) -> dict[tuple[int, int], float]:
    """By (sample, response token), where A is not 0."""
    found = {}
    for call in run.calls:
        for row, number in enumerate(call.experience.rewards.tolist()):
            mask = call.experience.action_mask[row].bool()
            given, plain = call.advantages[row][mask], call.experience.advantages[row][mask]
            pairs = enumerate(zip(given.tolist(), plain.tolist(), strict=True))
            found |= {(int(number), place): a / b for place, (a, b) in pairs if b}
    return found


@pytest.mark.parametrize("name", ["steer influence", "steer influence_head"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_the_broken_token_keeps_its_weight_and_the_others_still_have_theirs(
    name: str, value: float, worker: Any, marked: list[Sample]
) -> None:
    """One NaN must not switch the intervention off for the whole step."""
    with broken_at(worker.model, value):
        weights = weights_of(worker.updates(worker.trainer(CASES[name]), marked, learn=False))
    broken = (PLACE[0], PLACE[1] + 1)
    assert weights.pop(broken) == pytest.approx(1.0)
    assert min(weights.values()) == pytest.approx(0.7, rel=1e-4)
    assert sum(weight < 0.99 for weight in weights.values()) > 5


def network_of(worker: Any) -> Any:
    trainer = worker.trainer(Case("steer", {"steer.estimator": "influence_head"}))
    return trainer.network


def without(batches: Sequence[Any], sample: int, column_of_response: int | None) -> list[Any]:
    """The batches with a response token (None: all of a sample's) outside the mask."""
    changed = []
    for batch in batches:
        mask = batch.action_mask.clone()
        for row in (batch.rewards == sample).nonzero().flatten().tolist():
            columns = mask[row].nonzero().flatten()
            mask[row, columns if column_of_response is None else columns[column_of_response]] = 0
        changed.append(replace(batch, action_mask=mask))
    return changed


def same_where_masked(found: Sequence[Tensor], expected: Sequence[Tensor], kept: Sequence[Any], scale: float) -> None:
    for one, other, batch in zip(found, expected, kept, strict=True):
        mask = batch.action_mask.bool()
        torch.testing.assert_close(one[mask], other[mask] * scale, rtol=1e-3, atol=1e-5 * float(other.abs().max()))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_head_influence_leaves_the_broken_row_out(value: float, worker: Any, marked: list[Sample]) -> None:
    """The others' scores are those of a batch without it, times its share of the mean's denominator."""
    network, batches = network_of(worker), worker.batches(marked, 4)
    kept = without(batches, PLACE[0], PLACE[1] + 1)
    expected = network.head_influence_of(kept)
    with broken_at(worker.model, value):
        found = network.head_influence_of(batches)
    tokens = sum(int(batch.action_mask.sum()) for batch in batches)
    same_where_masked(found, expected, kept, (tokens - 1) / tokens)
    assert sum(int((~one.isfinite()).sum()) for one in found) == 1


@pytest.mark.parametrize("how", ["head", "embedding"])
def test_influence_leaves_the_broken_sequence_out(how: str, worker: Any, marked: list[Sample]) -> None:
    """A backward cannot pass NaN activations, so the whole sequence is missing from the gradient of the entropy."""
    network, batches = network_of(worker), worker.batches(marked, 4)
    kept = without(batches, PLACE[0], None)
    expected = network.influence_of(kept)
    with broken_at(worker.model, math.nan) if how == "head" else broken_embedding(worker.model):
        found = network.influence_of(batches)
    tokens, gone = sum(int(batch.action_mask.sum()) for batch in batches), len(marked[PLACE[0]].response)
    same_where_masked(found, expected, kept, (tokens - gone) / tokens)
    assert sum(int((~one.isfinite()).sum()) for one in found) >= 1


def test_influence_with_nothing_finite_is_nothing(worker: Any, marked: list[Sample]) -> None:
    only = worker.batches([marked[PLACE[0]]], 1)
    with broken_embedding(worker.model):
        (found,) = network_of(worker).influence_of(only)
    assert not torch.nan_to_num(found).any()


@every
def test_zero_advantages(name: str, worker: Any) -> None:
    """Every group of a rollout has equal rewards."""
    trainer = worker.trainer(CASES[name])
    run = worker.updates(trainer, [replace(sample, advantage=0.0) for sample in worker.samples], learn=False)
    nothing_leaves(run, getattr(trainer.actor_loss_fn, "summary", None), STATISTICS_OF_ADVANTAGES)
    if CASES[name].loss not in ("kl_cov",):  # whose penalty needs a positive covariance, and rounding has none here
        assert not any(call.advantages.any() for call in run.calls)
    assert not any(call.gradient.any() for call in run.calls if call.gradient is not None)


@every
def test_huge_advantages(name: str, worker: Any) -> None:
    """A million times those of either sign."""
    trainer = worker.trainer(CASES[name])
    samples = [replace(one, advantage=one.advantage * 1e6) for one in worker.samples]
    run = worker.updates(trainer, samples, learn=False)
    nothing_leaves(run, getattr(trainer.actor_loss_fn, "summary", None))
    assert any(call.gradient is not None and bool(call.gradient.any()) for call in run.calls)


def with_an_empty_pair(samples: Sequence[Sample]) -> list[Sample]:
    """Six samples, of which the third and fourth have no response at all."""
    empty = [replace(one, response=one.response[:0], old_log_probs=one.old_log_probs[:0]) for one in samples]
    return [*samples[:2], *empty[2:4], *samples[4:6]]


@every
def test_an_all_masked_micro_batch(name: str, worker: Any) -> None:
    run, summary = worker.one_step(CASES[name], with_an_empty_pair(worker.samples), 2)
    nothing_leaves(run, summary)
    assert [int(call.experience.action_mask.sum()) for call in run.calls] == [9, 0, 9]
    gradients = [call.gradient for call in run.calls]
    assert gradients[1] is not None
    assert not gradients[1].any()


@pytest.mark.parametrize("name", ["steer", "steer influence", "steer band", "forking_tokens", "erc", "clip_cov acting"])
def test_an_all_masked_micro_batch_changes_nothing_for_the_others(name: str, worker: Any) -> None:
    mixed = with_an_empty_pair(worker.samples)
    run, _ = worker.one_step(CASES[name], mixed, 2)
    full, _ = worker.one_step(CASES[name], [*mixed[:2], *mixed[4:]], 2)
    for call, expected in zip((run.calls[0], run.calls[2]), full.calls, strict=True):
        torch.testing.assert_close(call.advantages, expected.advantages, rtol=1e-4, atol=1e-5)


STATISTICS = {
    "kl_cov": "cov_threshold",
    "forking_tokens": "entropy_threshold",
    "opefo": "rising_share_of_flow",
    "entropic": "step_entropy",
    "positive_reweight": "step_entropy",
    "stare": "step_entropy",
    "clip_v": "deviation_std",
}


@pytest.mark.parametrize("name", STATISTICS)
def test_a_statistic_no_token_has_is_null_and_no_0(
    name: str, worker: Any, marked: list[Sample], tmp_path: Path
) -> None:
    """Every sequence is broken. What the step has none of stays a NaN through OpenRLHF's mean, and is null in the file;
    with sound logits it is a number."""
    metric, trainer = f"steer/{STATISTICS[name]}", worker.trainer(CASES[name])
    sound = worker.updates(trainer, worker.samples, learn=False)
    with broken_everywhere(worker.model):
        broken = worker.updates(worker.trainer(CASES[name]), marked, learn=False)
    assert all(math.isnan(value) for found, value in plugin_metrics(broken) if found == metric)
    logger = MetricsLogger(SimpleNamespace(steer=SimpleNamespace(run_dir=str(tmp_path))))
    for step, run in enumerate((sound, broken)):
        values = [float(call.experience.info[metric]) for call in run.calls]
        logger.log_train(step, {metric: sum(values) / len(values)})
    first, second = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert (math.isfinite(first[f"train/{metric}"]), second[f"train/{metric}"]) == (True, None)
    assert second["nonfinite"] == [f"train/{metric}"]

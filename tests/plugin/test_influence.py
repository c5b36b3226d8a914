"""Influence estimators against leave-one-token-out retraining, finite differences and a real change of entropy."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from real_trainer import Case
from steer_openrlhf.influence import (
    EntropySum,
    HeadRows,
    entropy_gradient,
    gradients,
    head_gradient,
    head_influence,
    head_scores,
    network_scores,
    precondition,
)
from steer_openrlhf.tokens import row_statistics, token_statistics
from torch import Tensor, nn
from transformers import Qwen2Config, Qwen2ForCausalLM

B, S, V, T = 4, 9, 19, 6
TEMPERATURE = 0.8


@pytest.fixture
def model() -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=V, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=32, tie_word_embeddings=False, attn_implementation="sdpa",
    )  # fmt: skip
    return Qwen2ForCausalLM(config).double().eval()


@pytest.fixture
def sequences() -> Tensor:
    return torch.randint(0, V, (B, S), generator=torch.Generator().manual_seed(1))


def rows_of(call: object, sequences: Tensor) -> Tensor:
    """Temperature-scaled logits of the last T tokens, [B*T, V]."""
    logits = call(input_ids=sequences, use_cache=False).logits  # type: ignore[operator]
    return (logits[:, -T - 1 : -1] / TEMPERATURE).flatten(0, 1)


def log_probs_of(call: object, sequences: Tensor) -> Tensor:
    labels = sequences[:, -T:].flatten()
    return rows_of(call, sequences).log_softmax(-1).gather(-1, labels[:, None]).squeeze(-1)


def mean_entropy(model: nn.Module, sequences: Tensor) -> Tensor:
    log_pi = rows_of(model, sequences).log_softmax(-1)
    return -(log_pi.exp() * log_pi).sum(-1).mean()


def scores(model: Qwen2ForCausalLM, sequences: Tensor, second: dict[str, Tensor] | None = None) -> Tensor:
    names, weights = zip(*model.named_parameters(), strict=True)
    rows = rows_of(model, sequences)
    found = torch.autograd.grad(EntropySum.apply(rows, 5) / len(rows), weights)
    direction = {
        name: precondition(one, second[name] if second else None, 1e-8, 0.0)
        for name, one in zip(names, found, strict=True)
    }
    return network_scores(model, direction, lambda call: log_probs_of(call, sequences))


def test_entropy_sum_is_the_entropy_and_its_gradient() -> None:
    logits = torch.randn(7, V, dtype=torch.float64, requires_grad=True)
    log_pi = logits.log_softmax(-1)
    plain = -(log_pi.exp() * log_pi).sum()
    assert EntropySum.apply(logits, 3).item() == pytest.approx(plain.item(), abs=1e-12)
    torch.testing.assert_close(
        torch.autograd.grad(EntropySum.apply(logits, 3) * 2.0, logits)[0], torch.autograd.grad(plain * 2.0, logits)[0]
    )
    assert torch.autograd.gradcheck(lambda z: EntropySum.apply(z, 2), (logits,))
    assert EntropySum.apply(logits[:0], 3).item() == 0.0


def test_entropy_gradient_by_hand() -> None:
    """Two actions, pi = (3/4, 1/4): H = .5623, dH/dz = -+ pi0 pi1 log 3."""
    pi = torch.tensor([[0.75, 0.25]], dtype=torch.float64)
    expected = 0.75 * 0.25 * math.log(3)
    assert entropy_gradient(pi, pi.log())[0].tolist() == pytest.approx([-expected, expected])


def test_a_logit_of_minus_infinity_is_a_token_of_probability_zero() -> None:
    logits = torch.tensor([[1.0, 0.0, -torch.inf]], requires_grad=True)
    total = EntropySum.apply(logits, 1)
    assert torch.autograd.grad(total, logits)[0].isfinite().all()


def per_token_gradients(model: Qwen2ForCausalLM, sequences: Tensor) -> list[list[Tensor]]:
    log_probs = log_probs_of(model, sequences)
    weights = list(model.parameters())
    return [list(torch.autograd.grad(one, weights, retain_graph=True)) for one in log_probs]


def test_scores_are_the_inner_products_of_their_definition(model: Qwen2ForCausalLM, sequences: Tensor) -> None:
    """The slow way: one backward for each token, for SGD and with a diagonal preconditioner. (Qwen2's norms compute in
    float32, whatever the weights are.)"""
    second = {name: torch.rand_like(weight) + 0.5 for name, weight in model.named_parameters()}
    gradient = torch.autograd.grad(mean_entropy(model, sequences), list(model.parameters()))
    for moments in (None, second):
        scale = [1.0 if moments is None else 1 / (moment.sqrt() + 1e-8) for moment in second.values()]
        slow = [
            sum((a * p * b).sum() for a, p, b in zip(one, scale, gradient, strict=True))
            for one in per_token_gradients(model, sequences)
        ]
        torch.testing.assert_close(scores(model, sequences, moments), torch.stack(slow), rtol=1e-3, atol=1e-7)


def step(model: Qwen2ForCausalLM, sequences: Tensor, coefficients: Tensor, rate: float) -> Tensor:
    """Mean entropy after one SGD ascent step on the mean of coefficient * log-prob; the model is put back."""
    kept = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    found = torch.autograd.grad((coefficients * log_probs_of(model, sequences)).mean(), list(model.parameters()))
    with torch.no_grad():
        for weight, one in zip(model.parameters(), found, strict=True):
            weight.add_(one, alpha=rate)
        after = mean_entropy(model, sequences)
        for name, weight in model.named_parameters():
            weight.copy_(kept[name])
    return after


def test_source_wise_against_leave_one_token_out(model: Qwen2ForCausalLM, sequences: Tensor) -> None:
    """What a token did is the entropy after the whole step less the entropy after the step without it."""
    advantages = torch.randn(B * T, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    rate = 1e-3
    whole = step(model, sequences, advantages, rate)
    effects = []
    for left_out in range(B * T):
        kept = advantages.clone()
        kept[left_out] = 0.0
        effects.append((whole - step(model, sequences, kept, rate)) / rate * (B * T))
    omega = advantages * scores(model, sequences)
    assert torch.corrcoef(torch.stack([omega, torch.stack(effects)]))[0, 1].item() > 0.99
    measured = (whole - mean_entropy(model, sequences)).item() / rate
    assert omega.mean().item() == pytest.approx(measured, rel=0.1)


def test_target_wise_entropies_along_a_step_against_finite_differences(
    model: Qwen2ForCausalLM, sequences: Tensor
) -> None:
    """What a step does to the entropy of every position, also those of masked or untrained tokens."""
    advantages = torch.randn(B * T, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    names, weights = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad((advantages * log_probs_of(model, sequences)).mean(), weights)
    direction = dict(zip(names, found, strict=True))

    def entropies(call: object) -> Tensor:
        return token_statistics(rows_of(call, sequences), sequences[:, -T:].flatten()).entropy

    derivative, rate = network_scores(model, direction, entropies), 1e-3
    sides = []
    with torch.no_grad():
        for sign in (1, -2):
            for weight, one in zip(weights, found, strict=True):
                weight.add_(one, alpha=sign * rate)
            sides.append(entropies(model))
    torch.testing.assert_close(derivative, (sides[0] - sides[1]) / (2 * rate), rtol=1e-2, atol=3e-4)
    assert derivative.abs().max() > 1e-3


def test_the_head_alone_is_the_full_influence_when_only_the_head_moves(
    model: Qwen2ForCausalLM, sequences: Tensor
) -> None:
    captured: list[Tensor] = []
    head = model.get_output_embeddings()
    handle = head.register_forward_pre_hook(lambda _, args: captured.append(args[0].detach()))
    with torch.no_grad():
        rows = rows_of(model, sequences)
    handle.remove()
    hidden = captured[0][:, -T - 1 : -1].flatten(0, 1)
    gradient = head_gradient(hidden, lambda a, b: rows[a:b], TEMPERATURE, chunk=5)
    expected = torch.autograd.grad(mean_entropy(model, sequences) * len(rows), head.weight)[0]
    torch.testing.assert_close(gradient.double(), expected, rtol=1e-4, atol=1e-6)
    labels = sequences[:, -T:].flatten()
    found = head_scores(hidden, lambda a, b: rows[a:b], labels, gradient / len(rows), TEMPERATURE, chunk=4)
    direction = {"lm_head.weight": expected / len(rows)}
    slow = network_scores(model, direction, lambda call: log_probs_of(call, sequences))
    torch.testing.assert_close(found.double(), slow, rtol=1e-4, atol=1e-7)


def head_case(
    tokens: int = 12, vocabulary: int = 23, hidden: int = 7, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Head input, logits, labels and second moments (of which one word has none)."""
    generator = torch.Generator().manual_seed(seed)
    hidden_ND = torch.randn(tokens, hidden, generator=generator)
    logits_NV = hidden_ND @ torch.randn(hidden, vocabulary, generator=generator) / TEMPERATURE
    labels_N = torch.randint(0, vocabulary, (tokens,), generator=generator)
    second_VD = torch.rand(vocabulary, hidden, generator=generator) + 0.1
    second_VD[3] = 0.0
    return hidden_ND, logits_NV, labels_N, second_VD


def head_rows(hidden_ND: Tensor, logits_NV: Tensor, labels_N: Tensor, scored: int) -> HeadRows:
    found = row_statistics(logits_NV, labels_N)
    block = lambda start, stop: logits_NV[:, start:stop].clone()  # noqa: E731
    return HeadRows(hidden_ND, labels_N, found.log_total, found.entropy, block, scored)


def by_halves(hidden: Tensor, logits: Tensor, labels: Tensor, second: Tensor | None) -> Tensor:
    """The plain way: the whole gradient, the whole direction, then the scores."""
    gradient = head_gradient(hidden, lambda a, b: logits[a:b], TEMPERATURE, chunk=5)
    direction = precondition(gradient / len(hidden), second, 1e-8, 0.5)
    return head_scores(hidden, lambda a, b: logits[a:b], labels, direction, TEMPERATURE, chunk=4)


def by_blocks(rows: Sequence[HeadRows], second: Tensor | None, words: int, vocabulary: int = 23) -> list[Tensor]:
    count = sum(len(one.labels_N) for one in rows)

    def move(block: slice, total: Tensor) -> Tensor:
        return precondition(total / count, None if second is None else second[block], 1e-8, 0.5)

    return head_influence(rows, (vocabulary, rows[0].hidden_ND.shape[1]), TEMPERATURE, move, words)


@pytest.mark.parametrize("words", [1, 5, 23, 1000])
@pytest.mark.parametrize("adam", [False, True])
def test_blocks_of_the_vocabulary_are_the_plain_way(words: int, adam: bool) -> None:
    hidden, logits, labels, second = head_case()
    moments = second if adam else None
    (found,) = by_blocks([head_rows(hidden, logits, labels, 12)], moments, words)
    torch.testing.assert_close(found, by_halves(hidden, logits, labels, moments), rtol=1e-4, atol=1e-6)


def test_micro_batches_share_the_gradient_and_unscored_tokens_are_part_of_it() -> None:
    hidden, logits, labels, second = head_case()
    expected = by_halves(hidden, logits, labels, second)
    parts = [(0, 5, 5), (5, 5, 0), (5, 12, 3)]  # from, to, of these scored; one is empty
    rows = [head_rows(hidden[a:b], logits[a:b], labels[a:b], scored) for a, b, scored in parts]
    first, none, second_part = by_blocks(rows, second, 4)
    torch.testing.assert_close(first, expected[:5], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(second_part, expected[5:8], rtol=1e-4, atol=1e-6)
    assert none.shape == (0,)


def test_a_word_of_probability_zero_adds_nothing() -> None:
    hidden, logits, labels, second = head_case()
    logits[:, 4] = -torch.inf
    (found,) = by_blocks([head_rows(hidden, logits, labels.clamp(max=3), 12)], second, 5)
    torch.testing.assert_close(found, by_halves(hidden, logits, labels.clamp(max=3), second), rtol=1e-4, atol=1e-6)


def test_bf16_products_are_within_their_rounding_of_float32() -> None:
    """2^-9 of each factor, over many terms: well under a hundredth of the scores' spread, with Adam's moments too."""
    hidden, logits, labels, second = head_case(tokens=200, vocabulary=300, hidden=64)
    hidden = hidden.bfloat16().float()
    for moments in (None, second.square()):
        (exact,) = by_blocks([head_rows(hidden, logits, labels, 200)], moments, 100, 300)
        (found,) = by_blocks([head_rows(hidden.bfloat16(), logits, labels, 200)], moments, 100, 300)
        assert found.dtype == torch.float32
        assert ((found - exact).std() / exact.std()).item() < 0.01
        assert not torch.equal(found, exact)


def test_tied_embeddings_move_together(sequences: Tensor) -> None:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=V, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=32, tie_word_embeddings=True, attn_implementation="sdpa",
    )  # fmt: skip
    model = Qwen2ForCausalLM(config).double().eval()
    gradient = torch.autograd.grad(mean_entropy(model, sequences), list(model.parameters()))
    slow = [
        sum((a * b).sum() for a, b in zip(one, gradient, strict=True)) for one in per_token_gradients(model, sequences)
    ]
    torch.testing.assert_close(scores(model, sequences), torch.stack(slow), rtol=1e-3, atol=1e-7)


def test_a_weight_that_never_moved_has_no_step() -> None:
    gradient, second = torch.tensor([1.0, 1.0, -2.0]), torch.tensor([0.0, 4.0, 0.25])
    assert precondition(gradient, second, 0.0, 0.0).tolist() == [0.0, 0.5, -4.0]
    assert precondition(gradient, second, 0.0, 0.75).tolist() == [0.0, 0.25, -2.0]
    assert precondition(gradient, None, 0.0, 0.5) is gradient


def test_gradients_leave_grad_and_its_hooks_alone() -> None:
    weight, unused = torch.ones(2, requires_grad=True), torch.ones(3, requires_grad=True)
    fired: list[Tensor] = []
    weight.register_post_accumulate_grad_hook(lambda one: fired.append(one))
    used, zero = gradients((weight * 3).sum(), [weight, unused])
    assert (used.tolist(), zero.tolist()) == ([3.0, 3.0], [0.0] * 3)
    assert weight.grad is None
    assert fired == []


@pytest.fixture
def network(worker: Any) -> Any:
    """The plugin's, around OpenRLHF's actor."""
    return worker.trainer(Case("steer", {"steer.estimator": "influence_head"})).network


def test_a_token_without_advantage_has_no_score_and_its_part_in_the_others(network: Any, worker: Any) -> None:
    batches = worker.batches(worker.samples, 4)
    kept = [torch.rand(one.action_mask.shape, generator=torch.Generator().manual_seed(5)) < 0.5 for one in batches]
    changed = [
        replace(one, advantages=torch.where(keep, one.advantages, 0.0)) for one, keep in zip(batches, kept, strict=True)
    ]
    whole, found = network.head_influence_of(batches), network.head_influence_of(changed)
    for one, other, batch in zip(found, whole, changed, strict=True):
        scored = batch.action_mask.bool() & (batch.advantages != 0)
        assert scored.any()
        torch.testing.assert_close(one[scored], other[scored], rtol=1e-4, atol=1e-6)
        assert not one[~scored].any()


def test_logits_at_hand_or_made_anew_are_the_same(network: Any, worker: Any) -> None:
    (batch,) = worker.batches(worker.samples, len(worker.samples))
    (anew,) = network.head_influence_of([batch])
    with torch.no_grad(), network.hidden():
        _, output = network.actor(batch.sequences, batch.action_mask, batch.attention_mask, return_output=True)
        logits = output["logits"]
        network.statistics(batch, logits)
        tokens = network.head_inputs(batch)
    logits.add_(7.0)  # a constant changes no softmax, but these logits' normaliser is known: they are the ones used
    (shifted,) = network.head_influence([batch], [tokens])
    logits.sub_(7.0)
    (at_hand,) = network.head_influence([batch], [tokens])
    torch.testing.assert_close(at_hand, anew, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(shifted, anew)

"""What must hold for every registered intervention, through OpenRLHF's real PolicyLoss."""

from typing import Any

import pytest
import torch
from steer_openrlhf.interventions.common import STEP_STATISTICS
from steer_openrlhf.registry import INTERVENTIONS

Batch = dict[str, torch.Tensor]

ACTING: dict[str, dict[str, Any]] = {
    "steer": {"lambda_min": 0.4},
    "uniform": {"lambda_min": 0.4},
    "entropy_advantage": {},
    "w_reinforce": {},
    "stare": {"target_entropy": 2.0, "share": 0.3, "weight_negative": 0.9},
    "clip_cov": {"ratio": 0.1, "lb": 0.2},
    "kl_cov": {"ratio": 0.1},
    "forking_tokens": {},
    "erc": {},
    "clip_b": {"mu": 0.5},
    "clip_v": {"mu": 0.3, "max_share": 0.1},
    "opefo": {},
    "dcpo": {},
    "ce_gppo": {},
    "entropic": {"high_prob": 0.4},
    "positive_reweight": {"initial": 0.35},
}
"""Settings with which an intervention does something on a step of thirty tokens."""

OFF: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "steer": ({"lambda_min": 1.0}, {}),
    "uniform": ({"lambda_min": 1.0}, {}),
    "entropy_advantage": ({"alpha": 0.0}, {}),
    "w_reinforce": ({"lambda_positive": 1.0}, {}),
    "stare": ({"weight": 1.0, "target_entropy": 9.0}, {}),
    "clip_cov": ({"lb": 1e9, "ub": 2e9}, {}),
    "kl_cov": ({"beta": 0.0}, {"clip_eps_low": 1e9, "clip_eps_high": 1e9}),
    "forking_tokens": ({"keep": 1.0}, {}),
    "erc": ({"low": 0.0, "high": 1e30}, {}),
    "clip_b": ({"mu": 1e9}, {}),
    "clip_v": ({"mu": 1e9}, {}),
    "ce_gppo": ({"beta1": 0.0, "beta2": 0.0}, {}),
    "entropic": ({"kp": 0.0, "ki": 0.0, "high_prob": 0.4}, {}),
    "positive_reweight": ({"initial": 1.0, "delta": 0.0}, {}),
}
"""Settings that switch an intervention off, and the stock loss this leaves. Not here: ``opefo`` has no settings that
leave every weight, ``dcpo`` none with PPO's bounds."""

READS_ENTROPY = {"steer", "uniform", "entropy_advantage", "stare", "forking_tokens", "erc", "clip_b", "clip_v", "opefo"}
READS_ENTROPY |= {"entropic", "positive_reweight"}
STATISTICS = ("entropy", "collision", "old_entropy", "random", "influence", "influence_head")
REWEIGHTINGS = set(ACTING) - {"entropy_advantage", "kl_cov", "dcpo", "ce_gppo", "entropic"}


def sound(info: dict[str, torch.Tensor]) -> bool:
    """Every metric is a number, but for statistics of the step, which it may not have: NaN, and no other stand-in."""
    unknown = {name.removeprefix("steer/") for name, metric in info.items() if metric.isnan()}
    return unknown <= STEP_STATISTICS and not any(metric.isinf() for metric in info.values())


every = pytest.mark.parametrize("name", list(INTERVENTIONS))


def settings(name: str) -> dict[str, Any]:
    return ACTING.get(name, {})


def tokens_of(loss: Any, batch: Batch) -> Any:
    return loss.tokens(*(batch[part] for part in ("log_probs", "old_log_probs", "advantages", "action_mask")))


@every
def test_it_does_something(name: str, step: Batch, run: Any, stock: Any, call: Any) -> None:
    """The other tests here would pass for an intervention that never acts."""
    _, plain = call(stock(), step)
    assert not torch.allclose(run(name, step, **settings(name)).gradient, plain, rtol=1e-3)


@pytest.mark.parametrize("dual", [None, 1.6])
@pytest.mark.parametrize("name", OFF)
def test_off_is_the_stock_loss_bit_for_bit(
    name: str, dual: float | None, step: Batch, run: Any, stock: Any, call: Any
) -> None:
    single = {key: value.float() if value.is_floating_point() else value for key, value in step.items()}
    fields, base = OFF[name]
    value, gradient = call(stock(**base, dual_clip=dual), single)
    found = run(name, single, {"dual_clip": dual}, **fields)
    assert torch.equal(found.gradient, gradient)
    assert torch.equal(found.value, value)


@every
@pytest.mark.parametrize("state", [{}, {"integral": -2.0, "lambda": 0.5, "update": 1.0}], ids=["fresh", "later"])
def test_how_the_step_is_cut_does_not_matter(name: str, state: Any, step: Batch, adapted: Any, call: Any) -> None:
    """Another order, three uneven micro-batches, other padding, with the summary of the step: the same gradients."""
    count = step["action_mask"].sum()
    whole = adapted(name, step, **settings(name))
    whole.state = dict(state)
    value, gradient = call(whole, step, count)
    order = [4, 0, 5, 2, 1, 3]
    cuts = [{key: part[order][rows] for key, part in step.items()} for rows in (slice(0, 1), slice(1, 4), slice(4, 6))]
    cuts = [padded(cut, extra) for cut, extra in zip(cuts, (0, 3, 1), strict=True)]
    losses = [adapted(name, cut, **settings(name)) for cut in cuts]
    signals = [loss.signal(tokens_of(loss, cut)) for loss, cut in zip(losses, cuts, strict=True)]
    losses[0].state = dict(state)
    summary = losses[0].summarize(None if signals[0] is None else torch.cat(signals))
    total, gradients = 0.0, []
    for loss, cut in zip(losses, cuts, strict=True):
        loss.summary = summary
        part_value, part = call(loss, cut, count)
        total, gradients = total + part_value.item(), [*gradients, part[:, : step["action_mask"].shape[1]]]
    assert losses[0].state == pytest.approx(whole.state)
    assert total == pytest.approx(value.item(), rel=1e-6)
    torch.testing.assert_close(torch.cat(gradients), gradient[order], rtol=1e-6, atol=1e-9)


def padded(batch: Batch, extra: int) -> Batch:
    """``extra`` columns after the responses: mask 0, log-probs 0, anything else NaN or large."""

    def more(name: str, part: torch.Tensor) -> torch.Tensor:
        fill = torch.nan if name in STATISTICS else 1e6 if name == "advantages" else 0
        return torch.cat([part, part.new_full((part.shape[0], extra, *part.shape[2:]), fill)], dim=1)

    return {name: more(name, part) for name, part in batch.items()}


@every
def test_masked_entries_may_hold_anything(name: str, step: Batch, run: Any) -> None:
    expected = run(name, step, **settings(name))
    outside = ~step["action_mask"].bool()
    assert outside.any()
    dirty = dict(step)
    for statistic in STATISTICS:
        dirty[statistic] = step[statistic].masked_fill(outside, torch.nan)
    dirty["advantages"] = step["advantages"].masked_fill(outside, -1e6)
    dirty["old_log_probs"] = step["old_log_probs"].masked_fill(outside, -30.0)
    found = run(name, dirty, **settings(name))
    assert torch.equal(found.gradient, expected.gradient)
    assert torch.equal(found.value, expected.value)
    for metric, value in expected.info.items():
        assert torch.equal(value, found.info[metric]), metric


@every
def test_an_empty_micro_batch(name: str, step: Batch, run: Any, adapted: Any, call: Any) -> None:
    """On its own, and with the summary of a step that is not empty."""
    empty = {**step, "action_mask": torch.zeros_like(step["action_mask"])}
    full = adapted(name, step, **settings(name))
    summary = full.summarize(full.signal(tokens_of(full, step)))
    for given in (None, summary):
        loss = adapted(name, empty, **settings(name))
        loss.summary = given
        value, gradient = call(loss, empty, torch.tensor(30.0))
        assert value.item() == 0
        assert not gradient.any()
        assert sound(loss.info), loss.info


@every
@pytest.mark.parametrize("broken", [torch.nan, torch.inf, -torch.inf])
def test_one_token_without_a_finite_entropy_is_counted_and_harms_nothing(
    name: str, broken: float, step: Batch, run: Any
) -> None:
    tokens = step["action_mask"].sum().item()
    bad = {**step, "entropy": step["entropy"].clone(), "collision": step["collision"].clone()}
    bad["entropy"][0, 0] = bad["collision"][0, 0] = broken
    found = run(name, bad, **settings(name))
    assert found.gradient.isfinite().all()
    assert found.value.isfinite()
    assert all(metric.isfinite() for metric in found.info.values()), found.info
    counts = [value.item() for metric, value in found.info.items() if metric.startswith("steer/nonfinite_")]
    if name in READS_ENTROPY:
        assert counts == pytest.approx([1 / tokens])
    else:
        assert counts == [] or counts == pytest.approx([1 / tokens])


@every
def test_no_finite_entropy_at_all(name: str, step: Batch, run: Any) -> None:
    bad = {**step, "entropy": torch.full_like(step["entropy"], torch.nan)}
    found = run(name, bad, **settings(name))
    assert found.gradient.isfinite().all()
    assert sound(found.info), found.info


@every
def test_not_a_finite_extra(name: str, step: Batch, run: Any) -> None:
    bad = {**step, **{key: torch.full_like(step[key], torch.nan) for key in STATISTICS}}
    found = run(name, bad, **settings(name))
    assert found.gradient.isfinite().all()
    assert sound(found.info), found.info


@every
def test_zero_advantages_have_no_gradient(name: str, step: Batch, run: Any) -> None:
    found = run(name, {**step, "advantages": torch.zeros_like(step["advantages"])}, **settings(name))
    assert not found.gradient.any()
    assert sound(found.info), found.info


@every
@pytest.mark.parametrize("scale", [1e6, -1e6])
def test_large_advantages_stay_finite(name: str, scale: float, step: Batch, run: Any) -> None:
    found = run(name, {**step, "advantages": step["advantages"] * scale}, **settings(name))
    assert found.gradient.isfinite().all()
    assert found.gradient.any()
    assert all(metric.isfinite() for metric in found.info.values()), found.info


@every
def test_far_off_policy_stays_finite(name: str, step: Batch, run: Any) -> None:
    """Log-ratios of +-30: OpenRLHF clamps them at 20."""
    signs = torch.where(step["random"] > 0.5, 30.0, -30.0)
    found = run(name, {**step, "old_log_probs": step["log_probs"] + signs}, **settings(name))
    assert found.gradient.isfinite().all()
    assert all(metric.isfinite() for metric in found.info.values()), found.info


@pytest.mark.parametrize("name", [name for name in INTERVENTIONS if name not in ("steer", "uniform")])
def test_the_common_core_of_the_metrics(name: str, step: Batch, run: Any) -> None:
    info = run(name, step, **settings(name)).info
    assert 0 < info["steer/share_selected"].item() <= 1
    assert ("steer/weight_mean" in info) == (name in REWEIGHTINGS)
    assert all(value.ndim == 0 and not value.requires_grad for value in info.values())


@every
def test_a_summary_from_a_forward_that_differs_in_the_last_bits_selects_the_same(
    name: str, step: Batch, run: Any, adapted: Any, call: Any
) -> None:
    """With several micro-batches the summary is of an earlier forward, whose rounding is its own."""
    expected = run(name, step, **settings(name))
    generator = torch.Generator().manual_seed(4)
    before = dict(step)
    for part in ("log_probs", "entropy", "collision"):
        before[part] = step[part] + 1e-7 * torch.randn(step[part].shape, generator=generator, dtype=torch.float64)
    early, loss = (adapted(name, one, **settings(name)) for one in (before, step))
    loss.summary = early.summarize(early.signal(tokens_of(early, before)))
    _, gradient = call(loss, step)
    torch.testing.assert_close(gradient, expected.gradient, rtol=1e-4, atol=1e-7)

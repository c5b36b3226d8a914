"""The adapter around OpenRLHF's real PolicyLoss: off means identical, and how a batch is cut does not matter."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from steer_openrlhf import host
from steer_openrlhf.config import SteerConfig
from steer_openrlhf.loss import InterventionLoss
from steer_openrlhf.registry import INTERVENTIONS
from steer_openrlhf.tokens import Tokens, TokenStatistics

LOSSES = [
    {"policy_loss_type": "ppo"},
    {"policy_loss_type": "ppo", "dual_clip": 3.0},
    {"policy_loss_type": "ppo", "is_correction_level": "token"},
    {"policy_loss_type": "ppo", "is_correction_level": "token", "is_correction_mode": "clip"},
    {"policy_loss_type": "ppo", "is_correction_level": "seq", "dual_clip": 3.0},
    {"policy_loss_type": "ppo", "token_level_loss": False},
    {"policy_loss_type": "gspo"},
    {"policy_loss_type": "gspo", "is_correction_level": "seq"},
    *(
        {"policy_loss_type": "ppo", "is_correction_level": level, "is_correction_gating": gating,
         "is_correction_threshold": [0.0, 0.01]}
        for level in ("token", "seq") for gating in ("binary_kl", "tv")
    ),
]  # fmt: skip


@pytest.fixture(scope="module")
def stock() -> Callable[..., torch.nn.Module]:
    host.install()
    from openrlhf.models import PolicyLoss

    return lambda **fields: PolicyLoss(clip_eps_low=0.2, clip_eps_high=0.28, **fields)


@pytest.fixture
def batch(make_tokens: Callable[..., Tokens]) -> dict[str, torch.Tensor]:
    tokens = make_tokens(rows=6, columns=7, seed=3, drift=0.5)
    rollout = tokens.old_log_probs_BT + 0.05 * torch.randn(6, 7, generator=torch.Generator().manual_seed(9))
    return {
        "log_probs": tokens.log_probs_BT.clone().requires_grad_(),
        "old_log_probs": tokens.old_log_probs_BT,
        "advantages": tokens.advantages_BT,
        "action_mask": tokens.mask_BT,
        "rollout_log_probs": rollout,
        "entropy": tokens.entropy_BT,
        "collision": tokens.collision_BT,
    }


def call(loss: torch.nn.Module, batch: dict[str, torch.Tensor], **extra: Any) -> tuple[Any, torch.Tensor]:
    log_probs = batch["log_probs"].detach().requires_grad_()
    result = loss(
        log_probs,
        batch["old_log_probs"],
        batch["advantages"],
        action_mask=batch["action_mask"],
        rollout_log_probs=batch["rollout_log_probs"],
        **extra,
    )
    (gradient,) = torch.autograd.grad(result[0], log_probs)
    return result, gradient


def adapted(
    base: torch.nn.Module, batch: dict[str, torch.Tensor], name: str = "steer", **fields: Any
) -> InterventionLoss:
    loss = InterventionLoss(base, INTERVENTIONS[name], SteerConfig(**fields), gather=lambda signal: signal)
    loss.statistics = TokenStatistics(batch["log_probs"].detach(), batch["entropy"], batch["collision"])
    return loss


@pytest.mark.parametrize("fields", LOSSES, ids=str)
def test_a_weight_on_the_loss_is_a_weight_on_the_advantage(fields: Any, stock: Any, batch: Any) -> None:
    """Positive homogeneity of every branch, token by token: the gradient with respect to each log-prob scales."""
    weights = torch.rand(6, 7, generator=torch.Generator().manual_seed(5), dtype=torch.float64) + 0.1
    if fields["policy_loss_type"] == "gspo":
        weights = weights[:, :1].expand(
            6, 7
        )  # one ratio a sequence: a sequence's gradient scales with its weights' mean
    _, plain = call(stock(**fields), batch)
    _, scaled = call(stock(**fields), {**batch, "advantages": batch["advantages"] * weights})
    torch.testing.assert_close(scaled, plain * weights, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("fields", LOSSES, ids=str)
def test_off_is_identical_bit_for_bit(fields: Any, stock: Any, batch: Any) -> None:
    """lambda_min = 1 switches every weight to 1: value, all five outputs and gradient are the stock loss's own bits."""
    batch = {name: value.float() for name, value in batch.items()}
    expected, gradient = call(stock(**fields), batch)
    found, found_gradient = call(adapted(stock(**fields), batch, lambda_min=1.0), batch)
    assert torch.equal(gradient, found_gradient)
    for one, other in zip(found, expected, strict=True):
        assert (one is None and other is None) or torch.equal(one, other)


def test_steer_changes_the_gradient_by_exactly_its_weights(stock: Any, batch: Any) -> None:
    loss = adapted(stock(policy_loss_type="ppo"), batch, lambda_min=0.3)
    tokens = loss.tokens(batch["log_probs"], batch["old_log_probs"], batch["advantages"], batch["action_mask"])
    shaped = INTERVENTIONS["steer"].function("shape")(tokens, loss.summarize(loss.signal(tokens)), loss.config)
    mask = batch["action_mask"].bool() & (batch["advantages"] != 0)
    weights = (shaped.advantages_BT / batch["advantages"].float())[mask]
    assert weights.min().item() == pytest.approx(0.3, rel=1e-5)
    _, plain = call(stock(policy_loss_type="ppo"), batch)
    _, found = call(loss, batch)
    torch.testing.assert_close(found[mask], plain[mask] * weights, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("name", ["steer", "uniform"])
@pytest.mark.parametrize(
    "fields",
    [
        {"lambda_min": 0.4},
        {"lambda_min": 0.4, "normalizer": "quantile", "quantile": 0.8},
        {"k": 5.0, "side": "falling"},
        {"weight": "linear"},
    ],
    ids=str,
)
def test_global_scope_does_not_depend_on_how_the_step_is_cut(name: str, fields: Any, stock: Any, batch: Any) -> None:
    whole = adapted(stock(policy_loss_type="ppo"), batch, name, **fields)
    count = {"batch_num_tokens": batch["action_mask"].sum(), "dp_size": 1}
    expected, gradient = call(whole, batch, **count)
    order = [4, 0, 5, 2, 1, 3]  # another order, three uneven micro-batches, padding cut where a micro-batch allows it
    micro = [
        {key: value[order][rows] for key, value in batch.items()} for rows in (slice(0, 1), slice(1, 4), slice(4, 6))
    ]
    losses = [adapted(stock(policy_loss_type="ppo"), one, name, **fields) for one in micro]
    parts = [
        loss.tokens(one["log_probs"], one["old_log_probs"], one["advantages"], one["action_mask"])
        for loss, one in zip(losses, micro, strict=True)
    ]
    summary = losses[0].summarize(torch.cat([loss.signal(part) for loss, part in zip(losses, parts, strict=True)]))
    total, gradients = 0.0, []
    for loss, one in zip(losses, micro, strict=True):
        loss.summary = summary
        result, part = call(loss, one, **count)
        total, gradients = total + result[0].item(), [*gradients, part]
    assert total == pytest.approx(expected[0].item(), rel=1e-6)
    torch.testing.assert_close(torch.cat(gradients), gradient[order], rtol=1e-6, atol=1e-9)


def test_microbatch_scope_does_depend_on_it(stock: Any, batch: Any) -> None:
    loss = adapted(stock(policy_loss_type="ppo"), batch, lambda_min=0.4, scope="microbatch")
    first = {key: value[:2] for key, value in batch.items()}
    part = adapted(stock(policy_loss_type="ppo"), first, lambda_min=0.4, scope="microbatch")
    count = {"batch_num_tokens": batch["action_mask"].sum(), "dp_size": 1}
    assert not torch.allclose(call(part, first, **count)[1], call(loss, batch, **count)[1][:2], rtol=1e-3)


def test_masked_entries_may_hold_anything(stock: Any, batch: Any) -> None:
    loss = adapted(stock(policy_loss_type="ppo"), batch, lambda_min=0.4)
    _, expected = call(loss, batch)
    outside = ~batch["action_mask"].bool()
    dirty = {**batch, "advantages": batch["advantages"].masked_fill(outside, 1e6)}
    loss = adapted(stock(policy_loss_type="ppo"), dirty, lambda_min=0.4)
    loss.statistics = TokenStatistics(*(part.masked_fill(outside, float("nan")) for part in loss.statistics))  # type: ignore[union-attr]
    _, found = call(loss, dirty)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", ["steer", "uniform"])
def test_empty_micro_batch_and_nan_entropy_leave_no_nan(name: str, stock: Any, batch: Any) -> None:
    empty = {**batch, "action_mask": torch.zeros_like(batch["action_mask"])}
    loss = adapted(stock(policy_loss_type="ppo"), empty, name)
    call(loss, empty, batch_num_tokens=torch.tensor(1.0))
    assert all(value.isfinite() for value in loss.info.values())
    loss = adapted(stock(policy_loss_type="ppo"), batch, name)
    entropy = batch["entropy"].clone()
    entropy[0, 0] = float("nan")
    loss.statistics = TokenStatistics(batch["log_probs"].detach(), entropy, batch["collision"])
    _, gradient = call(loss, batch)
    assert gradient.isfinite().all()
    assert loss.info["steer/nonfinite_omega"].item() == pytest.approx(1 / batch["action_mask"].sum().item())


def test_the_ratio_is_that_of_the_base_loss(stock: Any, batch: Any) -> None:
    """gspo with an IS correction compares with vLLM's log-probs; everything else with the actor's."""
    for fields, old in (
        ({"policy_loss_type": "gspo", "is_correction_level": "seq"}, "rollout_log_probs"),
        ({"policy_loss_type": "gspo"}, "old_log_probs"),
        ({"policy_loss_type": "ppo", "is_correction_level": "token"}, "old_log_probs"),
    ):
        names = ("log_probs", "old_log_probs", "advantages", "action_mask", "rollout_log_probs")
        tokens = adapted(stock(**fields), batch).tokens(*(batch[name] for name in names))
        mask = batch["action_mask"].bool()
        torch.testing.assert_close(tokens.old_log_probs_BT[mask], batch[old].float()[mask])


def test_uniform_has_one_weight_and_it_is_steers_mean(stock: Any, batch: Any) -> None:
    steer, uniform = (
        adapted(stock(policy_loss_type="ppo"), batch, name, lambda_min=0.4) for name in ("steer", "uniform")
    )
    call(steer, batch)
    call(uniform, batch)
    assert uniform.info["steer/weight_std"].item() == pytest.approx(0.0, abs=1e-7)
    assert uniform.info["steer/weight_mean"].item() == pytest.approx(steer.info["steer/weight_mean"].item(), rel=1e-5)
    assert steer.info["steer/weight_std"].item() > 0.01

"""Values worked by hand, on three to ten tokens in one row."""

import math
from typing import Any

import pytest
import torch
from steer_openrlhf.interventions import configs
from steer_openrlhf.interventions.clipping import dynamic_bounds
from steer_openrlhf.interventions.common import largest, smallest
from steer_openrlhf.registry import INTERVENTIONS
from steer_openrlhf.tokens import NO_CLIP, Clip, Shaped, Tokens


def tokens(advantages: list[float], **given: Any) -> Tokens:
    """One row of response tokens; what is not given is 0, old log-probs are the log-probs."""
    row = torch.tensor([advantages], dtype=torch.float64)
    parts = {name: torch.tensor([values], dtype=torch.float64) for name, values in given.items()}
    zero = torch.zeros_like(row)
    log_probs = parts.pop("log_probs", zero)
    return Tokens(
        log_probs,
        parts.pop("old_log_probs", log_probs),
        row,
        torch.ones_like(row),
        parts.pop("entropy", zero),
        parts.pop("collision", zero),
        Clip(0.2, 0.28),
        **{f"{name}_BT": value for name, value in parts.items()},
    )


def shaped(name: str, given: Tokens, state: dict[str, float] | None = None, **fields: Any) -> Shaped:
    chosen = INTERVENTIONS[name]
    config = chosen.config(**fields)
    signal, summarize, control, shape = (chosen.function(one) for one in ("signal", "summarize", "control", "shape"))
    summary = summarize(signal(given, config), config) if signal and summarize else None
    if control:
        _, summary = control(state or {}, summary, config)
    assert shape is not None
    answer: Shaped = shape(given, summary, config)
    return answer


def advantages(name: str, given: Tokens, **fields: Any) -> list[float]:
    return shaped(name, given, **fields).advantages_BT[0].tolist()


def test_entropy_advantage_adds_alpha_entropy_up_to_a_share_of_the_advantage() -> None:
    given = tokens(
        [1.0, -1.0, 0.2, 0.0], entropy=[0.5, 5.0, 2.0, 1.0]
    )  # min(.2, .5), min(2, .5), min(.8, .1), min(.4, 0)
    assert advantages("entropy_advantage", given) == pytest.approx([1.2, -0.5, 0.3, 0.0])
    answer = shaped("entropy_advantage", given)
    assert answer.metrics["share_selected"].item() == 0.75
    assert answer.metrics["share_at_limit"].item() == 0.5
    assert answer.metrics["bonus_mean"].item() == pytest.approx(0.2)


def test_w_reinforce_weighs_the_signs_apart() -> None:
    given = tokens([2.0, -3.0, 0.0])
    assert advantages("w_reinforce", given) == pytest.approx([0.2, -3.0, 0.0])
    nsr, psr = {"lambda_positive": 0.0}, {"lambda_positive": 1.0, "lambda_negative": 0.0}
    assert advantages("w_reinforce", given, **nsr) == [0.0, -3.0, 0.0]
    assert advantages("w_reinforce", given, **psr) == [2.0, 0.0, 0.0]


def test_stare_raises_the_most_surprising_positives_while_entropy_is_low() -> None:
    given = tokens(
        [1.0, 1.0, 1.0, 1.0, 1.0, -1.0, -1.0], log_probs=[-1.0, -5.0, -2.0, -4.0, -3.0, -2.0, -9.0], entropy=[0.2] * 7
    )
    few = {"share": 0.4}  # ceil(.4 * 5) = 2 of the positives, ceil(.4 * 2) = 1 of the negatives
    assert advantages("stare", given, **few) == pytest.approx([1.0, 1.1, 1.0, 1.1, 1.0, -1.0, -1.0])
    c2 = {**few, "weight_negative": 0.9}
    assert advantages("stare", given, **c2) == pytest.approx([1.0, 1.1, 1.0, 1.1, 1.0, -1.0, -0.9])
    assert advantages("stare", given, **few, target_entropy=0.19) == [1.0] * 5 + [-1.0] * 2
    assert shaped("stare", given, **few).metrics["gate"].item() == 1.0
    assert shaped("stare", given, **few, target_entropy=0.19).metrics["gate"].item() == 0.0


COV = {"log_probs": [-1.0, -3.0, -3.0, -1.0], "random": [0.9, 0.1, 0.5, 0.2]}
COV_A = [3.0, 1.0, -1.0, -3.0]  # means 0 and -2: covariances 3, -1, 1, -3


def test_clip_cov_draws_the_smallest_random_number_inside_the_bounds() -> None:
    quarter = {"ratio": 0.25, "lb": 0.5, "ub": 5.0}  # one token; eligible are the first and the third
    assert advantages("clip_cov", tokens(COV_A, **COV), **quarter) == [3.0, 1.0, 0.0, -3.0]
    assert advantages("clip_cov", tokens(COV_A, **COV), ratio=0.25, lb=2.0, ub=5.0) == [0.0, 1.0, -1.0, -3.0]
    assert advantages("clip_cov", tokens(COV_A, **COV), ratio=0.5, lb=0.5, ub=5.0) == [0.0, 1.0, 0.0, -3.0]
    assert advantages("clip_cov", tokens(COV_A, **COV), ratio=0.25, lb=3.0, ub=5.0) == COV_A  # bounds are exclusive
    stopped = {**COV, "old_log_probs": [-1.0, -3.0, -2.0, -1.0]}  # the third: A < 0 and r = 1/e, PPO clips it
    assert advantages("clip_cov", tokens(COV_A, **stopped), **quarter) == [0.0, 1.0, -1.0, -3.0]


def test_clip_cov_draws_at_least_one() -> None:
    answer = shaped("clip_cov", tokens(COV_A, **COV), ratio=1e-6, lb=0.5, ub=5.0)
    assert answer.metrics["share_selected"].item() == 0.25
    assert answer.metrics["weight_mean"].item() == 0.75
    assert answer.metrics["share_eligible"].item() == 0.5


def test_kl_cov_penalises_the_distance_of_the_largest_covariance_and_does_not_clip() -> None:
    parts = {"log_probs": COV["log_probs"], "old_log_probs": [-1.3, -2.5, -2.0, -1.0]}
    answer = shaped("kl_cov", tokens(COV_A, **parts), ratio=0.25, beta=2.0)
    assert answer.clip == NO_CLIP
    assert answer.advantages_BT[0].tolist() == COV_A
    assert answer.extra_loss is not None
    log_probs = torch.tensor([COV["log_probs"]], dtype=torch.float64, requires_grad=True)
    extra = answer.extra_loss(log_probs)
    assert extra[0].tolist() == pytest.approx([0.6, 0.0, 0.0, 0.0])
    assert torch.autograd.grad(extra.sum(), log_probs)[0][0].tolist() == [2.0, 0.0, 0.0, 0.0]
    assert answer.metrics["penalty_mean"].item() == pytest.approx(0.15)


def test_kl_cov_of_zero_advantages_selects_nothing() -> None:
    answer = shaped("kl_cov", tokens([0.0] * 4, log_probs=COV["log_probs"]))
    assert answer.metrics["share_selected"].item() == 0.0


def test_forking_tokens_keeps_the_top_share_and_divides_by_it() -> None:
    given = tokens([1.0, 2.0, 3.0, 4.0, 5.0], entropy=[0.1, 0.9, 0.5, 0.7, 0.2])
    assert advantages("forking_tokens", given, keep=0.4) == pytest.approx([0.0, 5.0, 0.0, 10.0, 0.0])
    assert advantages("forking_tokens", given, keep=0.41) == pytest.approx([0.0, 10 / 3, 5.0, 20 / 3, 0.0])
    assert shaped("forking_tokens", given, keep=0.4).metrics["weight_mean"].item() == pytest.approx(1.0)
    tied = tokens([1.0, 1.0, 1.0, 1.0], entropy=[0.3, 0.3, 0.1, 0.1])
    assert advantages("forking_tokens", tied, keep=0.25) == [2.0, 2.0, 0.0, 0.0]


def test_erc_drops_where_entropy_moved_more_than_five_percent() -> None:
    given = tokens([1.0, 2.0, -3.0, 4.0], entropy=[1.0, 1.0, 1.0, 0.0], old_entropy=[1.0, 1.1, 0.9, 0.0])
    answer = shaped("erc", given)  # ratios 1, .909, 1.111, 1
    assert answer.advantages_BT[0].tolist() == [1.0, 0.0, 0.0, 4.0]
    assert answer.metrics["share_above"].item() == answer.metrics["share_below"].item() == 0.25
    assert answer.metrics["entropy_ratio_mean"].item() == pytest.approx((1 + 1 / 1.1 + 1 / 0.9 + 1) / 4, rel=1e-6)


@pytest.mark.parametrize(
    ("last_s", "last_a", "side", "masked"),
    [
        (-10.0, -1.0, "negative", True),
        (-10.0, 1.0, "negative", False),
        (10.0, -1.0, "negative", False),
        (10.0, 1.0, "negative", False),
        (10.0, 1.0, "lowering", True),
        (-10.0, -1.0, "lowering", True),
        (-10.0, 1.0, "lowering", False),
        (-10.0, 1.0, "all", True),
        (10.0, -1.0, "all", True),
    ],
)
def test_clip_b_masks_the_outlier_on_its_side(last_s: float, last_a: float, side: str, masked: bool) -> None:
    """pi = 1, so S = H: four zeros and +-10 have mean +-2 and standard deviation 4; the last is 2 of them away."""
    given = tokens([-1.0, -1.0, 1.0, -1.0, last_a], entropy=[0.0, 0.0, 0.0, 0.0, last_s])
    expected = [-1.0, -1.0, 1.0, -1.0, 0.0 if masked else last_a]
    assert advantages("clip_b", given, mu=1.9, side=side) == expected
    assert advantages("clip_b", given, mu=2.1, side=side) == [-1.0, -1.0, 1.0, -1.0, last_a]
    assert shaped("clip_b", given, mu=1.9, side=side).metrics["deviation_std"].item() == pytest.approx(4.0)


def test_clip_v_measures_from_zero_and_caps_the_share() -> None:
    """S = 0, so the deviation is E[S]: standard deviation sqrt(4.89), 5 and 6 are more than two of them from 0."""
    given = tokens([-1.0] * 10, collision=[0.0] * 8 + [5.0, 6.0])
    assert advantages("clip_v", given, mu=2.0, max_share=None) == [-1.0] * 8 + [0.0, 0.0]
    answer = shaped("clip_v", given, mu=2.0)
    assert answer.advantages_BT[0].tolist() == [-1.0] * 9 + [0.0]
    assert answer.metrics["share_outliers"].item() == pytest.approx(0.2)
    assert answer.metrics["share_selected"].item() == pytest.approx(0.1)
    assert advantages("clip_v", given, mu=2.5) == [-1.0] * 9 + [0.0]  # 5.53: only the 6
    assert advantages("clip_v", given, mu=2.8) == [-1.0] * 10


def test_opefo_cancels_the_flows() -> None:
    """pi = .5 and log pi + H = 1: Omega = -A/2 = -3, 1, 0; l = (3 - 1) / (3 + 1)."""
    half = math.log(0.5)
    given = tokens([6.0, -2.0, 0.0], log_probs=[half] * 3, entropy=[1 - half] * 3)
    answer = shaped("opefo", given)
    assert answer.advantages_BT[0].tolist() == pytest.approx([3.0, -3.0, 0.0])
    assert answer.metrics["coefficient"].item() == pytest.approx(0.5)
    assert answer.metrics["rising_share_of_flow"].item() == pytest.approx(0.25)
    assert answer.metrics["share_selected"].item() == pytest.approx(2 / 3)


def test_dcpo_bounds() -> None:
    old = torch.tensor([1.0, 0.64, 0.32, 1e-6], dtype=torch.float64)
    low, high = dynamic_bounds(old, configs.DcpoConfig())
    assert low.tolist() == pytest.approx([0.8, 0.5, 0.5, 0.5])  # sqrt(.36) / 2 + .5, then sqrt(0)
    assert high.tolist() == pytest.approx([0.5 + 0.5 * math.sqrt(1.8), 1.25, 0.5 + 0.5 * math.sqrt(3.5), 10.0])


def test_dcpo_frees_rare_tokens() -> None:
    """r = 1.4: above 1.28 for everybody under PPO, below 1.435 for a token of old probability .32."""
    log_probs = [math.log(1.4 * 0.32), math.log(1.4 * 0.64)]
    given = tokens([1.0, 1.0], log_probs=log_probs, old_log_probs=[math.log(0.32), math.log(0.64)])
    answer = shaped("dcpo", given)
    assert answer.metrics["share_freed"].item() == 0.5
    assert answer.metrics["share_selected"].item() == 0.5
    assert isinstance(answer.clip, tuple)
    assert answer.clip[0][0].tolist() == pytest.approx([0.5, 0.5])  # type: ignore[index]
    assert answer.clip[1][0].tolist() == pytest.approx([0.5 * math.sqrt(3.5) - 0.5, 0.25])  # type: ignore[index]


def test_ce_gppo_gives_clipped_tokens_a_bounded_gradient_and_no_value() -> None:
    given = tokens([2.0, -2.0, 1.0, -1.0], log_probs=[math.log(1.5), math.log(0.5), 0.0, 1.0], old_log_probs=[0.0] * 4)
    answer = shaped("ce_gppo", given)
    assert answer.extra_loss is not None
    log_probs = given.log_probs_BT.clone().requires_grad_()
    extra = answer.extra_loss(log_probs)
    assert extra[0].tolist() == [0.0] * 4
    gradient = torch.autograd.grad(extra.sum(), log_probs)[0][0]
    assert gradient.tolist() == pytest.approx([-1.28 * 2, 0.75 * 0.8 * 2, 0.0, 0.0])
    assert answer.metrics["share_low"].item() == answer.metrics["share_high"].item() == 0.25


def test_entropic_pushes_on_probable_tokens() -> None:
    """Mean H .6, target .1: a = .5 + .01 * .5 = .505; one of two tokens is above .95, so the mean over it is twice."""
    given = tokens([-2.0, 3.0], log_probs=[math.log(0.99), math.log(0.5)], entropy=[0.5, 0.7])
    answer = shaped("entropic", given)
    assert answer.metrics["controller_output"].item() == pytest.approx(0.505)
    assert answer.metrics["entropy_error"].item() == pytest.approx(0.5)
    assert answer.extra_loss is not None
    assert answer.extra_loss(given.log_probs_BT)[0].tolist() == pytest.approx([-0.505 * 2 * 2, 0.0])
    assert answer.advantages_BT[0].tolist() == [-2.0, 3.0]


def test_positive_reweight_starts_without_positives() -> None:
    given = tokens([2.0, -3.0, 0.0], entropy=[0.5] * 3)
    assert advantages("positive_reweight", given) == [0.0, -3.0, 0.0]
    assert advantages("positive_reweight", given, state={"lambda_next": 0.3}) == pytest.approx([0.6, -3.0, 0.0])


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_a_token_without_a_finite_entropy_is_out_of_every_statistic(broken: float) -> None:
    """The others are treated as if it were not there; it keeps its advantage, except where only the top is kept."""
    given = tokens([-1.0, -1.0, 1.0, -1.0, -1.0, -1.0], entropy=[0.0, 0.0, 0.0, 0.0, -10.0, broken])
    assert advantages("clip_b", given, mu=1.9) == [-1.0, -1.0, 1.0, -1.0, 0.0, -1.0]
    given = tokens([1.0, 2.0, 3.0], entropy=[0.5, 0.7, broken], old_entropy=[0.5, 0.5, 0.5])
    assert advantages("erc", given) == [1.0, 0.0, 3.0]
    for name in ("stare", "entropic", "positive_reweight"):
        assert shaped(name, given).metrics["step_entropy"].item() == pytest.approx(0.6)
    assert advantages("stare", given, target_entropy=0.61, share=1.0, weight=2.0) == [2.0, 4.0, 6.0]
    assert advantages("forking_tokens", given, keep=0.3) == [0.0, 6.0, 0.0]
    half = math.log(0.5)
    given = tokens([6.0, -2.0, 5.0], log_probs=[half] * 3, entropy=[1 - half, 1 - half, broken])
    assert advantages("opefo", given) == pytest.approx([3.0, -3.0, 5.0])
    assert advantages("entropy_advantage", given)[2] == 5.0


def test_opefo_by_influence_takes_it_as_the_change_per_advantage() -> None:
    """r = 1: Omega = A influence = -3, 1; the others as in the exact form."""
    given = tokens([6.0, -2.0, 1.0], influence=[-0.5, -0.5, 0.0])
    for estimator in ("influence", "influence_head"):
        assert advantages("opefo", given, estimator=estimator) == pytest.approx([3.0, -3.0, 1.0])


def test_a_threshold_lies_between_the_last_one_in_and_the_first_one_out() -> None:
    values = torch.tensor([1.0, 4.0, math.nan, 2.0, 4.0, -math.inf, 3.0], dtype=torch.float64)
    assert [largest(values, count).item() for count in (1, 2, 3, 4)] == [3.5, 3.5, 2.5, 1.5]  # both fours go together
    assert [smallest(values, count).item() for count in (1, 2, 4)] == [1.5, 2.5, math.inf]
    assert (largest(values, 5).item(), smallest(values, 9).item()) == (-math.inf, math.inf)
    assert (largest(values[2:3], 1).item(), smallest(values[:0], 1).item()) == (math.inf, -math.inf)
    next_to = torch.tensor([1.0, 1.0 + 2**-52], dtype=torch.float64)
    assert largest(next_to, 1).item() == next_to[1].item()

"""Relations: how they are read, that no draw breaks one, and that they change nothing else."""

import random
from itertools import pairwise
from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.samplers import RandomSampler, TPESampler
from optuna.trial import FixedTrial
from steer_openrlhf.errors import ConfigError
from steer_sweeps.relations import Relation, all_hold, completed, groups, kept_corners, narrowed, parse_relations
from steer_sweeps.samplers import RelationSampler
from steer_sweeps.space import Space, check_params, distributions, is_inside, parse_space, sample, values_of

PAIR = parse_space({"low": {"float": [0, 1]}, "high": {"float": [0, 1]}, "side": {"categorical": ["a", "b"]}})
BRANCH = parse_space(
    {
        "way": {"choose": {"pair": {"a": {"float": [0, 1]}, "b": {"float": [0, 1]}}, "one": {"c": {"int": [1, 9]}}}},
        "d": {"float": [0, 1]},
    }
)


def study_of(space: Space, relations: list[Relation], base: Any, seed: int = 0) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna.create_study(sampler=RelationSampler(base, space, relations, seed))


def draws(space: Space, texts: list[str], n: int, base: Any = None) -> list[dict[str, Any]]:
    study = study_of(space, parse_relations(texts, space), base or RandomSampler(seed=0))
    for number in range(n):
        trial = study.ask()
        sample(trial, space)
        study.tell(trial, float(number % 7))
    return [one.params for one in study.trials]


# -- reading -----------------------------------------------------------------------------------------------------------


def test_how_a_relation_is_read() -> None:
    space = parse_space({"a.b": {"float": [0, 1]}, "c.0": {"int": [0, 5]}, "c.1": {"int": [0, 5]}})
    assert parse_relations(["a.b<c.1", "-1e-1 <= a.b < 0.9"], space) == [
        Relation("a.b", "c.1", strict=True),
        Relation(-0.1, "a.b", strict=False),
        Relation("a.b", 0.9, strict=True),
    ]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("low", "with < or <= between them"),
        ("low > high", "with < or <= between them"),
        ("low <", "with < or <= between them"),
        ("low == high", "with < or <= between them"),
        ("lo < high", "lo is not in the space; did you mean 'low'?"),
        ("low < high + 1", "high + 1 is not in the space"),
        ("__import__('os').abort() < low", "is not in the space"),
        ("low < side", "side has values that are no numbers"),
        ("1 < 2", "no key of the space"),
        ("low < low", "both sides are the same"),
        ("1 < low", "none is left"),
        ("low < 0.0006", "narrow the ranges"),
    ],
)
def test_a_bad_relation_is_refused(text: str, wanted: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_relations([text], PAIR)
    assert any(wanted in one for one in caught.value.mistakes), caught.value.mistakes


def test_all_bad_relations_come_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_relations(
            ["lo < high", "low < high", "way < 1", "x"], parse_space({**BRANCH_TREE, "low": {"int": [1, 2]}})
        )
    assert [one.split(" ")[0] for one in caught.value.mistakes] == [
        "relations.0",
        "relations.0",
        "relations.1",
        "relations.2",
        "relations.3",
    ]


BRANCH_TREE = {"way": {"choose": {"x": {"a": {"int": [1, 2]}}, "y": {"b": {"int": [1, 2]}}}}}


def test_relations_that_share_a_key_belong_together() -> None:
    relations = [Relation("a", "b", True), Relation("c", "d", True), Relation("b", 3, True), Relation("x", "a", True)]
    found = groups(relations, dict.fromkeys("abcd", 1))
    assert sorted((sorted(names), len(together)) for names, together in found) == [(["a", "b"], 2), (["c", "d"], 1)]


# -- drawing -----------------------------------------------------------------------------------------------------------


@st.composite
def related_spaces(draw: Any) -> tuple[dict[str, Any], list[str]]:
    """Two or three numbers with overlapping ranges, floats, integers, logarithmic or stepped, in one chain."""
    tree: dict[str, Any] = {"side": {"categorical": [0, 1]}}
    names = [f"k{n}" for n in range(draw(st.integers(2, 3)))]
    for name in names:
        low = draw(st.integers(1, 5))
        tree[name] = draw(
            st.sampled_from(
                [
                    {"float": [low, 20]},
                    {"int": [low, 20]},
                    {"float": [low, 20], "log": True},
                    {"float": [low, 20], "step": 0.5},
                ]
            )
        )
    return tree, [f" {draw(st.sampled_from(['<', '<=']))} ".join(pair) for pair in pairwise(names)]


@settings(max_examples=20)
@given(case=related_spaces(), seed=st.integers(0, 99), name=st.sampled_from(["random", "tpe", "multivariate"]))
def test_no_draw_breaks_a_relation_and_every_draw_is_replayed(case: Any, seed: int, name: str) -> None:
    space = parse_space(case[0])
    relations = parse_relations(case[1], space)
    bases = {"random": RandomSampler(seed=seed), "tpe": TPESampler(seed=seed, n_startup_trials=2)}
    base = bases.get(name) or TPESampler(seed=seed, n_startup_trials=2, multivariate=True)
    study = study_of(space, relations, base)
    for number in range(4):
        trial = study.ask()
        values = sample(trial, space)
        frozen = study.trials[number]
        assert all_hold(relations, frozen.params)
        assert is_inside(frozen.params, space)
        assert frozen.distributions == distributions(space)  # as if there were no relation
        assert sample(FixedTrial(frozen.params), space) == values
        study.tell(trial, float(seed * number % 5))


def test_draws_are_uniform_where_the_relation_holds() -> None:
    """low < high over the unit square: the means of the triangle are 1/3 and 2/3; narrowing would give 1/2 and 3/4."""
    found = draws(PAIR, ["low < high"], 600)
    low, high = (np.array([one[name] for one in found]) for name in ("low", "high"))
    assert abs(low.mean() - 1 / 3) < 0.035
    assert abs(high.mean() - 2 / 3) < 0.035
    assert abs(np.mean([one["side"] == "a" for one in found]) - 0.5) < 0.08


def test_a_relation_does_not_make_its_branch_rare() -> None:
    """A tenth of the draws of branch ``pair`` hold. Drawing everything again would leave it a share of 1/11."""
    found = draws(BRANCH, ["a < 0.2", "b < 0.5"], 400)
    assert abs(np.mean([one["way"] == "pair" for one in found]) - 0.5) < 0.1
    assert all(one["a"] < 0.2 and one["b"] < 0.5 for one in found if one["way"] == "pair")


def test_what_is_not_in_a_relation_is_as_without_it() -> None:
    plain = optuna.create_study(sampler=RandomSampler(seed=3))
    trial = plain.ask()
    sample(trial, PAIR)
    related = study_of(PAIR, [Relation("low", 2.0, True)], RandomSampler(seed=3))
    other = related.ask()
    sample(other, PAIR)
    assert trial.params == other.params


@pytest.mark.parametrize(("key", "sign", "least"), [("low", 1, 0.7), ("high", -1, -0.25)])
def test_a_model_learns_under_a_relation(key: str, sign: int, least: float) -> None:
    """The more of ``low`` (the less of ``high``) the better, under low < high. Random draws have means of 1/3 (2/3); a
    model that is only refused what breaks the relation was seen at 0.42 (0.50), this one at 0.84 (0.14)."""
    relations, means = parse_relations(["low < high"], PAIR), []
    for seed in range(2):
        study = optuna.create_study(direction="maximize")
        for index in range(50):
            own = 1000 * seed + index  # every draw by a sampler of its own, as in a study
            study.sampler = RelationSampler(TPESampler(seed=own), PAIR, relations, own)
            trial = study.ask()
            study.tell(trial, sign * sample(trial, PAIR)[key])
        means.append(float(np.mean([one.value for one in study.trials[-25:]])))
    assert min(means) > least, means


@pytest.mark.parametrize(
    ("kept", "wanted"),
    [
        ({}, (1.0, 8.0)),  # below c's highest value; c itself is not kept
        ({"a": 4.0}, (np.nextafter(4, 5), 8.0)),
        ({"a": 4.0, "c": 6}, (np.nextafter(4, 5), np.nextafter(6, 5))),
        ({"a": 9.0}, None),
    ],
)
def test_what_is_left_of_a_range(kept: dict[str, float], wanted: tuple[float, float] | None) -> None:
    tree: dict[str, Any] = {"a": {"float": [0, 10]}, "b": {"float": [1, 10]}, "c": {"int": [0, 8]}}
    space = parse_space(tree | {"d": {"int": [1, 9], "step": 2}})
    relations = parse_relations(["a < b < c", "3 <= d < c"], space)
    left = narrowed("b", distributions(space), relations[:2], kept)
    found = None if left is None else (left.low, left.high)  # type: ignore[attr-defined]
    assert found == (None if wanted is None else pytest.approx(wanted))
    stepped = narrowed("d", distributions(space), relations[2:], {"c": 8})
    assert stepped == optuna.distributions.IntDistribution(3, 7, step=2)


def test_what_is_fixed_stays_and_the_rest_gives_way() -> None:
    relations = parse_relations(["low < high"], PAIR)
    study = study_of(PAIR, relations, RandomSampler(seed=1))
    for number in range(20):
        study.enqueue_trial({"low": 0.97})
        sample(study.ask(), PAIR)
        assert study.trials[number].params["low"] == 0.97
        assert study.trials[number].params["high"] > 0.97
    study.enqueue_trial({"low": 0.9, "high": 0.1})
    with pytest.raises(ConfigError, match="low < high"):
        sample(study.ask(), PAIR)


def test_a_trial_that_was_killed_between_two_keys_goes_on_with_the_first() -> None:
    study = study_of(PAIR, parse_relations(["low < high"], PAIR), RandomSampler(seed=1))
    begun = study.ask()
    study._storage.set_trial_param(begun._trial_id, "low", 0.95, distributions(PAIR)["low"])
    again = optuna.trial.Trial(study, begun._trial_id)
    sample(again, PAIR)
    assert again.params["low"] == 0.95
    assert again.params["high"] > 0.95


def test_completion_keeps_what_is_given_or_says_there_is_none() -> None:
    relations = parse_relations(["low < high"], PAIR)
    found = completed(PAIR, relations, {"low": 0.9}, random.Random(0))
    assert found is not None
    assert 0.9 == found["low"] < found["high"]
    assert completed(PAIR, relations, {"low": 0.9, "high": 0.1}, random.Random(0)) is None


def test_corners_keep_relations_and_still_show_every_bound_that_can_be() -> None:
    relations = parse_relations(["low < high"], PAIR)
    shown = list(kept_corners(PAIR, relations))
    assert all(all_hold(relations, one) and check_params(one, PAIR) == [] for one in shown)
    assert any(one["low"] == 0 for one in shown)
    assert any(one["high"] == 1 for one in shown)
    assert {one["side"] for one in shown} == {"a", "b"}
    assert not any(one["low"] == 1 or one["high"] == 0 for one in shown)  # no configuration has these
    assert values_of(shown[0], PAIR).keys() == {"low", "high", "side"}

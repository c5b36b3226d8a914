"""The search space: every distribution, branches, and what is refused before a study starts."""

import random
from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import FixedTrial
from steer_openrlhf.errors import ConfigError
from steer_sweeps.space import (
    all_values,
    check_params,
    corners,
    distributions,
    draw,
    is_inside,
    keys,
    parse_space,
    sample,
    values_of,
)

BRANCHES = {
    "strength": {
        "choose": {
            "floor": {"steer.lambda_min": {"float": [0.5, 0.95]}},
            "decay": {"steer.k": {"float": [0.1, 100], "log": True}},
        }
    },
    "steer.side": {"categorical": ["both", "falling", "rising"]},
}

numbers = st.integers(-50, 50)
floats = st.tuples(numbers, st.integers(1, 50)).map(lambda t: {"float": [t[0], t[0] + t[1]]})
ints = st.tuples(numbers, st.integers(1, 50)).map(lambda t: {"int": [t[0], t[0] + t[1]]})
logs = st.tuples(st.integers(1, 9), st.integers(1, 50)).map(lambda t: {"int": [t[0], t[0] + t[1]], "log": True})
steps = st.integers(1, 20).map(lambda n: {"float": [0.0, 0.25 * n], "step": 0.25})
choices = st.lists(st.text("ab", max_size=2) | st.booleans() | st.none(), min_size=1, max_size=4, unique_by=repr)
leaves = floats | ints | logs | steps | choices.map(lambda c: {"categorical": c})


@st.composite
def space_trees(draw: Any, depth: int = 2, prefix: str = "k") -> dict[str, Any]:
    tree: dict[str, Any] = {f"{prefix}{n}": draw(leaves) for n in range(draw(st.integers(1, 3)))}
    if depth and draw(st.booleans()):
        branches = {name: draw(space_trees(depth - 1, f"{prefix}{name}")) for name in ("x", "y")}
        tree[f"{prefix}c"] = {"choose": branches}
    return tree


@given(tree=space_trees(), seed=st.integers(0, 99))
def test_every_sample_is_inside_and_complete(tree: dict[str, Any], seed: int) -> None:
    space = parse_space(tree)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    trial = study.ask()
    values = sample(trial, space)
    assert sorted(values) == sorted(keys(space))
    assert check_params(trial.params, space) == []
    assert {key for key, value in values.items() if value is not None} <= set(trial.params)
    assert sample(FixedTrial(trial.params), space) == values  # what the journal holds is enough to have them again


@given(tree=space_trees())
def test_corners_show_every_choice_and_every_bound(tree: dict[str, Any]) -> None:
    space = parse_space(tree)
    assert all(is_inside(params, space) for params in corners(space))
    shown = [values_of(params, space) for params in corners(space)]
    assert all(sorted(values) == sorted(keys(space)) for values in shown)

    def check(tree: dict[str, Any]) -> None:
        for key, dimension in tree.items():
            if "choose" in dimension:
                for branch in dimension["choose"].values():
                    check(branch)
                continue
            for wanted in dimension.get("categorical") or next(iter(dimension.values())):
                assert any(values[key] == wanted for values in shown), (key, wanted)

    check(tree)


@given(tree=space_trees(), seed=st.integers(0, 99))
def test_a_uniform_draw_is_inside(tree: dict[str, Any], seed: int) -> None:
    space = parse_space(tree)
    params = draw(space, random.Random(seed))
    assert is_inside(params, space)
    assert not is_inside(params | {"other": 1}, space)
    assert not is_inside(dict(list(params.items())[1:]), space)
    for name, dimension in distributions(space).items():
        listed = all_values(dimension)
        assert listed is None or all(dimension._contains(dimension.to_internal_repr(one)) for one in listed)
        assert listed is None or name not in params or params[name] in listed


def test_uniform_draws_are_spread_as_the_space_says() -> None:
    """Shares of 4000 draws; each interval has probability 1/2 (in the logarithm: [1, 10) of [1, 100])."""
    space = parse_space({"a": {"float": [0, 1]}, "b": {"float": [1, 100], "log": True}, "c": {"int": [1, 4]}})
    rng = random.Random(0)
    draws = [draw(space, rng) for _ in range(4000)]
    low = [
        sum(one["a"] < 0.5 for one in draws),
        sum(one["b"] < 10 for one in draws),
        sum(one["c"] <= 2 for one in draws),
    ]
    assert all(abs(n / 4000 - 0.5) < 0.04 for n in low)


def test_elements_of_a_list_stand_together() -> None:
    space = parse_space(
        {"steer.band.1": {"float": [0, 0.1]}, "steer.band.0": {"float": [-0.1, 0]}, "a": {"int": [1, 2]}}
    )
    assert keys(space) == ["steer.band", "a"]
    params = {"steer.band.0": -0.02, "steer.band.1": 0.03, "a": 2}
    assert sample(FixedTrial(params), space) == {"steer.band": [-0.02, 0.03], "a": 2}
    in_branch = parse_space(
        {"c": {"choose": {"x": {"b.0": {"int": [1, 2]}, "b.1": {"int": [3, 4]}}, "y": {"d": {"int": [1, 2]}}}}}
    )
    assert sample(FixedTrial({"c": "y", "d": 1}), in_branch) == {"b": None, "d": 1}
    assert sample(FixedTrial({"c": "x", "b.0": 1, "b.1": 4}), in_branch) == {"b": [1, 4], "d": None}


def test_the_branch_that_is_not_drawn_is_null() -> None:
    space = parse_space(BRANCHES)
    floor = sample(FixedTrial({"strength": "floor", "steer.lambda_min": 0.7, "steer.side": "both"}), space)
    assert floor == {"steer.lambda_min": 0.7, "steer.k": None, "steer.side": "both"}
    decay = sample(FixedTrial({"strength": "decay", "steer.k": 2.0, "steer.side": "both"}), space)
    assert decay == {"steer.lambda_min": None, "steer.k": 2.0, "steer.side": "both"}


def test_bounds_are_what_optuna_gets() -> None:
    trial = optuna.create_study().ask()
    sample(
        trial,
        parse_space({"a": {"float": [1, 8], "log": True}, "b": {"int": [1, 9], "step": 2}, "c": {"float": [0, 1]}}),
    )
    assert trial.distributions == {
        "a": optuna.distributions.FloatDistribution(1, 8, log=True),
        "b": optuna.distributions.IntDistribution(1, 9, step=2),
        "c": optuna.distributions.FloatDistribution(0, 1),
    }


@pytest.mark.parametrize(
    ("tree", "wanted"),
    [
        ({}, "at least one"),
        ([], "must be a mapping"),
        ({"a": 3}, "space.a = 3: must have exactly one of float, int, categorical, choose"),
        ({"a": {"float": [0, 1], "int": [0, 1]}}, "exactly one of"),
        ({"a": {"flaot": [0, 1]}}, "exactly one of"),
        ({"a": {"float": [1, 0]}}, "[low, high] with low < high"),
        ({"a": {"float": [0, "1"]}}, "[low, high]"),
        ({"a": {"float": [0, float("inf")]}}, "[low, high]"),
        ({"a": {"int": [0, 1.5]}}, "both int"),
        ({"a": {"float": [0, 1], "lgo": True}}, "space.a.lgo: unknown key; did you mean 'log'?"),
        ({"a": {"float": [0, 1], "log": True}}, "log=True"),
        ({"a": {"float": [1, 2], "log": "yes"}}, "log must be true or false"),
        ({"a": {"int": [1, 2], "step": 0}}, "step must be a positive int"),
        ({"a": {"categorical": []}}, "different plain values"),
        ({"a": {"categorical": ["x", "x"]}}, "different plain values"),
        ({"a": {"categorical": [[1]]}}, "different plain values"),
        ({"a": {"choose": {"only": {"b": {"int": [0, 1]}}}}}, "at least two branches"),
        ({"a": {"choose": {"x": {}, "y": {"b": {"int": [0, 1]}}}}}, "space.a.choose.x = {}: must be a mapping"),
        ({"a": {"choose": {"x": {"a": {"int": [0, 1]}}, "y": {"b": {"int": [0, 1]}}}}}, "a is given twice"),
        ({"a.1": {"int": [0, 1]}}, "a.<number> has the elements [1]; give all from 0, at least two"),
        ({"a.0": {"int": [0, 1]}}, "at least two"),
        (
            {"a.0": {"int": [0, 1]}, "a.1": {"int": [0, 1]}, "a": {"int": [0, 1]}},
            "a is given as a whole and by its elements",
        ),
    ],
)
def test_a_bad_space_is_refused(tree: Any, wanted: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_space(tree)
    assert len(caught.value.mistakes) == 1
    assert wanted in caught.value.mistakes[0]


def test_all_mistakes_of_a_space_come_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_space({"a": {"float": [1, 0]}, "b": {"choose": {"x": {"c": {"int": [1]}}, "y": {"d": 1}}}, "e": 5})
    assert [one.split(" ")[0] for one in caught.value.mistakes] == [
        "space.a",
        "space.b.choose.x.c",
        "space.b.choose.y.d",
        "space.e",
    ]


@pytest.mark.parametrize(
    ("params", "wanted"),
    [
        ({"steer.lambda_mni": 0.7}, "did you mean 'steer.lambda_min'?"),
        ({"steer.lambda_min": 0.4}, "steer.lambda_min = 0.4: is outside"),
        ({"steer.lambda_min": "high"}, "is outside"),
        ({"steer.side": "left"}, "is outside"),
        ({"strength": "both"}, "is outside"),
    ],
)
def test_an_enqueued_trial_must_fit(params: dict[str, Any], wanted: str) -> None:
    (mistake,) = check_params(params, parse_space(BRANCHES))
    assert wanted in mistake

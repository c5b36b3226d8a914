"""Objectives and constraints: numbers from metrics, and never a number where there is none."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from steer_sweeps.objective import Constraint, Objective

ENTROPY = "train/steer/entropy"
HOURS = {"wall_hours": 1.5, "gpu_hours": 6.0}


def rows(*values: Any, metric: str = ENTROPY) -> list[dict[str, Any]]:
    return [{"step": step, metric: value} for step, value in enumerate(values)] + [{"step": 9, "train/x": 1.0}]


def test_intermediate_values_are_the_evaluations_by_step() -> None:
    objective = Objective(metric="eval/score", reduce="max")
    found = [*rows(0.1, None, "x", 0.4, metric="eval/score"), {"step": 0, "eval/score": 0.3}, {"eval/score": 0.9}]
    assert objective.intermediate(found) == [
        (0, 0.3),
        (3, 0.4),
    ]  # step 0 was run again; a row without a step has no place
    assert objective.intermediate([]) == []


@given(values=st.lists(st.none() | st.floats(-1, 1), max_size=6))
def test_what_is_no_number_is_never_reported(values: list[Any]) -> None:
    found = Objective(metric="eval/score").intermediate(rows(*values, metric="eval/score"))
    assert found == [(step, value) for step, value in enumerate(values) if value is not None]


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"reduce": "min", "at_least": 0.3}, 0.1),  # the least is 0.2
        ({"reduce": "max", "at_most": 0.5}, 0.3),  # the most is 0.8
        ({"reduce": "mean", "at_least": 0.3}, -0.2),  # the mean is 0.5
        ({"at_least": 0.3}, -0.2),  # the last is 0.5
        ({"reduce": "last", "at_most": 0.5}, 0.0),
    ],
)
def test_a_bound_on_a_metric(fields: dict[str, Any], wanted: float) -> None:
    assert Constraint(metric=ENTROPY, **fields).value(rows(0.8, 0.2, 0.5), HOURS) == pytest.approx(wanted)


def test_a_bound_on_hours() -> None:
    assert Constraint(metric="wall_hours", at_most=2).value([], HOURS) == -0.5
    assert Constraint(metric="gpu_hours", at_most=2).value([], HOURS) == 4.0


@pytest.mark.parametrize("values", [(), (None,), (0.5, None), (0.5, float("nan")), (True,)])
def test_a_constraint_without_a_number_is_a_failure(values: tuple[Any, ...]) -> None:
    with pytest.raises(ValueError, match=r"have no|no number"):
        Constraint(metric=ENTROPY, reduce="mean", at_least=0).value(rows(*values), HOURS)


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"metric": ENTROPY}, "exactly one of at_least, at_most"),
        ({"metric": ENTROPY, "at_least": 0, "at_most": 1}, "exactly one of at_least, at_most"),
        ({"metric": "entropy", "at_least": 0}, "must be eval/..., train/..., wall_hours or gpu_hours"),
        ({"metric": "wall_hours", "reduce": "min", "at_most": 1}, "nothing to reduce"),
        ({"metric": ENTROPY, "at_least": float("nan")}, "finite"),
    ],
)
def test_a_constraint_that_makes_no_sense_is_refused(fields: dict[str, Any], wanted: str) -> None:
    with pytest.raises(ValidationError, match=wanted):
        Constraint(**fields)


def test_a_constraint_is_itself_after_a_round_trip() -> None:
    for one in (Constraint(metric=ENTROPY, reduce="min", at_least=0.3), Constraint(metric="gpu_hours", at_most=2)):
        assert Constraint.model_validate(one.model_dump(mode="json")) == one

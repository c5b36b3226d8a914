"""The index of a study's trials agrees with a look at all of them, whatever happened in which order."""

from pathlib import Path
from typing import get_args

import optuna
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState
from steer_experiments.failures import NEVER_AGAIN, UNCOUNTED, Kind
from steer_sweeps.study import MAY_CHANGE
from steer_sweeps.trials import MOST_UNCOUNTED, Arm, Configuration, Owed

PLACES = [(index, str(index)) for index in range(4)]
OUTCOMES = ("training", "infrastructure", "config", "interrupted", "preempted", "duplicate")
Event = tuple[str, int, str]
events = st.lists(
    st.tuples(
        st.sampled_from(["begin", "complete", "prune", "fail", "look"]), st.integers(0, 3), st.sampled_from(OUTCOMES)
    ),
    max_size=30,
)


def apply(study: optuna.Study, event: Event) -> None:
    """One thing that happens to a configuration; nothing where it cannot."""
    what, index, outcome = event
    live = [one for one in study.trials if one.state == TrialState.RUNNING and one.user_attrs["config"] == index]
    if what == "begin":
        study.add_trial(optuna.create_trial(state=TrialState.RUNNING, user_attrs={"config": index}))
    elif what != "look" and live:
        storage, number = study._storage, live[0]._trial_id
        storage.set_trial_user_attr(number, "gpu_hours", 0.5)
        if what == "fail":
            storage.set_trial_user_attr(number, "outcome", outcome)
        state = {"complete": TrialState.COMPLETE, "prune": TrialState.PRUNED, "fail": TrialState.FAIL}[what]
        storage.set_trial_state_values(number, state, [1.0] if what == "complete" else None)


def due(study: optuna.Study, retries: int) -> list[int]:
    """What is owed, from the definition: no result, nothing at work, and not given up."""
    found = []
    for index, _ in PLACES:
        tries = [one for one in study.trials if one.user_attrs["config"] == index]
        failed = [one.user_attrs["outcome"] for one in tries if one.state == TrialState.FAIL]
        busy = any(one.state != TrialState.FAIL for one in tries)
        counted = [one for one in failed if one not in UNCOUNTED]
        if not busy and not NEVER_AGAIN & set(failed) and len(counted) <= retries:
            found.append(index)
    return found


@settings(max_examples=60)
@given(events=events, retries=st.integers(0, 2))
def test_the_index_agrees_with_all_trials(events: list[Event], retries: int) -> None:
    study = optuna.create_study()
    arm = Arm(study, "searched")
    owed = Owed(arm, retries)
    for event in events:
        apply(study, event)
        if event[0] == "look":
            arm.refresh()
            list(owed.due(PLACES))
    arm.refresh()
    trials = study.trials
    for index, name in PLACES:
        numbers = [one.number for one in arm.configuration(index, name).tries]
        assert numbers == [one.number for one in trials if one.user_attrs["config"] == index]
    states = {one.number: one.state for tries in arm.tries.values() for one in tries}
    assert states == {one.number: one.state for one in trials}
    assert set(arm.unfinished) == {one.number for one in trials if not one.state.is_finished()}
    assert sum(arm.gpu_hours.values()) == 0.5 * sum(one.state.is_finished() for one in trials)
    assert [one.index for one in owed.due(PLACES)] == due(study, retries)
    live = any(not one.state.is_finished() for one in trials)
    assert owed.over(PLACES) == (not live and not due(study, retries))


def test_a_configuration_that_is_interrupted_for_ever_is_given_up() -> None:
    study = optuna.create_study()
    arm = Arm(study, "searched")
    for _ in range(MOST_UNCOUNTED + 2):
        study.add_trial(optuna.create_trial(state=TrialState.FAIL, user_attrs={"config": 0, "outcome": "preempted"}))
    tries = arm.refresh()
    assert not Configuration(arm, 0, "0", tuple(tries[:-1])).settled(1)
    assert not Configuration(arm, 0, "0", tuple(tries[: MOST_UNCOUNTED + 1])).settled(1)
    assert Configuration(arm, 0, "0", tuple(tries)).settled(1)


def test_forgiven_failures_count_no_more() -> None:
    study = optuna.create_study()
    arm = Arm(study, "searched")
    owed = Owed(arm, 0)
    study.add_trial(optuna.create_trial(state=TrialState.FAIL, user_attrs={"config": 0, "outcome": "config"}))
    arm.refresh()
    assert list(owed.due(PLACES[:1])) == []
    assert owed.over(PLACES[:1])
    arm.forgiven[0] = 1
    assert [one.index for one in owed.due(PLACES[:1])] == [0]
    study.add_trial(optuna.create_trial(state=TrialState.FAIL, user_attrs={"config": 0, "outcome": "nan"}))
    arm.refresh()
    assert owed.over(PLACES[:1])


def test_the_page_names_every_outcome_and_what_may_change() -> None:
    page = (Path(__file__).parents[2] / "sweeps" / "STUDIES.md").read_text()
    for name in [*get_args(Kind), "pruned", *UNCOUNTED, *MAY_CHANGE]:
        assert f"`{name}`" in page, name

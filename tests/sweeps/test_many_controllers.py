"""Several controllers on one study: shared work, nothing twice, nothing lost, whoever is killed and whenever."""

import random
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState
from steer_sweeps.claims import begin
from steer_sweeps.study import open_study, read_study
from study_helpers import LONG_S, assert_nothing_lost_or_repeated, behave, controller_program, lines_of

HERE = Path(__file__).parent
Make = Callable[..., Any]


@pytest.mark.parametrize("seed", [0, 1])
def test_three_controllers_killed_at_random_times(sweep_file: Make, tmp_path: Path, seed: int) -> None:
    """Each is replaced when it dies; then one more comes to the end."""
    path, draw = sweep_file(n_trials=6, slots=3), random.Random(seed)
    behave(tmp_path, ppo="slow")
    programs: list[subprocess.Popen[str]] = []
    for _ in range(5):
        programs = [one for one in programs if one.poll() is None]
        programs += [controller_program(path, tmp_path / "study") for _ in range(3 - len(programs))]
        time.sleep(draw.uniform(0.3, 2.0))
        victim = draw.choice(programs)
        victim.kill()
        victim.wait()
    for program in programs:
        program.kill()
        program.wait()
    output, _ = controller_program(path, tmp_path / "study").communicate(timeout=LONG_S)
    assert output.endswith("nothing left\n"), output
    assert_nothing_lost_or_repeated(tmp_path, 7)


def test_what_a_killed_controller_ran_is_taken_over_by_one_that_is_at_work(sweep_file: Make, tmp_path: Path) -> None:
    behave(tmp_path, ppo="slow", **{"0": "slow"})
    path = sweep_file(n_trials=3, slots=2)
    first = controller_program(path, tmp_path / "study")
    end = time.monotonic() + LONG_S
    while len(lines_of(tmp_path / "starts.log")) < 2:
        assert time.monotonic() < end
        time.sleep(0.02)
    second = controller_program(path, tmp_path / "study")
    time.sleep(1.0)  # it finds all slots taken
    first.kill()
    first.wait()
    output, _ = second.communicate(timeout=LONG_S)
    assert "still running, adopted" in output
    assert_nothing_lost_or_repeated(tmp_path, 4)


def test_a_double_is_ended_and_never_runs(sweep: Make, tmp_path: Path) -> None:
    """Where locks between hosts do not work, two may begin one configuration: the lower number is the real one."""
    one, other = (open_study(tmp_path / "study", sweep()) for _ in range(2))
    first = begin(one, one.searched.configuration(0, "0"), "one", {}, new=True)
    assert first is not None
    other.searched.refresh()
    template = one.storage.get_trial(first._trial_id)
    study_id = other.storage.get_study_id_from_name("small")
    other.storage.create_new_trial(study_id, template)  # what the other wrote at the same moment
    assert begin(one, one.searched.configuration(0, "0"), "one", {}, new=True).number == first.number  # type: ignore[union-attr]
    states = [(trial.state, trial.user_attrs.get("outcome")) for trial in one.searched.trials()]
    assert states == [(TrialState.RUNNING, None), (TrialState.FAIL, "duplicate")]
    one.complete(one.searched, first, [0.5])
    assert begin(other, other.searched.configuration(0, "0"), "other", {}, new=True) is None
    assert other.searched.configuration(0, "0").complete is not None
    other.complete(other.searched, first, [0.9])  # told again, by one who did not know: nothing changes
    other.fail(other.searched, first, "training", "late")
    (told,) = [trial for trial in other.searched.trials() if trial.state == TrialState.COMPLETE]
    assert (told.value, told.user_attrs.get("outcome")) == (0.5, None)


def test_looking_at_a_study_writes_nothing(sweep_file: Make, tmp_path: Path) -> None:
    program = controller_program(sweep_file(n_trials=1), tmp_path / "study")
    program.communicate(timeout=LONG_S)
    before = {path: path.read_bytes() for path in (tmp_path / "study").rglob("*") if path.is_file()}
    study = read_study(tmp_path / "study")
    assert len(study.configurations()) == 2
    assert len(study.completed_runs()) == 2
    after = {path: path.read_bytes() for path in (tmp_path / "study").rglob("*") if path.is_file()}
    assert after == before

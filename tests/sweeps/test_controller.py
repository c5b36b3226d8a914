"""The controller with real Optuna, real files and real processes: no result is lost, repeated or made up."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState
from steer_experiments.processes import is_alive
from steer_experiments.run_dir import RunDir
from steer_openrlhf.errors import ConfigError
from steer_sweeps.controller import Controller
from steer_sweeps.spec import load_sweep
from steer_sweeps.study import JOURNAL, Study, best, open_study, read_study

HERE = Path(__file__).parent
LONG_S = 120.0
Make = Callable[..., Any]


def lines_of(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []


def behave(home: Path, **behaviours: str) -> None:
    (home / "behaviour.json").write_text(json.dumps(behaviours))


def run(control: Make, sweep: Make, home: Path, **changes: Any) -> Controller:
    controller: Controller = control(home / "study", sweep(**changes))
    assert controller.run() is True
    return controller


def outcomes(study: Study) -> dict[str, str]:
    """Run -> how its trial stands in Optuna."""
    arms = (study.baselines, study.searched)
    found = [(study.run_dir(arm, one).path.name, one) for arm in arms for one in arm.trials()]
    return {name: one.user_attrs.get("outcome", one.state.name.lower()) for name, one in found}


# -- results -----------------------------------------------------------------------------------------------------------


def test_a_study_runs_every_configuration_once(control: Make, sweep: Make, tmp_path: Path) -> None:
    controller = run(control, sweep, tmp_path)
    assert outcomes(controller.study) == dict.fromkeys(["ppo", "0", "1", "2"], "complete")
    assert sorted(lines_of(tmp_path / "starts.log")) == ["0", "1", "2", "ppo"]
    trials = controller.study.searched.trials()
    assert trials[0].params == {"steer.lambda_min": 0.7}
    assert all(one.value == pytest.approx(0.5 + one.params["steer.lambda_min"] / 10) for one in trials)
    assert controller.study.baselines.trials()[0].params == {}
    assert controller.study.searched.optuna.best_trial.value == best(controller.study).value  # type: ignore[union-attr]


def test_running_it_again_starts_nothing(control: Make, sweep: Make, tmp_path: Path) -> None:
    run(control, sweep, tmp_path)
    journal = (tmp_path / "study" / JOURNAL).read_bytes()
    again = run(control, sweep, tmp_path)
    assert again.lines == []  # type: ignore[attr-defined]
    assert (tmp_path / "study" / JOURNAL).read_bytes() == journal
    assert len(lines_of(tmp_path / "starts.log")) == 4


def test_a_study_can_be_made_longer_but_not_another_one(control: Make, sweep: Make, tmp_path: Path) -> None:
    run(control, sweep, tmp_path)
    controller = run(control, sweep, tmp_path, n_trials=4, slots=1)
    assert sorted(outcomes(controller.study)) == ["0", "1", "2", "3", "ppo"]
    with pytest.raises(ConfigError, match="another space") as caught:
        open_study(tmp_path / "study", sweep(space={"steer.lambda_min": {"float": [0.6, 0.9]}}, overrides={"seed": 4}))
    assert "another overrides" in str(caught.value)


def test_the_same_seed_asks_for_the_same_trials(control: Make, sweep: Make, tmp_path: Path) -> None:
    """Also when something failed in between."""

    def params(home: str, seed: int) -> list[Any]:
        (tmp_path / home).mkdir()
        behave(tmp_path / home, ppo="crash" if home == "b" else "good")
        sampler = {"name": "TPESampler", "seed": seed}
        return [one.params for one in run(control, sweep, tmp_path / home, sampler=sampler).study.searched.trials()]

    assert params("a", 0) == (same := params("b", 0))
    assert params("c", 1)[1:] != same[1:]


# -- failures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ("crash", "it crashed"),
        ("nan", "eval/score is no number in 1 of the 1 rows used"),
        ("mismatch", "steer.lambda_min = 0.7, but the training used 0.123"),
        ("vanish", "its process vanished in state running at step 0"),
    ],
)
def test_a_failure_is_no_number_and_is_tried_again(
    control: Make, sweep: Make, tmp_path: Path, behaviour: str, reason: str
) -> None:
    behave(tmp_path, **{"0": behaviour})
    controller = run(control, sweep, tmp_path, slots=1)
    failed, again = [one for one in controller.study.searched.trials() if one.user_attrs["config"] == 0]
    assert (failed.state, failed.value) == (TrialState.FAIL, None)
    assert failed.user_attrs["outcome"] == "failed"
    assert failed.user_attrs["reason"].startswith(reason)
    status = controller.study.run_dir(controller.study.searched, failed).read_status()
    assert status
    assert (status.state, (status.reason or "")[: len(reason)]) == ("failed", reason)  # not "running", not a result
    assert again.state == TrialState.COMPLETE
    assert again.params == failed.params == {"steer.lambda_min": 0.7}
    assert lines_of(tmp_path / "starts.log").count("0") == 1  # a new try has a new directory


def test_tries_are_limited(control: Make, sweep: Make, tmp_path: Path) -> None:
    behave(tmp_path, ppo="crash")
    controller = run(control, sweep, tmp_path, retries=2)
    tries = controller.study.baselines.trials()
    assert [one.state for one in tries] == [TrialState.FAIL] * 3
    assert {"ppo", "ppo~1", "ppo~2"} <= set(outcomes(controller.study))
    assert len([one for one in controller.study.configurations() if one.complete]) == 3
    assert run(control, sweep, tmp_path, retries=2).lines == []  # type: ignore[attr-defined]


def test_a_study_made_shorter_while_a_trial_waits_goes_on(control: Make, sweep: Make, tmp_path: Path) -> None:
    study = control(tmp_path / "study", sweep(n_trials=3, baselines=[])).study
    study.searched.optuna.enqueue_trial({}, user_attrs={"config": 2})  # killed right after this
    controller = run(control, sweep, tmp_path, n_trials=1, baselines=[])
    assert [one.complete is not None for one in controller.study.configurations()] == [True]
    assert outcomes(controller.study) == {"0": "interrupted", "1": "complete"}


def test_a_combination_that_makes_no_sense_is_not_tried_again(control: Make, sweep: Make, tmp_path: Path) -> None:
    """side needs a signed estimator: each value is well alone."""
    space = {
        "steer.side": {"categorical": ["both", "rising"]},
        "steer.estimator": {"categorical": ["exact", "reference"]},
    }
    bad = {"steer.side": "rising", "steer.estimator": "reference"}
    controller = run(control, sweep, tmp_path, space=space, enqueue=[bad], n_trials=1, retries=5)
    (trial,) = controller.study.searched.trials()
    assert trial.user_attrs["outcome"] == "invalid"
    assert "needs a signed estimator" in trial.user_attrs["reason"]


# -- being killed ------------------------------------------------------------------------------------------------------


def controller_program(sweep_file: Path, study: Path, *words: str) -> "subprocess.Popen[str]":
    command = [sys.executable, str(HERE / "controller_program.py"), str(sweep_file), str(study), *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def assert_nothing_lost_or_repeated(home: Path, configurations: int) -> None:
    study = read_study(home / "study")
    found = study.configurations()
    assert [one.name for one in found if one.complete is None] == []
    assert len(found) == configurations
    for one in found:
        assert sum(trial.state == TrialState.COMPLETE for trial in one.tries) == 1
        assert not any(trial.state in (TrialState.RUNNING, TrialState.WAITING) for trial in one.tries)
    ended = lines_of(home / "ends.log")
    complete = [run.path.name for run in study.completed_runs()]
    assert sorted(ended) == sorted(complete)  # every good end became the result of its configuration, once
    starts = lines_of(home / "starts.log")
    assert len(starts) == len(set(starts))  # no run directory was used twice
    enqueued = next(one for one in found if (one.arm.baseline, one.index) == (False, 0))
    assert enqueued.complete is not None
    assert enqueued.complete.params == {"steer.lambda_min": 0.7}  # and not drawn anew


def test_killed_at_every_moment_that_matters(sweep_file: Make, tmp_path: Path) -> None:
    """The controller is killed at its 1st, 2nd, 3rd ... dangerous moment until it comes through."""
    path, kills = sweep_file(n_trials=3), 0
    while True:
        program = controller_program(path, tmp_path / "study", str(kills + 1))
        output, _ = program.communicate(timeout=LONG_S)
        if program.returncode == 0:
            break
        assert program.returncode == -signal.SIGKILL, output
        kills += 1
        assert kills < 60, "the study makes no progress"
    assert kills > 5
    assert_nothing_lost_or_repeated(tmp_path, 4)


@pytest.mark.parametrize("seed", [0, 1])
def test_killed_at_random_times(sweep_file: Make, tmp_path: Path, seed: int) -> None:
    path, draw = sweep_file(n_trials=4), random.Random(seed)
    behave(tmp_path, ppo="slow")
    for _ in range(4):
        program = controller_program(path, tmp_path / "study")
        try:
            program.wait(draw.uniform(0.8, 3.0))
        except subprocess.TimeoutExpired:
            program.kill()
            program.wait()
    output, _ = controller_program(path, tmp_path / "study").communicate(timeout=LONG_S)
    assert output.endswith("nothing left\n")
    assert_nothing_lost_or_repeated(tmp_path, 5)


def started(home: Path, run: str) -> RunDir:
    found = RunDir(home / "study" / "trials" / run)
    end = time.monotonic() + LONG_S
    while not (status := found.read_status()) or status.state != "running":
        assert time.monotonic() < end, "the trial did not start"
        time.sleep(0.02)
    return found


def test_a_trial_goes_on_without_its_controller_and_is_adopted(
    control: Make, sweep: Make, sweep_file: Make, tmp_path: Path
) -> None:
    behave(tmp_path, ppo="slow")
    program = controller_program(sweep_file(n_trials=1), tmp_path / "study")
    ppo = started(tmp_path, "ppo")
    program.kill()
    program.wait()
    status = ppo.read_status()
    assert status
    assert is_alive(status.pid, status.pid_created)
    controller = run(control, sweep, tmp_path, n_trials=1)
    assert controller.lines[0] == "trial ppo: still running, adopted"  # type: ignore[attr-defined]
    assert_nothing_lost_or_repeated(tmp_path, 2)


def test_a_request_to_stop_ends_the_trials_and_costs_no_try(
    control: Make, sweep: Make, sweep_file: Make, tmp_path: Path
) -> None:
    behave(tmp_path, ppo="hang", steer="hang")
    program = controller_program(sweep_file(retries=0), tmp_path / "study")
    runs = [started(tmp_path, "ppo"), started(tmp_path, "0")]
    program.send_signal(signal.SIGINT)
    output, _ = program.communicate(timeout=LONG_S)
    assert output.endswith("stopped\n")
    for one in runs:
        status = one.read_status()
        assert status
        assert status.state == "stopped"
        assert not is_alive(status.pid, status.pid_created)
    behave(tmp_path)
    run(control, sweep, tmp_path, retries=0)
    assert_nothing_lost_or_repeated(tmp_path, 4)


def test_a_dead_trial_of_a_dead_controller_is_no_failure(
    control: Make, sweep: Make, sweep_file: Make, tmp_path: Path
) -> None:
    """As after a power cut: both are gone, and nothing says that the configuration was at fault."""
    behave(tmp_path, ppo="hang")
    program = controller_program(sweep_file(retries=0, n_trials=1), tmp_path / "study")
    status = started(tmp_path, "ppo").read_status()
    assert status
    program.kill()
    program.wait()
    os.kill(status.pid, signal.SIGKILL)
    behave(tmp_path)
    controller = run(control, sweep, tmp_path, retries=0, n_trials=1)
    assert outcomes(controller.study)["ppo"] == "interrupted"
    assert_nothing_lost_or_repeated(tmp_path, 2)


def test_a_second_controller_waits_and_then_has_nothing_to_do(sweep_file: Make, tmp_path: Path) -> None:
    """As after the SIGKILL of ``make``, whose child goes on: the same command again must not fail."""
    behave(tmp_path, ppo="slow")
    path = sweep_file(n_trials=2)
    programs = [controller_program(path, tmp_path / "study") for _ in range(2)]
    outputs = [program.communicate(timeout=LONG_S)[0] for program in programs]
    assert [program.returncode for program in programs] == [0, 0]
    assert sum("another controller is running this study; waiting" in output for output in outputs) == 1
    assert_nothing_lost_or_repeated(tmp_path, 3)


# -- the journal -------------------------------------------------------------------------------------------------------


def test_a_torn_journal_line_is_dropped(control: Make, sweep: Make, tmp_path: Path) -> None:
    run(control, sweep, tmp_path, n_trials=1)
    with (tmp_path / "study" / JOURNAL).open("a") as file:
        file.write('{"op_code": 4, "work')
    controller = run(control, sweep, tmp_path, n_trials=2)
    assert outcomes(controller.study) == dict.fromkeys(["ppo", "0", "1"], "complete")
    assert outcomes(read_study(tmp_path / "study")) == outcomes(controller.study)


def test_a_lock_file_that_stayed_behind_blocks_nobody(control: Make, sweep: Make, tmp_path: Path) -> None:
    (tmp_path / "study").mkdir()
    for name in ("journal.lock", f"{JOURNAL}.lock", "controller.lock"):
        (tmp_path / "study" / name).write_text("")
    run(control, sweep, tmp_path, n_trials=1)


def test_a_folder_that_is_no_study_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no study directory"):
        read_study(tmp_path)


def test_a_damaged_status_is_a_failed_trial(control: Make, sweep: Make, sweep_file: Make, tmp_path: Path) -> None:
    behave(tmp_path, ppo="slow")
    program = controller_program(sweep_file(n_trials=1), tmp_path / "study")
    ppo = started(tmp_path, "ppo")
    program.kill()
    program.wait()
    status = ppo.read_status()
    assert status
    os.kill(status.pid, signal.SIGKILL)
    ppo.status.write_text("{")
    behave(tmp_path)
    controller = run(control, sweep, tmp_path, n_trials=1)
    assert outcomes(controller.study)["ppo"] == "failed"
    assert load_sweep(sweep_file(n_trials=1)).n_trials == 1

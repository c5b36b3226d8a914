"""The controller with real Optuna, real files and real processes: no result is lost, repeated or made up."""

import os
import random
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState
from steer_experiments.processes import is_alive
from steer_experiments.recipes import read_yaml
from steer_experiments.run_dir import write_yaml
from steer_openrlhf.errors import ConfigError
from steer_sweeps.controller import Controller
from steer_sweeps.spec import load_sweep
from steer_sweeps.study import JOURNAL, best, open_study, read_study
from study_helpers import (
    LONG_S,
    assert_nothing_lost_or_repeated,
    behave,
    controller_program,
    lines_of,
    outcomes,
    started,
)

Make = Callable[..., Any]


def run(control: Make, sweep: Make, home: Path, **changes: Any) -> Controller:
    controller: Controller = control(home / "study", sweep(**changes))
    assert controller.run() is True
    return controller


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


def test_a_study_of_an_older_version_goes_on(control: Make, sweep: Make, tmp_path: Path) -> None:
    """Its record lacks the keys it did not know; its failures had other names."""
    behave(tmp_path, **{"0": "crash"})
    study = run(control, sweep, tmp_path, n_trials=1, retries=0).study
    record = tmp_path / "study" / "study.yaml"
    known = ("name", "recipe", "overrides", "n_trials", "sampler", "direction", "objective", "space", "enqueue")
    known += ("baselines", "slots", "retries", "recipe_resolved")
    old = {key: value for key, value in read_yaml(record).items() if key in known}
    old["objective"] = {key: value for key, value in old["objective"].items() if key in ("metric", "reduce")}
    write_yaml(record, old)
    journal = tmp_path / "study" / JOURNAL
    journal.write_text(journal.read_text().replace('"outcome":"training"', '"outcome":"failed"'))
    assert len(read_study(tmp_path / "study").configurations()) == 2
    controller = run(control, sweep, tmp_path, n_trials=2, retries=1)
    assert outcomes(controller.study) == {"ppo": "complete", "0": "failed", "1": "complete", "2": "complete"}
    assert study.token == controller.study.token


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
    ("behaviour", "kind", "reason"),
    [
        ("crash", "training", "it crashed"),
        ("nan", "nan", "eval/score is no number in 1 of the 1 rows used"),
        ("mismatch", "training", "steer.lambda_min = 0.7, but the training used 0.123"),
        ("vanish", "infrastructure", "its process vanished in state running at step 0; killed by SIGKILL"),
        ("memory", "out_of_memory", "the process ended with exit code 1"),
    ],
)
def test_a_failure_is_no_number_and_is_tried_again(
    control: Make, sweep: Make, tmp_path: Path, behaviour: str, kind: str, reason: str
) -> None:
    behave(tmp_path, **{"0": behaviour})
    controller = run(control, sweep, tmp_path, slots=1)
    failed, again = [one for one in controller.study.searched.trials() if one.user_attrs["config"] == 0]
    assert (failed.state, failed.value) == (TrialState.FAIL, None)
    assert failed.user_attrs["outcome"] == kind
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


def test_what_is_forgiven_is_tried_again(control: Make, sweep: Make, tmp_path: Path) -> None:
    behave(tmp_path, ppo="crash")
    study = run(control, sweep, tmp_path, retries=0).study
    behave(tmp_path)
    assert run(control, sweep, tmp_path, retries=0).lines == []  # type: ignore[attr-defined]
    study.forgive(study.configurations()[0])
    controller = run(control, sweep, tmp_path, retries=0)
    assert outcomes(controller.study)["ppo~1"] == "complete"
    assert outcomes(controller.study)["ppo"] == "training"  # and still told


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
    assert trial.user_attrs["outcome"] == "config"
    assert "needs a signed estimator" in trial.user_attrs["reason"]


# -- being killed ------------------------------------------------------------------------------------------------------


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


def test_every_controller_can_be_asked_to_stop_from_elsewhere(
    control: Make, sweep: Make, sweep_file: Make, tmp_path: Path
) -> None:
    behave(tmp_path, ppo="hang", steer="hang")
    programs = [controller_program(sweep_file(retries=0, n_trials=1), tmp_path / "study") for _ in range(2)]
    assert [program.stdout.readline() for program in programs if program.stdout] == ["at work\n"] * 2
    started(tmp_path, "ppo")
    started(tmp_path, "0")
    read_study(tmp_path / "study").request_stop()
    outputs = [program.communicate(timeout=LONG_S)[0] for program in programs]
    assert all(output.endswith("stopped\n") for output in outputs), outputs
    behave(tmp_path)
    run(control, sweep, tmp_path, retries=0, n_trials=1)  # an old request stops nobody
    assert_nothing_lost_or_repeated(tmp_path, 2)


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


def test_two_controllers_started_together_share_the_work(sweep_file: Make, tmp_path: Path) -> None:
    """Also as after the SIGKILL of ``make``, whose child goes on: the same command again must not fail. Each stays
    until all is done, for the other may be killed."""
    behave(tmp_path, ppo="slow")
    path = sweep_file(n_trials=5, slots=3)
    programs = [controller_program(path, tmp_path / "study") for _ in range(2)]
    outputs = [program.communicate(timeout=LONG_S)[0] for program in programs]
    assert [program.returncode for program in programs] == [0, 0]
    assert all(output.endswith("nothing left\n") for output in outputs)
    told = [line.split(":")[0] for output in outputs for line in output.splitlines() if ": complete" in line]
    assert sorted(told) == sorted(f"trial {run.path.name}" for run in read_study(tmp_path / "study").completed_runs())
    assert_nothing_lost_or_repeated(tmp_path, 6)


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
    assert outcomes(controller.study)["ppo"] == "infrastructure"
    assert load_sweep(sweep_file(n_trials=1)).n_trials == 1

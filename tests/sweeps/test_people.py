"""What people see of a study and do with it: tables, the best, export, stop, retry, and the winner's recipe."""

import csv
import io
import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import FrozenTrial, TrialState
from steer_experiments.config import load_recipe
from steer_experiments.recipes import flatten, read_yaml
from steer_openrlhf.errors import ConfigError
from steer_sweeps.attend import PATIENCE_S
from steer_sweeps.commands import retry
from steer_sweeps.controller import Controller
from steer_sweeps.display import describe_best, print_table, screen
from steer_sweeps.export import columns, exported, hours_by_state
from steer_sweeps.importance import importances
from steer_sweeps.results import write_summary
from steer_sweeps.rows import LAST_ENDED, MOST_RUNNING, Look, keys_text, plain, rows
from steer_sweeps.spec import Sweep
from steer_sweeps.study import Study, open_study, read_study
from steer_sweeps.winner import Front, winners, write_winners
from study_helpers import LONG_S, behave, controller_program, started

Make = Callable[..., Any]
RECIPE = Path(__file__).parents[2] / "experiments" / "recipes" / "tiny" / "steer.yaml"
TWO = [
    {"metric": "eval/score", "direction": "maximize"},
    {"metric": "eval/second", "direction": "maximize"},
]


def steer(*words: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "steer_sweeps", "sweep", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=LONG_S, check=False)


# -- a study that ended ------------------------------------------------------------------------------------------------


def test_a_log_of_a_study_and_its_table(control: Make, sweep: Make, tmp_path: Path, capsys: Any) -> None:
    controller: Controller = control(tmp_path / "study", sweep(n_trials=2))
    assert describe_best(controller.study).endswith("no searched trial is complete yet")
    with screen(controller.study) as shown:
        controller.tell = shown.tell
        controller.run(shown.watch)
    printed = capsys.readouterr().out
    assert "trial 0: complete  eval/score=0.57" in printed
    assert "0 running, 3 complete; best 0.5" in printed
    study = read_study(tmp_path / "study")
    assert {one.name: one.state for one in rows(study)} == dict.fromkeys(["ppo", "0", "1"], "complete")
    assert sum(one.best for one in rows(study)) == 1
    assert describe_best(study).startswith("eval/score = ")
    assert "(best of 2)" in describe_best(study)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Two objectives, two seeds; trial 0 keeps to the constraint, trial 1 does not, trial 2 fails with its second seed
    and is never tried again. Scores are 0.5 + lambda_min / 10 + 0.003 * seed, second ones their negatives."""
    home = tmp_path_factory.mktemp("mixed")
    behave(home, **{"2/seed-1": "crash"})
    tree = {
        "name": "mixed",
        "recipe": str(RECIPE),
        "space": {"steer.lambda_min": {"float": [0.5, 0.95]}},
        "baselines": [{"name": "ppo", "set": {"openrlhf.actor.policy_loss_type": "ppo", "steer": None}}],
        "slots": 4,
        "n_trials": 3,
        "objectives": TWO,
        "seeds": [0, 1],
        "retries": 0,
        "constraints": [{"metric": "eval/score", "at_most": 0.58}],
        "enqueue": [{"steer.lambda_min": value} for value in (0.7, 0.9, 0.6)],
    }
    file = home / "sweep.yaml"
    file.write_text(yaml.safe_dump(tree))
    assert controller_program(file, home / "study").communicate(timeout=LONG_S)[0].endswith("nothing left\n")
    return read_study(home / "study")


def test_seeds_objectives_constraints_and_failures_are_shown(mixed: Study, capsys: Any) -> None:
    found = {one.name: one for one in rows(mixed)}
    states = {"ppo": "complete", "0": "complete", "1": "infeasible", "2": "failed"}
    assert {name: one.state for name, one in found.items()} == states
    assert {name: one.seeds for name, one in found.items()} == {"ppo": (2, 2), "0": (2, 2), "1": (2, 2), "2": (1, 2)}
    assert found["0"].values == pytest.approx((0.5715, -0.5715))
    assert [name for name, one in found.items() if one.best] == ["0"]
    assert found["2"].note == "it crashed"
    assert found["0"].progress.validation == pytest.approx(0.573)  # of its last seed
    assert found["0"].progress.entropy == pytest.approx(0.31)
    print_table(mixed)
    printed = capsys.readouterr().out
    assert all(f" {name} " in printed for name in ("seeds", "score", "second", "accuracy", "entropy", "left"))
    assert "0 running, 2 complete, 1 failed, 1 infeasible; Pareto front of 1" in printed
    assert describe_best(mixed).startswith(
        "Pareto front: 1 of 2 trials (best)\neval/score = 0.5715, eval/second = -0.5"
    )
    assert "mean of n = 2 training seeds (0: 0.5700/-0.5700, 1: 0.5730/-0.5730)" in describe_best(mixed)


def test_export_has_every_trial_and_the_same_columns_always(mixed: Study, sweep: Make, tmp_path: Path) -> None:
    table = list(csv.DictReader(io.StringIO(exported(mixed, "csv"))))
    assert [one["trial"] for one in table] == ["ppo", "0", "1", "2"]
    assert [one["outcome"] for one in table] == ["complete", "complete", "infeasible", "training"]
    assert [one["feasible"] for one in table] == ["True", "True", "False", ""]
    assert [one["param steer.lambda_min"] for one in table] == ["", "0.7", "0.9", "0.6"]
    assert float(table[1]["value eval/second last"]) == pytest.approx(-0.5715)
    assert float(table[2]["constraint eval/score last <= 0.58"]) == pytest.approx(0.013)  # 0.5 + 0.09 + 0.003 - 0.58
    assert table[3]["value eval/score last"] == ""  # a failure is no number
    assert table[1]["run_dirs"].split() == [str(mixed.path / "trials" / "0" / f"seed-{seed}") for seed in (0, 1)]
    whole = json.loads(exported(mixed, "json"))
    assert [one["state"] for one in whole["trials"]] == ["complete", "complete", "complete", "fail"]
    assert whole["trials"][1]["seed_values"] == {"0": pytest.approx([0.57, -0.57]), "1": pytest.approx([0.573, -0.573])}
    empty = open_study(tmp_path / "empty", sweep(objective=None, objectives=TWO, seeds=[0, 1]))
    mine = [name for name in columns(mixed) if not name.startswith("constraint")]
    assert columns(empty) == mine == exported(empty, "csv").strip().split(",")


def test_the_costs_add_up(mixed: Study) -> None:
    found = hours_by_state(mixed)
    assert {state: n for state, (n, _, _) in found.items()} == {"complete": 2, "infeasible": 1, "failed": 1}
    assert all(gpu_hours == 0 for _, _, gpu_hours in found.values())  # trials without GPUs
    told: list[str] = []
    write_summary(mixed, told.append)
    assert (mixed.path / "winner-0.yaml").is_file()
    assert "importance: 2 complete trials; at least 4 are needed" in "\n".join(told)
    assert told[-1].split()[:2] == ["all", "4"]
    assert (mixed.path / "summary.txt").read_text().endswith("\n".join(told) + "\n")


def test_the_winners_recipe_trains_the_winner_again(control: Make, sweep: Make, tmp_path: Path) -> None:
    controller: Controller = control(tmp_path / "study", sweep(enqueue=[{"steer.lambda_min": 0.93}], n_trials=2))
    assert controller.run()
    study = read_study(tmp_path / "study")
    (study.path / "winner-7.yaml").write_text("of an earlier end")
    assert write_winners(study) == [study.path / "winner.yaml"]
    assert not (study.path / "winner-7.yaml").exists()
    (best,) = winners(study)
    assert best.complete is not None
    again = load_recipe(study.path / "winner.yaml")
    trained = read_yaml(study.run_dir(best.arm, best.complete).config)
    assert again.steer == {**trained["steer"], "lambda_min": best.complete.params["steer.lambda_min"]}
    assert again.resolved() == trained | {"name": "small-winner"}
    assert flatten(again.resolved())["openrlhf.actor.policy_loss_type"] == "steer"
    assert again.seed == trained["seed"]


# -- the front ---------------------------------------------------------------------------------------------------------


def ended(number: int, values: Sequence[float], excess: Sequence[float] = ()) -> FrozenTrial:
    attributes: dict[str, Any] = {"config": number} | ({"constraints": list(excess)} if excess else {})
    trial = optuna.trial.create_trial(state=TrialState.COMPLETE, values=list(values), user_attrs=attributes)
    trial.number = number
    return trial


def test_the_front_by_hand() -> None:
    front = Front((1, -1))  # more of the first, less of the second
    for number, values in enumerate([(1, 5), (2, 5), (2, 6), (3, 9), (0, 1)]):
        front.add(ended(number, values))
    front.add(ended(9, (9, 0), excess=[-1, 0.1]))  # better in all, and breaks a constraint
    assert [one.number for one in front.trials] == [3, 1, 4]


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=12), st.sampled_from([(1, 1), (1, -1)]))
def test_the_front_is_what_nothing_dominates(points: list[tuple[int, int]], signs: tuple[int, int]) -> None:
    front = Front(signs)
    for number, values in enumerate(points):
        front.add(ended(number, values))
    scores = [(signs[0] * x, signs[1] * y) for x, y in points]
    slow = {
        number
        for number, (x, y) in enumerate(scores)
        if not any(a >= x and b >= y and (a, b) != (x, y) for a, b in scores)
    }
    assert {one.number for one in front.trials} == slow


def test_of_equal_trials_the_first_configuration_is_best() -> None:
    front = Front((-1,))
    for number, value in [(4, 0.5), (2, 0.5), (3, 0.5), (1, 0.7)]:
        front.add(ended(number, [value]))
    assert [one.number for one in front.trials] == [2]


# -- a large study -----------------------------------------------------------------------------------------------------


def add(study: Study, n: int, state: TrialState = TrialState.COMPLETE) -> None:
    """Trials as a controller leaves them, in the storage: trial i of lr and lambda_min has the value of lr alone."""
    distributions = {name: optuna.distributions.FloatDistribution(0.5, 0.95) for name in ("steer.lambda_min",)}
    for index in range(n):
        x = 0.5 + 0.45 * ((index * 0.618034) % 1)
        study.searched.optuna.add_trial(
            optuna.trial.create_trial(
                state=state,
                values=[x] if state == TrialState.COMPLETE else None,
                params={"steer.lambda_min": x},
                distributions=distributions,
                user_attrs={"config": index},
            )
        )


def test_a_large_study_shows_the_best_the_last_and_a_count(sweep: Make, tmp_path: Path, capsys: Any) -> None:
    study = open_study(tmp_path / "study", sweep(n_trials=300))
    add(study, 260)
    add(study, 40, TrialState.RUNNING)
    study.refresh()
    look = Look(study)
    look.update()
    shown = look.selected()
    assert len(look.every()) == 300
    assert len(shown) == 1 + LAST_ENDED + MOST_RUNNING
    best = max(range(260), key=lambda index: (index * 0.618034) % 1)
    assert [one.name for one in shown if one.best] == [str(best)]
    assert look.summary().startswith("40 running, 260 complete; best 0.9")
    print_table(study)
    assert "of 300 trials; steer sweep status --all shows all" in capsys.readouterr().out


def test_what_ended_is_counted_once(sweep: Make, tmp_path: Path) -> None:
    study = open_study(tmp_path / "study", sweep(n_trials=9))
    look = Look(study)
    for n in (3, 4):
        add(study, n)
        study.refresh()
        look.update()
        look.update()
    assert look.counts == {"complete": 7}


def test_trials_of_a_warm_start_are_no_rows(sweep: Make, tmp_path: Path) -> None:
    study = open_study(tmp_path / "study", sweep())
    study.searched.optuna.add_trial(ended(0, [0.9]))
    foreign = optuna.trial.create_trial(state=TrialState.COMPLETE, values=[1.0], user_attrs={"source": "other#3"})
    study.searched.optuna.add_trial(foreign)
    assert [one.name for one in rows(study)] == ["0"]
    table = list(csv.DictReader(io.StringIO(exported(study, "csv"))))
    assert [(one["arm"], one["source"]) for one in table] == [("searched", ""), ("warm start", "other#3")]


def test_names_that_say_enough() -> None:
    assert keys_text({"steer.band.0": 0.12345, "openrlhf.actor.adam.lr": 1e-5, "side": "both"}) == (
        "band.0=0.123 lr=1e-05 side=both"
    )
    assert keys_text({"a.lr": 1, "b.lr": 2}) == "a.lr=1 b.lr=2"
    assert plain("red \x1b[31m\nmore") == "red ?[31m"


# -- importance --------------------------------------------------------------------------------------------------------


def searched(study: Study, n: int) -> None:
    """Trials whose value is their lambda_min, and has nothing to do with k."""
    distributions = {name: optuna.distributions.FloatDistribution(0, 1) for name in ("lambda_min", "k")}
    for index in range(n):
        params = {"lambda_min": (index * 0.618034) % 1, "k": (index * 0.414214) % 1}
        study.searched.optuna.add_trial(
            optuna.trial.create_trial(
                values=[params["lambda_min"]], params=params, distributions=distributions, user_attrs={"config": index}
            )
        )


def test_the_parameter_that_matters_comes_first(sweep: Make, tmp_path: Path) -> None:
    study = open_study(tmp_path / "study", sweep())
    searched(study, 40)
    (shares,) = importances(study).values()
    assert list(shares) == ["lambda_min", "k"]
    assert shares["lambda_min"] > 0.8
    assert sum(shares.values()) == pytest.approx(1)


def test_importance_of_three_trials_is_refused(sweep: Make, tmp_path: Path) -> None:
    study = open_study(tmp_path / "study", sweep())
    searched(study, 3)
    with pytest.raises(ConfigError, match="3 complete trials; at least 4 are needed"):
        importances(study)
    done = steer("importance", str(study.path))
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)


# -- commands ----------------------------------------------------------------------------------------------------------


def test_retry_gives_failed_trials_another_chance(control: Make, sweep: Make, tmp_path: Path) -> None:
    settings: Sweep = sweep(n_trials=2, retries=0)
    behave(tmp_path, **{"1": "crash"})
    assert control(tmp_path / "study", settings).run()
    study = read_study(tmp_path / "study")
    with pytest.raises(ConfigError) as caught:
        retry(study, ["0", "8", "1", "ppo"])
    assert [one.split(";")[0] for one in caught.value.mistakes] == [
        "trial 0: has a result",
        "trial 8: unknown",
        "trial ppo: has a result",
    ]
    assert [one.name for one in study.configurations() if one.due(retries=0)] == []
    assert retry(study, []) == ["1: 1 failed try forgiven (the last: training: it crashed)"]
    assert [one.name for one in study.configurations() if one.due(retries=0)] == ["1"]
    behave(tmp_path)
    assert control(tmp_path / "study", settings).run()
    assert [one.state for one in rows(study)] == ["complete", "complete", "failed", "complete"]
    assert retry(study, []) == []


def test_stop_ends_a_controller_and_its_trials(sweep_file: Make, tmp_path: Path) -> None:
    behave(tmp_path, ppo="hang", steer="hang")
    study = tmp_path / "study"
    controller = controller_program(sweep_file(baselines=[], n_trials=2), study)
    runs = [started(tmp_path, name) for name in ("0", "1")]
    done = steer("stop", str(study))
    assert done.returncode == 0, done.stderr
    assert f":{controller.pid} (host:process): trials 0, 1" in done.stdout
    assert controller.communicate(timeout=LONG_S)[0].endswith("stopped\n")
    assert [one.read_status().state for one in runs] == ["stopped", "stopped"]  # type: ignore[union-attr]
    assert [one.state for one in rows(read_study(study))] == ["interrupted", "interrupted"]
    assert steer("stop", str(study), "--now").stdout == "no trial runs; a controller that is at work stops too\n"
    assert read_study(study).stop_request().startswith("now ")


def test_stop_now_ends_trials_that_do_not_listen(sweep_file: Make, tmp_path: Path) -> None:
    """Before the minute is over after which a polite request is followed by force."""
    behave(tmp_path, ppo="deaf", steer="deaf")
    study = tmp_path / "study"
    controller = controller_program(sweep_file(baselines=[], n_trials=2), study)
    for name in ("0", "1"):
        started(tmp_path, name)
    assert steer("stop", str(study)).returncode == 0  # in vain
    assert steer("stop", str(study), "--now").returncode == 0
    assert controller.communicate(timeout=PATIENCE_S / 2)[0].endswith("stopped\n")
    assert [one.state for one in rows(read_study(study))] == ["interrupted", "interrupted"]


def test_watch_ends_cleanly_with_control_c(sweep: Make, tmp_path: Path) -> None:
    """On a terminal: a table that is drawn again."""
    study = open_study(tmp_path / "study", sweep())
    add(study, 2)
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "steer_sweeps", "sweep", "status", str(study.path), "--watch"]
    watcher = subprocess.Popen(
        command,
        stdout=theirs,
        stderr=theirs,
        env=os.environ | {"TERM": "xterm"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored in a background job
    )
    os.close(theirs)
    printed, end = "", time.monotonic() + LONG_S
    while "2 complete" not in printed and time.monotonic() < end:
        printed += os.read(ours, 4096).decode(errors="replace")
    watcher.send_signal(signal.SIGINT)
    assert watcher.wait(LONG_S) == 0
    os.close(ours)
    assert "accuracy" in printed
    assert "Traceback" not in printed


def test_export_by_the_command(sweep: Make, tmp_path: Path) -> None:
    study = open_study(tmp_path / "study", sweep())
    add(study, 2)
    assert steer("export", str(study.path), "--output", "-").stdout == exported(study, "csv")
    target = tmp_path / "out.json"
    assert steer("export", str(study.path), "--output", str(target)).stdout == f"wrote {target}\n"
    assert target.read_text() == exported(study, "json")

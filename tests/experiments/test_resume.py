"""Which checkpoint a run goes on from, and what stays of its metrics. (A real training that does so: test_slurm.py.)"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from steer_experiments.checks import ACTIVE, EVAL_SAMPLES
from steer_experiments.config import Experiment, load_recipe
from steer_experiments.resume import resume_from
from steer_experiments.run_dir import RunDir, Status, now, write_yaml
from steer_experiments.train import _as_asked, _clear, run_experiment
from steer_experiments.watch import Verdict
from steer_openrlhf.errors import ConfigError

STEER = Path(__file__).parents[2] / "experiments" / "recipes" / "tiny" / "steer.yaml"


def experiment(*more: str) -> Experiment:
    return load_recipe(STEER, ["openrlhf.eval.steps=2", "openrlhf.logger.logging_steps=1", *more])


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    found = RunDir(tmp_path / "run")
    found.path.mkdir()
    return found


def trained(*steps: int) -> list[dict[str, Any]]:
    return [{"step": step, "time": 1.0, ACTIVE: 1.0} for step in steps]


def evaluated(*steps: int) -> list[dict[str, Any]]:
    return [{"step": step, "time": 1.0, EVAL_SAMPLES: 8.0} for step in steps]


def left(run: RunDir, rows: Iterable[dict[str, Any]], tags: Iterable[str], latest: str, model: str = "_actor") -> None:
    """What a training that was killed left."""
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = run.path / "ckpt" / model
    for tag in tags:
        (folder / tag).mkdir(parents=True)
    (folder / "latest").write_text(latest)


def pointed_to(run: RunDir, model: str = "_actor") -> str:
    return (run.path / "ckpt" / model / "latest").read_text()


def test_the_last_checkpoint_and_the_metrics_up_to_it(run: RunDir) -> None:
    rows = [*trained(1, 2), *evaluated(2), *trained(3), *trained(4)]
    left(run, rows, ["global_step1", "global_step2", "global_step3"], "global_step3")
    assert resume_from(experiment(), run) == 3
    assert run.read_metrics() == rows[:4]
    assert pointed_to(run) == "global_step3"


def test_a_step_that_was_not_evaluated_is_done_again(run: RunDir) -> None:
    """It was killed between the checkpoint of step 4 and its evaluation, which would never be made up for."""
    rows = [*trained(1, 2), *evaluated(2), *trained(3, 4)]
    left(run, rows, ["global_step2", "global_step3", "global_step4"], "global_step4")
    assert resume_from(experiment(), run) == 3
    assert [row["step"] for row in run.read_metrics()] == [1, 2, 2, 3]
    assert pointed_to(run) == "global_step3"


def test_the_async_trainer_evaluates_the_step_it_starts_from(run: RunDir) -> None:
    rows = [*trained(1, 2), *evaluated(2), *trained(3, 4)]
    given = experiment("openrlhf.train.async_enable=true")
    left(run, rows, ["global_step2"], "global_step2")
    assert resume_from(given, run) == 2
    assert run.read_metrics() == trained(1, 2)


def test_a_checkpoint_that_was_being_written_does_not_count(run: RunDir) -> None:
    """DeepSpeed names a checkpoint in ``latest`` when all of it is there."""
    left(run, trained(1, 2, 3), ["global_step1", "global_step3"], "global_step1")
    assert resume_from(experiment(), run) == 1
    assert resume_from(experiment(), run) == 1  # and again


def test_actor_and_critic_go_on_from_the_same_step(run: RunDir) -> None:
    rows = [*trained(1, 2), *evaluated(2), *trained(3)]
    left(run, rows, ["global_step3"], "global_step3", "_critic")
    left(run, rows, ["global_step1", "global_step3"], "global_step3")
    assert resume_from(experiment(), run) == 3
    (run.path / "ckpt" / "_critic" / "latest").write_text("global_step1")
    (run.path / "ckpt" / "_critic" / "global_step1").mkdir()
    assert resume_from(experiment(), run) == 1
    assert (pointed_to(run), pointed_to(run, "_critic")) == ("global_step1", "global_step1")


def test_a_best_checkpoint_serves_when_there_is_no_other(run: RunDir) -> None:
    rows = [*trained(1, 2), *evaluated(2)]
    left(run, rows, ["best_global_step2"], "best_global_step2")
    assert resume_from(experiment(), run) == 2
    (run.path / "ckpt" / "_actor" / "global_step2").mkdir()
    assert resume_from(experiment(), run) == 2
    assert pointed_to(run) == "global_step2"


def test_without_a_checkpoint_of_use_it_begins_anew(run: RunDir) -> None:
    assert resume_from(experiment(), run) is None
    left(run, [], ["global_step2"], "global_step2")  # without its metrics
    assert resume_from(experiment(), run) is None
    left(run, trained(1), ["other"], "something else", "_actor")
    assert resume_from(experiment(), run) is None


def test_what_stays_of_an_earlier_attempt(run: RunDir) -> None:
    left(run, trained(1), ["global_step1"], "global_step1")
    for path in (run.status, run.host_args, run.log, run.grader_failure, run.checkpoint / "x"):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    _clear(run, keep=True)
    kept = {path.name for path in run.path.iterdir()}
    assert kept == {"metrics.jsonl", "ckpt", "log.txt"}
    _clear(run, keep=False)
    assert not list(run.path.iterdir())


def test_a_finished_run_stays_and_another_recipes_run_is_refused(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    status = Status(state="finished", pid=1, pid_created=0.0, started=now(), updated=now())
    run.write_status(status)
    write_yaml(run.config, experiment().resolved())
    monkeypatch.setenv("STEER_RESUME", "1")
    assert run_experiment(experiment(), run.path) == 0
    run.write_status(status.changed(state="stopped"))
    with pytest.raises(ConfigError, match="run of another recipe"):
        run_experiment(experiment("steer.lambda_min=0.9"), run.path)
    kept = run.read_status()
    assert kept
    assert kept.state == "stopped"


def test_a_training_that_ended_of_the_request_itself_was_stopped() -> None:
    """A cluster asks every process of a job at once."""
    failed = Verdict("failed", "the process was killed by SIGTERM", -15)
    assert _as_asked(failed, [15]) == Verdict("stopped", "stopped by SIGTERM", -15)
    assert _as_asked(failed, []) == failed
    assert _as_asked(Verdict("finished", code=0), [15]).state == "finished"

"""The supervisor of a run, with small real processes as its training: how runs end, and that nothing is left."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from steer_experiments import processes
from steer_experiments.checks import EVAL_SAMPLES, missing_results, verify_host_args
from steer_experiments.config import Experiment, load_recipe
from steer_experiments.environment import describe, private_extensions
from steer_experiments.recipes import merge
from steer_experiments.run_dir import RunDir, Status, now, read_json, write_json, write_yaml
from steer_experiments.train import _refuse_folder, run_experiment
from steer_experiments.watch import Verdict, finish, progress_of, watch
from steer_openrlhf.cpu import no_gpu
from steer_openrlhf.errors import ConfigError

STEER = Path(__file__).parents[2] / "experiments" / "recipes" / "tiny" / "steer.yaml"
ITEMS = {"train": 2048, "validation": 128, "test": 200}
LONG_S = 60.0
WaitFor = Callable[[Callable[[], object]], None]


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    found = RunDir(tmp_path / "run")
    me = psutil.Process()
    found.write_status(Status(state="running", pid=me.pid, pid_created=me.create_time(), started=now(), updated=now()))
    return found


@pytest.fixture
def start(run: RunDir) -> Iterator[Callable[..., Any]]:
    """Start a Python child of the run; ``RUN`` is its directory. Killed at the end of the test."""
    started = []

    def go(code: str) -> Any:
        text = f"import json, os, sys, time\nRUN = {str(run.path)!r}\n{code}"
        with run.log.open("ab") as log:
            started.append(processes.spawn([sys.executable, "-c", text], log, os.environ))
        return started[-1]

    yield go
    for child in started:
        child.kill()
        child.wait()

        time.sleep(0.02)


# -- how a process ends ------------------------------------------------------------------------------------------------

METRICS = """
for step in (1, 2, 3):
    with open(f"{RUN}/metrics.jsonl", "a") as file:
        file.write(json.dumps({"step": step, "time": 10.0 * step, "train/steer/entropy": 0.5, "train/steer/active": 1.0,
                               "train/rollout/reward_mean": 0.1 * step}) + "\\n")
    time.sleep(0.7)
"""


def test_a_good_end_with_a_line_for_each_step(run: RunDir, start: Callable[..., Any]) -> None:
    run.write_status(run.read_status().changed(total_steps=4))  # type: ignore[union-attr]
    lines: list[str] = []
    assert watch(run, start(METRICS), [], minutes=1, say=lines.append) == Verdict("finished", code=0)
    assert lines[-1] == "step 3/4  reward 0.300  validation -  entropy 0.500  10.0 s/step  0:10 left"
    status = run.read_status()
    assert status
    assert status.step == 3


@pytest.mark.parametrize(
    ("code", "reason", "exit_code"),
    [
        ("sys.exit(3)", "the process ended with exit code 3", 3),
        ("os.kill(os.getpid(), 9)", "the process was killed by SIGKILL", -9),
        (
            "print('RuntimeError: ... out of memory'); sys.exit(1)",
            "the process ended with exit code 1: out of memory",
            1,
        ),
        ("raise OSError(28, 'No space left on device')", "the process ended with exit code 1: no space left", 1),
        (
            "json.dump({'reason': 'pool died'}, open(RUN + '/grader_failure.json', 'w'))",
            "the grader failed: pool died",
            0,
        ),
    ],
)
def test_a_bad_end_has_a_reason(run: RunDir, start: Callable[..., Any], code: str, reason: str, exit_code: int) -> None:
    verdict = watch(run, start(code), [], minutes=None)
    assert verdict.state == "failed"
    assert verdict.reason is not None
    assert verdict.reason.startswith(reason)
    assert verdict.code == exit_code


def test_silence_is_a_failure(run: RunDir, start: Callable[..., Any]) -> None:
    child = start("time.sleep(600)")
    verdict = watch(run, child, [], minutes=0.01)
    assert verdict == Verdict("failed", "stalled: no metrics for 0.01 minutes (stall_minutes)", -signal.SIGTERM)
    assert child.poll() is not None


def test_a_grader_failure_ends_the_training_at_once(run: RunDir, start: Callable[..., Any]) -> None:
    write_json(run.grader_failure, {"reason": "three workers died"})
    verdict = watch(run, start("time.sleep(600)"), [], minutes=None)
    assert (verdict.state, verdict.reason) == ("failed", "the grader failed: three workers died")


def test_a_request_to_stop_is_no_failure(run: RunDir, start: Callable[..., Any]) -> None:
    verdict = watch(run, start("time.sleep(600)"), [signal.SIGINT], minutes=None)
    assert (verdict.state, verdict.reason) == ("stopped", "stopped by SIGINT")


def test_a_child_that_ignores_sigterm_is_killed(run: RunDir, start: Callable[..., Any], wait_for: WaitFor) -> None:
    child = start("import signal; signal.signal(15, signal.SIG_IGN); open(RUN + '/deaf', 'w'); time.sleep(600)")
    wait_for((run.path / "deaf").exists)
    assert processes.end_child(child, patience_s=0.2) == -signal.SIGKILL


def test_the_reason_ends_with_the_log(run: RunDir) -> None:
    run.log.write_text("a\nthe last line\n")
    finish(run, Verdict("failed", "why", 4))
    status = run.read_status()
    assert status
    assert (status.state, status.exit_code) == ("failed", 4)
    assert status.reason == "why; last lines of log.txt:\na\nthe last line"


def test_progress_of_nothing_has_no_numbers() -> None:
    assert progress_of([]).line(None) == "step 0/?  reward -  validation -  entropy -  - s/step"
    assert progress_of([{"step": 1, "time": 1.0, "train/steer/entropy": None}]).entropy is None


# -- what counts as finished -------------------------------------------------------------------------------------------


@pytest.fixture
def experiment() -> Experiment:
    small = ["openrlhf.data.max_samples=256", "openrlhf.rollout.batch_size=64", "openrlhf.eval.steps=2"]
    return load_recipe(STEER, [*small, "openrlhf.eval.n_samples_per_prompt=2", "openrlhf.logger.logging_steps=1"])


@pytest.fixture
def whole(run: RunDir) -> RunDir:
    """A run directory in which nothing is missing."""
    rows: list[dict[str, Any]] = [{"step": step, "time": 1.0, "train/steer/active": 1.0} for step in (1, 2, 3, 4)]
    rows += [{"step": step, "time": 1.0, "eval/eval_num_samples": 256.0} for step in (2, 4)]
    write_rows(run, rows)
    write_json(run.host_args, {"steer": {"lambda_min": 0.7}})
    run.checkpoint.mkdir()
    (run.checkpoint / "config.json").write_text("{}")
    (run.checkpoint / "model.safetensors").write_text("")
    return run


def write_rows(run: RunDir, rows: list[dict[str, Any]]) -> None:
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))


def missing(whole: RunDir, experiment: Experiment) -> list[str]:
    return missing_results(experiment, whole, {"steer.lambda_min": 0.7}, ITEMS)


def test_a_whole_run_is_finished(whole: RunDir, experiment: Experiment) -> None:
    assert missing(whole, experiment) == []
    assert Verdict("finished", code=0).unless([]) == Verdict("finished", code=0)


def test_what_openrlhf_changes_itself_is_no_difference() -> None:
    flags = {"algo.advantage.is_correction_threshold": [5.0], "ds.attn_implementation": "sdpa", "actor.adam.lr": 1e-4}
    used = {
        "algo": {"advantage": {"is_correction_threshold": [0.0, 5.0]}},
        "ds": {"attn_implementation": "flash_attention_2"},
        "actor": {"adam": {"lr": 1e-4}},
    }
    assert verify_host_args(flags, used) == []
    (mistake,) = verify_host_args(flags | {"algo.advantage.is_correction_threshold": [4.0]}, used)
    assert "is_correction_threshold" in mistake


def test_the_async_trainer_does_not_evaluate_after_the_last_step(whole: RunDir, experiment: Experiment) -> None:
    kept = [row for row in whole.read_metrics() if not (EVAL_SAMPLES in row and row["step"] == 4)]
    whole.metrics.write_text("".join(json.dumps(row) + "\n" for row in kept))
    assert "validation was measured" in str(missing_results(experiment, whole, {}, ITEMS))
    given = experiment.model_copy(update={"openrlhf": merge(experiment.openrlhf, {"train": {"async_enable": True}})})
    assert missing_results(given, whole, {}, ITEMS) == []


def test_each_missing_part_is_named(whole: RunDir, experiment: Experiment) -> None:
    rows = whole.read_metrics()
    changes: list[tuple[Callable[[], object], str]] = [
        (lambda: write_rows(whole, rows[:3] + rows[4:]), "the metrics end at step 3 of 4"),
        (lambda: write_rows(whole, rows[4:]), "metrics.jsonl has no training step with train/steer/active"),
        (
            lambda: write_rows(whole, [*rows[:3], rows[3] | {"train/steer/active": 0.0}, *rows[4:]]),
            "is 0.0 at step 4, not 1",
        ),
        (lambda: write_rows(whole, rows[:5]), "validation was measured at steps [2], not at [2, 4]"),
        (lambda: write_rows(whole, [*rows[:5], rows[5] | {"eval/eval_num_samples": 8.0}]), "has 8.0 samples, not 256"),
        (lambda: write_json(whole.host_args, {"steer": {"lambda_min": 0.8}}), "but the training used 0.8"),
        (lambda: whole.host_args.unlink(), "host_args.json was not written"),
        (lambda: (whole.checkpoint / "config.json").unlink(), "no checkpoint"),
    ]
    for change, wanted in changes:
        change()
        found = missing(whole, experiment)
        assert any(wanted in one for one in found), (wanted, found)
        assert Verdict("finished", code=0).unless(found).state == "failed"
        write_rows(whole, rows)
        write_json(whole.host_args, {"steer": {"lambda_min": 0.7}})


# -- the whole supervisor ----------------------------------------------------------------------------------------------


def test_a_directory_that_is_not_ours_is_refused(tmp_path: Path, experiment: Experiment) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(ConfigError, match="not empty and no run directory"):
        run_experiment(experiment, tmp_path)
    with pytest.raises(ConfigError, match="is a file"):
        run_experiment(experiment, tmp_path / "letter.txt")
    assert [item.name for item in tmp_path.iterdir()] == ["letter.txt"]


def test_a_run_killed_before_its_first_file_can_be_started_again(tmp_path: Path, experiment: Experiment) -> None:
    """Only the lock and a half-written file are there."""
    run = RunDir(tmp_path / "run")
    run.path.mkdir()
    run.lock.touch()
    (run.path / ".config.yaml.x1.tmp").touch()
    _refuse_folder(run)
    (run.path / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="is not empty"):
        _refuse_folder(run)


@pytest.mark.skipif(not no_gpu(), reason="this machine has a GPU")
def test_a_recipe_for_a_gpu_is_refused_on_a_machine_without(tmp_path: Path) -> None:
    experiment = load_recipe(
        STEER, ["openrlhf.ds.param_dtype=bf16", "openrlhf.ds.attn_implementation=flash_attention_2"]
    )
    with pytest.raises(ConfigError) as caught:
        run_experiment(experiment, tmp_path / "run")
    assert len(caught.value.mistakes) == 2
    assert not (tmp_path / "run").exists()


def test_a_finished_run_is_refused(run: RunDir, experiment: Experiment) -> None:
    write_yaml(run.config, experiment.resolved())
    run.write_status(run.read_status().changed(state="finished"))  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match="add --overwrite"):
        run_experiment(experiment, run.path)


def test_a_task_that_cannot_be_made_is_a_failed_run_with_the_reason(
    tmp_path: Path, experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STEER_CACHE", str(tmp_path / "cache"))
    level = {"name": "small", "dataset": "chain_sum", "terms": 2, "digits": 1}
    resolved = experiment.resolved()
    write_yaml(
        tmp_path / "r.yaml", resolved | {"task": {"name": "tiny_arithmetic", "levels": [level], "train_size": 9999}}
    )
    run = RunDir(tmp_path / "run")
    assert run_experiment(load_recipe(tmp_path / "r.yaml"), run.path) == 1
    status = run.read_status()
    assert status
    assert (status.state, status.exit_code) == ("failed", 1)
    assert "too few different questions" in str(status.reason)
    environment = read_json(run.env)
    assert environment
    assert environment["packages"]["openrlhf"] == "0.11.2"


def prepares_below(pid: int) -> list[psutil.Process]:
    return [one for one in psutil.Process(pid).children() if "steer_experiments.prepare" in words_of(one)]


def words_of(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:  # also a zombie
        return []


@pytest.mark.parametrize(
    ("number", "code", "state"), [(signal.SIGTERM, 130, "stopped"), (signal.SIGKILL, -9, "preparing")]
)
def test_steer_train_ends_with_everything_it_started(
    tmp_path: Path, number: int, code: int, state: str, wait_for: WaitFor
) -> None:
    """While it prepares, which nobody has cached here."""
    run = RunDir(tmp_path / "run")
    command = [sys.executable, "-m", "steer_sweeps", "train", str(STEER), "--run-dir", str(run.path)]
    train = subprocess.Popen(
        command, env=os.environ | {"STEER_CACHE": str(tmp_path / "cache")}, stdout=subprocess.DEVNULL
    )
    wait_for(lambda: prepares_below(train.pid))  # not at once: between fork and exec it has another command line
    (preparing,) = prepares_below(train.pid)
    train.send_signal(number)
    assert train.wait(LONG_S) == code
    wait_for(lambda: not preparing.is_running() or preparing.status() == psutil.STATUS_ZOMBIE)
    status = run.read_status()
    assert status
    assert status.state == state
    wait_for(lambda: not Path(str(status.ray_temp_dir)).exists())


def test_the_environment_is_described_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "hunter2")
    found = describe(["steer", "train"])
    assert found["command_line"] == ["steer", "train"]
    assert found["packages"]["steer-openrlhf"]
    assert "hunter2" not in json.dumps(found)


@pytest.mark.skipif(not no_gpu(), reason="on a GPU machine builds are shared")
def test_a_lock_left_by_a_killed_build_stops_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch waits for ever at a lock file whose owner was killed; a run gets a copy of what is built, without it."""
    built = tmp_path / "venv" / "torch_extensions" / "fused_adam"
    built.mkdir(parents=True)
    (built / "fused_adam.so").touch()
    (built / "lock").touch()
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
    monkeypatch.setattr("sys.prefix", str(tmp_path / "venv"))
    (tmp_path / "run").mkdir()
    own = Path(private_extensions(tmp_path / "run")["TORCH_EXTENSIONS_DIR"])
    assert own.is_relative_to(tmp_path / "run")
    assert [path.name for path in own.rglob("*") if path.is_file()] == ["fused_adam.so"]
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", "/mine")
    assert private_extensions(tmp_path / "run") == {}  # the user's own choice

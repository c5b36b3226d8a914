"""Trials on a real Ray cluster of two nodes: never half placed, seen without shared files, and none lost with Ray."""

import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from executor_places import OVER, Place, alive, most_at_once, until
from executor_ray import Cluster, cluster, free_port
from hypothesis import given
from hypothesis import strategies as st
from steer_experiments.cache import cache_root
from steer_experiments.config import load_recipe
from steer_experiments.run_dir import RunDir, write_json, write_yaml
from steer_openrlhf.errors import ConfigError
from steer_sweeps.executors import ray_mirror as mirror
from steer_sweeps.executors.base import ExecutorError, Job, JobState, make_executor
from steer_sweeps.executors.config import RayConfig
from steer_sweeps.executors.ray_gate import SILENT_S, Queue

RECIPE = Path(__file__).parents[3] / "experiments" / "recipes" / "tiny" / "steer.yaml"


# -- the gate ----------------------------------------------------------------------------------------------------------


def pair(place: Place, gpus: int) -> list[str]:
    """Two trials of three GPUs each on a cluster of four, started together; their names."""
    executor, names = place.executor(), [place.name("a"), place.name("b")]
    for name in names:
        place.submit(executor, place.job(name, gpus=gpus, program="executor_groups.py"))
    place.settle(executor, *names)
    return names


def test_without_the_gate_two_trials_wait_for_each_others_gpus(at: Any, ray_cluster: Cluster) -> None:
    """So that the next test shows something: half placed, both give up."""
    place = at(RayConfig(slots=2, address=ray_cluster.address))
    pair(place, gpus=0)
    assert [line["placed"] for line in place.lines("end")] == [False, False]


def test_two_trials_that_do_not_fit_together_run_one_after_the_other(at: Any, ray_cluster: Cluster) -> None:
    place = at(RayConfig(slots=2, address=ray_cluster.address))
    names = pair(place, gpus=3)
    assert [line["placed"] for line in place.lines("end")] == [True, True]
    assert most_at_once(place) == 1
    states = [place.run(name).read_status() for name in names]
    assert [state and state.state for state in states] == ["finished", "finished"]


def test_a_trial_that_waits_at_the_gate_can_be_stopped(at: Any, ray_cluster: Cluster) -> None:
    """It wants more GPUs than there are. Those behind it go on when it has left."""
    place = at(RayConfig(slots=2, address=ray_cluster.address, stop_s=5))
    executor = place.executor()
    big = place.submit(executor, place.job(place.name("big"), gpus=64))
    until(lambda: "waiting for 64 GPUs" in ray_cluster.log(big))
    small = place.submit(executor, place.job(place.name("small"), gpus=1))
    executor.cancel(big)
    place.settle(executor, big, small)
    assert executor.state(big) == executor.state(small) == JobState.ended
    assert len(place.lines("end")) == 1  # the small one's


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_trials_are_let_in_one_at_a_time_in_the_order_of_asking() -> None:
    queue = Queue(Clock())
    assert queue.ask("a")
    assert not queue.ask("b")
    assert not queue.ask("c")
    assert queue.ask("a", placing=True)
    assert queue.waiting() == ["b", "c"]
    queue.leave("a")
    assert not queue.ask("c")
    assert queue.ask("b")
    queue.leave("b")
    queue.leave("b")
    assert queue.ask("c")


def test_a_trial_that_died_at_the_gate_holds_nobody_up() -> None:
    clock = Clock()
    queue = Queue(clock)
    assert queue.ask("a")
    assert not queue.ask("b")
    clock.now = SILENT_S + 1
    assert queue.ask("b")


def test_a_new_queue_hears_who_is_placing_itself() -> None:
    """The old one died with its node while ``a`` was being placed."""
    queue = Queue(Clock())
    assert queue.ask("a", placing=True)
    assert not queue.ask("b")


# -- a cluster that is not there ---------------------------------------------------------------------------------------


def test_a_cluster_that_is_not_there_is_a_mistake_in_the_sweep_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"executor.address = .*Ray cannot be reached"):
        make_executor(RayConfig(address=f"http://127.0.0.1:{free_port()}"), tmp_path)


def test_a_cluster_that_dies_loses_no_trial_silently(at: Any, ray_cluster: Cluster) -> None:
    """kill -9 of everything of the head. Unreachable is an error, and nothing is judged by it; another cluster at its
    place does not know the job, which is then lost. Its processes have ended, also those that left the group."""
    with cluster(nodes=1) as found:
        place = at(RayConfig(address=found.address))
        executor = place.executor()
        handle = place.submit(executor, place.job(place.name("x"), "hang"))
        until(lambda: place.lines("start"))
        found.kill()
        with pytest.raises(ExecutorError, match="cannot be reached"):
            executor.state(handle)
        until(lambda: not alive(place.pids()))
    another = make_executor(RayConfig(address=ray_cluster.address), place.study)
    assert another.state(handle) == JobState.lost
    assert "does not know the job" in another.exit_note(handle)
    assert another.free() == 1


# -- files through the log ---------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    found = RunDir(tmp_path / "far")
    found.path.mkdir()
    return found


def add_row(run: RunDir, step: int) -> None:
    with run.metrics.open("a") as file:
        file.write(json.dumps({"step": step, "text": "ä" * step}) + "\n")


def test_every_file_comes_back_as_it_was(run: RunDir, tmp_path: Path) -> None:
    sender, log = mirror.Sender(run), ""
    for step in range(5):
        add_row(run, step)
        write_json(run.status, {"state": "running", "step": step})
        log += "".join(sender.news())
    assert sender.news() == []
    write_json(run.host_args, {"a": "x" * 100_000})  # several pieces
    run.log.write_text("start\n" + "z" * 100_000 + "\nend\n")
    log += "".join(sender.everything())
    near = RunDir(tmp_path / "near")
    near.path.mkdir()
    mirror.write_files(near, mirror.assemble(log))
    for name in ("metrics.jsonl", "status.json", "host_args.json"):
        assert (near.path / name).read_bytes() == (run.path / name).read_bytes()
    assert near.log.read_text().endswith("\nend\n")
    assert near.log.stat().st_size == mirror.TAIL_BYTES


def test_metrics_only_grow_and_are_sent_once(run: RunDir) -> None:
    sender = mirror.Sender(run)
    add_row(run, 1)
    first = "".join(sender.news())
    add_row(run, 2)
    second = "".join(sender.news())
    assert len(list(mirror.decode(second))) == 1
    assert mirror.assemble(second) == {"metrics.jsonl": b""}  # what comes before is missing: nothing counts
    assert mirror.assemble(first + second) == {"metrics.jsonl": run.metrics.read_bytes()}
    run.metrics.write_text('{"step": 9}\n')  # a training that started anew
    assert mirror.assemble(first + second + "".join(sender.news())) == {"metrics.jsonl": b'{"step": 9}\n'}


@pytest.mark.parametrize(
    "damage",
    [
        lambda line: line[:-10],  # torn
        lambda line: line.replace("step", "stop"),  # not what was sent
        lambda line: line.replace("@steer", "@st\nINFO worker died\neer"),  # somebody wrote into it
        lambda line: "",
    ],
)
def test_what_was_damaged_does_not_count_and_comes_again_at_the_end(run: RunDir, damage: Callable[[str], str]) -> None:
    sender = mirror.Sender(run)
    lines = []
    for step in (1, 2, 3):
        add_row(run, step)
        lines += sender.news()
    log = lines[0] + damage(lines[1]) + lines[2]
    assert mirror.assemble(log)["metrics.jsonl"].count(b"\n") == 1
    assert mirror.assemble(log + "".join(sender.everything()))["metrics.jsonl"] == run.metrics.read_bytes()


@given(
    st.lists(st.binary(min_size=1, max_size=40), min_size=1, max_size=5),
    st.lists(st.text(max_size=30).filter(lambda one: "@steer" not in one), min_size=6, max_size=6),
)
def test_noise_around_the_lines_changes_nothing(contents: list[bytes], noise: list[str]) -> None:
    """Before and after each line, with or without a newline of its own."""
    log, whole = noise[0], b""
    for piece, other in zip(contents, noise[1:], strict=False):
        log += mirror.encode("metrics.jsonl", 0, len(whole) + len(piece), len(whole), piece) + other
        whole += piece
    assert mirror.assemble(log) == {"metrics.jsonl": whole}


def test_a_name_that_is_no_file_of_a_run_is_not_written(run: RunDir) -> None:
    """Whatever prints such a line."""
    log = mirror.encode("../../evil", 0, 1, 0, b"x") + mirror.encode("config.yaml", 0, 1, 0, b"x")
    assert mirror.assemble(log) == {}


def test_an_end_state_comes_after_everything_else(run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    monkeypatch.setattr(mirror, "write_text", lambda path, text: written.append(path.name))
    mirror.write_files(run, {"status.json": b"{}", "metrics.jsonl": b"{}", "a": b""})
    assert written[-1] == "status.json"


def test_metrics_arrive_while_the_trial_runs_on_a_node_that_sees_no_study(
    at: Any, ray_cluster: Cluster, tmp_path: Path
) -> None:
    place = at(RayConfig(address=ray_cluster.address, shared_files=False, scratch=str(tmp_path / "scratch"), stop_s=5))
    executor, name = place.executor(), place.name("far")
    handle = place.submit(executor, place.job(name, "hang"))

    def arrived() -> bool:
        executor.sync(handle)
        return len(place.run(name).read_metrics()) == 1

    until(arrived)
    assert executor.state(handle) == JobState.running
    (start,) = place.lines("start")
    assert str(place.study) not in " ".join(start["argv"])  # the program was given nothing of it
    psutil.Process(start["pids"][0]).send_signal(signal.SIGKILL)
    place.settle(executor, handle)
    assert executor.exit_note(handle) == "Ray: FAILED, killed by SIGKILL"
    until(lambda: not alive(place.pids()))


@pytest.mark.e2e
def test_a_real_training_runs_on_the_cluster(at: Any, ray_cluster: Cluster, tmp_path: Path) -> None:
    """OpenRLHF, DeepSpeed and vLLM on the cluster's nodes, past the gate, the study's folder unknown to them."""
    small = {"data.max_samples": 64, "rollout.batch_size": 32, "rollout.n_samples_per_prompt": 4, "eval.steps": 2,
             "rollout.micro_batch_size": 64,
             "train.batch_size": 128, "train.micro_batch_size": 64, "eval.n_samples_per_prompt": 1}  # fmt: skip
    experiment = load_recipe(RECIPE, [f"openrlhf.{key}={value}" for key, value in small.items()])
    place = at(
        RayConfig(
            address=ray_cluster.address,
            gpus_per_trial=2,
            shared_files=False,
            scratch=str(tmp_path / "far"),
            env={"STEER_CACHE": str(cache_root())},  # where the base model has been taught already
        )
    )
    run = RunDir(place.study / "trials" / "real")
    run.path.mkdir(parents=True)
    write_yaml(run.config, experiment.resolved())
    command = (sys.executable, "-m", "steer_experiments.train", str(run.config), "--run-dir", str(run.path))
    executor = place.executor()
    handle = place.submit(executor, Job(place.name("real"), command, run.path, gpus=2))
    until(lambda: executor.state(handle) in OVER, patience_s=500)
    executor.sync(handle)
    status = run.read_status()
    assert status, ray_cluster.log(handle)[-3000:]
    assert (status.state, status.step) == ("finished", 2), status.reason
    assert [row["step"] for row in run.read_metrics() if "train/policy_loss" in row] == [1, 2]
    assert list((tmp_path / "far" / handle / "checkpoint").glob("*.safetensors"))

"""Real OpenRLHF trainings on CPU through the drop-in: Ray, DeepSpeed and vLLM, nothing mocked."""

import json
import math
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from steer_experiments.run_dir import read_metrics
from steer_openrlhf.hostargs import to_argv

pytestmark = pytest.mark.e2e
Launch = Callable[..., subprocess.CompletedProcess[str]]


def train_lines(run_dir: Path) -> list[dict[str, Any]]:
    return [line for line in read_metrics(run_dir / "metrics.jsonl") if "train/policy_loss" in line]


def test_two_deepspeed_ranks_with_gradient_accumulation(
    world: Any, launch: Launch, python: str, tmp_path: Path, ray_flags: Callable[..., Any]
) -> None:
    """Two ranks, ZeRO-2, two micro-batches a step: one summary spans four micro-batches in two processes."""
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    flags = world.flags(run_dir) | ray_flags(gpus=3) | {
        "actor.policy_loss_type": "steer", "steer.lambda_min": 0.6, "steer.side": "both", "ds.zero_stage": 2,
        "actor.num_gpus_per_node": 2, "logger.tensorboard_dir": str(tmp_path / "tensorboard"),
    }  # fmt: skip
    argv = [python, "-m", "steer_openrlhf.train_ppo_ray", *to_argv(flags)]
    done = launch(argv, WANDB_MODE="offline", WANDB_DIR=str(run_dir))
    assert done.returncode == 0, done.stdout[-5000:]
    assert done.stdout.count("[steer_openrlhf] live: version") == 1  # once, by rank 0

    lines = train_lines(run_dir)
    assert [line["step"] for line in lines] == [1, 2]
    for line in lines:
        assert line["train/steer/active"] == 1.0
        assert 0.6 < line["train/steer/weight_mean"] < 1.0
        assert 0 < line["train/steer/weight_at_min"] < 0.5  # max normaliser: few tokens reach the floor
        assert 0 < line["train/steer/entropy"] < math.log(21)
        assert (
            line["train/steer/omega_abs_p50"] <= line["train/steer/omega_abs_p99"] <= line["train/steer/omega_abs_max"]
        )
        assert line["train/steer/nonfinite_omega"] == 0
        assert line["train/actor_grad_norm"] > 0
    change = lines[1]["train/steer/entropy"] - lines[0]["train/steer/entropy"]
    assert lines[1]["train/steer/entropy_change"] == pytest.approx(change)
    assert any("eval/eval_tiny_validation_pass1" in line for line in read_metrics(run_dir / "metrics.jsonl"))

    resolved = json.loads((run_dir / "host_args.json").read_text())
    assert (resolved["steer"]["lambda_min"], resolved["steer"]["k"], resolved["ds"]["zero_stage"]) == (0.6, None, 2)
    assert resolved["logger"]["wandb"]["key"] == "(not written)"
    assert moved(world.path / "model", run_dir / "checkpoint")
    assert "train/steer/weight_mean" in tensorboard_tags(tmp_path / "tensorboard")
    assert list(run_dir.glob("wandb/offline-run-*"))


def moved(before: Path, after: Path) -> bool:
    """Whether training changed the weights, and the checkpoint is whole."""
    from safetensors.torch import load_file

    old, new = load_file(before / "model.safetensors"), load_file(after / "model.safetensors")
    assert old.keys() == new.keys()
    assert all(value.isfinite().all() for value in new.values())
    return any(not old[name].equal(new[name]) for name in old)


def tensorboard_tags(directory: Path) -> list[str]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (run,) = directory.iterdir()
    events = EventAccumulator(str(run))
    events.Reload()
    tags: list[str] = events.Tags()["scalars"]
    return tags


@pytest.fixture
def ray_command(python: str) -> str:
    """The `ray` of this interpreter: the tests also run where its folder is not on the path."""
    return str(Path(python).with_name("ray"))


@pytest.fixture
def cluster(environment: dict[str, str], ray_command: str, short_dir: Path) -> Iterator[str]:
    """A Ray cluster of the user's own, with its dashboard; the address jobs are submitted to."""
    port, dashboard = free_port(), free_port()
    argv = [ray_command, "start", "--head", "--block", f"--port={port}", f"--dashboard-port={dashboard}",
            "--num-gpus=2", "--num-cpus=4", f"--temp-dir={short_dir}", "--object-store-memory=134217728",
            "--include-dashboard=true", "--dashboard-host=127.0.0.1", "--disable-usage-stats"]  # fmt: skip
    log = (short_dir / "cluster.log").open("wb")
    head = subprocess.Popen(argv, env=environment, start_new_session=True, stdout=log, stderr=log)
    wait_for(dashboard, head, short_dir / "cluster.log")
    yield f"http://127.0.0.1:{dashboard}"
    os.killpg(head.pid, signal.SIGTERM)
    try:
        head.wait(30)
    except subprocess.TimeoutExpired:
        os.killpg(head.pid, signal.SIGKILL)
    log.close()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()[-3000:]
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.5)
        else:
            return
    raise AssertionError(f"the Ray dashboard did not come up: {log.read_text()[-3000:]}")


def test_as_a_ray_job_beside_the_users_own_runtime_env(
    world: Any, launch: Launch, python: str, ray_command: str, tmp_path: Path, cluster: str
) -> None:
    """OpenRLHF's usual launch. The job sets a variable OpenRLHF sets too, and one of its own; base loss gspo."""
    run_dir = tmp_path / "run"
    flags = world.flags(run_dir) | {
        "data.max_samples": 16, "eval.steps": 1, "actor.policy_loss_type": "uniform", "steer.k": 5.0,
        "steer.base_loss": "gspo", "steer.scope": "microbatch", "ds.zero_stage": 2, "train.micro_batch_size": 64,
    }  # fmt: skip
    env = {"env_vars": {"NCCL_DEBUG": "INFO", "MY_OWN": "1"}}
    argv = [ray_command, "job", "submit", f"--address={cluster}", f"--runtime-env-json={json.dumps(env)}", "--",
            python, "-m", "steer_openrlhf.train_ppo_ray", *to_argv(flags)]  # fmt: skip
    done = launch(argv)
    assert done.returncode == 0, done.stdout[-5000:]
    (line,) = train_lines(run_dir)
    assert line["train/steer/active"] == 1.0
    assert line["train/steer/weight_std"] == pytest.approx(0.0, abs=1e-6)
    assert 0 < line["train/steer/weight_mean"] < 1
    assert json.loads((run_dir / "host_args.json").read_text())["steer"]["base_loss"] == "gspo"


def test_a_worker_without_the_hook_is_refused(environment: dict[str, str], launch: Launch, python: str) -> None:
    """A real Ray actor in a cluster where nothing called ``install``: the proof fails there, loudly."""
    code = (
        "import ray; from steer_openrlhf.actor_trainer import prove_live\n"
        "ray.init(address='local', num_cpus=1, include_dashboard=False, object_store_memory=100_000_000)\n"
        "class Worker: trainer = object()\n"
        "worker = ray.remote(Worker).remote()\n"
        "ray.get(worker.__ray_call__.remote(prove_live))"
    )
    done = launch([python, "-c", code])
    assert done.returncode == 1
    assert "is not live in the policy worker" in done.stdout

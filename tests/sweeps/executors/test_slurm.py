"""Trials on a real one-node Slurm: put back into the queue and going on, also a real training from its checkpoint."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from executor_places import OVER, Place, alive, until
from executor_ray import free_port
from executor_slurm import Slurm
from steer_experiments.config import load_recipe
from steer_experiments.run_dir import RunDir, read_json, write_yaml
from steer_openrlhf.errors import ConfigError
from steer_sweeps.executors import slurm as module
from steer_sweeps.executors.base import ExecutorError, Job, JobState, make_executor
from steer_sweeps.executors.config import SlurmConfig

TEXT: dict[str, Any] = {"capture_output": True, "text": True, "check": True}
RECIPE = Path(__file__).parents[3] / "experiments" / "recipes" / "tiny" / "steer.yaml"


def number(place: Place, handle: str) -> str:
    return (place.study / "jobs" / handle / "slurm_id").read_text()


def requeue(place: Place, handle: str) -> None:
    """What a preemption does, without the two minutes that Slurm then lets a job wait."""
    job = number(place, handle)
    subprocess.run(["scontrol", "requeue", job], check=True)
    asked = ["squeue", "--noheader", f"--jobs={job}", "--format=%T"]
    until(lambda: "PENDING" in subprocess.run(asked, capture_output=True, text=True, check=True).stdout)
    subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"], check=True)


def test_a_preempted_job_is_not_over_and_starts_again(at: Any, slurm_cluster: Slurm) -> None:
    place = at(SlurmConfig())
    executor = place.executor()
    handle = place.submit(executor, place.job(place.name("a"), "hang"))
    until(lambda: place.lines("start"))
    requeue(place, handle)
    seen = set()

    def again() -> bool:
        seen.add(executor.state(handle))
        return len(place.lines("start")) == 2

    until(again)
    assert not seen & set(OVER)
    assert [line["resume"] for line in place.lines("start")] == ["", "1"]
    assert executor.exit_note(handle) == ""
    executor.cancel(handle)
    place.settle(executor, handle)
    status = place.run(handle).read_status()
    assert status
    assert status.state == "stopped"
    until(lambda: not alive(place.pids()))


def test_a_job_whose_time_is_nearly_up_is_stopped_and_put_back(at: Any, slurm_cluster: Slurm) -> None:
    """By the signal that Slurm sends two minutes before the limit."""
    place = at(SlurmConfig(time_minutes=30))
    executor = place.executor()
    handle = place.submit(executor, place.job(place.name("a"), "hang"))
    until(lambda: place.lines("start"))
    script = subprocess.run(["scontrol", "write", "batch_script", number(place, handle), "-"], **TEXT)
    assert "#SBATCH --signal=B:USR2@120" in script.stdout
    subprocess.run(["scancel", "--signal=USR2", "--batch", number(place, handle)], check=True)
    until(lambda: executor.state(handle) == JobState.pending)
    status = place.run(handle).read_status()
    assert status
    assert status.state == "stopped"  # in good order, before it was put back
    until(lambda: not alive(place.pids()))
    executor.cancel(handle)
    place.settle(executor, handle)


def test_a_waiting_job_leaves_the_queue_when_cancelled(at: Any, slurm_cluster: Slurm) -> None:
    """Five GPUs of four would be refused; eight CPUs are there, so the second waits for the first."""
    place = at(SlurmConfig(slots=2, cpus_per_trial=6))
    executor = place.executor()
    first = place.submit(executor, place.job(place.name("first"), "hang"))
    until(lambda: executor.state(first) == JobState.running)
    second = place.submit(executor, place.job(place.name("second"), "hang"))
    assert until(lambda: executor.state(second)) == JobState.pending
    assert executor.free() == 0
    executor.cancel(second)
    until(lambda: executor.state(second) == JobState.ended)
    assert "CANCELLED" in executor.exit_note(second)
    executor.cancel(first, force=True)
    until(lambda: executor.state(first) == JobState.ended)
    assert "killed on request" in executor.exit_note(first)


def test_jobs_have_gpus_of_their_own(at: Any, slurm_cluster: Slurm) -> None:
    place = at(SlurmConfig(slots=2, gpus_per_trial=2))
    executor = place.executor()
    handles = [place.submit(executor, place.job(place.name(index), "hang", gpus=2)) for index in range(2)]
    until(lambda: len(place.lines("start")) == 2)
    assert sorted(line["devices"] for line in place.lines("start")) == ["0,1", "2,3"]
    for handle in handles:
        executor.cancel(handle, force=True)


def test_what_sbatch_refuses_is_said_and_starts_nothing(at: Any, slurm_cluster: Slurm) -> None:
    place = at(SlurmConfig(partition="no-such-partition"))
    executor, job = place.executor(), place.job(place.name("x"))
    with pytest.raises(ExecutorError, match=r"sbatch failed: .*partition"):
        executor.submit(job)
    assert executor.find(job.name) is None
    assert executor.free() == 1


def test_a_job_that_slurm_forgot_is_judged_by_what_it_left(at: Any, slurm_cluster: Slurm) -> None:
    """Slurm forgets jobs that are over after some minutes."""
    place = at(SlurmConfig(slots=3))
    executor = place.executor()
    handles = [place.submit(executor, place.job(place.name(do), do)) for do in ("good", "crash")]
    place.settle(executor, *handles)
    later = make_executor(place.config, place.study)
    later._queue = dict  # type: ignore[attr-defined, method-assign]
    assert [later.state(handle) for handle in handles] == [JobState.ended, JobState.ended]
    assert later.exit_note(handles[0]) == ""
    assert "exit code 3" in later.exit_note(handles[1])
    (place.study / "jobs" / handles[1] / "exit").unlink()
    (place.study / "jobs" / handles[1] / "slurm_state").unlink(missing_ok=True)
    place.run(handles[1]).status.unlink()
    assert later.state(handles[1]) == JobState.lost


def test_a_machine_without_slurm_is_a_mistake_in_the_sweep_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="sbatch is not installed"):
        make_executor(SlurmConfig(), tmp_path)


def test_a_cluster_that_does_not_answer_is_no_verdict(
    at: Any, slurm_cluster: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = at(SlurmConfig())
    executor = place.executor()
    handle = place.submit(executor, place.job(place.name("x"), "slow"))
    nobody = tmp_path / "slurm.conf"
    text = (slurm_cluster.folder / "slurm.conf").read_text()
    nobody.write_text(text.replace("SlurmctldPort=", f"SlurmctldPort={free_port()}\n#") + "MessageTimeout=2\n")
    with monkeypatch.context() as patch:
        patch.setenv("SLURM_CONF", str(nobody))
        executor._looked = -module.LOOK_S  # type: ignore[attr-defined]
        with pytest.raises(ExecutorError, match=r"squeue failed: .*Unable to contact"):
            executor.state(handle)
        with pytest.raises(ConfigError, match="run this where sbatch works"):
            place.executor()
    place.settle(executor, handle)
    assert executor.state(handle) == JobState.ended


@pytest.mark.e2e
def test_a_preempted_training_goes_on_from_its_checkpoint(at: Any, slurm_cluster: Slurm, tmp_path: Path) -> None:
    """A real one: OpenRLHF, DeepSpeed and vLLM. Requeued after the checkpoint of step 2 of 4; nothing is missing at the
    end, which ``steer train`` checks itself."""
    small = {"data.max_samples": 128, "rollout.batch_size": 32, "rollout.n_samples_per_prompt": 4, "eval.steps": 2,
             "rollout.micro_batch_size": 64,
             "train.batch_size": 128, "train.micro_batch_size": 64, "ckpt.disable_ds": "false", "ckpt.save_steps": 1,
             "eval.n_samples_per_prompt": 1}  # fmt: skip
    experiment = load_recipe(RECIPE, [f"openrlhf.{key}={value}" for key, value in small.items()])
    place, run = at(SlurmConfig(cpus_per_trial=2)), RunDir(tmp_path / "study" / "trials" / "real")
    run.path.mkdir(parents=True)
    write_yaml(run.config, experiment.resolved())
    command = (sys.executable, "-m", "steer_experiments.train", str(run.config), "--run-dir", str(run.path))
    executor, job = place.executor(), Job(place.name("real"), command, run.path)
    handle = place.submit(executor, job)
    until(lambda: len(run.read_metrics()) >= 4 or executor.state(handle) in OVER, patience_s=400)
    assert executor.state(handle) == JobState.running, run.log_tail()  # steps 1, 2, the evaluation and 3 are done
    requeue(place, handle)
    until(lambda: executor.state(handle) in OVER, patience_s=400)
    status = run.read_status()
    assert status
    assert (status.state, status.step) == ("finished", 4), status.reason
    rows = run.read_metrics()
    assert [row["step"] for row in rows if "train/policy_loss" in row] == [1, 2, 3, 4]
    assert (read_json(run.env) or {})["resumed_after_step"] >= 2
    assert "goes on after step" in "".join(path.read_text() for path in (place.study / "jobs" / handle).glob("*.out"))

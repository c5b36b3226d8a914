"""The launcher's small parts: runtime env beside a job's own, metrics files, secrets, registry."""

import argparse
import json
import math
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from steer_openrlhf import cpu, host, registry
from steer_openrlhf.config import SteerConfig
from steer_openrlhf.metrics import MetricsLogger, without_secrets
from steer_openrlhf.registry import Intervention, interventions
from steer_openrlhf.train_ppo_ray import SETUP_HOOK, _hook_mistakes, _runtime_env, _use_wandb_from_environment

HOST_ENV = {"env_vars": {"NCCL_DEBUG": "WARN", "TOKENIZERS_PARALLELISM": "true"}}


def job(monkeypatch: pytest.MonkeyPatch, runtime_env: dict[str, Any]) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"runtime_env": runtime_env}))


def test_outside_a_job_the_hosts_environment_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    monkeypatch.delenv("WANDB_DIR", raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    variables = HOST_ENV["env_vars"] | {"STEER_OPENRLHF_PARAM_DTYPE": "fp32", "WANDB_MODE": "offline"}
    assert _runtime_env(HOST_ENV, "fp32") == {"env_vars": variables, "worker_process_setup_hook": SETUP_HOOK}


def test_a_jobs_own_variables_win_over_the_hosts_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    job(monkeypatch, {"env_vars": {"NCCL_DEBUG": "INFO"}, "working_dir": "gcs://x"})
    variables = _runtime_env(HOST_ENV, "bf16")["env_vars"]
    assert "NCCL_DEBUG" not in variables
    assert variables["TOKENIZERS_PARALLELISM"] == "true"


def test_a_jobs_own_setup_hook_is_refused_unless_it_is_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    job(monkeypatch, {"worker_process_setup_hook": "theirs.hook"})
    (mistake,) = _hook_mistakes()
    assert "theirs.hook" in mistake
    job(monkeypatch, {"worker_process_setup_hook": SETUP_HOOK})
    assert _hook_mistakes() == []
    assert "worker_process_setup_hook" not in _runtime_env(HOST_ENV, "fp32")


def test_a_vllm_of_somebody_else_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The entry point is called in every vLLM of the environment, also where the versions are not ours."""
    called: list[bool] = []
    monkeypatch.setattr(host, "install", lambda: called.append(True))
    monkeypatch.delenv(cpu.DTYPE_VARIABLE, raising=False)
    cpu.vllm_plugin()
    assert called == []
    monkeypatch.setenv(cpu.DTYPE_VARIABLE, "fp32")
    cpu.vllm_plugin()
    assert called == [True]


def host_args(run_dir: Path | None) -> SimpleNamespace:
    return SimpleNamespace(
        actor=SimpleNamespace(policy_loss_type="steer"),
        steer=SimpleNamespace(run_dir=str(run_dir) if run_dir else None, lambda_min=0.7),
        logger=SimpleNamespace(wandb=SimpleNamespace(key="abc", project="p")),
    )


def test_metrics_lines_and_what_is_not_finite(tmp_path: Path) -> None:
    logger = MetricsLogger(host_args(tmp_path))
    status = {"policy_loss": math.nan, "steer/active": 1.0, "steer/entropy": 2.0, "generated_samples": ["a", 1.0]}
    logger.log_train(1, status)
    logger.log_train(2, {**status, "policy_loss": 0.5, "steer/entropy": 1.5})
    logger.log_eval(2, {"eval_x_pass1": 0.25})
    first, second, third = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert (first["train/policy_loss"], first["nonfinite"]) == (None, ["train/policy_loss"])
    assert second["train/steer/entropy_change"] == -0.5
    assert "train/steer/entropy_change" not in first
    assert (third["step"], third["eval/eval_x_pass1"]) == (2, 0.25)


def test_resolved_arguments_are_written_without_secrets(tmp_path: Path) -> None:
    MetricsLogger(host_args(tmp_path))
    written = json.loads((tmp_path / "host_args.json").read_text())
    assert written["steer"]["lambda_min"] == 0.7
    assert written["logger"]["wandb"] == {"key": "(not written)", "project": "p"}
    assert without_secrets({"input_key": "input", "hf_token": "x", "token": None}) == {
        "input_key": "input",
        "hf_token": "(not written)",
        "token": None,
    }


def test_a_step_without_the_plugins_mark_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="steer/active is None"):
        MetricsLogger(host_args(tmp_path)).log_train(1, {"policy_loss": 0.1})
    MetricsLogger(host_args(tmp_path)).log_train(1, {"critic_loss": 0.1})  # the actor is frozen: nothing to prove yet


def test_without_a_run_directory_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    MetricsLogger(host_args(None)).log_eval(1, {"x": 1.0})
    assert list(tmp_path.iterdir()) == []


THIRD_PARTY = Intervention("mine", SteerConfig, "steer_openrlhf.interventions.steer")


def with_entry_point(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    point = EntryPoint("mine", value, registry.ENTRY_POINT_GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda group: [point])


def test_a_third_party_registers_by_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "THIRD_PARTY", THIRD_PARTY, raising=False)
    with_entry_point(monkeypatch, "steer_openrlhf.registry:THIRD_PARTY")
    assert interventions()["mine"] is THIRD_PARTY


def test_a_taken_name_and_a_wrong_object_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        registry, "TAKEN", Intervention("ppo", SteerConfig, "steer_openrlhf.interventions.steer"), raising=False
    )
    with_entry_point(monkeypatch, "steer_openrlhf.registry:TAKEN")
    with pytest.raises(ValueError, match="'ppo' is taken"):
        interventions()
    with_entry_point(monkeypatch, "steer_openrlhf.registry:HOST_LOSSES")
    with pytest.raises(ValueError, match="not an Intervention"):
        interventions()


def test_a_studys_name_for_wandb_counts_where_no_flag_gives_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_NAME", "band-3")
    monkeypatch.setenv("WANDB_MODE", "disabled")
    for given, wanted in (("ppo_1125T02:00", "band-3"), ("mine", "mine")):
        namespace = argparse.Namespace(**{"logger.wandb.key": None, "logger.wandb.run_name": given})
        _use_wandb_from_environment(namespace, "ppo_1125T02:00")
        assert getattr(namespace, "logger.wandb.run_name") == wanted

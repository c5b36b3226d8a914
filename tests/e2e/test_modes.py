"""Real short trainings of the modes the interventions have to work in: Ray, DeepSpeed and vLLM, nothing mocked."""

import json
import math
import shutil
import subprocess
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from steer_experiments.run_dir import read_metrics
from steer_openrlhf.hostargs import to_argv

pytestmark = pytest.mark.e2e
STEER = {"actor.policy_loss_type": "steer", "steer.lambda_min": 0.6}
HEAD_BAND = {"actor.policy_loss_type": "steer", "steer.estimator": "influence_head", "steer.band": [-0.05, 0.0]}

MODES: dict[str, dict[str, Any]] = {
    "influence, zero 1, T 0.7, kl loss, probe": STEER | {
        "steer.estimator": "influence", "ds.zero_stage": 1, "rollout.temperature": 0.7, "steer.probe.every": 1,
        "steer.probe.sequences": 24, "algo.kl.use_loss": True, "algo.kl.init_coef": 0.01, "algo.kl.estimator": "k2",
        "ref.num_gpus_per_node": 1,
    },
    "band on the head, async, zero 2": HEAD_BAND | {
        "train.async_enable": True, "steer.band_warmup": 1, "train.batch_size": 32, "train.micro_batch_size": 32,
    },
    "kl_cov, zero 0, entropy bonus": {
        "actor.policy_loss_type": "kl_cov", "kl_cov.ratio": 0.02, "ds.zero_stage": 0,
        "actor.entropy_coef": 0.001, "steer.entropy_bonus.target": 5.0,
    },
    "head influence, zero 3, probe": STEER | {
        "steer.estimator": "influence_head", "ds.zero_stage": 3, "steer.probe.every": 2,
    },
}  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
def test_a_mode_trains(
    mode: str, world: Any, launch: Callable[..., Any], python: str, tmp_path: Path, ray_flags: Callable[..., Any]
) -> None:
    run_dir = tmp_path / "run"
    flags = world.flags(run_dir) | ray_flags(gpus=3) | MODES[mode]
    done = launch([python, "-m", "steer_openrlhf.train_ppo_ray", *to_argv(flags)])
    assert done.returncode == 0, done.stdout[-6000:]
    lines = [line for line in read_metrics(run_dir / "metrics.jsonl") if "train/policy_loss" in line]
    assert [line["step"] for line in lines] == [1, 2]
    for line in lines:
        assert line["train/steer/active"] == 1.0
        if MODES[mode]["actor.policy_loss_type"] == "steer":
            assert line["train/steer/nonfinite_omega"] == 0
            assert 0 < line["train/steer/omega_abs_max"] < math.inf
    CHECKS.get(mode, lambda *_: None)(lines, run_dir)


def check_probe(lines: list[dict[str, Any]], run_dir: Path) -> None:
    """In the first step of a warm-up the learning rate is 0, so the second one is looked at."""
    _, second = sorted((run_dir / "probe").glob("*.npz"))
    with np.load(second, allow_pickle=False) as probe:
        mask = probe["mask"] > 0
        assert (int(probe["step"]), int(probe["updates"])) == (2, 1)
        assert {f"omega_{name}" for name in ("exact", "paper", "reference", "influence", "influence_head")} <= set(
            probe
        )
        change = (probe["entropy_after"] - probe["entropy_before"])[mask]
        assert change.mean() == pytest.approx(
            lines[1]["train/steer/entropy_after"] - lines[1]["train/steer/entropy_before"], abs=1e-5
        )
        assert np.abs(change).max() > 0
        assert all(np.isfinite(probe[name]).all() for name in probe)


def check_band(lines: list[dict[str, Any]], run_dir: Path) -> None:
    assert all("train/steer/band_measured" in line for line in lines)
    assert lines[0]["train/steer/band_calibrated"] == 0
    assert json.loads((run_dir / "host_args.json").read_text())["steer"]["band"] == [-0.05, 0.0]


def check_bonus(lines: list[dict[str, Any]], run_dir: Path) -> None:
    """The target is far above a vocabulary of 20, so the coefficient rises by delta from the second step on."""
    assert lines[0]["train/steer/entropy_coef"] == pytest.approx(0.001)
    assert lines[1]["train/steer/entropy_coef"] == pytest.approx(0.0011)


CHECKS: dict[str, Callable[[list[dict[str, Any]], Path], None]] = {
    "influence, zero 1, T 0.7, kl loss, probe": check_probe,
    "band on the head, async, zero 2": check_band,
    "kl_cov, zero 0, entropy bonus": check_bonus,
}


def train(launch: Callable[..., Any], python: str, flags: dict[str, Any], **variables: str) -> list[dict[str, Any]]:
    done = launch([python, "-m", "steer_openrlhf.train_ppo_ray", *to_argv(flags)], **variables)
    assert done.returncode == 0, done.stdout[-6000:]
    rows = read_metrics(Path(flags["steer.run_dir"]) / "metrics.jsonl")
    return [row for row in rows if "train/policy_loss" in row]


def test_a_controller_goes_on_from_an_openrlhf_checkpoint(
    world: Any, launch: Callable[..., Any], python: str, tmp_path: Path, ray_flags: Callable[..., Any]
) -> None:
    """Four steps, a checkpoint after two, and a second process that does the last two again."""
    flags = world.flags(tmp_path / "whole") | ray_flags(gpus=2) | HEAD_BAND | {
        "steer.band_warmup": 2, "rollout.batch_size": 8, "train.batch_size": 32, "ckpt.disable_ds": False,
        "ckpt.save_steps": 2, "ckpt.path": str(tmp_path / "ckpt"), "eval.steps": -1, "steer.probe.every": 3,
    }  # fmt: skip
    whole = train(launch, python, flags)
    assert [line["step"] for line in whole] == [1, 2, 3, 4]
    assert [line["train/steer/band_calibrated"] for line in whole][:2] == [0, 0]
    saved = tmp_path / "ckpt" / "_actor"
    shutil.rmtree(saved / "global_step4")
    (saved / "latest").write_text("global_step2")
    again = train(launch, python, flags | {"ckpt.load_enable": True, "steer.run_dir": str(tmp_path / "resumed")})
    assert [line["step"] for line in again] == [3, 4]
    for name in ("band_calibrated", "band_steps", "band_unmeasured"):
        assert [line[f"train/steer/{name}"] for line in again] == [line[f"train/steer/{name}"] for line in whole[2:]]
    assert again[0]["train/steer/entropy_before"] == pytest.approx(whole[2]["train/steer/entropy_before"], rel=0.05)
    assert [path.name for path in (tmp_path / "resumed" / "probe").iterdir()] == ["step000003.rank0.npz"]


PACKAGE = {
    "pyproject.toml": """
        [build-system]
        requires = ["hatchling"]
        build-backend = "hatchling.build"
        [project]
        name = "surprise-bonus"
        version = "1.0"
        [project.entry-points."steer_openrlhf.interventions"]
        surprise = "surprise_bonus:INTERVENTION"
        """,
    "surprise_bonus/__init__.py": """
        from pydantic import Field
        from steer_openrlhf.config import Config
        from steer_openrlhf.registry import Intervention

        class SurpriseConfig(Config):
            scale: float = Field(0.1, ge=0, description="bonus per nat of surprisal")

        INTERVENTION = Intervention("surprise", SurpriseConfig, "surprise_bonus.maths")
        """,
    "surprise_bonus/maths.py": """
        from steer_openrlhf.tokens import Shaped

        def shape(tokens, summary, config):
            bonus_BT = -config.scale * tokens.log_probs_BT
            return Shaped(tokens.advantages_BT + bonus_BT, {"surprise": bonus_BT.max()})
        """,
}


def test_a_third_partys_package_trains(
    world: Any, launch: Callable[..., Any], python: str, tmp_path: Path, ray_flags: Callable[..., Any]
) -> None:
    """Twenty lines in a package of its own, installed, and named by OpenRLHF's own flag."""
    for name, text in PACKAGE.items():
        path = tmp_path / "package" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text).lstrip())
    pip = [python, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--target", str(tmp_path / "lib")]
    subprocess.run([*pip, str(tmp_path / "package")], check=True)
    flags = world.flags(tmp_path / "run") | ray_flags(gpus=2) | {
        "data.max_samples": 16, "actor.policy_loss_type": "surprise", "surprise.scale": 0.5,
    }  # fmt: skip
    (line,) = train(launch, python, flags, PYTHONPATH=str(tmp_path / "lib"))
    assert line["train/steer/active"] == 1.0
    assert 0.5 * math.log(20) / 2 < line["train/steer/surprise"] < 0.5 * 20
    resolved = json.loads((tmp_path / "run" / "host_args.json").read_text())
    assert resolved["surprise"]["scale"] == 0.5

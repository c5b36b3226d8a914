"""OpenRLHF's real parser with our flags: what it takes, and that every mistake is told at once and early."""

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from steer_openrlhf.config import SteerConfig
from steer_openrlhf.errors import ConfigError
from steer_openrlhf.hostargs import check_flags, from_nested, host_parser, parse, resolve, to_argv

LOSS = "actor.policy_loss_type"


def test_every_steer_field_is_a_flag() -> None:
    flags = {option for action in host_parser()._actions for option in action.option_strings}
    assert {f"--steer.{name}" for name in SteerConfig.model_fields} <= flags
    assert {"--steer.run_dir", "--steer.base_loss", "--steer.ray.address"} <= flags


def test_defaults_are_resolved_for_the_worker() -> None:
    resolved = resolve({LOSS: "steer"})
    assert resolved.values()["steer.lambda_min"] == 0.7
    nested = SimpleNamespace(
        actor=SimpleNamespace(policy_loss_type="steer"),
        steer=SimpleNamespace(**{k.split(".")[1]: v for k, v in resolved.values().items() if k.count(".") == 1}),
    )
    assert from_nested(nested) == resolved


def test_a_whole_command_line_goes_through_the_hosts_own_parser() -> None:
    resolved = parse(
        ["--actor.policy_loss_type", "uniform", "--steer.k", "2.5", "--train.batch_size", "64", "--vllm.enforce_eager"]
    )
    assert (resolved.loss, resolved.config.k, resolved.config.lambda_min) == ("uniform", 2.5, None)  # type: ignore[union-attr]


@pytest.mark.parametrize("loss", ["ppo", "gspo"])
def test_the_hosts_own_losses_stay_the_hosts(loss: str) -> None:
    assert resolve({LOSS: loss}).intervention is None


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({LOSS: "steeer"}, ["steeer", "known: ppo, gspo, steer", "did you mean 'steer'?"]),
        ({LOSS: "steer", "steer.lambda_min": 1.5}, ["steer.lambda_min = 1.5", "less than or equal to 1"]),
        ({LOSS: "steer", "steer.lambda_min": 0.7, "steer.k": 2}, ["k = 2", "lambda_min = 0.7", "give one"]),
        (
            {LOSS: "steer", "steer.lambda_mn": 0.7},
            ["steer.lambda_mn: unknown flag", "did you mean 'steer.lambda_min'?"],
        ),
        ({LOSS: "ppo", "steer.k": 2}, ["steer.k = 2", "no effect with actor.policy_loss_type = ppo"]),
        (
            {LOSS: "steer", "steer.estimator": "reference", "steer.side": "falling"},
            ["side = falling", "signed estimator"],
        ),
        ({"actor.model_name_or_path": "./nowhere"}, ["./nowhere", "no such folder"]),
        ({"actor.adam.lr": "fast"}, ["actor.adam.lr = 'fast'", "float"]),
        ({"vllm.enforce_eager": 1}, ["vllm.enforce_eager = 1", "true, false"]),
        ({"actor.eps_clip_low_high": [0.2]}, ["takes exactly 2 values"]),
        ({"algo.advantage.estimator": "grpo"}, ["allowed: gae", "group_norm"]),
    ],
)
def test_a_mistake_says_what_the_value_and_what_is_allowed(flags: dict[str, Any], words: list[str]) -> None:
    (mistake,) = check_flags(flags)
    assert all(word in mistake for word in words), mistake


def test_all_mistakes_at_once() -> None:
    flags = {
        LOSS: "steeer",
        "steer.lambda_min": 1.5,
        "steer.k": 2,
        "train.sed": 1,
        "actor.model_name_or_path": "./nowhere",
    }
    assert len(check_flags(flags)) == 5


def test_good_flags_have_no_mistakes_and_survive_the_command_line() -> None:
    flags = {
        LOSS: "steer",
        "steer.side": "falling",
        "train.batch_size": 64,
        "vllm.enforce_eager": True,
        "ckpt.save_hf": False,
        "actor.eps_clip_low_high": [0.2, 0.28],
        "actor.adam.lr": 1e-6,
        "critic.save_value_network": None,
    }
    assert check_flags(flags) == []
    parsed = vars(host_parser().parse_args(to_argv(flags)))
    assert {name: parsed[name] for name in flags if flags[name] not in (None,)} == {
        k: v for k, v in flags.items() if v is not None
    }


@pytest.mark.parametrize(
    "argv",
    [
        ["--actor.policy_loss_type", "steer", "--steer.lambda_min", "1.5", "--steer.k", "2"],
        ["--actor.policy_loss_type", "nope"],
        ["--actor.model_name_or_path", "/no/such/model"],
    ],
)
def test_the_drop_in_refuses_before_anything_heavy_is_loaded(argv: list[str]) -> None:
    code = (
        "import sys; from steer_openrlhf.train_ppo_ray import main\n"
        "try: main(sys.argv[1:])\n"
        "finally: assert not {'torch', 'ray', 'vllm'} & set(sys.modules), 'heavy import before the refusal'"
    )
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert argv[-1].split("/")[-1] in done.stderr


def test_config_error_lists_each_mistake_on_its_line() -> None:
    assert str(ConfigError(["a", "b"])).splitlines() == ["2 mistakes:", "  - a", "  - b"]

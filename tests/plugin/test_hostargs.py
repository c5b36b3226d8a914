"""OpenRLHF's real parser with our flags: what it takes, and that every mistake is told at once and early."""

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from steer_openrlhf import registry
from steer_openrlhf.config import Config, SteerConfig
from steer_openrlhf.errors import ConfigError
from steer_openrlhf.hostargs import check_flags, from_nested, host_parser, parse, resolve, to_argv
from steer_openrlhf.registry import Intervention

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
    argv = ["--actor.policy_loss_type", "uniform", "--steer.k", "2.5", "--train.batch_size=64", "--vllm.enforce_eager"]
    argv += [
        "--actor.model_name_or_path",
        "org/name",
        "--actor.eps_clip_low_high",
        "0.2",
        "0.3",
        "--actor.muon.no_nest",
    ]
    resolved, flags = parse(argv)
    assert (flags["train.batch_size"], flags["actor.eps_clip_low_high"]) == (64, [0.2, 0.3])
    assert flags["actor.muon.nesterov"] is False  # an opposite switch, abbreviated: OpenRLHF's parser allows both
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
        ({"actor.model_name_or_path": "runs/mine/checkpoint"}, ["runs/mine/checkpoint", "no such folder"]),
        ({LOSS: "ppo", "steer.base_loss": "gspo"}, ["steer.base_loss = 'gspo'", "no effect"]),
        ({LOSS: "steer", "steer.quantile": 0.9}, ["quantile = 0.9", "normalizer quantile"]),
        ({LOSS: "steer", "data.max_images_per_prompt": 1}, ["max_images_per_prompt = 1", "allowed: 0"]),
        ({"actor.muon.nesterov": False}, ["actor.muon.nesterov = False", "opposite flag"]),
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
    with pytest.raises(ConfigError) as caught:
        parse([*to_argv(flags), "--train.batch_size", "many"])
    assert len(caught.value.mistakes) == 6


def test_an_actor_model_is_required() -> None:
    with pytest.raises(ConfigError, match=r"actor\.model_name_or_path: is required"):
        parse(["--actor.policy_loss_type", "steer"])


class EveryKind(Config):
    switch: bool = True
    pair: tuple[float, float] | None = None


def test_every_kind_of_config_field_becomes_a_working_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = Intervention("mine", EveryKind, "steer_openrlhf.interventions.steer")
    monkeypatch.setattr(registry, "INTERVENTIONS", registry.INTERVENTIONS | {"mine": mine})
    for switch in (True, False, None):
        flags = {"actor.model_name_or_path": "org/name", LOSS: "mine", "mine.switch": switch, "mine.pair": (0.5, 2.0)}
        assert check_flags(flags) == []
        config = parse(to_argv(flags))[0].config
        assert config == EveryKind(switch=switch is not False, pair=(0.5, 2.0))
    assert "true, false" in check_flags({LOSS: "mine", "mine.switch": "perhaps"})[0]
    with pytest.raises(ConfigError, match="pair"):
        parse(["--actor.model_name_or_path", "org/name", "--actor.policy_loss_type", "mine", "--mine.pair", "1"])


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

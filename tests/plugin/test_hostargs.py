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
BANDED = {LOSS: "steer", "steer.estimator": "influence", "steer.band": [-0.1, 0.1]}


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
        ({LOSS: "kl_cov", "steer.base_loss": "gspo"}, ["steer.base_loss = 'gspo'", "allowed: ppo", "kl_cov"]),
        (
            {LOSS: "dcpo", "algo.advantage.is_correction_level": "token"},
            ["is_correction_level = 'token'", "allowed: off"],
        ),
        ({LOSS: "steer", "steer.estimator": "influence", "ds.zero_stage": 3}, ["ds.zero_stage = 3", "influence_head"]),
        (
            {LOSS: "steer", "steer.estimator": "influence_head", "ds.lora.rank": 8},
            ["ds.lora.rank = 8", "others: influence"],
        ),
        ({LOSS: "steer", "steer.estimator": "influence", "actor.optim": "muon"}, ["actor.optim = 'muon'", "adam"]),
        ({LOSS: "ppo", "steer.entropy_bonus.target": 0.2}, ["entropy_bonus.target = 0.2", "--actor.entropy_coef"]),
        ({LOSS: "ppo", "steer.base_loss": "gspo"}, ["steer.base_loss = 'gspo'", "no effect"]),
        ({LOSS: "steer", "steer.quantile": 0.9}, ["quantile = 0.9", "normalizer quantile"]),
        ({LOSS: "steer", "steer.band": [-0.1, 0.1]}, ["estimator = exact", "wrong sign", "influence, influence_head"]),
        ({LOSS: "uniform", "steer.entropy_floor": 0.1}, ["estimator = exact", "entropy_floor", "influence_head"]),
        ({**BANDED, "steer.k": 2}, ["k = 2", "give lambda_min"]),
        ({**BANDED, "steer.side": "falling"}, ["side = falling", "band", "allowed: both"]),
        ({**BANDED, "steer.scope": "microbatch"}, ["scope = microbatch", "band", "allowed: global"]),
        ({**BANDED, "steer.weight": "linear"}, ["weight = linear", "band", "allowed: exp"]),
        ({**BANDED, "steer.band": ["0.2", "0.1"]}, ["band = 0.2 0.1", "LOW must be smaller"]),
        ({**BANDED, "steer.band": [-0.1, float("inf")]}, ["steer.band.1 = inf", "finite"]),
        (
            {**BANDED, "steer.entropy_floor": 0.5, "steer.entropy_ceiling": 0.5},
            ["entropy_floor = 0.5", "entropy_ceiling = 0.5"],
        ),
        ({**BANDED, "steer.band": [-0.2, -0.1], "steer.entropy_floor": 0.5}, ["-0.1", "entropy_floor = 0.5", "HIGH"]),
        ({**BANDED, "steer.band": [0.1, 0.2], "steer.entropy_ceiling": 2}, ["0.1", "entropy_ceiling = 2", "LOW"]),
        ({LOSS: "steer", "steer.band_warmup": 5}, ["band_warmup = 5", "no effect without band"]),
        ({**BANDED, "steer.band_warmup": 0}, ["steer.band_warmup = 0", "greater than or equal to 1"]),
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


def test_all_mistakes_of_a_band_at_once() -> None:
    flags = {
        **BANDED,
        "steer.estimator": "paper",
        "steer.k": "2",
        "steer.side": "rising",
        "steer.band": ["0.1", "-0.1"],
    }
    assert len(check_flags(flags)) == 4


@pytest.mark.parametrize("loss", ["steer", "uniform"])
def test_a_band_reaches_the_worker_with_its_defaults(loss: str) -> None:
    flags = {LOSS: loss, "steer.estimator": "influence_head", "steer.band": (-0.02, 0.01), "steer.entropy_floor": 0.2}
    assert check_flags(flags) == []
    resolved = parse(to_argv(flags | {"actor.model_name_or_path": "org/name"}))[0]
    config = resolved.config
    assert isinstance(config, SteerConfig)
    assert (config.band, config.entropy_floor, config.entropy_ceiling) == ((-0.02, 0.01), 0.2, None)
    assert (config.band_memory, config.band_warmup, config.lambda_min) == (0.9, 3, 0.7)
    assert resolve(resolved.values() | {LOSS: loss}).config == config
    assert resolved.intervention is not None
    assert resolved.intervention.needs(config) == {"influence_head"}
    assert resolved.intervention.observes(config)
    assert resolved.intervention.stepwise(config)


@pytest.mark.parametrize("loss", ["steer", "uniform"])
def test_without_a_band_nothing_is_observed(loss: str) -> None:
    needed = {"exact": set(), "paper": set(), "reference": {"old_entropy"}, "influence": {"influence"}}
    for estimator, needs in needed.items():
        resolved = resolve({LOSS: loss, "steer.estimator": estimator})
        assert resolved.intervention is not None
        assert not resolved.intervention.observes(resolved.config)
        assert resolved.intervention.needs(resolved.config) == needs


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


def test_negative_numbers_in_any_notation_reach_a_band() -> None:
    """argparse takes -2e-3 for an unknown flag."""
    fixed = {"actor.model_name_or_path": "org/name", LOSS: "steer", "steer.estimator": "influence"}
    for band in ([-2e-3, 1e-3], [-0.00001, 0.5], [-1.0, -0.25]):
        config = parse(to_argv(fixed | {"steer.band": band}))[0].config
        assert isinstance(config, SteerConfig)
        assert config.band == tuple(band)


def test_one_wrong_item_of_a_pair_is_one_mistake() -> None:
    fixed = {"actor.model_name_or_path": "org/name", LOSS: "steer", "steer.estimator": "influence"}
    assert len(check_flags(fixed | {"steer.band": ["low", 0.1]})) == 1


def test_a_probe_without_a_place_for_its_files_is_refused() -> None:
    fixed = {"actor.model_name_or_path": "org/name", LOSS: "ppo", "steer.probe.every": 4}
    with pytest.raises(ConfigError, match=r"steer\.probe\.every = 4: needs a folder"):
        parse(to_argv(fixed))
    assert parse(to_argv(fixed | {"steer.run_dir": "/somewhere"}))[0].launch.probe.every == 4

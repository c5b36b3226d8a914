"""Configs of the interventions, their flags, and the table that describes them."""

import ast
import re
from pathlib import Path
from typing import Any

import pytest
import steer_openrlhf
from pydantic import ValidationError
from steer_openrlhf import hostargs
from steer_openrlhf.errors import ConfigError
from steer_openrlhf.interventions import configs
from steer_openrlhf.registry import INTERVENTIONS, NEEDS

TABLE = Path(steer_openrlhf.__file__).parents[1] / "INTERVENTIONS.md"


def rows() -> dict[str, str]:
    """First cell, without backticks -> the whole row."""
    lines = [line for line in TABLE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    return {line.split("|")[1].strip().strip("`"): line for line in lines}


@pytest.mark.parametrize("name", list(INTERVENTIONS))
def test_the_table_has_every_intervention_and_every_flag_with_its_default(name: str) -> None:
    assert name in rows(), f"plugin/INTERVENTIONS.md has no row for {name}"
    row, chosen = rows()[name], INTERVENTIONS[name]
    if chosen.prefix:
        assert f"--{chosen.prefix}." in row  # its flags are another's
        return
    for field, info in chosen.config.model_fields.items():
        shown = re.search(rf"`--{chosen.flag_prefix}\.{field}(?: ([^`]+))?`", row)
        assert shown, f"plugin/INTERVENTIONS.md does not show --{chosen.flag_prefix}.{field}"
        if info.default is not None:
            literal = shown.group(1)
            assert literal is not None, f"--{chosen.flag_prefix}.{field} is shown without its default {info.default}"
            assert literal == info.default or ast.literal_eval(literal) == info.default


def test_every_flag_of_the_table_exists() -> None:
    known = {option for action in hostargs.host_parser()._actions for option in action.option_strings}
    shown = set(re.findall(r"`(--[\w.]*\w)[ `]", TABLE.read_text(encoding="utf-8")))
    assert len(shown) > 40
    assert shown <= known, sorted(shown - known)


def test_the_commands_of_the_table_are_accepted() -> None:
    blocks = re.findall(r"```bash\n(.*?)```", TABLE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert blocks
    for block in blocks:
        words = block.replace("\\\n", " ").split()
        assert words[:3] == ["python", "-m", "steer_openrlhf.train_ppo_ray"]
        resolved, _ = hostargs.parse(words[3:])
        assert resolved.intervention is not None


@pytest.mark.parametrize("name", list(INTERVENTIONS))
def test_needs_are_known_and_every_field_says_what_it_is(name: str) -> None:
    chosen = INTERVENTIONS[name]
    assert chosen.needs(chosen.config()) <= NEEDS
    for field, info in chosen.config.model_fields.items():
        assert info.description, f"{name}.{field} has no description, so its flag has no help"


@pytest.mark.parametrize(
    ("config", "fields", "names"),
    [
        (configs.ClipCovConfig, {"lb": 5.0, "ub": 1.0}, ["lb", "ub"]),
        (configs.ClipCovConfig, {"lb": 5.0}, ["lb", "ub"]),
        (configs.ErcConfig, {"low": 1.1}, ["low", "high"]),
        (configs.WReinforceConfig, {"lambda_positive": 0.0, "lambda_negative": 0.0}, ["lambda_positive"]),
        (configs.EntropyAdvantageConfig, {"kappa": 1.0}, ["kappa"]),
        (configs.ForkingTokensConfig, {"keep": 0.0}, ["keep"]),
        (configs.ForkingTokensConfig, {"keep": 1.5}, ["keep"]),
        (configs.StareConfig, {"weight": 0.5, "weight_negative": 2.0}, ["weight", "weight_negative"]),
        (configs.EntropicConfig, {"high_prob": 1.0, "limit": 0.0}, ["high_prob", "limit"]),
        (configs.PositiveReweightConfig, {"initial": 1.5, "delta": -1.0}, ["initial", "delta"]),
        (configs.DcpoConfig, {"r_max": 1.0, "eps_low": -1.0}, ["r_max", "eps_low"]),
        (configs.ClipVConfig, {"max_share": 0.0, "mu": 0.0}, ["max_share", "mu"]),
        (configs.OpefoConfig, {"estimator": "reference"}, ["estimator"]),
    ],
)
def test_a_config_refuses_what_makes_no_sense(config: Any, fields: dict[str, Any], names: list[str]) -> None:
    with pytest.raises(ValidationError) as error:
        config(**fields)
    assert all(name in str(error.value) for name in names)


def test_every_mistake_on_a_line_is_reported_at_once() -> None:
    given = {"actor.policy_loss_type": "clip_cov", "clip_cov.lb": "7", "clip_cov.ratio": "2", "erc.low": "0.5"}
    with pytest.raises(ConfigError) as error:
        hostargs.resolve(given)
    text = " ".join(error.value.mistakes)
    assert all(part in text for part in ("clip_cov.ratio", "lb = 7.0 must be smaller than ub = 5.0", "erc.low"))


def test_an_own_loss_needs_plain_ppo() -> None:
    for name in ("kl_cov", "dcpo", "ce_gppo", "entropic"):
        assert INTERVENTIONS[name].own_loss
        with pytest.raises(ConfigError, match=r"steer\.base_loss"):
            hostargs.resolve({"actor.policy_loss_type": name, "steer.base_loss": "gspo"})


def test_opefo_asks_for_what_its_estimator_reads() -> None:
    needs = INTERVENTIONS["opefo"].needs
    assert needs(configs.OpefoConfig(estimator="influence")) == {"influence"}
    assert needs(configs.OpefoConfig(estimator="influence_head")) == {"influence_head"}
    assert needs(configs.OpefoConfig()) == frozenset()

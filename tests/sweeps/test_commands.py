"""The commands of a study: what they know, that their page names them, and what a trial tells W&B."""

import argparse
from pathlib import Path

from steer_sweeps import cli, importance
from steer_sweeps.export import FORMATS
from steer_sweeps.tracking import wandb_variables


def test_the_command_line_knows_what_there_is() -> None:
    assert cli.FORMATS == FORMATS
    assert tuple(importance.EVALUATORS) == cli.EVALUATORS


def test_the_page_names_every_command_and_option() -> None:
    parser = argparse.ArgumentParser()
    cli.register(parser.add_subparsers())
    text = (Path(cli.__file__).parents[1] / "COMMANDS.md").read_text(encoding="utf-8")
    (sweep_command,) = choices(parser).values()
    for name, command in choices(sweep_command).items():
        (line,) = [one for one in text.splitlines() if one.startswith(f"    steer sweep {name} ")]
        options = [
            word for action in command._actions for word in action.option_strings if word not in ("-h", "--help")
        ]
        assert [word for word in options if f"{word}]" not in line and f"{word} " not in line] == []


def choices(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    (found,) = [one.choices for one in parser._actions if isinstance(one, argparse._SubParsersAction)]
    return dict(found)


def test_a_trial_tells_wandb_its_name_and_its_study() -> None:
    found = wandb_variables("band", "band-3-s1", "band-1f-t3-s1-a0", {})
    assert found["WANDB_RUN_GROUP"] == "band"
    assert found["WANDB_NAME"] == "band-3-s1"
    assert wandb_variables("band", "x", "y", {"WANDB_RUN_GROUP": "mine"})["WANDB_RUN_GROUP"] == "mine"

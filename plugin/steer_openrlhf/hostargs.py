"""OpenRLHF's command line with the plugin's flags added, known without importing OpenRLHF's stack.

OpenRLHF builds its parser under ``if __name__ == "__main__"`` of ``openrlhf/cli/train_ppo_ray.py``. Those statements
need argparse only, so they are taken from the installed source and run alone: its real parser, in milliseconds.
"""

import argparse
import ast
import importlib.util
import os
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from datetime import datetime
from functools import cache
from pathlib import Path
from types import CodeType, SimpleNamespace, UnionType
from typing import Any, Literal, NoReturn, Union, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from . import rules
from .config import Config, LaunchConfig
from .errors import ConfigError, mistakes_of, suggest
from .registry import HOST_LOSSES, Intervention, interventions
from .versions import installed, mistake

HOST_MODULE = "openrlhf.cli.train_ppo_ray"
LOSS_FLAG = "actor.policy_loss_type"
MODEL_FLAGS = ("actor.model_name_or_path", "reward.model_name_or_path", "critic.model_name_or_path")
CPU_DTYPE = "fp32"
NEGATIVE_NUMBER = re.compile(r"-(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


@dataclass(frozen=True)
class Resolved:
    """What the plugin understood of a command line. ``intervention`` is None for OpenRLHF's own losses."""

    launch: LaunchConfig
    loss: str
    intervention: Intervention | None = None
    config: Config | None = None
    flags: Mapping[str, Any] = dataclass_field(default_factory=dict, repr=False, compare=False)
    """Every flag that was given, the host's too, dotted."""

    def values(self) -> dict[str, Any]:
        """Dotted flag -> resolved value, for every flag of the launcher and of the chosen intervention."""
        values = dict(_flatten(self.launch.model_dump(), "steer."))
        if self.intervention and self.config:
            values |= dict(_flatten(self.config.model_dump(), f"{self.intervention.flag_prefix}."))
        return values


def host_parser() -> argparse.ArgumentParser:
    """OpenRLHF's real parser plus our flags. Raises :class:`ConfigError` when OpenRLHF is missing or unsupported."""
    if wrong := mistake("openrlhf", installed("openrlhf")):
        raise ConfigError([wrong])
    namespace: dict[str, Any] = {"argparse": argparse, "datetime": datetime, "os": os}
    exec(_parser_code(), namespace)
    parser: argparse.ArgumentParser = namespace["parser"]
    extend(parser)
    return parser


@cache
def _parser_code() -> CodeType:
    spec = importlib.util.find_spec("openrlhf") and importlib.util.find_spec(HOST_MODULE)
    assert spec is not None
    assert spec.origin is not None
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    return compile(ast.Module(_parser_statements(tree), []), spec.origin, "exec")


def _parser_statements(tree: ast.Module) -> list[ast.stmt]:
    main = [node for node in tree.body if isinstance(node, ast.If) and "__main__" in ast.dump(node.test)]
    for node in main:
        for index, statement in enumerate(node.body):
            if "parse_args" in ast.dump(statement):
                return node.body[:index]
    raise ConfigError([f"{HOST_MODULE} builds no parser under __main__: not the supported OpenRLHF (see steer doctor)"])


def extend(parser: argparse.ArgumentParser) -> None:
    """Add our flags, loss names and float32 to a parser OpenRLHF has built."""
    known = interventions()
    parser._negative_number_matcher = NEGATIVE_NUMBER  # argparse takes -2e-3 for a flag: --steer.band -2e-3 1e-3
    for action in parser._actions:
        if action.dest == LOSS_FLAG:
            action.choices = [*HOST_LOSSES, *known]
        elif action.dest == "ds.param_dtype" and action.choices is not None:
            action.choices = [*action.choices, CPU_DTYPE]
    groups: dict[str, list[type[Config]]] = {"steer": [LaunchConfig]}
    for one in known.values():
        models = groups.setdefault(one.flag_prefix, [])
        if one.config not in models:
            models.append(one.config)
    for prefix, models in groups.items():
        group = parser.add_argument_group(f"{prefix} (steer_openrlhf)")
        for model in models:
            _add_flags(group, model, prefix)


def _add_flags(group: argparse._ArgumentGroup, model: type[Config], prefix: str) -> None:
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Config):
            _add_flags(group, kind, f"{prefix}.{name}")
            continue
        help_text = (field.description or "").replace("%", "%%")
        group.add_argument(f"--{prefix}.{name}", default=None, help=help_text, **_argument(field))


def _argument(field: FieldInfo) -> dict[str, Any]:
    """argparse's type or choices for a pydantic field (``X | None`` counts as ``X``); bounds stay pydantic's."""
    optional = get_origin(field.annotation) in (Union, UnionType)
    kind = next(one for one in get_args(field.annotation) if one is not type(None)) if optional else field.annotation
    if get_origin(kind) is Literal:
        return {"choices": list(get_args(kind))}
    if get_origin(kind) is tuple and Ellipsis not in get_args(kind):
        return {"type": get_args(kind)[0], "nargs": len(get_args(kind))}
    if kind is bool:
        return {"type": _switch, "nargs": "?", "const": True}
    if kind in (int, float, str):
        return {"type": kind}
    raise TypeError(
        f"no flag can be made of a config field of type {kind}: use bool, int, float, str, Literal or tuple"
    )


def _switch(text: str) -> bool:
    """``--flag``, ``--flag true``, ``--flag false``: a default may be either."""
    if text.lower() not in ("true", "false"):
        raise ValueError(text)
    return text.lower() == "true"


def resolve(values: Mapping[str, Any]) -> Resolved:
    """The plugin's view of dotted flag -> value (None: not given). Raises :class:`ConfigError` with all mistakes."""
    given = {name: value for name, value in values.items() if value is not None}
    known = interventions()
    loss = str(given.get(LOSS_FLAG, "ppo"))
    chosen = known.get(loss)
    mistakes = []
    if chosen is None and loss not in HOST_LOSSES:
        names = [*HOST_LOSSES, *known]
        mistakes.append(
            f"{LOSS_FLAG} = {loss!r}: unknown; known: {', '.join(names)}; {suggest(loss, names)}".rstrip("; ")
        )
    mistakes += _model_mistakes(given)
    launch, wrong = _build(LaunchConfig, _section(given, "steer", LaunchConfig), "steer.")
    mistakes += wrong
    config = None
    if chosen:
        mistakes += rules.of_intervention(given, loss, chosen.own_loss)
        section = _section(given, chosen.flag_prefix, chosen.config)
        config, wrong = _build(chosen.config, section, f"{chosen.flag_prefix}.")
        mistakes += wrong
        needs = chosen.needs(config or chosen.config.model_construct(**section))  # also beside other mistakes
        mistakes += [one for need in sorted(needs) for one in rules.unsupported(need, given)]
    if loss in [*HOST_LOSSES, *known]:
        mistakes += _useless(given, chosen, loss, known.values())
    else:  # judge every flag that is there all the same: all mistakes at once
        for prefix, model in {(one.flag_prefix, one.config) for one in known.values()}:
            mistakes += _build(model, _section(given, prefix, model), f"{prefix}.")[1]
    if launch:
        mistakes += rules.of_entropy_bonus(given)
    if mistakes:
        raise ConfigError(mistakes)
    assert isinstance(launch, LaunchConfig)
    return Resolved(launch, loss, chosen, config, given)


def _section(given: Mapping[str, Any], prefix: str, model: type[Config]) -> dict[str, Any]:
    section: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        key, kind = f"{prefix}.{name}", field.annotation
        if isinstance(kind, type) and issubclass(kind, Config):
            section[name] = _section(given, key, kind)
        elif key in given:
            section[name] = given[key]
    return section


def _build(model: type[Config], section: dict[str, Any], where: str) -> tuple[Config | None, list[str]]:
    try:
        return model(**section), []
    except ValidationError as error:
        fields = [one for one in error.errors() if one["type"] != "value_error"]
        conflicts = [f"{where.rstrip('.')}: {one}" for one in model.conflicts(section)]
        return None, (mistakes_of(error, where, model.model_fields) if fields else []) + conflicts


def _model_mistakes(given: Mapping[str, Any]) -> list[str]:
    """A model given as a path that is not there. A name such as ``org/model`` is a hub id, and the hub's business."""
    mistakes = []
    for flag in MODEL_FLAGS:
        path = given.get(flag)
        if isinstance(path, str) and not HUB_ID.fullmatch(path) and not Path(path).expanduser().is_dir():
            mistakes.append(f"{flag} = {path!r}: no such folder; give a Hugging Face model folder or a hub id org/name")
    return mistakes


def _useless(
    given: Mapping[str, Any], chosen: Intervention | None, loss: str, known: Iterable[Intervention]
) -> list[str]:
    """Flags of an intervention that is not chosen: they would silently do nothing."""
    mine = set(_flag_names(LaunchConfig, "steer")) | (
        set(_flag_names(chosen.config, chosen.flag_prefix)) if chosen else set()
    )
    others = {name for one in known for name in _flag_names(one.config, one.flag_prefix)}
    if chosen is None and given.get("steer.base_loss", loss) != "ppo":
        others, mine = others | {"steer.base_loss"}, mine - {"steer.base_loss"}
    return [
        f"{name} = {given[name]!r}: has no effect with {LOSS_FLAG} = {loss}; leave it out, or choose its loss"
        for name in sorted(others - mine)
        if name in given
    ]


def _flag_names(model: type[Config], prefix: str) -> Iterable[str]:
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Config):
            yield from _flag_names(field.annotation, f"{prefix}.{name}")
        else:
            yield f"{prefix}.{name}"


def _flatten(nested: Mapping[str, Any], prefix: str) -> Iterable[tuple[str, Any]]:
    for name, value in nested.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


@cache
def _actions(known: tuple[str, ...], version: str | None) -> Mapping[str, argparse.Action]:
    """Dotted flag -> its action, for looking only. Built anew for other interventions or another OpenRLHF."""
    parser = host_parser()
    return {name[2:]: action for name, action in parser._option_string_actions.items() if name.startswith("--")}


def check_flags(flags: Mapping[str, Any]) -> list[str]:
    """Every mistake in dotted flag -> value: unknown names, wrong types or choices, and the plugin's own rules."""
    actions = _actions(tuple(interventions()), installed("openrlhf"))
    mistakes = []
    for name, value in flags.items():
        if name not in actions:
            mistakes.append(f"{name}: unknown flag; {suggest(name, actions)}".rstrip("; "))
        elif value is not None and name != LOSS_FLAG:
            mistakes += _value_mistakes(name, value, actions[name])
    try:
        resolve(flags)
    except ConfigError as error:
        told = [one.split(" ")[0] for one in mistakes]
        again = tuple(name + end for name in told for end in (" ", "."))  # pydantic's steer.band.0 beside steer.band
        mistakes += [one for one in error.mistakes if not one.startswith(again)]
    return mistakes


def _value_mistakes(name: str, value: Any, action: argparse.Action) -> list[str]:
    if isinstance(action, argparse._StoreTrueAction | argparse._StoreFalseAction) or action.type is _switch:
        if not isinstance(value, bool):
            return [f"{name} = {value!r}: is a switch; allowed: true, false"]
        stuck = value is False and action.default is True and action.type is not _switch
        return [f"{name} = False: OpenRLHF's switch is on by default; give its opposite flag"] if stuck else []
    many = action.nargs is not None
    if many != isinstance(value, list | tuple):
        wanted = f"a list of {action.nargs}" if many else "one value"
        return [f"{name} = {value!r}: takes {wanted}"]
    items = list(value) if many else [value]
    if isinstance(action.nargs, int) and len(items) != action.nargs:
        return [f"{name} = {value!r}: takes exactly {action.nargs} values"]
    mistakes = []
    for item in items:
        try:
            converted = action.type(str(item)) if callable(action.type) else item
        except ValueError:
            mistakes.append(f"{name} = {item!r}: is not of type {getattr(action.type, '__name__', action.type)}")
            continue
        if action.choices is not None and converted not in action.choices:
            mistakes.append(f"{name} = {item!r}: allowed: {', '.join(map(str, action.choices))}")
    return mistakes


def to_argv(flags: Mapping[str, Any]) -> list[str]:
    """Dotted flag -> value as a command line. ``True`` is a switch; ``None``, and ``False`` for a switch of OpenRLHF
    (whose default it is), are left out."""
    argv: list[str] = []
    ours = {one.flag_prefix for one in interventions().values()}
    for name, value in flags.items():
        if value is False and name.split(".")[0] in ours:
            argv += [f"--{name}", "false"]
            continue
        if value is None or value is False:
            continue
        argv.append(f"--{name}")
        if isinstance(value, list | tuple):
            argv += [str(item) for item in value]
        elif value is not True:
            argv.append(str(value))
    return argv


def parse(argv: list[str]) -> tuple[Resolved, dict[str, Any]]:
    """The plugin's view of a whole OpenRLHF command line, and every flag as OpenRLHF's real parser reads it.

    Raises:
        ConfigError: every mistake at once: unknown flags, wrong values, broken rules, a model that is not there.
    """
    parser = host_parser()
    if {"-h", "--help"} & set(argv):
        parser.parse_args(argv)
    given = _flags_of(argv, parser)
    mistakes = check_flags(given) + rules.of_probe(given)
    if not any(word == "--actor.model_name_or_path" or word.startswith("--actor.model_name_or_path=") for word in argv):
        mistakes.append("actor.model_name_or_path: is required; give a Hugging Face model folder or a hub id org/name")
    if mistakes:
        raise ConfigError(mistakes)
    flags = vars(parser.parse_args(argv))
    return resolve(flags), flags


def _flags_of(argv: list[str], parser: argparse.ArgumentParser) -> dict[str, Any]:
    """The line as dotted flag -> value, read leniently: what is wrong with it is for :func:`check_flags` to say. A flag
    OpenRLHF takes by another name (an abbreviation, an opposite) is left to its parser."""
    actions = parser._option_string_actions
    flags: dict[str, Any] = {}
    starts = [index for index, word in enumerate(argv) if word.startswith("--")]
    for start, end in zip(starts, [*starts[1:], len(argv)], strict=True):
        word, joined, text = argv[start].partition("=")
        values = [text] if joined else argv[start + 1 : end]
        action = actions.get(word)
        if action is None:
            if not any(option.startswith(word) for option in actions):
                flags[word[2:]] = values
        elif isinstance(action, argparse._StoreTrueAction) or (action.type is _switch and not values):
            flags[action.dest] = True
        elif action.type is _switch and values[0].lower() in ("true", "false"):
            flags[action.dest] = values[0].lower() == "true"
        elif not isinstance(action, argparse._StoreFalseAction):
            listed = action.nargs is not None and action.type is not _switch
            flags[action.dest] = values if listed or len(values) != 1 else values[0]
    return flags


def from_nested(args: SimpleNamespace) -> Resolved:
    """The plugin's view of OpenRLHF's nested ``args``, in a worker."""
    return resolve(dict(_flatten(nested(args), "")))


def nested(args: SimpleNamespace) -> dict[str, Any]:
    """OpenRLHF's nested namespace as nested dicts of plain values."""
    return {name: nested(value) if isinstance(value, SimpleNamespace) else value for name, value in vars(args).items()}


def fail(error: ConfigError) -> NoReturn:
    """Print every mistake and leave with exit code 2, as argparse does."""
    print(f"steer_openrlhf: {error}", file=sys.stderr)
    raise SystemExit(2)

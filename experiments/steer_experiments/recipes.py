"""Recipes as plain mappings: read YAML, follow ``base:``, merge, apply ``key=value``. Keys mean nothing here.

Merging: a mapping is merged into a mapping; everything else, a list and ``null`` too, replaces what was there.
"""

import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from steer_openrlhf.errors import ConfigError

Tree = dict[str, Any]

BASE = "base"
CHOICES = {"task": ("name",), "model": ("path", "builder")}
"""Sections that are one of several kinds. When the kind changes, the old kind's fields are dropped, not inherited."""


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which refuses a repeated key and reads ``1e-6`` as a number, as YAML 1.2 does."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        for position, key in enumerate(keys):
            if key in keys[:position]:
                raise yaml.constructor.ConstructorError(None, None, f"'{key}' is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {  # an own copy, or every SafeLoader of the process would change
    first: list(resolvers) for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def parse_yaml(text: str) -> Any:
    """One YAML document as plain data. Raises ``yaml.YAMLError``."""
    return yaml.load(text, Loader=_Loader)


def read_yaml(path: Path) -> Tree:
    """A YAML file that holds one mapping with text keys.

    Raises:
        ConfigError: no such file, not YAML, or not a mapping; the message names the file.
    """
    try:
        found = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}"]) from None
    except yaml.YAMLError as error:
        raise ConfigError([f"{path}: not valid YAML: {' '.join(str(error).split())}"]) from None
    if not isinstance(found, dict) or not _text_keys(found):
        raise ConfigError([f"{path}: must be one mapping with text keys, is {type(found).__name__}"])
    return found


def _text_keys(tree: Any) -> bool:
    return not isinstance(tree, dict) or all(isinstance(key, str) and _text_keys(tree[key]) for key in tree)


def read_recipe(path: Path, _open: Sequence[Path] = ()) -> Tree:
    """A recipe with every ``base:`` merged below it: a path relative to the file that names it, or a list of them, each
    laid over the one before.

    Raises:
        ConfigError: a file cannot be read, or bases form a cycle.
    """
    here = path.resolve()
    if here in _open:
        raise ConfigError([f"{path}: base files form a cycle: {' -> '.join(p.name for p in [*_open, here])}"])
    tree = read_yaml(path)
    base = tree.pop(BASE, None)
    if base is None:
        return tree
    bases = base if isinstance(base, list) else [base]
    if not bases or not all(isinstance(one, str) for one in bases):
        raise ConfigError([f"{path}: base = {base!r}: must be a relative path of a recipe, or a list of such paths"])
    below: Tree = {}
    for one in bases:
        below = merge(below, read_recipe(path.parent / one, [*_open, here]))
    return merge(below, tree)


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> Tree:
    """``above`` laid over ``below``; neither is changed."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        if isinstance(value, Mapping):
            keep = isinstance(old, Mapping) and not _new_kind(key, old, value)
            merged[key] = merge(old if keep and isinstance(old, Mapping) else {}, value)
        else:
            merged[key] = value
    return merged


def _new_kind(section: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    return any(kind in new and new[kind] != old.get(kind) for kind in CHOICES.get(section, ()))


def set_key(tree: Mapping[str, Any], key: str, value: Any) -> Tree:
    """``tree`` with the dotted ``key`` set. Raises ``ValueError`` where the path goes through a value."""
    parts = key.split(".")
    if not all(parts):
        raise ValueError(f"'{key}': a key is names with dots between them, as in steer.lambda_min")
    node: Any = tree
    for depth, part in enumerate(parts[:-1], start=1):
        node = node.get(part)
        if node is None:
            break
        if not isinstance(node, Mapping):
            raise ValueError(f"{key}: '{'.'.join(parts[:depth])}' is {node!r}, so it has no '{parts[depth]}'")
    for part in reversed(parts):
        value = {part: value}
    return merge(tree, value)


def set_keys(tree: Mapping[str, Any], values: Iterable[tuple[str, Any]]) -> tuple[Tree, list[str]]:
    """Set several dotted keys, in order; returns the new tree and every mistake."""
    result, mistakes = dict(tree), []
    for key, value in values:
        try:
            result = set_key(result, key, value)
        except ValueError as error:
            mistakes.append(str(error))
    return result, mistakes


def parse_overrides(overrides: Iterable[str]) -> tuple[list[tuple[str, Any]], list[str]]:
    """``["a.b=1", ...]`` as key and YAML value; returns the pairs and every mistake."""
    pairs, mistakes = [], []
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals:
            mistakes.append(f"'{text}': an override is key=value, as in steer.lambda_min=0.8")
            continue
        try:
            pairs.append((key.strip(), parse_yaml(value)))
        except yaml.YAMLError:
            mistakes.append(f"{key.strip()} = {value!r}: the value is not valid YAML")
    return pairs, mistakes


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Tree:
    """Nested mappings as dotted key -> value; an empty mapping vanishes."""
    flat: Tree = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat

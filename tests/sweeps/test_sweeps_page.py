"""``sweeps/SWEEPS.md``: every key stands in it with its default, and its examples are good files."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import steer_sweeps
import yaml
from pydantic import BaseModel
from pydantic_core import PydanticUndefined
from steer_sweeps.executors.config import LocalConfig, RayConfig, SlurmConfig
from steer_sweeps.named import known
from steer_sweeps.objective import Constraint, Objective
from steer_sweeps.spec import Baseline, Budget, Finalists, Sweep, WarmStart, load_sweep
from steer_sweeps.study import MAY_CHANGE

Make = Callable[..., Any]
PAGE = Path(steer_sweeps.__file__).parents[1] / "SWEEPS.md"
TEXT = PAGE.read_text(encoding="utf-8")
SECTIONS: dict[type[BaseModel], str] = {
    Sweep: "What a study says",
    Baseline: "What a study says",
    Budget: "What a study says",
    Finalists: "What a study says",
    Objective: "Objectives",
    Constraint: "Constraints",
    WarmStart: "Warm start",
    LocalConfig: "Executor",
    RayConfig: "Executor",
    SlurmConfig: "Executor",
}


def section(title: str) -> str:
    """From a heading to the next one."""
    found = re.search(rf"^##+ {title}$(.*?)(?=^##|\Z)", TEXT, flags=re.DOTALL | re.MULTILINE)
    assert found, title
    return found[1]


def row(text: str, key: str) -> str | None:
    """The table row whose first cell names the key."""
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    return next((line for line in rows if f"`{key}`" in line.split("|")[1]), None)


@pytest.mark.parametrize(
    ("config", "key"),
    [(config, key) for config in SECTIONS for key in config.model_fields],
    ids=lambda one: getattr(one, "__name__", one),
)
def test_every_key_is_on_the_page(config: type[BaseModel], key: str) -> None:
    text = section(SECTIONS[config])
    assert f"`{key}`" in text, f"SWEEPS.md, {SECTIONS[config]}: does not name {key}"
    default, shown = config.model_fields[key].default, row(text, key)
    plain = isinstance(default, int | float | str) and default is not PydanticUndefined
    if plain and shown and key != "name":
        assert f"`{str(default).lower()}`" in shown, f"SWEEPS.md, {key}: does not show its default {default}"


def test_the_sampler_and_the_pruner_that_nobody_chose() -> None:
    for key in ("sampler", "pruner"):
        assert f"`{yaml.safe_dump(Sweep.model_fields[key].default, default_flow_style=True).strip()}`" in str(
            row(TEXT, key)
        )


def test_every_sampler_and_pruner_is_on_the_page() -> None:
    for kind, title in (("sampler", "Samplers"), ("pruner", "Pruners")):
        assert all(f"`{name}`" in section(title) for name in known(kind)), title


def test_what_may_change_is_what_the_page_says() -> None:
    found = re.search(r"A study can be continued with another (.*?)\. With", TEXT, flags=re.DOTALL)
    assert found
    assert set(re.findall(r"`(\w+)`", found[1])) == set(MAY_CHANGE)


def blocks() -> list[dict[str, Any]]:
    return [yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", TEXT, flags=re.DOTALL)]


def test_the_whole_example_is_a_good_sweep(tmp_path: Path) -> None:
    tree = blocks()[0]
    recipe = (PAGE.parent / "x" / tree["recipe"]).resolve()  # as from runs/<somewhere>
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(tree | {"recipe": str(recipe)}))
    found = load_sweep(path)
    assert found.seeds == (0, 1, 2, 3, 4)
    assert [str(one) for one in found.typed_relations] == ["steer.band.0 < steer.band.1"]


def test_the_other_examples_fit_a_sweep(sweep_file: Make) -> None:
    assert len(blocks()) == 3
    for part in blocks()[1:]:
        changes = (
            {"objective": None} if "objectives" in part else {"overrides": {"steer.lambda_min": None}, "enqueue": []}
        )
        load_sweep(sweep_file(**changes, **part))

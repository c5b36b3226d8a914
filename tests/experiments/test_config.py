"""Recipes, overrides and the checks of an experiment. Everything here is light: nothing of the stack is imported."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from steer_experiments.checks import _HOST_DEFAULTS, expected_steps, verify_host_args
from steer_experiments.config import Experiment, Prepared, flag_of, flags, load_recipe
from steer_experiments.recipes import flatten, merge, parse_overrides, read_recipe, read_yaml, set_key
from steer_experiments.tasks import PreparedTask
from steer_openrlhf.errors import ConfigError
from steer_openrlhf.hostargs import host_parser, to_argv

RECIPES = Path(__file__).parents[2] / "experiments" / "recipes" / "tiny"
STEER = RECIPES / "steer.yaml"
HEAVY = ("torch", "ray", "vllm", "deepspeed", "openrlhf", "transformers", "reasoning_gym", "datasets")

names = st.text("abcdxyz", min_size=1, max_size=3)
leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
trees = st.recursive(
    st.dictionaries(names, leaves, max_size=4), lambda inner: st.dictionaries(names, leaves | inner, max_size=4)
)


def mistakes(*overrides: str, recipe: Path = STEER) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_recipe(recipe, overrides)
    return caught.value.mistakes


# -- merging and overriding --------------------------------------------------------------------------------------------


@given(trees, trees)
def test_merge_keeps_what_is_above_and_changes_neither(below: dict[str, Any], above: dict[str, Any]) -> None:
    before = repr(below), repr(above)
    merged = merge(below, above)
    assert flatten(merged) | flatten(above) == flatten(merged)
    assert (repr(below), repr(above)) == before


@given(trees)
def test_merge_with_nothing_is_the_same(tree: dict[str, Any]) -> None:
    assert merge(tree, {}) == tree == merge({}, tree)


@given(st.lists(names, min_size=1, max_size=4).map(".".join), leaves)
def test_a_set_key_is_there(key: str, value: Any) -> None:
    assert flatten(set_key({}, key, value)) == {key: value}


@given(leaves)
def test_override_values_are_yaml(value: Any) -> None:
    (pair,), wrong = parse_overrides(
        [f"a.b={yaml.safe_dump(value, width=10**6).removesuffix('...' + chr(10)).strip()}"]
    )
    assert not wrong
    assert pair == ("a.b", value)


def test_scientific_notation_is_a_number() -> None:
    assert parse_overrides(["a=1e-6", "b=-2E+3", "c=.5e1"])[0] == [("a", 1e-6), ("b", -2000.0), ("c", 5.0)]


def test_another_model_replaces_the_builder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    experiment = load_recipe(STEER, [f"model.path={tmp_path}"])
    assert experiment.model.model_dump() == {"path": str(tmp_path)}


@given(overrides=st.lists(st.sampled_from(["steer.side=rising", "seed=3", "openrlhf.actor.adam.lr=1e-5"]), max_size=4))
@settings(max_examples=10)
def test_resolved_config_is_a_recipe_of_the_same_experiment(overrides: list[str], tmp_path_factory: Any) -> None:
    experiment = load_recipe(STEER, overrides)
    path = tmp_path_factory.mktemp("resolved") / "config.yaml"
    path.write_text(yaml.safe_dump(experiment.resolved()))
    assert load_recipe(path) == experiment


# -- files -------------------------------------------------------------------------------------------------------------


def test_base_files_are_followed_and_a_cycle_is_named(tmp_path: Path) -> None:
    (tmp_path / "low").mkdir()
    (tmp_path / "low" / "a.yaml").write_text("x: {y: 1, z: 1}\n")
    (tmp_path / "b.yaml").write_text("base: low/a.yaml\nx: {y: 2}\n")
    assert read_recipe(tmp_path / "b.yaml") == {"x": {"y": 2, "z": 1}}
    (tmp_path / "low" / "a.yaml").write_text("base: ../b.yaml\n")
    with pytest.raises(ConfigError, match=r"cycle: b\.yaml -> a\.yaml -> b\.yaml"):
        read_recipe(tmp_path / "b.yaml")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("- 1\n", "must be one mapping"),
        ("a: [\n", "not valid YAML"),
        ("a: 1\na: 2\n", "'a' is given twice"),
        ("1: 2\n", "text keys"),
        ("base: [1]\n", "must be a relative path of a recipe, or a list"),
        ("base: gone.yaml\n", "gone.yaml: cannot be read"),
        ("a: !!python/object/apply:os.getcwd []\n", "not valid YAML"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, text: str, wanted: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=wanted) as caught:
        load_recipe(path)
    assert str(tmp_path) in str(caught.value)


ARMS = Path(__file__).parents[2] / "benchmarks" / "collapse-arms.yaml"
RUNS = [path for path in sorted(RECIPES.glob("*.yaml")) if "recipe" not in read_recipe(path)]  # the others are sweeps


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_every_recipe_in_the_project_is_well(path: Path) -> None:
    assert load_recipe(path).task.name == "tiny_arithmetic"  # type: ignore[attr-defined]


@pytest.mark.parametrize("arm", read_yaml(ARMS))
def test_every_arm_of_the_collapse_is_well(arm: str) -> None:
    words = [f"{key}={json.dumps(value)}" for key, value in read_yaml(ARMS)[arm].items()]
    experiment = load_recipe(RECIPES / "collapse.yaml", words)
    assert experiment.loss == {"grpo": "ppo", "clip-higher": "ppo", "steer-band": "steer"}.get(
        arm, arm.replace("-", "_")
    )


# -- mistakes ----------------------------------------------------------------------------------------------------------

BAD = {
    "sed=1": "sed: unknown key; did you mean 'seed'?",
    "ray.num_cpuss=2": "ray.num_cpuss: unknown key; did you mean 'num_cpus'?",
    "task.train_sizee=3": "task.train_sizee: unknown key; did you mean 'train_size'?",
    "task.name=tiny": "task.name = 'tiny': unknown; known: math, tiny_arithmetic",
    "model.builder=tiny_qwen3": "model.builder = 'tiny_qwen3': unknown; known: tiny_qwen2; did you mean 'tiny_qwen2'?",
    "model.path=/nowhere/model": "model.path = '/nowhere/model': does not exist",
    "openrlhf.actor.adam.lrr=1": "openrlhf.actor.adam.lrr: unknown flag; did you mean 'actor.adam.lr'?",
    "openrlhf.actor.adam.lr=fast": "openrlhf.actor.adam.lr = 'fast': is not of type float",
    "openrlhf.actor.policy_loss_type=steeer": "openrlhf.actor.policy_loss_type = 'steeer': unknown; known: ppo, gspo",
    "openrlhf.data.prompt_dataset=x": "openrlhf.data.prompt_dataset: is set by the run itself; it comes from the",
    "steer.run_dir=x": "steer.run_dir: is set by the run itself",
    "steer.ray.num_cpus=1": "steer.ray.num_cpus: is set by the run itself; set it in the section ray",
    "steer.lambda_min=1.5": "steer.lambda_min = 1.5: input should be less than or equal to 1",
    "steer.k=2": "steer: k = 2 and lambda_min = 0.7 are both given",
    "env.MY_API_KEY=abc": "env.MY_API_KEY: looks like a secret",
    "eval.n_samples=some": "eval.n_samples = 'some': input should be a valid integer",
    "stall_minutes=.inf": "stall_minutes = inf",
    "no_equals_sign": "'no_equals_sign': an override is key=value",
    "seed.x=1": "seed.x: 'seed' is 0, so it has no 'x'",
    "model=5": "model = 5: must be a mapping",
}


@pytest.mark.parametrize("override", BAD)
def test_a_mistake_names_the_key_the_value_and_the_remedy(override: str) -> None:
    found = mistakes(override)
    assert len(found) == 1
    assert found[0].startswith(BAD[override])


def test_all_mistakes_come_at_once() -> None:
    together = [one for one in BAD if not one.startswith(("model=", "model.builder", "task.name", "seed.x"))]
    together = [one for one in together if one != "steer.k=2"] + ["steer.k=2"]
    found = "\n".join(mistakes(*together))
    for override in together:
        wanted = BAD[override].replace("lambda_min = 0.7", "lambda_min = 1.5")
        assert wanted in found, found


def test_a_secret_is_not_repeated() -> None:
    assert "hunter2" not in "\n".join(mistakes("env.HF_TOKEN=hunter2"))


def test_steer_keys_without_steer_are_refused() -> None:
    assert any("has no effect" in one for one in mistakes("openrlhf.actor.policy_loss_type=ppo"))
    assert load_recipe(STEER, ["openrlhf.actor.policy_loss_type=ppo", "steer=null"]).steer == {}


# -- flags -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def prepared(tmp_path: Path) -> Prepared:
    experiment = load_recipe(STEER)
    files = {name: tmp_path / f"{name}.jsonl" for name in ("train", "validation", "test", "reward_func")}
    sizes = {"train": 2048, "validation": 128, "test": 200}
    task = PreparedTask(
        **files, input_key="input", label_key="label", expected_n=sizes, content_hash="0", config=experiment.task
    )
    return Prepared(task, str(tmp_path / "model"))


def test_flags_are_understood_by_the_hosts_parser(prepared: Prepared, tmp_path: Path) -> None:
    experiment = load_recipe(STEER, ["seed=5", "openrlhf.actor.eps_clip_low_high=[0.1, 0.3]"])
    wanted = flags(experiment, prepared, tmp_path)
    parsed = vars(host_parser().parse_args(to_argv(wanted)))
    assert (parsed["train.seed"], parsed["steer.lambda_min"], parsed["steer.k"]) == (5, 0.7, None)
    assert parsed["actor.eps_clip_low_high"] == [0.1, 0.3]
    assert parsed["eval.dataset"].endswith("validation.jsonl")  # never the test split
    assert not any("test.jsonl" in str(value) for value in parsed.values())
    assert verify_host_args(wanted, _nested(parsed)) == []


def _nested(flat: dict[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        tree = set_key(tree, key, value)
    return tree


@pytest.mark.parametrize(
    ("key", "flag"),
    [
        ("openrlhf.actor.adam.lr", "actor.adam.lr"),
        ("steer.k", "steer.k"),
        ("seed", "train.seed"),
        ("ray.num_cpus", None),
        ("name", None),
        ("steer", None),
    ],
)
def test_flag_of(key: str, flag: str | None) -> None:
    assert flag_of(key) == flag


# -- what the training used --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (0.7, 0.7),
        ("1e-6", 1e-6),
        (1, 1.0),
        ([0.2, 0.28], [0.2, 0.28]),
        (True, True),
        (-1, float("inf")),
        ("r.py", ["r.py"]),
    ],
)
def test_equal_values_agree(wanted: Any, found: Any) -> None:
    assert verify_host_args({"a.b": wanted}, {"a": {"b": found}}) == []


@pytest.mark.parametrize(
    ("wanted", "found"), [(0.7, 0.8), (True, False), (0, False), ([1], [1, 2]), ("x", "y"), ("x", 1.0), (1, None)]
)
def test_different_values_are_named(wanted: Any, found: Any) -> None:
    (mistake,) = verify_host_args({"a.b": wanted}, {"a": {"b": found}})
    assert mistake == f"a.b = {wanted!r}, but the training used {found!r}"


def test_a_value_that_did_not_arrive_is_named() -> None:
    assert verify_host_args({"a.b": 1, "c": None}, {"a": 3}) == ["a.b = 1 did not reach the training"]


def test_assumed_defaults_are_the_hosts() -> None:
    parser = host_parser()
    assert {name: parser.get_default(name) for name in _HOST_DEFAULTS} == _HOST_DEFAULTS


@pytest.mark.parametrize(
    ("overrides", "steps"),
    [
        ((), 24),
        (("openrlhf.data.max_samples=100",), 2),
        (("openrlhf.train.num_episodes=3",), 72),
        (("openrlhf.data.max_samples=100000",), 32),
        (("openrlhf.algo.dynamic_filtering_enable=true",), None),
    ],
)
def test_expected_steps(overrides: tuple[str, ...], steps: int | None) -> None:
    assert expected_steps(_with_64_prompts(overrides), 2048) == steps


def _with_64_prompts(overrides: tuple[str, ...]) -> Experiment:
    fixed = ["openrlhf.rollout.batch_size=64", "openrlhf.data.max_samples=1536", "openrlhf.train.num_episodes=1"]
    return load_recipe(STEER, [*fixed, *overrides])


# -- the command -------------------------------------------------------------------------------------------------------


def fresh(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    "module", ["steer_experiments.config", "steer_experiments.train", "steer_sweeps.cli", "steer_sweeps.controller"]
)
def test_importing_loads_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print([m for m in {HEAVY} if m in sys.modules])"
    assert fresh("-c", code).stdout.strip() == "[]"


def test_the_command_reports_all_mistakes_without_a_traceback_or_a_run(tmp_path: Path) -> None:
    words = ["train", str(STEER), "steer.lambda_min=1.5", "--run-dir", str(tmp_path / "run"), "sed=1", "steer.k=2"]
    done = fresh("-m", "steer_sweeps", *words, "model.path=./gone", "openrlhf.actor.policy_loss_type=stear")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    for word in ("5 mistakes", "lambda_min = 1.5", "both given", "sed:", "./gone", "'stear'"):
        assert word in done.stderr
    assert not (tmp_path / "run").exists()

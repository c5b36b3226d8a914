"""Every paper recipe through OpenRLHF's own parser and validation, and what it would assert before it asks for GPUs."""

import ast
import importlib.util
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from steer_experiments.config import Experiment, Prepared, flags, load_recipe, ray_flags
from steer_experiments.recipes import flatten, read_recipe
from steer_experiments.tasks import PreparedTask
from steer_experiments.tasks.math import split
from steer_openrlhf.errors import ConfigError
from steer_openrlhf.hostargs import HOST_MODULE, parse, to_argv
from steer_sweeps.spec import load_sweep

PAPER = Path(__file__).parents[2] / "experiments" / "recipes" / "paper"
RECIPES = sorted(PAPER.glob("qwen*/*.yaml"))
MODELS = ("qwen2.5-math-7b", "qwen2.5-math-1.5b", "qwen2.5-14b")
ASKED_FOR = {  # issue 5, by file name
    *("grpo", "clip_higher", "entropy_bonus", "entropy_advantage", "clip_cov", "kl_cov", "w_reinforce"),
    *("forking_tokens", "opo", "rloo", "steer_paper", "steer_released", "steer_band", "on_policy", "uniform"),
}


def names(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


@pytest.fixture(scope="module")
def host_checks() -> Callable[[Namespace], Namespace]:
    """OpenRLHF's statements between parsing and training, run as they are installed."""
    spec = importlib.util.find_spec(HOST_MODULE)
    assert spec is not None
    assert spec.origin is not None
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    main = next(node for node in tree.body if isinstance(node, ast.If) and "__main__" in ast.dump(node.test))
    start = next(at for at, node in enumerate(main.body) if "parse_args" in ast.dump(node)) + 1
    end = next(at for at, node in enumerate(main.body) if ast.unparse(node) == "train(args)")
    checks = compile(ast.Module(main.body[start:end], []), spec.origin, "exec")

    def run(args: Namespace) -> Namespace:
        namespace: dict[str, Any] = {"args": args}
        exec(checks, namespace)
        checked: Namespace = namespace["args"]
        return checked

    return run


def argv(experiment: Experiment, tmp_path: Path) -> list[str]:
    """The command line of the run, its task in a place of its own: nothing has to be prepared for that."""
    paths = [tmp_path / name for name in ("train.jsonl", "validation.jsonl", "test.jsonl", "reward_math.py")]
    task = PreparedTask(*paths, "input", "label", {"train": 17270, "validation": 128, "test": 0}, "", experiment.task)
    prepared = Prepared(task, experiment.model.model_dump()["path"])
    return to_argv(flags(experiment, prepared, tmp_path / "run") | ray_flags(experiment, None))


@pytest.mark.parametrize("path", RECIPES, ids=names)
def test_openrlhf_takes_it(path: Path, tmp_path: Path, host_checks: Callable[[Namespace], Namespace]) -> None:
    experiment = load_recipe(path)
    line = argv(experiment, tmp_path)
    resolved, parsed = parse(line)
    args = host_checks(Namespace(**parsed))
    assert resolved.loss == experiment.loss == args.actor.policy_loss_type
    gpus = args.actor.num_nodes * args.actor.num_gpus_per_node
    assert args.train.colocate_all
    assert (
        gpus == args.vllm.num_engines * args.vllm.tensor_parallel_size == experiment.ray.num_gpus
    )  # asserted by train()
    samples = args.rollout.batch_size * args.rollout.n_samples_per_prompt
    assert samples % args.train.batch_size == 0, "an update would be short"
    assert args.train.batch_size % (args.train.micro_batch_size * gpus) == 0, "DeepSpeed would round accumulation down"
    assert args.data.max_samples % args.rollout.batch_size == 0, "the last rollout of an episode would be short"
    assert args.data.max_len >= 1024 + args.rollout.max_new_tokens, "the paper's prompts have up to 1024 tokens"


def test_every_model_has_every_method() -> None:
    methods = {path.stem for path in (PAPER / "methods").glob("*.yaml")}
    assert methods >= ASKED_FOR
    for model in MODELS:
        assert {path.stem for path in (PAPER / model).glob("*.yaml")} == methods
    assert {path.parent.name for path in RECIPES} - set(MODELS) == {
        "qwen2.5-math-7b-extreme",
        "qwen2.5-math-7b-1gpu",
        "qwen2.5-math-1.5b-1gpu",
    }


@pytest.mark.parametrize("path", RECIPES, ids=names)
def test_a_recipe_is_its_fragments_and_its_name(path: Path) -> None:
    """No setting hides in one of the many files: each only puts fragments together, the ones its place says."""
    tree = yaml.safe_load(path.read_text())
    assert tree.keys() == {"base", "name"}
    assert tree["name"] == f"{path.parent.name}-{path.stem}"
    model = next(name for name in MODELS if path.parent.name.startswith(name))
    extra = {"-extreme": ["../clipping/extreme.yaml"], "-1gpu": ["../layouts/1gpu.yaml"], "": []}
    parts = ["../base.yaml", f"../models/{model}.yaml", f"../methods/{path.stem}.yaml"]
    assert tree["base"] == parts + extra[path.parent.name.removeprefix(model)]


def test_the_released_scripts_values() -> None:
    """run/run_exp.sh of github.com/zz-haooo/STEER, read by hand."""
    found = flatten(load_recipe(PAPER / "qwen2.5-math-7b" / "steer_released.yaml").resolved())
    wanted = {
        "model.path": "Qwen/Qwen2.5-Math-7B",
        "openrlhf.rollout.batch_size": 512,
        "openrlhf.rollout.n_samples_per_prompt": 8,
        "openrlhf.rollout.max_new_tokens": 3072,
        "openrlhf.train.batch_size": 32 * 8,
        "openrlhf.train.micro_batch_size": 8,
        "openrlhf.train.num_episodes": 10,
        "openrlhf.actor.adam.lr": 1e-6,
        "openrlhf.actor.eps_clip_low_high": [0.2, 0.28],
        "openrlhf.actor.dual_clip": 10.0,
        "openrlhf.algo.kl.init_coef": 0,
        "openrlhf.vllm.gpu_memory_utilization": 0.6,
        "steer.lambda_min": 0.8,
        "steer.norm_floor": 0.02,
        "steer.scope": "microbatch",
        "steer.estimator": "reference",
        "ray.num_gpus": 8,
    }
    assert {key: found[key] for key in wanted} == wanted
    extreme = flatten(load_recipe(PAPER / "qwen2.5-math-7b-extreme" / "steer_released.yaml").resolved())
    assert {key for key in found if found[key] != extreme[key]} == {"name", "openrlhf.actor.eps_clip_low_high"}
    assert extreme["openrlhf.actor.eps_clip_low_high"] == [0.99, 5.0]


def test_the_on_policy_control_has_one_update_a_rollout() -> None:
    openrlhf = load_recipe(PAPER / "qwen2.5-math-7b" / "on_policy.yaml").openrlhf
    assert (
        openrlhf["train"]["batch_size"]
        == openrlhf["rollout"]["batch_size"] * openrlhf["rollout"]["n_samples_per_prompt"]
    )
    assert openrlhf["train"]["max_epochs"] == 1


def test_a_layout_laid_over_a_recipe_is_the_recipe_of_that_layout() -> None:
    over = load_recipe(PAPER / "qwen2.5-math-1.5b" / "steer.yaml", [str(PAPER / "layouts" / "1gpu.yaml"), "name=x"])
    own = load_recipe(PAPER / "qwen2.5-math-1.5b-1gpu" / "steer.yaml", ["name=x"])
    assert over == own
    assert over != load_recipe(PAPER / "qwen2.5-math-1.5b" / "steer.yaml", ["name=x"])


def test_a_layer_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match=r"gone\.yaml: cannot be read"):
        load_recipe(PAPER / "qwen2.5-14b" / "grpo.yaml", ["gone.yaml"])


def test_bases_are_laid_over_each_other_in_order(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("x: {one: 1, two: 1}\nmodel: {path: a}\n")
    (tmp_path / "b.yaml").write_text("x: {two: 2, three: 2}\nmodel: {builder: b}\n")
    (tmp_path / "c.yaml").write_text("base: [a.yaml, b.yaml]\nx: {three: 3}\n")
    assert read_recipe(tmp_path / "c.yaml") == {"x": {"one": 1, "two": 2, "three": 3}, "model": {"builder": "b"}}


@pytest.mark.parametrize("path", sorted((PAPER / "sweeps").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_sweep_loads_and_its_baselines_run(path: Path, tmp_path: Path) -> None:
    sweep = load_sweep(path)
    for baseline in sweep.baselines:
        assert parse(argv(sweep.experiment(baseline.name, baseline.set), tmp_path))
    watched = split([{"input": "1 + 1"}, {"input": "1 + 2"}], validation_size=1)["validation"][0]["datasource"]
    assert sweep.objective is not None
    assert sweep.objective.metric == f"eval/eval_{watched}_pass1"  # as OpenRLHF names what it evaluates


def test_the_readme_names_every_recipe_folder_and_method() -> None:
    text = (PAPER / "README.md").read_text()
    for name in {path.parent.name for path in RECIPES} | {path.stem for path in RECIPES}:
        assert f"`{name}`" in text, name

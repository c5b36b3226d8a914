"""Real vLLM on a real checkpoint: generate, be interrupted, continue, and have every sample exactly once."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from steer_analysis.records import load_evaluation
from steer_experiments.config import load_recipe
from steer_experiments.run_dir import write_yaml

pytestmark = pytest.mark.e2e
RECIPE = Path(__file__).parents[2] / "experiments" / "recipes" / "tiny" / "steer.yaml"
SMALL = ["task.test_size=24", "task.validation_size=4", "task.train_size=8", "eval.n_samples=2"]
N = 48

BUILD = """
import sys, torch
from steer_experiments.base_model import TinyQwen2Config, build_network, build_tokenizer
torch.manual_seed(0)
tokenizer = build_tokenizer()
network = build_network(TinyQwen2Config(), tokenizer)
for folder in sys.argv[1:]:
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
"""

EVALUATE = """
import shutil, sys
from pathlib import Path
from steer_analysis.evaluate import evaluate_runs
first, again, broken, missing, log = map(Path, sys.argv[1:])
def go(*runs):
    for outcome in evaluate_runs(runs):
        with log.open("a") as file:
            file.write(f"{outcome.run.name}|{outcome.state}|{outcome.samples}|{outcome.generated}|{outcome.reason}\\n")
go(first, broken, missing, again)   # one engine after the other, also after one that could not be built
records = first / "eval" / "tiny_test.jsonl"
lines = records.read_bytes().splitlines(keepends=True)
records.write_bytes(b"".join(lines[:20]) + lines[20][:37])   # killed while writing line 21
go(first)
go(first)
"""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[str]], list[dict[str, Any]]]:
    """Four runs evaluated in one process; the first is cut short in between and evaluated again, twice."""
    folder = tmp_path_factory.mktemp("runs")
    environment = os.environ | {"STEER_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    runs = [folder / name for name in ("first", "again", "broken", "missing")]
    for run in runs:
        run.mkdir()
        write_yaml(run / "config.yaml", load_recipe(RECIPE, SMALL).resolved())
    checkpoints = [run / "checkpoint" for run in runs[:3]]
    subprocess.run([sys.executable, "-c", BUILD, *checkpoints], check=True, env=environment)
    config = runs[2] / "checkpoint" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"hidden_size": 60}))  # not the weights' size
    subprocess.run([sys.executable, "-c", EVALUATE, *runs, folder / "log"], check=True, env=environment, timeout=300)
    before = [json.loads(line) for line in (runs[1] / "eval" / "tiny_test.jsonl").read_text().splitlines()]
    return folder, [line.split("|") for line in (folder / "log").read_text().splitlines()], before


def test_states_and_counts(outcomes: Any) -> None:
    _, log, _ = outcomes
    assert [line[:2] for line in log[:4]] == [
        ["first", "evaluated"],
        ["broken", "failed"],
        ["missing", "failed"],
        ["again", "evaluated"],
    ]
    assert "there is no checkpoint" in log[2][4]
    assert log[0][2:4] == [str(N), str(N)]


def test_interrupted_evaluation_generates_only_what_is_missing(outcomes: Any) -> None:
    folder, log, _ = outcomes
    assert log[4][:4] == ["first", "evaluated", str(N), str(N - 20)]
    assert log[5][:4] == ["first", "already evaluated", str(N), "0"]
    records = load_evaluation(folder / "first" / "eval", "tiny_test").records
    assert len({record.key for record in records}) == len(records) == N


def test_each_request_has_its_own_fixed_seed(outcomes: Any) -> None:
    """The same weights give the same answers, whether in one go or after an interruption."""
    folder, _, again = outcomes
    first = {record.key: record for record in load_evaluation(folder / "first" / "eval", "tiny_test").records}
    same = [first[line["item"], line["sample"]].output == line["output"] for line in again]
    assert len(same) == N
    assert sum(same) >= N - 1  # a batch of another size may round one close draw to the other side
    assert len({line["seed"] for line in again}) == N
    assert len({line["output"] for line in again}) > N / 2


def test_truncated_means_cut_at_the_limit(outcomes: Any) -> None:
    folder, _, _ = outcomes
    records = load_evaluation(folder / "first" / "eval", "tiny_test").records
    cut = [record for record in records if record.verdict == "truncated"]
    assert cut, "a random model runs into the limit sometimes"
    assert all("cut at 24 tokens" in str(record.reason) for record in cut)
    assert all(len(record.output) < 24 for record in records if record.verdict != "truncated")  # one character a token

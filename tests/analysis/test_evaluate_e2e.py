"""Real vLLM on a real checkpoint: generate, be interrupted, continue, and have every sample exactly once."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
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
DATA = Path(__file__).parents[3] / "shared" / "data"

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
from steer_analysis.plan import Options
first, again, broken, missing, greedy, log = map(Path, sys.argv[1:])
def go(*runs, **options):
    for outcome in evaluate_runs(runs, Options(**options)):
        with log.open("a") as file:
            file.write(f"{outcome.run.name}|{outcome.state}|{outcome.samples}|{outcome.generated}|{outcome.reason}\\n")
go(first, broken, missing, again)   # one engine after the other, also after one that could not be built
records = first / "eval" / "tiny_test.jsonl"
lines = records.read_bytes().splitlines(keepends=True)
records.write_bytes(b"".join(lines[:20]) + lines[20][:37])   # killed while writing line 21
go(first)
go(first)
go(greedy, temperature=0.0, suites=["tiny_test", "tiny_validation"])   # two suites, one engine
"""

KILLED = """
import sys
from pathlib import Path
from steer_analysis import evaluate, generate
evaluate.SAVE_SECONDS, generate._SEQUENCES = 0.0, 8   # many small steps, each saved: there is time to be killed
evaluate.evaluate_runs([Path(sys.argv[1])], evaluate.Options(n_samples=8))
"""


def environment_of(folder: Path) -> dict[str, str]:
    return os.environ | {"STEER_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[str]], list[dict[str, Any]]]:
    """Runs evaluated in one process; the first is cut short in between and evaluated again, twice."""
    folder = tmp_path_factory.mktemp("runs")
    environment = environment_of(folder)
    runs = [folder / name for name in ("first", "again", "broken", "missing", "greedy", "killed")]
    for run in runs:
        run.mkdir()
        write_yaml(run / "config.yaml", load_recipe(RECIPE, SMALL).resolved())
    checkpoints = [run / "checkpoint" for run in runs if run.name != "missing"]
    subprocess.run([sys.executable, "-c", BUILD, *checkpoints], check=True, env=environment)
    config = runs[2] / "checkpoint" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"hidden_size": 60}))  # not the weights' size
    subprocess.run(
        [sys.executable, "-c", EVALUATE, *runs[:5], folder / "log"], check=True, env=environment, timeout=300
    )
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
    assert all(record.tokens == 24 for record in cut)


def test_greedy_is_one_sample_and_one_engine_serves_two_suites(outcomes: Any) -> None:
    folder, log, _ = outcomes
    assert [line[:3] for line in log[6:]] == [["greedy", "evaluated", "24"], ["greedy", "evaluated", "4"]]
    whole = load_evaluation(folder / "greedy" / "eval", "tiny_test")
    assert (whole.meta.protocol.temperature, whole.meta.protocol.n_samples) == (0.0, 1)
    assert whole.meta.context["generation"]["device"] == "cpu"
    assert whole.meta.context["generation"]["seconds"] > 0
    again = load_evaluation(folder / "greedy" / "eval", "tiny_validation")
    assert {record.item for record in again.records}.isdisjoint(record.item for record in whole.records)


def test_kill_9_loses_nothing_that_was_saved_and_two_engines_go_on(outcomes: Any) -> None:
    folder, _, _ = outcomes
    run, total = folder / "killed", 24 * 8
    records = run / "eval" / "tiny_test.jsonl"
    victim = subprocess.Popen([sys.executable, "-c", KILLED, run], env=environment_of(folder), start_new_session=True)
    end = time.monotonic() + 200
    while (not records.exists() or records.read_bytes().count(b"\n") < 20) and time.monotonic() < end:
        assert victim.poll() is None, "it ended before it could be killed"
        time.sleep(0.005)
    os.killpg(victim.pid, signal.SIGKILL)
    victim.wait()
    saved = records.read_bytes()
    whole = saved[: saved.rfind(b"\n") + 1]
    kept = whole.count(b"\n")
    assert 20 <= kept < total

    words = ["eval", run, "--n", "8", "--gpus", "2"]
    command = [sys.executable, "-m", "steer_sweeps", *map(str, words)]
    done = subprocess.run(command, env=environment_of(folder), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"{total} samples ({total - kept} generated, {kept} kept)" in done.stdout
    assert records.read_bytes().startswith(whole)
    evaluation = load_evaluation(run / "eval", "tiny_test")
    assert len({record.key for record in evaluation.records}) == len(evaluation.records) == total
    assert evaluation.meta.context["generation"]["engines"] == 2
    alone = {record.key: record for record in load_evaluation(folder / "first" / "eval", "tiny_test").records}
    both = [record for record in evaluation.records if record.key in alone]
    assert len(both) == N
    assert all(record.seed == alone[record.key].seed for record in both)
    assert sum(record.output == alone[record.key].output for record in both) >= N - 2  # rounding, as above


@pytest.mark.skipif(not (DATA / "aime24.parquet").is_file(), reason=f"{DATA} is not there")
def test_the_real_benchmarks_from_the_file_to_the_count(tmp_path: Path) -> None:
    """Show 2 in small: three of the six real suites through a tiny model that knows no letters; nearly all is wrong."""
    model, out = tmp_path / "model", tmp_path / "out"
    environment = environment_of(tmp_path)
    subprocess.run([sys.executable, "-c", BUILD, model], check=True, env=environment)
    config = model / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"max_position_embeddings": 4096}))
    suites = {"aime24": 30, "aime25": 30, "amc23": 40}
    words = ["eval", "--model", model, "--output", out, "--data-dir", DATA, "--max-new-tokens", "8", "--n", "1"]
    words += ["--n", "aime24=2", *(word for name in suites for word in ("--suite", name))]
    command = [sys.executable, "-m", "steer_sweeps", *map(str, words)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    for name, items in suites.items():
        evaluation = load_evaluation(out / "eval", name)
        protocol = evaluation.meta.protocol
        assert len({record.item for record in evaluation.records}) == items
        assert len(evaluation.records) == protocol.expected_records == items * (2 if name == "aime24" else 1)
        verdicts = Counter(record.verdict for record in evaluation.records)
        assert sum(verdicts.values()) == protocol.expected_records
        assert verdicts["correct"] <= 0.1 * protocol.expected_records
        assert verdicts["timeout"] == verdicts["error"] == 0
        assert all("\\boxed{}" in record.prompt for record in evaluation.records)
        assert protocol.revision

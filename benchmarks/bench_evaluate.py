"""Evaluation throughput against plain vLLM, in one run on the tiny model; prints Markdown.

    .venv/bin/python benchmarks/bench_evaluate.py [--answers N] [--rounds R]

Both sides ask the same engine, in this process, for the same answers with the same seeds. Plain: `LLM.generate` with
all requests at once, nothing graded, nothing written. Ours: what `steer eval` does with them: generate, grade in
threads, save and fsync every two seconds. The rounds take turns, so that a busy machine slows both; prefix caching is
emptied before each. The ratio is the median of the rounds' own ratios, in wall seconds and in CPU seconds of the
process (which a busy machine hardly changes). Starting the engine is not part of it: both need one.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from steer_analysis.evaluate import Work, _generate, _Job
from steer_analysis.generate import Answers, Engine, Request, Sampling
from steer_analysis.plan import Plan, grader_of, request_seed
from steer_analysis.progress import Progress
from steer_analysis.records import Protocol, RecordFile
from steer_analysis.suites import Item, Suite
from steer_experiments.base_model import TinyQwen2Config, build_network, build_tokenizer
from steer_experiments.run_dir import RunDir

HOW = Sampling(1.0, 1.0, 24)
SAMPLES = 8


def tiny_model(folder: Path) -> Path:
    """An untrained tiny model: its answers end at random places, as answers do."""
    import torch

    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    build_network(TinyQwen2Config(), tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_plan(folder: Path, items: int) -> Plan:
    """Sums of two numbers, eight samples each, graded as the tiny task is."""
    pairs = [(n // 97 + 1, n % 97 + 1) for n in range(items)]
    asked = tuple(Item(f"i{n}", "easy", f"{a}+{b}=", str(a + b)) for n, (a, b) in enumerate(pairs))
    grader = grader_of("integer")
    settings = (HOW.temperature, HOW.top_p, HOW.max_new_tokens, 0, f"{grader.name}@{grader.version}", "plain")
    protocol = Protocol("bench", "", items, SAMPLES, *settings)
    return Plan(RunDir(folder), folder, Suite("bench", asked, ""), protocol, None, grader, "")


class Reused:
    """An engine that is already open, as a source of answers."""

    device, processes = "cpu", 1

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def answers(self, checkpoint: Path, requests: Sequence[Request]) -> Answers:
        return self._engine.answers()

    def close(self) -> None:
        """The engine is not ours."""


Seconds = tuple[float, float]


def now() -> Seconds:
    """Wall and CPU seconds."""
    return time.perf_counter(), time.process_time()


def since(started: Seconds) -> Seconds:
    wall, cpu = now()
    return wall - started[0], cpu - started[1]


def plain(engine: Engine, requests: Sequence[Request]) -> Seconds:
    """What `LLM.generate` takes."""
    from vllm import SamplingParams, TokensPrompt

    llm: Any = engine._llm
    inputs = [TokensPrompt(prompt_token_ids=engine._tokens[one.prompt, one.chat]) for one in requests]
    how = [SamplingParams(temperature=1.0, top_p=1.0, max_tokens=24, seed=one.seed) for one in requests]
    llm.reset_prefix_cache()
    started = now()
    outputs = llm.generate(inputs, how, use_tqdm=False)
    assert len(outputs) == len(requests)
    return since(started)


def ours(engine: Engine, plan: Plan, path: Path) -> Seconds:
    """What generating, grading and saving take."""
    engine._llm.reset_prefix_cache()
    with RecordFile(path, discard=True) as file:
        work = Work(plan, file, [(item, n) for item in plan.suite.items for n in range(SAMPLES)], None)
        jobs = [_Job(work, item, n, request_seed(0, item.id, n)) for item, n in work.missing]
        started = now()
        _generate(plan.checkpoint, jobs, Reused(engine), Progress("bench", len(jobs), 0, lambda text: None))
        assert len(file.records) == len(jobs)
        return since(started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        plan = make_plan(tiny_model(folder / "model"), args.answers // SAMPLES)
        asked = [(item, n) for item in plan.suite.items for n in range(SAMPLES)]
        requests = [Request(item.prompt, request_seed(0, item.id, n), HOW) for item, n in asked]
        with closing(Engine(plan.checkpoint, requests)) as engine:
            plain(engine, requests), ours(engine, plan, folder / "warm.jsonl")
            timed = [(plain(engine, requests), ours(engine, plan, folder / f"{n}.jsonl")) for n in range(args.rounds)]
    show(len(requests), timed)


def show(count: int, timed: Sequence[tuple[Seconds, Seconds]]) -> None:
    """The table: one row in wall seconds, one in CPU seconds."""
    print("| seconds | plain vLLM, answers/s | steer eval, answers/s | ours / plain | of the rounds |")
    print("|---|--:|--:|--:|---|")
    for place, name in enumerate(("wall", "CPU")):
        rates = [statistics.median(count / pair[side][place] for pair in timed) for side in (0, 1)]
        ratios = [theirs[place] / ours_[place] for theirs, ours_ in timed]
        all_ = ", ".join(f"{ratio:.2f}" for ratio in ratios)
        print(f"| {name} | {rates[0]:,.0f} | {rates[1]:,.0f} | {statistics.median(ratios):.3f} | {all_} |")


if __name__ == "__main__":
    main()

"""What each intervention and each estimator adds to a training step, beside stock PPO on the same batch, on CPU.

    make bench

A training step is OpenRLHF's own Actor around a small Qwen2 and its own PolicyLoss: forward and backward of the whole
model. What an arm adds is what the plugin does in a training: statistics of the sampled tokens, what the intervention
`needs` (:data:`steer_openrlhf.registry.NEEDS`; `old_entropy` is one forward a rollout, so one a step), its loss. Every
step is made right after a stock step, both in CPU seconds of one thread: `time_ratio` is the quotient of the two, with
the noise of both; `added_share` is what the added calls themselves take (the stock loss inside them included), by the
stock step. Peak memory is that of a process of its own. Shares depend on how many weights the body has for each word of
the vocabulary, so some arms are timed again with other bodies and vocabularies, and what the statistics take for one
logit is measured at several vocabularies: by 6 FLOP for each weight behind a word, that is their share of any step.
"""

import ctypes
import json
import multiprocessing
import platform
import resource
import statistics
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from steer_openrlhf import host
from steer_openrlhf.tokens import masked_statistics
from training_step import Arm, Place, Size, Step, Stopwatch, arm_step, arms, paired, ready

PAIRS = 5
TABULAR_AIM, HEAD_AIM = 0.01, 0.05
M_MMAP_THRESHOLD = -3  # of glibc's malloc.h
PLACE = Place()
SMALL, LARGE, WIDE = Size(8_192, 256, 4, 16), Size(8_192, 768, 6, 8), Size(32_768, 512, 4, 8)
AGAIN = ("ppo + statistics", "steer exact", "steer influence_head")
VOCABULARIES = (8_192, 32_768, 152_064)
BUFFER_MB = SMALL.logits * 4 / 2**20
"""One float32 buffer of B*T*V, in MiB: as large as the logits."""


def peak_mb(arm: Arm, stock: bool = False) -> float:
    """Peak resident memory (MiB) of a forked process that makes a stock step, then the arm's."""
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)
    child = context.Process(target=_send_peak, args=(arm, stock, send))
    child.start()
    send.close()
    peak: float = receive.recv()
    child.join()
    return peak


def _send_peak(arm: Arm, stock: bool, send: Any) -> None:
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**20)  # freed tensors go back at once, so the peak is of live ones
    net, batch, plain = ready(SMALL, PLACE)
    (plain if stock else arm_step(net, batch, arm, PLACE.clock))()
    send.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def measured(name: str, stock: Step, step: Step) -> dict[str, Any]:
    ratios, shares = paired(stock, step, PLACE.clock, PAIRS)
    return {
        "arm": name,
        "time_ratio": round(statistics.median(ratios), 3),
        "min": round(min(ratios), 3),
        "max": round(max(ratios), 3),
        "added_share": round(statistics.median(shares), 4),
        "share_min": round(min(shares), 4),
        "share_max": round(max(shares), 4),
    }


def memory(added_mb: float) -> dict[str, float]:
    return {"added_peak_mb": round(added_mb, 1), "added_peak_btv": round(added_mb / BUFFER_MB, 2)}


def table(size: Size, added_mb: Mapping[str, float], chosen: Mapping[str, Arm]) -> dict[str, dict[str, Any]]:
    """Prints a line for each arm and returns them; peak memory where it was measured."""
    net, batch, stock = ready(size, PLACE)
    print(size.describe(), flush=True)
    rows = {}
    for name, arm in chosen.items():
        rows[name] = measured(name, stock, arm_step(net, batch, arm, PLACE.clock))
        rows[name] |= memory(added_mb[name]) if name in added_mb else {}
        print(json.dumps(rows[name]), flush=True)
    if not added_mb:
        batch.advantages = batch.advantages * (torch.arange(size.rows) % 2).unsqueeze(-1)
        name = "steer influence_head, half without advantage"
        rows[name] = measured(
            name, stock, arm_step(net, batch, ("steer", {"estimator": "influence_head"}), PLACE.clock)
        )
        print(json.dumps(rows[name]), flush=True)
    return rows


def per_logit(vocabulary: int, rows: int = 64) -> dict[str, Any]:
    """What the statistics take for each logit of a response token, in nanoseconds."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, rows // 2, vocabulary, generator=generator)
    labels, mask = torch.zeros(2, rows // 2, dtype=torch.long), torch.ones(2, rows // 2)
    found = []
    for _ in range(PAIRS + 1):
        watch = Stopwatch(PLACE.clock)
        with watch:
            masked_statistics(logits, labels, mask, PLACE.chunk)
        found.append(watch.seconds / logits.numel() * 1e9)
    return {
        "vocabulary": vocabulary,
        "ns_per_logit": round(statistics.median(found[1:]), 2),
        "min": round(min(found), 2),
    }


def aims(
    rows: Mapping[str, Mapping[str, Any]], large: Mapping[str, Mapping[str, Any]], wide: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """What is aimed at, the arm that is furthest from it, and whether that reached it here."""

    def verdict(found: Mapping[str, Mapping[str, Any]], key: str, limit: float, *names: str) -> dict[str, Any]:
        worst = max(names, key=lambda name: found[name][key])
        return {"worst": worst, "value": found[worst][key], "reached": found[worst][key] < limit}

    share, peak, others = "added_share", "added_peak_btv", [name for name in rows if name != "steer influence"]
    return {
        "tabular, under 1 % of a step": verdict(rows, share, TABULAR_AIM, "steer exact", "steer paper"),
        "tabular, large body": verdict(large, share, TABULAR_AIM, "steer exact"),
        "tabular, large vocabulary": verdict(wide, share, TABULAR_AIM, "steer exact"),
        "reference, with its forward for old entropies": verdict(rows, share, TABULAR_AIM, "steer reference"),
        "influence_head, under 5 % of a step": verdict(rows, share, HEAD_AIM, "steer influence_head"),
        "influence_head, large body": verdict(large, share, HEAD_AIM, "steer influence_head"),
        "influence_head, large vocabulary": verdict(wide, share, HEAD_AIM, "steer influence_head"),
        "no buffer of B*T*V": verdict(rows, peak, 1.0, *others),
        "no buffer of B*T*V, the whole influence": verdict(rows, peak, 1.0, "steer influence"),
    }


def main() -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    host.install()
    import openrlhf.models  # noqa: F401  # before the forks, once

    every = arms()
    base = peak_mb(None, stock=True)  # all forks come before the first backward of this process
    added = {name: peak_mb(arm) - base for name, arm in every.items()}
    machine = f"{platform.processor() or platform.machine()}, torch {torch.__version__}, 1 thread"
    print(f"B*T*V float32 = {BUFFER_MB:.0f} MiB; stock peak {base:.0f} MiB; {PAIRS} pairs; {machine}")
    for vocabulary in VOCABULARIES:
        print(json.dumps(per_logit(vocabulary)), flush=True)
    rows = table(SMALL, added, every)
    large = table(LARGE, {}, {name: every[name] for name in AGAIN})
    wide = table(WIDE, {}, {name: every[name] for name in AGAIN})
    print(json.dumps({"aims": aims(rows, large, wide)}))


if __name__ == "__main__":
    main()

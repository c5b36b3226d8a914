"""What the plugin costs on an NVIDIA GPU, beside a copy and beside stock PPO, all in one run; a table, and JSON lines.

    python benchmarks/gpu_cost.py              # 32,768 tokens, vocabulary 152,064
    python benchmarks/gpu_cost.py --layers 28 --json result.json
    python benchmarks/gpu_cost.py --check      # without a GPU: the kernel in Triton's interpreter, all of it small

1. The fused kernel (:mod:`steer_openrlhf.kernels`) against float64 and timed, with several block sizes, as a share of
   the bandwidth of a large device-to-device copy in the same run (bytes read plus bytes written by the time); and the
   torch path on the same logits.
2. Each estimator and intervention beside OpenRLHF's PolicyLoss on the same micro-batch, forward and backward. With
   ``--layers 0`` a step is the head, its logits and the loss; the shares of a whole step need the layers of a model.
   Seconds are of the host with the GPU waited for; every arm's step is made right after a stock step.

Exit status: 0; 1 when the kernel's numbers are wrong; 2 without a GPU.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from steer_openrlhf import host
from steer_openrlhf.tokens import SWITCH, masked_rows, row_statistics
from torch import Tensor
from training_step import Place, Size, Stopwatch, arm_step, arms, paired, ready

Row = dict[str, Any]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
BLOCKS = (1024, 2048, 4096, 8192)
SHARE_AIM, TABULAR_AIM, HEAD_AIM = 0.8, 0.01, 0.05
CHECKED_ROWS, TOLERANCE = 16, 2e-5
"""Rows compared with float64, and how far entropy, collision and log-prob may be off."""
SMALL = [
    "--vocabulary",
    "3001",
    "--tokens",
    "8",
    "--copy-mb",
    "8",
    "--hidden",
    "32",
    "--micro",
    "2",
    "--sequence",
    "16",
]
SMALL += ["--prompt", "4", "--repeats", "1"]


def options(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, default=152_064)
    parser.add_argument("--tokens", type=int, default=32_768, help="rows of logits of the kernel")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32", help="of the kernel's logits; OpenRLHF's are fp32")
    parser.add_argument("--copy-mb", type=int, default=4096, help="MiB that are copied")
    parser.add_argument("--hidden", type=int, default=1536)
    parser.add_argument("--layers", type=int, default=0)
    parser.add_argument("--micro", type=int, default=4, help="sequences of a micro-batch")
    parser.add_argument("--sequence", type=int, default=1024, help="tokens of one, prompt included")
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--chunk", type=int, default=1024, help="--steer.chunk_tokens")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--json", type=Path, help="the same numbers in a file")
    parser.add_argument("--check", action="store_true")
    chosen = parser.parse_args(words)
    return parser.parse_args([*words, *SMALL]) if chosen.check else chosen


def on_gpu() -> float:
    torch.cuda.synchronize()
    return time.perf_counter()


def place_of(chosen: argparse.Namespace) -> Place:
    if chosen.check:
        return Place(chunk=chosen.chunk)
    return Place("cuda", torch.bfloat16, chosen.chunk, on_gpu)


def machine(place: Place) -> str:
    name = torch.cuda.get_device_name() if place.device == "cuda" else "CPU: these times mean nothing"
    return f"{name}, {platform.node()}, torch {torch.__version__}, CUDA {torch.version.cuda}"


def seconds(call: Callable[[], object], place: Place, repeats: int) -> float:
    """The median of some calls after two that warm up and compile."""
    found = []
    for _ in range(repeats + 2):
        watch = Stopwatch(place.clock)
        with watch:
            call()
        found.append(watch.seconds)
    return max(statistics.median(found[2:]), 1e-9)


def added_peak_mb(call: Callable[[], object], place: Place) -> float | None:
    """Peak of the allocated memory (MiB) during a call, beyond what was there; unknown on CPU."""
    if place.device != "cuda":
        return None
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return round((torch.cuda.max_memory_allocated() - before) / 2**20, 1)


# -- the kernel --------------------------------------------------------------------------------------------------------


def kernel_rows(chosen: argparse.Namespace, place: Place) -> Iterator[Row]:
    copy = copy_bandwidth(chosen, place)
    yield {"what": f"copy of {chosen.copy_mb} MiB", "gb_s": copy / 1e9}
    logits_BTV, labels_BT = logits_of(chosen, place)
    yield from fused_rows(chosen, place, logits_BTV, labels_BT, copy)
    mask_BT = torch.ones_like(labels_BT)
    with switched_off():
        path = partial(masked_rows, logits_BTV, labels_BT, mask_BT, chosen.chunk)
        took = seconds(path, place, chosen.repeats)
        once = logits_BTV.nbytes / took  # as if it read the logits once
        yield {
            "what": f"torch path, chunks of {chosen.chunk}", "ms": took * 1e3, "gb_s": once / 1e9,
            "share_of_copy": once / copy, "added_peak_mb": added_peak_mb(path, place),
        }  # fmt: skip


def copy_bandwidth(chosen: argparse.Namespace, place: Place) -> float:
    """Bytes read and written a second."""
    source = torch.ones(chosen.copy_mb * 2**18, device=place.device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / seconds(lambda: target.copy_(source), place, chosen.repeats)


def logits_of(chosen: argparse.Namespace, place: Place) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    shape = (1, chosen.tokens, chosen.vocabulary)
    logits_BTV = torch.empty(shape, dtype=DTYPES[chosen.dtype], device=place.device).normal_(std=3.0)
    return logits_BTV, torch.randint(0, chosen.vocabulary, shape[:2], device=place.device)


def fused_rows(
    chosen: argparse.Namespace, place: Place, logits_BTV: Tensor, labels_BT: Tensor, copy: float
) -> Iterator[Row]:
    from steer_openrlhf import kernels

    at, labels_N = torch.ones_like(labels_BT).nonzero(as_tuple=True), labels_BT.flatten()
    moved = kernels.traffic_bytes(chosen.tokens, chosen.vocabulary, logits_BTV.element_size())
    exact = row_statistics(logits_BTV[0, :CHECKED_ROWS].double(), labels_N[:CHECKED_ROWS])
    for block in BLOCKS:
        call = partial(kernels.fused_rows, logits_BTV, at, labels_N, 1.0, block)
        found = call()[:3, :CHECKED_ROWS]
        off = max(float((part - other).abs().max()) for part, other in zip(found, exact[:3], strict=True))
        took = seconds(call, place, chosen.repeats)
        used = " (used)" if block == kernels.BLOCK else ""
        yield {
            "what": f"fused kernel, blocks of {block}{used}", "ms": took * 1e3, "gb_s": moved / took / 1e9,
            "share_of_copy": moved / took / copy, "off_by": off, "added_peak_mb": added_peak_mb(call, place),
        }  # fmt: skip


@contextmanager
def switched_off() -> Iterator[None]:
    """The kernel is not used inside."""
    kept = os.environ.get(SWITCH)
    os.environ[SWITCH] = "0"
    try:
        yield
    finally:
        os.environ.pop(SWITCH)
        os.environ |= {} if kept is None else {SWITCH: kept}


# -- training steps ----------------------------------------------------------------------------------------------------


def step_rows(chosen: argparse.Namespace, place: Place) -> Iterator[Row]:
    """Beside a stock step: the quotient of the times, the added share, and the peak memory of both."""
    size = Size(
        chosen.vocabulary, chosen.hidden, chosen.layers, chosen.micro, chosen.prompt, chosen.sequence - chosen.prompt
    )
    net, batch, stock = ready(size, place)
    print(size.describe(), flush=True)
    base = added_peak_mb(stock, place)
    yield {"what": "stock PPO", "ms": seconds(stock, place, chosen.repeats) * 1e3, "added_peak_mb": base}
    for name, arm in arms().items():
        step = arm_step(net, batch, arm, place.clock)
        ratios, shares = paired(stock, step, place.clock, chosen.repeats)
        peak = added_peak_mb(step, place)
        yield {
            "what": name, "time_ratio": statistics.median(ratios), "min": min(ratios), "max": max(ratios),
            "added_share": statistics.median(shares), "added_peak_mb": peak and round(peak - (base or 0.0), 1),
        }  # fmt: skip


# -- the report --------------------------------------------------------------------------------------------------------


def shown(rows: Iterator[Row]) -> list[Row]:
    kept = []
    for row in rows:
        kept.append({name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in row.items()})
        cells = (f"{name} {value:g}" for name, value in kept[-1].items() if isinstance(value, int | float))
        print(f"{row['what']:32}", " | ".join(cells), flush=True)
    return kept


def aims(kernel: list[Row], steps: list[Row]) -> Row:
    used = next(row for row in kernel if row["what"].endswith("(used)"))
    by_name = {row["what"]: row for row in steps}

    def verdict(name: str, limit: float) -> Row:
        return {"value": by_name[name]["added_share"], "reached": by_name[name]["added_share"] < limit}

    return {
        "kernel, share of the copy's bandwidth": {
            "value": used["share_of_copy"], "reached": used["share_of_copy"] > SHARE_AIM
        },
        "steer exact, under 1 % of this step": verdict("steer exact", TABULAR_AIM),
        "steer influence_head, under 5 % of this step": verdict("steer influence_head", HEAD_AIM),
    }  # fmt: skip


def main() -> int:
    chosen = options(sys.argv[1:])
    if chosen.check:
        assert "triton" not in sys.modules, "Triton decides at its import whether it interprets"
        os.environ["TRITON_INTERPRET"] = "1"
        torch.set_num_threads(1)
    elif not torch.cuda.is_available():
        print("no CUDA device, so nothing to measure; --check runs all of it small, without one", file=sys.stderr)
        return 2
    warnings.filterwarnings("ignore")
    place = place_of(chosen)
    print(machine(place), flush=True)
    kernel = shown(kernel_rows(chosen, place))
    host.install()
    steps = shown(step_rows(chosen, place))
    result: Row = {
        "machine": machine(place),
        "options": vars(chosen) | {"json": None},
        "kernel": kernel,
        "steps": steps,
    }
    result["aims"] = None if chosen.check else aims(kernel, steps)
    print(json.dumps(result))
    if chosen.json:
        chosen.json.write_text(json.dumps(result, indent=1), encoding="utf-8")
    wrong = [row["what"] for row in kernel if not row.get("off_by", 0.0) < TOLERANCE]
    if wrong:
        print(f"off by more than {TOLERANCE} from float64: {wrong}", file=sys.stderr)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())

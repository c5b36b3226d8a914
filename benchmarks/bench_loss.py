"""What the statistics and each intervention add to a policy update, beside stock PPO on the same batch, on CPU.

Ratios in one run, pairs in turn, with the machine named: `make bench`. The update is a language-model
head with OpenRLHF's own PolicyLoss, forward and backward; a real model has a body as well, so its ratios are smaller.
"""

import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from steer_openrlhf import host

HIDDEN, VOCABULARY, ROWS, COLUMNS, PAIRS = 512, 32_000, 16, 64, 7
CHUNK = 256
ARMS: dict[str, dict[str, object] | None] = {
    "ppo": None,
    "ppo + statistics": {},
    "steer exact": {"estimator": "exact"},
    "steer paper": {"estimator": "paper"},
    "steer reference": {"estimator": "reference"},
    "steer quantile": {"normalizer": "quantile"},
    "uniform": {"name": "uniform"},
}


def update(arm: dict[str, object] | None) -> Callable[[], None]:
    """One policy update of the arm, ready to be called again and again."""
    host.install()
    from openrlhf.models import PolicyLoss
    from openrlhf.models.utils import log_probs_from_logits
    from steer_openrlhf.config import SteerConfig
    from steer_openrlhf.loss import InterventionLoss
    from steer_openrlhf.registry import INTERVENTIONS
    from steer_openrlhf.tokens import masked_statistics

    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(ROWS, COLUMNS, HIDDEN, generator=generator)
    head = (torch.randn(VOCABULARY, HIDDEN, generator=generator) / HIDDEN**0.5).requires_grad_()
    labels = torch.randint(0, VOCABULARY, (ROWS, COLUMNS), generator=generator)
    mask, advantages = torch.ones(ROWS, COLUMNS), torch.randn(ROWS, 1, generator=generator).expand(ROWS, COLUMNS)
    fields = dict(arm or {})
    name = str(fields.pop("name", "steer"))
    stock = PolicyLoss()
    intervened = bool(arm)
    loss = InterventionLoss(
        stock, INTERVENTIONS[name], SteerConfig.model_validate(fields), gather=lambda signal: signal
    )

    def step() -> None:
        head.grad = None
        logits = hidden @ head.T
        if arm is not None:
            loss.statistics = masked_statistics(logits.detach(), labels, mask, CHUNK)
        log_probs = log_probs_from_logits(logits, labels)
        chosen = loss if intervened else stock
        chosen(log_probs, log_probs.detach(), advantages, action_mask=mask)[0].backward()

    return step


def peak_megabytes(name: str) -> float:
    """Peak memory of a process that makes two updates of the arm."""
    code = f"import resource, bench_loss as b; s = b.update(b.ARMS[{name!r}]); s(); s(); "
    code += "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {sys.path[0]!r}); {code}"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def main() -> None:
    torch.set_num_threads(1)
    machine = f"{platform.processor() or platform.machine()}, torch {torch.__version__}, 1 thread"
    print(f"{ROWS * COLUMNS} tokens, vocabulary {VOCABULARY}, hidden {HIDDEN}; {machine}")
    steps = {name: update(arm) for name, arm in ARMS.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ARMS}
    for pair in range(PAIRS + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if pair:  # the first round warms up
                seconds[name].append(time.perf_counter() - start)
    base = peak_megabytes("ppo")
    for name in ARMS:
        ratios = [one / stock for one, stock in zip(seconds[name], seconds["ppo"], strict=True)]
        row = {"arm": name, "time_ratio": round(statistics.median(ratios), 3), "min": round(min(ratios), 3),
               "max": round(max(ratios), 3), "added_peak_mb": round(peak_megabytes(name) - base)}  # fmt: skip
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()

"""Ground truth for the entropy estimators, on answers of the tiny base model to its own task (METHODS 1b).

    .venv/bin/python benchmarks/influence_truth.py           # 10 minutes of one core; Markdown tables at the end

Per seed: 48 training questions, 8 sampled answers each, group-normalised advantages, one optimizer step on the mean of
A log pi over all response tokens. What the step does is measured in float64 (the network's norms too; answers are
sampled and Adam is warmed up in float32, as in a training) and compared with what the estimators say before it:

1. the sum: change of the mean entropy against rate * mean(omega);
2. source-wise: what one token's update does, by leaving it out of the step, against its omega;
3. target-wise: change of the entropy at each position, against the omega of its token, and against the derivative of
   that entropy along the step.

Once for SGD from the base model, once for Adam after a warm-up. Every draw is seeded: questions, answers, tokens left
out. Not part of `make bench`.
"""

import copy
import platform
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from steer_analysis.agreement import Agreement, agreement
from steer_openrlhf.influence import EntropySum, head_gradient, head_scores, network_scores, precondition
from steer_openrlhf.omega import ESTIMATORS
from steer_openrlhf.tokens import Clip, Tokens, TokenStatistics, token_statistics
from tiny_rollouts import SAMPLES, Batch, Task, sampled, tiny_task
from torch import Tensor
from truth_tables import Truth, table

SEEDS, PROMPTS = (0, 1, 2), 48
SGD_RATES = (1e-5, 1e-4, 1e-3)
LEFT_OUT, SGD_SOURCE_RATES, ADAM_SOURCE_RATES = 150, (1e-5, 1e-4), (1e-6, 1e-5)
SGD_RATE = 1e-4  # of the target-wise measurement, and of the sums of the other estimators
WARM_UP, WARM_UP_PROMPTS, ADAM_RATE, BETAS, EPS = 20, 16, 1e-4, (0.9, 0.95), 1e-8
ADAM_RATES = (1e-5, 1e-4, 2e-4)
MAX_NORM = 1.0  # OpenRLHF's default: gradients of a larger norm are scaled down to it
CHUNK = 4096
PARTS = 4  # a leave-one-out forward in parts of like length needs less padding

Weights = dict[str, Tensor]
"""One tensor for each parameter of the network."""
Diagonal = Callable[[Weights], Weights]
"""P times a gradient."""


# -- the network -------------------------------------------------------------------------------------------------------


def in_float64(model: Any) -> Any:
    """A copy that computes in float64; transformers' norms compute in float32 whatever they are given."""
    whole = copy.deepcopy(model).double()
    for module in whole.modules():
        if type(module).__name__ == "Qwen2RMSNorm":
            module.forward = MethodType(_norm, module)
    return whole


def _norm(self: Any, hidden: Tensor) -> Tensor:
    return self.weight * hidden * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + self.variance_epsilon)


def rows(call: Callable[..., Any], batch: Batch) -> Tensor:
    """Logits behind the response tokens, ``[N, V]``."""
    return batch.responses(call(**batch.inputs()).logits)


def statistics_of(call: Callable[..., Any], batch: Batch) -> TokenStatistics:
    return token_statistics(rows(call, batch), batch.labels_N)


@torch.no_grad()
def entropies(model: Any, batch: Batch) -> Tensor:
    return statistics_of(model, batch).entropy


def policy_gradient(model: Any, batch: Batch) -> Weights:
    """Gradient of the mean of A log pi over the response tokens."""
    log_probs_N = rows(model, batch).log_softmax(-1).gather(-1, batch.labels_N[:, None]).squeeze(-1)
    return gradient_of((batch.advantages_N.to(log_probs_N.dtype) * log_probs_N).mean(), model)


def gradient_of(value: Tensor, model: Any) -> Weights:
    names, weights = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(value, weights), strict=True))


def entropy_gradient_of(model: Any, batch: Batch) -> Weights:
    """Gradient of the mean entropy."""
    found = rows(model, batch)
    return gradient_of(EntropySum.apply(found, CHUNK) / len(found), model)


def inner(a: Weights, b: Weights) -> float:
    return float(sum((a[name] * b[name]).sum() for name in a))


@contextmanager
def moved(model: Any, step: Weights, rate: float) -> Iterator[None]:
    """The model with ``rate * step`` added; afterwards its weights are what they were."""
    kept = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.add_(step[name], alpha=rate)
    try:
        yield
    finally:
        with torch.no_grad():
            for name, weight in model.named_parameters():
                weight.copy_(kept[name])


# -- estimates ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Moments:
    """Adam's, after ``steps`` steps; ``first`` in the direction of ascent."""

    first: Weights
    second: Weights
    steps: int

    def diagonal(self, gradient: Weights) -> Weights:
        """P times it, with what is known before the next step."""
        decay = BETAS[1] ** self.steps
        return {name: precondition(gradient[name], self.second[name], EPS, decay) for name in gradient}


def omegas(model: Any, batch: Batch, moments: Moments | None = None) -> dict[str, Tensor]:
    """Omega of all response tokens by every estimator, ``[N]``. The answers are on-policy, so r = 1 and I = 1."""
    with torch.no_grad():
        found = statistics_of(model, batch)
    scores = {
        "influence": influence_scores(model, batch, moments),
        "influence_head": head_influence_scores(model, batch, moments),
    }
    plain = (found.log_prob, found.log_prob, batch.advantages_N, torch.ones_like(found.log_prob))
    return {
        name: estimate(Tokens(*plain, found.entropy, found.collision, Clip(0.2, 0.2), influence_BT=scores.get(name)))
        for name, estimate in ESTIMATORS.items()
    }


def influence_scores(model: Any, batch: Batch, moments: Moments | None) -> Tensor:
    gradient = entropy_gradient_of(model, batch)
    direction = moments.diagonal(gradient) if moments else gradient
    return network_scores(model, direction, lambda call: statistics_of(call, batch).log_prob)


@torch.no_grad()
def head_influence_scores(model: Any, batch: Batch, moments: Moments | None) -> Tensor:
    """As :meth:`steer_openrlhf.network.Network.head_influence` (float32)."""
    hidden_ND = batch.responses(model.model(**batch.inputs()).last_hidden_state)

    def provide(start: int, stop: int) -> Tensor:
        return hidden_ND[start:stop] @ model.lm_head.weight.T

    gradient = head_gradient(hidden_ND, provide, 1.0, CHUNK) / len(hidden_ND)
    if moments:
        second = moments.second["lm_head.weight"]
        gradient = precondition(gradient, second, EPS, BETAS[1] ** moments.steps)
    return head_scores(hidden_ND, provide, batch.labels_N, gradient, 1.0, CHUNK).double()


# -- measurements ------------------------------------------------------------------------------------------------------


def sums(model: Any, batch: Batch, step: Weights, rates: Sequence[float]) -> dict[float, float]:
    """Change of the mean entropy per unit rate, for each rate."""
    before, found = entropies(model, batch).mean(), {}
    for rate in rates:
        with moved(model, step, rate):
            found[rate] = float((entropies(model, batch).mean() - before) / rate)
    return found


def trained(batch: Batch) -> Tensor:
    """Indices of the tokens with an advantage."""
    return (batch.advantages_N != 0).nonzero()[:, 0]


def leave_one_out(
    model: Any, batch: Batch, diagonal: Diagonal, chosen: Sequence[int], rates: Sequence[float]
) -> dict[float, Tensor]:
    """N times the mean entropy after the step less that after the step without a token, per unit rate."""
    step, parts = diagonal(policy_gradient(model, batch)), batch.trimmed(PARTS)

    def after(direction: Weights, rate: float) -> Tensor:
        with moved(model, direction, rate):
            return sum_entropy(model, parts) / rate

    whole = {rate: after(step, rate) for rate in rates}
    effects: dict[float, list[Tensor]] = {rate: [] for rate in rates}
    for token in chosen:
        alone = diagonal(token_gradient(model, batch, token))
        without = {name: step[name] - alone[name] for name in step}
        for rate in rates:
            effects[rate].append(whole[rate] - after(without, rate))
    return {rate: torch.stack(found) for rate, found in effects.items()}


def sum_entropy(model: Any, parts: Sequence[Batch]) -> Tensor:
    return torch.stack([entropies(model, part).sum() for part in parts]).sum()


def token_gradient(model: Any, batch: Batch, token: int) -> Weights:
    """What the token adds to :func:`policy_gradient`; only its own answer is needed."""
    answer = int(batch.answer_N[token])
    own = Batch(*(part[answer : answer + 1] for part in batch))
    place = int((batch.answer_N[:token] == answer).sum())
    log_prob = rows(model, own).log_softmax(-1)[place, own.labels_N[place]]
    return gradient_of(batch.advantages_N[token] * log_prob / len(batch.labels_N), model)


def source_wise(
    model: Any, batch: Batch, diagonal: Diagonal, omega: Mapping[str, Tensor], rates: Sequence[float], seed: int
) -> dict[float, dict[str, Agreement]]:
    """Of every estimator with leave-one-out, over :data:`LEFT_OUT` tokens that have an advantage."""
    chosen = random.Random(seed).sample(trained(batch).tolist(), LEFT_OUT)
    answers = batch.answer_N[chosen]
    return {
        rate: {name: compare(value[chosen], effects, answers) for name, value in omega.items()}
        for rate, effects in leave_one_out(model, batch, diagonal, chosen, rates).items()
    }


def target_wise(
    model: Any, batch: Batch, step: Weights, rate: float, omega: Mapping[str, Tensor]
) -> dict[str, Agreement]:
    """Of the change of entropy at each token that has an advantage, with its derivative along the step, and with the
    omegas of that token."""
    before, kept = entropies(model, batch), trained(batch)
    with moved(model, step, rate):
        change = (entropies(model, batch) - before) / rate
    derivative = network_scores(model, step, lambda call: statistics_of(call, batch).entropy)
    against = {"derivative along the step": derivative, **omega}
    return {name: compare(value[kept], change[kept], batch.answer_N[kept]) for name, value in against.items()}


def compare(x: Tensor, y: Tensor, answer: Tensor) -> Agreement:
    return agreement(x.numpy(), y.numpy(), answer.numpy())


# -- one seed ----------------------------------------------------------------------------------------------------------


def sgd_truth(task: Task, seed: int) -> Truth:
    """One SGD step of the base model."""
    batch, model = sampled(task, task.model, PROMPTS, seed), in_float64(task.model)
    omega, step = omegas(model, batch), policy_gradient(model, batch)
    return Truth(
        len(batch.labels_N),
        len(trained(batch)),
        float(entropies(model, batch).mean()),
        inner(step, step) ** 0.5,
        sums(model, batch, step, SGD_RATES),
        {name: float(value.mean()) for name, value in omega.items()},
        source_wise(model, batch, lambda gradient: gradient, omega, SGD_SOURCE_RATES, seed),
        target_wise(model, batch, step, SGD_RATE, omega),
    )


def adam_truth(task: Task, seed: int) -> Truth:
    """One Adam step after a warm-up. Source-wise with P alone, without first moment or norm clipping."""
    model, moments, state = warmed_up(task, seed)
    batch, model = sampled(task, model, PROMPTS, seed), in_float64(model)
    omega, step = omegas(model, batch, moments), adam_direction(model, batch, state)
    gradient = policy_gradient(model, batch)
    norm, entropy = inner(gradient, gradient) ** 0.5, entropy_gradient_of(model, batch)
    predicted = {name: float(value.mean()) for name, value in omega.items()}
    scale = min(1.0, MAX_NORM / norm)
    return Truth(
        len(batch.labels_N),
        len(trained(batch)),
        float(entropies(model, batch).mean()),
        norm,
        sums(model, batch, step, ADAM_RATES),
        predicted
        | momentum_predictions(moments, entropy, predicted["influence"], scale)
        | {"the derivative along the step itself": inner(step, entropy)},
        source_wise(model, batch, moments.diagonal, omega, ADAM_SOURCE_RATES, seed),
        target_wise(model, batch, step, ADAM_RATE, omega),
    )


def momentum_predictions(moments: Moments, entropy: Weights, influence: float, scale: float) -> dict[str, float]:
    """``scale mean(omega)``, ``scale`` being what norm clipping does to the gradient; and with Adam's first moment,
    ``[beta1 <m, P grad H> + (1 - beta1) scale mean(omega)] / (1 - beta1^t)``, P from before the step."""
    momentum = inner(moments.first, moments.diagonal(entropy))
    correction = 1 - BETAS[0] ** (moments.steps + 1)
    whole = (BETAS[0] * momentum + (1 - BETAS[0]) * scale * influence) / correction
    return {"influence, clipped": scale * influence, "influence, clipped, with momentum": whole}


def warmed_up(task: Task, seed: int) -> tuple[Any, Moments, dict[str, Any]]:
    """The model after :data:`WARM_UP` Adam steps on rollouts of their own, its moments, and the optimizer's state."""
    model = copy.deepcopy(task.model)
    optimizer = adam(model, ADAM_RATE)
    for step in range(WARM_UP):
        adam_step(model, optimizer, sampled(task, model, WARM_UP_PROMPTS, 1_000 * (seed + 1) + step))
    state = {name: optimizer.state[weight] for name, weight in model.named_parameters()}
    first = {name: -one["exp_avg"].double() for name, one in state.items()}  # torch's is one of descent
    second = {name: one["exp_avg_sq"].double() for name, one in state.items()}
    return model, Moments(first, second, WARM_UP), optimizer.state_dict()


def adam(model: Any, rate: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=rate, betas=BETAS, eps=EPS, weight_decay=0, maximize=True)


def adam_step(model: Any, optimizer: torch.optim.Optimizer, batch: Batch) -> None:
    """One step in place, the gradient scaled down to :data:`MAX_NORM`."""
    found = policy_gradient(model, batch)
    for name, weight in model.named_parameters():
        weight.grad = found[name]
    torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
    optimizer.step()


def adam_direction(model: Any, batch: Batch, state: dict[str, Any]) -> Weights:
    """What torch's AdamW would add to the weights in its next step on the batch, per unit rate."""
    after = in_float64(model)
    optimizer = adam(after, 1.0)
    optimizer.load_state_dict(copy.deepcopy(state))
    optimizer.param_groups[0]["lr"] = 1.0
    adam_step(after, optimizer, batch)
    old = dict(model.named_parameters())
    return {name: (weight - old[name]).detach() for name, weight in after.named_parameters()}


def report(sgd: Sequence[Truth], adam_: Sequence[Truth]) -> str:
    machine = f"{platform.machine()}, torch {torch.__version__}, 1 thread"
    about = f"{PROMPTS} questions x {SAMPLES} answers a seed, on-policy, float64; {machine}."
    cells = "Source- and target-wise cells: PCC / SRCC / SRCC of magnitudes, tokens with an advantage only."
    return "\n\n".join(
        [
            f"{about} {cells}",
            f"### SGD from the base model (target-wise at rate {SGD_RATE:g})",
            table(sgd, SEEDS, SGD_RATES, SGD_RATE, aimed=True),
            f"### Adam after {WARM_UP} steps (target-wise at rate {ADAM_RATE:g})",
            f"Warm-up: rate {ADAM_RATE:g}, betas {BETAS}, norm clipped to {MAX_NORM:g}, {WARM_UP_PROMPTS} questions x "
            f"{SAMPLES} answers a step. Sums and target-wise: Adam's next step. Source-wise: a step of P times the "
            "gradient, neither clipped nor with momentum.",
            table(adam_, SEEDS, ADAM_RATES, ADAM_RATE, aimed=False),
        ]
    )


def main() -> None:
    torch.set_num_threads(1)
    task, started = tiny_task(), time.monotonic()
    sgd, adam_ = [], []
    for seed in SEEDS:
        sgd.append(sgd_truth(task, seed))
        print(f"seed {seed}: SGD done after {time.monotonic() - started:.0f} s", flush=True)
        adam_.append(adam_truth(task, seed))
        print(f"seed {seed}: Adam done after {time.monotonic() - started:.0f} s", flush=True)
    print(report(sgd, adam_))


if __name__ == "__main__":
    main()

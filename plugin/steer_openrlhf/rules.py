"""What cannot go together on a command line, as sentences: what, the value, what is allowed, what to do instead.

``given`` is dotted flag -> value of OpenRLHF's and our flags; a flag that is absent has OpenRLHF's default.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Rule(NamedTuple):
    """A flag, OpenRLHF's default for it, which values are refused, and what to say is allowed."""

    flag: str
    default: Any
    refused: Callable[[Any], bool]
    allowed: str


ANY = [
    Rule("ds.tensor_parallel_size", 1, lambda size: int(size) > 1, "1: whole vocabulary rows are needed"),
    Rule("data.max_images_per_prompt", 0, lambda images: int(images) > 0, "0: it is for text"),
]
OWN_LOSS = [
    Rule("steer.base_loss", "ppo", lambda base: base != "ppo", "ppo: it brings its own clipping or loss"),
    Rule("algo.advantage.is_correction_level", "off", lambda level: level != "off", "off: it has a loss of its own"),
]
NETWORK = [
    Rule("ds.packing_samples", False, bool, "false"),
    Rule("ds.ring_attn_size", 1, lambda size: int(size) > 1, "1"),
    Rule("actor.optim", "adam", lambda name: name != "adam", "adam, whose step has a diagonal preconditioner"),
]
NEEDS = {
    "influence": [
        Rule("ds.zero_stage", 2, lambda stage: int(stage) == 3, "0, 1, 2: it needs whole parameters"),
        Rule("actor.gradient_checkpointing_reentrant", False, bool, "false: autograd.grad cannot pass it"),
        *NETWORK,
    ],
    "influence_head": [
        Rule("ds.lora.rank", 0, lambda rank: int(rank) > 0, "0: LoRA leaves the head as it is"),
        *NETWORK,
    ],
}
INSTEAD = {"influence": "influence_head or exact", "influence_head": "influence or exact"}


def of_intervention(given: Mapping[str, Any], loss: str, own_loss: bool) -> list[str]:
    """Flags no intervention can work with, and those one with a loss of its own cannot."""
    return [f"{found} (loss {loss})" for found in _broken([*ANY, *(OWN_LOSS if own_loss else ())], given)]


def unsupported(need: str, given: Mapping[str, Any]) -> list[str]:
    """Why this training cannot have ``need`` (:data:`.registry.NEEDS`); [] when it can."""
    broken = _broken(NEEDS.get(need, []), given)
    return [f"{found} (estimator {need}; others: {INSTEAD[need]})" for found in broken]


def of_entropy_bonus(given: Mapping[str, Any]) -> list[str]:
    """An adaptive coefficient needs one to start from: OpenRLHF computes no entropy loss without."""
    target, start = given.get("steer.entropy_bonus.target"), given.get("actor.entropy_coef")
    if target is None or start is not None:
        return []
    return [
        f"steer.entropy_bonus.target = {target}: OpenRLHF has no entropy bonus to adapt; give its first coefficient, "
        "for example --actor.entropy_coef 0.001"
    ]


def of_probe(given: Mapping[str, Any]) -> list[str]:
    """A probe is files: without a place for them it would cost its forwards for nothing."""
    every = given.get("steer.probe.every")
    if every in (None, 0, "0") or given.get("steer.run_dir"):
        return []
    return [f"steer.probe.every = {every}: needs a folder to write to; give --steer.run_dir"]


def _broken(rules: list[Rule], given: Mapping[str, Any]) -> list[str]:
    found = []
    for rule in rules:
        value = given.get(rule.flag, rule.default)
        if value is not None and rule.refused(value):
            found.append(f"{rule.flag} = {value!r}: allowed: {rule.allowed}")
    return found

"""The interventions. A third party adds one by the entry-point group ``steer_openrlhf.interventions``.

[project.entry-points."steer_openrlhf.interventions"]
my_loss = "my_package:INTERVENTION"        # an Intervention; its fields become --my_loss.<field>
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from .config import Config, SteerConfig

ENTRY_POINT_GROUP = "steer_openrlhf.interventions"
HOST_LOSSES = ("ppo", "gspo")  # OpenRLHF's own, never touched


@dataclass(frozen=True)
class Intervention:
    """A pure function from token statistics to shaped advantages, with its config and flags.

    ``maths`` names the module that holds three functions (loaded on first use, because it needs torch):

    - ``signal(tokens, config) -> Tensor[N] | Tensor[N, F] | None``: what of each response token the step-wide summary
      depends on (``None``: the intervention needs none);
    - ``summarize(signal, config) -> Any``: the summary, from the signals of all tokens of the optimizer step (all ranks
      and accumulation micro-batches), or of the micro-batch when ``config.scope == "microbatch"``;
    - ``shape(tokens, summary, config) -> Shaped``: the advantages OpenRLHF's loss is called with.
    """

    name: str
    config: type[Config]
    maths: str
    prefix: str = ""
    """Prefix of its flags; the name when empty."""
    stepwise: Callable[[Any], bool] = lambda config: True
    """Whether, with this config, the weights depend on the summary. Several micro-batches a step then cost one more
    forward."""

    @property
    def flag_prefix(self) -> str:
        return self.prefix or self.name

    def function(self, name: str) -> Callable[..., Any]:
        """One of ``signal``, ``summarize``, ``shape``; ``maths`` is ``module`` or ``module:suffix``, and a suffix picks
        ``<function>_<suffix>`` where the module has it."""
        module, _, suffix = self.maths.partition(":")
        loaded = import_module(module)
        found: Callable[..., Any] = getattr(loaded, f"{name}_{suffix}", None) or getattr(loaded, name)
        return found


INTERVENTIONS: dict[str, Intervention] = {
    "steer": Intervention("steer", SteerConfig, "steer_openrlhf.steer", stepwise=lambda config: config.k is None),
    "uniform": Intervention("uniform", SteerConfig, "steer_openrlhf.steer:uniform", prefix="steer"),
}


def interventions() -> dict[str, Intervention]:
    """Ours and every installed third party's.

    Raises:
        ValueError: an entry point is not an :class:`Intervention`, or takes a name that exists.
    """
    found = dict(INTERVENTIONS)
    for point in entry_points(group=ENTRY_POINT_GROUP):
        loaded = point.load()
        if not isinstance(loaded, Intervention):
            raise ValueError(
                f"entry point {point.name} = {point.value}: is {type(loaded).__name__}, not an Intervention"
            )
        if loaded.name in found or loaded.name in HOST_LOSSES:
            raise ValueError(f"entry point {point.name} = {point.value}: the name '{loaded.name}' is taken")
        found[loaded.name] = loaded
    return found


def known_losses() -> list[str]:
    """Every value ``--actor.policy_loss_type`` may have."""
    return [*HOST_LOSSES, *interventions()]

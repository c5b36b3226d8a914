"""The interventions. A third party adds one by the entry-point group ``steer_openrlhf.interventions``.

[project.entry-points."steer_openrlhf.interventions"]
my_loss = "my_package:INTERVENTION"        # an Intervention; its fields become --my_loss.<field>
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from .config import Config, SteerConfig
from .interventions import configs

ENTRY_POINT_GROUP = "steer_openrlhf.interventions"
HOST_LOSSES = ("ppo", "gspo")  # OpenRLHF's own, never touched
NEEDS = frozenset({"old_entropy", "random", "influence", "influence_head"})
"""``old_entropy``: one more forward a rollout. ``random``: next to nothing. ``influence``: a backward and a directional
derivative a step. ``influence_head``: two products with the language-model head a step."""


@dataclass(frozen=True)
class Intervention:
    """A pure function from token statistics to shaped advantages, with its config and flags.

    ``maths`` names the module that holds its functions (loaded on first use, because it needs torch):

    - ``shape(tokens, summary, config) -> Shaped``: the advantages OpenRLHF's loss is called with, and what else it
      changes. The only one that must be there.
    - ``signal(tokens, config) -> Tensor[N] | Tensor[N, F]``: what of each response token the summary depends on;
    - ``summarize(signal, config) -> Any``: the summary, from the signals of all tokens of the optimizer step (all ranks
      and accumulation micro-batches), or of the micro-batch when ``config.scope == "microbatch"``. Without these two
      the summary is None.
    - ``control(state, summary, config) -> (state, summary)``: for a controller; once per optimizer step, before its
      first micro-batch, the same on every rank. ``state`` is a plain ``dict[str, float]``, empty at first and saved in
      OpenRLHF's checkpoints; it also holds ``updates`` (optimizer steps of this rollout), ``update`` (which one, from
      0) and ``momentum`` (the optimizer's first-moment decay).
    - ``observe(state, change, config) -> (state, metrics)``: after each rollout's updates, with what they did to the
      mean entropy (:class:`steer_openrlhf.tokens.RolloutChange`); costs two forwards of the measured sequences.
    """

    name: str
    config: type[Config]
    maths: str
    prefix: str = ""
    """Prefix of its flags; the name when empty."""
    stepwise: Callable[[Any], bool] = lambda config: True
    """Whether, with this config, the weights depend on the summary. Several micro-batches a step then cost one more
    forward."""
    needs: Callable[[Any], frozenset[str]] = lambda config: frozenset()
    """Of :data:`NEEDS`, what it reads beyond what is always there; each has a cost, so it is made only when named."""
    observes: Callable[[Any], bool] = lambda config: False
    """Whether, with this config, ``observe`` is called; measuring what it gets costs forwards."""
    own_loss: bool = False
    """It replaces the clip range or adds a loss, so OpenRLHF's plain ``ppo`` loss must be below it: not gspo, and no
    importance-sampling correction."""

    @property
    def flag_prefix(self) -> str:
        return self.prefix or self.name

    def function(self, name: str) -> Callable[..., Any] | None:
        """One of the functions above, None when it has none; ``maths`` is ``module`` or ``module:suffix``, and a suffix
        picks ``<function>_<suffix>`` where the module has it."""
        module, _, suffix = self.maths.partition(":")
        loaded = import_module(module)
        found: Callable[..., Any] | None = getattr(loaded, f"{name}_{suffix}", None) or getattr(loaded, name, None)
        return found


_HERE = "steer_openrlhf.interventions"

INTERVENTIONS: dict[str, Intervention] = {
    "steer": Intervention(
        "steer",
        SteerConfig,
        f"{_HERE}.steer",
        stepwise=lambda config: config.k is None,
        needs=SteerConfig.needs,
        observes=lambda config: config.banded,
    ),
    "uniform": Intervention(
        "uniform",
        SteerConfig,
        f"{_HERE}.steer:uniform",
        prefix="steer",
        needs=SteerConfig.needs,
        observes=lambda config: config.banded,
    ),
    "entropy_advantage": Intervention(
        "entropy_advantage", configs.EntropyAdvantageConfig, f"{_HERE}.advantages:entropy_advantage"
    ),
    "w_reinforce": Intervention("w_reinforce", configs.WReinforceConfig, f"{_HERE}.advantages:w_reinforce"),
    "stare": Intervention("stare", configs.StareConfig, f"{_HERE}.advantages:stare"),
    "clip_cov": Intervention(
        "clip_cov", configs.ClipCovConfig, f"{_HERE}.covariance:clip_cov", needs=lambda config: frozenset({"random"})
    ),
    "kl_cov": Intervention("kl_cov", configs.KlCovConfig, f"{_HERE}.covariance:kl_cov", own_loss=True),
    "forking_tokens": Intervention("forking_tokens", configs.ForkingTokensConfig, f"{_HERE}.masks:forking_tokens"),
    "erc": Intervention(
        "erc", configs.ErcConfig, f"{_HERE}.masks:erc", needs=lambda config: frozenset({"old_entropy"})
    ),
    "clip_b": Intervention("clip_b", configs.ClipBConfig, f"{_HERE}.discriminator:clip_b"),
    "clip_v": Intervention("clip_v", configs.ClipVConfig, f"{_HERE}.discriminator:clip_v"),
    "opefo": Intervention("opefo", configs.OpefoConfig, f"{_HERE}.flow:opefo", needs=configs.OpefoConfig.needs),
    "dcpo": Intervention("dcpo", configs.DcpoConfig, f"{_HERE}.clipping:dcpo", own_loss=True),
    "ce_gppo": Intervention("ce_gppo", configs.CeGppoConfig, f"{_HERE}.clipping:ce_gppo", own_loss=True),
    "entropic": Intervention("entropic", configs.EntropicConfig, f"{_HERE}.controllers:entropic", own_loss=True),
    "positive_reweight": Intervention(
        "positive_reweight", configs.PositiveReweightConfig, f"{_HERE}.controllers:positive_reweight"
    ),
}


def interventions() -> dict[str, Intervention]:
    """Ours and every installed third party's.

    Raises:
        ValueError: an entry point is not an :class:`Intervention`, or takes a name that exists.
    """
    return INTERVENTIONS | _third_parties(entry_points)


@cache
def _third_parties(find: Callable[..., Iterable[EntryPoint]]) -> dict[str, Intervention]:
    """Looked up once a process: it reads the metadata of every installed package."""
    found: dict[str, Intervention] = {}
    for point in find(group=ENTRY_POINT_GROUP):
        loaded = point.load()
        if not isinstance(loaded, Intervention):
            raise ValueError(
                f"entry point {point.name} = {point.value}: is {type(loaded).__name__}, not an Intervention"
            )
        if loaded.name in (*found, *INTERVENTIONS, *HOST_LOSSES):
            raise ValueError(f"entry point {point.name} = {point.value}: the name '{loaded.name}' is taken")
        found[loaded.name] = loaded
    return found


def known_losses() -> list[str]:
    """Every value ``--actor.policy_loss_type`` may have."""
    return [*HOST_LOSSES, *interventions()]

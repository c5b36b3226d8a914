"""The adaptive entropy coefficient of Skywork-OR1 (arXiv 2505.22312, section 3.2): OpenRLHF adds the bonus itself."""

from .config import EntropyBonusConfig


def adapted(coefficient: float, entropy: float, config: EntropyBonusConfig) -> float:
    """The coefficient after an optimizer step whose tokens, of all ranks, had this mean entropy (nats): up by ``delta``
    below the target, else down, within [0, maximum]. An entropy that is no number leaves it as it is."""
    assert config.target is not None
    if entropy != entropy:
        return coefficient
    moved = coefficient + (config.delta if entropy < config.target else -config.delta)
    return min(max(moved, 0.0), config.maximum)


def applied(coefficient: float, entropy: float, config: EntropyBonusConfig) -> float:
    """What the next loss is given: the coefficient while the entropy is at or below the target, else 0."""
    assert config.target is not None
    return coefficient if entropy <= config.target else 0.0

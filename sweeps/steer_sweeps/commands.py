"""What ``steer sweep stop`` and ``retry`` do."""

from collections.abc import Sequence

from steer_openrlhf.errors import ConfigError

from .study import Configuration, Study
from .trials import SETTLED


def ask_to_stop(study: Study, now: bool = False) -> list[str]:
    """Ask every controller to stop; who they are, in words. Controllers look every 2 s."""
    running = study.running()
    study.request_stop(now)
    owners: dict[str, list[str]] = {}
    for arm, trial in running:
        if "config" in trial.user_attrs:
            owner = str(trial.user_attrs.get("owner", "?")).rsplit(":", 1)[0]
            owners.setdefault(owner, []).append(study.run_name(arm, trial))
    if not owners:
        return ["no trial runs; a controller that is at work stops too"]
    how = "to end their trials now" if now else "to end their trials cleanly"
    lines = [f"asked all controllers of {study.sweep.name} to start nothing new and {how}"]
    return lines + [f"  {owner} (host:process): trials {', '.join(trials)}" for owner, trials in owners.items()]


def failed_trials(study: Study) -> list[Configuration]:
    """Configurations without a result that are given up, or nearly."""
    return [one for one in study.configurations() if not _refusal(one)]


def _refusal(one: Configuration) -> str:
    """Why there is nothing to forgive."""
    if any(trial.state in SETTLED for trial in one.tries):
        return "has a result" if one.complete else "was pruned, which is a result"
    if one.live:
        return "is running"
    return "" if one.outcomes() else "has no failure"


def retry(study: Study, names: Sequence[str]) -> list[str]:
    """Forget the failures of these trials (by the names of the table; none: of all that failed), so that a controller
    tries them again. Returns a line for each.

    Raises:
        ConfigError: for every name that is no trial, or a trial that did not fail; then nothing is changed.
    """
    known = _by_name(study)
    chosen, mistakes = [], []
    for name in dict.fromkeys(names):
        if name not in known:
            mistakes.append(f"trial {name}: unknown; steer sweep status --all {study.path} shows their names")
        elif refusal := _refusal(known[name]):
            mistakes.append(f"trial {name}: {refusal}; there is nothing to retry")
        else:
            chosen.append(known[name])
    if mistakes:
        raise ConfigError(mistakes)
    if not names:
        chosen = failed_trials(study)
    lines = []
    for one in {(one.arm.kind, one.index): one for one in chosen}.values():
        n = len(one.outcomes())
        study.forgive(one)
        lines.append(f"{one.name}: {n} failed {'try' if n == 1 else 'tries'} forgiven (the last: {one.reason()})")
    return lines


def _by_name(study: Study) -> dict[str, Configuration]:
    """Every configuration by the names of its tries, as tables show them."""
    found: dict[str, Configuration] = {}
    for one in study.configurations():
        for trial in one.tries:
            found[study.run_name(one.arm, trial)] = one
        if not one.arm.searched:
            found.setdefault(one.name, one)
    return found

"""Weights & Biases: one run for every run of a trial, grouped by study, also after it was put back into a queue.

Only names are said here, by W&B's own environment variables; whether it is on, and the key, are the user's environment.
"""

from collections.abc import Mapping

GROUP, NAME, RUN_ID, RESUME = "WANDB_RUN_GROUP", "WANDB_NAME", "WANDB_RUN_ID", "WANDB_RESUME"


def wandb_variables(study: str, name: str, job: str, environment: Mapping[str, str]) -> dict[str, str]:
    """What a trial's process gets: its run's name, the study as its group (unless the user has named one), and as the
    run's identity the job's name, which no other has: a trial that goes on from its checkpoint goes on there."""
    return {GROUP: environment.get(GROUP) or study, NAME: name, RUN_ID: job, RESUME: "allow"}

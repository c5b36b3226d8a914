"""The section ``executor`` of a sweep file: where trials run. Light: nothing of Ray, Slurm or CUDA is loaded here."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

SLURM_RESERVED = ("job-name", "output", "error", "requeue", "gres", "cpus-per-task", "ntasks", "nodes", "open-mode")


class _Place(BaseModel):
    """What every place has. ``slots``: how many trials of this study may run (or wait in a queue) at a time."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    slots: int = Field(default=1, ge=1)
    gpus_per_trial: int = Field(default=0, ge=0)


class LocalConfig(_Place):
    """Processes of this machine. Trials with GPUs get devices of their own, host-wide, whoever started the others."""

    name: Literal["local"] = "local"
    devices: list[str] | None = None
    """CUDA devices that trials may use (``["0", "1"]``, or GPU UUIDs); null: all of them, as ``nvidia-smi`` lists
    them, or those of ``CUDA_VISIBLE_DEVICES``."""

    @field_validator("devices", mode="before")
    @classmethod
    def _numbers_are_text(cls, value: Any) -> Any:
        return [str(one) if isinstance(one, int) else one for one in value] if isinstance(value, list) else value

    @model_validator(mode="after")
    def _enough(self) -> "LocalConfig":
        devices = self.devices
        if devices is None:
            return self
        if len(set(devices)) < len(devices) or not all(one and one.replace("-", "").isalnum() for one in devices):
            raise ValueError(f"devices = {devices!r}: must be different device numbers or UUIDs")
        if self.gpus_per_trial > len(devices):
            raise ValueError(f"gpus_per_trial = {self.gpus_per_trial}: more than the {len(devices)} devices")
        return self


class RayConfig(_Place):
    """Jobs of a Ray cluster that is there already, through its Jobs API."""

    name: Literal["ray"] = "ray"
    address: str = Field(pattern=r"^https?://[^\s@]+$")
    """The dashboard's address, ``http://HOST:8265``. No password in it."""
    cpus_per_gpu: float = Field(default=1, ge=0)
    """CPUs that a trial's placement groups ask for with each GPU; OpenRLHF asks for one."""
    shared_files: bool = True
    """Whether the nodes see the study directory under the same path. Without it a trial writes to ``scratch`` on its
    node and its small files come back through the job's log; its checkpoint stays on the node."""
    scratch: str = "/tmp/steer-scratch"
    python: str | None = None
    """The interpreter on the nodes that has this project installed; null: the same path as here."""
    env: dict[str, str] = {}
    """Environment variables of every trial. They are shown on the cluster's dashboard: no keys here."""
    stop_s: float = Field(default=30, gt=0)
    """Seconds from a request to stop to the kill."""


class SlurmConfig(_Place):
    """Jobs of a Slurm cluster, through submitit. The study directory must be on a file system all nodes share."""

    name: Literal["slurm"] = "slurm"
    partition: str | None = None
    cpus_per_trial: int | None = Field(default=None, ge=1)
    memory_gb: float | None = Field(default=None, gt=0)
    time_minutes: int | None = Field(default=None, ge=1)
    extra: dict[str, str | int | bool] = {}
    """Further options of ``sbatch`` without their dashes, for example ``{account: lab, qos: preemptible}``."""
    python: str | None = None
    """The interpreter on the nodes that has this project installed; null: the same path as here."""

    @field_validator("extra")
    @classmethod
    def _not_ours(cls, value: dict[str, Any]) -> dict[str, Any]:
        wrong = [key for key in value if key.replace("_", "-") in SLURM_RESERVED]
        wrong += [key for key in value if not key.replace("_", "-").replace("-", "").isalnum()]
        if wrong:
            raise ValueError(f"extra: {', '.join(wrong)}: set by the executor itself, or no option of sbatch")
        return value


ExecutorConfig = Annotated[LocalConfig | RayConfig | SlurmConfig, Field(discriminator="name")]
"""One of the three, told apart by ``name``."""

"""OpenRLHF on a machine without a GPU: what torch and vLLM need to be told. Does nothing where CUDA is present.

Nothing of the method lives here. :mod:`.host` decides when each function runs (after the import of the module it
adapts); parts that belong to OpenRLHF's own modules are defined here and bound there. *Remove when* OpenRLHF asks
``torch.accelerator`` for its device instead of ``torch.cuda``.
"""

import os
from collections.abc import Mapping
from datetime import timedelta
from functools import cache, wraps
from typing import Any

DTYPE_VARIABLE = "STEER_OPENRLHF_PARAM_DTYPE"
"""``--ds.param_dtype`` of the training a process belongs to; set by the launcher for every worker of it."""
DEVICE_FILES = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg", "/dev/kfd")
SYNC_TIMEOUT = timedelta(minutes=10)


def no_gpu() -> bool:
    """Whether this machine has no GPU. Asks the device files: CUDA itself must not be initialised before Ray has chosen
    the visible devices, and ``CUDA_VISIBLE_DEVICES=""`` in a Ray worker without a GPU does not make a CPU machine."""
    return not any(os.path.exists(path) for path in DEVICE_FILES)


class CpuDevice(str):
    """``torch.cuda.current_device()`` without CUDA: a device for ``.to(...)``, yet "0" in OpenRLHF's ``f"cuda:{...}"``
    (a torch.device it builds and never uses on this path)."""

    def __format__(self, spec: str) -> str:
        return "0"


def adapt_torch(torch: Any) -> None:
    """``torch.cuda``'s current device is the CPU, its synchronisation is nothing, a "cuda" mesh is a "cpu" mesh."""
    if not no_gpu() or isinstance(torch.cuda.current_device, _Fixed):
        return
    torch.cuda.current_device = _Fixed(CpuDevice("cpu"))
    for name in ("set_device", "synchronize", "empty_cache", "current_stream"):
        setattr(torch.cuda, name, _Fixed(None))
    from torch.distributed import device_mesh

    original = device_mesh.init_device_mesh

    @wraps(original)
    def init_device_mesh(device_type: str, *args: Any, **kwargs: Any) -> Any:
        return original("cpu" if device_type == "cuda" else device_type, *args, **kwargs)

    device_mesh.init_device_mesh = init_device_mesh
    torch.distributed.init_device_mesh = init_device_mesh


class _Fixed:
    """A function of any arguments with one answer."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.answer


class GlooCommunicator:
    """Stands where vLLM's ``PyNcclCommunicator`` stands in the weight synchronisation: same store, gloo, no CUDA."""

    def __init__(self, group: Any, device: Any = None, **_: Any) -> None:
        from torch.distributed import PrefixStore, ProcessGroupGloo

        store = PrefixStore("steer_openrlhf/weights", group.store)
        self.gloo: Any = ProcessGroupGloo(store, group.rank, group.world_size, SYNC_TIMEOUT)

    def broadcast(self, tensor: Any, src: int, stream: Any = None) -> None:
        """In place, from rank ``src``."""
        self.gloo.broadcast(tensor, root=src).wait()


def adapt_pynccl(module: Any) -> None:
    """vLLM's NCCL communicator becomes gloo."""
    if no_gpu():
        module.PyNcclCommunicator = GlooCommunicator


def adapt_engine_args(module: Any) -> None:
    """vLLM computes in float32 where the actor does: OpenRLHF asks for bfloat16 whatever the actor's type is, and then
    refuses to send it other weights."""
    if os.environ.get(DTYPE_VARIABLE) != "fp32":
        return
    original = module.EngineArgs.__post_init__

    @wraps(original)
    def post_init(self: Any) -> None:
        if self.dtype in ("bfloat16", "auto"):
            self.dtype = "float32"
        original(self)

    module.EngineArgs.__post_init__ = post_init


def adapt_custom_ops(module: Any) -> None:
    """Keep vLLM's plain float32 linear weights: oneDNN's prepacking drops the originals, which the sync writes to."""
    if no_gpu():
        module._supports_onednn = False


def adapt_cpuinfo(module: Any) -> None:
    """The processor is looked at once: DeepSpeed asks two times, and each starts two Pythons."""
    if no_gpu():
        module.get_cpu_info = cache(module.get_cpu_info)


def cpu_worker_wrap(worker_wrap: type) -> type:
    """OpenRLHF's vLLM worker extension with ``update_weight`` that does not allocate on "cuda"."""

    class CpuWorkerWrap(worker_wrap):
        def update_weight(self, name: str, dtype: Any, shape: Any, empty_cache: bool = False) -> None:
            import torch

            assert dtype == self.model_config.dtype, f"mismatch dtype: src {dtype}, dst {self.model_config.dtype}"
            weight = torch.empty(shape, dtype=dtype)
            self._model_update_group.broadcast(weight, src=0)
            self.model_runner.model.load_weights(weights=[(name, weight)])

    return CpuWorkerWrap


def vllm_plugin() -> None:
    """Entry point ``vllm.general_plugins``: vLLM's own processes are no Ray workers, so they come here. Nothing happens
    in a vLLM that belongs to no training of ours."""
    if DTYPE_VARIABLE in os.environ:
        from .host import install

        install()


def mistakes(flags: Mapping[str, Any]) -> list[str]:
    """What a training cannot do on a machine without a GPU: flags as sentences; [] where there is one."""
    if not no_gpu():
        return []
    found = []
    if (dtype := flags.get("ds.param_dtype", "bf16")) != "fp32":
        found.append(
            f"ds.param_dtype = {dtype!r}: there is no GPU here, and OpenRLHF trains in float32 then; give fp32"
        )
    if (attention := flags.get("ds.attn_implementation", "flash_attention_2")) not in ("sdpa", "eager"):
        found.append(f"ds.attn_implementation = {attention!r}: needs a GPU; without one: sdpa, eager")
    if flags.get("ds.packing_samples"):
        found.append("ds.packing_samples: needs flash-attn, and that a GPU; leave it out")
    return found

"""The seam into OpenRLHF: the one file that writes to ``openrlhf.*``.

OpenRLHF has no plug-in mechanism, so each process that matters calls :func:`install`: the launcher, every Ray worker
(``worker_process_setup_hook``) and vLLM's own processes (entry point). It imports nothing heavy: each patch runs right
after the module it belongs to is imported. Each says what, why, and when to remove it; the versions they were written
for are checked first and refused otherwise (:mod:`.versions`).
"""

import importlib.util
import inspect
import sys
from collections.abc import Callable
from functools import wraps
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any, ClassVar

import wrapt

from . import cpu
from .errors import ConfigError
from .versions import check_versions

FLASH_ATTN_USER = "openrlhf.models.ring_attn_utils"
_installed = False


def install() -> None:
    """Arrange every patch. Safe to call again; raises :class:`ConfigError` on an unsupported version."""
    global _installed
    if _installed:
        return
    if wrong := check_versions():
        raise ConfigError(wrong)
    for module, patch in PATCHES.items():
        wrapt.register_post_import_hook(patch, module)
    if importlib.util.find_spec("flash_attn") is None:
        sys.meta_path.insert(0, _FlashAttnStubs())
    _installed = True


def patch_ppo_actor(module: Any) -> None:
    """Put :class:`.actor_trainer.SteerTrainer` in front of ``ActorPPOTrainer``, and show it whole optimizer steps.

    Why: the trainer builds its loss from a closed choice and passes no entropy. *Remove when* OpenRLHF takes a loss
    class by name.
    """
    from .actor_trainer import SteerTrainer, windows

    # The name of the class it replaces, so that Ray ships it by reference and each worker finds its own patched class:
    # a worker where nothing was patched has the stock one, which prove_live refuses.
    name = {"__module__": module.__name__, "__qualname__": "ActorPPOTrainer"}
    module.ActorPPOTrainer = type("ActorPPOTrainer", (SteerTrainer, module.ActorPPOTrainer), name)
    original = _expect(
        module, "iter_grad_accum_global_norm", ("data_iter", "strategy", "accumulated_gradient", "mask_fn")
    )

    @wraps(original)
    def iterate(data_iter: Any, strategy: Any, accumulated_gradient: int, mask_fn: Any) -> Any:
        return windows(original(data_iter, strategy, accumulated_gradient, mask_fn), strategy, accumulated_gradient)

    module.iter_grad_accum_global_norm = iterate


def patch_launcher(module: Any) -> None:
    """After the policy workers have built their models, ask each for proof that the plugin is live in it.

    Why: a patch in the launcher alone does nothing, and a loss that silently is not used is the worst failure.
    """
    original = _expect(module.RayActorGroup, "async_init_model_from_pretrained", ("self", "args", "kwargs"))

    @wraps(original)
    def init_and_prove(self: Any, *args: Any, **kwargs: Any) -> list[Any]:
        refs: list[Any] = original(self, *args, **kwargs)
        from openrlhf.trainer.ray.ppo_actor import PolicyModelActor

        # Calls of one actor run in order, and OpenRLHF waits for all of these references.
        if self.ray_actor_type is PolicyModelActor:
            from .actor_trainer import prove_live

            refs += [actor.__ray_call__.remote(prove_live) for actor in self._actor_handlers]
        return refs

    module.RayActorGroup.async_init_model_from_pretrained = init_and_prove


def patch_ppo_trainer(module: Any) -> None:
    """Put :class:`.metrics.MetricsLogger` in front of OpenRLHF's W&B logger, for both its trainers.

    Why: OpenRLHF has no metrics file. Only ``__init__`` can be patched: Ray copies inherited methods into an actor
    class when it is decorated, so other methods of the base are too late here. *Remove when* it takes a logger.
    """
    from .metrics import MetricsLogger

    base = module.BasePPOTrainer
    original = base.__init__

    @wraps(original)
    def init(self: Any, strategy: Any, *args: Any, **kwargs: Any) -> None:
        original(self, strategy, *args, **kwargs)
        self.wandb_logger = MetricsLogger(strategy.args, self.wandb_logger)

    base.__init__ = init


def patch_strategy(module: Any) -> None:
    """Our state (a controller's, the number of rollouts) is saved with OpenRLHF's checkpoints and read back.

    Why: the client state OpenRLHF saves is made in another process. *Remove when* trainers can add to it.
    """
    from .actor_trainer import STATE

    strategy = module.DeepspeedStrategy
    saved = ("self", "model", "save_dir", "tag", "max_num", "max_mem", "client_state")
    save = _expect(strategy, "save_ckpt", (*saved, "save_latest", "metric_value", "metric_key"))
    read = ("load_optimizer_states", "load_lr_scheduler_states", "load_module_only")
    load = _expect(strategy, "load_ckpt", ("self", "model", "load_dir", "tag", "load_module_strict", *read))
    signature = inspect.signature(save)

    @wraps(save)
    def save_ckpt(self: Any, *args: Any, **kwargs: Any) -> Any:
        call = signature.bind(self, *args, **kwargs)
        if state := getattr(self, "steer_state", None):
            call.arguments["client_state"] = {**(call.arguments.get("client_state") or {}), STATE: state()}
        return save(*call.args, **call.kwargs)

    @wraps(load)
    def load_ckpt(self: Any, *args: Any, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        path, states = load(self, *args, **kwargs)
        self.steer_restored = states.get(STATE)
        return path, states

    strategy.save_ckpt, strategy.load_ckpt = save_ckpt, load_ckpt


def patch_dtype(module: Any) -> None:
    """``--ds.param_dtype fp32``. Why: OpenRLHF knows bf16 and fp16; DeepSpeed takes neither for float32, rightly."""
    original = _expect(module, "convert_to_torch_dtype", ("param_dtype",))

    @wraps(original)
    def convert(param_dtype: str) -> Any:
        import torch

        return torch.float32 if param_dtype == "fp32" else original(param_dtype)

    module.convert_to_torch_dtype = convert


def patch_worker_wrap(module: Any) -> None:
    """On a CPU machine, OpenRLHF's vLLM worker extension receives weights in CPU memory."""
    if cpu.no_gpu():
        module.WorkerWrap = cpu.cpu_worker_wrap(module.WorkerWrap)


PATCHES: dict[str, Callable[[Any], None]] = {
    "openrlhf.trainer.ray.ppo_actor": patch_ppo_actor,
    "openrlhf.trainer.ray.launcher": patch_launcher,
    "openrlhf.trainer.ppo_trainer": patch_ppo_trainer,
    "openrlhf.utils.utils": patch_dtype,
    "openrlhf.utils.deepspeed.deepspeed": patch_strategy,
    "openrlhf.trainer.ray.vllm_worker_wrap": patch_worker_wrap,
    "torch": cpu.adapt_torch,
    "cpuinfo": cpu.adapt_cpuinfo,
    "vllm.distributed.device_communicators.pynccl": cpu.adapt_pynccl,
    "vllm.engine.arg_utils": cpu.adapt_engine_args,
    "vllm._custom_ops": cpu.adapt_custom_ops,
}


def _expect(owner: Any, name: str, parameters: tuple[str, ...]) -> Callable[..., Any]:
    """The host's function, whose parameters must be the ones the patch was written for."""
    function: Callable[..., Any] | None = getattr(owner, name, None)
    found = tuple(inspect.signature(function).parameters) if function else ()
    if function is None or found != parameters:
        raise RuntimeError(
            f"{owner.__name__}.{name}{found} is not {name}{parameters}: this OpenRLHF is not the supported one; "
            "pip install 'openrlhf[vllm]==0.11.2'"
        )
    return function


class _FlashAttnStubs(MetaPathFinder):
    """OpenRLHF imports flash-attn in one module although only packing and ring attention call it. Where flash-attn is
    not installed, that import alone is satisfied; nobody else (transformers, vLLM) sees the stand-ins.
    *Remove when* that import moves into the functions."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if fullname != FLASH_ATTN_USER:
            return None
        spec = PathFinder.find_spec(fullname, path)
        if spec and spec.loader:
            spec.loader = _StubbedLoader(spec.loader)
        return spec


class _StubbedLoader(Loader):
    NAMES: ClassVar[dict[str, tuple[str, ...]]] = {
        "flash_attn": (),
        "flash_attn.bert_padding": ("index_first_axis", "pad_input", "rearrange", "unpad_input"),
        "flash_attn.utils": (),
        "flash_attn.utils.distributed": ("all_gather",),
    }

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        for name, functions in self.NAMES.items():
            stub = ModuleType(name)
            for function in functions:
                setattr(stub, function, _needs_flash_attn)
            sys.modules[name] = stub
        try:
            self.loader.exec_module(module)
        finally:
            for name in self.NAMES:
                sys.modules.pop(name, None)


def _needs_flash_attn(*args: Any, **kwargs: Any) -> Any:
    raise RuntimeError(
        "flash-attn is not installed, and packing samples or ring attention need it: pip install flash-attn"
    )

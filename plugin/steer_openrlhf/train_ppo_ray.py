"""Drop-in for ``python -m openrlhf.cli.train_ppo_ray``: the same flags, the plugin's losses, and ``--steer.*``.

    python -m steer_openrlhf.train_ppo_ray <any OpenRLHF flag> --actor.policy_loss_type steer --steer.lambda_min 0.7

Works alone and under ``ray job submit ... -- python3 -m steer_openrlhf.train_ppo_ray ...``. OpenRLHF parses, validates
and trains; this file only checks the line early, before torch and Ray are loaded, and arranges :mod:`.host`.
"""

import argparse
import json
import os
import runpy
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import wraps
from pathlib import Path
from typing import Any

from . import cpu, fork_server
from .errors import ConfigError
from .hostargs import HOST_MODULE, LOSS_FLAG, Resolved, extend, fail, parse, resolve
from .versions import check_versions

_WANDB = ("WANDB_MODE", "WANDB_DIR", "WANDB_RUN_GROUP", "WANDB_RUN_ID", "WANDB_RESUME")
FORWARDED = (*_WANDB, "STEER_OPENRLHF_KERNEL")  # workers of a cluster that was there before do not inherit our shell
SETUP_HOOK = "steer_openrlhf.host.install"
HOST_VARIABLES = {"TOKENIZERS_PARALLELISM": "true", "NCCL_DEBUG": "WARN", "RAY_ENABLE_ZERO_COPY_TORCH_TENSORS": "1"}
"""What OpenRLHF's own ``ray.init`` gives its workers where our environment does not say otherwise."""


def main(argv: list[str] | None = None) -> None:
    """Check the command line, then run OpenRLHF's own main with it."""
    arguments = sys.argv[1:] if argv is None else argv
    try:
        if wrong := check_versions() + _hook_mistakes():
            raise ConfigError(wrong)
        resolved, flags = parse(arguments)
        if _starts_ray(resolved) and (wrong := cpu.mistakes(flags)):
            raise ConfigError(wrong)
        from . import host

        host.install()
    except ConfigError as error:
        fail(error)
    sys.argv = [HOST_MODULE, *arguments]
    with _extended_parser(), _ray(resolved, str(flags["ds.param_dtype"])):
        runpy.run_module(HOST_MODULE, run_name="__main__", alter_sys=True)


@contextmanager
def _extended_parser() -> Iterator[None]:
    """OpenRLHF's parser knows our flags, and its namespace carries our resolved values to every worker."""
    original = argparse.ArgumentParser.parse_args

    @wraps(original)
    def parse_args(self: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> Any:
        if not any(action.dest == LOSS_FLAG for action in self._actions):
            return original(self, *args, **kwargs)
        extend(self)
        namespace = original(self, *args, **kwargs)
        for name, value in resolve(vars(namespace)).values().items():
            setattr(namespace, name, value)
        _use_wandb_from_environment(namespace, self.get_default("logger.wandb.run_name"))
        return namespace

    argparse.ArgumentParser.parse_args = parse_args  # type: ignore[method-assign]
    try:
        yield
    finally:
        argparse.ArgumentParser.parse_args = original  # type: ignore[method-assign]


def _use_wandb_from_environment(namespace: argparse.Namespace, usual_name: str) -> None:
    """W&B is on when the environment has a key or asks for offline; the key itself stays out of the arguments. A run's
    name in the environment (a study's) counts where no flag gives one: OpenRLHF's own default would hide it."""
    if (name := os.environ.get("WANDB_NAME")) and getattr(namespace, "logger.wandb.run_name") == usual_name:
        setattr(namespace, "logger.wandb.run_name", name)
    wanted = os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_MODE") == "offline"
    off = os.environ.get("WANDB_MODE") == "disabled"
    if wanted and not off and not getattr(namespace, "logger.wandb.key"):
        setattr(namespace, "logger.wandb.key", "from the environment")


@contextmanager
def _ray(resolved: Resolved, dtype: str) -> Iterator[None]:
    """The training's Ray. Without a GPU a cluster of our own is there before OpenRLHF is imported, so that the workers'
    imports go on beside ours; elsewhere OpenRLHF starts it or connects to it."""
    early = cpu.no_gpu() and _address(resolved) is None
    with fork_server.python_program(resolved.launch.ray.temp_dir) if early else nullcontext() as python:
        if python is None:
            with _ray_with_hook(resolved, dtype):
                yield
        else:
            _start_early(resolved, dtype, python)
            yield


def _start_early(resolved: Resolved, dtype: str, python: str) -> None:
    """Start Ray with workers that are forks, as OpenRLHF would start it, and import what OpenRLHF's main imports."""
    import ray

    os.environ.setdefault("RAY_prestart_worker_first_driver", "0")  # workers without our runtime env: never used
    host_env = {"env_vars": {name: os.environ.get(name, value) for name, value in HOST_VARIABLES.items()}}
    ray.init(runtime_env=_runtime_env(host_env, dtype) | {"py_executable": python}, **_cluster(resolved))
    ray.remote(num_cpus=0)(fork_server.warm_up).remote()
    fork_server.import_stack(fork_server.HOST_MODULES)


@contextmanager
def _ray_with_hook(resolved: Resolved, dtype: str) -> Iterator[None]:
    """OpenRLHF's own ``ray.init`` with our setup hook added, and the cluster ``--steer.ray.*`` asks for."""
    import ray

    original = ray.init

    @wraps(original)
    def init(*args: Any, runtime_env: dict[str, Any] | None = None, **kwargs: Any) -> Any:
        return original(*args, runtime_env=_runtime_env(runtime_env or {}, dtype), **(_cluster(resolved) | kwargs))

    ray.init = init
    try:
        yield
    finally:
        ray.init = original


def _job_env() -> dict[str, Any]:
    """The runtime env of the Ray job this process is the entry point of; empty outside of a job."""
    found: dict[str, Any] = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")).get("runtime_env", {})
    return found


def _hook_mistakes() -> list[str]:
    hook = _job_env().get("worker_process_setup_hook")
    if not hook or hook == SETUP_HOOK:
        return []
    return [
        f"the job's runtime env sets worker_process_setup_hook = {hook!r}, and Ray has room for one: "
        f"call {SETUP_HOOK} from yours and name it there, or leave it out"
    ]


def _runtime_env(host_env: dict[str, Any], dtype: str) -> dict[str, Any]:
    """OpenRLHF's runtime env plus the hook. Under ``ray job submit`` the job has one already, and Ray refuses a key
    that both set, so OpenRLHF's defaults give way to the job's own variables."""
    job = _job_env()
    ours = {cpu.DTYPE_VARIABLE: dtype} | {name: os.environ[name] for name in FORWARDED if name in os.environ}
    variables = host_env.get("env_vars", {}) | ours
    merged = {
        **host_env,
        "env_vars": {name: one for name, one in variables.items() if name not in job.get("env_vars", {})},
    }
    if "worker_process_setup_hook" not in job:
        merged["worker_process_setup_hook"] = SETUP_HOOK
    return merged


def _address(resolved: Resolved) -> str | None:
    """The cluster to connect to: the one named, or one that runs on this machine; None when this process starts one."""
    asked = resolved.launch.ray.address or os.environ.get("RAY_ADDRESS")
    if asked:
        return None if asked == "local" else asked
    from ray._private import services

    look: Callable[..., str | None] = services.canonicalize_bootstrap_address
    return look(None, resolved.launch.ray.temp_dir)  # as ray.init itself does


def _starts_ray(resolved: Resolved) -> bool:
    """As far as can be said before Ray is loaded. A cluster there is may have GPUs on other machines."""
    address = resolved.launch.ray.address or os.environ.get("RAY_ADDRESS")
    current = Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray" / "ray_current_cluster"
    return address == "local" or (address is None and not current.exists())


def _cluster(resolved: Resolved) -> dict[str, Any]:
    """Arguments of ``ray.init`` from ``--steer.ray.*``. A cluster started here without a GPU gets GPU slots by name, so
    that OpenRLHF's placement works."""
    asked = resolved.launch.ray
    if address := _address(resolved):
        return {"address": address}
    os.environ.pop("RAY_ADDRESS", None)  # "local" must not reach the workers as an address
    slots = asked.num_gpus if asked.num_gpus is not None or not cpu.no_gpu() else 2
    given = {
        "address": "local" if asked.address == "local" else None,
        "num_cpus": asked.num_cpus,
        "num_gpus": slots,
        "_temp_dir": asked.temp_dir,
        "object_store_memory": asked.object_store_memory,
        "include_dashboard": False if asked.address == "local" else None,
    }
    return {name: value for name, value in given.items() if value is not None}


if __name__ == "__main__":
    main()

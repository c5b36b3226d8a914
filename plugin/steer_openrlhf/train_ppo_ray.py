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
from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

from . import cpu
from .errors import ConfigError
from .hostargs import HOST_MODULE, LOSS_FLAG, Resolved, extend, fail, parse, resolve

SETUP_HOOK = "steer_openrlhf.host.install"


def main(argv: list[str] | None = None) -> None:
    """Check the command line, then run OpenRLHF's own main with it."""
    arguments = sys.argv[1:] if argv is None else argv
    try:
        resolved = parse(arguments)
        from . import host

        host.install()
    except ConfigError as error:
        fail(error)
    sys.argv = [HOST_MODULE, *arguments]
    with _extended_parser(), _ray_with_hook(resolved):
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
        _use_wandb_from_environment(namespace)
        return namespace

    argparse.ArgumentParser.parse_args = parse_args  # type: ignore[method-assign]
    try:
        yield
    finally:
        argparse.ArgumentParser.parse_args = original  # type: ignore[method-assign]


def _use_wandb_from_environment(namespace: argparse.Namespace) -> None:
    """W&B is on when the environment has a key or asks for offline; the key itself stays out of the arguments."""
    wanted = os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_MODE") == "offline"
    off = os.environ.get("WANDB_MODE") == "disabled"
    if wanted and not off and not getattr(namespace, "logger.wandb.key"):
        setattr(namespace, "logger.wandb.key", "from the environment")


@contextmanager
def _ray_with_hook(resolved: Resolved) -> Iterator[None]:
    """OpenRLHF's own ``ray.init`` with our setup hook added, and the cluster ``--steer.ray.*`` asks for."""
    import ray

    original = ray.init

    @wraps(original)
    def init(*args: Any, runtime_env: dict[str, Any] | None = None, **kwargs: Any) -> Any:
        return original(*args, runtime_env=_runtime_env(runtime_env or {}), **(_cluster(resolved) | kwargs))

    ray.init = init
    try:
        yield
    finally:
        ray.init = original


def _runtime_env(host_env: dict[str, Any]) -> dict[str, Any]:
    """OpenRLHF's runtime env plus the hook. Under ``ray job submit`` the job has one already, and Ray refuses a key
    that both set, so OpenRLHF's defaults give way to the job's own variables."""
    job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")).get("runtime_env", {})
    hook = job.get("worker_process_setup_hook")
    if hook and hook != SETUP_HOOK:
        raise ConfigError(
            [
                f"the job's runtime env sets worker_process_setup_hook = {hook!r}, and Ray has room for one: "
                f"call {SETUP_HOOK} from yours and name it there, or leave it out"
            ]
        )
    taken = job.get("env_vars", {})
    variables = {name: value for name, value in host_env.get("env_vars", {}).items() if name not in taken}
    merged = {**host_env, "env_vars": variables}
    if not hook:
        merged["worker_process_setup_hook"] = SETUP_HOOK
    return merged


def _cluster(resolved: Resolved) -> dict[str, Any]:
    """Arguments of ``ray.init`` from ``--steer.ray.*``. A cluster started here without a GPU gets GPU slots by name, so
    that OpenRLHF's placement works."""
    asked = resolved.launch.ray
    address = asked.address or os.environ.get("RAY_ADDRESS")
    if address and address != "local":
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

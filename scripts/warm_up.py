"""Import the stack once, at the end of set-up: proof that it loads here, and its byte code is on disk afterwards.

pip was told not to compile (it would compile ten times what is ever loaded). Without this, every worker of the first
training would compile the same modules at the same time, and a broken stack would show only there. DeepSpeed's C++
parts are built here too, into the environment (`<venv>/torch_extensions`, see steer_experiments.environment): built by
a training that is killed meanwhile, they leave a lock behind at which every later training waits for ever.
"""

import importlib
import os
import shutil
import sys
import traceback
from pathlib import Path

MODULES = (
    "torch._inductor.compile_fx",
    "torch.distributed.tensor",
    "transformers.models.qwen2.modeling_qwen2",
    "transformers.models.auto.tokenization_auto",
    "deepspeed.runtime.engine",
    "ray.util.placement_group",
    "vllm.entrypoints.llm",
    "vllm.v1.engine.core",
    "vllm.v1.worker.cpu_worker",
    "datasets",
    "peft",
    "optuna.storages.journal",
    "torch.utils.tensorboard",
    "reasoning_gym",
    "sympy",
)


EXTENSIONS = ("FusedAdamBuilder", "ShareMemCommBuilder")  # what a training on CPU loads


def build_extensions() -> None:
    """DeepSpeed's C++ parts, from nothing: set-up is alone here, but an interrupted one may have left half of them."""
    folder = Path(sys.prefix) / "torch_extensions"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    os.environ["TORCH_EXTENSIONS_DIR"] = str(folder)
    from deepspeed.accelerator import get_accelerator

    for name in EXTENSIONS:
        get_accelerator().create_op_builder(name).load(verbose=False)


def main() -> int:
    for module in MODULES:
        try:
            importlib.import_module(module)
        except Exception:  # noqa: BLE001 any failure is reported with its module, and set-up stops
            traceback.print_exc()
            print(f"The stack was installed but {module} cannot be imported here (above).", file=sys.stderr)
            print("What to do: .venv/bin/steer doctor; or make clean, then make setup.", file=sys.stderr)
            return 1
    build_extensions()
    return 0


if __name__ == "__main__":
    sys.exit(main())

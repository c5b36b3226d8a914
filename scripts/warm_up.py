"""Import the stack once, at the end of set-up: proof that it loads here, and its byte code is on disk afterwards.

pip was told not to compile (it would compile ten times what is ever loaded). Without this, every worker of the first
training would compile the same modules at the same time, and a broken stack would show only there.
"""

import importlib
import sys
import traceback

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


def main() -> int:
    for module in MODULES:
        try:
            importlib.import_module(module)
        except Exception:  # noqa: BLE001 any failure is reported with its module, and set-up stops
            traceback.print_exc()
            print(f"The stack was installed but {module} cannot be imported here (above).", file=sys.stderr)
            print("What to do: .venv/bin/steer doctor; or make clean, then make setup.", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

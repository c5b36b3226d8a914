"""What the plugin relies on in the installed OpenRLHF, checked against its real modules."""

import inspect
import pickle
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from steer_openrlhf import host
from steer_openrlhf.actor_trainer import SteerTrainer, prove_live, windows
from steer_openrlhf.network import Network


@pytest.fixture(scope="module", autouse=True)
def _installed() -> None:
    host.install()


def test_policy_loss_has_the_signature_and_outputs_the_adapter_passes_through() -> None:
    from openrlhf.models import PolicyLoss

    names = list(inspect.signature(PolicyLoss.forward).parameters)
    assert names[:5] == ["self", "log_probs", "old_log_probs", "advantages", "action_mask"]
    loss = PolicyLoss(dual_clip=3.0)
    assert {"clip_eps_low", "clip_eps_high", "dual_clip", "policy_loss_type"} <= set(vars(loss))
    ones = torch.ones(1, 2)
    assert len(loss(ones * 0, ones * 0, ones, action_mask=ones)) == 5


def test_the_trainer_is_ours_and_ships_by_name() -> None:
    from openrlhf.trainer.ray import ppo_actor

    trainer = ppo_actor.ActorPPOTrainer
    assert issubclass(trainer, SteerTrainer)
    assert pickle.loads(pickle.dumps(trainer)) is trainer  # by reference: each worker resolves its own
    source = inspect.getsource(ppo_actor)
    assert "self.trainer = ActorPPOTrainer(" in source
    assert "experience.info.items()" in source


def test_training_step_still_calls_the_actor_and_the_loss_as_the_hook_expects() -> None:
    from openrlhf.trainer.ray import ppo_actor

    base = ppo_actor.ActorPPOTrainer.__mro__[2]
    parameters = list(inspect.signature(base.training_step).parameters)
    assert parameters == ["self", "experience", "kl_ctl", "step", "loss_batch_info"]
    source = inspect.getsource(base.training_step)
    assert source.index("self.actor(") < source.index("self.actor_loss_fn(") < source.index("experience.info.items()")


def test_actor_returns_temperature_scaled_logits_beside_log_probs() -> None:
    from openrlhf.models import Actor
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=13,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    torch.manual_seed(0)
    actor = Actor(Qwen2ForCausalLM(config), temperature=0.7)
    actor.packing_samples = False
    sequences = torch.randint(0, 13, (2, 6))
    mask = torch.tensor([[0, 0, 1, 1, 1], [0, 0, 1, 1, 0]])
    log_probs, output = actor(sequences, mask, attention_mask=torch.ones_like(sequences), return_output=True)
    network = Network(actor, SimpleNamespace(), chunk=2, reduce=lambda value: value)
    found = network.statistics(SimpleNamespace(sequences=sequences, action_mask=mask), output["logits"].detach())
    torch.testing.assert_close(found.log_prob, log_probs.detach())


def test_a_stock_worker_is_refused() -> None:
    with pytest.raises(RuntimeError, match="not live in the policy worker"):
        prove_live(SimpleNamespace(trainer=object()))


def test_windows_announce_each_optimizer_step_before_its_first_micro_batch() -> None:
    seen: list[object] = []
    strategy = SimpleNamespace(steer_window=lambda window: seen.append(("step", list(window))))
    for item in windows([("a", 1), ("b", 1), ("c", 2)], strategy, 2):
        seen.append(item)
    assert seen == [("step", ["a", "b"]), ("a", 1), ("b", 1), ("step", ["c"]), ("c", 2)]


def test_a_changed_signature_is_refused_with_the_remedy() -> None:
    def renamed(other: int) -> None: ...

    with pytest.raises(RuntimeError, match="pip install"):
        host._expect(SimpleNamespace(renamed=renamed, __name__="module"), "renamed", ("data_iter",))


def test_flash_attn_stand_ins_stay_inside_the_one_import() -> None:
    code = (
        "import importlib.util as u, sys; from steer_openrlhf import host\n"
        "real = u.find_spec('flash_attn'); host.install()\n"
        "import openrlhf.models.ring_attn_utils as m\n"
        "assert real or ('flash_attn' not in sys.modules and u.find_spec('flash_attn') is None)\n"
        "real or print(m.unpad_input.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]


def test_float32_is_known_and_other_names_are_still_refused() -> None:
    from openrlhf.utils.utils import convert_to_torch_dtype

    assert convert_to_torch_dtype("fp32") is torch.float32
    assert convert_to_torch_dtype("bf16") is torch.bfloat16
    with pytest.raises(ValueError, match="int4"):
        convert_to_torch_dtype("int4")

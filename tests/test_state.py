"""A run that is saved and taken up again is the run that was never interrupted, to the byte."""

import pytest
import torch

from nanogrpo import grpo, sft
from nanogrpo.checkpoint import load_tensors, save_tensors
from nanogrpo.errors import CheckpointError
from nanogrpo.model import GPT, GPTConfig
from nanogrpo.state import TrainState
from nanogrpo.tokenizer import CharTokenizer

TOKENIZER = CharTokenizer("ab")
PROBLEMS = [{"prompt": "a"}, {"prompt": "ab"}, {"prompt": "bba"}]


def policy(seed=0):
    torch.manual_seed(seed)
    return GPT(GPTConfig(TOKENIZER.vocab_size, block_size=8, n_layer=1, n_head=2, n_embd=16))


def count_b(prompts, completions, **columns):
    return [completion.count("b") / 4 for completion in completions]


def run_sft(model, state, steps):
    config = sft.SFTConfig(batch_size=2, max_steps=steps)
    return sft.train(model, TOKENIZER, [("a", "b"), ("b", "ba"), ("ab", "")], config, state)


def run_grpo(model, state, steps, beta=0.0):
    config = grpo.GRPOConfig(4, group_size=4, prompts_per_step=2, max_steps=steps, beta=beta)
    return grpo.train(model, TOKENIZER, PROBLEMS, count_b, config, policy() if beta else None, state)


def run_grpo_with_kl(model, state, steps):
    return run_grpo(model, state, steps, beta=0.1)


@pytest.mark.parametrize("run", [run_sft, run_grpo, run_grpo_with_kl])
def test_five_steps_are_two_steps_saved_and_loaded_and_three_more(run, tmp_path):
    whole, parts = policy(), policy()
    expected = list(run(whole, None, 5))

    state = TrainState.start(parts.parameters(), 0.001 if run is run_sft else 3e-4, 0)
    first = list(run(parts, state, 2))
    save_tensors(tmp_path / "state.safetensors", state.tensors(), {})
    save_tensors(tmp_path / "model.safetensors", parts.state_dict(), {})

    fresh = policy(seed=7)
    fresh.load_state_dict(load_tensors(tmp_path / "model.safetensors")[0])
    state = TrainState.start(fresh.parameters(), 0.001 if run is run_sft else 3e-4, 99)
    state.restore(load_tensors(tmp_path / "state.safetensors")[0])
    second = list(run(fresh, state, 5))

    assert [repr(row) for row in first + second] == [repr(row) for row in expected]
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, fresh.state_dict()[name]), name


def test_a_state_without_a_part_or_of_another_model_is_refused():
    state = TrainState.start(policy().parameters(), 1e-3, 0)
    saved = state.tensors()
    with pytest.raises(CheckpointError, match="lacks \\['generator'\\]"):
        state.restore({name: tensor for name, tensor in saved.items() if name != "generator"})
    other = GPT(GPTConfig(TOKENIZER.vocab_size, block_size=8, n_layer=1, n_head=2, n_embd=32))
    with pytest.raises(CheckpointError, match="another shape"):
        TrainState.start(other.parameters(), 1e-3, 0).restore(saved)

"""What a step costs on paper is what PyTorch counts, what tensors hold, and what others have published."""

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from nanogrpo import packed, rollout
from nanogrpo.errors import OptionError
from nanogrpo.model import GPT, GPTConfig, KVCache
from nanogrpo.optim import AdamW
from nanogrpo.show import costs
from nanogrpo.show.costs import Shape, Work

VOCAB, BLOCK, LAYERS, HEADS, WIDTH = 13, 40, 3, 4, 32
OURS = Shape(VOCAB, LAYERS, WIDTH, HEADS, HEADS, 4 * WIDTH, positions=BLOCK)
WORK = Work(3, 4, 7, 6)
# arXiv:2302.13971 (table 2), 2309.06180 (section 3), 2005.14165 (tables 2.1 and D.1); Qwen's model card.
LLAMA = Shape(32000, 32, 4096, 32, 32, 11008, gated=True, qkv_bias=False, bias=False)
QWEN = Shape(152064, 28, 3584, 28, 4, 18944, gated=True, bias=False)
OPT = Shape(50272, 40, 5120, 40, 40, 20480, positions=2050, tied=True)
GPT3 = Shape(50257, 96, 12288, 96, 96, 4 * 12288, positions=2048, tied=True)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return GPT(GPTConfig(VOCAB, BLOCK, LAYERS, HEADS, WIDTH))


@pytest.fixture
def batch():
    prompts = torch.randint(VOCAB, (WORK.prompts, WORK.prompt_tokens))
    completions = torch.randint(VOCAB, (WORK.completions, WORK.completion_tokens))
    return prompts, torch.full((WORK.prompts,), WORK.prompt_tokens), completions


def counted(run) -> int:
    """FLOP by PyTorch's counter; it knows nothing of the CPU's fused attention, so that is taken apart."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        run()
    return counter.get_total_flops()


def test_parameters_are_those_of_the_model(model):
    assert OURS.parameters == model.num_parameters
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and name.split(".")[0] != "token"]
    assert OURS.read_weights == sum(p.numel() for p in matrices) - model.position.weight.numel()


def test_parameters_are_those_of_published_models():
    assert LLAMA.parameters == 6_738_415_616  # of Llama 2 7B's files; 6.7 billion in the paper
    assert QWEN.parameters == pytest.approx(7.61e9, rel=1e-3)
    assert QWEN.parameters - 2 * QWEN.vocab * QWEN.width == pytest.approx(6.53e9, rel=1e-3)
    assert GPT3.parameters == pytest.approx(174.6e9, rel=2e-3)


@pytest.mark.parametrize(("path", "shared"), [(rollout, False), (packed, True)])
def test_a_pass_and_an_update_cost_what_pytorch_counts(model, batch, path, shared):
    """Exactly. Its kernels compute what a causal mask hides, so nothing is skipped."""
    with torch.no_grad():
        forward = counted(lambda: path.completion_logits(model, *batch))
    assert forward == costs.scoring_flop(OURS, WORK, shared, causal=False)
    both = counted(lambda: path.completion_logits(model, *batch).sum().backward())
    assert both == costs.update_flop(OURS, WORK, shared_prompt=shared, causal=False)


def test_a_rollout_costs_what_pytorch_counts(model, batch):
    """But for three things that our simple path does besides: hidden scores of the prompt, logits of all its
    positions, and one product of a row with itself, which asks for the type of arithmetic."""
    prompts, lens, _ = batch
    uniforms = torch.rand(WORK.completions, WORK.completion_tokens).clamp(min=1e-3)
    found = counted(
        lambda: rollout.generate(
            model, prompts, lens, group_size=WORK.group, max_new_tokens=WORK.completion_tokens,
            eos_id=VOCAB, pad_id=0, uniforms=uniforms,
        )
    )  # fmt: skip
    P, Tp = WORK.prompts, WORK.prompt_tokens
    hidden = 4 * LAYERS * WIDTH * P * (costs.pairs(Tp, causal=False) - costs.pairs(Tp))
    besides = hidden + 2 * P * (Tp - 1) * WIDTH * VOCAB + 2 * WIDTH
    assert found == costs.rollout_flop(OURS, WORK) + besides


def test_memory_is_that_of_real_tensors(model):
    """Ours: all in float32, and Adam keeps the weights from before its step as a third number."""
    optimizer = AdamW(model.parameters(), 1e-3)
    model(torch.zeros(1, 4, dtype=torch.long)).sum().backward()
    optimizer.step()
    tensors = [*optimizer.mean, *optimizer.square, *optimizer.before]
    tensors += [t for p in model.parameters() for t in (p, p.grad)]
    held = sum(t.untyped_storage().nbytes() for t in tensors)
    assert held == costs.state_bytes(OURS, weight=4, gradient=4, adam=12)
    cache = KVCache(model.config, 5, 11, like=model.head.weight)
    assert cache.keys.nbytes + cache.values.nbytes == costs.kv_bytes(OURS, 5 * 11, 4)


def kept(model, ids) -> int:
    """Bytes that autograd keeps from a forward pass, each storage once, weights left out."""
    storages, alive = {}, []

    def pack(tensor):
        alive.append(tensor)  # so that no storage is used twice
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.hidden(ids)
    return sum(size for place, size in storages.items() if place not in weights)


def test_activations_are_those_that_autograd_keeps(model):
    """With what the formula leaves out: ids and positions, the last norm, some numbers a norm and head."""
    rows, tokens = 12, 7
    ids = torch.zeros(rows, tokens, dtype=torch.long)
    besides = WIDTH + 2 * (2 * LAYERS + 1) + HEADS * LAYERS  # numbers a token
    exact = costs.activation_bytes(OURS, ids.numel(), number=4)
    assert kept(model, ids) == exact + ids.numel() * (4 * besides + 8) + 8 * tokens
    wide = GPT(GPTConfig(VOCAB, BLOCK, 4, 4, 256))
    shape = replace(OURS, layers=4, width=256, hidden=1024)
    assert kept(wide, ids) == pytest.approx(costs.activation_bytes(shape, ids.numel(), number=4), rel=0.03)


def test_logits_and_their_log_softmax_are_the_two_copies():
    logits = torch.zeros(12, 6, VOCAB, requires_grad=True)
    made = logits.nbytes + logits.log_softmax(-1).nbytes
    assert made == costs.logits_bytes(replace(OURS, vocab=VOCAB), 12 * 6)


def test_published_bytes():
    """OPT-13B's cache takes 800 KB a token (arXiv:2309.06180); ZeRO on 64 GPUs is figure 1 of 1910.02054."""
    assert costs.kv_bytes(OPT, 1) == 800 * 1024
    shape = Shape(1, 1, 1, 1, 1, 1)
    share = 7.5e9 / shape.parameters
    found = [costs.state_bytes(shape, 64, stage) * share / 1e9 for stage in (0, 1, 2, 3)]
    assert found == pytest.approx([120, 31.4, 16.6, 1.9], abs=0.06)
    # arXiv:2205.05198, eq. 2: 34 bytes a channel, of which 2 are dropout's masks; the rest is 2 a number
    assert costs.activation_bytes(replace(GPT3, layers=1), 1) == (34 - 2) * GPT3.width
    assert costs.activation_bytes(GPT3, 5, recompute=True) == 2 * GPT3.width * 5 * GPT3.layers


def test_published_flop_of_gpt3():
    """3.14e23 for 300 billion tokens, without attention, which adds a few percent (arXiv:2005.14165)."""
    tokens, rows = 300e9, 2048
    layers = 3 * costs.pass_flop(GPT3, tokens, 0, tokens)
    assert layers == pytest.approx(3.14e23, rel=0.005)
    whole = 3 * costs.pass_flop(GPT3, tokens, tokens / rows * costs.pairs(rows), tokens)
    assert 1.0 < whole / layers < 1.03


def test_published_speed_of_decoding():
    """104.9 tokens a second at 1397.31 GB/s: what a token of Llama 2 7B reads (gpt-fast's README)."""
    one = Work(1, 1, 5, 2)
    assert costs.decode_bytes(LLAMA, one) == pytest.approx(1397.31e9 / 104.9, rel=0.01)


AMOUNTS = {
    "rollout": costs.rollout_flop,
    "scoring": costs.scoring_flop,
    "update": costs.update_flop,
    "decode": costs.decode_bytes,
}


@pytest.mark.parametrize("name", AMOUNTS)
def test_more_of_anything_costs_more(name):
    amount, base = AMOUNTS[name], AMOUNTS[name](OURS, WORK)
    for more in ("layers", "hidden"):
        assert amount(replace(OURS, **{more: 2 * getattr(OURS, more)}), WORK) > base
    for more in ("prompts", "group", "prompt_tokens", "completion_tokens"):
        assert amount(OURS, replace(WORK, **{more: 2 * getattr(WORK, more)})) > base


def test_amounts_add_up_as_their_units_do():
    """Twice the prompts are twice the FLOP; of what is read while sampling, only the weights stay."""
    twice = replace(WORK, prompts=2 * WORK.prompts)
    for amount in (costs.rollout_flop, costs.scoring_flop, costs.update_flop):
        assert amount(OURS, twice) == 2 * amount(OURS, WORK)
    weights = (WORK.completion_tokens - 1) * OURS.read_weights * 2
    once = costs.decode_bytes(OURS, WORK) - weights
    assert costs.decode_bytes(OURS, twice) == weights + 2 * once
    for function in (costs.kv_bytes, costs.activation_bytes, costs.logits_bytes):
        assert (
            function(OURS, 6, number=4) == 6 * function(OURS, 1, number=4) == 2 * function(OURS, 6, number=2)
        )
    assert costs.seconds(6.0, 1.0, 2.0, 4.0) == 3.0 and costs.seconds(6.0, 20.0, 2.0, 4.0) == 5.0
    assert costs.update_flop(OURS, WORK, recompute=True) == 4 * costs.scoring_flop(OURS, WORK)


def test_shared_prompts_and_causal_kernels_save():
    assert costs.scoring_flop(OURS, WORK, shared_prompt=True) < costs.scoring_flop(OURS, WORK)
    assert costs.scoring_flop(OURS, WORK) < costs.scoring_flop(OURS, WORK, causal=False)
    alone = replace(WORK, group=1)
    assert costs.scoring_flop(OURS, alone, shared_prompt=True) == costs.scoring_flop(OURS, alone)


def test_what_is_sent_around_a_ring():
    """Each of n ranks sends (n - 1) / n of all twice; one rank alone sends nothing."""
    assert costs.sent_bytes(OURS, 1) == 0
    assert costs.sent_bytes(OURS, 2) == 2 * OURS.parameters
    assert costs.sent_bytes(OURS, 8, passes=3) == pytest.approx(1.5 * costs.sent_bytes(OURS, 8))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: replace(OURS, kv_heads=3), "heads=4 does not divide by 3"),
        (lambda: replace(OURS, width=30), "width=30 does not divide by 4"),
        (lambda: replace(WORK, prompts=0), "prompts=0"),
        (lambda: Work(1, 1, 1, 1.5), "completion_tokens=1.5"),
        (lambda: costs.state_bytes(OURS, 8, 4), "sharded=4 is no stage of ZeRO"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(make, words):
    with pytest.raises(OptionError, match=words):
        make()

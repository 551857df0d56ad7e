"""The fast path against the simple one: the same tokens, log-probs, logits and gradients."""

import subprocess
import sys
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nanogrpo import packed, rollout
from nanogrpo.errors import BlockSizeError
from nanogrpo.model import GPT, GPTConfig

V, BLOCK, PAD, EOS = 7, 16, 0, 1
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
MIXED = [[2, 3, 4], [5], [6, 2, 2, 3, 5]]


def lively(dtype=torch.float64, seed=0, eos_bias=0.0, device="cpu"):
    """A model far from its small start; ``eos_bias`` raises or lowers the chance of ending."""
    torch.manual_seed(seed)
    model = GPT(GPTConfig(V, BLOCK, n_layer=2, n_head=2, n_embd=16)).to(dtype)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))
        model.head.weight[EOS] += eos_bias * model.norm.bias / model.norm.bias.square().sum()
    return model.to(device)


def sample(path, model, prompts, group_size=4, max_new_tokens=8, seed=0, uniforms=None, **options):
    weight = model.head.weight
    lens = torch.tensor([len(p) for p in prompts])
    ids = torch.full((len(prompts), int(lens.max())), PAD)
    for i, prompt in enumerate(prompts):
        ids[i, : len(prompt)] = torch.tensor(prompt)
    if uniforms is None:
        generator = torch.Generator().manual_seed(seed)
        uniforms = rollout.draw_uniforms(len(prompts) * group_size, max_new_tokens, generator, weight)
    return path.generate(
        model, ids.to(weight.device), lens.to(weight.device), group_size=group_size,
        max_new_tokens=max_new_tokens, eos_id=EOS, pad_id=PAD, uniforms=uniforms, **options,
    )  # fmt: skip


def assert_alike(fast, simple):
    for name in ("prompt_ids", "prompt_lens", "completion_ids", "completion_mask", "truncated"):
        assert torch.equal(getattr(fast, name), getattr(simple, name)), f"{name} differs: mask, EOS, shift?"
    assert fast.group_size == simple.group_size and fast.logprobs.dtype == simple.logprobs.dtype
    error = (fast.logprobs - simple.logprobs).abs().max()
    assert error < TOLERANCE[simple.logprobs.dtype], f"log-probs differ by {error:.1e}"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("group_size", [1, 4, 8, 12])
@pytest.mark.parametrize("eos_bias", [0.0, 3.0, -30.0], ids=["lengths vary", "ends early", "never ends"])
def test_samples_what_the_simple_path_samples(dtype, temperature, group_size, eos_bias):
    model = lively(dtype, eos_bias=eos_bias)
    for prompts in (MIXED, [[2, 3, 4]] * 3, [[5]]):
        for seed in range(3):
            options = dict(group_size=group_size, seed=seed, temperature=temperature)
            simple = sample(rollout, model, prompts, **options)
            assert_alike(sample(packed, model, prompts, **options), simple)


@given(
    prompts=st.lists(st.lists(st.integers(2, V - 1), min_size=1, max_size=8), min_size=1, max_size=4),
    group_size=st.integers(1, 9),
    max_new_tokens=st.integers(1, 8),
    eos_bias=st.sampled_from([-30.0, 0.0, 2.0, 5.0]),
    seed=st.integers(0, 1000),
)
def test_samples_alike_for_any_shape(prompts, group_size, max_new_tokens, eos_bias, seed):
    model = lively(eos_bias=eos_bias)
    options = dict(group_size=group_size, max_new_tokens=max_new_tokens, seed=seed)
    simple = sample(rollout, model, prompts, **options)
    fast = sample(packed, model, prompts, **options)
    assert_alike(fast, simple)
    batch = (fast.prompt_ids, fast.prompt_lens, fast.completion_ids)
    again = rollout.token_logprobs(model, *batch)
    assert ((again - fast.logprobs) * fast.completion_mask).abs().max() < 1e-10
    logits = packed.completion_logits(model, *batch) - rollout.completion_logits(model, *batch)
    assert logits.abs().max() < 1e-10, "logits differ, before or after the end"


def test_a_rollout_may_take_part_in_a_loss():
    """The state of decoding is made without autograd's book-keeping; what is handed out is not."""
    fast = sample(packed, lively(), MIXED)
    for x in (fast.completion_ids, fast.completion_mask, fast.logprobs, fast.truncated):
        assert not x.is_inference() and not x.requires_grad


def test_every_row_may_end_with_its_first_token():
    model = lively(eos_bias=30.0)
    fast = sample(packed, model, MIXED)
    assert fast.completion_ids.tolist() == [[EOS]] * 12 and not fast.truncated.any()
    assert_alike(fast, sample(rollout, model, MIXED))


def test_the_edge_of_the_block():
    model, prompts = lively(eos_bias=-30.0), [[2] * 8, [3] * 4]
    fast = sample(packed, model, prompts, max_new_tokens=8)
    assert fast.prompt_lens[0] + fast.completion_ids.shape[1] == BLOCK and fast.truncated.all()
    assert_alike(fast, sample(rollout, model, prompts, max_new_tokens=8))
    packed.completion_logits(model, fast.prompt_ids, fast.prompt_lens, fast.completion_ids)
    with pytest.raises(BlockSizeError, match="prompt 0 has 8 tokens"):
        sample(packed, model, prompts, max_new_tokens=9)


def uniforms_that_end_at(model, prompts, group_size, lengths, max_new_tokens):
    """Uniform numbers for which row i has ``lengths[i]`` tokens: then EOS."""
    weight = model.head.weight
    uniforms = rollout.draw_uniforms(len(lengths), max_new_tokens, torch.Generator().manual_seed(0), weight)
    for t in range(max_new_tokens):
        seen = sample(rollout, model, prompts, group_size, max_new_tokens, uniforms=uniforms)
        for i, length in enumerate(lengths):
            ids = seen.completion_ids[i, : t + 1]
            text = torch.cat([seen.prompt_ids[i // group_size, : seen.prompt_lens[i // group_size]], ids[:t]])
            with torch.no_grad():
                cdf = torch.softmax(model(text.unsqueeze(0))[0, -1], -1).cumsum(-1)
            if t < length - 1:
                uniforms[i, t] = cdf[EOS] + (1 - cdf[EOS]) * (0.2 + 0.6 * uniforms[i, t])  # beyond EOS
            elif t == length - 1:
                uniforms[i, t] = (cdf[PAD] + cdf[EOS]) / 2
    return uniforms


@pytest.mark.parametrize(
    "lengths",
    [
        [8, 8, 8, 8, 1, 1, 1, 1, 2, 2, 2, 2],  # whole packs end
        [8, 1, 1, 1, 1, 8, 1, 1, 1, 1, 8, 1],  # one row of each pack goes on
        [1, 2, 3, 4, 4, 3, 2, 1, 8, 7, 6, 5],  # shrinks several times
        [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 8],  # one row in all
    ],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_dropping_finished_rows_changes_nothing(monkeypatch, lengths, dtype):
    model = lively(dtype)
    uniforms = uniforms_that_end_at(model, MIXED, 4, lengths, 8)
    simple = sample(rollout, model, MIXED, uniforms=uniforms)
    assert simple.lengths.tolist() == lengths
    read, rows_read = packed._Decoder.read, []

    def counted(decoder, ids, t):
        rows_read.append(len(ids))
        read(decoder, ids, t)

    monkeypatch.setattr(packed._Decoder, "read", counted)
    assert_alike(sample(packed, model, MIXED, uniforms=uniforms), simple)
    assert len(rows_read) == max(lengths) - 1, "decoding goes on after all rows have ended"
    for t, rows in enumerate(rows_read):
        groups = [[n > t + 1 for n in lengths[i : i + 4]] for i in range(0, 12, 4)]
        needed = sum(map(any, groups)) * max(map(sum, groups))
        assert rows <= needed / packed.SHRINK, f"{rows} rows read token {t}, {needed} would do"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("prompts", [MIXED, [[2, 3, 4]] * 3, [[5]]], ids=["mixed", "equal", "one"])
@pytest.mark.parametrize("group_size", [1, 4])
@pytest.mark.parametrize("max_new_tokens", [1, 8])
def test_gradients_of_the_shared_prompt(dtype, prompts, group_size, max_new_tokens):
    model = lively(dtype)
    r = sample(rollout, model, prompts, group_size, max_new_tokens)
    weights = torch.randn(r.logprobs.shape, dtype=dtype, generator=torch.Generator().manual_seed(1))
    gradients = []
    for path in (rollout, packed):
        logits = path.completion_logits(model, r.prompt_ids, r.prompt_lens, r.completion_ids)
        loss = (rollout.logprobs_of(logits, r.completion_ids) * weights * r.completion_mask).sum()
        model.zero_grad()
        loss.backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    for name, simple in gradients[0].items():
        error = (gradients[1][name] - simple).norm() / simple.norm()
        assert error < TOLERANCE[dtype], f"gradient of {name} differs by {error:.1e} of its length"


def test_the_prompt_is_read_once_for_its_group(monkeypatch):
    model, read = lively(eos_bias=-30.0), []
    r = sample(rollout, model, [[2, 3, 4]] * 3, group_size=4)
    hidden = GPT.hidden

    def counted(model, ids, cache=None):
        read.append(ids.numel())
        return hidden(model, ids, cache)

    monkeypatch.setattr(GPT, "hidden", counted)
    packed.completion_logits(model, r.prompt_ids, r.prompt_lens, r.completion_ids)
    assert read == [3 * 3, 12 * 7], "tokens read: the prompts once, then all completions but their last token"
    read.clear()
    sample(packed, model, [[2, 3, 4]] * 3, group_size=4)
    assert read == [3 * 3]


def test_weights_changed_in_place_are_seen():
    model = lively()
    before = sample(packed, model, MIXED)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    after = sample(packed, model, MIXED)
    assert not torch.equal(before.logprobs, after.logprobs)
    assert_alike(after, sample(rollout, model, MIXED))


def test_looking_for_the_end_only_now_and_then_changes_nothing(monkeypatch):
    """A GPU is asked every few tokens; a CPU can pretend to be one."""

    @torch.inference_mode()
    def rarely(decoder):
        for first in range(0, decoder.steps, 3):
            decoder.advance(range(first, min(first + 3, decoder.steps)))
            if bool(decoder.ended.all()):
                break

    monkeypatch.setattr(packed._Decoder, "run", rarely)
    for eos_bias in (0.0, 3.0, 30.0):
        model = lively(eos_bias=eos_bias)
        assert_alike(sample(packed, model, MIXED), sample(rollout, model, MIXED))


def test_a_captured_decoder_keeps_its_addresses_and_its_results(monkeypatch):
    """All of the captured path but the capture: one decoder for many rollouts, its state filled in place."""
    model = lively()
    decoder = packed._Decoder(model, 4, 8, EOS, 1.0, captured=True)
    replay = lambda d, steps: [d.step(t) for t in steps]  # noqa: E731
    monkeypatch.setattr(packed._Decoder, "advance", replay)
    monkeypatch.setattr(packed, "_Decoder", lambda *args, **options: decoder)
    addresses = None
    for seed, prompts in enumerate([MIXED, [[2, 3, 4, 5, 6]] * 3, [[6] * 5, [2], [3, 3]]]):
        assert_alike(sample(packed, model, prompts, seed=seed), sample(rollout, model, prompts, seed=seed))
        now = {name: x.data_ptr() for name, x in vars(decoder).items() if isinstance(x, torch.Tensor)}
        assert addresses in (None, now), "captured steps would read memory that is no longer theirs"
        addresses = now


@pytest.mark.skipif(not torch.cuda.is_available(), reason="GPU: no CUDA GPU is here")
@pytest.mark.parametrize("graphs", [False, True], ids=["eager", "captured"])
def test_on_a_gpu(monkeypatch, graphs):
    monkeypatch.setattr(packed, "CUDA_GRAPHS", graphs)
    monkeypatch.setattr(packed, "GPU_STRIDE", 3)
    for eos_bias in (0.0, 3.0, -30.0):
        model = lively(eos_bias=eos_bias, device="cuda")
        for seed in range(4):  # the first one warms up, the second captures, the others replay
            assert_alike(sample(packed, model, MIXED, seed=seed), sample(rollout, model, MIXED, seed=seed))
            with torch.no_grad():
                for p in model.parameters():
                    p.add_(0.05 * torch.randn_like(p))


@pytest.mark.parametrize("beta", [0.0, 0.5])
@pytest.mark.parametrize("aggregation", ["sequence_mean", "token_mean", "constant"])
def test_microbatches_change_no_gradient(monkeypatch, beta, aggregation):
    from nanogrpo import grpo, microbatches, step
    from nanogrpo.optim import AdamW

    model, reference = lively(), lively(seed=1).requires_grad_(False)
    drawn = sample(packed, model, MIXED * 2, group_size=4)
    advantages = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    advantages[2] = 0
    config = grpo.GRPOConfig(
        max_new_tokens=8, group_size=4, beta=beta, aggregation=aggregation, max_grad_norm=1e9
    )
    found = []
    for tokens, parts in ((1 << 20, 1), (1, 6 if beta else 5)):  # all at once, and one prompt at a time
        monkeypatch.setitem(microbatches.MICROBATCH_TOKENS, "cpu", tokens)
        shapes = []

        def counted(forward, shapes=shapes):
            return lambda model, *ids: shapes.append(ids[2].shape) or forward(model, *ids)

        monkeypatch.setattr(grpo, "completion_hidden", counted(packed.completion_hidden))
        monkeypatch.setattr(microbatches, "completion_logits", counted(packed.completion_logits))
        batch = step.Batch(drawn, torch.zeros(6, 4), {}, advantages.flatten())
        batch, _ = step.add_reference(batch, reference if beta else None, config)
        loss, optimizer = partial(grpo.compute_loss, model, config), AdamW(model.parameters(), 0.0)
        row = step.update(batch, loss, [optimizer], config, "a test")
        found.append((row, [p.grad.clone() for p in model.parameters()]))
        assert len(shapes) == parts * (2 if beta else 1)
    longest = drawn.lengths.view(6, 4).amax(1)
    computed = longest if beta else longest[advantages.ne(0).any(1)]
    assert sorted({s[1] for s in shapes}) == sorted(set(computed.tolist())), "not trimmed"
    for name, value in found[0][0].items():
        assert found[1][0][name] == pytest.approx(value, abs=1e-12), name
    for a, b in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.slow
def test_a_training_step_does_not_import_the_compiler():
    """Importing torch._dynamo costs more than the whole quickstart's training."""
    code = """
import sys
from nanogrpo import grpo
from nanogrpo.model import GPT, GPTConfig
from nanogrpo.tokenizer import CharTokenizer
tokenizer = CharTokenizer("ab")
config = grpo.GRPOConfig(max_new_tokens=3, group_size=4, prompts_per_step=2, max_steps=2)
model = GPT(GPTConfig(tokenizer.vocab_size, 8, 1, 1, 8))
reward = lambda prompts, completions, **columns: [float(len(c)) for c in completions]
rows = list(grpo.train(model, tokenizer, [{"prompt": "a"}, {"prompt": "bb"}], reward, config))
assert any(row["grad_norm"] > 0 for row in rows), rows
unwanted = ("torch._dynamo", "matplotlib", "ipywidgets", "transformers")
print(*(name for name in unwanted if name in sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "", f"a training step imports {done.stdout.strip()}"

"""Sampling in groups, and log-probs with the shift by one."""

from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from nanogrpo.errors import BlockSizeError, OptionError
from nanogrpo.model import GPT, GPTConfig
from nanogrpo.rollout import (
    completion_logits,
    draw_uniforms,
    generate,
    logprobs_of,
    sample_token,
    token_logprobs,
)

V, BLOCK, PAD, EOS = 7, 16, 0, 1
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


def lively(dtype=torch.float64, seed=0, eos_bias=0.0):
    """A model far from its small start; ``eos_bias`` raises or lowers the chance of ending."""
    torch.manual_seed(seed)
    model = GPT(GPTConfig(V, BLOCK, n_layer=2, n_head=2, n_embd=16)).to(dtype)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))
        direction = model.norm.bias / model.norm.bias.square().sum()
        model.head.weight[EOS] += eos_bias * direction
    return model


def sample(model, prompts, group_size=4, max_new_tokens=8, seed=0, **options):
    lens = torch.tensor([len(p) for p in prompts])
    ids = torch.full((len(prompts), int(lens.max())), PAD)
    for i, prompt in enumerate(prompts):
        ids[i, : len(prompt)] = torch.tensor(prompt)
    uniforms = draw_uniforms(
        len(prompts) * group_size, max_new_tokens, torch.Generator().manual_seed(seed), model.head.weight
    )
    return generate(
        model, ids, lens, group_size=group_size, max_new_tokens=max_new_tokens,
        eos_id=EOS, pad_id=PAD, uniforms=uniforms, **options,
    )  # fmt: skip


MIXED = [[2, 3, 4], [5], [6, 2, 2, 3, 5]]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.5])
@pytest.mark.parametrize("eos_bias", [0.0, 3.0, -30.0], ids=["mixed lengths", "ends early", "never ends"])
def test_logprobs_from_sampling_equal_a_teacher_forced_pass(dtype, temperature, eos_bias):
    model = lively(dtype, eos_bias=eos_bias)
    for seed in range(5):
        rollout = sample(model, MIXED, seed=seed, temperature=temperature)
        again = token_logprobs(
            model, rollout.prompt_ids, rollout.prompt_lens, rollout.completion_ids, temperature
        )
        error = (again - rollout.logprobs)[rollout.completion_mask].abs().max()
        assert error < TOLERANCE[dtype], (
            f"log-probs differ by {error:.1e}: another shift, mask or temperature?"
        )


def test_logprobs_hold_at_the_edge_of_the_block():
    rollout = sample(lively(eos_bias=-30.0), [[2] * 8, [3] * 4], max_new_tokens=8)
    assert rollout.prompt_lens[0] + rollout.completion_ids.shape[1] == BLOCK and rollout.truncated.all()
    again = token_logprobs(
        lively(eos_bias=-30.0), rollout.prompt_ids, rollout.prompt_lens, rollout.completion_ids
    )
    torch.testing.assert_close(again, rollout.logprobs, rtol=0, atol=1e-10)


def test_the_shift_agrees_with_cross_entropy_on_whole_rows():
    model, row = lively(), torch.tensor([2, 3, 4, 5, 6, 2])
    logits = model(row[None, :-1])[0]
    expected = -F.cross_entropy(logits, row[1:], reduction="none")[
        2:
    ]  # the targets 5, 6, 2 at positions 3, 4, 5
    ours = token_logprobs(model, row[None, :3], torch.tensor([3]), row[None, 3:])[0]
    torch.testing.assert_close(
        ours, expected, rtol=0, atol=1e-12, msg="each token must be scored one position before it stands"
    )


def test_padding_and_other_rows_change_nothing():
    model = lively()
    together = token_logprobs(
        model,
        torch.tensor([[2, 3, 0], [4, 5, 6]]),
        torch.tensor([2, 3]),
        torch.tensor([[3, 1, 0], [2, 2, 1]]),
    )
    alone = token_logprobs(model, torch.tensor([[2, 3]]), torch.tensor([2]), torch.tensor([[3, 1]]))
    torch.testing.assert_close(together[0, :2], alone[0], rtol=0, atol=1e-12)


def test_a_completion_is_masked_through_its_first_eos():
    seen = set()
    for seed in range(20):
        rollout = sample(lively(eos_bias=[-1.0, 1.0, 3.0][seed % 3]), MIXED, seed=seed)
        for ids, mask, truncated in zip(
            rollout.completion_ids, rollout.completion_mask, rollout.truncated, strict=True
        ):
            length = int(mask.sum())
            assert mask[:length].all(), "the mask has a hole"
            assert (ids[:length] == EOS).sum() == (not truncated), (
                "EOS belongs to the completion, once, unless cut off"
            )
            assert truncated or ids[length - 1] == EOS
            assert (ids[length:] == PAD).all()
            assert not truncated or length == 8
            seen.add((length == 1, bool(truncated)))
    assert seen == {(True, False), (False, False), (False, True)}, "the cases to cover did not all occur"


def test_all_rows_ending_at_once_stops_the_rollout():
    rollout = sample(lively(eos_bias=60.0), MIXED)
    assert rollout.completion_ids.shape == (12, 1) and rollout.completion_ids.eq(EOS).all()
    assert not rollout.truncated.any() and rollout.lengths.eq(1).all()


def test_a_prompt_is_read_once_for_its_group_and_each_token_once(monkeypatch):
    model, read = lively(eos_bias=-30.0), []
    forward = GPT.forward
    monkeypatch.setattr(
        GPT, "forward", lambda self, idx, cache=None: read.append(idx.shape) or forward(self, idx, cache)
    )
    sample(model, [[2, 3, 4], [5, 6, 2]], group_size=4, max_new_tokens=5)
    assert read == [(2, 3)] + [(8, 1)] * 4, (
        "one prefill of P rows, then B single tokens; the last one is not read"
    )


def test_the_same_seed_gives_the_same_rollout_and_another_seed_another():
    a, b, c = (
        sample(lively(), MIXED, seed=3),
        sample(lively(), MIXED, seed=3),
        sample(lively(), MIXED, seed=4),
    )
    assert torch.equal(a.completion_ids, b.completion_ids) and torch.equal(a.logprobs, b.logprobs)
    assert a.completion_ids.shape != c.completion_ids.shape or not torch.equal(
        a.completion_ids, c.completion_ids
    )


def test_the_members_of_a_group_differ_and_rows_belong_to_their_prompt():
    rollout = sample(lively(), [[2, 3, 4], [2, 3, 4]], group_size=16)
    assert len({tuple(row) for row in rollout.completion_ids.tolist()}) > 8, (
        "the group shares its random numbers"
    )
    first = sample(lively(), [[2, 3, 4]], group_size=16)
    T = min(first.completion_ids.shape[1], rollout.completion_ids.shape[1])
    assert torch.equal(first.completion_ids[:, :T], rollout.completion_ids[:16, :T]), (
        "rows i*G to i*G+G-1 answer prompt i"
    )


def test_temperature_zero_takes_the_most_probable_token():
    model = lively()
    rollout = sample(model, MIXED, group_size=1, temperature=0)
    logits = completion_logits(model, rollout.prompt_ids, rollout.prompt_lens, rollout.completion_ids)
    assert torch.equal(
        logits.argmax(-1)[rollout.completion_mask], rollout.completion_ids[rollout.completion_mask]
    )


@given(st.lists(st.floats(-8, 8), min_size=2, max_size=6), st.floats(0, 1, exclude_min=True))
def test_sample_token_inverts_the_cumulative_distribution(logits, u):
    p = torch.tensor(logits, dtype=torch.float64).softmax(0)
    token, logprob = sample_token(p.log()[None], torch.tensor([u], dtype=torch.float64))
    below, upto = p[: int(token)].sum(), p[: int(token) + 1].sum()
    assert below - 1e-12 <= u <= upto + 1e-12
    torch.testing.assert_close(logprob[0], p[token[0]].log())


@pytest.mark.parametrize("u", [1e-45, 0.5, 1.0])
def test_a_token_of_probability_zero_is_never_chosen(u):
    logits = torch.tensor([[-torch.inf, 0.0, 0.0, -torch.inf]])
    assert sample_token(logits, torch.tensor([u]))[0] in (1, 2)


def test_uniform_numbers_are_never_zero():
    assert draw_uniforms(1000, 1000, torch.Generator().manual_seed(0), torch.empty(0)).min() > 0


def test_bad_input_is_refused_before_anything_is_sampled():
    with pytest.raises(
        BlockSizeError, match="prompt 1 has 9 tokens; with max_new_tokens=8 that makes 17, over block_size=16"
    ):
        sample(lively(), [[2], [3] * 9])
    with pytest.raises(ValueError, match="group_size=0"):
        sample(lively(), MIXED, group_size=0)
    with pytest.raises(ValueError, match="temperature=-1"):
        sample(lively(), MIXED, temperature=-1)
    with pytest.raises(ValueError, match="temperature=0"):
        logprobs_of(torch.zeros(1, 1, V), torch.zeros(1, 1, dtype=torch.long), temperature=0)


@pytest.mark.parametrize(("rows", "tokens"), [(10**30, 3), (3, 10**30), (10**6, 10**6)])
def test_numbers_that_no_memory_holds_are_not_drawn(rows, tokens):
    with pytest.raises(OptionError, match="memory"):
        draw_uniforms(rows, tokens, torch.Generator(), torch.zeros(1))


@pytest.mark.parametrize("temperature", [Fraction(1, 2), 10**400, 1e39, True])
def test_a_temperature_that_no_logit_can_be_divided_by_is_refused(temperature):
    with pytest.raises(OptionError, match="temperature"):
        sample_token(torch.zeros(1, 3), torch.ones(1), temperature)

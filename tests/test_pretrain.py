"""Pretraining: the schedule, the loss, determinism."""

import math

import pytest
import torch
import torch.nn.functional as F

from nanogrpo.data import alphabet
from nanogrpo.errors import (
    BlockSizeError,
    DTypeError,
    NonFiniteError,
    OptionError,
    ShapeError,
    UnknownCharacterError,
)
from nanogrpo.model import GPT, GPTConfig
from nanogrpo.pretrain import PretrainConfig, evaluate, schedule, train

TEXT = "the quick brown fox jumps over the lazy dog. " * 20


def model_and_ids():
    torch.manual_seed(0)
    tokenizer = alphabet(TEXT)
    model = GPT(GPTConfig(tokenizer.vocab_size, block_size=16, n_layer=2, n_head=2, n_embd=32))
    return model, torch.tensor(tokenizer.encode(TEXT))


def test_the_schedule_rises_over_the_warm_up_and_falls_to_zero():
    config = PretrainConfig(learning_rate=2.0, max_steps=300, warmup_steps=100)
    assert [schedule(s, config) for s in (0, 50, 100)] == [0.0, 1.0, 2.0]
    assert schedule(200, config) == pytest.approx(1.0) and schedule(300, config) == pytest.approx(0.0)


@pytest.mark.slow
def test_a_model_learns_a_text_that_repeats():
    model, ids = model_and_ids()
    before = evaluate(model, ids)
    rows = list(train(model, ids, PretrainConfig(learning_rate=5e-3, max_steps=150, warmup_steps=10)))
    assert before == pytest.approx(math.log(model.config.vocab_size), rel=0.2)
    assert evaluate(model, ids) < 0.3 and rows[-1]["loss"] < 0.4


def test_evaluation_is_the_mean_over_windows_without_overlap():
    model, ids = model_and_ids()
    losses = [
        F.cross_entropy(model(ids[None, i : i + 16])[0], ids[i + 1 : i + 17]) for i in range(0, 880, 16)
    ]
    assert evaluate(model, ids[:881], batch_size=7) == pytest.approx(
        torch.stack(losses).mean().item(), rel=1e-5
    )


def test_one_seed_gives_one_run():
    rows = []
    for seed in (0, 0, 1):
        model, ids = model_and_ids()
        rows.append(list(train(model, ids, PretrainConfig(max_steps=3, seed=seed))))
    assert rows[0] == rows[1] != rows[2]


def test_without_a_warm_up_the_rate_starts_at_its_highest():
    config = PretrainConfig(warmup_steps=0, max_steps=10, learning_rate=2.0)
    assert schedule(0, config) == 2.0 and schedule(10, config) == pytest.approx(0.0)
    model, ids = model_and_ids()
    rows = list(train(model, ids, PretrainConfig(warmup_steps=0, max_steps=2)))
    assert rows[0]["learning_rate"] > 0 and math.isfinite(rows[1]["loss"])


@pytest.mark.parametrize(
    "options",
    [{"warmup_steps": -1}, {"warmup_steps": 1.5}, {"batch_size": 0}, {"batch_size": -3}, {"max_steps": -1}]
    + [{"learning_rate": value} for value in (-1.0, math.nan, math.inf, "1e-3", None)]
    + [
        {"max_grad_norm": -1.0},
        {"max_grad_norm": math.nan},
        {"weight_decay": -0.1},
        {"seed": -1},
        {"seed": 2**63},
    ],
)
def test_options_outside_their_range_are_refused(options):
    with pytest.raises(OptionError, match=next(iter(options))):
        PretrainConfig(**options)


@pytest.mark.parametrize("run", [lambda model, ids: next(train(model, ids, PretrainConfig())), evaluate])
def test_what_is_no_text_for_the_model_is_refused(run):
    model, ids = model_and_ids()
    for text, error in [
        (ids[:0], BlockSizeError),
        (ids[:16], BlockSizeError),
        (ids.float(), DTypeError),
        (ids > 3, DTypeError),
        (ids[None], ShapeError),
        (torch.tensor(3), ShapeError),
        (ids + 100, UnknownCharacterError),
        (ids - 10, UnknownCharacterError),
    ]:
        with pytest.raises(error):
            run(model, text)
    run(model, ids[:17])


@pytest.mark.parametrize("rate", [1e20, 1e30])
def test_a_run_that_breaks_says_at_which_step(rate):
    model, ids = model_and_ids()
    with pytest.raises(NonFiniteError, match=r"pretraining step \d"):
        list(train(model, ids, PretrainConfig(learning_rate=rate, max_steps=5, warmup_steps=0)))

"""Every tensor that a public function of the mathematics takes, replaced by what it may not be.

The functions and their arguments are found by their signatures, so a new one is tried as it is written.
"""

import inspect
import math
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from nanogrpo import advantages, kl, losses, offpolicy, reward_model, selection, surrogates
from nanogrpo.errors import NanoGRPOError

MODULES = (advantages, kl, losses, offpolicy, selection, surrogates)
MASK = torch.tensor([[True] * 4, [True, True, False, False], [True, False, False, False]])
REWARDS = torch.tensor([[1.0, 0.0], [0.5, 0.25], [0.0, 1.0]])
ROWS = torch.tensor([1.0, -0.5, -0.5])


def rows(seed):
    return -3 * torch.rand(3, 4, generator=torch.Generator().manual_seed(seed))


# What an argument of this name may be; (function, name) where a function's argument of a name differs.
GOOD = {
    "mask": MASK,
    "rewards": REWARDS,
    "lengths": MASK.sum(1),
    ("global_advantages", "lengths"): torch.tensor([[3, 2], [1, 4], [2, 2]]),
    ("baseline_advantages", "lengths"): torch.tensor([[3, 2], [1, 4], [2, 2]]),
    "completion_mask": MASK,
    ("gae", "rewards"): rows(10),
    "scores": ROWS,
    "advantages": ROWS,
    ("whiten", "advantages"): rows(0),
    "ratio": rows(1).exp(),
    "cov": rows(2),
    "entropies": -rows(3),
    "p": rows(4).exp(),
    "q": rows(5).exp(),
    "chosen": ROWS,
    "rejected": -ROWS,
    "scores_a": ROWS,
    "scores_b": -ROWS,
    "logits": torch.stack([rows(6), rows(7)], 2),
    "ref_logits": torch.stack([rows(8), rows(9)], 2),
    "targets": torch.tensor([[0, 1, 0, 1]] * 3),
}
# What the other options must be for the argument to be looked at.
OPTIONS = {
    "value_loss": {"clip_range": 0.2},
    "overlong_penalty": {"max_length": 4, "buffer": 2},
    "token_rewards": {"beta": 0.1},
    "gae": {"gamma": 1.0, "lam": 0.95},
    "preference_probs": {"temperature": 0.5},
    "grpo_loss": {"beta": 0.1},
    "off_policy_mask": {"off_policy_mask_threshold": 0.5},
    "clip_cov": {"generator": torch.Generator().manual_seed(0)},
}
NOT_TENSORS = [None, 1.5, "text", [[0.5] * 4] * 3, np.ones((3, 4), dtype=np.float32)]
DTYPES = [torch.bool, torch.uint8, torch.int32, torch.int64, torch.complex64, torch.float16, torch.bfloat16]
SHAPES = [(), (3,), (4,), (2, 4), (3, 5), (3, 4, 2), (0, 4), (3, 0), (0,)]


def public_functions():
    found = [
        f
        for m in MODULES
        for n, f in vars(m).items()
        if n[0] != "_" and inspect.isfunction(f) and f.__module__ == m.__name__
    ]
    return {f.__name__: f for f in [*found, reward_model.preference_probs]}


def tensors_of(name, function):
    """The names of its arguments that are tensors, and which of these may be None."""
    notes = {n: str(p.annotation) for n, p in inspect.signature(function).parameters.items()}
    return {n: "None" in note for n, note in notes.items() if note.startswith("Tensor")}


def good(name, argument):
    return GOOD.get((name, argument), GOOD.get(argument, rows(sum(map(ord, argument)))))


FUNCTIONS = {name: f for name, f in public_functions().items() if tensors_of(name, f)}
PLACES = [(name, argument) for name, f in FUNCTIONS.items() for argument in tensors_of(name, f)]


def call(name, **changed):
    arguments = {a: good(name, a) for a in tensors_of(name, FUNCTIONS[name])}
    return FUNCTIONS[name](**{**arguments, **OPTIONS.get(name, {}), **changed})


def floats(result):
    """The tensors of floating point numbers in a result."""
    if isinstance(result, torch.Tensor):
        return [result] if result.is_floating_point() else []
    if isinstance(result, dict):
        result = tuple(result.values())
    return [t for part in result for t in floats(part)] if isinstance(result, tuple) else []


def works_or_says_why(name, **changed):
    try:
        result = call(name, **changed)
    except NanoGRPOError as error:
        assert len(str(error)) > 15
        return None
    return result


@contextmanager
def given_as(what):
    """Whatever fails in here tells what was given."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"given as {what}")
        raise


def test_the_functions_are_found():
    assert len(FUNCTIONS) >= 30 and len(PLACES) >= 70
    for name in ("grpo_loss", "value_loss", "kl_k3", "gae", "clip_cov", "vespo_surrogate", "sampler_weights"):
        assert name in FUNCTIONS


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_is_given_as_it_should_be_works(name):
    for result in floats(call(name)):
        assert result.isfinite().all()


@pytest.mark.parametrize(("name", "argument"), PLACES)
def test_numbers_of_any_kind_work_or_are_refused(name, argument):
    """Half precision is widened; a complex number has no order, and an integer no gradient."""
    given = good(name, argument)
    for dtype in DTYPES:
        with given_as(dtype):
            result = works_or_says_why(name, **{argument: given.to(dtype)})
            if result is None:
                assert dtype != given.dtype
            else:
                assert dtype != torch.complex64 and all(t.dtype == torch.float32 for t in floats(result))


@pytest.mark.parametrize(("name", "argument"), PLACES)
def test_tensors_of_any_shape_work_or_are_refused(name, argument):
    given = good(name, argument).flatten()
    for shape in SHAPES:
        times = math.prod(shape) // len(given) + 1
        with given_as(shape):
            works_or_says_why(name, **{argument: given.repeat(times)[: math.prod(shape)].view(shape)})


@pytest.mark.parametrize(("name", "argument"), PLACES)
def test_what_is_no_tensor_is_refused(name, argument):
    optional = tensors_of(name, FUNCTIONS[name])[argument]
    for value in NOT_TENSORS:
        with given_as(type(value)):
            if value is None and optional:
                works_or_says_why(name, **{argument: None})
            else:
                with pytest.raises(NanoGRPOError):
                    call(name, **{argument: value})

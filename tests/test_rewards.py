"""The contract of rows, reward functions and what they return: each breach is named, nothing is mended."""

import array
import asyncio
import collections
import copy
import functools
import math
import threading
import types
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nanogrpo import grpo, ppo
from nanogrpo.errors import (
    EmptyPromptError,
    NanoGRPOError,
    OptionError,
    RewardError,
    RowError,
    UnknownCharacterError,
)
from nanogrpo.grpo import GRPOConfig
from nanogrpo.model import GPT, GPTConfig
from nanogrpo.ppo import PPOConfig
from nanogrpo.rewards import call_reward, check_rows, exact_match, named, reward_name
from nanogrpo.tokenizer import CharTokenizer

ROWS = [{"prompt": "1+2=", "answer": "3"}, {"prompt": "4+5=", "answer": "9"}]
TEXTS = ["a", "b", "c", "d"]


def gives(value):
    """A reward function that returns ``value``, whatever it is asked."""

    def judge(prompts, completions, **columns):
        return value

    return judge


# What may be returned

RIGHT = {
    "floats": [0.0, 1.0, -2.5, 1e30],
    "ints": [0, 1, -2, 3],
    "a tuple": (0.5, 1, 2, 3),
    "bools, as 0 and 1": [True, False, True, True],
    "a float64 array": np.array([0.5, 1, 2, 3]),
    "a float16 array": np.array([0.5, 1, 2, 3], dtype=np.float16),
    "an int array": np.array([1, 2, 3, 4]),
    "a bool array": np.array([True, False, True, True]),
    "a tensor": torch.tensor([0.5, 1, 2, 3]),
    "a tensor with a gradient": torch.tensor([0.5, 1, 2, 3], requires_grad=True),
    "a bf16 tensor": torch.tensor([0.5, 1, 2, 3], dtype=torch.bfloat16),
    "an int tensor": torch.tensor([1, 2, 3, 4]),
    "numpy scalars": [np.float32(0.5), np.int64(1), np.bool_(True), np.float64(3)],
    "tensors without a dimension": [torch.tensor(0.5), torch.tensor(1), torch.tensor(True), np.array(2.0)],
    "fractions": [Fraction(1, 2), 1, 2, 3],
    "a named tuple": collections.namedtuple("Four", "a b c d")(1, 2, 3, 4),
}


def test_each_completion_is_judged_by_the_row_that_it_answers():
    right = [row["answer"] for row in ROWS for _ in range(2)]
    found = call_reward(exact_match, ROWS, right).tolist()
    assert found == [1.0] * 4, "each completion is judged by its own row, by groups"


@pytest.mark.parametrize("case", RIGHT)
def test_a_sequence_of_finite_real_numbers_is_taken_as_it_is(case):
    given_values = RIGHT[case]
    rewards = call_reward(gives(given_values), ROWS, TEXTS)
    assert rewards.shape == (4,) and rewards.dtype == torch.get_default_dtype() and not rewards.requires_grad
    assert rewards.tolist() == pytest.approx(
        [float(v.detach() if isinstance(v, torch.Tensor) else v) for v in given_values]
    )


WRONG = {
    "None": None,
    "a number": 1.0,
    "a text of digits": "1111",
    "bytes": b"1111",
    "bytearray": bytearray(b"1111"),
    "a memoryview": memoryview(b"1111"),
    "a set": {0.0, 1.0, 2.0, 3.0},
    "a frozenset": frozenset({0.0, 1.0, 2.0, 3.0}),
    "a dict": {0.0: 1, 1.0: 1, 2.0: 1, 3.0: 1},
    "a dict's keys": {0.0: 1, 1.0: 1, 2.0: 1, 3.0: 1}.keys(),
    "a dict's values": {0.0: 1, 1.0: 1, 2.0: 1, 3.0: 1}.values(),
    "a range": range(4),
    "a deque": collections.deque([1.0] * 4),
    "an array.array": array.array("d", [1.0] * 4),
    "an iterator": iter([1.0] * 4),
    "a map": map(float, "1111"),
    "a column": torch.ones(4, 1),
    "a row": np.ones((1, 4)),
    "a tensor without a dimension": torch.tensor(1.0),
    "nested tuples": ((1.0,), (1.0,), (1.0,), (1.0,)),
    "nested lists": [[1.0], [1.0], [1.0], [1.0]],
    "texts": ["1", "1", "1", "1"],
    "an array of texts": np.array(["1", "1", "1", "1"]),
    "Nones": [1.0, None, 1.0, 1.0],
    "complex numbers": [1 + 0j] * 4,
    "a complex tensor": torch.ones(4, dtype=torch.complex64),
    "a complex array": np.ones(4, dtype=complex),
    "decimals": [Decimal("1")] * 4,
    "tensors of one element": [torch.ones(1)] * 4,
    "a masked array": np.ma.masked_array([1.0] * 4, mask=[0, 1, 0, 0]),
    "a sparse tensor": torch.ones(4).to_sparse(),
    "a tensor without data": torch.ones(4, device="meta"),
    "objects": [object()] * 4,
    "an array of objects": np.array([object()] * 4),
    "a structured array": np.zeros(4, dtype=[("a", float)]),
    "dates": np.array(["2020-01-01"] * 4, dtype="datetime64[D]"),
    "NaN": [0.0, math.nan, 0.0, 0.0],
    "infinity": [0.0, math.inf, 0.0, 0.0],
    "a NaN in a tensor": torch.tensor([0.0, math.nan, 0.0, 0.0]),
    "more than float32 can hold": [0.0, 1e300, 0.0, 0.0],
    "an int that no float can hold": [0, 10**400, 0, 0],
    "too few": [1.0] * 3,
    "too many": [1.0] * 5,
    "none at all": [],
}


@pytest.mark.parametrize("case", WRONG)
def test_anything_else_is_a_reward_error_that_names_the_function(case):
    with pytest.raises(RewardError, match="judge returned"):
        call_reward(gives(WRONG[case]), ROWS, TEXTS)


def test_asynchronous_functions_and_generators_are_told_what_to_do():
    async def later(prompts, completions, answer):
        return [1.0] * 4

    def drop_by_drop(prompts, completions, answer):
        yield from [1.0] * 4

    async def drops(prompts, completions, answer):
        yield 1.0

    for function, word in [(later, "async"), (drop_by_drop, "generator"), (drops, "async")]:
        with pytest.raises(RewardError, match=rf"{function.__name__} .*{word}"):
            call_reward(function, ROWS, TEXTS)

    async def run():  # inside a running event loop, as in a notebook
        with pytest.raises(RewardError, match="later"):
            call_reward(later, ROWS, TEXTS)

    with ThreadPoolExecutor(1) as thread:  # this one may have a loop: a browser's
        thread.submit(asyncio.run, run()).result()


# What a function is called, and what goes wrong inside it


class Judge:
    def __call__(self, prompts, completions, **columns):
        raise KeyError("lost")

    def score(self, prompts, completions, **columns):
        raise KeyError("lost")


def plain(prompts, completions, **columns):
    raise ZeroDivisionError("so it goes")


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (plain, "plain"),
        (functools.partial(plain, extra=1), "plain"),
        (functools.partial(functools.partial(plain, a=1), b=2), "plain"),
        (Judge(), "Judge"),
        (functools.partial(Judge(), a=1), "Judge"),
        (Judge().score, "score"),
        (lambda **_: 1 / 0, "<lambda>"),
        (named("my judge", plain), "my judge"),
    ],
)
def test_an_exception_inside_is_chained_with_the_name_and_the_place(function, name):
    assert reward_name(function) == name
    with pytest.raises(RewardError, match=rf"{name}.* raised .*test_rewards.py, line \d+") as caught:
        call_reward(function, ROWS, TEXTS)
    assert isinstance(caught.value.__cause__, (KeyError, ZeroDivisionError))


@pytest.mark.parametrize(
    "error",
    [StopIteration("x"), RecursionError(), MemoryError(), ValueError(), OSError(2, "no"), GeneratorExit()],
)
def test_whatever_is_raised_inside_is_a_reward_error(error):
    def judge(**_):
        raise error

    with pytest.raises(RewardError, match=f"judge raised {type(error).__name__}") as caught:
        call_reward(judge, ROWS, TEXTS)
    assert caught.value.__cause__ is error


def test_errors_of_this_package_and_interrupts_pass_through():
    for error in (UnknownCharacterError("x"), KeyboardInterrupt(), SystemExit(3)):

        def judge(error=error, **_):
            raise error

        with pytest.raises(type(error)):
            call_reward(judge, ROWS, TEXTS)


def test_a_function_that_asks_for_other_columns_is_told_which_there_are():
    def judge(prompts, completions, solution):
        return [0.0] * 4

    with pytest.raises(
        RewardError, match="judge raised TypeError: .*called with prompts, completions, answer"
    ):
        call_reward(judge, ROWS, TEXTS)


@pytest.mark.parametrize("function", [None, 1.0, "judge", [exact_match], {}])
def test_what_cannot_be_called_is_no_reward_function(function):
    with pytest.raises(RewardError, match="cannot be called"):
        call_reward(function, ROWS, TEXTS)


# What a function is given


def test_each_function_is_given_lists_of_its_own():
    rows = [{"prompt": "a", "answers": ["x", "y"]}, {"prompt": "b", "answers": ["z"]}]
    texts, before = ["b", "a", "d", "c"], copy.deepcopy(rows)

    def vandal(prompts, completions, answers):
        for column in (prompts, completions, answers):
            column.sort()
            column.reverse()
        answers[0].clear()
        del prompts[:]
        return [0.0] * 4

    call_reward(vandal, rows, texts)
    assert texts == ["b", "a", "d", "c"] and rows == before
    seen = {}
    call_reward(lambda **columns: seen.update(columns) or [0.0] * 4, rows, tuple(texts))
    assert seen == {
        "prompts": ["a", "a", "b", "b"],
        "completions": texts,
        "answers": [["x", "y"], ["x", "y"], ["z"], ["z"]],
    }
    assert all(type(column) is list for column in seen.values())
    assert seen["answers"][0] is not seen["answers"][1], "two completions must not share a mutable value"


@pytest.mark.parametrize("texts", ["abcd", ["a", "b", "c"], ["a", 1, "b", "c"], None, [b"a", b"b"], ["a"]])
def test_completions_are_texts_and_as_many_for_each_row(texts):
    with pytest.raises(RowError, match="completion"):
        call_reward(gives([0.0] * 4), ROWS, texts)


# Rows

BAD_ROWS = {
    "a column is missing in the first": [{"prompt": "a"}, {"prompt": "b", "answer": "x"}],
    "a column is missing in the last": [{"prompt": "b", "answer": "x"}, {"prompt": "a"}],
    "no prompt": [{"answer": "x"}, {"answer": "y"}],
    "a prompt in one row only": [{"prompt": "a", "x": "b"}, {"x": "b"}],
    "a prompt that is an int": [{"prompt": 3}],
    "a prompt that is bytes": [{"prompt": b"3"}],
    "a prompt that is None": [{"prompt": None}],
    "a prompt that is a list of messages": [{"prompt": [{"role": "user", "content": "x"}]}],
    "types that differ": [{"prompt": "a", "answer": "2"}, {"prompt": "b", "answer": 2}],
    "a value that is missing": [{"prompt": "a", "answer": "2"}, {"prompt": "b", "answer": None}],
    "int and bool": [{"prompt": "a", "answer": 2}, {"prompt": "b", "answer": True}],
    "a column that is called as the texts are": [{"prompt": "a", "completions": "x"}],
    "a column that is called as the prompts are": [{"prompt": "a", "prompts": "x"}],
    "a column without a name": [{"prompt": "a", 1: "x"}],
    "rows that are texts": ["a", "b"],
    "rows that are pairs": [("a", "b")],
    "one row": {"prompt": "a"},
    "columns": {"prompt": ["a", "b"]},
    "a text": "abc",
    "None": None,
    "a generator": ({"prompt": p} for p in "ab"),
    "a set": {1, 2},
    "a number": 3,
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_rows_that_break_the_contract_are_named(case):
    with pytest.raises(RowError):
        check_rows(BAD_ROWS[case])
    with pytest.raises(RowError):
        call_reward(gives([0.0, 0.0]), BAD_ROWS[case], ["a", "b"])


@pytest.mark.parametrize("rows", [[], (), [{"prompt": ""}], [{"prompt": "a"}, {"prompt": ""}]])
def test_no_rows_and_empty_prompts_have_their_error(rows):
    with pytest.raises(EmptyPromptError):
        check_rows(rows)
    with pytest.raises(EmptyPromptError):
        call_reward(gives([0.0, 0.0]), rows, ["a", "b"])


def test_the_message_names_row_and_column():
    with pytest.raises(RowError, match="row 1 .*answer.*int.*str"):
        check_rows([{"prompt": "a", "answer": "2"}, {"prompt": "b", "answer": 2}])
    with pytest.raises(RowError, match="row 1 lacks answer"):
        check_rows([{"prompt": "a", "answer": "2"}, {"prompt": "b"}])
    with pytest.raises(RowError, match="row 1 has .*answer, which row 0 lacks"):
        check_rows([{"prompt": "b"}, {"prompt": "a", "answer": "2"}])


def test_rows_that_keep_it_are_taken(monkeypatch):
    check_rows([{"prompt": "a"}] * 3)  # duplicates are fine
    check_rows([{"answer": 1, "prompt": "a"}, {"prompt": "b", "answer": 2}])
    check_rows(({"prompt": "a", "answers": ["x"]}, {"prompt": "b", "answers": []}))
    check_rows(np.array([{"prompt": "a"}, {"prompt": "b"}], dtype=object))
    check_rows([collections.OrderedDict(prompt="a"), {"prompt": "b"}])


# exact_match


@pytest.mark.parametrize("answer", [2, 2.0, None, True, b"2", ["2"]])
def test_an_answer_that_is_no_text_is_refused_and_never_reward_0_for_ever(answer):
    rows = [{"prompt": "1+1=", "answer": answer}]
    with pytest.raises(RewardError, match=r"exact_match compares texts.*answer"):
        call_reward(exact_match, rows, ["2", "3"])


def test_exact_match_is_to_the_letter():
    rows = [{"prompt": "1+1=", "answer": "2"}]
    assert call_reward(exact_match, rows, ["2", "02", " 2", "2\n", ""]).tolist() == [1, 0, 0, 0, 0]
    with pytest.raises(RewardError, match="2 answers for 1 completion"):
        exact_match(["a"], ["b"], answer=["b", "c"])


# Whatever is returned


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.complex_numbers() | st.text(max_size=3)
    | st.binary(max_size=3) | st.decimals() | st.fractions(),
    lambda inner: st.lists(inner, max_size=5) | st.tuples(inner, inner)
    | st.dictionaries(st.integers(), inner)
    | st.lists(inner, max_size=5).map(lambda x: np.array(x, dtype=object)),
    max_leaves=6,
)  # fmt: skip


@given(values)
def test_whatever_is_returned_it_is_taken_exactly_or_refused(value):
    try:
        rewards = call_reward(gives(value), ROWS, TEXTS[:2])
    except RewardError:
        return
    assert isinstance(value, (list, tuple, np.ndarray)) and len(value) == 2
    assert rewards.tolist() == [torch.tensor(float(v)).item() for v in value] and rewards.isfinite().all()


@given(
    st.lists(
        st.dictionaries(st.sampled_from(["prompt", "answer", "prompts", "x", 1]), values, max_size=3),
        max_size=3,
    )
)
def test_whatever_the_rows_are_they_are_taken_or_refused(rows):
    try:
        check_rows(rows)
    except (RowError, EmptyPromptError):
        return
    assert len({frozenset(row) for row in rows}) == 1 and all(row["prompt"] for row in rows)
    try:
        call_reward(lambda **columns: [0.0] * len(rows), rows, [""] * len(rows))
    except NanoGRPOError as error:
        raise AssertionError(f"rows that were taken are refused later: {error}") from error


# The trainers


TRAINERS = {"grpo": (grpo.train, GRPOConfig), "ppo": (ppo.train, PPOConfig)}


@pytest.mark.parametrize("trainer", TRAINERS)
@pytest.mark.parametrize("case", [*BAD_ROWS, "no rows"])
def test_trainers_look_at_all_rows_before_the_first_step(trainer, case):
    train, config_class = TRAINERS[trainer]
    rows = BAD_ROWS.get(case, [])
    if isinstance(rows, types.GeneratorType):
        rows = (row for row in ())
    model = GPT(GPTConfig(5, 8, n_layer=1, n_head=1, n_embd=4))
    config = config_class(2, group_size=2, prompts_per_step=1, max_steps=1)
    with pytest.raises((RowError, EmptyPromptError)):
        next(train(model, CharTokenizer("abc"), rows, gives([0.0, 0.0]), config))


@pytest.mark.parametrize(
    "reward", [None, 3, "judge", {exact_match}, {"a": exact_match}, [], [None], [3, exact_match]]
)
def test_trainers_refuse_what_is_no_reward(reward):
    model = GPT(GPTConfig(5, 8, n_layer=1, n_head=1, n_embd=4))
    config = GRPOConfig(2, group_size=2, prompts_per_step=1, max_steps=1)
    with pytest.raises((RewardError, OptionError)):
        next(grpo.train(model, CharTokenizer("abc"), [{"prompt": "a", "answer": "b"}], reward, config))


def test_a_weighted_sum_that_is_not_finite_is_refused():
    model = GPT(GPTConfig(5, 8, n_layer=1, n_head=1, n_embd=4))
    config = GRPOConfig(2, group_size=2, prompts_per_step=1, max_steps=1, reward_weights=(1e30, 1.0))
    rewards = [named("a", gives([1e30, 0.0])), named("b", gives([0.0, 0.0]))]
    with pytest.raises(RewardError, match="weighted sum of a, b is not finite"):
        next(grpo.train(model, CharTokenizer("abc"), [{"prompt": "a"}], rewards, config))


class Endless:
    """A data set as PyTorch has them: a length, and rows by number, whatever the number."""

    def __len__(self):
        return 3

    def __getitem__(self, i):
        return {"prompt": f"{i % 3}+1=", "answer": "1"}


def test_a_table_gives_no_rows_by_number():
    table = pytest.importorskip("pandas").DataFrame([{"prompt": "1"}, {"prompt": "2"}])
    with pytest.raises(RowError, match=r"a DataFrame gives no row 0.*to_dict\('records'\)"):
        check_rows(table)
    check_rows(table.to_dict("records"))


def test_a_data_set_ends_where_its_length_says():
    check_rows(Endless())


@pytest.mark.parametrize("value", [threading.Lock(), (x for x in [1]), torch.ones(2, requires_grad=True) * 2])
def test_a_column_that_cannot_be_copied_is_named(value):
    with pytest.raises(RowError, match="data.*copied"):
        call_reward(lambda **_: [0.0], [{"prompt": "1", "data": value}], ["1"])


class Mute:
    """An object, and an exception, that cannot say what they are."""

    def __repr__(self):
        raise ValueError("mute")


class MuteError(Exception):
    def __str__(self):
        raise ValueError("mute")


def test_what_cannot_be_shown_is_still_a_reward_error():
    def fails(**columns):
        raise MuteError

    for reward in (lambda completions, **_: [Mute() for _ in completions], fails):
        with pytest.raises(RewardError, match="Mute"):
            call_reward(reward, [{"prompt": "1"}], ["1"])


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_nested_tensor_is_no_list_of_rewards():
    with pytest.raises(RewardError, match="cannot be read"):
        call_reward(lambda **_: torch.nested.nested_tensor([torch.ones(1)]), [{"prompt": "1"}], ["1"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rewards_are_not_rounded_by_the_default_type(dtype):
    torch.set_default_dtype(dtype)
    try:
        rewards = call_reward(lambda **_: [70000.1, 0.1], [{"prompt": "1"}], ["1", "2"])
    finally:
        torch.set_default_dtype(torch.float32)
    assert rewards.dtype == torch.float32 and torch.equal(rewards, torch.tensor([70000.1, 0.1]))


def test_rows_that_change_while_a_run_goes_on_are_looked_at_again():
    tokenizer = CharTokenizer("0123456789+=")
    rows = [{"prompt": "1+2=", "answer": "3"} for _ in range(4)]
    torch.manual_seed(0)
    model = GPT(GPTConfig(tokenizer.vocab_size, 12, n_layer=1, n_head=1, n_embd=8))
    config = GRPOConfig(3, group_size=2, prompts_per_step=2, max_steps=3)
    run = grpo.train(model, tokenizer, rows, exact_match, config)
    next(run)
    rows[:] = [{"question": "1+2="}] * 4
    with pytest.raises(RowError, match="prompt"):
        next(run)

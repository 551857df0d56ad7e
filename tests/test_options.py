"""Options are declared once: range, type, help, docstring, command line and config.json follow from it."""

import argparse
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np
import pytest

from nanogrpo.errors import GroupSizeError, OptionError
from nanogrpo.grpo import GRPOConfig
from nanogrpo.options import Options, add_options, option
from nanogrpo.ppo import PPOConfig
from nanogrpo.sft import SFTConfig


@dataclass(frozen=True)
class Sample(Options):
    """Options for the tests."""

    count: int = option(help="how many, see :func:`~nanogrpo.sft.train`.", low=1)
    rate: float = option(0.5, help="how fast; 100 % is too much.", above=0, below=1)
    group: int = option(4, help="a group.", low=2, error=GroupSizeError)
    kind: Literal["a", "b"] = option("a", help="which.")
    maybe: Literal["x", "y"] | None = option(None, help="which, or none.")
    weights: tuple[float, ...] | None = option(None, help="of each.")
    flag: bool = option(False, help="on or off.")
    cap: float | None = option(1.0, help="a bound; None: none.", low=0)

    def check(self):
        if self.count > 100 and self.flag:
            raise OptionError(f"count={self.count} does not go with flag")


BAD = {
    "count": [0, -1, 1.0, 2.5, True, "3", None, float("nan"), [1], 1j],
    "rate": [0, 1, -0.5, float("nan"), float("inf"), -float("inf"), "0.5", None, True, 1 + 0j, [0.5]],
    "kind": ["c", "", None, 1, "A", ["a"]],
    "maybe": ["z", "none", 0],
    "weights": [1.0, (), (1.0, float("nan")), ("1",), (True,), "12", {1.0}],
    "flag": [0, 1, "yes", None],
    "cap": [-1e-9, float("nan"), float("inf"), "1"],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in BAD for value in BAD[name]])
def test_a_value_outside_its_declaration_is_refused_by_name(name, value):
    with pytest.raises(OptionError, match=rf"{name}(\[\d\])?=.*"):
        Sample(**{"count": 3, name: value})


class Turned(float):
    """A number that is another one as soon as it is converted, as only a faulty type is."""

    def __float__(self):
        return float("nan")


@pytest.mark.parametrize("value", [Fraction(1, 10**400), np.longdouble("1e-4000"), Turned(0.5)])
def test_the_range_is_that_of_the_float_that_is_kept(value):
    if float(value) == value:
        pytest.skip("here a long double is no longer than a float")
    with pytest.raises(OptionError, match="rate=.* must be a finite number"):
        Sample(3, rate=value)


def test_the_declared_error_is_raised():
    with pytest.raises(GroupSizeError, match="group=1 must be at least 2: a group"):
        Sample(3, group=1)


def test_numbers_become_plain_python():
    sample = Sample(np.int64(3), rate=np.float32(0.25), cap=1, weights=[1, np.float64(2)])
    assert (type(sample.count), type(sample.rate), type(sample.cap)) == (int, float, float)
    assert sample.weights == (1.0, 2.0) and all(type(w) is float for w in sample.weights)
    assert Sample(10**400).count == 10**400  # a whole number has no infinity


def test_pairs_are_checked_after_the_fields():
    with pytest.raises(OptionError, match="count=101 does not go with flag"):
        Sample(101, flag=True)


def test_the_docstring_lists_the_options_with_their_ranges():
    assert "    rate: how fast; 100 % is too much. Must be above 0 and below 1." in Sample.__doc__
    assert SFTConfig.__doc__.count("Must be") >= 4


def test_config_json_knows_each_name():
    assert Sample.of({"count": 2, "weights": [1, 2]}).weights == (1.0, 2.0)
    with pytest.raises(OptionError, match="no option speed, turns; it has count, rate"):
        Sample.of({"count": 2, "turns": 1, "speed": 2})
    with pytest.raises(OptionError, match="needs a value of count"):
        Sample.of({})


def parse(*argv: str) -> dict:
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_options(parser, Sample)
    return vars(parser.parse_args(argv))


def test_the_command_line_reads_every_type():
    assert parse() == {}
    given = parse("--count", "3", "--rate", "1e-1", "--kind", "b", "--maybe", "none", "--no-flag",
                  "--weights", "1", "2", "--cap", "None")  # fmt: skip
    assert given == {"count": 3, "rate": 0.1, "kind": "b", "maybe": None, "flag": False,
                     "weights": [1.0, 2.0], "cap": None}  # fmt: skip
    assert Sample.of(given).weights == (1.0, 2.0)


def test_help_says_meaning_range_and_default():
    parser = argparse.ArgumentParser()
    add_options(parser, Sample)
    text = " ".join(parser.format_help().split())
    assert "how fast; 100 % is too much. Must be above 0 and below 1. (default: 0.5)" in text
    assert "see nanogrpo.sft.train" in text and "{x,y,none}" in text
    assert "(default: what the task needs)" in text


@pytest.mark.parametrize("digits", [400, 5000])
def test_a_whole_number_that_no_float_holds_is_refused_where_a_float_is_asked_for(digits):
    value = 10**digits
    for name, given in {"rate": value, "weights": (1.0, -value), "kind": value, "cap": -value}.items():
        with pytest.raises(OptionError, match=name):
            Sample(3, **{name: given})


@pytest.mark.parametrize("value", [1e39, -1e39, 1e308, 10**300])
def test_a_number_that_no_weight_can_hold_is_refused(value):
    with pytest.raises(OptionError, match="entropy_coef.*3.4e"):
        GRPOConfig(max_new_tokens=3, entropy_coef=value)
    with pytest.raises(OptionError, match="reward_weights"):
        GRPOConfig(max_new_tokens=3, reward_weights=(1.0, value))


@pytest.mark.parametrize("name", ["group_size", "prompts_per_step", "max_new_tokens"])
def test_a_count_that_no_memory_holds_is_refused(name):
    with pytest.raises((OptionError, GroupSizeError), match=f"{name}.*at most"):
        GRPOConfig(**{"max_new_tokens": 3, name: 10**12})
    with pytest.raises(OptionError, match=f"{name}.*at most"):
        PPOConfig(**{"max_new_tokens": 3, name: 10**30})


@pytest.mark.parametrize("values", [None, [], [("seed", 1)], "seed", 3])
def test_what_is_no_mapping_holds_no_options(values):
    with pytest.raises(OptionError, match="names and values"):
        GRPOConfig.of(values)


def test_names_of_options_are_texts():
    with pytest.raises(OptionError, match="no option 1"):
        GRPOConfig.of({1: 1, "max_new_tokens": 3})


@pytest.mark.parametrize(
    "words",
    [
        "--learning-rate １e-3",
        "--learning-rate ٣",
        "--learning-rate 1_0",
        "--group-size 1_0",
        "--group-size ٤",
    ],
)
def test_the_command_line_reads_numbers_as_a_log_does(words, capsys):
    parser = argparse.ArgumentParser()
    add_options(parser, GRPOConfig)
    with pytest.raises(SystemExit):
        parser.parse_args(words.split())
    assert "invalid" in capsys.readouterr().err

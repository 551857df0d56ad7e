"""What sampling and scoring ask of their arguments: every misfit is named before it is computed with.

Shapes, types and devices are looked at in each call. Values are not looked at while tokens are sampled, since
each look makes a GPU wait: only before the first one, and after the last.

Legend: P prompts, G completions a prompt, B = P*G rows, V vocabulary.
"""

from numbers import Integral, Rational, Real

import torch
from torch import Tensor

from nanogrpo.errors import (
    BlockSizeError,
    DeviceError,
    DTypeError,
    NonFiniteError,
    OptionError,
    ShapeError,
    TokenError,
    check_shape,
    check_whole,
)
from nanogrpo.model import GPT
from nanogrpo.options import LARGEST
from nanogrpo.precision import check_no_autocast

NOT_FINITE = (
    "there is no token to choose: a logit is NaN or infinite, or a uniform number is not in (0, 1]. Look at "
    "the model's weights; a learning rate that is too high breaks them"
)


def check_fits(
    model: GPT,
    prompt_ids: Tensor,
    prompt_lens: Tensor,
    uniforms: Tensor,
    *,
    group_size: int,
    max_new_tokens: int,
    eos_id: int,
    pad_id: int,
    temperature: float,
) -> None:
    """Raise a typed error, before any token is sampled, where an argument of ``generate`` is not right."""
    V, weight, block = model.config.vocab_size, model.head.weight, model.config.block_size
    check_whole("group_size", group_size, 1)
    check_whole("max_new_tokens", max_new_tokens, 1)
    check_whole("eos_id", eos_id)  # outside the vocabulary, it ends nothing
    check_whole("pad_id", pad_id, 0, V - 1)
    check_temperature(temperature)
    check_no_autocast(weight)
    check_prompts(prompt_ids, prompt_lens, weight)
    check_shape("uniforms", uniforms, (len(prompt_ids) * group_size, max_new_tokens), "(P * G, tokens)")
    check_uniforms(uniforms)
    if uniforms.device != weight.device:
        raise DeviceError(f"uniforms are on {uniforms.device}, the model on {weight.device}; use .to(...)")
    if not ((uniforms > 0) & (uniforms <= 1)).all():
        raise OptionError("a uniform number is not in (0, 1]; use draw_uniforms")
    longest = int(prompt_lens.max())
    if longest + max_new_tokens > block:
        raise BlockSizeError(
            f"prompt {int(prompt_lens.argmax())} has {longest} tokens; with max_new_tokens={max_new_tokens} "
            f"that makes {longest + max_new_tokens}, over block_size={block}. Shorten one of them, "
            "or build the model with a larger block_size"
        )
    check_token_ids("prompt_ids", prompt_ids, V)


def check_prompts(prompt_ids: Tensor, prompt_lens: Tensor, weight: Tensor) -> None:
    """Raise a typed error unless prompts are a table of ids and a length of each that fits the table."""
    for what, tensor, dims in (("prompt_ids", prompt_ids, 2), ("prompt_lens", prompt_lens, 1)):
        check_ids(what, tensor, dims, weight)
    check_shape("prompt_lens", prompt_lens, prompt_ids.shape[:1], "one for each row of prompt_ids")
    if not prompt_ids.numel() or not ((prompt_lens >= 1) & (prompt_lens <= prompt_ids.shape[1])).all():
        raise ShapeError(
            f"prompt_ids have shape {tuple(prompt_ids.shape)} and prompt_lens are {prompt_lens.tolist()}; "
            "each prompt needs at least one token, and the table a column for each"
        )


def check_ids(what: str, ids: Tensor, dims: int, weight: Tensor) -> None:
    """Raise a typed error unless ``ids`` are int64, have ``dims`` dimensions, and are where the model is."""
    if not isinstance(ids, Tensor) or ids.dtype != torch.int64:
        raise DTypeError(f"{what} is {getattr(ids, 'dtype', type(ids).__name__)}, need torch.int64")
    if ids.ndim != dims:
        raise ShapeError(f"{what} has shape {tuple(ids.shape)}, expected {dims} dimension(s)")
    if ids.device != weight.device:
        raise DeviceError(f"{what} is on {ids.device}, the model on {weight.device}; use .to(...)")


def check_token_ids(what: str, ids: Tensor, vocab_size: int) -> None:
    """Raise a typed error unless these are ids of the vocabulary; a GPU is not asked, and stops by itself."""
    if not isinstance(ids, Tensor) or ids.dtype != torch.int64:
        raise DTypeError(f"{what} is {getattr(ids, 'dtype', type(ids).__name__)}, need torch.int64")
    if ids.is_cpu and ids.numel():
        low, high = (int(end) for end in ids.aminmax())
        if low < 0 or high >= vocab_size:
            raise TokenError(f"{what} go from {low} to {high}, but the vocabulary from 0 to {vocab_size - 1}")


def group_size_of(model: GPT, prompt_ids: Tensor, prompt_lens: Tensor, completion_ids: Tensor) -> int:
    """Completions a prompt; a typed error where the shapes, types or devices do not go together."""
    check_prompts(prompt_ids, prompt_lens, model.token.weight)
    check_ids("completion_ids", completion_ids, 2, model.token.weight)
    P, B = len(prompt_ids), len(completion_ids)
    if not completion_ids.numel() or B % P:
        raise ShapeError(
            f"completion_ids have shape {tuple(completion_ids.shape)} for {P} prompts; they need at least "
            "one token, and as many rows for each prompt"
        )
    return B // P


def check_draw(logits: Tensor, uniforms: Tensor, temperature: float) -> None:
    """Raise a typed error unless these are rows of logits and a uniform number for each."""
    if not logits.ndim or not logits.shape[-1]:
        raise ShapeError(f"logits have shape {tuple(logits.shape)}; they need at least one token at the end")
    check_shape("uniforms", uniforms, logits.shape[:-1], "one for each row of logits")
    check_uniforms(uniforms)
    check_temperature(temperature)


class a_token_of_each_row:  # used as a function is; one made by @contextmanager takes ten times as long
    """Turn an index past the last token into NonFiniteError: NaN compares with nothing, so it ends there.

    To ask beforehand would cost more than all the other checks of a token together.
    """

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _) -> None:
        if isinstance(error, RuntimeError):
            raise NonFiniteError(NOT_FINITE) from error


def check_uniforms(uniforms: Tensor) -> None:
    """Raise DTypeError where there are too few different numbers to draw rare tokens with."""
    if not uniforms.is_floating_point() or uniforms.element_size() < 4:
        raise DTypeError(f"uniforms are {uniforms.dtype}, too coarse to draw rare tokens; use draw_uniforms")


def check_sampled(logprobs: Tensor) -> None:
    """Raise NonFiniteError where a model whose logits are NaN or infinite has sampled."""
    if not logprobs.isfinite().all():
        raise NonFiniteError(NOT_FINITE)


def check_temperature(temperature: float, low_is_allowed: bool = True) -> None:
    """Raise OptionError unless it is a finite number above 0, or 0 where greedy choices are meant."""
    if type(temperature) is float and 0 < temperature <= LARGEST:
        return  # asked at each token, so what is usual comes first
    fraction = isinstance(temperature, Rational) and not isinstance(temperature, Integral)
    if isinstance(temperature, bool) or not isinstance(temperature, Real) or fraction:
        raise OptionError(f"temperature={temperature!r} is of type {type(temperature).__name__}, no number")
    if not 0 <= temperature <= LARGEST:
        raise OptionError(f"temperature={temperature!r:.80} must be a finite number, 0 (greedy) or above")
    if not (temperature or low_is_allowed):
        raise OptionError(
            f"temperature={temperature} must be above 0; greedy choices have no log-probs to train on"
        )

"""Our GPT as a model of ``transformers``, and back: the same weights, ids and logits, in a folder they share.

The stock architecture that computes what :class:`~nanogrpo.model.GPT` computes is OPT (arXiv 2205.01068),
with its options set to LayerNorm before each half, exact GELU and an output layer of its own. GPT-2 has the
same blocks, but counts positions from the left edge of the table unless it is told otherwise. TRL pads on the
left and does not tell it, so a short prompt would be trained at other positions than it was sampled at. OPT
counts the tokens that are not masked.

What it leaves out, and why: chat templates (a character model has no chat), other architectures, and the hub
itself (``push_to_hub`` of what is returned here does that). Needs ``pip install 'nanogrpo[hub]'``; nothing
else in the package imports this file.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nanogrpo.errors import CheckpointError, OptionError, PackageError
from nanogrpo.model import GPT, GPTConfig
from nanogrpo.together import check_vocabulary
from nanogrpo.tokenizer import CharTokenizer

if TYPE_CHECKING:
    from collections.abc import Iterator

PAD, EOS = "<pad>", "<eos>"
OFFSET = 2  # OPT keeps two rows before its first position; tokens that are masked read the second
# What must hold of an OPT so that it computes what ours does; OPT's own defaults are noted where they differ.
FIXED: dict[str, Any] = {
    "activation_function": "gelu",  # the exact one; relu in OPT's papers
    "do_layer_norm_before": True,
    "enable_bias": True,
    "layer_norm_elementwise_affine": True,
    "tie_word_embeddings": False,  # True there
    "_remove_final_layer_norm": False,
}
WHOLE = {  # ours: theirs, one tensor each
    "token.weight": "model.decoder.embed_tokens.weight",
    "norm.weight": "model.decoder.final_layer_norm.weight",
    "norm.bias": "model.decoder.final_layer_norm.bias",
    "head.weight": "lm_head.weight",
}
LAYER = {
    "norm1": "self_attn_layer_norm",
    "attention.proj": "self_attn.out_proj",
    "norm2": "final_layer_norm",
    "up": "fc1",
    "down": "fc2",
}
QKV = ("q_proj", "k_proj", "v_proj")


def to_transformers(model: GPT, tokenizer: CharTokenizer) -> tuple[Any, Any]:
    """An ``OPTForCausalLM`` with copies of our weights, and a ``PreTrainedTokenizerFast`` with our ids.

    Its logits are ours up to rounding: a sum is taken in another order. The tokenizer pads on the left, as
    TRL wants it. The two special ids have the texts ``<pad>`` and ``<eos>``, which are never read out of a
    prompt. The model has no ``pad_token_id``: with one, PyTorch would freeze the row of that id, and a policy
    may sample it.

    Raises:
        PackageError: ``transformers`` is not installed.
        OptionError: model and tokenizer do not belong together.
    """
    check_vocabulary(model, tokenizer)
    with needs_transformers():
        from transformers import GenerationConfig, OPTConfig, OPTForCausalLM

    shape, weight = model.config, model.head.weight
    config = OPTConfig(
        vocab_size=shape.vocab_size, max_position_embeddings=shape.block_size, hidden_size=shape.n_embd,
        word_embed_proj_dim=shape.n_embd, ffn_dim=4 * shape.n_embd, num_hidden_layers=shape.n_layer,
        num_attention_heads=shape.n_head, dropout=0.0, attention_dropout=0.0, layerdrop=0.0,
        pad_token_id=None, bos_token_id=None, eos_token_id=tokenizer.eos_id, dtype=weight.dtype, **FIXED,
    )  # fmt: skip
    theirs = OPTForCausalLM(config).to(dtype=weight.dtype, device=weight.device)
    theirs.load_state_dict(_theirs(model.state_dict(), shape.n_layer))
    theirs.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_id, pad_token_id=tokenizer.pad_id)
    return theirs.eval(), tokenizer_to_transformers(tokenizer, shape.block_size)


def from_transformers(model: Any, tokenizer: Any) -> tuple[GPT, CharTokenizer]:
    """What :func:`to_transformers` made, for instance after TRL has trained it, as ours again.

    The weights are copied bit for bit. Two rows of OPT's table of positions that no token reads are left out.

    Raises:
        CheckpointError: another architecture, an option with which it computes something else, or a
            tokenizer that is not one of ours.
    """
    ours = tokenizer_from_transformers(tokenizer)
    shape = _shape_of(model.config)
    if shape.vocab_size != ours.vocab_size:
        raise CheckpointError(
            f"the model has {shape.vocab_size} ids, its tokenizer {ours.vocab_size}; take one folder's"
        )
    weight = model.lm_head.weight
    gpt = GPT(shape).to(dtype=weight.dtype, device=weight.device)
    gpt.load_state_dict(_ours(model.state_dict(), shape.n_layer))
    return gpt, ours


def save_pretrained(folder: str | os.PathLike, model: GPT, tokenizer: CharTokenizer) -> None:
    """Write a folder that ``AutoModelForCausalLM`` and ``AutoTokenizer`` load, and TRL takes by its name.

    Raises:
        PackageError, OptionError: see :func:`to_transformers`.
    """
    for part in to_transformers(model, tokenizer):
        part.save_pretrained(folder)


def load_pretrained(folder: str | os.PathLike) -> tuple[GPT, CharTokenizer]:
    """Read a folder that :func:`save_pretrained`, or a trainer after it, wrote.

    Nothing is downloaded: a name that is no folder is an error.

    Raises:
        PackageError: ``transformers`` is not installed.
        CheckpointError: no such folder, files that cannot be read, or see :func:`from_transformers`.
    """
    with needs_transformers():
        from transformers import AutoModelForCausalLM, AutoTokenizer
    if not os.path.isdir(folder):
        raise CheckpointError(f"cannot read {folder}: there is no such folder; give one of save_pretrained")
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype="auto")
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(f"cannot read {folder}: {error}; save it again or restore a copy") from error
    return from_transformers(model, tokenizer)


def tokenizer_to_transformers(tokenizer: CharTokenizer, max_length: int) -> Any:
    """A ``PreTrainedTokenizerFast``: one token a character, ids as ours, nothing added, padded on the left.

    A character outside the alphabet is an error there as it is here; the message is of ``tokenizers``.

    Raises:
        PackageError: ``transformers`` is not installed.
    """
    with needs_transformers():
        from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast
    ids = {PAD: tokenizer.pad_id, EOS: tokenizer.eos_id} | {c: i for i, c in enumerate(tokenizer.chars, 2)}
    fast = Tokenizer(models.WordLevel(ids, unk_token=""))  # which is no token, so nothing stands for unknown
    fast.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    fast.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=fast, pad_token=PAD, eos_token=EOS, padding_side="left", model_max_length=max_length,
        clean_up_tokenization_spaces=False, split_special_tokens=True,
    )  # fmt: skip


def tokenizer_from_transformers(tokenizer: Any) -> CharTokenizer:
    """Our tokenizer with the ids of one that :func:`tokenizer_to_transformers` made.

    Raises:
        CheckpointError: its ids are not those of a character tokenizer: pad 0, eos 1, then characters.
    """
    texts = [text for text, _ in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])]
    if texts[:2] != [PAD, EOS] or tokenizer.pad_token_id != 0 or tokenizer.eos_token_id != 1:
        raise CheckpointError(
            f"the first tokens are {texts[:2]}; a tokenizer of this package begins with {PAD} and {EOS}"
        )
    if odd := [text for text in texts[2:] if len(text) != 1]:
        raise CheckpointError(f"the token {odd[0]!r} is no single character; this is no character tokenizer")
    try:
        return CharTokenizer("".join(texts[2:]))
    except OptionError as error:
        raise CheckpointError(f"the tokenizer's characters make no alphabet: {error}") from error


@contextmanager
def needs_transformers() -> Iterator[None]:
    """Raise PackageError, which says how to install it, where ``transformers`` cannot be loaded."""
    try:
        yield
    except ImportError as error:
        raise PackageError(
            f"nanogrpo.hub needs transformers ({error}): pip install 'nanogrpo[hub]'"
        ) from error


def _shape_of(config: Any) -> GPTConfig:
    """The shape of an OPT that computes what ours does."""
    if config.model_type != "opt":
        raise CheckpointError(
            f"the model is of type {config.model_type!r}; nanogrpo.hub reads and writes 'opt'"
        )
    expected = FIXED | {"ffn_dim": 4 * config.hidden_size, "word_embed_proj_dim": config.hidden_size}
    for name, value in expected.items():
        if (found := getattr(config, name)) != value:
            raise CheckpointError(f"the model has {name}={found!r}, and our GPT computes {value!r}")
    return GPTConfig(
        config.vocab_size, config.max_position_embeddings, config.num_hidden_layers,
        config.num_attention_heads, config.hidden_size,
    )  # fmt: skip


def _theirs(state: dict[str, Tensor], layers: int) -> dict[str, Tensor]:
    """Our weights by OPT's names."""
    found = {theirs: state[ours] for ours, theirs in WHOLE.items()}
    position = state["position.weight"]  # (block_size, C)
    unread = position.new_zeros(OFFSET, position.shape[1])
    found["model.decoder.embed_positions.weight"] = torch.cat([unread, position])
    for i in range(layers):
        for kind in ("weight", "bias"):
            parts = state[f"blocks.{i}.attention.qkv.{kind}"].chunk(3)  # each (C, C) or (C,)
            for name, part in zip(QKV, parts, strict=True):
                found[f"model.decoder.layers.{i}.self_attn.{name}.{kind}"] = part
            for ours, theirs in LAYER.items():
                found[f"model.decoder.layers.{i}.{theirs}.{kind}"] = state[f"blocks.{i}.{ours}.{kind}"]
    return found


def _ours(state: dict[str, Tensor], layers: int) -> dict[str, Tensor]:
    """OPT's weights by our names."""
    found = {ours: state[theirs] for ours, theirs in WHOLE.items()}
    found["position.weight"] = state["model.decoder.embed_positions.weight"][OFFSET:]
    for i in range(layers):
        at = f"model.decoder.layers.{i}"
        for kind in ("weight", "bias"):
            parts = [state[f"{at}.self_attn.{name}.{kind}"] for name in QKV]
            found[f"blocks.{i}.attention.qkv.{kind}"] = torch.cat(parts)
            for ours, theirs in LAYER.items():
                found[f"blocks.{i}.{ours}.{kind}"] = state[f"{at}.{theirs}.{kind}"]
    return found

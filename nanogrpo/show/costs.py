r"""What a step of GRPO costs, on paper: FLOP, bytes to hold and bytes to move, from the shape of the model.

Counts of multiplications and of numbers, nothing else. A multiplication with its addition is 2 FLOP. Left out
are small work (norms, activation functions, softmax, sampling, the reward) and what depends on a program
(fragments of memory, padding, kernels). Times are lower bounds, and real programs reach a part of them.

Legend: ``P`` prompts, ``G`` completions a prompt, ``B = P * G``, ``Tp`` and ``T`` tokens of a prompt and of a
completion, ``L`` layers, ``C`` channels, ``V`` vocabulary. Functions end in the unit that they return.
"""

from dataclasses import MISSING, dataclass
from typing import Any, Literal

from nanogrpo.errors import OptionError
from nanogrpo.options import Options, option


def _count(help: str, default: Any = MISSING, low: int = 1) -> Any:
    return option(default, help=help, low=low, high=10**9)


@dataclass(frozen=True)
class Shape(Options):
    """The shape of a decoder-only transformer: GPT-2's kind, or with other options Llama's."""

    vocab: int = _count("V, tokens.")
    layers: int = _count("L, layers.")
    width: int = _count("C, channels.")
    heads: int = _count("heads of queries; they share the channels.")
    kv_heads: int = _count("heads of keys and values; fewer than ``heads`` share them.")
    hidden: int = _count("channels in the middle of an MLP.")
    gated: bool = option(False, help="the MLP has a third matrix, as SwiGLU has.")
    positions: int = _count("rows of a table of positions; 0 for rotations, which have none.", 0, low=0)
    qkv_bias: bool = option(True, help="queries, keys and values have a bias.")
    bias: bool = option(True, help="so have the other layers; and norms have one, which RMSNorm has not.")
    tied: bool = option(False, help="the output layer is the table of tokens.")

    def check(self) -> None:
        for name, of, others in (("width", self.width, self.heads), ("heads", self.heads, self.kv_heads)):
            if of % others:
                raise OptionError(f"{name}={of} does not divide by {others}; choose a multiple of it")

    @property
    def kv_width(self) -> int:
        """Channels of the keys of a token in one layer, and of its values."""
        return self.width // self.heads * self.kv_heads

    @property
    def layer_matrices(self) -> int:
        """Numbers in the matrices of one layer; each is multiplied once for each token."""
        attention = 2 * self.width * (self.width + self.kv_width)
        return attention + (3 if self.gated else 2) * self.width * self.hidden

    @property
    def read_weights(self) -> int:
        """Numbers that a token is multiplied with; a table of tokens is only looked up."""
        return self.layers * self.layer_matrices + self.width * self.vocab

    @property
    def parameters(self) -> int:
        """All numbers that training may change."""
        C = self.width
        norm = 2 * C if self.bias else C
        biases = self.qkv_bias * (C + 2 * self.kv_width)
        biases += self.bias * (C + (2 if self.gated else 1) * self.hidden + C)
        tables = C * (self.vocab * (1 if self.tied else 2) + self.positions)
        return self.layers * (self.layer_matrices + biases + 2 * norm) + norm + tables


@dataclass(frozen=True)
class Work(Options):
    """What one step samples and learns from; all prompts, and all completions, of one length."""

    prompts: int = _count("P, prompts.")
    group: int = _count("G, completions a prompt.")
    prompt_tokens: int = _count("Tp, tokens of a prompt.")
    completion_tokens: int = _count("T, tokens of a completion.")

    @property
    def completions(self) -> int:
        """``B = P * G``."""
        return self.prompts * self.group

    @property
    def sampled_tokens(self) -> int:
        """Tokens that the policy writes."""
        return self.completions * self.completion_tokens

    @property
    def scored_tokens(self) -> int:
        """Tokens of prompts and completions, each prompt as often as it has completions."""
        return self.completions * (self.prompt_tokens + self.completion_tokens)


def pairs(new: int, past: int = 0, causal: bool = True) -> float:
    """Pairs of query and key of one row: ``new`` queries look at ``past`` keys and at each other.

    Args:
        causal: a query looks back only, and the kernel skips the rest. Without, it computes them, too.
    """
    return new * past + (new * (new + 1) / 2 if causal else new * new)


def pass_flop(shape: Shape, tokens: float, seen: float, predicted: float) -> float:
    r"""One forward pass: :math:`2\,(\text{tokens}\,L M + \text{predicted}\,C V) + 4 L C\,\text{seen}`.

    Args:
        tokens: positions that run through the layers, whose matrices have :math:`M` numbers each.
        seen: :func:`pairs` of query and key, over all rows.
        predicted: positions whose next token is wanted.
    """
    attention = 4 * shape.layers * shape.width * seen
    return (
        2 * (tokens * shape.layers * shape.layer_matrices + predicted * shape.width * shape.vocab) + attention
    )


def rollout_flop(shape: Shape, work: Work) -> float:
    """Sampling with a cache: each prompt is read once for its group, each token once, the last one never."""
    P, B, Tp, T = work.prompts, work.completions, work.prompt_tokens, work.completion_tokens
    prefill = pass_flop(shape, P * Tp, P * pairs(Tp), P)
    return prefill + pass_flop(shape, B * (T - 1), B * pairs(T - 1, Tp), B * (T - 1))


def scoring_flop(shape: Shape, work: Work, shared_prompt: bool = False, causal: bool = True) -> float:
    """Log-probs of the completions under one model: once for a reference, once more for an older policy.

    Args:
        shared_prompt: a prompt is read once for its group, and not with each completion.
        causal: see :func:`pairs`.
    """
    P, B, Tp, T = work.prompts, work.completions, work.prompt_tokens, work.completion_tokens
    if not shared_prompt:
        return pass_flop(shape, B * (Tp + T - 1), B * pairs(Tp + T - 1, 0, causal), B * T)
    seen = P * pairs(Tp, 0, causal) + B * pairs(T - 1, Tp, causal)
    return pass_flop(shape, P * Tp + B * (T - 1), seen, B * T)


def update_flop(
    shape: Shape, work: Work, recompute: bool = False, shared_prompt: bool = False, causal: bool = True
) -> float:
    """Forward and backward: a backward pass multiplies twice for each time that the forward pass does.

    Args:
        recompute: activations were not kept (gradient checkpointing), so the layers run forward again.
        shared_prompt: see :func:`scoring_flop`.
        causal: see :func:`pairs`.
    """
    return (4 if recompute else 3) * scoring_flop(shape, work, shared_prompt, causal)


def kv_bytes(shape: Shape, tokens: float, number: float = 2) -> float:
    """The cache of keys and values of so many tokens, at ``number`` bytes a number."""
    return 2 * shape.layers * shape.kv_width * tokens * number


def decode_bytes(shape: Shape, work: Work, number: float = 2) -> float:
    """Read while sampling: for each further token all weights once, and the keys and values of every row."""
    B, Tp, T = work.completions, work.prompt_tokens, work.completion_tokens
    return (T - 1) * shape.read_weights * number + kv_bytes(shape, B * pairs(T - 1, Tp), number)


def state_bytes(
    shape: Shape, ranks: int = 1, sharded: Literal[0, 1, 2, 3] = 0,
    weight: float = 2, gradient: float = 2, adam: float = 12,
) -> float:  # fmt: skip
    """Weights, gradients and optimizer on each of some ranks (ZeRO, arXiv:1910.02054, section 3).

    Args:
        sharded: ZeRO's stage. 1 shares out the optimizer's numbers, 2 the gradients, 3 the weights as well.
        weight, gradient, adam: bytes a weight; 2, 2, 12 for bfloat16 with a copy and two moments in float32.
    """
    if sharded not in (0, 1, 2, 3):
        raise OptionError(f"sharded={sharded!r} is no stage of ZeRO; there are 0, 1, 2 and 3")
    parts = (weight, 3), (gradient, 2), (adam, 1)
    return sum(shape.parameters * size / (ranks if sharded >= stage else 1) for size, stage in parts)


def activation_bytes(shape: Shape, tokens: float, recompute: bool = False, number: float = 2) -> float:
    """Kept from forward to backward by all layers, the scores of attention apart, which a fused kernel drops.

    A layer of GPT-2's kind keeps 16 C numbers a token (arXiv:2205.05198, eq. 2, has 34 C bytes at 2 a number,
    of which 2 C are dropout's); one of another shape has its own widths for these. With ``recompute`` it
    keeps what it read, C numbers.
    """
    if recompute:
        return shape.layers * tokens * shape.width * number
    middle = (4 if shape.gated else 2) * shape.hidden
    return shape.layers * tokens * (6 * shape.width + 2 * shape.kv_width + middle) * number


def logits_bytes(shape: Shape, predicted: float, copies: int = 2, number: float = 4) -> float:
    """The logits of so many positions and, as a second copy, their log-softmax, which backward needs."""
    return copies * predicted * shape.vocab * number


def sent_bytes(shape: Shape, ranks: int, passes: int = 2, number: float = 2) -> float:
    """What each rank sends at an update: ``passes * (n - 1) / n`` of the numbers.

    A ring adds up gradients in 2 passes. With weights sharded there are 3: gather them forward and backward,
    and hand out gradients (arXiv:1910.02054, section 7).
    """
    return passes * (ranks - 1) / ranks * shape.parameters * number


def seconds(flop: float, moved: float, flop_rate: float, byte_rate: float) -> float:
    """At least as long as the slower of the two takes, at FLOP/s and bytes/s."""
    return max(flop / flop_rate, moved / byte_rate)

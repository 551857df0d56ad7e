"""A reward model: a GPT whose head has one output, trained to score the preferred one of two texts higher.

The head gives one number at every token; the score is their running total, read at the last token of the
text. So did the first of the line: a segment's reward is the sum of its steps' (arXiv:1706.03741, Eq. 1).
Large reward models are usually read at the last token alone, ``pool="last"``. A model as small as ours would
then have to learn to carry a count through the whole text first, from nothing but labels.

What it leaves out, and why: ties (two different texts always have a winner here), a margin in the loss, a
pull of the scores to mean zero (GRPO and leave-one-out baselines do not see a constant), an ensemble.

Dimensions: ``N`` pairs, ``B`` texts (``2 * N`` in training), ``T`` tokens of the longest text.
"""

import copy
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from nanogrpo.checkpoint import blank_model, load_tensors, moved, save_tensors
from nanogrpo.errors import (
    CheckpointError,
    NonFiniteError,
    OptionError,
    PairError,
    ShapeError,
    TextError,
    check_choice,
    check_outputs,
    check_shape,
)
from nanogrpo.losses import bradley_terry_loss
from nanogrpo.model import GPT
from nanogrpo.optim import clip_grad_norm
from nanogrpo.options import Options, option
from nanogrpo.precision import widen
from nanogrpo.state import TrainState
from nanogrpo.together import check_config, check_state, check_vocabulary
from nanogrpo.tokenizer import CharTokenizer

KIND = "reward model"  # in a checkpoint's header
POOLS = ("sum", "last")
ROWS = 32  # texts of one forward pass; its activations should fit in a CPU's cache


@dataclass(frozen=True)
class Preference:
    """Two completions of one prompt, and which of them was preferred.

    Raises:
        PairError: both are the same text, so that neither can be preferred; or one is no text.
    """

    prompt: str
    chosen: str
    rejected: str

    def __post_init__(self):
        if not all(isinstance(text, str) for text in (self.prompt, self.chosen, self.rejected)):
            raise PairError(f"a preference is made of texts; these are {self}")
        if self.chosen == self.rejected:
            raise PairError(
                f"both completions of prompt {self.prompt!r} are {self.chosen!r}; "
                "a preference needs two different texts, so leave this pair out"
            )


def preference_probs(scores_a: Tensor, scores_b: Tensor, temperature: float) -> Tensor:
    r"""How probably a judge with Bradley-Terry noise prefers ``a`` to ``b``.

    .. math:: P(a \succ b) = \sigma\!\left(\frac{J(a) - J(b)}{\tau}\right)

    Bradley and Terry (1952), with the exponentials of the scores as the players' strengths.

    Args:
        scores_a: ``(N,)``, the judge's scores :math:`J`.
        scores_b: ``(N,)``, of the other completions.
        temperature: :math:`\tau`, in the judge's points: two texts that are this far apart are told apart in
            73 % of all labels.

    Raises:
        OptionError: the temperature is not a finite number above 0.
        ShapeError: the shapes differ.

    >>> preference_probs(torch.tensor([3.0, 1.0, 0.0]), torch.tensor([3.0, 0.0, 2.0]), temperature=1.0)
    tensor([0.5000, 0.7311, 0.1192])
    """
    scores_a, scores_b = widen("scores_a", scores_a), widen("scores_b", scores_b)
    check_shape("scores_b", scores_b, tuple(scores_a.shape), "the shape of scores_a")
    if not 0 < temperature < float("inf"):
        raise OptionError(f"temperature={temperature} must be a finite number above 0")
    return torch.sigmoid((scores_a - scores_b) / temperature)


def prefer(scores_a: Tensor, scores_b: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    """One noisy label a pair, ``(N,)`` bool: true where ``a`` is preferred; see :func:`preference_probs`."""
    probs = preference_probs(scores_a, scores_b, temperature)
    return torch.rand(probs.shape, generator=generator).to(probs.device) < probs


def noise_ceiling(scores_a: Tensor, scores_b: Tensor, temperature: float) -> float:
    r"""Share of the noisy labels that the judge itself would get right, in expectation.

    :math:`\frac1N \sum_i \max(p_i, 1 - p_i)` with :math:`p_i` from :func:`preference_probs`. No model can do
    better on these pairs but by luck, so an accuracy is read against this number and not against 1.

    >>> round(noise_ceiling(torch.tensor([3.0, 1.0]), torch.tensor([3.0, 0.0]), temperature=1.0), 4)
    0.6155
    """
    probs = preference_probs(scores_a, scores_b, temperature)
    return torch.maximum(probs, 1 - probs).mean().item()


def pair_accuracy(chosen: Tensor, rejected: Tensor) -> float:
    """Share of pairs whose chosen text scores higher; equal scores count half, as a coin would have them.

    Raises:
        ShapeError: the shapes differ.
        PairError: there are no pairs.
        NonFiniteError: a score is NaN or infinite.

    >>> pair_accuracy(torch.tensor([2.0, 0.0, 1.0, 0.0]), torch.tensor([1.0, 1.0, 0.0, 0.0]))
    0.625
    """
    check_shape("rejected", rejected, tuple(chosen.shape), "the shape of chosen")
    if not chosen.numel():
        raise PairError("there are no pairs to rank; give at least one")
    if not (chosen.isfinite() & rejected.isfinite()).all():
        raise NonFiniteError("a score is NaN or infinite, which ranks nothing; lower the learning rate")
    halves = 2 * (chosen > rejected).sum() + (chosen == rejected).sum()  # whole numbers: exact on any device
    return halves.item() / (2 * chosen.numel())


class RewardModel(nn.Module):
    """A GPT with one output in place of the vocabulary, read at the last token of the text.

    The head starts at zero, so that an untrained reward model scores every text 0 and prefers none.

    Args:
        policy: a copy of it, but for the head, is what training starts from: a model that writes lines can
            read them. The policy itself stays as it is.
        tokenizer: of the texts that :meth:`score` is given.
        pool: "sum", a text scores the sum of its tokens' numbers; "last", the last token's number alone.
    """

    def __init__(self, policy: GPT, tokenizer: CharTokenizer, pool: str = "sum"):
        super().__init__()
        check_choice("pool", pool, POOLS)
        check_vocabulary(policy, tokenizer)
        self.tokenizer, self.pool = tokenizer, pool
        self.gpt = copy.deepcopy(policy).requires_grad_(True)  # also of a policy that is frozen
        like = policy.head.weight
        self.gpt.head = nn.Linear(policy.config.n_embd, 1, bias=False, device=like.device, dtype=like.dtype)
        nn.init.zeros_(self.gpt.head.weight)

    def forward(self, ids: Tensor, lens: Tensor) -> Tensor:
        """Scores ``(B,)`` of rows of ids ``(B, T)``, each read at its last token, ``lens - 1``.

        That token has seen the whole text and, since attention is causal, nothing of the padding after it;
        nor has the running total.
        """
        outputs = widen("outputs", self.gpt(ids)).squeeze(2)  # (B, T), one number at every token
        totals = outputs.cumsum(1) if self.pool == "sum" else outputs
        return totals.gather(1, lens.unsqueeze(1) - 1).squeeze(1)  # (B,)

    def read(self, prompts: Sequence[str], completions: Sequence[str]) -> Tensor:
        """Scores ``(B,)`` of completions, with gradient; texts of about the same length share a pass.

        Raises:
            BlockSizeError, UnknownCharacterError: a text cannot be read.
            TextError, ShapeError: these are no lists of texts, or not of one length.
        """
        if isinstance(prompts, str) or isinstance(completions, str):
            raise TextError("prompts and completions are lists of texts; a text would be read by letters")
        if len(prompts) != len(completions):
            raise ShapeError(f"{len(prompts)} prompts for {len(completions)} completions; give one for each")
        encode, end, device = self.tokenizer.encode, self.tokenizer.eos_id, self.gpt.head.weight.device
        rows = [[*encode(p), *encode(c), end] for p, c in zip(prompts, completions, strict=True)]
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        scores = []
        for first in range(0, len(order), ROWS):
            part = [rows[i] for i in order[first : first + ROWS]]
            ids = torch.full((len(part), len(part[-1])), self.tokenizer.pad_id)  # (ROWS, T)
            for row, tokens in zip(ids, part, strict=True):
                row[: len(tokens)] = torch.tensor(tokens)
            scores.append(self(ids.to(device), torch.tensor([len(tokens) for tokens in part], device=device)))
        return torch.cat(scores)[torch.tensor(order, device=device).argsort()]  # in the order of the rows

    @torch.no_grad()
    def score(self, prompts: Sequence[str], completions: Sequence[str], **columns) -> list[float]:
        """Scores of completions, as a reward function: hand ``model.score`` to a trainer.

        A text does not say whether it ended itself or was cut off, so each is read with an end after it.
        Scores are known up to a constant only: compare them, or differences of them.
        """
        return self.read(prompts, completions).tolist() if len(completions) or len(prompts) else []


def save_reward_model(path: str | os.PathLike, model: RewardModel, **notes: str) -> None:
    """Save a reward model with its configuration and alphabet; ``notes`` go into the header."""
    config = json.dumps(asdict(model.gpt.config))
    header = {"kind": KIND, "config": config, "alphabet": model.tokenizer.chars, "pool": model.pool}
    save_tensors(path, model.gpt.state_dict(), header | notes)


def load_reward_model(path: str | os.PathLike, device: str | torch.device = "cpu") -> RewardModel:
    """The reward model that :func:`save_reward_model` wrote.

    Raises:
        CheckpointError: the file is missing or damaged, or holds something else, a policy for instance.
        DeviceError: there is no such device here.
    """
    tensors, header = load_tensors(path)
    if header.get("kind") != KIND:
        raise CheckpointError(
            f"{path} holds no reward model; a policy is loaded with checkpoint.load_model, and "
            "RewardModel(policy, tokenizer) makes an untrained reward model of it"
        )
    gpt, tokenizer = blank_model(path, tensors, header)
    try:
        model = RewardModel(gpt, tokenizer, header["pool"])
        model.gpt.load_state_dict(tensors)
    except (KeyError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path} is damaged, or of another version: {error}") from error
    return moved(model, device)


@dataclass(frozen=True)
class RewardModelConfig(Options):
    """Options of :func:`train`; names as in TRL where it has them."""

    learning_rate: float = option(
        5e-4, help="of AdamW at the first step; it falls to 0 in a line.", low=0, high=1e30
    )
    batch_size: int = option(32, help="pairs a step.", low=1, high=1_000_000)
    max_steps: int = option(100, help="how many steps there are.", low=0)
    max_grad_norm: float | None = option(
        1.0, help="the gradient is scaled down to this length; 0 or None: never.", low=0
    )
    seed: int = option(0, help="of the batches.", low=0, high=2**63 - 1)


def train(
    model: RewardModel,
    pairs: Sequence[Preference],
    config: RewardModelConfig,
    state: TrainState | None = None,
) -> Iterator[dict[str, float]]:
    r"""Train ``model`` in place on preferences; yield one dict of metrics a step.

    The loss is the mean of :func:`~nanogrpo.losses.bradley_terry_loss`, :math:`-\log\sigma(r_w - r_l)`.
    ``accuracy`` is the share of the batch that was ranked as its labels say before the step, ``margin`` the
    mean of :math:`r_w - r_l`. The pairs are shuffled anew for each pass over them. To go on with a run that
    was saved, hand in the ``state`` that was saved with it.

    Raises:
        PairError: there are no pairs, or something else in their place.
        BlockSizeError, UnknownCharacterError: a text cannot be read.
        NonFiniteError: a gradient, a weight or a score is NaN or infinite; the message says whether the
            weights are as they were before that step.
    """
    check_config(config, RewardModelConfig)
    if isinstance(pairs, str) or not isinstance(pairs, Sequence) or not pairs:
        raise PairError(
            "the list of pairs is empty, or no list; a reward model needs at least one preference"
        )
    if odd := [i for i, pair in enumerate(pairs) if not isinstance(pair, Preference)]:
        raise PairError(f"pair {odd[0]} is {pairs[odd[0]]!r}; make it a Preference(prompt, chosen, rejected)")
    state = state or TrainState.start(model.parameters(), config.learning_rate, config.seed)
    check_state(state, model)
    optimizer, N = state.optimizer, config.batch_size
    for step in range(state.step + 1, config.max_steps + 1):
        batch = [pairs[i] for i in _batch(len(pairs), step, config)]
        texts = [pair.chosen for pair in batch] + [pair.rejected for pair in batch]
        chosen, rejected = model.read([pair.prompt for pair in batch] * 2, texts).split(N)  # (N,) each
        loss = bradley_terry_loss(chosen, rejected).mean()
        optimizer.zero_grad()
        loss.backward()
        grad_norm = clip_grad_norm(optimizer.params, config.max_grad_norm, f"reward model step {step}")
        optimizer.lr = config.learning_rate * (1 - (step - 1) / config.max_steps)
        optimizer.step(f"reward model step {step}")
        with torch.no_grad():
            check_outputs(model.read([batch[0].prompt], [batch[0].chosen]), f"reward model step {step}")
        state.step = step
        yield {
            "step": step,
            "loss": loss.item(),
            "accuracy": pair_accuracy(chosen, rejected),
            "margin": (chosen - rejected).mean().item(),
            "grad_norm": grad_norm,
            "learning_rate": optimizer.lr,
        }


def _batch(count: int, step: int, config: RewardModelConfig) -> list[int]:
    """Indices of a step's pairs: a stretch of one shuffle after another, each decided by the seed."""
    first = (step - 1) * config.batch_size
    generator = torch.Generator().manual_seed(config.seed)
    passes = (first + config.batch_size - 1) // count + 1
    order = torch.cat([torch.randperm(count, generator=generator) for _ in range(passes)])
    return order[first : first + config.batch_size].tolist()

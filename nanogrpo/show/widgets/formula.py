"""GRPO's formula over a real update: each term with its number, its tokens and its lines of the package."""

from __future__ import annotations

import copy
import inspect
import re
import textwrap
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import anywidget
import torch
import traitlets
from torch import Tensor

from nanogrpo import grpo
from nanogrpo.advantages import group_advantages
from nanogrpo.errors import OptionError, SourceError
from nanogrpo.kl import kl_k3
from nanogrpo.losses import aggregate, clipped_surrogate, grpo_loss, importance_ratio
from nanogrpo.microbatches import logprobs_under, minibatches
from nanogrpo.model import GPT
from nanogrpo.rewards import Problem, RewardFunction
from nanogrpo.show.source import source_link, statement
from nanogrpo.show.widgets import ON_ONE_LINE, script
from nanogrpo.state import TrainState
from nanogrpo.step import update
from nanogrpo.tokenizer import CharTokenizer

SHOWN = "nanogrpo.losses.grpo_loss"
FIRST = "n = denominators or"  # checks of arguments come before it
AGGREGATE = "return aggregate("


class Lines(NamedTuple):
    """Where a term is computed.

    Attributes:
        statement: how its statement in ``grpo_loss`` begins.
        word: the part of it that is the term.
        inner: the function behind that word.
        statements: how the term's statements in that function begin.
    """

    statement: str
    word: str
    inner: str = ""
    statements: tuple[str, ...] = ()


# The terms, in the order in which a loss is computed.
TERMS = {
    "ratio": Lines(
        "ratio = importance_ratio(", "importance_ratio", "nanogrpo.losses.importance_ratio",
        ("log_ratio = torch.where(mask,", "return _exp(log_ratio)"),
    ),
    "advantage": Lines(
        "per_token = SURROGATES[", "advantages", "nanogrpo.advantages.group_advantages",
        ("advantages = rewards - rewards.mean(", "return _scaled("),
    ),
    "clip": Lines(
        "per_token = SURROGATES[", "clip_low, clip_high", "nanogrpo.losses.clipped_surrogate",
        ("clipped = ratio.clamp(",),
    ),
    "min": Lines(
        "per_token = SURROGATES[", "SURROGATES[surrogate]", "nanogrpo.losses.clipped_surrogate",
        ("loss = -torch.min(",),
    ),
    "kl": Lines(
        "kl = KL_ESTIMATORS[", "KL_ESTIMATORS[kl_estimator]", "nanogrpo.kl.kl_k3",
        ("delta = _delta(", "return torch.expm1("),
    ),
    "beta": Lines("per_token = per_token + beta * kl", "beta * kl"),
    "mask": Lines(
        AGGREGATE, "completion_mask", "nanogrpo.losses.aggregate", ("per_token = torch.where(mask,",)
    ),
    "tokens": Lines(
        AGGREGATE, "aggregation", "nanogrpo.losses.aggregate", ("per_token = per_token / mask.sum(1,",)
    ),
    "completions": Lines(
        AGGREGATE, "aggregate", "nanogrpo.losses.aggregate", ("return per_token.sum() / n.num_sequences",)
    ),
    "loss": Lines(
        AGGREGATE, "return aggregate(per_token, completion_mask, aggregation, n)",
        "nanogrpo.losses.clipped_surrogate", ("loss = -torch.min(",)
    ),
}  # fmt: skip


def plain(lines: list[str]) -> list[str]:
    """Lines of code as they are, but for the comment at their ends: a phone is narrow."""
    return [re.sub(r"  # .*$", "", line) for line in lines]


def shown_code() -> list[str]:
    """The lines of ``grpo_loss`` that compute, without docstring, checks and comments."""
    lines = textwrap.dedent(inspect.getsource(grpo_loss)).splitlines()
    return plain(textwrap.dedent("\n".join(lines[statement(SHOWN, FIRST)[0] :])).splitlines())


def term_lines(term: str) -> dict:
    """What the figure shows of a term's code, read from the package as it stands.

    Returns:
        ``lines``, the places in :func:`shown_code`; ``word``, what is marked in them; ``inner``, the name and
        the address of the function behind it, with ``statements``, its lines.

    Raises:
        SourceError: a statement is gone, or no longer has the word.
    """
    where = TERMS[term]
    first, lines = statement(SHOWN, where.statement)
    if where.word not in "\n".join(lines):
        raise SourceError(f"the statement {lines[0]!r} of {SHOWN} has no {where.word!r} any more")
    begin = first - statement(SHOWN, FIRST)[0]
    inner = {"name": where.inner, "url": source_link(where.inner)} if where.inner else None
    code = [line for part in where.statements for line in statement(where.inner, part)[1]]
    places = list(range(begin, begin + len(lines)))
    return {"lines": places, "word": where.word, "inner": inner, "statements": plain(code)}


def logged_step(
    model: GPT, tokenizer: CharTokenizer, problems: Sequence[Problem],
    reward_fn: RewardFunction, config: grpo.GRPOConfig, state: TrainState, reference: GPT,
) -> dict:  # fmt: skip
    """One :func:`nanogrpo.grpo.step`, with all that its losses read: what :class:`FormulaExplorer` shows.

    The step makes its updates as always. A copy of the model, taken before, makes the same ones again, and
    stops before each to look at the log-probs; it ends with the same weights.

    Raises:
        OptionError: the options are not those of the formula, or the batch is cut into minibatches.
    """
    told = ("aggregation", "scale_rewards", "surrogate", "estimator", "num_mini_batches", "correction")
    if [getattr(config, name) for name in told] != ["sequence_mean", "group", "clip", "k3", 1, 0]:
        raise OptionError(
            "the formula has a mean over each completion, the group's std, k3 and one minibatch: "
            f"aggregation='sequence_mean', others as by default; {told} are others here"
        )
    twin, optimizer = copy.deepcopy((model, state.optimizer))
    metrics, batch = grpo.step(model, tokenizer, problems, reward_fn, config, state, reference)
    loss, updates = partial(grpo.compute_loss, twin, config), []
    for prompts in minibatches(len(batch.rewards), config.num_iterations, 1, config.seed, state.step):
        updates.append(rounded(logprobs_under(twin, batch.rollout, config.temperature)))
        update(batch.pick(prompts), loss, [optimizer], config, f"step {state.step}")
    rollout = batch.rollout
    ids = rollout.completion_ids.tolist()
    return {
        "config": {k: getattr(config, k) for k in ("clip_low", "clip_high", "beta", "std_eps")},
        "step": state.step,
        "prompts": tokenizer.decode_batch(rollout.prompt_ids),
        "tokens": [["eos" if i == tokenizer.eos_id else tokenizer.decode([i]) for i in row] for row in ids],
        "mask": rollout.completion_mask.int().tolist(),
        "rewards": batch.rewards.tolist(),
        "old": rounded(rollout.logprobs),
        "ref": rounded(batch.ref_logprobs),
        "updates": updates,
        "metrics": {name: metrics[name] for name in ("loss", "kl", "clip_ratio/region_mean")},
    }


def rounded(values: Tensor | None) -> list:
    """Six decimals, and no minus before a zero."""
    assert values is not None
    return [[round(value, 6) + 0.0 for value in row] for row in values.tolist()]


def explored_formula(log: dict, number: int) -> dict[str, Tensor]:
    r"""Every term of one update of a log, by the functions of the package.

    .. math:: L = -\frac1B \sum_i \frac1{|o_i|} \sum_t m_{it} \left\{
              \min\left[\rho_{it} \hat A_i,\ \mathrm{clip}(\rho_{it}) \hat A_i\right] - \beta D_{it} \right\}

    Args:
        log: of :func:`logged_step`.
        number: which of its updates, from 0 on.

    Returns:
        ``ratio``, ``clip``, ``min``, ``kl``, ``beta`` (the price :math:`\beta D_{it}`) and ``mask``, each
        (B, T); ``advantage`` and ``tokens`` (the sum over t with its factor), each (B,); ``completions`` (the
        objective) and ``loss``.

    When it is wrong: for other means and surrogates than the formula's; :func:`logged_step` refuses those.
    """
    options, double = log["config"], partial(torch.tensor, dtype=torch.float64)
    mask = torch.tensor(log["mask"]).bool()  # (B, T)
    new, old, ref = double(log["updates"][number]), double(log["old"]), double(log["ref"])  # (B, T)
    advantages = group_advantages(double(log["rewards"]), eps=options["std_eps"]).flatten()  # (B,)
    low, high, beta = options["clip_low"], options["clip_high"], options["beta"]
    ratio = importance_ratio(new, old, mask)  # (B, T)
    loss, _ = grpo_loss(
        new, old, ref, advantages, mask,
        clip_low=low, clip_high=high, beta=beta, aggregation="sequence_mean",
    )  # fmt: skip
    least, kl = -clipped_surrogate(ratio, advantages, mask, low, high), kl_k3(new, ref, mask)  # (B, T)
    each = [
        aggregate((least - beta * kl)[i : i + 1], mask[i : i + 1], "sequence_mean") for i in range(len(mask))
    ]
    return {
        "ratio": ratio, "advantage": advantages, "clip": ratio.clamp(1 - low, 1 + high), "min": least,
        "kl": kl, "beta": beta * kl, "mask": mask, "tokens": torch.stack(each),
        "completions": torch.stack(each).mean(), "loss": loss,
    }  # fmt: skip


class FormulaExplorer(anywidget.AnyWidget):
    """Point at a term of the formula: its number, its tokens and its lines of the package light up.

    Attributes:
        log: of :func:`logged_step`.
        code: the lines of ``grpo_loss``, as they were when the figure was made.
        terms: for each term, which of them are its own, see :func:`term_lines`.
        term: which one is lit.
        update: of which update of the step, from 0 on.
        row: of which completion the number is read.
        token: of which of its tokens.
    """

    _esm = script("formula")
    log: traitlets.Dict = traitlets.Dict().tag(**ON_ONE_LINE)
    code: traitlets.List = traitlets.List().tag(sync=True)
    terms = traitlets.Dict().tag(sync=True)
    term = traitlets.Enum(list(TERMS), "ratio").tag(sync=True)
    update = traitlets.Int(0).tag(sync=True)
    row = traitlets.Int(0).tag(sync=True)
    token = traitlets.Int(0).tag(sync=True)

    @classmethod
    def of(cls, log: dict, **values) -> FormulaExplorer:
        """The figure of a log, with the package's lines as they are now."""
        return cls(log=log, code=shown_code(), terms={term: term_lines(term) for term in TERMS}, **values)

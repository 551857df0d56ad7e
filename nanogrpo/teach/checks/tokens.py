"""Checks of sampling: tokens, masks and log-probs. See :mod:`nanogrpo.teach.check`."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor

from nanogrpo import rollout
from nanogrpo.teach.checks.compare import (
    Mistakes,
    agree,
    agree_in_parts,
    call,
    compare,
    default_agrees,
    gradient,
    number,
    parts,
)
from nanogrpo.teach.checks.draw import Draw
from nanogrpo.teach.checks.keep import freeze_some, with_gradients
from nanogrpo.teach.checks.registry import CheckFailed, register
from nanogrpo.teach.checks.shapes import at_other_shapes
from nanogrpo.teach.checks.sizes import at_other_sizes

EOS, PAD = 1, 0
RAW = "These are raw logits: they are no log-probs before log_softmax over the vocabulary."
PROBABILITIES = "These are probabilities: take log_softmax, not softmax."


def _packed(module: ModuleType) -> Callable:
    def token_logprobs(model, prompt_ids, prompt_lens, ids):
        return rollout.logprobs_of(module.completion_logits(model, prompt_ids, prompt_lens, ids), ids)

    return token_logprobs


@register("rollout.token_logprobs", ("packed", _packed))
def check_token_logprobs(implementation: Callable, draw: Draw) -> None:
    """``f(model, prompt_ids, prompt_lens, completion_ids)``: log-probs of the completion tokens."""
    P, G, T, V = draw.integer(2, 3), draw.integer(2, 3), draw.integer(3, 4), 7
    model, lens = draw.model(V), torch.tensor([2, 4, draw.integer(2, 4)][:P])
    with_gradients(model.train(bool(draw.integer(0, 1))))  # all of it stays
    freeze_some(model)
    prompts = draw.integers(2, V - 1, P, 4).masked_fill(torch.arange(4) >= lens[:, None], PAD)  # (P, 4)
    mask = draw.mask(P * G, T)
    ids = draw.integers(2, V - 1, P * G, T).masked_fill(~mask, PAD)
    arguments = (model, prompts, lens, ids)

    def other(shift: int = -1, lens: Tensor = lens, repeated: bool = False, read: Tensor = ids) -> Tensor:
        return rollout.logprobs_of(_logits_at(model, prompts, lens, read, shift, repeated), ids)

    right = other()
    shifted = "The logits at position c predict the token at c + 1: read token t's at position len + t - 1."
    mistakes = [
        (
            other(0),
            f"You score each token with the prediction that follows it: the shift is missing. {shifted}",
        ),
        (
            other(read=ids.roll(-1, 1)),
            "The model has read each token before it predicts it: the shift is missing in what it reads. "
            f"{shifted}",
        ),
        (other(-2), f"You shift twice: each token is scored one prediction too early. {shifted}"),
        (
            other(lens=torch.full_like(lens, 4)),
            "You read all completions from column 4 on, behind the padding of shorter prompts: a completion "
            "begins where its own prompt ends, at prompt_lens.",
        ),
        (
            other(repeated=True),
            f"The rows have the wrong prompts: row i answers prompt i // G (here G = {G}), so use "
            "repeat_interleave and not repeat.",
        ),
        (
            torch.cat([rollout.token_logprobs(model, prompts, lens, ids[:, t : t + 1]) for t in range(T)], 1),
            "Each token is predicted from its prompt alone: the model must read the completion up to it.",
        ),
        (
            other(lens=(lens - 1).clamp(min=1)),
            "One token of each prompt is missing: the completion begins at position len.",
        ),
        (
            rollout.token_logprobs(model, prompts.gather(1, lens[:, None] - 1), torch.ones_like(lens), ids),
            "The model reads the last token of each prompt only: it must read all of it.",
        ),
        (
            rollout.token_logprobs(model, prompts[:1].expand_as(prompts), lens[:1].expand_as(lens), ids),
            "All completions are read behind the first prompt: row i answers prompt i // G.",
        ),
        (
            other().view(P, G, T).transpose(0, 1).reshape(P * G, T),
            "The rows are in another order: row i answers prompt i // G.",
        ),
        (right.exp(), PROBABILITIES),
        (_logits_at(*arguments, -1).gather(2, ids[..., None]).squeeze(2), RAW),
        (-right, "The sign is reversed: log-probs are negative."),
    ]
    got = agree("the log-prob of a token", implementation, rollout.token_logprobs, arguments, mistakes, mask)
    weight = model.head.weight
    found, wanted = (gradient("The log-prob", torch.where(mask, x, 0.0), weight) for x in (got, right))
    compare("the gradient of the log-probs by the model's head", found, wanted, atol=1e-4)
    with torch.no_grad():
        weight.mul_(0.7)  # as an update does
    sentence = (
        "The model has been trained since, and these are the log-probs that it gave before: ask it again."
    )
    agree(
        "after an update the log-prob of a token", implementation, rollout.token_logprobs, arguments,
        [(got.detach(), sentence)], mask,
    )  # fmt: skip
    for P, G, T in ((1, 1, 1), (2, 1, 2), (1, 3, 9)):  # one row, one completion a prompt, one prompt
        others = (model, prompts[:P], lens[:P], draw.integers(2, V - 1, P * G, T))
        what = f"for P = {P}, G = {G} and T = {T} the log-prob of a token"
        agree(what, implementation, rollout.token_logprobs, others)


def _logits_at(model, prompt_ids, prompt_lens, completion_ids, shift: int, repeated: bool = False) -> Tensor:
    """Logits ``shift`` positions from each completion token; ``repeated``: of wrong prompts."""
    B, T = completion_ids.shape
    owner = torch.arange(B) % len(prompt_ids) if repeated else torch.arange(B) // (B // len(prompt_ids))
    at = prompt_lens[owner, None] + torch.arange(T)  # (B, T)
    rows = torch.cat([prompt_ids[owner], completion_ids.new_zeros(B, T)], 1).scatter(1, at, completion_ids)
    logits = model(rows)  # (B, Tp + T, V)
    return logits.gather(1, (at + shift)[..., None].expand(-1, -1, logits.shape[2]))


@register("rollout.logprobs_of")
def check_logprobs_of(implementation: Callable, draw: Draw) -> None:
    """``f(logits, ids, temperature)``: log-probs ``(B, T)`` of given tokens, and their gradient."""
    B, T, V = draw.integer(2, 4), draw.integer(2, 4), draw.integer(5, 8)
    logits, ids = (2 * draw.normal(B, T, V)).requires_grad_(), draw.integers(0, V - 1, B, T)
    temperature = 0.5 if draw.integer(0, 1) else 1.7
    scaled, at_one = logits.detach() / temperature, rollout.logprobs_of(logits, ids)
    mistakes = [
        (
            at_one,
            f"The temperature {temperature} is ignored: these are log-probs of temperature 1, those of "
            "another policy than the one that sampled. Divide the logits by it.",
        ),
        (
            at_one / temperature,
            "You divide the log-probs by the temperature: divide the logits, before log_softmax.",
        ),
        (
            rollout.logprobs_of(logits, ids, 1 / temperature),
            "You multiply the logits by the temperature: divide.",
        ),
        (
            torch.log_softmax(scaled, 1).gather(2, ids[..., None]).squeeze(2),
            "Your softmax runs over the positions, axis 1: it runs over the vocabulary, the last axis.",
        ),
        (
            torch.log_softmax(scaled, 0).gather(2, ids[..., None]).squeeze(2),
            "Your softmax runs over the rows, axis 0: it runs over the vocabulary, the last axis.",
        ),
        (
            torch.log_softmax(scaled, 2).amax(2),
            "These are log-probs of the most probable token: gather those of ids.",
        ),
        (rollout.logprobs_of(logits, ids, temperature).exp(), PROBABILITIES),
        (scaled.gather(2, ids[..., None]).squeeze(2), RAW),
    ]
    arguments = (logits, ids, temperature)
    agree(
        "the log-prob of a token", implementation, rollout.logprobs_of, arguments, mistakes, trained=(0,),
        alone=True,
    )  # fmt: skip
    default_agrees("the log-prob of a token", implementation, rollout.logprobs_of, (logits.detach(), ids))
    at_other_sizes(
        "the log-prob of a token", implementation, rollout.logprobs_of, arguments, {2: (0.05, 30.0)}
    )
    shapes = ({"B": V, "T": V}, {"T": 1}, {"T": 90}, {"B": 60, "V": 300})
    at_other_shapes(
        "the log-prob of a token",
        implementation,
        rollout.logprobs_of,
        arguments,
        ("BTV", "BT", ""),
        shapes,
        0,
    )
    far = (100 * logits.detach()).requires_grad_()  # exp overflows here, and a probability is 0
    wrong = _far_logprobs(far.detach(), ids, temperature)
    what, arguments = "where logits are large the log-prob of a token", (far, ids, temperature)
    agree(what, implementation, rollout.logprobs_of, arguments, wrong, trained=(0,), atol=1e-3)


def _far_logprobs(logits: Tensor, ids: Tensor, temperature: float) -> Mistakes:
    scaled = logits / temperature
    right, log_softmax = rollout.logprobs_of(logits, ids, temperature), "use log_softmax, which is exact."

    def of(values: Tensor) -> Tensor:
        return values.gather(2, ids[..., None]).squeeze(2)

    overflow = f"exp overflows, or its sum is lost: {log_softmax}"
    probs = scaled.softmax(-1)
    return [
        (of(probs.log()), f"A softmax rounds to 0, and its log is minus infinity: {log_softmax}"),
        (of(scaled - scaled.exp().sum(-1, keepdim=True).log()), overflow),
        (of((scaled.exp() / scaled.exp().sum(-1, keepdim=True)).log()), overflow),
        *[(of((probs + eps).log()), f"eps = {eps:g} is added before the log: {log_softmax}")
          for eps in (1e-12, 1e-10, 1e-8, 1e-6)],
        *[(right.clamp(min=least), f"Log-probs are cut off at {least}: {log_softmax}")
          for least in (-1000, -100, -50, -30, -20, -10)],
    ]  # fmt: skip


@register("rollout.sample_token", rounds=2)
def check_sample_token(implementation: Callable, draw: Draw) -> None:
    """``f(logits, uniforms, temperature)``: one sampled token a row, and its log-prob at that temperature."""
    N, V, temperature = 40, draw.integer(4, 6), (0.4, 2.5)[draw.integer(0, 1)]
    logits = 1.5 * draw.normal(N, V)
    probs = torch.softmax(logits / temperature, -1)
    uniforms = _aimed(draw, probs, 0.01)
    names = ("the token", "the log-prob of a sampled token")
    tokens, logprobs = parts(call(implementation, logits, uniforms, temperature), names)
    if tuple(tokens.shape) != (N,) or tokens.is_floating_point() or tokens.dtype == torch.bool:
        raise CheckFailed(
            f"The tokens are {tokens.dtype} of shape {tuple(tokens.shape)}, expected ids ({N},)."
        )
    tokens = tokens.long()
    _same_tokens(tokens, logits, uniforms, temperature)
    mistakes = [
        (
            rollout.logprobs_of(logits, tokens),
            f"The log-probs are those of temperature 1, while the tokens were sampled at {temperature}: the "
            "first ratio of new to old policy will not be 1. Take the log of the probabilities that you "
            "sample from.",
        ),
        (probs.gather(1, tokens[:, None]).squeeze(1), "You return probabilities: take their logarithm."),
        (
            probs.amax(1).log(),
            "These are log-probs of the most probable token, not of the one that you chose.",
        ),
    ]
    compare(names[1], logprobs, rollout.logprobs_of(logits, tokens, temperature), mistakes, atol=1e-4)
    first = (logits[:1], uniforms[:1], temperature)
    agree_in_parts(names, implementation, rollout.sample_token, first, ((), ()), atol=1e-4)
    default_agrees(names, implementation, rollout.sample_token, (logits, uniforms))
    for other in (0.9, 1.1):
        agree_in_parts(names, implementation, rollout.sample_token, (*first[:2], other), ((), ()), atol=1e-4)
    _large_vocabulary(implementation, draw, temperature)
    _at_one(implementation, draw, temperature)
    _rare(implementation, draw, temperature)
    _near_one(implementation, draw, temperature)
    shifted = (logits + 200 * temperature, uniforms, temperature)  # the same probabilities
    what = (
        "With large logits the tokens are others, or no numbers: exp overflows. Take softmax or log_softmax."
    )
    wide, chances = parts(call(implementation, *shifted), names)
    near = torch.isclose(chances.double(), logprobs.double(), 1e-3, 1e-3)
    if not torch.equal(wide.long(), tokens) or not near.all():
        raise CheckFailed(what)


def _aimed(draw: Draw, probs: Tensor, least: float) -> Tensor:
    """A number for each row that draws a token of some probability, far enough from its ends for rounding."""
    N, V = probs.shape
    ends = torch.cat([torch.zeros(N, 1), probs.cumsum(-1)], 1)  # (N, V + 1)
    aimed = draw.integers(0, V - 1, N)[:, None]
    aimed = torch.where(probs.gather(1, aimed) > least, aimed, probs.argmax(1, keepdim=True))
    low, high = ends.gather(1, aimed), ends.gather(1, aimed + 1)
    return (low + draw.uniform(0.2, 0.8, N, 1) * (high - low)).squeeze(1)


def _large_vocabulary(implementation: Callable, draw: Draw, temperature: float) -> None:
    """Of hundreds of tokens each is drawn now and then."""
    logits = 0.5 * temperature * draw.normal(30, 300)
    uniforms = _aimed(draw, torch.softmax(logits / temperature, -1), 1e-3)
    tokens, logprobs = call(implementation, logits, uniforms, temperature)
    right, chances = rollout.sample_token(logits, uniforms, temperature)
    sentence = "The tokens are right for few ids, and not for V = 300: draw from the whole vocabulary."
    compare("for V = 300 the token", tokens, right, [(tokens, sentence)])
    compare("for V = 300 the log-prob of a sampled token", logprobs, chances, atol=1e-4)


def _same_tokens(tokens: Tensor, logits: Tensor, uniforms: Tensor, temperature: float) -> None:
    """The text promises the same tokens for the same numbers, on every machine."""
    V = logits.shape[1]
    if not bool(((tokens >= 0) & (tokens < V)).all()):
        raise CheckFailed(
            f"Tokens from {int(tokens.min())} to {int(tokens.max())}: ids go from 0 to {V - 1}."
        )

    def of(logits: Tensor = logits, uniforms: Tensor = uniforms, temperature: float = temperature) -> Tensor:
        return rollout.sample_token(logits, uniforms, temperature)[0]

    own = "Take the first token whose cumulative probability, in the order of the ids, reaches u"
    ranked, order = logits.sort(-1, descending=True)
    rising = logits.argsort(-1).gather(1, of(logits.sort(-1).values)[:, None])
    mistakes = [
        (
            of(temperature=1.0),
            f"You sample at temperature 1 and not at {temperature}: divide the logits by it.",
        ),
        (
            of(temperature=1 / temperature),
            f"You multiply the logits by the temperature {temperature}: divide, so that a high one flattens.",
        ),
        (
            logits.argmax(1),
            "You always take the most probable token: a group of such completions is all alike.",
        ),
        (of(torch.zeros_like(logits)), "You take every token equally often: the logits have no influence."),
        (of(uniforms=1 - uniforms), f"You count from the top, 1 - u. {own}."),
        (V - 1 - of(logits.flip(1)), f"You go through the vocabulary backwards. {own}."),
        (order.gather(1, of(ranked)[:, None]).squeeze(1), f"You sort the tokens first. {own}."),
        (rising.squeeze(1), f"You sort the tokens first. {own}."),
        (of() - 1, "All tokens are one too small: is the first sum that of token 0?"),
        (
            (of() - 1).clamp(min=0),
            "The tokens are one too early: take the sum that reaches u, not the one before.",
        ),
        ((of() + 1).clamp(max=V - 1), "The tokens are one too late: take the first sum that reaches u."),
    ]
    for change in (lambda x: x[:1].expand_as(x), lambda x: x.roll(1, 0), lambda x: x.flip(0)):
        mistakes += [
            (of(logits=change(logits)), f"Each row has its own logits, yours reads others. {own}."),
            (of(uniforms=change(uniforms)), f"Each row has its own number, yours reads others. {own}."),
        ]
    for wrong, sentence in mistakes:
        if not torch.equal(tokens, of()) and torch.equal(tokens, wrong):
            raise CheckFailed(sentence)
    if not torch.equal(tokens, of()):
        i = int((tokens != of()).nonzero()[0])
        raise CheckFailed(
            "The tokens do not follow from uniforms: all chance comes from there, so that the same numbers "
            f"give the same tokens. {own}. (Row {i}: u = {uniforms[i]:.3f}, sums "
            f"{[round(x, 3) for x in torch.softmax(logits[i] / temperature, -1).cumsum(-1).tolist()]}, token "
            f"{int(tokens[i])}, expected {int(of()[i])}.)"
        )


def _at_one(implementation: Callable, draw: Draw, temperature: float) -> None:
    """A number of 1 gives the last token, also where the sum of the probabilities misses 1 by a rounding."""
    logits, ones = draw.uniform(-1, 1, 400, draw.integer(7, 12)), torch.ones(400)
    last = logits.shape[1] - 1
    seen, cause = "", None
    try:
        tokens = number("the token", call(implementation, logits, ones, temperature)[0])
        if bool((tokens == last).all()):
            return
        seen = f", token {int(tokens[tokens != last][0])}"
    except CheckFailed as failed:
        cause = failed
    raise CheckFailed(
        f"At u = 1 the last token, {last}, is expected{seen}: the last sum of cumsum may miss 1 by a "
        "rounding, and then no sum reaches u. Compare with u times the last sum, or limit the ids to "
        f"{last}."
    ) from cause


def _rare(implementation: Callable, draw: Draw, temperature: float) -> None:
    """Tokens that are hardly ever drawn: a tiny number draws one, and its log-prob is as exact as others."""
    V, at = draw.integer(4, 6), draw.uniform(20, 60, 3, 1)
    logits = torch.cat([-at, draw.uniform(-1, 1, 3, V - 1)], 1) * temperature
    right = torch.log_softmax(logits / temperature, -1)[:, 0]
    names = ("the token", "the log-prob of an improbable token")
    tokens, logprobs = parts(call(implementation, logits, right.exp() / 2, temperature), names)
    compare("the token that a number of nearly 0 draws", tokens, torch.zeros(3))
    mistakes = [
        (
            (right.exp() + eps).log(),
            f"eps = {eps:g} is added before the log: use log_softmax, which is exact.",
        )
        for eps in (1e-12, 1e-10, 1e-9, 1e-8, 1e-7, 1e-6)
    ]
    compare(names[1], logprobs, right, mistakes)


def _near_one(implementation: Callable, draw: Draw, temperature: float) -> None:
    """Numbers near 1 are numbers as any other; and a sum that is as large as u has reached it."""
    V, rare = draw.integer(4, 6), 1e-4
    probs = torch.full((1, V), rare)
    probs[0, 0] = 1 - (V - 1) * rare
    u = torch.tensor([0.5 * (0.99 + float(probs[0, 0])), float(probs[0, 0]) + rare / 2])
    tokens, _ = call(implementation, (temperature * probs.log()).expand(2, V), u, temperature)
    if number("the token", tokens).tolist() != [0, 1]:
        raise CheckFailed(
            f"With the sums {[round(x, 5) for x in probs[0].cumsum(0).tolist()]} the numbers u = {u[0]:.5f} "
            f"and {u[1]:.5f} give the tokens {tokens.tolist()}, expected [0, 1]: take u as it is, add up in "
            "float32 or better, and limit the ids where no sum reaches it."
        )
    certain = torch.full((1, V), -1e4 * temperature)
    certain[0, 0] = 0.0
    token = call(implementation, certain, torch.ones(1), temperature)[0]
    if number("the token", token).tolist() != [0]:
        raise CheckFailed(
            f"Token 0 is certain, all sums are 1, and u = 1 gives the token {token.tolist()[0]}, expected 0: "
            "a sum that is equal to u has reached it. (The default of torch.searchsorted has that.)"
        )


@register("rollout.completion_mask")
def check_completion_mask(implementation: Callable, draw: Draw) -> None:
    """``f(completion_ids, eos_id)``: true ``(B, T)`` for each sampled token, the first EOS included."""
    B, T, eos = draw.integer(4, 6), draw.integer(5, 7), draw.integer(1, 6)
    ids = draw.integers(0, 6, B, T)  # PAD may be sampled, too
    ids[3, 0] = PAD
    ids = torch.where(ids == eos, eos % 6 + 1, ids)
    ids[0, draw.integer(1, T - 2)] = eos  # ends in the middle, ordinary tokens follow
    ids[1, 1], ids[1, T - 2] = eos, eos  # two ends, and a token behind them
    ids[2, 0], ids[2, 1:] = eos, PAD  # an empty completion
    full = ids[-1:].clone()
    full[0, -1] = eos  # the end is the last token that fits
    right = rollout.completion_mask(ids, eos)  # the last row has no end: it was cut off
    ends = ids == eos
    sizes = right.sum(1).tolist()
    one = "It is true up to and including the first EOS, and in a row without EOS everywhere."
    mistakes = [
        (
            ends.cumsum(1) == 0,
            f"The EOS is left out of the mask: it was sampled too, so lengths are {sizes}; without it in the "
            "mask the decision to stop is never trained.",
        ),
        (
            ~ends,
            "You mask out the EOS and keep what stands after it: it is the other way round. The first EOS "
            "was sampled and belongs to the completion, what follows was not.",
        ),
        (
            ids != PAD,
            "You mask out padding only: tokens after the first EOS were not sampled, whatever their id.",
        ),
        (ends.cumsum(1) <= 1, "The mask goes on to the second EOS: nothing counts after the first."),
        (ends.cumsum(0) - ends.long() == 0, f"You count along axis 0, the rows: tokens are axis 1. {one}"),
        (torch.ones_like(right), "Nothing is masked: what stands after the first EOS was not sampled."),
        (torch.cat([right[:, :1], right[:, :-1]], 1), "The mask goes one token beyond the first EOS."),
        (~right, "The polarity is reversed: the mask is true for a sampled token."),
        ((ends.cumsum(1) - ends.long()) % 2 == 0, f"A second EOS opens the mask again: nothing does. {one}"),
        (ends.flip(1).cumsum(1).flip(1) > 0, f"The mask goes up to the last EOS. {one}"),
        (
            (ends.flip(1).cumsum(1).flip(1) > 0) | ~ends.any(1, keepdim=True),
            f"The mask goes up to the last EOS. {one}",
        ),
        (
            right & ends.any(1, keepdim=True),
            f"A row without EOS is masked out: it was cut off, and counts whole. {one}",
        ),
        (
            torch.arange(T) <= ends.int().argmax(1, keepdim=True),
            f"A row without EOS counts as if it had one at 0, where argmax finds nothing. {one}",
        ),
    ]
    got = agree("the mask", implementation, rollout.completion_mask, (ids, eos), mistakes, alone=True)
    if got.dtype != torch.bool:
        raise CheckFailed(f"The mask is {got.dtype}, expected torch.bool: return the comparison itself.")
    found = call(implementation, ids, eos)
    if not isinstance(found, Tensor):
        raise CheckFailed(f"The mask is a {type(found).__name__}, expected a tensor of torch.bool.")
    alone = ids[-1:]  # no row of the batch ends
    compare("the mask of a row without EOS", call(implementation, alone, eos), torch.ones_like(alone).bool())
    mistakes = [(full != eos, "An EOS in the last column is left out: it was sampled, as any other.")]
    last = "the mask of a row whose EOS is its last token"
    compare(last, call(implementation, full, eos), torch.ones_like(full).bool(), mistakes)
    _long_rows(implementation, draw, eos)


def _long_rows(implementation: Callable, draw: Draw, eos: int) -> None:
    """Hundreds of ends in a row: as many as a padded batch has where PAD is EOS."""
    T = draw.integer(600, 700)
    long = torch.full((draw.integer(2, 3), T), eos)
    long[0, : draw.integer(300, 400)] = eos % 6 + 1
    compare("the mask of rows of hundreds of ends", call(implementation, long, eos),
            rollout.completion_mask(long, eos))  # fmt: skip


@register("rollout.generate", "packed.generate")
def check_generate(implementation: Callable, draw: Draw) -> None:
    """``f(model, prompt_ids, prompt_lens, *, ...)``: a rollout, as :func:`nanogrpo.rollout.generate`."""
    P, G, T, V = 2, 3, 4, 4
    lens = torch.tensor([3, draw.integer(1, 3)])
    prompts = draw.integers(2, V - 1, P, 3).masked_fill(torch.arange(3) >= lens[:, None], PAD)
    model = draw.model(V)
    with torch.no_grad():
        model.head.weight.mul_(0.3)  # varied samples: some end early, some do not
    options = dict(group_size=G, max_new_tokens=T, eos_id=EOS, pad_id=PAD)
    uniforms = rollout.draw_uniforms(P * G, T, draw.generator, model.head.weight)
    right = rollout.generate(model, prompts, lens, **options, uniforms=uniforms)
    got = call(implementation, model, prompts, lens, **options, uniforms=uniforms)
    ended = (~right.truncated).long()
    mistakes = [
        (
            right.lengths - ended,
            "The EOS is left out of the mask: it was sampled, it has a log-prob, and without it in the mask "
            "the decision to stop is never trained.",
        ),
        (right.lengths.max().expand_as(right.lengths), "Tokens after the EOS are in the mask."),
        (right.lengths + ended, "The mask goes one token beyond the EOS."),
    ]
    compare("the number of sampled tokens", got.completion_mask.sum(1), right.lengths, mistakes)
    mask = right.completion_mask
    compare("the sampled token", got.completion_ids, right.completion_ids, where=mask)
    by_prompt = right.logprobs.unflatten(0, (P, G)).transpose(0, 1).flatten(0, 1)
    mistakes = [
        (right.logprobs.exp(), "You keep probabilities: take their logarithm."),
        (by_prompt, "The rows are in the wrong order: row i answers prompt i // G."),
    ]
    compare("the log-prob of a sampled token", got.logprobs, right.logprobs, mistakes, mask, atol=1e-4)

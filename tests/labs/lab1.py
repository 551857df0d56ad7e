"""Lab 1: answers that students give, wrong and right."""

WRONG = {
    "completion_mask": [
        (
            "EOS left out",
            "EOS is left out of the mask",
            "def completion_mask(ids, eos_id):\n    return (ids == eos_id).cumsum(1) == 0",
        ),
        (
            "all but EOS",
            "keep what stands after it",
            "def completion_mask(ids, eos_id):\n    return ids != eos_id",
        ),
        ("all but PAD", "mask out padding only", "def completion_mask(ids, eos_id):\n    return ids != 0"),
        (
            "one token too many",
            "one token beyond the first EOS",
            "def completion_mask(ids, eos_id):\n"
            "    open_ = (ids == eos_id).cumsum(1) == 0\n"
            "    more = torch.cat([torch.ones_like(open_[:, :2]), open_[:, :-2]], 1)\n"
            "    return more | open_",
        ),
        (
            "numbers for truth values",
            "expected torch.bool",
            "def completion_mask(ids, eos_id):\n    return rollout.completion_mask(ids, eos_id).float()",
        ),
    ],
    "logprobs_of": [
        (
            "no temperature",
            "temperature .* is ignored",
            "def logprobs_of(logits, ids, temperature=1.0):\n"
            "    return logits.log_softmax(-1).gather(-1, ids[..., None])[..., 0]",
        ),
        (
            "log-probs divided",
            "divide the logits, before log_softmax",
            "def logprobs_of(logits, ids, temperature=1.0):\n"
            "    return logits.log_softmax(-1).gather(-1, ids[..., None])[..., 0] / temperature",
        ),
        (
            "probabilities",
            "take log_softmax, not softmax",
            "def logprobs_of(logits, ids, temperature=1.0):\n"
            "    return (logits / temperature).softmax(-1).gather(-1, ids[..., None])[..., 0]",
        ),
        (
            "raw logits",
            "raw logits",
            "def logprobs_of(logits, ids, temperature=1.0):\n"
            "    return (logits / temperature).gather(-1, ids[..., None])[..., 0]",
        ),
        (
            "axis kept",
            r"has shape \(\d, \d, 1\), expected \(\d, \d\)",
            "def logprobs_of(logits, ids, temperature=1.0):\n"
            "    return (logits / temperature).log_softmax(-1).gather(-1, ids[..., None])",
        ),
        (
            "softmax over positions",
            "over the positions",
            "def logprobs_of(logits, ids, temperature=1.0):\n"
            "    return (logits / temperature).log_softmax(1).gather(-1, ids[..., None])[..., 0]",
        ),
    ],
    "token_logprobs": [
        (
            "no shift",
            "the shift is missing",
            """
def token_logprobs(model, prompt_ids, prompt_lens, completion_ids):
    G = len(completion_ids) // len(prompt_ids)
    lens = prompt_lens.repeat_interleave(G)
    at = lens[:, None] + torch.arange(completion_ids.shape[1])
    rows = torch.cat([prompt_ids.repeat_interleave(G, 0), 0 * completion_ids], 1)
    rows = rows.scatter(1, at, completion_ids)
    logprobs = model(rows).log_softmax(-1)
    return torch.stack([logprobs[i, at[i], completion_ids[i]] for i in range(len(rows))])
""",
        ),
        (
            "shift by two",
            "You shift twice",
            """
def token_logprobs(model, prompt_ids, prompt_lens, completion_ids):
    G = len(completion_ids) // len(prompt_ids)
    lens = prompt_lens.repeat_interleave(G)
    at = lens[:, None] + torch.arange(completion_ids.shape[1])
    rows = torch.cat([prompt_ids.repeat_interleave(G, 0), 0 * completion_ids], 1)
    rows = rows.scatter(1, at, completion_ids)
    logprobs = model(rows).log_softmax(-1)
    return torch.stack([logprobs[i, at[i] - 2, completion_ids[i]] for i in range(len(rows))])
""",
        ),
        (
            "behind the padding",
            "behind the padding of shorter prompts",
            """
def token_logprobs(model, prompt_ids, prompt_lens, completion_ids):
    G, Tp = len(completion_ids) // len(prompt_ids), prompt_ids.shape[1]
    rows = torch.cat([prompt_ids.repeat_interleave(G, 0), completion_ids], 1)
    logits = model(rows)[:, Tp - 1 : -1]
    return rollout.logprobs_of(logits, completion_ids)
""",
        ),
        (
            "prompts repeated in the wrong order",
            "repeat_interleave and not repeat",
            """
def token_logprobs(model, prompt_ids, prompt_lens, completion_ids):
    G = len(completion_ids) // len(prompt_ids)
    return rollout.token_logprobs(model, prompt_ids.repeat(G, 1), prompt_lens.repeat(G), completion_ids)
""",
        ),
        (
            "probabilities",
            "take log_softmax, not softmax",
            "def token_logprobs(*arguments):\n    return rollout.token_logprobs(*arguments).exp()",
        ),
        (
            "a loss",
            "sign is reversed",
            "def token_logprobs(*arguments):\n    return -rollout.token_logprobs(*arguments)",
        ),
    ],
    "sample_token": [
        (
            "greedy",
            "most probable token",
            "def sample_token(logits, uniforms, temperature=1.0):\n"
            "    best = logits.argmax(-1)\n"
            "    return best, rollout.logprobs_of(logits, best, temperature)",
        ),
        (
            "no temperature",
            "sample at temperature 1",
            "def sample_token(logits, uniforms, temperature=1.0):\n"
            "    return rollout.sample_token(logits, uniforms)",
        ),
        (
            "temperature multiplied",
            "multiply the logits by the temperature",
            "def sample_token(logits, uniforms, temperature=1.0):\n"
            "    return rollout.sample_token(logits * temperature, uniforms)",
        ),
        (
            "log-probs of another temperature",
            "log-probs are those of temperature 1, while",
            "def sample_token(logits, uniforms, temperature=1.0):\n"
            "    tokens, _ = rollout.sample_token(logits, uniforms, temperature)\n"
            "    return tokens, rollout.logprobs_of(logits, tokens)",
        ),
        (
            "probabilities",
            "take their logarithm",
            "def sample_token(logits, uniforms, temperature=1.0):\n"
            "    tokens, logprobs = rollout.sample_token(logits, uniforms, temperature)\n"
            "    return tokens, logprobs.exp()",
        ),
        (
            "all tokens alike",
            "every token equally often",
            "def sample_token(logits, uniforms, temperature=1.0):\n"
            "    tokens = (uniforms * logits.shape[-1]).ceil().long() - 1\n"
            "    return tokens, rollout.logprobs_of(logits, tokens, temperature)",
        ),
    ],
    "complete": [
        (
            "EOS left out",
            "The end is missing",
            """
def complete(model, prompt, uniforms, eos_id):
    text, logprobs = prompt, []
    for u in uniforms:
        token, logprob = rollout.sample_token(model(text[None])[:, -1], u[None])
        if token.item() == eos_id:
            break
        text = torch.cat([text, token])
        logprobs.append(logprob)
    return text[len(prompt) :], torch.cat(logprobs)
""",
        ),
        (
            "does not stop",
            "does not stop",
            """
def complete(model, prompt, uniforms, eos_id):
    text, logprobs = prompt, []
    for u in uniforms:
        token, logprob = rollout.sample_token(model(text[None])[:, -1], u[None])
        text = torch.cat([text, token])
        logprobs.append(logprob)
    return text[len(prompt) :], torch.cat(logprobs)
""",
        ),
        (
            "reads the last token only",
            "reads the last token only",
            """
def complete(model, prompt, uniforms, eos_id):
    text, logprobs = prompt, []
    for u in uniforms:
        token, logprob = rollout.sample_token(model(text[None, -1:])[:, -1], u[None])
        text = torch.cat([text, token])
        logprobs.append(logprob)
        if token.item() == eos_id:
            break
    return text[len(prompt) :], torch.cat(logprobs)
""",
        ),
        (
            "forgets what it wrote",
            "as if it were the first",
            """
def complete(model, prompt, uniforms, eos_id):
    tokens, logprobs = rollout.sample_token(model(prompt[None])[:, -1].expand(len(uniforms), -1), uniforms)
    n = int(rollout.completion_mask(tokens[None], eos_id).sum())
    return tokens[:n], logprobs[:n]
""",
        ),
        (
            "first position",
            "logits at position 0",
            """
def complete(model, prompt, uniforms, eos_id):
    text, logprobs = prompt, []
    for u in uniforms:
        token, logprob = rollout.sample_token(model(text[None])[:, 0], u[None])
        text = torch.cat([text, token])
        logprobs.append(logprob)
        if token.item() == eos_id:
            break
    return text[len(prompt) :], torch.cat(logprobs)
""",
        ),
        (
            "prompt returned too",
            "without the prompt",
            """
def complete(model, prompt, uniforms, eos_id):
    text, logprobs = prompt, []
    for u in uniforms:
        token, logprob = rollout.sample_token(model(text[None])[:, -1], u[None])
        text = torch.cat([text, token])
        logprobs.append(logprob)
        if token.item() == eos_id:
            break
    return text, torch.cat(logprobs)
""",
        ),
    ],
    "perplexity": [
        (
            "unmasked mean",
            "padding included",
            "def perplexity(logprobs, mask):\n    return (-logprobs.mean(1)).exp()",
        ),
        (
            "divided by the padded length",
            "the padded length",
            "def perplexity(logprobs, mask):\n    return (-(logprobs * mask).mean(1)).exp()",
        ),
        (
            "sum for mean",
            "long completions look worse",
            "def perplexity(logprobs, mask):\n    return (-(logprobs * mask).sum(1)).exp()",
        ),
        (
            "sign",
            "sign is reversed",
            "def perplexity(logprobs, mask):\n    return ((logprobs * mask).sum(1) / mask.sum(1)).exp()",
        ),
        (
            "one number for the batch",
            "one number for the whole batch",
            "def perplexity(logprobs, mask):\n    return (-logprobs[mask].mean()).exp()",
        ),
        (
            "bits",
            "not a power of 2",
            "def perplexity(logprobs, mask):\n    return 2 ** (-(logprobs * mask).sum(1) / mask.sum(1))",
        ),
        (
            "last token left out",
            "last token is left out",
            "def perplexity(logprobs, mask):\n"
            "    mask = mask & mask.roll(-1, 1) & (torch.arange(mask.shape[1]) < mask.shape[1] - 1)\n"
            "    return (-(logprobs * mask).sum(1) / mask.sum(1).clamp(min=1)).exp()",
        ),
    ],
}

RIGHT = {
    "completion_mask": [
        (
            "loop",
            """
def completion_mask(ids, eos_id):
    mask = torch.ones_like(ids, dtype=torch.bool)
    for i, row in enumerate(ids.tolist()):
        if eos_id in row:
            mask[i, row.index(eos_id) + 1 :] = False
    return mask
""",
        ),
        (
            "by length",
            """
def completion_mask(ids, eos_id):
    T = ids.shape[1]
    first = torch.where(ids == eos_id, torch.arange(T), T).amin(1, keepdim=True)
    return torch.arange(T) <= first
""",
        ),
    ],
    "logprobs_of": [
        (
            "logsumexp",
            "def logprobs_of(logits, ids, temperature=1.0):\n"
            "    scaled = logits / temperature\n"
            "    return scaled.gather(2, ids[..., None])[..., 0] - scaled.logsumexp(2)",
        ),
        (
            "loop",
            """
def logprobs_of(logits, ids, temperature=1.0):
    result = torch.zeros(ids.shape)
    for b in range(ids.shape[0]):
        for t in range(ids.shape[1]):
            result[b, t] = torch.log_softmax(logits[b, t] / temperature, 0)[ids[b, t]]
    return result
""",
        ),
    ],
    "token_logprobs": [
        (
            "loop",
            """
def token_logprobs(model, prompt_ids, prompt_lens, completion_ids):
    G, rows = len(completion_ids) // len(prompt_ids), []
    for i, ids in enumerate(completion_ids):
        n = int(prompt_lens[i // G])
        text = torch.cat([prompt_ids[i // G, :n], ids])
        logprobs = model(text[None, :-1])[0, n - 1 :].log_softmax(-1)
        rows.append(logprobs.gather(1, ids[:, None])[:, 0])
    return torch.stack(rows)
""",
        ),
        (
            "one token at a time",
            """
def token_logprobs(model, prompt_ids, prompt_lens, completion_ids):
    B, T = completion_ids.shape
    result = torch.zeros(B, T)
    for i in range(B):
        p = i * len(prompt_ids) // B
        text = prompt_ids[p, : prompt_lens[p]].tolist()
        for t in range(T):
            logits = model(torch.tensor([text]))[0, -1]
            result[i, t] = logits.log_softmax(0)[completion_ids[i, t]]
            text.append(completion_ids[i, t].item())
    return result
""",
        ),
        ("the package's", "token_logprobs = rollout.token_logprobs"),
    ],
    "sample_token": [
        (
            "loop",
            """
def sample_token(logits, uniforms, temperature=1.0):
    probs = torch.softmax(logits / temperature, -1)
    tokens = []
    for p, u in zip(probs.tolist(), uniforms.tolist(), strict=True):
        total, token = p[0], 0
        while total < u and token < len(p) - 1:
            token += 1
            total += p[token]
        tokens.append(token)
    tokens = torch.tensor(tokens)
    return tokens, probs[torch.arange(len(tokens)), tokens].log()
""",
        ),
        (
            "counting",
            """
def sample_token(logits, uniforms, temperature=1.0):
    cdf = torch.softmax(logits / temperature, -1).cumsum(-1)
    tokens = (cdf < uniforms[:, None]).sum(-1).clamp(max=logits.shape[-1] - 1)
    return tokens, rollout.logprobs_of(logits, tokens, temperature)
""",
        ),
    ],
    "complete": [
        (
            "Python lists",
            """
def complete(model, prompt, uniforms, eos_id):
    ids, logprobs = [], []
    while len(ids) < len(uniforms) and eos_id not in ids:
        logits = model(torch.tensor([prompt.tolist() + ids]))[0, -1]
        token, logprob = rollout.sample_token(logits, uniforms[len(ids)])
        ids.append(token.item())
        logprobs.append(logprob.item())
    return torch.tensor(ids), torch.tensor(logprobs)
""",
        ),
        (
            "the package's generate",
            """
def complete(model, prompt, uniforms, eos_id):
    r = rollout.generate(
        model, prompt[None], torch.tensor([len(prompt)]), group_size=1, max_new_tokens=len(uniforms),
        eos_id=eos_id, pad_id=0, uniforms=uniforms[None],
    )
    n = int(r.lengths[0])
    return r.completion_ids[0, :n], r.logprobs[0, :n]
""",
        ),
    ],
    "perplexity": [
        (
            "loop",
            "def perplexity(logprobs, mask):\n"
            "    rows = zip(logprobs, mask, strict=True)\n"
            "    return torch.stack([(-row[keep].mean()).exp() for row, keep in rows])",
        ),
        (
            "product",
            "def perplexity(logprobs, mask):\n"
            "    return logprobs.double().exp().masked_fill(~mask, 1.0).prod(1) ** (-1 / mask.sum(1))",
        ),
    ],
}

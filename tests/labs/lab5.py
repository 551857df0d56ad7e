"""Lab 5: answers that students give, wrong and right."""


def _group(value, std="rewards.std(1, keepdim=True, correction=0)", tied=".masked_fill(tied, 0.0)"):
    return (
        "def group_advantages(rewards):\n"
        "    tied = rewards.amax(1, keepdim=True) == rewards.amin(1, keepdim=True)\n"
        "    mean = rewards.mean(1, keepdim=True)\n"
        f"    std = {std} + 1e-4\n"
        f"    return ({value}){tied}"
    )


def _policy(
    value="-torch.minimum(ratio * A, near * A)",
    log_ratio="torch.where(mask, logprobs - old_logprobs.detach(), 0.0)",
    A="advantages.detach()[:, None]",
    near="ratio.clamp(1 - clip_low, 1 + clip_high)",
    masked="torch.where(mask, {}, 0.0)",
):
    return (
        "def policy_loss(logprobs, old_logprobs, advantages, mask, clip_low, clip_high):\n"
        f"    A, ratio = {A}, ({log_ratio}).exp()\n"
        f"    near = {near}\n"
        f"    return {masked.format(value)}"
    )


def _k3(value, delta="ref_logprobs.detach() - logprobs"):
    return f"def kl_k3(logprobs, ref_logprobs):\n    delta = {delta}\n    return {value}"


def _loss(
    mean="(per_token.sum(1) / mask.sum(1)).mean()",
    kl="beta * package_k3(logprobs, ref_logprobs, mask)",
    surrogate="clipped_surrogate(ratio, advantages, mask, 0.2, 0.2)",
    old="old_logprobs",
):
    return f"""
def grpo_loss(logprobs, old_logprobs, ref_logprobs, advantages, mask, beta=0.0):
    ratio = importance_ratio(logprobs, {old}, mask)
    per_token = {surrogate} + {kl}
    return {mean}
"""


def _update(
    lines="optimizer.zero_grad(); loss.backward(); optimizer.step()",
    old="rollout.logprobs",
    ref="reference",
    mask="rollout.completion_mask",
    options="beta=beta",
    back="losses",
):
    return f"""
def update(policy, reference, optimizer, rollout, advantages, beta, num_updates):
    batch, losses = (rollout.prompt_ids, rollout.prompt_lens, rollout.completion_ids), []
    for _ in range(num_updates):
        logprobs = token_logprobs(policy, *batch)
        ref = token_logprobs({ref}, *batch).detach()
        loss, _ = package_loss(logprobs, {old}, ref, advantages, {mask}, {options})
        {lines}
        losses.append(loss.item())
    return {back}
"""


def _train(
    before="",
    draw="[problems[i] for i in torch.randperm(len(problems), generator=generator)[:P].tolist()]",
    sampler="policy",
    rewarded="rows",
    shape="view(P, G)",
    A="package.group_advantages(rewards).flatten()",
    update="update(rollout, A)",
    back="means",
    fresh="rollout = sample({sampler}, tokenizer, [row['prompt'] for row in rows], config, generator)",
    after="",
):
    return f"""
def train(policy, tokenizer, problems, reward_fn, update, config, generator):
    P, G, means = config.prompts_per_step, config.group_size, []
    {before}
    for _ in range(config.max_steps):
        rows = {draw}
        {fresh.format(sampler=sampler)}
        texts = tokenizer.decode_batch(rollout.completion_ids)
        rewards = call_reward(reward_fn, {rewarded}, texts).{shape}
        A = {A}
        {update}
        means.append(rewards.mean().item())
    {after}
    return {back}
"""


CENTERED = "(rewards - mean) / std"

WRONG = {
    "group_advantages": [
        ("sample deviation", r"G - 1 = \d+ \(Bessel", _group(CENTERED, "rewards.std(1, keepdim=True)")),
        (
            "over prompts",
            "wrong axis",
            "def group_advantages(rewards):\n"
            "    return (rewards - rewards.mean(0)) / (rewards.std(0, correction=0) + 1e-4)",
        ),
        (
            "over the batch",
            "whole batch",
            "def group_advantages(rewards):\n"
            "    return (rewards - rewards.mean()) / (rewards.std(correction=0) + 1e-4)",
        ),
        ("no deviation", "do not divide", _group("rewards - mean")),
        ("no mean", "do not subtract", _group("rewards / std")),
        ("variance", "square root", _group(CENTERED, "rewards.var(1, keepdim=True, correction=0)")),
        ("sign", "sign is reversed", _group("(mean - rewards) / std")),
        (
            "tiny eps instead of ties",
            "equal rewards",
            "def group_advantages(rewards):\n"
            "    std = rewards.std(1, keepdim=True, correction=0)\n"
            "    return (rewards - rewards.mean(1, keepdim=True)) / (std + 1e-8)",
        ),
    ],
    "policy_loss": [
        ("upside down", "upside down", _policy(log_ratio="torch.where(mask, old_logprobs - logprobs, 0.0)")),
        ("always 1", "always 1", _policy(log_ratio="torch.where(mask, logprobs - logprobs.detach(), 0.0)")),
        ("max", "min is a max", _policy("-torch.maximum(ratio * A, near * A)")),
        ("an objective", "sign is reversed", _policy("torch.minimum(ratio * A, near * A)")),
        ("no min", "min is missing", _policy("-near * A")),
        ("no clip", "Nothing is clipped", _policy("-ratio * A")),
        ("bounds swapped", "bounds are swapped", _policy(near="ratio.clamp(1 - clip_high, 1 + clip_low)")),
        (
            "old not detached",
            "old_logprobs: they are not detached",
            _policy(log_ratio="torch.where(mask, logprobs - old_logprobs, 0.0)"),
        ),
        (
            "ratio detached",
            "detached",
            _policy(log_ratio="torch.where(mask, (logprobs - old_logprobs).detach(), 0.0)"),
        ),
        ("advantages not detached", "advantages: they are not detached", _policy(A="advantages[:, None]")),
        (
            "masked after exp",
            "Mask the log-ratio before exp",
            _policy(log_ratio="logprobs - old_logprobs.detach()"),
        ),
        ("padding", "not zero at padding", _policy(masked="{}")),
        (
            "as many from the start",
            "right for a mask without holes",
            _policy().replace(
                "    A, ratio",
                "    mask = torch.arange(mask.shape[1]) < mask.sum(1, keepdim=True)\n    A, ratio",
            ),
        ),
    ],
    "kl_k3": [
        (
            "delta reversed",
            "sign is reversed",
            _k3("torch.expm1(delta) - delta", "logprobs - ref_logprobs.detach()"),
        ),
        ("k1", "This is k1", _k3("-delta")),
        ("k2", "This is k2", _k3("delta**2 / 2")),
        ("no 1", "1 is missing", _k3("delta.exp() - delta")),
        ("plus delta", "wrong sign", _k3("torch.expm1(delta) + delta")),
        ("exp minus 1", "lost its digits", _k3("delta.exp() - 1 - delta")),
        (
            "reference not detached",
            "not detached",
            _k3("torch.expm1(delta) - delta", "ref_logprobs - logprobs"),
        ),
    ],
    "grpo_loss": [
        ("mean over tokens", "long completion weighs more", _loss("per_token.sum() / mask.sum()")),
        ("padding in the mean", "padding included", _loss("per_token.mean()")),
        ("sum over completions", "divide by|add", _loss("(per_token.sum(1) / mask.sum(1)).sum()")),
        ("no length", "completions, only", _loss("per_token.sum(1).mean()")),
        ("sign of the KL", "wrong sign", _loss(kl="-beta * package_k3(logprobs, ref_logprobs, mask)")),
        ("no KL", "adds nothing", _loss(kl="0.0")),
        (
            "no beta",
            "multiply it by beta",
            _loss(kl="package_k3(logprobs, ref_logprobs, mask)"),
        ),
        (
            "KL of the old policy",
            "policy that sampled",
            _loss(kl="beta * package_k3(logprobs, old_logprobs, mask)"),
        ),
        (
            "an objective",
            "sign is reversed",
            _loss(surrogate="-clipped_surrogate(ratio, advantages, mask, 0.2, 0.2)"),
        ),
        ("no clip", "Nothing is clipped", _loss(surrogate="-ratio * advantages[:, None] * mask")),
        (
            "as many from the start",
            "right for a mask without holes",
            _loss("torch.stack([x[:n].mean() for x, n in zip(per_token, mask.sum(1).tolist())]).mean()"),
        ),
    ],
    "update": [
        ("no step", "have not moved", _update("optimizer.zero_grad(); loss.backward()")),
        ("gradients kept", "zero_grad", _update("loss.backward(); optimizer.step()")),
        (
            "cleared after the step",
            "stood at the weights",
            _update("loss.backward(); optimizer.step(); optimizer.zero_grad()"),
        ),
        ("ascent", "you ascend", _update("optimizer.zero_grad(); (-loss).backward(); optimizer.step()")),
        (
            "cleared too late",
            "have not moved",
            _update("loss.backward(); optimizer.zero_grad(); optimizer.step()"),
        ),
        (
            "step first",
            "backward first",
            _update("optimizer.step(); optimizer.zero_grad(); loss.backward()"),
        ),
        (
            "step at the top",
            "never used",
            _update("loss.backward()").replace(
                "logprobs = token", "optimizer.step(); optimizer.zero_grad()\n        logprobs = token", 1
            ),
        ),
        ("one update", "updated once", _update().replace("range(num_updates)", "range(1)")),
        ("old made anew", "made anew", _update(old="logprobs.detach()")),
        ("policy as reference", "no pull", _update(ref="policy")),
        ("beta forgotten", "no pull", _update(options="beta=0.0")),
        ("everything counts", "Padding counts", _update(mask="torch.ones_like(rollout.completion_mask)")),
        ("token mean", "mean over tokens", _update(options="beta=beta, aggregation='token_mean'")),
        ("last loss", "losses of all updates", _update(back="loss.item()")),
        (
            "moments lost at the start",
            "What the optimizer remembers",
            _update().replace("    for _ in", "    optimizer.state.clear()\n    for _ in"),
        ),
        (
            "moments lost in each update",
            "What the optimizer remembers",
            _update("optimizer.state.clear(); optimizer.zero_grad(); loss.backward(); optimizer.step()"),
        ),
        (
            "moments lost at the end",
            "What the optimizer remembers",
            _update().replace("    return", "    optimizer.state.clear()\n    return"),
        ),
        (
            "sixteen rows",
            "Only the first 16 rows",
            _update(old="rollout.logprobs[:16]", mask="rollout.completion_mask[:16]")
            .replace("package_loss(logprobs,", "package_loss(logprobs[:16],")
            .replace("ref, advantages,", "ref[:16], advantages[:16],"),
        ),
        (
            "reference frozen for good",
            "another requires_grad",
            _update().replace("    for _ in", "    reference.requires_grad_(False)\n    for _ in"),
        ),
        (
            "an optimizer of its own",
            "Let the optimizer that is handed over",
            _update().replace(
                "    for _ in",
                "    rate = optimizer.param_groups[0]['lr']\n"
                "    optimizer = torch.optim.SGD(policy.parameters(), rate)\n    for _ in",
            ),
        ),
        (
            "log-probs once",
            "inside the loop",
            """
def update(policy, reference, optimizer, rollout, advantages, beta, num_updates):
    batch, losses = (rollout.prompt_ids, rollout.prompt_lens, rollout.completion_ids), []
    logprobs, ref = token_logprobs(policy, *batch), token_logprobs(reference, *batch)
    mask = rollout.completion_mask
    for _ in range(num_updates):
        loss, _ = package_loss(logprobs, rollout.logprobs, ref, advantages, mask, beta=beta)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses
""",
        ),
    ],
    "train": [
        ("rewards for advantages", "rewards themselves", _train(A="rewards.flatten()")),
        ("not flattened", "flatten them", _train(A="package.group_advantages(rewards)")),
        (
            "groups mixed",
            "groups are mixed up",
            _train(A="package.group_advantages(rewards.view(G, P)).flatten()"),
        ),
        (
            "other prompts",
            "those of other prompts",
            _train(A="package.group_advantages(rewards.T).T.flatten()"),
        ),
        ("order", "another order", _train(A="package.group_advantages(rewards).T.flatten()")),
        ("the whole batch", "whole batch", _train(A="package.batch_advantages(rewards).flatten()")),
        ("sign", "sign of the advantages", _train(A="-package.group_advantages(rewards).flatten()")),
        (
            "sampled once",
            "not those of the policy as it is now",
            _train(
                before="rows = problems[:P]; texts = [row['prompt'] for row in rows]; "
                "rollout = sample(policy, tokenizer, texts, config, generator)",
                draw="problems[:P]",
                fresh="",
            ),
        ),
        (
            "a frozen copy samples",
            "not from a copy",
            _train("import copy; start = copy.deepcopy(policy)", sampler="start"),
        ),
        ("the same prompts", "same prompts", _train(draw="problems[:P]")),
        (
            "no generator",
            "draws from torch's own random numbers",
            _train(draw="[problems[i] for i in torch.randperm(len(problems))[:P].tolist()]"),
        ),
        ("rewarded as others", "another prompt", _train(rewarded="problems[:P]")),
        ("all problems", "draw config.prompts_per_step", _train(draw="problems")),
        (
            "one update",
            "each step calls it once, and then update",
            _train(update="", after="update(rollout, A)"),
        ),
        ("last mean", "of all steps", _train(back="means[-1]")),
        (
            "problems used up",
            "are used up",
            _train(
                "left = []\n    def some():\n        if len(left) < P:\n"
                "            left[:] = torch.randperm(len(problems), generator=generator).tolist()\n"
                "        return [problems[left.pop()] for _ in range(P)]",
                "some()",
            ),
        ),
        (
            "solved problems left out",
            "all right never come up again",
            _train(
                "pool = list(problems)",
                "[pool[i] for i in torch.randperm(len(pool), generator=generator)[:P].tolist()]",
                update="update(rollout, A); solved = [row for row, r in zip(rows, rewards) if r.min() == 1]; "
                "pool = [row for row in pool if row not in solved or len(pool) < 2 * P]",
            ),
        ),
        (
            "the first ones left out later",
            "no longer drawn",
            _train(
                "pool = list(problems)",
                "[pool[i] for i in torch.randperm(len(pool), generator=generator)[:P].tolist()]",
                update="update(rollout, A); pool = pool[1:] if len(pool) > 2 * P else pool",
            ),
        ),
    ],
}

RIGHT = {
    "group_advantages": [
        (
            "group by group",
            """
def group_advantages(rewards):
    rows = []
    for group in rewards:
        if group.max() == group.min():
            rows.append(torch.zeros_like(group))
        else:
            rows.append((group - group.mean()) / (group.var(correction=0).sqrt() + 1e-4))
    return torch.stack(rows)
""",
        ),
        (
            "with where",
            """
def group_advantages(rewards):
    gap = rewards - rewards.mean(1, keepdim=True)
    z = gap / ((gap**2).mean(1, keepdim=True).sqrt() + 1e-4)
    return torch.where((rewards == rewards[:, :1]).all(1, keepdim=True), 0.0, z)
""",
        ),
    ],
    "policy_loss": [
        ("a max of losses", _policy("torch.maximum(-ratio * A, -near * A)")),
        ("masked fill", _policy(log_ratio="(logprobs - old_logprobs.detach()).masked_fill(~mask, 0.0)")),
        (
            "token by token",
            """
def policy_loss(logprobs, old_logprobs, advantages, mask, clip_low, clip_high):
    rows = []
    for i, sampled in enumerate(mask.tolist()):
        A, tokens = advantages[i].item(), []
        for t, here in enumerate(sampled):
            ratio = (logprobs[i, t] - old_logprobs[i, t].detach()).exp()
            near = torch.clamp(ratio, 1 - clip_low, 1 + clip_high)
            tokens.append(-min(ratio * A, near * A, key=float) if here else torch.zeros(()))
        rows.append(torch.stack(tokens))
    return torch.stack(rows)
""",
        ),
    ],
    "kl_k3": [
        ("one line", "def kl_k3(p, q):\n    return torch.expm1(q.detach() - p) - (q.detach() - p)"),
        (
            "number by number",
            """
def kl_k3(logprobs, ref_logprobs):
    pairs = zip(logprobs.flatten(), ref_logprobs.detach().flatten())
    return torch.stack([torch.expm1(q - p) - (q - p) for p, q in pairs]).view_as(logprobs)
""",
        ),
    ],
    "grpo_loss": [
        (
            "completion by completion",
            """
def grpo_loss(logprobs, old_logprobs, ref_logprobs, advantages, mask, beta=0.0):
    total = 0.0
    for p, old, ref, A, m in zip(logprobs, old_logprobs, ref_logprobs, advantages, mask):
        ratio = (p[m] - old[m]).exp()
        delta = ref[m].detach() - p[m]
        kl = torch.expm1(delta) - delta
        total = total + (-torch.minimum(ratio * A, ratio.clamp(0.8, 1.2) * A) + beta * kl).mean()
    return total / len(mask)
""",
        ),
        (
            "weights of tokens",
            _loss("(per_token * (mask / mask.sum(1, keepdim=True) / len(mask))).sum()"),
        ),
    ],
    "update": [
        (
            "cleared to None",
            _update("optimizer.zero_grad(set_to_none=True); loss.backward(); optimizer.step()"),
        ),
        (
            "gradients set by hand",
            _update(
                "ps = [p for group in optimizer.param_groups for p in group['params']]\n"
                "        for p, g in zip(ps, torch.autograd.grad(loss, ps)):\n"
                "            p.grad = g\n"
                "        optimizer.step()"
            ),
        ),
        (
            "completion by completion",
            """
def update(policy, reference, optimizer, rollout, advantages, beta, num_updates):
    losses, B, G = [], len(rollout.completion_ids), rollout.group_size
    for _ in range(num_updates):
        optimizer.zero_grad()
        total = 0.0
        for i in range(B):
            row, p = slice(i, i + 1), slice(i // G, i // G + 1)
            batch = rollout.prompt_ids[p], rollout.prompt_lens[p], rollout.completion_ids[row]
            with torch.no_grad():
                ref = token_logprobs(reference, *batch)
            known = rollout.logprobs[row], ref, advantages[row], rollout.completion_mask[row]
            loss = package_loss(token_logprobs(policy, *batch), *known, beta=beta)[0] / B
            loss.backward()
            total += loss.item()
        optimizer.step()
        losses.append(total)
    return losses
""",
        ),
    ],
    "train": [
        (
            "rewards in a loop",
            """
def train(policy, tokenizer, problems, reward_fn, update, config, generator):
    log = []
    while len(log) < config.max_steps:
        picked = torch.randperm(len(problems), generator=generator)[: config.prompts_per_step]
        rows = [problems[int(i)] for i in picked]
        rollout = sample(policy, tokenizer, [row["prompt"] for row in rows], config, generator)
        rewards = call_reward(reward_fn, rows, tokenizer.decode_batch(rollout.completion_ids))
        groups = rewards.split(config.group_size)
        update(rollout, torch.cat([package.group_advantages(group[None])[0] for group in groups]))
        log.append(float(rewards.mean()))
    return log
""",
        ),
        (
            "reward called directly",
            _train().replace(
                "call_reward(reward_fn, rows, texts).view(P, G)",
                "torch.tensor(reward_fn([r['prompt'] for r in rows for _ in range(G)], texts, "
                "answer=[r['answer'] for r in rows for _ in range(G)])).view(P, G)",
            ),
        ),
    ],
}

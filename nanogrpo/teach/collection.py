"""The faults: mistakes that codes of this kind really make, as small edits of the package's own code.

One collection with three uses. ``python -m nanogrpo.teach.faults`` plants each in a copy of the package and
shows which test notices; :mod:`nanogrpo.teach.museum` plants it in memory, for reading, running and hunting;
and each is caught by exactly one check of :mod:`nanogrpo.teach.check`, in a sentence that names it.
"""

from __future__ import annotations

from dataclasses import dataclass

from nanogrpo.errors import FaultError


@dataclass(frozen=True)
class Fault:
    """One mistake that can be planted.

    Attributes:
        name: A few words.
        file: In the package, for example ``losses.py``.
        edits: Pairs of the right text, which must stand in the file exactly once, and the wrong one.
        effect: What it does, in one sentence.
        symptom: How it shows in a training run.
        check: The check of :mod:`nanogrpo.teach.check` that is meant to catch it, and to name it.
        tests: The test file of the repository that is meant to catch it.
    """

    name: str
    file: str
    edits: tuple[tuple[str, str], ...]
    effect: str
    symptom: str
    check: str
    tests: str


def planted(source: str, fault: Fault) -> str:
    """The text of a file with the fault in it.

    Raises:
        FaultError: A text to replace does not stand there exactly once.
    """
    for right, wrong in fault.edits:
        times = source.count(right)
        if times != 1:
            raise FaultError(
                f"fault {fault.name!r}: {right!r} stands {times} times in {fault.file}, not once; "
                "the package has changed, so change the fault with it"
            )
        source = source.replace(right, wrong)
    return source


FAULTS = (
    # tokens and their log-probs
    Fault(
        "pad equal to eos",
        "tokenizer.py",
        (
            ("    eos_id = 1\n", "    eos_id = 0\n"),
            ("        return ids, mask\n", "        return ids, ids != self.pad_id\n"),
        ),
        "The mask hides all padding, and with it the end of every demonstration.",
        "After SFT the model writes right answers and does not stop: every completion is truncated.",
        "check_encode_completions",
        "test_tokenizer.py",
    ),
    Fault(
        "mask is every token but EOS",
        "rollout.py",
        (
            (
                "    ends = ids == eos_id\n    return ends.cumsum(1) - ends.long() == 0\n",
                "    return ids != eos_id\n",
            ),
        ),
        "The decision to stop is never trained, and what stands after the end is.",
        "completions/mean_length is near its limit, and hardly varies, from the first step on.",
        "check_completion_mask",
        "test_packed.py",
    ),
    Fault(
        "EOS left out of the mask",
        "rollout.py",
        (("sampled[:, column] = open_", "sampled[:, column] = open_ & (chosen != eos_id)"),),
        "The decision to stop is never trained.",
        "completions/mean_length is one short; stopping is learned only where going on was punished.",
        "check_generate",
        "test_exact.py",
    ),
    Fault(
        "fast path: EOS left out of the mask",
        "packed.py",
        (("completion_mask(tokens, eos_id), ~", "(tokens == eos_id).cumsum(1) == 0, ~"),),
        "The decision to stop is never trained.",
        "completions/mean_length is one short; stopping is learned only where going on was punished.",
        "check_generate",
        "test_trainer_math.py",
    ),
    Fault(
        "target shift off by one",
        "rollout.py",
        (
            ("used = int(lens.max()) + T - 1", "used = int(lens.max()) + T"),
            ("wanted = (at - 1)", "wanted = at"),
        ),
        "Scores each token with the prediction of the token after it.",
        "The first ratio is not 1, and the reward falls.",
        "check_token_logprobs",
        "test_exact.py",
    ),
    Fault(
        "fast path: target shift off by one",
        "packed.py",
        (("model.hidden(completion_ids[:, :-1], cache)", "model.hidden(completion_ids[:, 1:], cache)"),),
        "Each token is predicted by a model that has just read it.",
        "The first ratio is not 1, and the log-probs rise toward zero while the samples stay as they are.",
        "check_token_logprobs",
        "test_trainer_math.py",
    ),
    Fault(
        "old log-probs at temperature 1",
        "rollout.py",
        (
            (
                "probs.gather(-1, tokens).squeeze(-1).log()",
                "torch.log_softmax(logits, -1).gather(-1, tokens).squeeze(-1)",
            ),
        ),
        "The log-probs that are kept belong to another policy than the one that sampled.",
        "clip_ratio is not zero at the very first update; at temperature 1 nothing shows.",
        "check_choose",
        "test_rollout.py",
    ),
    Fault(
        "new log-probs at temperature 1",
        "rollout.py",
        (("torch.log_softmax(logits / temperature, -1).gather", "torch.log_softmax(logits, -1).gather"),),
        "The gradient is that of another policy than the one that sampled.",
        "clip_ratio is not zero at the very first update; at temperature 1 nothing shows.",
        "check_logprobs_of",
        "test_rollout.py",
    ),
    # advantages
    Fault(
        "Bessel's std where population is meant",
        "advantages.py",
        (
            (
                '"group", eps: float = 1e-4, correction: int = 0',
                '"group", eps: float = 1e-4, correction: int = 1',
            ),
        ),
        "All advantages are smaller by sqrt((G-1)/G).",
        "None: the learning rate hides it. At G = 2 it is a factor of 0.71.",
        "check_group_advantages",
        "test_advantages.py",
    ),
    Fault(
        "population std where Bessel is meant",
        "advantages.py",
        (
            (
                "rewards.std(1, keepdim=True, correction=correction)",
                "rewards.std(1, keepdim=True, correction=0)",
            ),
        ),
        "The option is ignored, so results do not compare with TRL's.",
        "None: the learning rate hides it.",
        "check_bessel",
        "test_advantages.py",
    ),
    Fault(
        "ties by a small eps",
        "advantages.py",
        (
            ('"group", eps: float = 1e-4, correction', '"group", eps: float = 1e-8, correction'),
            (
                "    advantages = advantages.masked_fill(tied, 0.0)  # equal rewards teach nothing, exactly\n"
                "    return",
                "    return",
            ),
        ),
        "In float32 the mean of equal rewards can be off by one rounding, and 1e-8 makes that of order one.",
        "Groups in which all rewards are equal push the policy about, all members the same way.",
        "check_tied_groups",
        "test_advantages.py",
    ),
    Fault(
        "group mean over the wrong axis",
        "advantages.py",
        (
            (
                "rewards - rewards.mean(1, keepdim=True)  # (P, G)",
                "rewards - rewards.mean(0, keepdim=True)  # (P, G)",
            ),
        ),
        "Compares a completion with answers to other prompts.",
        "Learning is slow and noisy, and the loss on policy is not zero.",
        "check_group_advantages",
        "test_advantages.py",
    ),
    Fault(
        "std of the batch where the group's is meant",
        "advantages.py",
        (("rewards.std(1, keepdim=True, correction=correction)", "rewards.std(correction=correction)"),),
        "Prompts whose rewards hardly differ lose their weight to those whose rewards differ much.",
        "None: the advantages of each group are only scaled, each by a factor of its own.",
        "check_group_advantages",
        "test_advantages.py",
    ),
    Fault(
        "own reward in the leave-one-out baseline",
        "advantages.py",
        (
            (
                "(rewards.sum(1, keepdim=True) - rewards) / (rewards.shape[1] - 1)",
                "rewards.sum(1, keepdim=True) / rewards.shape[1]",
            ),
        ),
        "The baseline contains the reward that is compared with it, so all advantages shrink by (G-1)/G.",
        "None: the learning rate hides it. At G = 2 it is a factor of 0.5.",
        "check_leave_one_out",
        "test_advantages.py",
    ),
    Fault(
        "GAE without (1 - done)",
        "advantages.py",
        (("next_value = torch.where(mask[:, t], values[:, t], 0.0)", "next_value = values[:, t]"),),
        "The last token's error contains the critic's opinion of padding.",
        "The critic's targets run away, since each contains the next one's error.",
        "check_gae",
        "test_advantages.py",
    ),
    Fault(
        "score one token after the end",
        "advantages.py",
        (
            (
                "last = mask.sum(1, keepdim=True) - 1",
                "last = mask.sum(1, keepdim=True).clamp(max=mask.shape[1] - 1)",
            ),
        ),
        "The score stands on padding, where the mask hides it; only completions of full length are rewarded.",
        "advantage_abs_mean is near zero in the first steps of PPO, though the rewards differ.",
        "check_token_rewards",
        "test_advantages.py",
    ),
    # KL and entropy
    Fault(
        "k3 reversed",
        "kl.py",
        (("return torch.expm1(delta) - delta", "return torch.expm1(-delta) + delta"),),
        "Estimates chi-square minus KL: still positive, still delta squared half near zero, and wrong.",
        "The reported KL has spikes, and the penalty is far too strong once the policy has moved.",
        "check_kl_k3",
        "test_kl.py",
    ),
    Fault(
        "k1 reversed",
        "kl.py",
        (("return -_delta(logprobs, ref_logprobs, mask)", "return _delta(logprobs, ref_logprobs, mask)"),),
        "Estimates minus the KL, so a penalty in the reward pays for drifting away.",
        "The reported KL is negative on average, and the policy leaves the reference ever faster.",
        "check_kl_k1",
        "test_kl.py",
    ),
    Fault(
        "k3 without expm1",
        "kl.py",
        (("return torch.expm1(delta) - delta", "return torch.exp(delta) - 1 - delta"),),
        "Loses every digit in float32 where policy and reference are close, as they are at the start.",
        "In the first steps the KL jumps between multiples of 6e-8, and is at times negative.",
        "check_kl_k3_precision",
        "test_kl.py",
    ),
    Fault(
        "reference not detached",
        "kl.py",
        (("_masked(ref_logprobs.detach() - logprobs, mask)", "_masked(ref_logprobs - logprobs, mask)"),),
        "If the reference shares its weights with the policy, the two gradients of the KL cancel.",
        "No effect of beta, or a reference that changes.",
        "check_reference_gets_no_gradient",
        "test_kl.py",
    ),
    Fault(
        "reference is the policy itself",
        "grpo.py",
        (("reference = copy.deepcopy(model).requires_grad_(False)", "reference = model"),),
        "The reference moves with the policy, so the distance between them is always zero.",
        "The KL is zero for ever.",
        "check_reference_is_frozen",
        "test_trainer_math.py",
    ),
    Fault(
        "penalty with the wrong sign",
        "losses.py",
        (("per_token = per_token + beta * kl", "per_token = per_token - beta * kl"),),
        "The loss is lower the farther the policy is from the reference.",
        "The KL explodes, the sooner the larger beta.",
        "check_kl_penalty",
        "test_losses.py",
    ),
    Fault(
        "k1 as the loss",
        "losses.py",
        (
            (
                "kl = KL_ESTIMATORS[kl_estimator](logprobs, ref_logprobs, completion_mask)",
                "kl = kl_k1(logprobs, ref_logprobs, completion_mask)",
            ),
        ),
        "The gradient of k1 has mean zero: the penalty is noise and restrains nothing.",
        "The KL grows much as it does with beta = 0.",
        "check_kl_penalty",
        "test_losses.py",
    ),
    Fault(
        "exact KL in the wrong order",
        "kl.py",
        (
            (
                "(logprobs.exp() * (logprobs - ref_logprobs)).sum(-1)",
                "(ref_logprobs.exp() * (ref_logprobs - logprobs)).sum(-1)",
            ),
        ),
        "Measures KL(reference || policy), as F.kl_div with its arguments in the usual order does.",
        "The reported KL explodes once the policy has dropped a token of the reference.",
        "check_kl_exact",
        "test_kl.py",
    ),
    Fault(
        "entropy averaged over the vocabulary",
        "kl.py",
        (
            (
                "values = -(logprobs.exp() * logprobs).sum(-1)",
                "values = -(logprobs.exp() * logprobs).mean(-1)",
            ),
        ),
        "The entropy is too small by a factor of V, so a bonus on it is, too.",
        "An entropy near zero in the first step, of a policy whose samples are varied.",
        "check_entropy",
        "test_kl.py",
    ),
    Fault(
        "proxy in place of the entropy",
        "kl.py",
        (
            (
                "return -_masked(logprobs, mask)",
                "logprobs = _masked(logprobs, mask)\n    return -logprobs.exp() * logprobs",
            ),
        ),
        "Weighs each sampled surprise with its probability once more, though sampling has done so.",
        "An entropy that is never above 0.37, and rises while the policy begins to collapse.",
        "check_entropy_sampled",
        "test_kl.py",
    ),
    # ratio and clip
    Fault(
        "mask applied after exp",
        "losses.py",
        (
            (
                '    if level == "token":\n        return _exp(log_ratio)\n',
                '    if level == "token":\n'
                "        return torch.where(mask, (logprobs - old_logprobs.detach()).exp(), 1.0)\n",
            ),
        ),
        "The loss is finite, its gradient NaN, as soon as a masked log-ratio is NaN or overflows.",
        "All weights become NaN in one step, after a loss that looked fine.",
        "check_mask_before_exp",
        "test_losses.py",
    ),
    Fault(
        "old log-probs not detached",
        "losses.py",
        (
            (
                "torch.where(mask, logprobs - old_logprobs.detach(), 0.0)",
                "torch.where(mask, logprobs - old_logprobs, 0.0)",
            ),
        ),
        "Where both come from one graph, the gradient of the ratio cancels to zero.",
        "grad_norm is zero.",
        "check_importance_ratio",
        "test_losses.py",
    ),
    Fault(
        "ratio against itself",
        "losses.py",
        (
            (
                "torch.where(mask, logprobs - old_logprobs.detach(), 0.0)",
                "torch.where(mask, logprobs - logprobs.detach(), 0.0)",
            ),
        ),
        "The old log-probs are recomputed at each update, so the ratio is always 1 and the clip never acts.",
        "clip_ratio is zero for ever, however often a batch is gone through.",
        "check_importance_ratio",
        "test_losses.py",
    ),
    Fault(
        "ratio detached on both sides",
        "losses.py",
        (
            (
                "torch.where(mask, logprobs - old_logprobs.detach(), 0.0)",
                "torch.where(mask, (logprobs - old_logprobs).detach(), 0.0)",
            ),
        ),
        "No gradient reaches the policy but that of the KL.",
        "backward() fails; or, with a KL penalty, the policy only returns to the reference.",
        "check_importance_ratio",
        "test_losses.py",
    ),
    Fault(
        "the clip's min turned into max",
        "losses.py",
        (("-torch.min(capped * advantages", "-torch.max(capped * advantages"),),
        "The clip stops the gradient where it should push, and pushes where it should stop.",
        "clip_ratio grows with every inner step, and the policy with it.",
        "check_clipped_surrogate",
        "test_losses.py",
    ),
    Fault(
        "clip without the min",
        "losses.py",
        (("-torch.min(capped * advantages, clipped * advantages)", "-clipped * advantages"),),
        "A token that has gone too far the wrong way gets no gradient that would bring it back.",
        "None with one update a batch; with more, tokens that went the wrong way stay there.",
        "check_clipped_surrogate",
        "test_losses.py",
    ),
    Fault(
        "sign of the loss",
        "losses.py",
        (("-torch.min(capped * advantages", "torch.min(capped * advantages"),),
        "The objective is minimized: right answers become rare.",
        "The reward falls from the first step on.",
        "check_clipped_surrogate",
        "test_losses.py",
    ),
    Fault(
        "advantages not detached",
        "losses.py",
        (("torch.where(mask, advantages.detach(), 0.0)", "torch.where(mask, advantages, 0.0)"),),
        "With a critic on the policy's own network, the policy's loss trains the critic to please.",
        "None with GRPO; with a critic in the loss, its values drift away from the returns.",
        "check_clipped_surrogate",
        "test_losses.py",
    ),
    # means over tokens
    Fault(
        "sequence mean over padding",
        "losses.py",
        (("per_token / mask.sum(1, keepdim=True).clamp(min=1)", "per_token / mask.shape[1]"),),
        "Short completions lose weight, by the longest completion that happens to be in the batch.",
        "The loss, and the best learning rate, change with the padding.",
        "check_sequence_mean",
        "test_losses.py",
    ),
    Fault(
        "token mean over padding",
        "losses.py",
        (
            (
                "return per_token.sum() / n.num_tokens",
                "return per_token.sum() / (n.num_sequences * mask.shape[1])",
            ),
        ),
        "Divides by all positions of the batch, padding included.",
        "The loss, and the best learning rate, change with the padding.",
        "check_token_mean",
        "test_losses.py",
    ),
    Fault(
        "constant length is the padded length",
        "losses.py",
        (("(n.num_sequences * n.max_length)", "(n.num_sequences * mask.shape[1])"),),
        "The divisor is not constant: it is the longest completion of the batch.",
        "The size of the gradient changes with the longest completion; a growing length damps all others.",
        "check_constant_mean",
        "test_losses.py",
    ),
    Fault(
        "normalized by the microbatch",
        "losses.py",
        (
            (
                "    n = denominators or Denominators.of(mask)\n    _check_counts",
                "    n = Denominators.of(mask, denominators and denominators.max_length)\n    _check_counts",
            ),
        ),
        "A token counts more in a microbatch of short completions, and the sum grows with their number.",
        "Results change with the microbatch size.",
        "check_microbatches",
        "test_losses.py",
    ),
    # critic, reward model and imitation
    Fault(
        "value clip's max turned into min",
        "losses.py",
        (("error = torch.max(error, torch.where", "error = torch.min(error, torch.where"),),
        "A value that has moved too far is let off, instead of one that has moved enough.",
        "The value loss is lower than without the clip, and explained_variance is not higher.",
        "check_value_loss",
        "test_losses.py",
    ),
    Fault(
        "returns not detached",
        "losses.py",
        (("values - returns.detach()", "values - returns"),),
        "Targets that were made of the critic's values move toward the values.",
        "The critic's gradient cancels, and explained_variance stays where it was.",
        "check_value_loss",
        "test_losses.py",
    ),
    Fault(
        "value after the token",
        "critic.py",
        (
            (
                "return head(hidden).squeeze(-1)  # (B, T)",
                "return head(hidden).squeeze(-1).roll(-1, 1)  # (B, T)",
            ),
        ),
        "The baseline has seen the token that it is the baseline of, and takes the credit for it.",
        "explained_variance is too good: at the last token the critic has seen the whole answer.",
        "check_values_of",
        "test_ppo.py",
    ),
    Fault(
        "Bradley-Terry reversed",
        "losses.py",
        (("F.logsigmoid(chosen - rejected)", "F.logsigmoid(rejected - chosen)"),),
        "The reward model learns to prefer what was rejected.",
        "Its accuracy falls below one half on the very pairs that it is trained on.",
        "check_bradley_terry",
        "test_losses.py",
    ),
    Fault(
        "score read at the padding",
        "reward_model.py",
        (("totals.gather(1, lens.unsqueeze(1) - 1).squeeze(1)", "totals[:, -1]"),),
        "The score of a text is read after its padding, so it depends on what it is batched with.",
        "The same text scores differently in another batch.",
        "check_reward_pooling",
        "test_reward_model.py",
    ),
    Fault(
        "targets shifted twice",
        "losses.py",
        (
            (
                "F.cross_entropy(logits[mask], targets[mask], reduction",
                "F.cross_entropy(logits[mask], targets.roll(-1, 1)[mask], reduction",
            ),
        ),
        "The model learns to predict the token after the next one.",
        "The SFT loss falls, and hardly any sample is right.",
        "check_sft_loss",
        "test_losses.py",
    ),
)

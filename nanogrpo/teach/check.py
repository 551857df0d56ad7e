"""The checks that exercises, labs and the bug museum share: one function for each thing to get right.

    >>> from nanogrpo.teach import check
    >>> check.check_leave_one_out(lambda rewards: rewards - rewards.mean(1, keepdim=True), seed=0)
    Traceback (most recent call last):
    nanogrpo.teach.verdict.CheckFailed: Your baseline is the mean of all ... rewards of the group, ...

``check_xxx(implementation, seed=None)`` calls an implementation on random inputs and compares what it
returns, and its gradient, with the package's own. It returns nothing if they agree, however the function is
written; otherwise it raises :class:`~nanogrpo.teach.verdict.CheckFailed` with a sentence to act on. The
docstring of a check says how the implementation is called: with positional arguments, in the order of the
package's function of that name. Without a ``seed`` the inputs are new at each call, so frozen answers do
not pass.
"""

from __future__ import annotations

from nanogrpo.teach.check_advantages import (
    check_bessel,
    check_gae,
    check_group_advantages,
    check_leave_one_out,
    check_tied_groups,
    check_token_rewards,
)
from nanogrpo.teach.check_kl import (
    check_entropy,
    check_entropy_sampled,
    check_kl_exact,
    check_kl_k1,
    check_kl_k2,
    check_kl_k3,
    check_kl_k3_precision,
    check_reference_gets_no_gradient,
)
from nanogrpo.teach.check_labs_critic import check_explained_variance, check_whiten
from nanogrpo.teach.check_labs_gradients import (
    check_best_baseline,
    check_exact_gradient,
    check_expected_estimate,
    check_mean_and_error,
    check_reinforce_loss,
)
from nanogrpo.teach.check_labs_loop import check_train
from nanogrpo.teach.check_labs_preferences import (
    check_best_of_n,
    check_noise_ceiling,
    check_pair_accuracy,
    check_preference_probs,
)
from nanogrpo.teach.check_labs_sampling import check_complete, check_perplexity
from nanogrpo.teach.check_labs_update import check_improve, check_policy_loss
from nanogrpo.teach.check_losses import (
    check_clipped_surrogate,
    check_grpo_loss,
    check_importance_ratio,
    check_kl_penalty,
    check_mask_before_exp,
)
from nanogrpo.teach.check_means import (
    check_constant_mean,
    check_microbatches,
    check_sequence_mean,
    check_token_mean,
)
from nanogrpo.teach.check_tokens import (
    check_choose,
    check_completion_mask,
    check_generate,
    check_logprobs_of,
    check_token_logprobs,
)
from nanogrpo.teach.check_training import (
    check_bradley_terry,
    check_encode_completions,
    check_reference_is_frozen,
    check_reward_pooling,
    check_sft_loss,
    check_value_loss,
    check_values_of,
)
from nanogrpo.teach.verdict import CheckFailed

__all__ = [
    "CheckFailed",
    # tokens
    "check_encode_completions",
    "check_token_logprobs",
    "check_logprobs_of",
    "check_choose",
    "check_completion_mask",
    "check_generate",
    # advantages
    "check_group_advantages",
    "check_bessel",
    "check_tied_groups",
    "check_leave_one_out",
    "check_gae",
    "check_token_rewards",
    # KL and entropy
    "check_kl_k1",
    "check_kl_k2",
    "check_kl_k3",
    "check_kl_k3_precision",
    "check_reference_gets_no_gradient",
    "check_reference_is_frozen",
    "check_kl_exact",
    "check_entropy",
    "check_entropy_sampled",
    # the loss
    "check_importance_ratio",
    "check_mask_before_exp",
    "check_clipped_surrogate",
    "check_token_mean",
    "check_sequence_mean",
    "check_constant_mean",
    "check_microbatches",
    "check_kl_penalty",
    "check_grpo_loss",
    # critic, reward model, imitation
    "check_value_loss",
    "check_values_of",
    "check_bradley_terry",
    "check_reward_pooling",
    "check_sft_loss",
    # steps that only the labs have
    "check_complete",
    "check_perplexity",
    "check_preference_probs",
    "check_noise_ceiling",
    "check_pair_accuracy",
    "check_best_of_n",
    "check_reinforce_loss",
    "check_exact_gradient",
    "check_expected_estimate",
    "check_best_baseline",
    "check_mean_and_error",
    "check_whiten",
    "check_explained_variance",
    "check_policy_loss",
    "check_improve",
    "check_train",
]

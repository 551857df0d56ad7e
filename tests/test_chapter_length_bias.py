"""The effects that the chapter on length bias shows, by the chapter's own functions."""

import pytest
import torch
from chaptercode import chapter

from nanogrpo.show.stats import mean, paired_difference

SEEDS = range(5)


@pytest.fixture(scope="module")
def text():
    return chapter("length-bias", ("tokenizer",))


def test_the_pushes_are_the_mean_of_the_loss_over_all_groups(text):
    scope, right = text.look(text.tiny_gpt(0))
    for how in text.AGGREGATIONS:
        summed = -scope.expect(text.loss_with(how), right, 2).gradient
        formula = text.update(scope, text.pushes(scope, right, how))
        assert torch.allclose(summed, formula, atol=1e-12)


def test_wrong_answers_get_longer_under_the_sequence_mean_and_less_so_under_the_token_mean(text):
    starts = [text.at_start(seed) for seed in range(6)]
    wrong = {
        how: [text.follow(start, how)[-1, 2].item() for start in starts]
        for how in ("sequence_sum", "token_mean", "sequence_mean")
    }
    more = {how: paired_difference(wrong[how], wrong["sequence_sum"]) for how in wrong}
    assert more["sequence_mean"].low > 0.02
    assert paired_difference(wrong["sequence_mean"], wrong["token_mean"]).low > 0
    assert more["token_mean"].estimate > 0


def test_a_settled_reward_pushes_lengths_by_the_division_alone(text):
    """All wrong, A = -1: the sum's mean update is zero, that of the sequence mean lengthens."""
    for seed in range(5):
        scope, _ = text.look(text.tiny_gpt(seed))
        length = scope.mask.sum(1).double()
        lengthen = scope.gradient(scope.expected_length())
        assert text.update(scope, -torch.ones_like(length)).abs().max() < 1e-12
        assert lengthen @ text.update(scope, -1 / length) > 1e-3


def test_leaving_truncated_answers_out_takes_away_a_push_to_end(text):
    after = {
        treatment: [text.truncation_path(seed, treatment, steps=10)[-1, 1].item() for seed in range(6)]
        for treatment in ("wrong", "left out", "fined")
    }
    more = zip(after["left out"], after["wrong"], strict=True)
    assert all(out > wrong for out, wrong in more)
    assert paired_difference(after["left out"], after["wrong"]).estimate > 0.03
    assert mean(after["fined"]).estimate < 0.5 * mean(after["wrong"]).estimate


def test_the_sum_of_log_probs_favors_short_answers(text):
    for seed in range(5):
        scope, _ = text.look(text.tiny_gpt(seed))
        p, total, length = scope.probabilities[0], scope.logprobs[0].sum(1), scope.mask.sum(1)
        by_length = [(p @ (total * (length == n)) / p[length == n].sum()).item() for n in (1, text.TOKENS)]
        assert by_length[0] > by_length[1]


@pytest.mark.slow
def test_in_a_run_only_the_sequence_mean_drives_the_lengths_apart(text):
    start = text.imitator()
    gaps = {how: [text.gap(start, seed, how) for seed in SEEDS] for how in ("sequence_sum", "sequence_mean")}
    assert paired_difference(gaps["sequence_mean"], gaps["sequence_sum"]).low > 0.05
    assert mean(gaps["sequence_mean"]).low > 0
    assert abs(mean(gaps["sequence_sum"]).estimate) < 0.2

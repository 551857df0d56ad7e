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


def test_wrong_answers_lengthen_by_every_division_that_depends_on_their_length(text):
    """For the same gain in p, and compared with the sum; most under the sequence mean."""
    for seed in range(10):
        scope, right = text.look(text.tiny_gpt(seed))
        p, length, wrong = scope.probabilities[0], scope.mask.sum(1).double(), 1 - right
        lengthen = scope.gradient((p * wrong) @ length / (p @ wrong))
        gain = scope.gradient(scope.objective(right))
        slope = {}
        for how in text.AGGREGATIONS:
            step = text.update(scope, text.pushes(scope, right, how))
            slope[how] = (lengthen @ step / (gain @ step)).item()
        assert slope["constant"] == pytest.approx(slope["sequence_sum"])
        assert slope["sequence_mean"] > slope["token_mean"] + 0.005 > slope["sequence_sum"] + 0.005


@pytest.mark.slow
def test_wrong_answers_are_longer_at_the_end_of_the_way(text):
    starts = [text.at_start(seed) for seed in range(6)]
    straight, bent = (
        [text.follow(start, how)[-1, 2].item() for start in starts]
        for how in ("sequence_sum", "sequence_mean")
    )
    more = [b - s for b, s in zip(bent, straight, strict=True)]
    assert min(more) > 0.02 and mean(more).estimate > 0.15


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


def test_the_sum_of_log_probs_never_prefers_a_longer_answer_than_their_mean_does(text):
    longer = []
    for seed in range(5):
        scope, _ = text.look(text.tiny_gpt(seed))
        total, length = scope.logprobs[0].detach().sum(1), scope.mask.sum(1)
        longer.append((length[(total / length).argmax()] - length[total.argmax()]).item())
    assert min(longer) >= 0 and max(longer) > 0


@pytest.mark.slow
def test_in_a_run_only_the_sequence_mean_drives_the_lengths_apart(text):
    start = text.imitator()
    gaps = {how: [text.gap(start, seed, how) for seed in SEEDS] for how in ("sequence_sum", "sequence_mean")}
    assert paired_difference(gaps["sequence_mean"], gaps["sequence_sum"]).low > 0.05
    assert mean(gaps["sequence_mean"]).low > 0
    assert abs(mean(gaps["sequence_sum"]).estimate) < 0.2

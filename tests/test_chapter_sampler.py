"""What the chapter on samplers claims, exactly: by the chapter's own functions, against the microscope."""

import pytest
import torch
from chaptercode import chapter
from mathcheck import close

from nanogrpo.teach.variants_exact import estimator


@pytest.fixture(scope="module")
def text():
    return chapter("sampler")


@pytest.fixture(scope="module")
def climbers(text):
    return [text.climber(seed) for seed in range(3)]


@pytest.fixture(scope="module")
def judged(text, climbers):
    return [text.judged(*each) for each in climbers]


AGES = {0: [0] * 10, 1: [0] + [1] * 9, 4: [0, 1, 2, 2, 2, 3, 3, 3, 4, 4]}


@pytest.mark.parametrize("ahead", AGES)
def test_ages_are_those_of_a_schedule_made_by_hand(text, ahead):
    rows = text.timeline([2] * 10, [3] * 10, ahead)
    assert [row[-1] for row in rows] == AGES[ahead]
    assert rows[-1][3] == (50 if ahead == 0 else 32)


@pytest.mark.parametrize("ahead", [0, 1, 3, 16])
def test_no_batch_is_older_than_the_sampler_is_ahead_and_no_engine_does_two_things_at_once(text, ahead):
    draw = text.random.Random(ahead)
    times = [[draw.expovariate(1.0) for _ in range(100)] for _ in range(2)]
    rows = text.timeline(*times, ahead)
    assert max(row[-1] for row in rows) <= ahead and min(row[-1] for row in rows) >= 0
    for (_, ready, _, end, _), (begin, _, start, *_) in zip(rows, rows[1:], strict=False):
        assert begin >= ready and start >= end
    for n, (begin, _, _, _, age) in enumerate(rows):
        assert age == n - sum(row[3] <= begin for row in rows[:n])


@pytest.mark.slow
def test_a_correction_is_judged_as_the_microscope_judges_the_trainer_s_own_loss(text, climbers):
    """Its mean and its noise, for the options of the config that have the same name."""
    options = {
        "kept, clip 0.2": {"sampler_correction": "ratio"},
        "IcePop, 0.5 to 2": {"sampler_correction": "token_mask", "sampler_clip_min": 0.5},
        "MIS, sequence, 3": {"sampler_correction": "sequence_mask", "sampler_clip_max": 3.0},
    }
    past, scope, right, jacobian = climbers[0]
    mu = text.logprobs_of_all(past[0])
    scope.old_logprobs = mu.unsqueeze(0)
    truth = scope.gradient(scope.objective(right))
    plain = {"baseline": "none", "scale_rewards": "none", "aggregation": "sequence_sum"}
    noisy = {"sampler": "noise", "sampler_noise": 1.0}
    for name, how in options.items():
        loss = estimator(plain | noisy | how, scope, past[-1], 2)
        found = scope.expect(loss, right - mu.sum(1).exp() @ right, 2)  # a mean of two completions
        bias, noise, _ = text.judge(scope, right, jacobian, mu, **text.CORRECTIONS[name])
        close(
            torch.tensor(bias, dtype=torch.float64),
            (found.gradient + truth).norm() / truth.norm(),
            name,
            1e-9,
        )
        close(
            torch.tensor(noise, dtype=torch.float64), (2 * found.variance).sqrt() / truth.norm(), name, 1e-9
        )


@pytest.mark.slow
def test_every_sampler_s_probabilities_sum_to_1(text, climbers):
    for past, scope, *_ in climbers:
        for name, mu in text.samplers_of(past).items():
            close(mu.sum(1).exp().sum(), 1.0, f"{name} is no distribution", 1e-10)
        assert torch.equal(text.logprobs_of_all(past[-1]), scope.logprobs[0].detach())


def test_only_the_weight_of_the_sequence_without_bounds_is_unbiased_whoever_samples(judged):
    for found, _ in judged:
        for (name, sampler), (bias, *_) in found.items():
            if name == "sequence, no bound":
                assert bias < 1e-10, sampler
            elif sampler == "16 steps":
                assert bias > 0.3, name


def test_bounds_do_nothing_while_the_sampler_is_near_and_buy_less_noise_with_bias_when_it_is_far(judged):
    for found, _ in judged:
        for level in ("token", "sequence"):
            free = found[f"{level}, no bound", "1 step"]
            assert found[f"TIS, {level}, 2", "1 step"] == pytest.approx(free, abs=1e-12)
        assert found["sequence, no bound", "16 steps"][1] > 1.5 * found["TIS, sequence, 2", "16 steps"][1]
        assert found["MIS, sequence, 3", "16 steps"][0] > found["TIS, sequence, 2", "16 steps"][0] + 0.1


def test_precision_hardly_counts_here(text, judged):
    for found, far in judged:
        for sampler in ("bf16", "8 bits"):
            assert 0 < far[sampler] < 1e-3
            assert max(found[name, sampler][0] for name in text.CORRECTIONS) < 0.1


PINNED = {  # correction, sampler: bias and noise for the first policy
    ("recomputed", "4 steps"): (0.215859, 4.283519),
    ("recomputed", "16 steps"): (0.859395, 3.514109),
    ("kept, clip 0.2", "16 steps"): (1.299129, 1.562417),
    ("OPSM, 0.1 nats", "16 steps"): (1.171474, 3.254769),
    ("TIS, token, 2", "16 steps"): (0.736500, 2.735114),
    ("IcePop, 0.5 to 2", "16 steps"): (1.079354, 1.848174),
    ("TIS, sequence, 2", "16 steps"): (0.938798, 3.280783),
    ("MIS, sequence, 3", "16 steps"): (1.186227, 2.761769),
    ("sequence, no bound", "16 steps"): (0.000000, 7.435324),
    ("TIS, token, 2", "temp. 0.7"): (0.340367, 5.996050),
    ("recomputed", "8 bits"): (0.015577, 4.016696),
    ("TIS, sequence, 2", "4 bits"): (0.000169, 3.625532),
}


@pytest.mark.parametrize(("name", "sampler"), PINNED)
def test_numbers_are_pinned(text, climbers, name, sampler):
    past, *rest = climbers[0]
    found = text.judge(*rest, text.samplers_of(past)[sampler], **text.CORRECTIONS[name])
    assert found[:2] == pytest.approx(PINNED[name, sampler], abs=1e-5)


def test_what_a_clip_leaves_of_wrong_answers_points_back(text, climbers):
    """Sixteen steps after they were drawn; and so does the whole update of these policies."""
    for each in climbers:
        right_half, wrong_half, whole = text.halves(*each)
        assert wrong_half < -0.1 and whole < -0.1 and right_half < 0


def test_raw_log_probs_make_every_weight_1(text, climbers):
    past, scope, right, _ = climbers[0]
    raw, advantages = text.logprobs_of_all(past[-1]), right - 0.3
    plain = text.pushes(scope, raw, advantages)
    for name in ("token, no bound", "MIS, sequence, 3", "IcePop, 0.5 to 2"):
        close(text.pushes(scope, raw, advantages, **text.CORRECTIONS[name]), plain, name)


def test_the_useful_share_is_that_of_the_sum(text):
    """Of two tokens, by all four outcomes; near 0 it falls as exp(-2 KL tokens)."""
    for kl in (1e-3, 1e-2):
        assert text.useful_share(kl, 50) == pytest.approx(2.718281828 ** (-2 * kl * 50), rel=0.02)
    p = 0.6
    kl = -0.5 * (torch.tensor([2 * p, 2 - 2 * p]).double().log().sum().item())
    weights = torch.tensor([2 * p, 2 - 2 * p]).double()
    square = torch.outer(weights, weights).square().sum() / 4
    assert text.useful_share(kl, 2) == pytest.approx(1 / square.item())

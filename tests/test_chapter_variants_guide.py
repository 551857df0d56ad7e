"""What the guide to variants claims, exactly: by the chapter's own functions, against the microscope."""

import math

import pytest
from chaptercode import chapter
from mathcheck import close

from nanogrpo.teach.exact import Microscope
from nanogrpo.teach.variants_exact import estimator
from nanogrpo.variants import SHAPES, VARIANTS


@pytest.fixture(scope="module")
def text():
    return chapter("variants-guide")


def test_each_option_of_a_variant_stands_on_one_axis(text):
    axes = [option for options in text.AXES.values() for option in options]
    own = {option for shape in SHAPES.values() for option in shape}
    assert len(axes) == len(set(axes)) and not own & set(axes)
    assert {option for options in VARIANTS.values() for option in options} <= set(axes)


def test_usual_variants_differ_from_the_default_on_one_to_three_axes(text):
    changed = [sum(bool(text.on_axis(name, axis)) for axis in text.AXES) for name in VARIANTS]
    assert min(changed) == 1 and max(changed) == 3


FRESH = (
    "grpo",
    "gspo",
    "sapo",
    "gmpo",
    "dapo",
    "cispo",
    "vespo",
    "dppo_tv",
    "dr_grpo",
    "rloo",
    "maxrl",
    "opo",
)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_on_fresh_samples_the_average_the_baseline_and_the_scale_are_all_that_differs(text, seed):
    assert text.families(FRESH, text.tiny(seed)) == [
        ["grpo", "gspo", "sapo", "gmpo"],
        ["dapo", "cispo", "vespo", "dppo_tv"],
        ["dr_grpo", "rloo"],
        ["maxrl"],
        ["opo"],
    ]


@pytest.mark.parametrize("seed", [0, 1])
def test_with_another_sampler_what_is_made_of_the_ratio_counts(text, seed):
    names = ("grpo", "gspo", "sapo", "gmpo", "cispo", "vespo", "dr_grpo", "rloo")
    found = text.families(names, text.tiny(seed), text.tiny(seed, noise=0.3))
    assert found == [["grpo"], ["gspo"], ["sapo"], ["gmpo"], ["cispo"], ["vespo"], ["dr_grpo", "rloo"]]


@pytest.mark.parametrize("size", [2, 3, 8, 64])
def test_what_a_prompt_weighs_in_closed_form(text, size):
    for p in (0.05, 0.3, 0.9):
        assert text.pull(p, "none", "none", size) == pytest.approx(1)
        assert text.pull(p, "leave_one_out", "none", size) == pytest.approx(1)
        assert text.pull(p, "group", "none", size) == pytest.approx((size - 1) / size)
        maxrl = sum((1 - p) ** j for j in range(size - 1))
        assert text.pull(p, "group", "mean", size) == pytest.approx(maxrl)


@pytest.mark.parametrize("how", [("none", "none"), ("group", "none"), ("group", "group"), ("group", "mean")])
def test_what_a_prompt_weighs_is_the_mean_update_of_the_trainer_s_loss(text, how):
    policy = text.tiny()
    scope = Microscope(policy, [text.PROMPT], text.T)
    right = text.right_of(scope)
    options = dict(zip(("baseline", "scale_rewards"), how, strict=True)) | {"aggregation": "sequence_sum"}
    found = scope.expect(estimator(options, scope, policy, 3), right, 3)
    p = scope.objective(right)
    close(-found.gradient, text.pull(p.item(), *how, 3) * scope.gradient(p), f"{how} weighs otherwise", 1e-10)


def test_scales_lift_hard_prompts_as_the_chapter_says(text):
    """Eight answers, one right in twenty: about 6 for the mean, above 2 for the deviation."""
    assert text.pull(0.05, "group", "mean") == pytest.approx(6.03, abs=5e-3)
    assert 2 < text.pull(0.05, "group", "group") < 3
    assert text.pull(0.05, "group", "group") == pytest.approx(text.pull(0.95, "group", "group"))
    assert math.isclose(text.pull(0.05, "group", "mean", 2), 1)


@pytest.fixture(scope="module")
def again(text):
    names = ("reinforce", "grpo", "gspo", "cispo", "sapo")
    return {name: [text.second_pass(name, *how) for how in text.WORLDS.values()] for name in names}


@pytest.mark.slow
def test_the_second_pass_leaves_next_to_nothing_of_gspo_and_much_of_what_is_never_cut(again):
    left = {name: [share for share, _ in found] for name, found in again.items()}
    assert max(left["gspo"]) < 0.05 and max(left["grpo"]) < 0.15
    assert min(left["cispo"]) > 0.3 and min(left["sapo"]) > 0.3


@pytest.mark.slow
def test_its_direction_is_kept_by_what_is_never_cut_and_is_backward_for_reinforce_in_three_worlds(again):
    side = {name: [cosine for _, cosine in found] for name, found in again.items()}
    assert min(side["cispo"] + side["sapo"]) > 0
    assert sum(cosine < -0.1 for cosine in side["reinforce"]) == 3
    assert min(side["grpo"]) < -0.1 < 0.1 < max(side["grpo"])


def test_a_step_of_no_length_leaves_the_second_pass_as_the_first(text):
    left, cosine = text.second_pass("dr_grpo", 0, False, length=0.0)
    assert left == pytest.approx(1, abs=1e-9) and cosine == pytest.approx(1, abs=1e-9)

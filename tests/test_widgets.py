"""The difficulty explorer: its script computes what the package does, and its controls turn the figure."""

import math
import random
import sys
from pathlib import Path

import pytest
import torch
from widgetcheck import PHONE, WIDE, call, close, code_of, mount, mount_state, numbers, stored_state

from nanogrpo.advantages import group_advantages, leave_one_out
from nanogrpo.errors import GroupSizeError, OptionError
from nanogrpo.show.widgets import script
from nanogrpo.show.widgets.difficulty import (
    SCALINGS,
    DifficultyExplorer,
    dead_group_probability,
    difficulty_weight,
)

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "book" / "_ext"))


def random_prompts(count: int) -> list[tuple]:
    draw = random.Random(0)
    return [(draw.random(), draw.randint(2, 64), draw.choice(SCALINGS), draw.random()) for _ in range(count)]


LIMITS = [
    (p, G, how, q) for p in (0.0, 0.5, 1.0) for G in (2, 64) for how in SCALINGS for q in (0.0, 0.3, 1.0)
]


@pytest.mark.parametrize("rows", [random_prompts(120), LIMITS], ids=["random", "limits"])
def test_the_script_computes_what_the_package_computes(browser, rows):
    for row, got in zip(rows, call(browser, "difficulty", "weight", rows), strict=True):
        assert math.isclose(got, difficulty_weight(*row), rel_tol=1e-12), row
    pairs = [row[:2] for row in rows]
    for pair, got in zip(pairs, call(browser, "difficulty", "deadProbability", pairs), strict=True):
        assert math.isclose(got, dead_group_probability(*pair), rel_tol=1e-12), pair


SUMMED = {
    "leave_one_out": leave_one_out,
    "none": lambda rewards: group_advantages(rewards, "none"),
    "group": lambda rewards: group_advantages(rewards, eps=0.0),
    "group_bessel": lambda rewards: group_advantages(rewards, eps=0.0, correction=1),
}


@pytest.mark.parametrize("G", [2, 3, 8])
@pytest.mark.parametrize("scaling", SUMMED)
def test_2B_14_the_weight_is_that_of_the_advantages_of_the_trainer(scaling, G):
    """E[g] = w grad p: w is the mean advantage of right answers less that of wrong ones, over G draws."""
    p, found = 0.2, 0.0
    for k in range(G + 1):
        rewards = torch.tensor([[1.0] * k + [0.0] * (G - k)], dtype=torch.float64)
        chance = math.comb(G, k) * p**k * (1 - p) ** (G - k)
        # The score of an answer is grad p / p if it is right, and -grad p / (1-p) if not.
        score = torch.where(rewards > 0, 1 / p, -1 / (1 - p))
        found += chance * (SUMMED[scaling](rewards) * score).mean().item()
    assert math.isclose(found, difficulty_weight(p, G, scaling), rel_tol=1e-12), "not w(p, G)"


def test_2B_14_the_weight_of_the_batch_is_that_of_a_batch_much_larger_than_the_group():
    q, G, many = 0.2, 4, 4000
    generator = torch.Generator().manual_seed(0)
    batch = (torch.rand(many, G, generator=generator, dtype=torch.float64) < q).double()
    ratio = group_advantages(batch, "batch", eps=0.0) / group_advantages(batch, "none")
    expected = difficulty_weight(0.7, G, "batch", q) / difficulty_weight(0.7, G, "none")
    assert torch.allclose(ratio[ratio.isfinite()], torch.tensor(expected, dtype=torch.float64), rtol=0.02)


def test_2B_17_worked_numbers_of_the_dead_group():
    found = [1 - dead_group_probability(0.05, G) for G in (2, 8, 16, 64)]
    assert close(found, [0.0950, 0.3366, 0.5599, 0.9625], 1e-4)


def test_a_probability_that_is_none_is_refused():
    for bad in (-0.1, 1.1, math.nan):
        for arguments in ((bad, 8), (0.5, 8, "batch", bad)):
            with pytest.raises(OptionError, match="from 0 to 1"):
                difficulty_weight(*arguments)
        with pytest.raises(OptionError, match="from 0 to 1"):
            dead_group_probability(bad, 8)
    with pytest.raises(OptionError, match="scaling"):
        difficulty_weight(0.5, 8, "std")
    with pytest.raises(GroupSizeError, match="at least 2"):
        difficulty_weight(0.5, 1)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ((0.0, 8, "group", 0.5), "every answer is wrong, so every group is dead"),
        ((1.0, 64, "none", 0.5), "every answer is right, so every group is dead"),
        ((0.5, 8, "batch", 0.0), "all rewards of the batch are equal"),
        ((math.nan, 8, "group", 0.5), "p must be a number from 0 to 1"),
        ((1.5, 8, "group", 0.5), "p must be a number from 0 to 1"),
        ((0.5, 8, "batch", math.nan), "p must be a number from 0 to 1"),
        ((0.5, 1, "group", 0.5), "G must be a whole number of at least 2"),
        ((0.5, 2, "group", 0.5), "weight w = 1.000. A group is dead with probability 50.0 %"),
    ],
)
def test_the_readout_says_what_is_the_case(browser, row, words):
    assert words in call(browser, "difficulty", "readout", [row])[0]


def expected_readout(p, G, scaling, batch_p=0.5):
    """p, G, the weight and the percentage, to the digits that are shown."""
    weight, dead = difficulty_weight(p, G, scaling, batch_p), dead_group_probability(p, G)
    return [p, G, round(weight, 3), round(100 * dead, 1)]


@pytest.mark.slow
def test_a_control_that_is_moved_changes_drawing_and_readout_to_what_python_computes(browser):
    with browser.new_context(viewport=WIDE) as context:
        page = mount(context, [DifficultyExplorer(p=0.1, group_size=8)])
        words, drawing = page.locator("output"), page.locator(".ng-panels")
        seen = []

        def check(*arguments):
            assert close(numbers(words.inner_text()), expected_readout(*arguments), 1e-9), words.inner_text()
            seen.append(drawing.inner_html())
            assert len(set(seen)) == len(seen), "the drawing did not change"

        check(0.1, 8, "group")
        page.get_by_label("p, probability").fill("0.25")
        check(0.25, 8, "group")
        page.get_by_label("G, answers").focus()
        page.keyboard.press("End")
        check(0.25, 64, "group")
        page.keyboard.press("Home")
        check(0.25, 2, "group")
        assert page.get_by_label("share of right answers").is_hidden()
        page.get_by_label("Scaling").select_option("batch")
        check(0.25, 2, "batch")
        page.get_by_label("share of right answers").fill("0.1")
        check(0.25, 2, "batch", 0.1)
        page.get_by_label("p, probability").fill("0")
        assert "every group is dead" in words.inner_text()
        assert page.trouble == []


@pytest.mark.slow
def test_two_explorers_on_one_page_keep_their_own_values(browser):
    with browser.new_context(viewport=WIDE) as context:
        page = mount(context, [DifficultyExplorer(), DifficultyExplorer(p=0.5)])
        first, second = page.get_by_label("p, probability").all()
        first.fill("0.3")
        assert (first.input_value(), second.input_value()) == ("0.3", "0.5"), "two widgets share a model"
        assert [numbers(text)[0] for text in page.locator("output").all_inner_texts()] == [0.3, 0.5]


@pytest.mark.slow
def test_a_widget_that_does_not_start_is_told_at_once(browser):
    state = stored_state(DifficultyExplorer())
    state["_esm"] += "\nthrow new Error('planted');"
    with browser.new_context(viewport=WIDE) as context:
        with pytest.raises(AssertionError, match="not drawn: .*planted"):
            mount_state(context, [state])


@pytest.mark.slow
def test_the_explorer_fits_a_phone(browser):
    with browser.new_context(viewport=PHONE) as context:
        page = mount(context, [DifficultyExplorer()])
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


def test_the_chapters_hold_the_scripts_of_the_package():
    import nbformat
    from clean import widget_state
    from execute import chapters

    for path in chapters(ROOT):
        for model in widget_state(nbformat.read(path, as_version=4)).values():
            if "_esm" in model["state"]:
                name = model["state"]["_anywidget_id"].split(".")[-2]
                assert code_of(model["state"]["_esm"]) == code_of(script(name)), (
                    f"{path.name} has an old {name}.js; run it again"
                )


def test_only_code_makes_a_script_another():
    code = script("difficulty")
    talk = "// More words.\n" + code.replace(";\n", ";  // and here\n\n", 1)
    assert talk != code and code_of(talk) == code_of(code)
    assert code_of(code.replace("Math.sqrt", "Math.cbrt", 1)) != code_of(code)
    address = 'const at = "https://www.w3.org/2000/svg";'
    assert code_of(address) == address

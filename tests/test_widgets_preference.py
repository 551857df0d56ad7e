"""The explorer of preferences: the script computes what the package does, and controls turn the figure."""

import math
import random

import pytest
import torch
from widgetcheck import PHONE, WIDE, call, mount, numbers

from nanogrpo.errors import OptionError
from nanogrpo.losses import bradley_terry_loss
from nanogrpo.reward_model import prefer
from nanogrpo.show.widgets.preference import PreferenceExplorer, explored_pair


def random_cases(count: int) -> list[tuple]:
    draw = random.Random(0)
    return [(draw.gauss(0, 4), 10 ** draw.uniform(-1.5, 1.5), draw.gauss(0, 5)) for _ in range(count)]


EDGES = [(d, tau, m) for d in (0.0, -3.0, 1e9) for tau in (1e-6, 1.0, 1e9) for m in (0.0, 40.0, -800.0, 1e12)]


@pytest.mark.parametrize("cases", [random_cases(150), EDGES], ids=["random", "edge"])
def test_the_script_computes_what_the_package_does(browser, cases):
    for case, got in zip(cases, call(browser, "preference", "pair", cases), strict=True):
        assert got == pytest.approx(explored_pair(*case), rel=1e-9, abs=1e-12), case


def test_the_loss_is_the_mean_of_the_losses_of_labels_that_were_drawn():
    points, temperature, margin, n = 1.5, 2.0, 0.7, 200_000
    a = torch.full((n,), points, dtype=torch.float64)
    labels = prefer(a, torch.zeros_like(a), temperature, torch.Generator().manual_seed(0))
    m = torch.tensor(margin, dtype=torch.float64)
    signed = torch.where(labels, m, -m)
    loss = bradley_terry_loss(signed, torch.zeros_like(signed))
    found = explored_pair(points, temperature, margin)
    error = loss.std().item() / math.sqrt(n)
    assert abs(loss.mean().item() - found["loss"]) < 4 * error
    right = ((margin > 0) == labels).double().mean().item()
    assert right == pytest.approx(found["ceiling"], abs=4 * 0.5 / math.sqrt(n))


@pytest.mark.parametrize("case", random_cases(20))
def test_the_loss_is_least_at_the_log_odds_of_the_labels(case):
    points, temperature, _ = case
    best = explored_pair(*case)["best"]
    least = explored_pair(points, temperature, best)
    assert least["slope"] == pytest.approx(0, abs=1e-12)
    assert least["believed"] == pytest.approx(least["chosen"])
    for shift in (-0.5, 0.5):
        assert explored_pair(points, temperature, best + shift)["loss"] >= least["loss"] - 1e-12


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ((math.nan, 1, 0), "points"),
        ((math.inf, 1, 0), "points"),
        ((1, math.nan, 0), "temperature"),
        ((1, 0, 0), "temperature"),
        ((1, -1, 0), "temperature"),
        ((1, 1, math.nan), "margin"),
    ],
)
def test_what_is_no_number_is_named_and_not_computed_with(browser, case, said):
    with pytest.raises(OptionError, match=said):
        explored_pair(*case)
    assert f"{said} must be a number" in call(browser, "preference", "readout", [case])[0]


def expected_readout(points, temperature, margin):
    found = explored_pair(points, temperature, margin)
    shown = [100 * found["chosen"], 100 * found["ceiling"], margin, 100 * found["believed"]]
    shown += [found["loss_a"], found["loss_b"], found["loss"], found["slope"]]
    return shown + ([found["best"]] if abs(found["slope"]) >= 5e-4 else [])


def same(text: str, case: tuple) -> bool:
    got, expected = numbers(text), expected_readout(*case)
    return len(got) == len(expected) and all(
        abs(a - b) <= max(0.0501 if i in (0, 1, 3) else 0.000501, 0.006 * abs(b) if abs(b) > 9e4 else 0)
        for i, (a, b) in enumerate(zip(got, expected, strict=True))
    )


def test_the_readout_says_what_python_computes(browser):
    cases = random_cases(100)
    for case, text in zip(cases, call(browser, "preference", "readout", cases), strict=True):
        assert same(text, case), (case, text)


def test_the_readout_says_what_is_the_case_at_the_limits(browser):
    equal, huge, settled = call(browser, "preference", "readout", [(0, 1, 2), (1e300, 1e-300, 3), (2, 1, 2)])
    assert "coin toss" in equal and "lowers it, toward 0.000" in equal
    assert "100.0 % of the labels" in huge and "beyond all numbers" in huge
    assert "training leaves it where it is" in settled
    assert not any(
        word in text for text in (equal, huge, settled) for word in ("NaN", "Infinity", "undefined")
    )


@pytest.mark.slow
def test_a_control_that_is_moved_changes_drawing_and_readout_to_what_python_computes(browser):
    with browser.new_context(viewport=WIDE) as context:
        page = mount(context, [PreferenceExplorer()])
        words, drawing, seen = page.locator("output"), page.locator(".ng-panels"), []

        def check(*case):
            assert same(words.inner_text(), case), words.inner_text()
            seen.append(drawing.inner_html())
            assert len(set(seen)) == len(seen), "the drawing did not change"

        check(2, 1, 0)
        page.get_by_role("slider").fill("3.5")
        check(2, 1, 3.5)
        page.get_by_label("judge: points").fill("-4")
        check(-4, 1, 3.5)
        page.get_by_label("temperature").fill("2.5")
        check(-4, 2.5, 3.5)
        page.get_by_role("slider").press("Home")
        check(-4, 2.5, -8)
        page.get_by_role("button", name="sure and wrong").click()
        check(2, 1, -6)
        page.get_by_label("temperature").fill("")
        assert "temperature must be a number" in words.inner_text()
        page.get_by_label("temperature").fill("1e12")
        assert "50.0 % of the labels" in words.inner_text()
        assert page.trouble == []


@pytest.mark.slow
def test_the_explorer_fits_a_phone_and_the_keyboard_reaches_every_control(browser):
    with browser.new_context(viewport=PHONE) as context:
        page = mount(context, [PreferenceExplorer()])
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        for name in ("INPUT", "INPUT", "INPUT", "BUTTON"):
            page.keyboard.press("Tab")
            assert page.evaluate("document.activeElement.tagName") == name
        assert page.trouble == []

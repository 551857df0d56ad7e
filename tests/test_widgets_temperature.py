"""The temperature explorer: its script chooses as the package does, and its controls turn the figure."""

import math
import random
import re

import pytest
import torch
from widgetcheck import PHONE, WIDE, call, mount

from nanogrpo.errors import OptionError
from nanogrpo.rollout import sample_token
from nanogrpo.show.widgets.temperature import TemperatureExplorer, explored_choice

LABELS = ["pad", "eos", "a", "b", "c", "space"]
CONTEXTS = {"one": [-6.0, -2.0, 1.0, 2.5, 0.0, 2.0], "two": [0.0, 3.0, 0.5, -1.0, -8.0, 1.5]}


def random_cases(count: int) -> list[tuple]:
    draw = random.Random(0)
    sizes = [2 + i % 66 for i in range(count)]
    spread = [10 ** draw.uniform(-1, 1) for _ in sizes]
    logits = [[draw.gauss(0, s) for _ in range(n)] for n, s in zip(sizes, spread, strict=True)]
    return [(z, draw.uniform(0.05, 2), 1 - draw.random()) for z in logits]


EDGES = [(z, tau, u) for z in ([1.0, 1.0], [0.0, 2.0, 2.0, -1.0]) for tau in (0.0, 1.0) for u in (0.001, 1.0)]


@pytest.mark.parametrize("cases", [random_cases(120), EDGES], ids=["random", "edge"])
def test_the_script_chooses_as_the_package_does(browser, cases):
    for case, got in zip(cases, call(browser, "temperature", "pick", cases), strict=True):
        expected = explored_choice(*case)
        assert got["chosen"] == expected["chosen"]
        assert got["entropy"] == pytest.approx(expected["entropy"], rel=1e-9, abs=1e-12)
        assert got["probabilities"] == pytest.approx(expected["probabilities"], rel=1e-9, abs=1e-15)


def test_uniform_numbers_choose_each_token_as_often_as_its_probability_says():
    logits, n = CONTEXTS["one"], 2000
    chosen = [explored_choice(logits, 0.7, (i + 0.5) / n)["chosen"] for i in range(n)]
    shares = [chosen.count(i) / n for i in range(len(logits))]
    assert shares == pytest.approx(explored_choice(logits, 0.7, 1.0)["probabilities"], abs=1 / n)


def test_the_choice_is_that_of_the_rollout():
    z = torch.tensor(CONTEXTS["two"], dtype=torch.float64)
    for u in (0.1, 0.5, 0.9):
        token, logprob = sample_token(z, torch.tensor(u, dtype=torch.float64), 1.3)
        found = explored_choice(z.tolist(), 1.3, u)
        assert found["chosen"] == token and found["probabilities"][token] == pytest.approx(logprob.exp())


def test_entropy_rises_with_the_temperature_from_zero_toward_that_of_equal_probabilities():
    for logits in CONTEXTS.values():
        path = [explored_choice(logits, tau, 1.0)["entropy"] for tau in (0, 0.2, 0.5, 1, 2, 10, 1e6)]
        assert path == sorted(path) and path[0] == 0 and path[-1] == pytest.approx(math.log(len(logits)))


@pytest.mark.parametrize(("tau", "u"), [(-0.1, 0.5), (math.nan, 0.5), (math.inf, 0.5), (1, 0), (1, 1.1)])
def test_what_is_no_temperature_or_no_uniform_number_is_refused(browser, tau, u):
    with pytest.raises(OptionError, match=str(tau) if u == 0.5 else str(u)):
        explored_choice(CONTEXTS["one"], tau, u)
    text = call(browser, "temperature", "readout", [["one", LABELS, CONTEXTS["one"], tau, u]])[0]
    assert "must be" in text and not re.search("NaN|undefined", text)


def expected_readout(context, tau, u):
    found = explored_choice(CONTEXTS[context], tau, u)
    p = found["probabilities"]
    best, chosen = p.index(max(p)), found["chosen"]
    how = f"u = {u:.3f} chooses" if tau else "Greedy, whatever u: it chooses"
    best, chosen = (f"{LABELS[i]}, which has {p[i]:.3f}" for i in (best, chosen))
    many = f"{math.exp(found['entropy']):.1f} equally probable tokens"
    return (
        f"After {context}, at temperature {tau:.2f}: most probable is {best}.\n"
        f"Entropy {found['entropy']:.3f} nats, that of {many}.\n{how} {chosen}."
    )


def test_the_readout_says_what_python_computes(browser):
    cases = [(name, tau, u) for name in CONTEXTS for tau in (0.0, 0.5, 1.0, 2.0) for u in (0.2, 0.93)]
    rows = [(name, LABELS, CONTEXTS[name], tau, u) for name, tau, u in cases]
    found = call(browser, "temperature", "readout", rows)
    assert found == [expected_readout(*case) for case in cases]


def explorer():
    return TemperatureExplorer(labels=LABELS, contexts=CONTEXTS, context="one")


@pytest.mark.slow
def test_a_control_that_is_moved_changes_drawing_and_readout_to_what_python_computes(browser):
    with browser.new_context(viewport=WIDE) as context:
        page = mount(context, [explorer()])
        words, drawing = page.locator("output"), page.locator(".ng-panels")
        seen = []

        def check(*arguments):
            assert words.inner_text() == expected_readout(*arguments)
            found = explored_choice(CONTEXTS[arguments[0]], *arguments[1:])
            bars = drawing.locator("rect").evaluate_all("all => all.map(e => +e.getAttribute('height'))")
            shares = [b / sum(bars) for b in bars if b > 1e-9]
            assert sorted(shares) == pytest.approx(sorted(p for p in found["probabilities"] if p > 1e-9))
            orange = drawing.locator("rect[fill*=other]").evaluate_all(
                "all => all.map(e => +e.getAttribute('height'))"
            )
            assert max(orange) / sum(bars) == pytest.approx(found["probabilities"][found["chosen"]])
            seen.append(drawing.inner_html())
            assert len(set(seen)) == len(seen), "the drawing did not change"

        check("one", 1.0, 0.5)
        page.get_by_role("slider", name="temperature").fill("0.3")
        check("one", 0.3, 0.5)
        page.get_by_label("u, the uniform number").fill("0.97")
        check("one", 0.3, 0.97)
        page.get_by_label("after the text").select_option("two")
        check("two", 0.3, 0.97)
        page.get_by_role("slider", name="temperature").press("Home")
        check("two", 0.0, 0.97)
        page.get_by_role("slider", name="temperature").press("End")
        check("two", 2.0, 0.97)
        page.get_by_role("button", name="draw another u").click()
        drawn = float(re.search(r"u = ([\d.]+) chooses", words.inner_text())[1])
        assert drawn != 0.97 and 0 < drawn <= 1
        assert page.trouble == []


@pytest.mark.slow
def test_the_explorer_fits_a_phone_and_the_keyboard_reaches_every_control(browser):
    with browser.new_context(viewport=PHONE) as context:
        page = mount(context, [explorer()])
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        for name in ("SELECT", "INPUT", "INPUT", "BUTTON"):
            page.keyboard.press("Tab")
            assert page.evaluate("document.activeElement.tagName") == name
        assert page.trouble == []

"""The explorer of a token's weight: script and package agree, and the package's loss is what is drawn."""

import math
import random

import pytest
from widgetcheck import PHONE, WIDE, call, close, mount, numbers

from nanogrpo.errors import OptionError
from nanogrpo.show.widgets.weight import ELSEWHERE, WeightExplorer, explored_variants, explored_weight
from nanogrpo.variants import VARIANTS

ROWS = {row["members"][0]: row for row in explored_variants()}
TITLE = "Weight of a token under two variants"


def random_places(count: int) -> list[tuple]:
    """Ratio, sign, old probability, tokens, ratio of the others; near 1 for the tightest bounds, too."""
    draw, rows = random.Random(3), []
    while len(rows) < count:
        old = draw.choice((0.001, 0.3, draw.random()))
        near = draw.random() < 0.3
        ratio = 1 + draw.uniform(-4e-3, 4e-3) if near else draw.uniform(0.01, 30 if old < 0.01 else 3)
        others = draw.choice((1.0, draw.uniform(0.5, 1.5)))
        row = (ratio, draw.choice((1, -1)), old, draw.randint(1, 16), 1.0 if near else others)
        if ratio * old <= 1 and others * old <= 1:
            rows.append(row)
    return rows


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_the_weights_of_the_script_are_those_of_the_package(browser, name):
    places = random_places(80)
    found = call(browser, "weight", "tokenWeight", [(ROWS[name], *place) for place in places])
    expected = [explored_weight(name, *place) for place in places]
    for place, got, weight in zip(places, found, expected, strict=True):
        tolerance = 1e-6 if name == "sapo" else 1e-9  # the package holds the temperature 1.05 in float32
        assert close([got], [weight], tolerance), (name, place)
    assert len({round(weight, 6) for weight in expected}) > 10, "the places tell nothing of this variant"


def test_rows_hold_every_variant_whose_weight_is_a_matter_of_ratios_once():
    listed = [member for row in explored_variants() for member in row["members"]]
    elsewhere = {name for name, options in VARIANTS.items() if any(o in options for o in ELSEWHERE)}
    assert sorted(listed) == sorted(set(VARIANTS) - elsewhere)
    assert elsewhere == {"top_entropy", "clip_cov", "kl_cov", "adaptive_entropy", "opsm", "unbiased_kl"}


@pytest.mark.slow
@pytest.mark.parametrize("name", [member for row in explored_variants() for member in row["members"]])
def test_members_of_a_row_have_one_weight_and_it_is_1_on_policy(name):
    (row,) = [row for row in explored_variants() if name in row["members"]]
    for sign in (1, -1):
        assert explored_weight(name, 1.0, sign) == pytest.approx(sign, abs=1e-12)
        for ratio in (0.5, 0.95, 1.1, 2.5):
            first = explored_weight(row["members"][0], ratio, sign, tokens=3)
            assert explored_weight(name, ratio, sign, tokens=3) == pytest.approx(first, abs=1e-12)


def test_worked_numbers():
    """By hand: the eighth root of 1.5; 4 s (1 - s) 1.5 at s = sigmoid(0.5); 1.5**2 exp(-1.5); a cap of 3."""
    gate = 1 / (1 + math.exp(-0.5))
    hand = {
        ("grpo", 1.5, 1): 0.0, ("grpo", 1.5, -1): -1.5, ("grpo", 0.5, 1): 0.5, ("grpo", 0.5, -1): 0.0,
        ("dapo", 1.25, 1): 1.25, ("dapo", 1.3, 1): 0.0, ("gspo", 1.5, -1): -(1.5**0.125),
        ("gspo", 1.01, 1): 0.0, ("cispo", 0.1, -1): -0.1, ("sapo", 1.5, 1): 6 * gate * (1 - gate),
        ("gmpo", 1.4, 1): 1.4**0.125, ("gmpo", 1.5, 1): 0.0, ("vespo", 1.5, 1): 1.5**2 * math.exp(-1.5),
        ("dppo_tv", 1.5, 1): 1.5, ("dppo_tv", 1.7, 1): 0.0, ("dual_clip", 3.1, -1): 0.0,
    }  # fmt: skip
    for (name, ratio, sign), weight in hand.items():
        assert explored_weight(name, ratio, sign) == pytest.approx(weight, abs=1e-12), name
    assert explored_weight("cispo", 8.0, 1, 0.1) == pytest.approx(5.0)
    assert explored_weight("dppo_tv", 25.0, 1, 0.001) == pytest.approx(20.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("row", "words"),
    [
        ((math.nan, 0.3, 8, 1.0), "The ratio is NaN"),
        ((0.0, 0.3, 8, 1.0), "The ratio is 0"),
        ((2.0, 0.0, 8, 1.0), "The old probability is 0"),
        ((2.0, 0.3, 0, 1.0), "The completion has 0 tokens"),
        ((2.0, 0.3, 2.5, 1.0), "The completion has 2.5 tokens"),
        ((2.0, 0.3, 8, 0.0), "The ratio of the other tokens is 0"),
        ((2.0, 0.6, 8, 1.0), "would make the probability 1.20"),
    ],
)
def test_what_no_token_can_be_is_named(browser, row, words):
    assert words in call(browser, "weight", "readout", [(list(ROWS.values()), "grpo", "gspo", *row)])[0]
    ratio, old, tokens, others = row
    with pytest.raises((OptionError, TypeError)):
        explored_weight("grpo", ratio, 1, old, tokens, others)


def test_names_that_are_not_drawn_and_signs_that_are_none_are_refused():
    for arguments in (("kl_cov", 1.0, 1), ("ppo", 1.0, 1), ("grpo", 1.0, 0)):
        with pytest.raises(OptionError):
            explored_weight(*arguments)


def said(root) -> list[list[float]]:
    """The two weights of each variant, as the read-out has them."""
    lines = root.locator("output").inner_text().splitlines()[1:]
    return [numbers(line.split("A > 0")[1].replace("A < 0", " "))[:2] for line in lines]


def computed(names, ratio, *place) -> list[list[float]]:
    return [[round(explored_weight(n, ratio, s, *place), 3) + 0.0 for s in (1, -1)] for n in names]


@pytest.mark.slow
def test_two_variants_are_chosen_and_turned_by_hand_and_by_keyboard(browser):
    with browser.new_context(viewport=WIDE) as context:
        page = mount(context, [WeightExplorer()])
        root = page.get_by_role("group", name=TITLE, exact=True)
        seen = []

        def check(names, *place):
            for got, expected in zip(said(root), computed(names, *place), strict=True):
                assert close(got, expected, 1.1e-3), (names, place)
            seen.append(root.locator(".ng-panels").inner_html())
            assert len(set(seen)) == len(seen), "the drawing did not change"

        check(("grpo", "cispo"), 1.5)
        root.get_by_label("variant on the left").select_option("gspo")
        check(("gspo", "cispo"), 1.5)
        root.get_by_label("variant on the right").select_option("vespo")
        check(("gspo", "vespo"), 1.5)
        root.get_by_label("ratio of its other tokens").fill("0.8")
        check(("gspo", "vespo"), 1.5, 0.3, 8, 0.8)
        root.get_by_label("tokens of the completion").focus()
        page.keyboard.press("Home")
        check(("gspo", "vespo"), 1.5, 0.3, 1, 0.8)
        root.get_by_label("variant on the left").select_option("dppo_tv")
        root.get_by_label("its probability when sampled").fill("0.5")
        check(("dppo_tv", "vespo"), 1.5, 0.5, 1, 0.8)
        root.get_by_label("ratio of the token", exact=False).first.focus()
        page.keyboard.press("End")
        assert "would make the probability 1.50" in root.locator("output").inner_text()
        assert "ng-stale" in root.locator(".ng-panels").get_attribute("class")
        root.get_by_label("its probability when sampled").fill("0.2")
        check(("dppo_tv", "vespo"), 3.0, 0.2, 1, 0.8)
        assert page.trouble == []


@pytest.mark.slow
def test_it_fits_a_phone_answers_a_finger_and_every_control_has_a_name(browser):
    with browser.new_context(viewport=PHONE, has_touch=True, is_mobile=True) as context:
        page = mount(context, [WeightExplorer(left="dppo_tv", right="gspo")])
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        root = page.get_by_role("group", name=TITLE, exact=True)
        assert root.locator("input, select").count() == 6
        for control in root.locator("input, select").all():
            assert control.evaluate("e => e.labels[0].textContent.trim().length > 0")
        before = said(root)
        box = root.get_by_label("ratio of the token").first.bounding_box()
        page.touchscreen.tap(box["x"] + 0.25 * box["width"], box["y"] + box["height"] / 2)
        assert said(root) != before
        beyond = """() => [...document.querySelectorAll("svg text")].filter(text => {
          const [own, svg] = [text, text.ownerSVGElement].map(e => e.getBoundingClientRect());
          return own.left < svg.left - 1 || own.right > svg.right + 1; }).map(text => text.textContent)"""
        assert page.evaluate(beyond) == [], "words that the drawing cuts off"
        assert page.trouble == []


@pytest.mark.slow
def test_its_lines_follow_the_theme(browser):
    with browser.new_context(viewport=WIDE) as context:
        page = mount(context, [WeightExplorer()])
        color = "() => getComputedStyle(document.querySelector('path[stroke=\"var(--ng-line)\"]')).stroke"
        light = page.evaluate(color)
        page.evaluate("() => { document.documentElement.dataset.theme = 'dark'; }")
        assert page.evaluate(color) != light

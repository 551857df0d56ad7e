"""The explorers of advantages, of the clip and of token weights compute what the package does."""

import random
import re

import pytest
import torch
from widgetcheck import PHONE, WIDE, call, close, mount, numbers

from nanogrpo.errors import MaskError, NonFiniteError, OptionError
from nanogrpo.losses import AGGREGATIONS, Denominators, grpo_loss
from nanogrpo.show.widgets import advantage, clip, length
from nanogrpo.show.widgets.advantage import AdvantageExplorer, explored_advantages
from nanogrpo.show.widgets.clip import ClipExplorer, explored_surrogate
from nanogrpo.show.widgets.length import LengthExplorer, token_weights

EPS = (1e-8, 1e-6, 1e-4)


def random_groups(count: int) -> list[tuple]:
    """Groups of every kind: right or wrong, graded, nearly equal, equal; the ends of G come first."""
    draw = random.Random(0)
    rows = []
    for i in range(count):
        size = (2, 16)[i % 2] if i < 8 else draw.randint(2, 16)
        value = draw.uniform(-2, 2)
        rewards = {
            0: [float(draw.random() < 0.3) for _ in range(size)],
            1: [draw.uniform(-3, 3) for _ in range(size)],
            2: [value + draw.uniform(-1e-6, 1e-6) for _ in range(size)],
            3: [value] * size,
        }[draw.randrange(4)]
        rows.append((rewards, draw.randint(0, 16), draw.choice(EPS)))
    return rows


@pytest.mark.parametrize("scaling", advantage.SCALINGS)
def test_the_advantages_of_the_script_are_those_of_the_package(browser, scaling):
    rows = [(rewards, right, scaling, eps) for rewards, right, eps in random_groups(120)]
    for row, got in zip(rows, call(browser, "advantage", "advantages", rows), strict=True):
        expected = explored_advantages(*row)
        # Of nearly equal rewards only the difference counts, and that has lost digits before either begins.
        assert close(got, expected, 1e-7), row
        if len(set(row[0])) == 1 and scaling not in ("whole_batch", "raw"):
            assert got == expected == [0.0] * len(row[0])


def test_the_choices_of_the_advantage_explorer_are_the_functions_that_their_names_say():
    from nanogrpo.advantages import batch_advantages, group_advantages, leave_one_out

    own, second = [0.5, 2.0, -1.0], [1.0, 0.0, 0.0]
    batch = torch.tensor([own, second], dtype=torch.float64)
    expected = {
        "group": group_advantages(batch, eps=1e-6),
        "group_bessel": group_advantages(batch, eps=1e-6, correction=1),
        "none": group_advantages(batch, "none"),
        "leave_one_out": leave_one_out(batch),
        "batch": group_advantages(batch, "batch", eps=1e-6),
        "whole_batch": batch_advantages(batch, eps=1e-6),
        "raw": batch,
    }
    assert set(expected) == set(advantage.SCALINGS)
    for scaling, advantages in expected.items():
        assert explored_advantages(own, 1, scaling, 1e-6) == advantages[0].tolist()


@pytest.mark.parametrize("reward", [float("nan"), float("inf"), 1e6])
def test_the_advantage_explorer_says_which_reward_is_no_reward(browser, reward):
    rows = [([0.0, reward], 1, scaling, 1e-4) for scaling in advantage.SCALINGS]
    for words in call(browser, "advantage", "readout", rows):
        assert words.startswith("Reward 2 is ") and "NaN" not in words
    if reward != 1e6:
        with pytest.raises(NonFiniteError):
            explored_advantages([0.0, reward])


@pytest.mark.parametrize("scaling", advantage.SCALINGS)
def test_the_advantage_explorer_explains_a_tied_group(browser, scaling):
    rows = [([0.1] * size, 0, scaling, 1e-8) for size in (2, 3, 16)]
    for (rewards, *rest), words in zip(rows, call(browser, "advantage", "readout", rows), strict=True):
        assert "rewards" in words and "equal" in words
        assert ("exactly 0" in words) == (explored_advantages(rewards, *rest) == [0.0] * len(rewards))
    batch_too = call(browser, "advantage", "readout", [([1.0, 1.0], 2, scaling, 1e-8)])[0]
    assert ("exactly 0" in batch_too) == (explored_advantages([1.0, 1.0], 2, scaling) == [0.0, 0.0])


def test_the_advantage_explorer_names_what_it_divides_by(browser):
    own, second = torch.tensor([0.5, 2.0, -1.0]), torch.tensor([1.0, 0.0, 0.0])
    batch = torch.cat([own, second])
    spreads = {
        "group": [own.mean(), own.std(correction=0)],
        "group_bessel": [own.mean(), own.std(correction=1)],
        "batch": [own.mean(), own.std(correction=0), batch.mean(), batch.std(correction=0)],
    }
    for scaling, expected in spreads.items():
        text = call(browser, "advantage", "readout", [(own.tolist(), 1, scaling, 1e-8)])[0]
        said = re.findall(r"(?:mean|std) (-?\d\.\d+)", text)
        assert close([float(x) for x in said], [x.item() for x in expected], 6e-4)


def random_ratios(count: int) -> list[tuple]:
    """Ratio, advantage, clip_low, clip_high, delta; among them the ends and the edges of the clip."""
    draw = random.Random(1)
    edges = [
        (ratio, sign, 0.2, 0.28, delta)
        for ratio in (0.0, 1 - 0.2, 1.0, 1 + 0.28, 4.0, 4.5)
        for sign in (1.0, -1.0, 0.0)
        for delta in (0.0, 4.0)
    ]
    return edges + [
        (
            draw.uniform(0, 5),
            draw.uniform(-3, 3),
            draw.uniform(0, 1.2),
            draw.uniform(0, 1),
            draw.choice((0.0, 2.5, 4.0)),
        )
        for _ in range(count)
    ]


def test_objective_and_gradient_of_the_script_are_those_of_the_package(browser):
    rows = random_ratios(150)
    for row, got in zip(rows, call(browser, "clip", "surrogate", rows), strict=True):
        assert close([got["objective"], got["gradient"]], list(explored_surrogate(*row)), 1e-12), row


def test_the_clip_explorer_draws_the_loss_of_the_trainer():
    """Its objective and gradient are those of `grpo_loss` for one token, up to the sign of a loss."""
    mask = torch.ones(1, 1, dtype=torch.bool)
    for ratio, amount, low, high, delta in random_ratios(100):
        if ratio == 0 or ratio in (1 - low, 1 + high, delta):
            continue  # no log-probability has ratio 0, and exp(log(edge)) may miss the edge
        logprobs = torch.tensor([[ratio]], dtype=torch.float64).log().requires_grad_()
        old, amounts = torch.zeros_like(logprobs), torch.tensor([amount], dtype=torch.float64)
        bounds = {"clip_low": low, "clip_high": high, "delta": delta or None}
        loss, _ = grpo_loss(logprobs, old, None, amounts, mask, **bounds)
        (gradient,) = torch.autograd.grad(loss, logprobs)
        expected = explored_surrogate(ratio, amount, low, high, delta)
        assert close([-loss.item(), -gradient.item()], list(expected), 1e-12)


def test_the_clip_explorer_says_of_each_ratio_whether_the_gradient_is_cut(browser):
    rows = [(r, a, low, high, d) for r, a, low, high, d in random_ratios(150) if a]
    words = call(
        browser, "clip", "verdict", [(r, 1 if a > 0 else -1, low, high, d) for r, a, low, high, d in rows]
    )
    seen = set()
    for (ratio, amount, *bounds), said in zip(rows, words, strict=True):
        _, gradient = explored_surrogate(ratio, amount, *bounds)
        seen.add(said.split(":")[0].split(" =")[0])
        if ratio:
            assert said.startswith("cut") == (gradient == 0), (ratio, amount, bounds, said)
        if "nothing bounds" in said:
            assert amount < 0 and not bounds[2] and gradient == pytest.approx(ratio * amount)
    assert {"cut by the clip", "cut by delta", "not cut", "not cut, but zero"} <= seen


@pytest.mark.parametrize(
    "row, words",
    [
        ((float("nan"), 1, 0.2, 0.2, 0), "The ratio is NaN"),
        ((-1, 1, 0.2, 0.2, 0), "The ratio is -1"),
        ((float("inf"), 1, 0.2, 0.2, 0), "The ratio is Infinity"),
        ((1, float("nan"), 0.2, 0.2, 0), "size of the advantage is NaN"),
        ((1, 1, float("nan"), 0.2, 0), "distances from 1"),
        ((1, 1, 0.2, 1.0, 1.5), "must be above 1 + clip_high = 2.00"),
        ((1, 0, 0.2, 0.2, 0), "rewards are all equal"),
        ((0, 1, 0.2, 0.2, 0), "not cut, but zero"),
    ],
)
def test_the_clip_explorer_holds_at_its_limits(browser, row, words):
    assert words in call(browser, "clip", "readout", [row])[0]


def test_the_package_refuses_the_bounds_that_the_clip_explorer_refuses():
    for row in [(1.0, 1.0, 0.2, 1.0, 1.5), (-1.0, 1.0), (float("nan"), 1.0), (1.0, 1.0, -0.1)]:
        with pytest.raises(OptionError):
            explored_surrogate(*row)


def random_lengths(count: int) -> list[tuple]:
    draw = random.Random(2)
    rows = [([0, 5], 12), ([12] * 4, 1), ([1, 1], 64)]
    while len(rows) < count:
        lengths = [draw.randint(0, 12) for _ in range(draw.randint(2, 4))]
        if any(lengths):
            rows.append((lengths, draw.randint(1, 64)))
    return rows


@pytest.mark.parametrize("how", AGGREGATIONS)
def test_the_token_weights_of_the_script_are_the_derivatives_of_the_package(browser, how):
    rows = [(lengths, how, most) for lengths, most in random_lengths(120)]
    for row, got in zip(rows, call(browser, "length", "tokenWeights", rows), strict=True):
        assert close(got, token_weights(*row), 1e-12), row


@pytest.mark.parametrize("how", AGGREGATIONS)
def test_all_tokens_of_a_completion_weigh_the_same(how):
    """The figure shades a whole row alike; here with the gradient of `grpo_loss` at ratio 1 and A = 1."""
    mask = torch.arange(9) < torch.tensor([[4], [9], [0]])
    logprobs = torch.zeros(3, 9, dtype=torch.float64, requires_grad=True)
    loss, _ = grpo_loss(
        logprobs, logprobs.detach(), None, torch.ones(3, dtype=torch.float64), mask,
        aggregation=how, denominators=Denominators.of(mask, 12),
    )  # fmt: skip
    (gradient,) = torch.autograd.grad(loss, logprobs)
    weights = torch.tensor(token_weights([4, 9, 0], how, 12), dtype=torch.float64)
    torch.testing.assert_close(-gradient, weights[:, None] * mask)


@pytest.mark.parametrize(
    "row, words",
    [
        (([0, 0, 0], 12), "No completion has a token"),
        (([3, 13], 12), "Completion 2 has length 13"),
        (([float("nan"), 3], 12), "Completion 1 has length NaN"),
        (([3, 4], float("nan")), "max_length is NaN"),
        (([3, 4], 0), "max_length is 0"),
        (([3, 4], 2.5), "max_length is 2.5"),
        (([3, 9], 8), "longer than max_length = 8"),
        (([5, 5], 8), "all tokens weigh the same"),
        (([0, 5], 8), "adds nothing"),
    ],
)
def test_the_length_explorer_holds_at_its_limits(browser, row, words):
    assert words in call(browser, "length", "readout", [row])[0]


def test_the_package_refuses_a_batch_without_tokens():
    with pytest.raises(MaskError):
        token_weights([0, 0, 0])


@pytest.fixture
def page(browser):
    """The three explorers, as the book mounts them."""
    with browser.new_context(viewport=WIDE) as context:
        page = mount(context, [AdvantageExplorer(), ClipExplorer(), LengthExplorer()])
        yield page
        assert page.trouble == []


def part(page, title):
    return page.get_by_role("group", name=title, exact=True)


def drawing(root) -> list[str]:
    return root.locator("svg").evaluate_all("all => all.map(svg => svg.outerHTML)")


def advantages_said(root) -> list[float]:
    return numbers(re.search(r"Advantages: (.*)\. Their", root.locator("output").inner_text())[1])


ADVANTAGES, CLIP, LENGTH = (
    "Rewards of a group and their advantages",
    "The clipped objective and its gradient",
    "Weight of a token under each aggregation",
)


@pytest.mark.slow
def test_a_reward_is_typed_dragged_and_compared_in_another_way(page):
    root = part(page, ADVANTAGES)
    before = drawing(root)
    rewards = [1.0] + [0.0] * 7
    assert close(advantages_said(root), explored_advantages(rewards), 6e-4)
    rewards[2] = 0.7
    root.get_by_label("r3", exact=True).fill("0.7")
    assert close(advantages_said(root), explored_advantages(rewards), 6e-4)
    assert drawing(root) != before
    one, zero = (root.locator("[data-grip]").nth(i).bounding_box() for i in (0, 4))
    page.mouse.move(zero["x"] + zero["width"] / 2, zero["y"] + zero["height"] / 2)
    page.mouse.down()
    page.mouse.move(10, zero["y"] + zero["height"] / 2 + 0.6 * (one["y"] - zero["y"]), steps=4)
    page.mouse.up()
    page.mouse.move(10, 10)  # let go, it stays
    rewards[4] = float(root.get_by_label("r5", exact=True).input_value())
    assert rewards[4] == pytest.approx(0.6, abs=0.051)
    assert close(advantages_said(root), explored_advantages(rewards), 6e-4)
    for scaling in advantage.SCALINGS:
        root.get_by_label("Advantage by").select_option(scaling)
        assert close(advantages_said(root), explored_advantages(rewards, 6, scaling), 6e-4)
    root.get_by_label("Advantage by").select_option("whole_batch")
    root.get_by_label("right answers to a second prompt").fill("0")
    assert close(advantages_said(root), explored_advantages(rewards, 0, "whole_batch"), 6e-4)


@pytest.mark.slow
def test_the_keyboard_reaches_the_group_and_its_size(page):
    root = part(page, ADVANTAGES)
    size = root.get_by_label("G, completions in the group")
    size.focus()
    page.keyboard.press("Home")
    assert close(advantages_said(root), explored_advantages([1.0, 0.0]), 6e-4)
    page.keyboard.press("End")
    assert close(advantages_said(root), explored_advantages([1.0] + [0.0] * 15), 6e-4)
    root.get_by_role("button", name="near-ties").press("Enter")
    near = [1.301, 1.3, 1.3, 1.299, 1.3, 1.3, 1.3, 1.3]
    root.get_by_label("eps").select_option("1e-8")
    assert close(advantages_said(root), explored_advantages(near, eps=1e-8), 6e-4)
    root.get_by_role("button", name="all equal").press("Enter")
    assert "exactly 0" in root.locator("output").inner_text()
    assert advantages_said(root) == [0.0] * 8


@pytest.mark.slow
def test_a_reward_that_is_no_number_is_named_and_can_be_mended(page):
    root = part(page, ADVANTAGES)
    field = root.get_by_label("r2", exact=True)
    field.fill("")
    assert "Reward 2 is not a number" in root.locator("output").inner_text()
    field.press_sequentially("-0.5")
    assert field.input_value() == "-0.5"
    assert close(advantages_said(root), explored_advantages([1.0, -0.5] + [0.0] * 6), 6e-4)


@pytest.mark.slow
def test_the_clip_is_turned_and_the_gradient_follows(page):
    root = part(page, CLIP)
    output = root.locator("output")

    def said():
        lines = [numbers(line.split(";")[0]) for line in output.inner_text().splitlines()[1:]]
        return [number for line in lines for number in line[1:]]

    def computed(ratio, low=0.2, high=0.2, delta=0.0):
        return [x for sign in (1.0, -1.0) for x in explored_surrogate(ratio, sign, low, high, delta)]

    assert close(said(), computed(1.5), 6e-4) and "nothing bounds a large ratio" in output.inner_text()
    before = drawing(root)
    root.get_by_label("clip_high").first.fill("0.6")
    assert close(said(), computed(1.5, high=0.6), 6e-4) and drawing(root) != before
    root.get_by_label("clip_low").first.fill("0.4")
    root.get_by_label("the ratio, typed").fill("0.7")
    assert close(said(), computed(0.7, low=0.4, high=0.6), 6e-4)
    root.get_by_label("delta").select_option("2")
    root.get_by_label("ratio of new to old probability").fill("2.5")
    assert close(said(), computed(2.5, low=0.4, high=0.6, delta=2.0), 6e-4)
    assert "cut by delta = 2" in output.inner_text()
    root.get_by_label("ratio of new to old probability").focus()
    page.keyboard.press("Home")
    assert close(said(), computed(0.0, low=0.4, high=0.6, delta=2.0), 6e-4)
    root.get_by_label("the ratio, typed").fill("")
    assert output.inner_text().startswith("The ratio is NaN")
    root.get_by_label("the ratio, typed").fill("9")
    assert close(said(), computed(9.0, low=0.4, high=0.6, delta=2.0), 6e-4)
    root.get_by_label("clip_high").first.fill("1")
    assert "must be above 1 + clip_high = 2.00" in output.inner_text()


@pytest.mark.slow
def test_lengths_are_turned_and_the_weights_follow(page):
    root = part(page, LENGTH)
    output = root.locator("output")

    def check(lengths, most):
        for how, line in zip(AGGREGATIONS, output.inner_text().splitlines(), strict=False):
            weights = token_weights(lengths, how, most)
            assert line.startswith(f"{how}:")
            assert close(
                numbers(line), weights + [w * n for w, n in zip(weights, lengths, strict=True)], 6e-4
            )

    check([4, 7], 12)
    before = drawing(root)
    root.get_by_label("tokens of completion 2").fill("12")
    check([4, 12], 12)
    assert drawing(root) != before
    root.get_by_label("Completions in the batch").select_option("4")
    root.get_by_label("tokens of completion 3").fill("0")
    root.get_by_label("max_length").fill("20")
    check([4, 12, 0, 4], 20)
    cells = root.locator("svg").evaluate_all("all => all.map(svg => svg.querySelectorAll('rect').length)")
    assert cells == [4 + 12 + 4] * 4
    root.get_by_label("max_length").fill("")
    assert "max_length is NaN" in output.inner_text()
    root.get_by_label("max_length").fill("7")
    assert "longer than max_length = 7" in output.inner_text()
    for i in range(1, 5):
        root.get_by_label(f"tokens of completion {i}").fill("0")
    assert "No completion has a token" in output.inner_text()


@pytest.mark.slow
def test_the_explorers_fit_a_phone_and_every_control_has_a_name(browser):
    with browser.new_context(viewport=PHONE) as context:
        widgets = [
            AdvantageExplorer(rewards=[0.5] * 16, scaling="whole_batch"),
            ClipExplorer(delta=4.0),
            LengthExplorer(lengths=[12, 12, 12, 12]),
        ]
        page = mount(context, widgets)
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        unnamed = """() => [...document.querySelectorAll("input, select, button")]
          .filter(e => !(e.labels?.[0]?.textContent || e.textContent).trim()).length"""
        assert page.evaluate(unnamed) == 0
        beyond = """() => [...document.querySelectorAll("svg text")].filter(text => {
          const [own, svg] = [text, text.ownerSVGElement].map(e => e.getBoundingClientRect());
          return own.left < svg.left - 1 || own.right > svg.right + 1; }).map(text => text.textContent)"""
        assert page.evaluate(beyond) == [], "words that the drawing cuts off"
        assert page.trouble == []


def test_every_module_of_these_widgets_has_a_script_of_its_own():
    for module, widget in [(advantage, AdvantageExplorer), (clip, ClipExplorer), (length, LengthExplorer)]:
        assert "The arithmetic of " + module.__name__.rsplit(".", 1)[1] in widget._esm

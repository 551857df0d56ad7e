"""The explorers of KL, entropy and GAE: scripts that compute what the package does."""

import math
import re

import pytest
import torch
from widgetcheck import PHONE, WIDE, call, mount

from nanogrpo.advantages import group_advantages
from nanogrpo.errors import OptionError, ShapeError
from nanogrpo.kl import kl_exact
from nanogrpo.show.widgets.entropy import EntropyExplorer, explored_entropy
from nanogrpo.show.widgets.gae import GAEExplorer, advantage_in_group, explored_gae
from nanogrpo.show.widgets.kl import ESTIMATORS, KLExplorer, explored_kl

MANY = 120
UNIFORM = [0.25] * 4


def close(got, expected):
    """Equal to rounding, entry by entry; NaN equals NaN and infinity itself."""
    torch.testing.assert_close(
        torch.tensor(got, dtype=torch.float64),
        torch.tensor(expected, dtype=torch.float64),
        rtol=1e-9,
        atol=1e-12,
        equal_nan=True,
    )


def distributions(seed, n=MANY):
    """Pairs from nearly equal to nearly certain."""
    generator = torch.Generator().manual_seed(seed)
    sharpness = torch.logspace(-1.5, 1, n, dtype=torch.float64)[:, None, None]  # (n, 1, 1)
    logits = sharpness * torch.randn(n, 2, 4, dtype=torch.float64, generator=generator)  # (n, 2, V)
    return torch.softmax(logits, -1).tolist()


# KL: values and gradients

ON_THE_EDGE = [
    [UNIFORM, UNIFORM],
    [[1.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]],
    [[0.4, 0.35, 0.25, 0.0], UNIFORM],
    [UNIFORM, [0.4, 0.35, 0.25, 0.0]],
    [[1.0, 0.0, 0.0, 0.0], UNIFORM],
    [[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]],
    [[0.5, 0.5, 0.0, 0.0], [0.5, 0.0, 0.5, 0.0]],
]


@pytest.mark.parametrize("pairs", [distributions(0), ON_THE_EDGE], ids=["random", "edge"])
def test_the_script_computes_what_the_package_computes_for_kl(browser, pairs):
    for pair, got in zip(pairs, call(browser, "kl", "divergences", pairs), strict=True):
        expected = explored_kl(*pair)
        for what in ("reverse", "forward"):
            close(got[what], expected[what])
        for what in ("estimates", "means", "gradients"):
            assert set(got[what]) == set(ESTIMATORS)
            for name in ESTIMATORS:
                close(got[what][name], expected[what][name])


@pytest.mark.slow
def test_each_estimate_as_a_loss_follows_the_gradient_that_its_title_names(browser):
    pairs = distributions(1)
    for (policy, reference), got in zip(pairs, call(browser, "kl", "divergences", pairs), strict=True):
        logits = torch.tensor(policy, dtype=torch.float64).log().requires_grad_()
        ref_logits = torch.tensor(reference, dtype=torch.float64).log()
        (reverse,) = torch.autograd.grad(kl_exact(logits, ref_logits), logits)
        log_p, log_q = torch.log_softmax(logits, -1), torch.log_softmax(ref_logits, -1)
        (forward,) = torch.autograd.grad((log_q.exp() * (log_q - log_p)).sum(), logits)
        close(got["gradients"]["k1"], [0.0] * 4)
        close(got["gradients"]["k2"], reverse.tolist())
        close(got["gradients"]["k3"], forward.tolist())
        close(got["gradients"]["k3"], [p - q for p, q in zip(policy, reference, strict=True)])  # the answer


def test_k1_and_k3_have_the_kl_as_their_mean_unless_a_token_is_unseen():
    for policy, reference in distributions(2):
        result = explored_kl(policy, reference)
        assert result["means"]["k1"] == pytest.approx(result["reverse"])
        assert result["means"]["k3"] == pytest.approx(result["reverse"])
    result = explored_kl([0.4, 0.35, 0.25, 0.0], UNIFORM)
    assert result["reverse"] - result["means"]["k3"] == pytest.approx(0.25)  # the reference's share of it
    assert result["forward"] == math.inf


def test_a_probability_that_is_set_leaves_the_others_in_proportion(browser):
    cases = [[p, i % 4, (i % 11) / 10] for i, (p, _) in enumerate(distributions(3))]
    for (before, i, value), after in zip(cases, call(browser, "kl", "setOne", cases), strict=True):
        assert after[i] == value
        assert sum(after) == pytest.approx(1)
        rest = [[x for j, x in enumerate(p) if j != i] for p in (before, after)]
        assert rest[1] == pytest.approx([x / sum(rest[0]) * (1 - value) for x in rest[0]])
    certain, mended, spoiled = call(
        browser,
        "kl",
        "setOne",
        [[[1, 0, 0, 0], 0, 0.7], [[math.nan, 0, 0.5, 0.5], 1, 0.2], [[0.4, 0.3, 0.2, 0.1], 0, math.nan]],
    )
    assert certain == pytest.approx([0.7, 0.1, 0.1, 0.1])
    assert mended == pytest.approx([0, 0.2, 0.4, 0.4])
    close(spoiled, [math.nan, 0.3, 0.2, 0.1])


def test_the_kl_readout_says_what_is_the_case(browser):
    cases = [
        ([[math.nan, 0.3, 0.3, 0.4], UNIFORM], "policy's probability of token 1 is not a number"),
        ([UNIFORM, [0.5, -0.5, 0.5, 0.5]], "reference's probability of token 2 is -0.5"),
        ([[0.5, 0.4, 0, 0], UNIFORM], "policy's probabilities sum to 0.900"),
        ([UNIFORM, UNIFORM], "The two are equal"),
        ([[0.4, 0.35, 0.25, 0], UNIFORM], "never samples token 4"),
        ([[0.4, 0.35, 0.25, 0], UNIFORM], "KL(reference || policy) = infinite"),
        ([UNIFORM, [0.4, 0.35, 0.25, 0]], "The reference never takes token 4"),
        ([UNIFORM, [0.4, 0.35, 0.25, 0]], "gradient of k2 as a loss: undefined"),
    ]
    for (_, expected), text in zip(cases, call(browser, "kl", "readout", [c for c, _ in cases]), strict=True):
        assert expected in text
        assert not re.search(r"NaN|Infinity|undefined\.\d", text)


@pytest.mark.parametrize("bad", [[0.5, 0.5], [0.5, 0.6, 0, 0], [1.5, -0.5, 0, 0], [math.nan, 0, 0, 1]])
def test_what_is_no_distribution_is_refused(bad):
    with pytest.raises(OptionError):
        explored_kl(bad, UNIFORM)


# Entropy


def entropy_cases():
    generator = torch.Generator().manual_seed(4)
    tops = torch.rand(MANY, generator=generator, dtype=torch.float64).tolist()
    return [[2 + i % 64, top] for i, top in enumerate(tops)]


@pytest.mark.parametrize(
    "cases",
    [entropy_cases(), [[V, top] for V in (2, 3, 64, 65) for top in (0.0, 1 / V, 1.0)]],
    ids=["random", "edge"],
)
def test_the_script_computes_what_the_package_computes_for_entropy(browser, cases):
    for case, got in zip(cases, call(browser, "entropy", "measures", cases), strict=True):
        expected = explored_entropy(*case)
        assert set(got) == set(expected)
        for name, value in expected.items():
            # A variance of zero is left with its rounding, and the root makes that larger.
            assert got[name] == pytest.approx(value, rel=1e-9, abs=1e-7 if name == "scatter" else 1e-12)


def test_the_proxy_rises_while_the_entropy_falls():
    """What the figure is for, and what its answer on the page says."""
    path = [explored_entropy(65, 1 / 65 + (0.6 - 1 / 65) * i / 50) for i in range(51)]
    assert all(b["entropy"] < a["entropy"] for a, b in zip(path, path[1:], strict=False))
    assert path[0]["entropy"] == pytest.approx(math.log(65)) and path[0]["proxy"] < 0.065
    assert path[-1]["entropy"] < 2.35 and path[-1]["proxy"] > 3 * path[0]["proxy"]
    small = 0.001  # V > exp(3/2) = 4.48 decides whether it rises at first
    for V in range(2, 66):
        rises = explored_entropy(V, 1 / V + small)["proxy"] > explored_entropy(V, 1 / V)["proxy"]
        assert rises == (V >= 5)


def test_the_entropy_readout_says_what_is_the_case(browser):
    cases = [
        ([65, math.nan], "The probability is not a number"),
        ([65, 1.5], "The probability is 1.5"),
        ([1, 0.5], "V is 1"),
        ([2.5, 0.5], "V is 2.5"),
        ([65, 1 / 65], "All tokens are equally probable"),
        ([65, 1.0], "One token is certain"),
        ([65, 0.0], "This token never occurs"),
        ([65, 0.6], "the proxy has risen"),
        ([2, 0.6], "the proxy has fallen"),
    ]
    for (_, expected), text in zip(
        cases, call(browser, "entropy", "readout", [c for c, _ in cases]), strict=True
    ):
        assert expected in text
        assert not re.search(r"NaN|Infinity|-0\.0", text)


@pytest.mark.parametrize("bad", [(1, 0.5), (65, -0.1), (65, 1.1), (65, math.nan)])
def test_what_has_no_entropy_is_refused(bad):
    with pytest.raises(OptionError):
        explored_entropy(*bad)


# GAE


def gae_cases():
    generator = torch.Generator().manual_seed(5)
    cases = []
    for i in range(MANY):
        rewards, values = torch.randn(2, 1 + i % 8, generator=generator, dtype=torch.float64).tolist()
        gamma, lam = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
        cases.append([rewards, values, gamma, lam])
    edges = [(gamma, lam) for gamma in (0, 1) for lam in (0, 1)]
    return cases + [[[0.0, 0.0, 1.0], [0.2, 0.5, 0.9], gamma, lam] for gamma, lam in edges]


def test_the_script_computes_what_the_package_computes_for_gae(browser):
    cases = gae_cases()
    for case, got in zip(cases, call(browser, "gae", "gae", cases), strict=True):
        advantages, returns = explored_gae(*case)
        close(got["advantages"], advantages)
        close(got["returns"], returns)


def test_the_groups_advantage_is_that_of_the_package(browser):
    generator = torch.Generator().manual_seed(6)
    groups = [torch.randn(1, 2 + i % 15, generator=generator, dtype=torch.float64) for i in range(MANY)]
    groups += [torch.full((1, 8), 1.0, dtype=torch.float64)]  # tied; 1.0 so that the mean is exact
    cases = [[g[0, 0].item(), g.mean().item(), g.std(correction=0).item()] for g in groups]
    expected = [group_advantages(g)[0, 0].item() for g in groups]
    close(call(browser, "gae", "grpoAdvantage", cases), expected)
    close([advantage_in_group(*case) for case in cases], expected)


def test_a_wrong_answers_mistake_is_where_the_critic_puts_it():
    """The first example of the figure, and what its answer on the page says."""
    widget = GAEExplorer()
    for lam, blame in ((0.0, [0, 0, -0.5, 0, 0, -0.1]), (1.0, [-0.6, -0.6, -0.6, -0.1, -0.1, -0.1])):
        advantages, _ = explored_gae(widget.rewards, widget.values, widget.gamma, lam)
        assert advantages == pytest.approx(blame)


def test_a_completion_changes_its_length_and_keeps_its_last_reward(browser):
    shorter, longer = call(
        browser, "gae", "resize", [[[0.5, 0, 1], [0.1, 0.2, 0.3], 1], [[0.5, 0, 1], [0.1, 0.2, 0.3], 5]]
    )
    assert shorter == [[1], [0.1]]
    assert longer == [[0.5, 0, 0, 0, 1], [0.1, 0.2, 0.3, 0.3, 0.3]]


def test_the_gae_readout_says_what_is_the_case(browser):
    r, v = [0.0, 1.0], [0.5, 0.5]
    cases = [
        ([[0.0, math.nan], v, 1, 1, 0.5, 0.5], "reward of token 2 is not a number"),
        ([r, [math.nan, 0.0], 1, 1, 0.5, 0.5], "value of token 1 is not a number"),
        ([r, [0.5], 1, 1, 0.5, 0.5], "Rewards: 2, values: 1"),
        ([r, v, 1.5, 1, 0.5, 0.5], "gamma is 1.5"),
        ([r, v, 1, math.nan, 0.5, 0.5], "lambda is not a number"),
        ([r, v, 1, 0.9, math.nan, 0.5], "GRPO needs the mean"),
        ([r, v, 1, 0.9, 0.5, -1], "GRPO needs the mean"),
        ([r, v, 1, 0.9, 1, 0], "every token gets exactly 0"),
        ([r, v, 1, 0.9, 0.5, 0], "There is no such group"),
        ([r, v, 0, 0.9, 0.5, 0.5], "gamma = 0: nothing after"),
        ([r, v, 1, 0, 0.5, 0.5], "lambda = 0"),
        ([r, v, 1, 1, 0.5, 0.5], "lambda = 1"),
        ([r, [1.0, 1.0], 1, 0.9, 0.5, 0.5], "Every advantage is 0"),
    ]
    for (_, expected), text in zip(
        cases, call(browser, "gae", "readout", [c for c, _ in cases]), strict=True
    ):
        assert expected in text
        assert not re.search(r"NaN|Infinity", text)


def test_what_has_no_advantage_is_refused():
    for gamma, lam in ((1.5, 1.0), (1.0, -0.1), (math.nan, 1.0)):
        with pytest.raises(OptionError):
            explored_gae([1.0], [0.5], gamma, lam)
    for rewards, values in (([1.0], [0.5, 0.5]), ([], [])):
        with pytest.raises(ShapeError):
            explored_gae(rewards, values)
    for bad in ((1.0, math.nan, 1.0), (1.0, 0.5, -1.0), (1.0, 0.5, 0.0)):
        with pytest.raises(OptionError):
            advantage_in_group(*bad)


# In a browser: a control is moved, the drawing and the read-out follow to what Python computes


@pytest.fixture
def figure(browser):
    """Opens one widget on a page of its own; what went wrong there is an error of the test."""
    pages = []

    def show(widget, **options):
        pages.append(mount(browser.new_context(viewport=WIDE, **options), [widget]))
        return pages[-1]

    yield show
    for page in pages:
        page.context.close()
    assert [page.trouble for page in pages] == [[]] * len(pages)


def readout(page):
    return page.locator("output").inner_text().replace("\n", " ")


def listed(page, before):
    """The numbers of the read-out that follow these words, up to the next word."""
    found = re.search(rf"{re.escape(before)}:? ((?:-?[\d.]+(?:, )?)+)", readout(page))
    assert found, f"{before!r} is not in {readout(page)!r}"
    return [float(x.rstrip(".")) for x in found[1].removesuffix(", ").split(", ")]


def heights(page, panel):
    """Of the bars of the drawing with this title, in units of the drawing."""
    bars = page.locator("svg", has_text=panel).locator("rect:not([data-grip])")
    return bars.evaluate_all("all => all.map(e => Number(e.getAttribute('height')))")


def drag_bar(page, panel, bar, up):
    """Drag the handle of one bar by so many pixels."""
    grip = page.locator("svg", has_text=panel).locator(f"[data-bar='{bar}']")
    grip.scroll_into_view_if_needed()
    box = grip.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x, y - up, steps=4)
    page.mouse.up()


@pytest.mark.slow
def test_a_probability_is_typed_and_dragged(figure):
    page = figure(KLExplorer())
    page.get_by_label("p1").fill("0.4")
    before = KLExplorer().policy
    policy = [0.4] + [x * 0.6 / sum(before[1:]) for x in before[1:]]
    expected = explored_kl(policy, UNIFORM)
    assert listed(page, "KL(policy || reference) =") == [round(expected["reverse"], 4)]
    assert listed(page, "KL(reference || policy) =") == [round(expected["forward"], 4)]
    for name in ESTIMATORS:
        assert f"{name} {expected['means'][name]:.4f}" in readout(page)
        gradient = listed(page, f"gradient of {name} as a loss")
        assert gradient == pytest.approx(expected["gradients"][name], abs=0.0006)
    row = page.get_by_role("row", name=re.compile("^1 ")).inner_text().split()
    assert [float(x) for x in row[1:]] == [round(expected["estimates"][k][0], 3) for k in ESTIMATORS]
    assert max(heights(page, "gradient of k1")) == pytest.approx(0, abs=1e-9)
    for name in ("k2", "k3"):
        bars, gradient = heights(page, f"gradient of {name}"), expected["gradients"][name]
        total = sum(map(abs, gradient))
        assert [b / sum(bars) for b in bars] == pytest.approx([abs(g) / total for g in gradient])
    bars = heights(page, "policy: drag")
    assert [b / sum(bars) for b in bars] == pytest.approx(policy)

    drag_bar(page, "policy: drag", 0, up=30)
    after = heights(page, "policy: drag")
    assert after[0] > bars[0] and after[1] < bars[1] and sum(after) == pytest.approx(sum(bars))
    assert float(page.get_by_label("p1").input_value()) == pytest.approx(after[0] / sum(after))


@pytest.mark.slow
def test_the_kl_figure_holds_at_its_limits(figure):
    page = figure(KLExplorer())
    page.get_by_label("p2").fill("")
    assert "probability of token 2 is not a number" in readout(page)
    page.get_by_label("p2").fill("1")
    assert "never samples token 1, 3, 4" in readout(page)
    page.get_by_label("r2").fill("0")
    assert "The reference never takes token 2" in readout(page)
    page.get_by_role("button", name="equal", exact=True).press("Enter")
    assert "The two are equal" in readout(page)
    assert [page.get_by_label(f"p{i}").input_value() for i in (1, 2, 3, 4)] == ["0.25"] * 4
    page.get_by_label("p1").fill("7")
    assert "probability of token 1 is 7" in readout(page)


@pytest.mark.slow
def test_the_collapse_is_turned_by_hand(figure):
    page = figure(EntropyExplorer())

    def agrees(size, top):
        expected = explored_entropy(size, top)
        assert listed(page, "Exact entropy H =") == [round(expected["entropy"], 3)]
        assert listed(page, "-log p over samples")[0] == round(expected["sampled"], 3)
        assert listed(page, "One sample scatters by")[0] == round(expected["scatter"], 3)
        assert listed(page, "proxy p (-log p)") == [round(expected["proxy"], 4)]

    slider = page.get_by_role("slider", name="probability of the top token")
    slider.fill("0.6")
    agrees(65, 0.6)
    assert "the proxy has risen" in readout(page)
    slider.press("ArrowRight")
    agrees(65, 0.61)
    page.get_by_role("slider", name="V, tokens").fill("2")
    agrees(2, 0.61)
    assert "the proxy has fallen" in readout(page)
    drag_bar(page, "the distribution", 0, up=-300)
    agrees(2, 0.0)
    page.get_by_label("the same, typed").fill("")
    assert "The probability is not a number" in readout(page)
    page.get_by_role("button", name="one token only").click()
    assert "One token is certain" in readout(page)


@pytest.mark.slow
def test_the_collapse_plays_and_pauses(figure):
    page = figure(EntropyExplorer())
    field = page.get_by_label("the same, typed")
    page.get_by_role("button", name="Play the collapse").click()
    page.wait_for_function("() => document.querySelector('input[type=number]').value > 0.1")
    assert page.locator("output").get_attribute("aria-live") == "off"
    page.get_by_role("button", name="Pause").click()
    stopped = field.input_value()
    page.wait_for_timeout(300)
    assert field.input_value() == stopped
    assert page.locator("output").get_attribute("aria-live") == "polite"
    page.get_by_role("button", name="Play the collapse").click()
    page.wait_for_function("() => document.querySelector('input[type=number]').value == 1")
    page.get_by_role("button", name="Play the collapse").wait_for()
    assert "One token is certain" in readout(page)


@pytest.mark.slow
def test_nothing_moves_by_itself_where_the_reader_wants_no_motion(figure):
    page = figure(EntropyExplorer(), reduced_motion="reduce")
    field = page.get_by_label("the same, typed")
    steps = []
    for _ in range(11):
        page.get_by_role("button", name="Next step").click()
        steps.append(float(field.input_value()))
        page.wait_for_timeout(50)
        assert float(field.input_value()) == steps[-1]
    assert steps == pytest.approx([i / 10 for i in range(1, 11)] + [1 / 65], abs=1e-4)


@pytest.mark.slow
def test_lambda_and_the_values_are_moved(figure):
    widget = GAEExplorer()
    page = figure(widget)

    def agrees(rewards, values, gamma, lam):
        advantages, returns = explored_gae(rewards, values, gamma, lam)
        assert listed(page, "Advantages by GAE") == pytest.approx(advantages, abs=0.0006)
        assert listed(page, "Returns, the critic's targets") == pytest.approx(returns, abs=0.0006)
        bars = heights(page, "advantages: bars")
        largest = max(map(abs, advantages))
        assert [b / max(bars) for b in bars] == pytest.approx([abs(a) / largest for a in advantages])

    agrees(widget.rewards, widget.values, 1.0, 0.95)
    slider = page.get_by_role("slider", name="lambda")
    slider.press("Home")
    agrees(widget.rewards, widget.values, 1.0, 0.0)
    page.get_by_label("V2").fill("0.9")
    values = [0.6, 0.9, 0.6, 0.1, 0.1, 0.1]
    agrees(widget.rewards, values, 1.0, 0.0)
    page.get_by_label("r6").fill("1")
    slider.fill("0.5")
    page.get_by_role("slider", name="gamma").fill("0.9")
    agrees([0, 0, 0, 0, 0, 1], values, 0.9, 0.5)
    page.get_by_label("mean reward").fill("0.25")
    page.get_by_label("std of the group").fill("0.4")
    assert f"= {advantage_in_group(1.0, 0.25, 0.4):.3f} for every token" in readout(page)
    page.get_by_label("T, tokens").select_option("1")
    agrees([1], [0.6], 0.9, 0.5)
    page.get_by_label("T, tokens").select_option("8")
    agrees([0] * 7 + [1], [0.6] * 8, 0.9, 0.5)
    drag_bar(page, "values of the critic", 7, up=-300)
    agrees([0] * 7 + [1], [0.6] * 7 + [0], 0.9, 0.5)


@pytest.mark.slow
def test_the_gae_figure_holds_at_its_limits(figure):
    page = figure(GAEExplorer())
    page.get_by_label("V3").fill("")
    assert "value of token 3 is not a number" in readout(page)
    page.get_by_role("button", name="critic was sure").click()
    for name in ("gamma", "lambda"):
        page.get_by_role("slider", name=name).press("Home")
    assert "gamma = 0" in readout(page)
    page.get_by_label("std of the group").fill("0")
    assert "There is no such group" in readout(page)
    page.get_by_label("mean reward").fill("1")
    assert "every token gets exactly 0" in readout(page)
    page.get_by_label("mean reward").fill("")
    assert "GRPO needs the mean" in readout(page)


CONTROLS = "[...document.querySelectorAll('.ng input, .ng select, .ng button')]"


@pytest.mark.slow
@pytest.mark.parametrize("widget", [KLExplorer, EntropyExplorer, GAEExplorer])
def test_a_figure_fits_a_phone_and_the_keyboard_reaches_every_control(browser, widget):
    with browser.new_context(viewport=PHONE) as context:
        page = mount(context, [widget()])
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        names = page.evaluate(f"{CONTROLS}.map(e => (e.labels?.[0] ?? e).textContent.trim())")
        assert all(names) and len(set(names)) == len(names)
        reached = set()
        for _ in names:
            page.keyboard.press("Tab")
            reached.add(page.evaluate(f"{CONTROLS}.indexOf(document.activeElement)"))
        assert reached == set(range(len(names)))
        assert page.trouble == []

"""The playground in a browser, with the network closed: what a reader presses, types and takes away."""

import gzip
import re
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from widgetcheck import PHONE, WIDE

from nanogrpo.metrics import read_csv
from nanogrpo.show import playground

PRESETS = {preset["name"]: preset for preset in playground.presets()}
SCRIPT = playground.bundle().replace("</script", "<\\/script")
ADDRESS = "http://playground.test/"
AXE = Path(__file__).parents[1] / "node_modules" / "axe-core" / "axe.min.js"
STEPS = "() => Number(document.querySelector('output').textContent.match(/Step (\\d+)/)?.[1] ?? -1)"


def html(small=False, theme="light") -> str:
    ground, ink = ("#121212", "#ced6dd") if theme == "dark" else ("#ffffff", "#222832")
    return (
        f'<!doctype html><html lang="en" data-theme="{theme}"><title>Playground</title>'
        f'<meta name="viewport" content="width=device-width"><body style="background:{ground};color:{ink}">'
        f'<main><h1>Playground</h1><div class="ng-playground" {"data-small" if small else ""}></div></main>'
        f"<script>{SCRIPT}</script>"
    )


@pytest.fixture
def visit(browser):
    """A page with a playground and nothing else; what goes wrong in it is an error of the test."""
    contexts, troubles = [], []

    def go(link="", size=WIDE, small=False, theme="light", **options):
        context = browser.new_context(viewport=size, **options)
        contexts.append(context)
        page = context.new_page()

        def answer(route):
            if route.request.url.split("#")[0] == ADDRESS:
                return route.fulfill(body=html(small, theme), content_type="text/html")
            troubles.append(f"asks for {route.request.url}")
            return route.abort()

        page.route(re.compile("^(?!blob:)"), answer)
        page.on("console", lambda m: troubles.append(f"console: {m.text}") if m.type == "error" else None)
        page.on("pageerror", lambda error: troubles.append(f"script: {error}"))
        page.goto(ADDRESS + link)
        return page

    yield go
    for context in contexts:
        context.close()
    assert troubles == []


def press(page, name):
    page.get_by_role("button", name=name, exact=True).click()


def wait_for_step(page, step):
    page.wait_for_function(f"n => ({STEPS})() >= n", arg=step)


def step_of(page) -> int:
    return page.evaluate(STEPS)


def one_step(page, times=1):
    for _ in range(times):
        before = step_of(page)
        press(page, "Step")
        page.wait_for_function(f"n => ({STEPS})() > n", arg=before)


def address(page) -> str:
    """Where the page says that it is; playwright hears of a new fragment a little later."""
    return page.evaluate("location.href")


def setting(page) -> dict:
    """The link's options."""
    query = parse_qs(urlsplit(address(page)).fragment, keep_blank_values=True)
    return {name: value[0] for name, value in query.items()}


def log_of(page, run="A") -> str:
    with page.expect_download() as download:
        press(page, f"CSV of {run}")
    return download.value.path().read_text()


@pytest.mark.slow
def test_it_plays_pauses_steps_and_starts_again(visit):
    page = visit()
    assert step_of(page) == 0
    press(page, "Play")
    wait_for_step(page, 11)
    press(page, "Pause")
    page.wait_for_timeout(500)  # a step that was under way may still arrive
    stopped = step_of(page)
    page.wait_for_timeout(500)
    assert step_of(page) == stopped
    one_step(page)
    assert step_of(page) == stopped + 1
    curves = page.locator("svg path[d^=M]")
    assert curves.count() >= 6
    press(page, "Reset")
    assert step_of(page) == 0 and curves.count() == 0


@pytest.mark.slow
def test_a_seed_makes_the_same_run_again_and_another_seed_another(visit):
    logs = []
    for seed in (3, 3, 4):
        page = visit(f"#seed={seed}")
        one_step(page, 3)
        logs.append(log_of(page))
    assert logs[0] == logs[1] != logs[2]


@pytest.mark.slow
def test_the_log_is_that_of_the_run_in_python(visit, tmp_path):
    from nanogrpo.show.playground import twin

    page = visit("#learning_rate=0.002&seed=5")
    one_step(page, 2)
    file = tmp_path / "a.csv"
    file.write_text(log_of(page))
    rows = twin.run(playground.load().double(), {"learning_rate": 0.002, "seed": 5})
    for i, row in zip(range(2), rows, strict=False):
        for name, values in read_csv(file).items():
            assert values[i] == pytest.approx(row[name], rel=1e-4, abs=1e-5, nan_ok=True), name


@pytest.mark.slow
def test_a_log_is_what_plot_draws(visit, tmp_path):
    pytest.importorskip("matplotlib", reason="package: matplotlib is not installed")
    from nanogrpo.__main__ import main

    page = visit("#task=contains&b.beta=0.5")
    one_step(page, 3)
    for run in "AB":
        (tmp_path / f"{run}.csv").write_text(log_of(page, run))
    main(["plot", *(str(tmp_path / f"{run}.csv") for run in "AB"), "--out", str(tmp_path / "plot.png")])
    assert (tmp_path / "plot.png").stat().st_size > 1000


@pytest.mark.slow
def test_a_log_is_what_the_doctor_reads(visit, tmp_path, capsys):
    from nanogrpo.__main__ import main

    page = visit("#bug=other_temperature")
    one_step(page, 12)
    (tmp_path / "a.csv").write_text(log_of(page))
    main(["doctor", str(tmp_path / "a.csv")])
    said = capsys.readouterr().out
    assert "12 rows, steps 1 to 12" in said
    assert " in the log" not in said, "a rule misses a column"


KNOBS = {
    "task": "contains", "group_size": "4", "prompts_per_step": "3", "learning_rate": "0.002",
    "temperature": "0.7",
    "baseline": "leave_one_out", "scale_rewards": "none", "aggregation": "constant", "clip_low": "0.3",
    "clip_high": "0.4", "num_iterations": "2", "beta": "0.1", "kl_estimator": "k2", "kl_in": "reward",
    "entropy_coef": "0.01", "bug": "other_temperature",
}  # fmt: skip
TITLES = {
    "task": "task", "group_size": "G, completions a prompt", "prompts_per_step": "P, prompts a step",
    "learning_rate": "learning rate", "temperature": "temperature", "baseline": "baseline",
    "scale_rewards": "divided by the std of", "aggregation": "mean over", "clip_low": "clip below",
    "clip_high": "clip above", "num_iterations": "inner epochs", "beta": "beta, price of KL",
    "kl_estimator": "form of KL", "kl_in": "KL charged in the", "entropy_coef": "entropy bonus",
    "bug": "planted bug",
}  # fmt: skip


def turn(page, name, value, run="A"):
    knob = page.get_by_label(f"{TITLES[name]}, run {run}", exact=True)
    if knob.evaluate("e => e.tagName") == "SELECT":
        knob.select_option(value)
    else:
        knob.fill(value)


@pytest.mark.slow
def test_each_knob_goes_into_the_link_and_into_the_run(visit):
    page = visit()
    assert page.locator(".ngp-pair").count() == len(KNOBS)
    for name, value in KNOBS.items():
        turn(page, name, value)
        assert setting(page)[name] == value, name
        assert page.locator("[role=alert]").inner_text() == ""
        one_step(page)
    again = visit(f"#{urlsplit(address(page)).fragment}")
    for name, value in KNOBS.items():
        knob = again.get_by_label(f"{TITLES[name]}, run A", exact=True)
        assert knob.input_value() == value, name


@pytest.mark.slow
def test_two_runs_stand_side_by_side_with_the_same_random_numbers(visit):
    page = visit()
    page.get_by_label("a second run beside it").check()
    one_step(page, 2)
    assert log_of(page, "A") == log_of(page, "B")
    turn(page, "temperature", "0.5", run="B")
    one_step(page)
    assert setting(page) == {"b": "", "b.temperature": "0.5"}
    assert log_of(page, "A") != log_of(page, "B")
    assert page.locator(".ngp-board table").count() == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_runs_says_what_to_notice_and_has_a_link(visit, name):
    preset = PRESETS[name]
    page = visit()
    press(page, preset["title"])
    wait_for_step(page, 1)
    press(page, "Pause")
    notice = page.locator(".ngp-notice")
    assert preset["notice"] in notice.inner_text()
    assert notice.get_by_role("link").get_attribute("href") == preset["chapter"]
    pressed = page.locator("[aria-pressed=true]")
    assert pressed.all_inner_texts() == [preset["title"]]
    linked = visit(f"#preset={name}")
    assert preset["notice"] in linked.locator(".ngp-notice").inner_text()
    assert setting(linked) == setting(page)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("learning_rate", "", "learning_rate=(not a number) must be a number"),
        ("learning_rate", "-1", "learning_rate=-1 must be a number from 0 to 10"),
        ("group_size", "1", "group_size=1 must be a number from 2 to 64"),
        ("group_size", "2.5", "group_size=2.5 must be a whole number"),
        ("temperature", "0", "temperature=0 must be"),
        ("beta", "1e99", "beta=1e+99 must be"),
        ("baseline", "none", "divides groups of equal rewards by eps alone"),
    ],
)
def test_a_knob_that_is_out_of_range_is_refused_and_nothing_is_lost(visit, name, value, words):
    page = visit("#seed=7")
    one_step(page)
    before = address(page), page.locator(".ngp-panels").inner_html()
    turn(page, name, value)
    assert words in page.locator("[role=alert]").inner_text()
    press(page, "Step")
    press(page, "Play")
    page.wait_for_timeout(300)
    assert (address(page), page.locator(".ngp-panels").inner_html()) == before
    press(page, "Watch it learn")
    wait_for_step(page, 1)
    assert page.locator("[role=alert]").inner_text() == ""


@pytest.mark.slow
def test_a_run_that_breaks_says_so_and_the_other_goes_on(visit):
    page = visit("#learning_rate=10&temperature=0.01&b.learning_rate=0.001&b.temperature=1")
    press(page, "Play")
    wait_for_step(page, 15)
    press(page, "Pause")
    words = page.locator("[role=alert]").inner_text()
    assert words == "" or words.startswith("Run A has stopped")
    assert "Infinity" not in page.locator("output").inner_text()


@pytest.mark.slow
def test_nothing_is_computed_while_the_page_is_hidden(visit):
    page = visit()
    hide = """hidden => { Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
      document.dispatchEvent(new Event("visibilitychange")); }"""
    press(page, "Play")
    wait_for_step(page, 1)
    page.evaluate(hide, True)
    page.wait_for_timeout(500)
    drawn = page.locator(".ngp-panels").inner_html()
    page.wait_for_timeout(700)
    assert page.locator(".ngp-panels").inner_html() == drawn
    page.evaluate(hide, False)
    page.wait_for_function("html => document.querySelector('.ngp-panels').innerHTML !== html", arg=drawn)


@pytest.mark.slow
def test_the_keyboard_reaches_and_runs_it(visit):
    page = visit()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Play"
    page.keyboard.press("Space")
    wait_for_step(page, 1)
    page.keyboard.press("Space")
    assert page.get_by_role("button", name="Play", exact=True).is_visible()
    names = page.evaluate(
        "[...document.querySelectorAll('.ngp input, .ngp select, .ngp button')]"
        ".filter(e => e.checkVisibility())"
        ".map(e => e.ariaLabel ?? (e.labels?.[0] ?? e).textContent.trim())"
    )
    assert all(names) and len(set(names)) == len(names)


@pytest.mark.slow
def test_nothing_moves_by_itself_where_the_reader_wants_no_motion(visit):
    page = visit(reduced_motion="reduce")
    assert "Press 10 steps" in page.locator(".ng-readout").inner_text(), "a button that is there"
    press(page, "10 steps")
    wait_for_step(page, 10)
    page.wait_for_timeout(300)
    assert step_of(page) == 10


@pytest.mark.slow
@pytest.mark.parametrize("small", [False, True], ids=["page", "landing"])
def test_a_finger_runs_it_on_a_phone_and_nothing_is_wider_than_the_phone(visit, small):
    page = visit("" if small else "#b.beta=0.1", size=PHONE, small=small, has_touch=True, is_mobile=True)
    page.get_by_role("button", name="Play", exact=True).tap()
    wait_for_step(page, 1)
    page.get_by_role("button", name="Pause", exact=True).tap()
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


@pytest.mark.slow
@pytest.mark.skipif(not AXE.exists(), reason="package: axe-core is not installed; `make tools` brings it")
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("small", [False, True], ids=["page", "landing"])
def test_axe_finds_nothing(visit, theme, small):
    page = visit("" if small else "#b.beta=0.1", theme=theme, small=small, bypass_csp=True)
    one_step(page)
    page.evaluate(AXE.read_text(encoding="utf-8"))
    found = page.evaluate("async () => (await axe.run()).violations.map(v => [v.id, v.nodes[0].html])")
    assert found == []


def test_the_page_s_own_weight_is_small():
    """All that a page with a playground loads for it, weights included, as a server sends it."""
    assert len(gzip.compress(playground.bundle().encode())) < 150_000

"""GRPO's formula, term by term: numbers as the package computes them, and lines that are the package's."""

import inspect
import math
import random
import re
from pathlib import Path

import nbformat
import pagecheck
import pytest
import torch
from clean import widget_state
from widgetcheck import PHONE, WIDE, call, close, mount_state, numbers

from nanogrpo import grpo
from nanogrpo.errors import OptionError, SourceError
from nanogrpo.show.source import statement
from nanogrpo.show.widgets import formula, script
from nanogrpo.show.widgets.formula import (
    TERMS,
    explored_formula,
    logged_step,
    rounded,
    shown_code,
    term_lines,
)
from nanogrpo.state import TrainState
from nanogrpo.tasks import Addition, exact_match
from nanogrpo.weights import load

ROOT = Path(__file__).parents[1]


def stored() -> dict:
    """The state of the figure as the chapter stores it, with the script as it is today."""
    notebook = nbformat.read(ROOT / "book" / "grpo.ipynb", as_version=4)
    states = [model["state"] for model in widget_state(notebook).values()]
    (found,) = [state for state in states if "formula" in state.get("_anywidget_id", "")]
    return {**found, "_esm": script("formula")}


STATE = stored()
LOG = formula.ON_ONE_LINE["from_json"](STATE["log"], None)
B, T = len(LOG["mask"]), len(LOG["mask"][0])


def invented(seed: int) -> dict:
    """A log of made-up numbers: groups of graded, equal and one-sided rewards, ratios far beyond the clip."""
    draw = random.Random(seed)
    P, G, width = 3, 4, 5
    lengths = [draw.randint(1, width) for _ in range(P * G)]
    old = [[-draw.random() if t < n else 0.0 for t in range(width)] for n in lengths]
    near = [[[x + draw.gauss(0, s) for x in row] for row in old] for s in (0.0, 0.5, 1.5)]
    rewards = [[draw.choice([0.0, 1.0]) for _ in range(G)], [0.3] * G, [draw.gauss(0, 2) for _ in range(G)]]
    return {
        "config": {"clip_low": 0.1, "clip_high": 0.3, "beta": 0.2, "std_eps": 1e-4},
        "mask": [[int(t < n) for t in range(width)] for n in lengths],
        "rewards": rewards, "old": old, "ref": near[1], "updates": near,
    }  # fmt: skip


def flat(value) -> list[float]:
    return torch.as_tensor(value, dtype=torch.float64).flatten().tolist()


@pytest.mark.parametrize("log", [LOG, *map(invented, range(8))], ids=["stored", *map(str, range(8))])
def test_the_script_computes_every_term_as_the_package_does(browser, log):
    rows = [(log, number) for number in range(len(log["updates"]))]
    for (_, number), got in zip(rows, call(browser, "formula", "terms", rows), strict=True):
        expected = explored_formula(log, number)
        assert set(got) == set(expected) == set(TERMS)
        for term, value in expected.items():
            assert close(flat(got[term]), flat(value), 1e-9), term


def test_the_terms_are_put_together_as_the_formula_says():
    """The sum by Python's own numbers, of the log that the chapter stores."""
    for number in range(len(LOG["updates"])):
        terms = explored_formula(LOG, number)
        each = []
        for i, kept in enumerate(LOG["mask"]):
            A = terms["advantage"][i].item()
            parts = [
                min(terms["ratio"][i, t].item() * A, terms["clip"][i, t].item() * A)
                - LOG["config"]["beta"] * terms["kl"][i, t].item()
                for t in range(T)
                if kept[t]
            ]
            each.append(sum(parts) / len(parts))
        assert close(flat(terms["tokens"]), each, 1e-9)
        assert math.isclose(terms["loss"].item(), -sum(each) / B, rel_tol=1e-9)


def setting(**options):
    task = Addition()
    model, reference = load("addition")[0], load("addition")[0]
    config = grpo.GRPOConfig(
        task.max_new_tokens, group_size=4, prompts_per_step=2, num_iterations=2, learning_rate=3e-4,
        beta=0.04, seed=15, **{"aggregation": "sequence_mean", **options},
    )  # fmt: skip
    state = TrainState.start(model.parameters(), config.learning_rate, config.seed)
    return model, task.tokenizer, task.split()[0], exact_match, config, state, reference


def test_a_logged_step_is_the_trainer_s_own_and_its_losses_are_those_that_it_logs():
    plain, watched = setting(), setting()
    metrics, batch = grpo.step(*plain)
    log = logged_step(*watched)
    for one, other in zip(plain[0].parameters(), watched[0].parameters(), strict=True):
        assert torch.equal(one, other), "to log a step changed it"
    assert log["metrics"] == {name: metrics[name] for name in log["metrics"]}
    assert log["rewards"] == batch.rewards.tolist() and log["old"] == rounded(batch.rollout.logprobs)
    terms = [explored_formula(log, number) for number in (0, 1)]
    mean = sum(each["loss"].item() for each in terms) / 2
    assert math.isclose(mean, metrics["loss"], abs_tol=2e-6)
    assert torch.allclose(terms[0]["ratio"], torch.ones(()).double(), atol=1e-5), "before any update"
    assert (terms[1]["ratio"] - 1).abs().max() > 0.01
    assert torch.allclose(terms[0]["advantage"].float(), batch.advantages, atol=1e-5)


@pytest.mark.parametrize(
    "wrong", [{"aggregation": "token_mean"}, {"num_mini_batches": 2}, {"scale_rewards": "none"}]
)
def test_a_step_of_another_formula_is_refused(wrong):
    with pytest.raises(OptionError, match="sequence_mean"):
        logged_step(*setting(**wrong))


def test_the_chapter_s_log_is_of_a_step_where_all_happens():
    terms = [explored_formula(LOG, number) for number in (0, 1)]
    A, mask = terms[0]["advantage"].unsqueeze(1), terms[0]["mask"]
    acts = [((each["ratio"] * A > each["clip"] * A) & mask).sum().item() for each in terms]
    assert acts[0] == 0 < acts[1]
    assert any(len(set(group)) == 1 for group in LOG["rewards"]), "a dead group"
    assert 0 < mask.sum() < mask.numel(), "padding"


@pytest.mark.parametrize("term", TERMS)
def test_a_term_finds_its_lines_and_the_chapter_shows_those_of_today(term):
    found = term_lines(term)
    assert STATE["code"] == shown_code() and STATE["terms"][term] | {"inner": None} == found | {"inner": None}
    lit = [shown_code()[i].strip() for i in found["lines"]]
    assert lit[0].startswith(TERMS[term].statement) and found["word"] in "\n".join(lit)
    assert found["statements"] or term == "beta"


@pytest.mark.parametrize("term", TERMS)
def test_a_term_whose_line_is_gone_is_no_longer_found(term, monkeypatch):
    where, source = TERMS[term], inspect.getsource
    moved = [(begin, f"pass; {begin}") for begin in (where.statement, *where.statements)]
    for old, new in [*moved, (where.word, "gone")]:
        with monkeypatch.context() as patch, pytest.raises(SourceError):
            patch.setattr(inspect, "getsource", lambda f, old=old, new=new: source(f).replace(old, new))
            term_lines(term)


def test_a_statement_is_found_only_if_there_is_one():
    for begin, count in (("per_token =", 2), ("no such line", 0)):
        with pytest.raises(SourceError, match=f"{count} statements of nanogrpo.losses.grpo_loss"):
            statement("nanogrpo.losses.grpo_loss", begin)


@pytest.fixture
def show(browser):
    contexts = []

    def go(**options):
        contexts.append(browser.new_context(**{"viewport": WIDE, **options}))
        return mount_state(contexts[-1], [STATE])

    yield go
    for context in contexts:
        context.close()


def term(page, name):
    return page.locator(f"button[data-term={name}]")


LIT = """() => {
  const lit = (kind) => [...document.querySelectorAll(kind)]
    .flatMap((e, i) => (e.hasAttribute("data-lit") ? [i] : []));
  const texts = (kind) => [...document.querySelectorAll(kind)].map((e) => e.textContent);
  return { term: [...document.querySelectorAll("button.ng-term[data-lit]")].map((e) => e.dataset.term),
    cells: lit(".ng-cell"), lines: lit(".ng > .ng-code code"), inner: texts(".ng-note .ng-code code"),
    word: texts("mark").join("") }; }"""


def expected_cells(name: str, row: int, token: int) -> list[int]:
    """The tokens that a term's number is made of."""
    kept = [i * T + t for i in range(B) for t in range(T) if LOG["mask"][i][t]]
    if name in ("completions", "loss"):
        return kept
    return [i for i in kept if i // T == row] if name in ("advantage", "tokens") else [row * T + token]


def number_of(name: str, number: int, row: int, token: int) -> float:
    value = explored_formula(LOG, number)[name]
    return value[(row, token)[: value.dim()]].item()


def check(page, name, number, row, token):
    lit, words = page.evaluate(LIT), page.locator("output").inner_text()
    assert lit["term"] == [name] and lit["cells"] == expected_cells(name, row, token)
    assert lit["lines"] == term_lines(name)["lines"] and lit["inner"] == term_lines(name)["statements"]
    assert "".join(lit["word"].split()) == "".join(term_lines(name)["word"].split())
    said = numbers(words.split(": ", 1)[1])[0]
    digits = 5 if name in ("completions", "loss") else 4
    assert math.isclose(said, number_of(name, number, row, token), abs_tol=0.6 * 10 ** -(digits - 1)), words


@pytest.mark.slow
def test_next_walks_through_all_terms_of_all_updates_and_each_lights_up_with_its_number(show):
    page = show()
    for number in range(len(LOG["updates"])):
        for name in TERMS:
            check(page, name, number, 0, 0)
            page.get_by_role("button", name="Next").click()
    check(page, "loss", len(LOG["updates"]) - 1, 0, 0)
    page.get_by_role("button", name="Back").click()
    check(page, "completions", len(LOG["updates"]) - 1, 0, 0)
    assert page.trouble == []


@pytest.mark.slow
def test_every_cell_shows_the_number_of_its_token(show):
    page = show()
    for number in range(len(LOG["updates"])):
        page.get_by_label("which update of the step").select_option(str(number))
        for name, digits in (("ratio", 2), ("clip", 2), ("min", 2), ("kl", 2), ("beta", 3)):
            term(page, name).click()
            values, mask = explored_formula(LOG, number)[name].flatten(), LOG["mask"]
            cells = page.locator(".ng-cell").all_inner_texts()
            for i, text in enumerate(cells):
                if mask[i // T][i % T]:
                    word, shown = text.rsplit(" ", 1)
                    assert word == LOG["tokens"][i // T][i % T]
                    assert math.isclose(float(shown), values[i], abs_tol=0.51 * 10**-digits), (name, i)
                else:
                    assert text == "pad"


@pytest.mark.slow
@pytest.mark.parametrize("way", ["mouse", "touch", "keyboard"])
def test_a_term_is_pointed_at_and_a_token_chosen(show, way):
    page = show(has_touch=way == "touch")
    page.get_by_label("which update of the step").select_option("1")
    cell, row, token = page.locator(".ng-cell").nth(T + 1), 1, 1
    if way == "mouse":
        cell.click()
        term(page, "min").hover()
        check(page, "min", 1, row, token)
        page.mouse.move(5, 5)  # the selection stays when the pointer leaves
    elif way == "touch":
        cell.tap()
        term(page, "kl").tap()
        check(page, "kl", 1, row, token)
        term(page, "min").tap()
    else:
        term(page, "loss").focus()
        for _ in range(4):
            page.keyboard.press("ArrowRight")
        assert page.evaluate("document.activeElement.dataset.term") == "min"
        page.keyboard.press("Tab")
        while page.evaluate("!document.activeElement.matches('.ng-cell')"):
            page.keyboard.press("Tab")
        for key in ("ArrowDown", "ArrowRight"):
            page.keyboard.press(key)
        term(page, "min").focus()
    check(page, "min", 1, row, token)
    assert page.trouble == []


@pytest.mark.slow
def test_a_screen_reader_is_told_names_states_and_the_number(show):
    page = show()
    for name in TERMS:
        button = term(page, name)
        assert button.count() == 1 and re.search(r": [a-z][\w ]+$", button.text_content(), re.IGNORECASE)
        button.click()
        assert button.get_attribute("aria-pressed") == "true"
        assert page.locator("button.ng-term[aria-pressed=true]").count() == 1
    words = page.locator("output")
    assert words.get_attribute("aria-live") == "polite" and "objective" in words.inner_text()
    assert all(page.locator(".ng-cell").evaluate_all("all => all.map((e) => e.textContent.length > 0)"))
    page.locator(".ng-cell").last.click()
    term(page, "ratio").click()
    assert "padding" in words.inner_text() or LOG["mask"][-1][-1]


@pytest.mark.slow
def test_with_reduced_motion_nothing_moves(show):
    for setting, expected in (("reduce", "0s"), ("no-preference", "0.15s")):
        page = show(reduced_motion=setting)
        style = "e => getComputedStyle(e).transitionDuration"
        assert term(page, "min").evaluate(style) == expected


@pytest.mark.slow
def test_on_a_phone_formula_number_tokens_and_code_are_seen_and_the_selection_stays(show):
    page = show(viewport=PHONE, has_touch=True, is_mobile=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    page.locator(".ng-cell").nth(T + 1).tap()
    term(page, "min").tap()
    before = page.evaluate(LIT)
    inside = (
        """e => { const b = e.getBoundingClientRect(); return b.top >= -1 && b.bottom <= innerHeight + 1; }"""
    )
    for part in (".ng-batch", ".ng > .ng-code code[data-lit]"):
        page.locator(part).last.scroll_into_view_if_needed()
        assert page.locator(".ng-formula").evaluate(inside), "the formula has left the screen"
        assert page.locator("output").evaluate(inside), "the number has left the screen"
        assert page.locator(part).last.evaluate(inside)
    assert page.evaluate(LIT) == before
    boxes = page.locator("button.ng-term, .ng-cell").evaluate_all(
        "all => all.map((e) => { const b = e.getBoundingClientRect(); return Math.min(b.width, b.height); })"
    )
    assert min(boxes) >= 24, "too small for a finger"


@pytest.mark.slow
@pytest.mark.parametrize("size", [pagecheck.WIDE, pagecheck.PHONE], ids=["wide", "phone"])
def test_in_the_chapter_the_formula_and_its_number_stay_below_the_bar_of_the_page(visit, size):
    page = visit("book/grpo", size=size)
    figure = page.get_by_role("group", name="GRPO's formula over a real update")
    figure.locator("button[data-term=kl]").click()
    page.evaluate(
        """() => document.querySelector(".ng > .ng-code code[data-lit]")
          .scrollIntoView({ block: "end", behavior: "instant" })"""
    )
    bar = page.locator(".bd-header-article").bounding_box()
    for part in (".ng-formula", ".ng-readout"):
        box = figure.locator(part).bounding_box()
        assert box["y"] >= bar["y"] + bar["height"] - 1 and box["y"] + box["height"] <= size["height"]
    assert figure.locator("button.ng-term[data-lit]").get_attribute("data-term") == "kl"
    assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
    assert page.trouble == []

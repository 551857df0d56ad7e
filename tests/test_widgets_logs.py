"""The rollout viewer and the run explorer: they compute what the package does, and read what was logged."""

import csv
import importlib.util
import io
import json
import math
import random
import re
import sys
from dataclasses import replace

import pytest
from widgetcheck import PHONE, WIDE, call, close, mount

from nanogrpo import grpo
from nanogrpo.errors import LogError
from nanogrpo.metrics import read_csv
from nanogrpo.show import stats
from nanogrpo.show.plotting import LABELS, smooth
from nanogrpo.show.source import REPOSITORY, ROOT, source_link
from nanogrpo.show.studies import STUDIES, study_log
from nanogrpo.show.widgets.rollouts import SOURCES, RolloutViewer, explored_group, explored_token
from nanogrpo.show.widgets.runs import RunExplorer, explored_curve, for_page, read_study, thin

LOG = study_log("rollouts/rollouts.json")
STEPS, CONFIG = (json.loads(LOG.read_text())[name] for name in ("steps", "config"))
GROUPS = [(i, j) for i, record in enumerate(STEPS) for j in range(len(record["groups"]))]


def completions(i, j):
    return STEPS[i]["groups"][j]["completions"]


def study(name):
    """The script of a study, as a module."""
    spec = importlib.util.spec_from_file_location(name, STUDIES / name / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- the log of the rollout study


def test_the_study_makes_the_steps_of_the_trainer(monkeypatch, tmp_path):
    run = study("rollouts")
    config = replace(run.CONFIG, max_steps=2, prompts_per_step=4)
    monkeypatch.setattr(run, "CONFIG", config)
    monkeypatch.setattr(run, "EVERY", 1)
    monkeypatch.setattr(sys, "argv", ["run.py", "--output", str(tmp_path / "log.json")])
    run.main()
    log = json.loads((tmp_path / "log.json").read_text())["steps"]
    model, _ = run.load("addition")
    expected = list(grpo.train(model, run.TASK.tokenizer, run.TASK.split()[0], run.exact_match, config))
    names = ("step", "reward", "clip_ratio/region_mean")
    assert [[record[name] for name in names] for record in log] == [
        [round(row[name], 4) for name in names] for row in expected
    ]
    assert any(any(row["log_ratios"]) for group in log[1]["groups"] for row in group["completions"])


def test_the_log_of_the_rollouts_is_whole_and_names_what_made_it():
    log = json.loads(LOG.read_text())
    assert LOG.stat().st_size < 60_000
    assert "dirty" not in log["environment"]["commit"] and log["environment"]["processor"]
    assert [record["step"] for record in STEPS] == [1, *range(5, 61, 5)]
    run = study("rollouts")
    assert CONFIG == {name: getattr(run.CONFIG, name) for name in CONFIG} and log["seed"] == run.CONFIG.seed
    for i, j in GROUPS:
        a, b = map(int, STEPS[i]["groups"][j]["prompt"].rstrip("=").split("+"))
        assert len(completions(i, j)) == CONFIG["group_size"]
        for row in completions(i, j):
            right = row["tokens"] == [*str(a + b), run.END]
            assert row["reward"] == float(right)
            assert len(row["tokens"]) == len(row["logprobs"]) == len(row["log_ratios"]) == len(row["clipped"])


def test_every_number_of_the_log_is_what_the_package_makes_of_it():
    marked = 0
    for i, j in GROUPS:
        expected = explored_group([row["reward"] for row in completions(i, j)])["advantages"]
        assert close([row["advantage"] for row in completions(i, j)], expected, 1e-4)
        for row in completions(i, j):
            for logprob, log_ratio, flag in zip(
                row["logprobs"], row["log_ratios"], row["clipped"], strict=True
            ):
                found = explored_token(logprob, log_ratio, row["advantage"])
                on_the_edge = min(abs(found["ratio"] - edge) for edge in (0.8, 1.2)) < 1e-3
                assert on_the_edge or found["clipped"] == bool(flag)
                marked += flag
    assert marked > 50, "the log shows hardly any clipped token"


# --- arithmetic


def random_tokens(count):
    draw = random.Random(0)
    choose = (-1.3, -0.4, 0.0, 0.4, 2.6)
    return [
        (-draw.expovariate(1), draw.gauss(0, 0.4), draw.choice(choose), draw.random(), draw.random())
        for _ in range(count)
    ]


TOKEN_LIMITS = [(0.0, 0.0, 0.0), (-20.0, 3.0, 1.0), (-20.0, 3.0, -1.0), (-0.1, -9.0, 1.0), (-0.1, -9.0, -1.0)]


@pytest.mark.parametrize("rows", [random_tokens(150), TOKEN_LIMITS], ids=["random", "limits"])
def test_the_script_says_of_a_token_what_the_package_says(browser, rows):
    for row, got in zip(rows, call(browser, "rollouts", "tokenOf", rows), strict=True):
        expected = explored_token(*row)
        assert got.keys() == expected.keys() and got["clipped"] == expected["clipped"], row
        assert close([float(v) for v in got.values()], [float(v) for v in expected.values()], 1e-12), row


def test_the_script_compares_a_group_as_the_package_does(browser):
    draw = random.Random(0)
    kinds = (lambda: float(draw.random() < 0.4), lambda: draw.uniform(-2, 2), lambda: 0.3)
    rows = [[[kinds[i % 3]() for _ in range(draw.randint(2, 64))]] for i in range(120)]
    for (rewards,), got in zip(rows, call(browser, "rollouts", "groupOf", rows), strict=True):
        expected = explored_group(rewards)
        assert close([got["mean"], got["std"]], [expected["mean"], expected["std"]], 1e-9)
        assert close(got["advantages"], expected["advantages"], 1e-9)
        assert len(set(rewards)) > 1 or got["advantages"] == [0.0] * len(rewards)


def random_logs(count):
    """Runs with one to twelve seeds; some values are missing, and some seeds end early."""
    draw = random.Random(1)
    for _ in range(count):
        n, length = draw.choice([1, 2, 3, 5, 12]), draw.randint(1, 12)
        seeds = {}
        for seed in range(n):
            m = length if draw.random() < 0.8 else draw.randint(1, length)
            values = [
                None if draw.random() < 0.05 else draw.gauss(0, 10 ** draw.uniform(-3, 3)) for _ in range(m)
            ]
            seeds[str(seed)] = {"step": [10.0 * i for i in range(m)], "reward": values}
        yield {"a": seeds}, "a", "reward", draw.randint(1, 6), draw.choice([0.9, 0.95, 0.99])


def test_mean_interval_and_smoothing_of_the_script_are_those_of_stats(browser):
    rows = list(random_logs(150))
    for row, got in zip(rows, call(browser, "runs", "curveOf", rows), strict=True):
        expected = explored_curve(*row)
        assert len(got) == len(expected)
        for found, wanted in zip(got, expected, strict=True):
            assert found[:2] == list(wanted[:2]), "another step, or another number of seeds"
            if wanted[1] > 1:
                assert close(found[2:], list(wanted[2:]), 1e-9), row
            else:
                assert close(found[2:3], [wanted[2]], 1e-9) and all(math.isnan(x) for x in found[3:])


@pytest.mark.parametrize("level", [0.5, 0.9, 0.95, 0.99])
def test_the_quantile_of_the_script_is_students(browser, level):
    from scipy.stats import t

    rows = [(level, df) for df in [*range(1, 40), 99, 400]]
    for (_, df), got in zip(rows, call(browser, "runs", "tQuantile", rows), strict=True):
        assert math.isclose(got, t.ppf((1 + level) / 2, df), rel_tol=1e-9)


def test_smoothing_of_the_script_is_that_of_the_plots(browser):
    draw = random.Random(2)
    rows = [([draw.gauss(0, 1) for _ in range(draw.randint(1, 30))], draw.randint(1, 40)) for _ in range(100)]
    for row, got in zip(rows, call(browser, "runs", "smooth", rows), strict=True):
        assert close(got, smooth(*row), 1e-12)


def test_the_axis_ends_at_round_numbers_that_enclose_the_values(browser):
    draw = random.Random(3)
    rows = [sorted(draw.gauss(0, 10 ** draw.uniform(-4, 5)) for _ in range(2)) for _ in range(100)]
    for (low, high), ticks in zip(rows, call(browser, "runs", "ticks", rows), strict=True):
        tolerance = 1e-5 * (high - low)
        assert ticks[0] <= low + tolerance and ticks[-1] >= high - tolerance and 3 <= len(ticks) <= 7
    assert call(browser, "runs", "ticks", [(0.0, 0.0), (2.0, 2.0)]) == [
        [-0.5, -0.25, 0.0, 0.25, 0.5],
        [1, 1.5, 2, 2.5, 3],
    ]


# --- logs of studies


def test_a_study_with_run_and_seed_is_read_and_thinned(tmp_path):
    """The layout of book/studies/ppo_vs_grpo: one file, a run may lack a column."""
    path = tmp_path / "metrics.csv"
    path.write_text(
        "run,seed,step,reward,value_loss\ngrpo,0,1,0.5,\ngrpo,0,2,0.7,\nppo,0,1,0.1,3\nppo,0,2,0.2,2\nppo,1,1,0,1\n"
    )
    runs = read_study(path)
    assert runs["ppo"]["0"] == {"step": [1, 2], "reward": [0.1, 0.2], "value_loss": [3, 2]}
    assert all(math.isnan(v) for v in runs["grpo"]["0"]["value_loss"])
    logs, size = for_page(runs, ["reward", "value_loss"], points=1)
    assert size == 2 and logs["grpo"]["0"] == {"step": [2.0], "reward": [0.6], "value_loss": [None]}
    assert logs["ppo"]["1"] == {"step": [1.0], "reward": [0.0], "value_loss": [1.0]}
    json.dumps(logs, allow_nan=False)
    with pytest.raises(LogError, match="kl"):
        for_page(runs, ["kl"])


@pytest.mark.parametrize("text", ["seed,step\n0,1\n", "run,seed,step\na,0,x\n", "run,seed,step\na,0,1,2\n"])
def test_a_damaged_study_is_refused(tmp_path, text):
    path = tmp_path / "metrics.csv"
    path.write_text(text)
    with pytest.raises(LogError, match="line 2"):
        read_study(path)
    with pytest.raises(LogError, match="cannot read"):
        read_study(tmp_path / "none.csv")
    with pytest.raises(LogError, match="no log of"):
        RolloutViewer.of(path)


def test_a_thinned_value_is_the_mean_of_its_steps_and_a_gap_stays_a_gap():
    assert thin([1.0, 3.0, math.inf, 1.0, 0.123456], 2) == [2.0, None, 0.1235]
    assert thin([0.123456], 1, digits=2) == [0.12]


def test_the_committed_logs_fit_a_page():
    logs, size = for_page(quickstart(), ["reward", "entropy", "frac_reward_zero_std"])
    assert size == 2 and all(len(log["step"]) == 100 for seeds in logs.values() for log in seeds.values())
    assert len(json.dumps(logs)) < 60_000


@pytest.mark.skipif(not (STUDIES / "ppo_vs_grpo" / "comparison").is_dir(), reason="its logs are not here yet")
def test_the_comparison_of_ppo_and_grpo_can_be_explored():
    folder = STUDIES / "ppo_vs_grpo" / "comparison"
    for name, metrics in (("metrics.csv", ["reward", "entropy"]), ("success.csv", ["success", "kl"])):
        explorer = RunExplorer.of(read_study(folder / name), metrics)
        assert len(explorer.logs) >= 2 and len(json.dumps(explorer.logs)) < 120_000


def quickstart():
    return {
        f"learning rate {rate}": {
            seed: read_csv(study_log(f"quickstart/seed{seed}-lr{rate}.csv")) for seed in range(5)
        }
        for rate in ("0.0003", "0.001")
    }


def test_the_download_is_what_is_drawn(browser):
    logs, _ = for_page(quickstart(), ["reward", "entropy"], points=20)
    logs["learning rate 0.001"]["0"]["reward"][3] = None
    logs['odd, "name"'] = logs.pop("learning rate 0.0003")
    for chosen in ([], ["learning rate 0.001"], ["learning rate 0.001", 'odd, "name"']):
        rows = list(csv.DictReader(io.StringIO(call(browser, "runs", "csvOf", [(logs, chosen)])[0])))
        assert {row["run"] for row in rows} == set(chosen)
        for run in chosen:
            for seed, log in logs[run].items():
                own = [row for row in rows if (row["run"], row["seed"]) == (run, seed)]
                for name in ("step", "reward", "entropy"):
                    expected = [math.nan if v is None else v for v in log[name]]
                    assert str([float(row[name]) for row in own]) == str([float(v) for v in expected])


# --- links


def test_links_lead_to_the_lines_of_the_package():
    for name in SOURCES.values():
        path, first, last = re.fullmatch(
            re.escape(REPOSITORY) + r"/blob/main/(.*)#L(\d+)-L(\d+)", source_link(name)
        ).groups()
        lines = (ROOT / path).read_text(encoding="utf-8").splitlines()[int(first) - 1 : int(last)]
        start = next(line for line in lines if not line.startswith("@"))
        assert start.startswith(f"def {name.rsplit('.', 1)[1]}(") and lines[-1].lstrip().startswith("return")
    assert RolloutViewer.of(LOG).sources["clip"]["url"] == source_link("nanogrpo.losses.clipped_surrogate")
    with pytest.raises(AttributeError):
        source_link("nanogrpo.losses.nothing")


def test_the_book_counts_the_lines_anew_when_it_is_built():
    sys.path.insert(0, str(ROOT / "book" / "_ext"))
    from static_site import relink

    name = SOURCES["clip"]
    now = json.dumps({"sources": RolloutViewer.of(LOG).sources, "other": "stays"})
    then = re.sub(r"#L\d+-L\d+", "#L1-L2", now)
    assert then != now and relink(then, pytest.fail) == now and source_link(name) in now
    heard, gone = [], then.replace(name, "nanogrpo.losses.no_such_function")
    assert relink(gone, heard.append).count("#L1-L2") == 1 and "no_such_function" in heard[0]


# --- read-outs at the limits

ONE = {"a": {"0": {"step": [1, 2], "reward": [0.5, None]}}}


def values(**changes):
    base = {"logs": ONE, "chosen": ["a"], "metric": "reward", "window": 1, "level": 0.95, "each": False}
    return base | {"at": 1, "labels": {"reward": "mean reward"}, "block": 1} | changes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "a: 0.5, of one seed, so there is no interval."),
        ({"at": 2}, "a: no value here"),
        ({"at": math.nan}, "At step 1"),
        ({"window": 2, "at": 2}, "no value here"),
        ({"chosen": []}, "No run is chosen"),
        ({"chosen": ["b"]}, "no run b; they have a"),
        ({"metric": "kl"}, "no metric kl; they have reward"),
        ({"window": 0.5}, "must be a whole number"),
        ({"logs": {}, "chosen": []}, "There is no log"),
        ({"block": 4}, "A point is the mean of 4 steps"),
        ({"each": True}, "(seed 0: 0.5)"),
        (
            {"logs": {"a": {"0": ONE["a"]["0"], "1": {"step": [2], "reward": [3.0]}}}, "at": 2},
            "3, of one seed of 2",
        ),
    ],
)
def test_the_run_explorer_says_what_is_the_case(browser, changes, words):
    assert words in call(browser, "runs", "readout", [(values(**changes),)])[0]


@pytest.mark.slow
def test_the_rollout_viewer_says_what_is_the_case(browser):
    def said(steps, *place):
        return call(browser, "rollouts", "readout", [(steps, CONFIG, *place)])[0]

    tied = next((i, j) for i, j in GROUPS if len({row["reward"] for row in completions(i, j)}) == 1)
    assert "every advantage is exactly 0" in said(STEPS, *tied, 0, 0) and "Advantage 0" in said(
        STEPS, *tied, 0, 0
    )
    assert "has no step" in said([], 0, 0, 0, 0)
    assert "no prompt 9" in said(STEPS, 0, 8, 0, 0)
    broken = json.loads(json.dumps(STEPS[:1]))
    broken[0]["groups"][0]["completions"][0]["logprobs"][0] = None
    assert "no log-prob or no log-ratio" in said(broken, 0, 0, 0, 0)
    rows = [(STEPS, CONFIG, i, j, 0, 0) for i, j in GROUPS]
    pushed = 0
    for (_, _, i, j, *_), words in zip(rows, call(browser, "rollouts", "readout", rows), strict=True):
        row = completions(i, j)[0]
        pushed += row["advantage"] != 0
        assert ("\nClipped: " in words) == bool(row["clipped"][0])
        assert ("\nAdvantage 0: " in words) == (row["advantage"] == 0)
    assert pushed > 10


# --- in the page


def expected_token(i, j, k, t):
    row = completions(i, j)[k]
    found = explored_token(row["logprobs"][t], row["log_ratios"][t], row["advantage"])
    sign = "+" if row["log_ratios"][t] > 0 else ""
    return (
        f'Its token {t + 1}, "{row["tokens"][t]}", was sampled with probability {found["before"]:.3f} '
        f"(log-prob {row['logprobs'][t]:.3f}). After the step it has {found['after']:.3f}: "
        f"log-ratio {sign}{row['log_ratios'][t]:.3f}, ratio {found['ratio']:.3f}."
    ).replace("-0.000", "0.000")


@pytest.mark.slow
def test_the_rollout_viewer_is_turned_by_hand_and_by_keyboard(browser):
    with browser.new_context(viewport=WIDE) as context:
        page = mount(context, [RolloutViewer.of(LOG, at=4)])
        words, table = page.locator("output"), page.locator("table")

        def check(i, j, k, t):
            assert expected_token(i, j, k, t) in words.inner_text()
            rows = completions(i, j)
            tokens = table.locator("b").all_inner_texts()
            assert tokens == [x.replace("<eos>", "eos") for row in rows for x in row["tokens"]]
            dashed = table.locator("[data-clipped]").count()
            assert dashed == sum(sum(row["clipped"]) for row in rows)
            assert f"step {STEPS[i]['step']}" == page.get_by_label("training step").get_attribute(
                "aria-valuetext"
            )
            pressed = table.locator("[aria-pressed=true]")
            assert pressed.count() == 1 == table.locator("[tabindex='0']").count()

        check(4, 0, 0, 0)
        table.locator("tbody tr").nth(2).get_by_role("button").nth(1).click()
        check(4, 0, 2, 1)
        page.keyboard.press("ArrowDown")
        page.keyboard.press("ArrowRight")
        check(4, 0, 3, 2)
        before = table.inner_html()
        page.get_by_label("training step").press("ArrowRight")
        check(5, 0, 3, min(2, len(completions(5, 0)[3]["tokens"]) - 1))
        assert table.inner_html() != before
        page.get_by_label("prompt of the batch").select_option("2")
        check(5, 2, 3, min(2, len(completions(5, 2)[3]["tokens"]) - 1))
        page.get_by_label("numbers and colors").select_option("advantage")
        shown = table.locator("tbody tr").first.get_by_role("button").first.inner_text().split()[1]
        assert float(shown) == pytest.approx(completions(5, 2)[0]["advantage"], abs=0.006)
        page.get_by_label("training step").press("End")
        assert "Step 60," in words.inner_text()
        for name, place in RolloutViewer.of(LOG).sources.items():
            assert page.get_by_role("link", name=name, exact=True).get_attribute("href") == place["url"]
        assert page.trouble == []


@pytest.mark.slow
def test_the_run_explorer_is_turned_read_and_saved(browser):
    explorer = RunExplorer.of(quickstart(), ["reward", "entropy"], window=5, folder=REPOSITORY)
    logs = explorer.logs
    good, bad = logs
    with browser.new_context(viewport=WIDE) as context:
        page = mount(context, [explorer])
        words, drawing = page.locator("output"), page.locator(".ng-panels")
        seen = []

        def check(step, metric, window, level, runs):
            lines = words.inner_text().splitlines()
            assert lines[0].startswith(f"At step {step:g}, {LABELS[metric]}")
            for run, line in zip(runs, lines[1:], strict=False):
                row = next(
                    row for row in explored_curve(logs, run, metric, window, level or 0.95) if row[0] == step
                )
                expected = f"{run}: mean {row[2]:.4g} over 5 seeds"
                expected += f", {100 * level:.0f} % interval {row[3]:.4g} to {row[4]:.4g}." if level else "."
                assert line == expected
            seen.append(drawing.inner_html())
            assert len(set(seen)) == len(seen), "the drawing did not change"

        check(200, "reward", 5, 0.95, logs)
        curves = [smooth(log["reward"], 5)[-1] for log in logs[good].values()]
        assert f"mean {stats.mean(curves).estimate:.4g}" in words.inner_text()
        page.get_by_label("metric").select_option("entropy")
        check(200, "entropy", 5, 0.95, logs)
        page.get_by_label("read at step").press("ArrowLeft")
        check(198, "entropy", 5, 0.95, logs)
        page.get_by_label("running mean").fill("10")
        check(198, "entropy", 10, 0.95, logs)
        page.get_by_label("interval over seeds").select_option("0.9")
        check(198, "entropy", 10, 0.9, logs)
        page.get_by_label("interval over seeds").select_option("0")
        check(198, "entropy", 10, 0, logs)
        page.get_by_label(good).press("Space")
        check(198, "entropy", 10, 0, [bad])
        page.get_by_label("every seed").check()
        assert words.inner_text().count("seed ") == 5
        box = drawing.locator("svg").bounding_box()
        page.mouse.move(box["x"] + box["width"] * (44 / 340), box["y"] + box["height"] / 2)
        assert words.inner_text().startswith("At step 2,")
        page.mouse.move(box["x"] + box["width"] * (186 / 340), box["y"] + box["height"] / 2)
        assert words.inner_text().startswith("At step 102,") or words.inner_text().startswith("At step 100,")
        with page.expect_download() as saved:
            page.get_by_role("button", name="Download").click()
        rows = list(csv.DictReader(io.StringIO(saved.value.path().read_text(encoding="utf-8"))))
        assert saved.value.suggested_filename == "runs.csv" and {row["run"] for row in rows} == {bad}
        assert len(rows) == 500
        page.get_by_label(bad).uncheck()
        assert "No run is chosen" in words.inner_text() and drawing.locator("svg").count() == 0
        assert page.get_by_role("button", name="Download").is_disabled()
        page.get_by_label(good).check()
        assert words.inner_text().startswith("At step 10")
        assert page.trouble == []


@pytest.mark.slow
def test_logs_with_one_run_one_seed_one_step_and_gaps_are_drawn(browser):
    nan = math.nan
    logs = {
        "one step": {0: {"step": [1], "reward": [0.5]}},
        "gap": {
            0: {"step": [1, 2, 3, 4], "reward": [0.1, nan, 0.3, 0.2]},
            1: {"step": [1, 2], "reward": [0.2, nan]},
        },
        "nothing": {0: {"step": [1, 2], "reward": [nan, nan]}},
    }
    with browser.new_context(viewport=WIDE) as context:
        for chosen in (list(logs), ["one step"], ["gap"], ["nothing"]):
            page = mount(context, [RunExplorer.of(logs, ["reward"], chosen=chosen, at=1, each=True)])
            assert page.locator(".ng-panels svg").count() == 1
            assert "NaN" not in page.locator(".ng-panels").inner_html()
            if "gap" in chosen:
                assert "gap: mean 0.15 over 2 seeds, 95 % interval" in page.locator("output").inner_text()
            if chosen == ["gap"]:
                paths = page.locator("path").evaluate_all("all => all.map(e => e.getAttribute('d'))")
                assert paths[-1].count("M") == 2, "the gap of the log is drawn over"
            assert page.trouble == []


@pytest.mark.slow
def test_both_fit_a_phone_and_every_control_has_a_name(browser):
    with browser.new_context(viewport=PHONE) as context:
        page = mount(context, [RolloutViewer.of(LOG, at=1), RunExplorer.of(quickstart(), ["loss", "reward"])])
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        table, room = page.locator("table").bounding_box(), page.locator(".ng-scroll").bounding_box()
        assert table["width"] <= room["width"], "the heat map is cut off"
        unnamed = """() => [...document.querySelectorAll("input, select, button")]
          .filter(e => !(e.labels?.[0]?.textContent || e.textContent).trim()).length"""
        assert page.evaluate(unnamed) == 0
        beyond = """() => [...document.querySelectorAll("svg text")].filter(text => {
          const [own, svg] = [text, text.ownerSVGElement].map(e => e.getBoundingClientRect());
          return own.left < svg.left - 1 || own.right > svg.right + 1; }).map(text => text.textContent)"""
        assert page.evaluate(beyond) == [], "words that the drawing cuts off"
        assert page.trouble == []

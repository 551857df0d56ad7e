"""What the chapter on PPO says, against the logs that it reads and the outputs that it stores."""

import json
import re
import runpy
from pathlib import Path

import pytest
from tolerance import seed_margin

from nanogrpo.show import stats
from nanogrpo.show.seeds import final, study_runs

ROOT = Path(__file__).parents[1]
STUDY = "ppo_vs_grpo"


@pytest.fixture(scope="module")
def printed():
    """All text that the chapter's cells printed."""
    cells = json.loads((ROOT / "book/ppo.ipynb").read_text(encoding="utf-8"))["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", ())]
    return "\n".join("".join(output.get("text", "")) for output in outputs)


@pytest.fixture(scope="module")
def table():
    """The ablation's table, as it is stored: the words of each row."""
    cells = json.loads((ROOT / "book/ppo.ipynb").read_text(encoding="utf-8"))["cells"]
    (cell,) = [c for c in cells if "PARTS = {" in "".join(c["source"])]
    (output,) = [o for o in cell["outputs"] if "text/html" in o.get("data", {})]
    rows = re.findall(r"<tr>(.*?)</tr>", "".join(output["data"]["text/html"]), re.DOTALL)
    names = re.findall(r'"([\w.-]+)": "', "".join(cell["source"]).split("}")[0])
    return dict(zip(names, [re.findall(r"<td>(.*?)</td>", row) for row in rows], strict=True))


@pytest.fixture(scope="module")
def success():
    log = study_runs(f"{STUDY}/ablation/success")
    return {run: 100 * final(log, run) for run in log["run"].unique()}


def ends(printed):
    return [float(x) for x in re.findall(r"([\d.]+)%", re.search("right answer: (.*)", printed)[1])]


def test_the_live_run_reaches_nine_tenths_of_the_study_s_best_run(printed):
    log = study_runs(f"{STUDY}/comparison/success")
    best = max(100 * final(log, run).max() for run in log["run"].unique())
    before, after = ends(printed)
    assert before < 0.5 * best < 0.9 * best <= after


def test_the_live_run_is_the_study_s_first(printed):
    seeds = 100 * final(study_runs(f"{STUDY}/comparison/success"), "ppo-256x1")
    assert abs(ends(printed)[1] - seeds[0]) < seed_margin(seeds), "another machine's run is as another seed's"


def test_the_ablation_has_the_parts_that_its_script_names(table, success):
    script = runpy.run_path(str(ROOT / "book/studies" / STUDY / "run.py"))
    script["parts"].__globals__["tuned"] = lambda method: script["PPO"]
    assert set(table) == set(success) == set(script["parts"]())


def test_the_table_says_what_the_log_says(table, success):
    for run, cells in table.items():
        level = stats.mean(success[run])
        assert cells[:2] == [f"{level.estimate:.1f}", f"{level.low:.1f} to {level.high:.1f}"]
        if run != "full":
            gap = stats.paired_difference(success[run], success["full"])
            assert cells[2:4] == [f"{gap.estimate:+.1f}", f"{gap.low:+.1f} to {gap.high:+.1f}"]


def test_the_prose_of_the_ablation_holds_in_the_log(success):
    """What the chapter says in words, so that a new log cannot leave old words standing."""
    others = [run for run in success if run != "full"]

    def worse(level):
        gaps = {run: stats.paired_difference(success[run], success["full"], level) for run in others}
        assert all(gap.low <= 0 for gap in gaps.values()), "something is better than the full PPO"
        return {run for run, gap in gaps.items() if gap.high < 0}

    assert worse(1 - 0.05 / len(others)) == {"lambda-0"}
    assert worse(0.95) == set(others) - {"lambda-0.95", "no-whitening"}
    start = 100 * study_runs(f"{STUDY}/ablation/success")["success"].iloc[0]
    assert success["lambda-0"].max() < 0.5 * start, "it ends far below where it started"


def test_the_prose_on_the_critic_holds_in_the_log():
    """It explains something of the rewards to come, and far less than the perfect critic's half."""
    log = study_runs(f"{STUDY}/comparison/metrics")
    late = log[(log["run"] == "ppo-256x1") & (log["step"] > 60)]
    known = stats.mean(late.groupby("seed")["explained_variance"].mean())
    assert 0.05 < known.low < known.high < 0.2

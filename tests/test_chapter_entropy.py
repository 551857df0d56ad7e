"""What the chapter on entropy claims, run from its own cells: direction, size, and a margin."""

import math
import re
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch

from nanogrpo.show.stats import mean, paired_difference

CHAPTER = Path(__file__).resolve().parents[1] / "book" / "entropy.ipynb"


@pytest.fixture(scope="module", autouse=True)
def doubles():
    kind = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(kind)


def run(*names):
    """The chapter's cells of these names, run in order; the names that they define."""
    cells = {c.id.removeprefix("entropy-"): c.source for c in nbformat.read(CHAPTER, as_version=4).cells}
    space = {}
    for name in ("setup", *names):
        exec(re.sub(r"%pip.*", "pass", cells[name]), space)
    return space


@pytest.fixture(scope="module")
def gauges():
    return run("readings")


@pytest.fixture(scope="module")
def trained():
    return run("readings", "run", "alarms")


def test_true_entropy_falls_while_the_proxy_rises(gauges):
    begin, later = (gauges["readings"](gauges["takeover"](t)) for t in (1 / 65, 0.6))
    assert begin["exact"] == pytest.approx(math.log(65)) and later["exact"] == pytest.approx(2.34, abs=0.01)
    assert begin["mean proxy"] == pytest.approx(0.064, abs=1e-3)
    assert later["mean proxy"] == pytest.approx(0.197, abs=1e-3)
    for t in (0.02, 0.3, 0.9, 0.999):
        found = gauges["readings"](gauges["takeover"](t))
        assert found["mean surprise"] == pytest.approx(found["exact"], abs=1e-12)
        assert found["mean proxy"] <= min(found["exact"], 1 / math.e)


def test_the_proxy_summed_over_tokens_is_no_bound_on_the_entropy_of_a_token():
    cell = run("readings", "coin")
    assert cell["summed"] == pytest.approx(32 * math.log(2))
    assert cell["summed"] > 30 * cell["entropy"](cell["coin"])
    assert cell["summed"] < 64 * cell["entropy"](cell["coin"])


def test_with_two_tokens_the_proxy_would_not_have_misled(gauges):
    def proxies(size):
        grid = torch.linspace(1 / size, 0.99, 60).tolist()
        return np.array([gauges["readings"](gauges["takeover"](t, size))["mean proxy"] for t in grid])

    assert (np.diff(proxies(2)) < 0).all()
    assert proxies(65).max() > 3 * proxies(65)[0]


@pytest.mark.slow
def test_the_run_collapses_and_the_proxy_warns_late_or_never(trained):
    alarm = trained["alarm"]
    assert len(trained["runs"]) == 5
    for seed, rows in enumerate(trained["runs"]):
        exact, proxy = rows["exact"], rows["mean proxy"]
        assert rows["reward"].iloc[-1] > 0.95, f"seed {seed} did not learn"
        warned, late = alarm(exact), alarm(proxy)
        assert proxy[warned] > 1.3 * proxy[0], "the proxy should have risen while entropy fell to half"
        assert late is None or (late >= warned + 10 and exact[late] < 0.2 * exact[0])
        logged = alarm(rows["logged"].shift(-1)[:-1])
        assert abs(logged - warned) <= 4


def test_expected_gradients_of_the_bonuses():
    cell = run("readings", "slope")
    for t in (0.05, 0.1, 0.3, 0.9):
        assert cell["slope"]("surprise in the reward", t) == pytest.approx(1.0, abs=1e-9)
        assert abs(cell["slope"]("surprise in the loss", t)) < 1e-9
    assert max(cell["slope"]("proxy in the loss", t) for t in (0.05, 0.1, 0.3)) < -0.005
    assert cell["slope"]("proxy in the loss", 0.9) > 0.05


def test_a_bonus_on_the_proxy_lowers_the_entropy_and_an_exact_one_raises_it():
    paid = run("readings", "slope", "pay")["paid"]
    change = {kind: (curves[:, -1] - curves[:, 0]).tolist() for kind, curves in paid.items()}
    most = math.log(65) - paid["exact"][0, 0].item()
    for kind in ("exact", "surprise in the reward"):
        assert min(change[kind]) > 0.9 * most
    assert max(change["proxy in the loss"]) < -0.1
    wander = mean(change["surprise in the loss"])
    assert wander.low < 0 < wander.high and wander.high < 0.3 * most


@pytest.mark.slow
def test_bonuses_end_where_the_formula_says_and_a_large_one_takes_over():
    cell = run("readings", "run", "coefs")
    ends = {c: [r.iloc[-1] for r in found] for c, found in cell["paying"].items()}
    for c in cell["COEFS"][1:]:
        reward, left = cell["optimum"](c)
        assert mean([end["reward"] for end in ends[c]]).estimate == pytest.approx(reward, abs=0.06)
        assert mean([end["exact"] for end in ends[c]]).estimate == pytest.approx(left, abs=0.3)
    more = paired_difference(*([end["exact"] for end in ends[c]] for c in (0.1, 0.0)))
    assert more.low > 0.8
    assert all(end["exact"] > 0.95 * math.log(65) and end["reward"] < 0.3 for end in ends[1.0])


def test_the_same_coefficient_explodes_where_answers_are_long():
    cell = run("readings", "half")
    half = cell["half_point"]
    odds = math.exp(1 / half(65, 1))  # of one right answer to one wrong, at the best policy
    assert 5 * odds / (5 * odds + 60) == pytest.approx(0.5)
    assert half(65, 100) < half(65, 1) / 90 and half(150_000, 100) < half(65, 100) / 3


@pytest.mark.slow
def test_clip_higher_speeds_learning_and_keeps_no_entropy_at_equal_reward():
    cell = run("readings", "run", "clip")
    clipped, at = cell["clipped"], cell["entropy_at"]
    speed = paired_difference(*([r["reward"][3] for r in clipped[h]] for h in (4.0, 0.2)))
    assert speed.low > 0.05
    for high in (0.28, 4.0):
        kept = paired_difference(*([at(r, 0.9) for r in clipped[h]] for h in (high, 0.2)))
        assert kept.low < 0.05, "more entropy at equal reward: the chapter says that this is not seen"
    step = paired_difference(*([r["exact"][12] for r in clipped[h]] for h in (0.28, 0.2)))
    assert step.low < 0 < step.high, "the chapter says that 0.28 against 0.2 shows no effect"


def test_the_covariance_law_is_exact_and_a_rare_right_token_raises_the_entropy(capsys):
    cell = run("readings", "covariance")
    (likely, law_likely), (rare, law_rare) = cell["slopes"].values()
    assert likely == pytest.approx(law_likely, abs=1e-12) and rare == pytest.approx(law_rare, abs=1e-12)
    assert likely < -0.01 and rare > 1e-3
    for seed in range(5):
        chance = torch.Generator().manual_seed(seed)
        logits, change = torch.randn(2, 7, generator=chance)
        size = 1e-5
        ends = [cell["entropy"](logits + sign * size * change).item() for sign in (1, -1)]
        assert cell["covariance_law"](logits, change) == pytest.approx(
            (ends[0] - ends[1]) / 2 / size, abs=1e-7
        )


def test_the_exact_sums_of_the_clip_on_coins_have_the_signs_that_are_said():
    cell = run("readings", "coins")
    exact, shares = cell["exact"], cell["SHARES"]
    low, high = (exact[f"clip-{side} only"] - exact["no clip"] for side in ("low", "high"))
    assert (low > 1e-3).all()
    assert (high[shares < 0.5] > 0.01).all() and (high[shares > 0.6] < -0.01).all()
    takeover, change, clips = (cell[name] for name in ("takeover", "entropy_change", "CLIPS"))
    for t in (0.25, 0.5, 0.7, 0.9, 0.97):
        free, bound = (change(takeover(t, 4), clips[c], step=2.0) for c in ("no clip", "clip-high only"))
        assert bound > free + 0.01, "large steps"
        once = [change(takeover(t, 4), clip, step=0.5, times=1) for clip in cell["KINDS_OF_CLIP"].values()]
        assert len(set(once)) == 1, "on the first pass no clip acts"

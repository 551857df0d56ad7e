"""What the chapter on who scored the tokens claims, from its own cells: direction, size, a margin."""

import pytest
import torch
from chaptercode import computed

from nanogrpo.show.stats import mean, paired_difference

pytestmark = pytest.mark.slow  # five seeds of some fifteen trainings


@pytest.fixture(scope="module")
def cells():
    yield from computed("scored")


def ends(cells, kind, name="reward"):
    return [cells["last"](log, name) for log in cells["RUNS"][kind]]


def learns(cells, kind):
    """The reward climbs, whatever is broken: mean gain over five seeds, with its interval."""
    starts = [log["reward"][0] for log in cells["RUNS"][kind]]
    return paired_difference(ends(cells, kind), starts)


@pytest.mark.parametrize("kind", ["shift, kept", "shift, recomputed", "dropout, kept", "dropout, recomputed"])
def test_broken_trainers_learn_all_the_same(cells, kind):
    gain = learns(cells, kind)
    assert gain.estimate > 0.2 and gain.low > 0.03, f"the chapter says that the reward climbs: {gain}"


@pytest.mark.parametrize("kind", ["shift, kept", "shift, recomputed"])
def test_and_less_than_the_right_one(cells, kind):
    gap = paired_difference(ends(cells, kind), ends(cells, "right"))
    assert gap.estimate < -0.05 and gap.high < 0.01, gap


def test_the_clip_speaks_in_the_first_step_only_with_kept_log_probs(cells):
    first = {kind: [log["clip_ratio/region_mean"][0] for log in logs] for kind, logs in cells["RUNS"].items()}
    assert min(first["shift, kept"] + first["dropout, kept"]) > 0.03
    silent = ("right", "shift, recomputed", "dropout, recomputed")
    assert all(max(first[kind]) == 0 for kind in silent)


def test_at_another_temperature_recomputed_log_probs_keep_the_direction_and_kept_ones_lose_it(cells):
    found = cells["MISMATCH"]
    for t in (0.6, 1.5):
        at = [found[seed, t] for seed in cells["MODELS"]]
        assert min(row["recomputed"]["cosine"] for row in at) > 0.95
        kept = "new at 1" if t < 1 else "old at 1"
        assert sorted(row[kept]["cosine"] for row in at)[4] < -0.1, "in half of the models it points away"
        assert all(abs(row["new at 1"]["ratio"] - 1) < 1e-9 for row in at), "the mean ratio is blind to it"
        assert min(row["old at 1"]["ratio"] for row in at) > 1.01


def test_top_k_needs_a_baseline(cells):
    two = cells["topk"][cells["topk"]["k"] == 2]
    assert two["baseline"].min() > 0.8 and two["no baseline"].min() < 0
    assert two["reward 1: to drawable"].min() > 0.8 and two["mean ratio"].max() < 0.99


def test_dropout_spreads_single_ratios_and_leaves_their_mean(cells):
    for p, found in cells["gaps"].items():
        ratio = mean([gap.exp().mean() for gap in found])
        assert ratio.low - 0.01 < 1 < ratio.high + 0.01
        outside = torch.stack([((gap.exp() - 1).abs() > 0.2).float().mean() for gap in found])
        assert outside.max() == 0 if p == 0 else outside.min() > 0.05


def test_the_loss_of_what_learns_and_of_what_unlearns_is_the_same_zero(cells):
    runs = cells["RUNS"]
    for kind in ("right", "wrong sign"):
        assert max(abs(x) for log in runs[kind] for x in log["loss"]) < 1e-5
    gap = paired_difference(ends(cells, "right"), ends(cells, "wrong sign"))
    assert gap.low > 0.5 and max(ends(cells, "wrong sign")) < 0.05
    losses = [log["loss"] for log in runs["with a KL penalty"]]
    rise = paired_difference([sum(loss[-5:]) / 5 for loss in losses], [sum(loss[:5]) / 5 for loss in losses])
    assert rise.low > 0.003, "the loss rises while the reward does"
    assert learns(cells, "with a KL penalty").low > 0.2


def test_the_right_trainer_trips_no_check_and_every_bug_trips_one(cells):
    caught = {bug: {name: sum(row[name] for row in rows) for name in rows[0]} for bug, rows in
              cells["CAUGHT"].items()}  # fmt: skip
    assert not any(caught.pop("none").values())
    assert all(max(row.values()) >= 4 for row in caught.values()), caught
    recomputed = [row["ratio"] for bug, row in caught.items() if "recomputed" in bug]
    assert not any(recomputed), "recomputed log-probs blind the ratio"
    assert caught["temperature: new at 1"]["mean ratio"] == caught["temperature: old at 1"]["surprise"] == 0

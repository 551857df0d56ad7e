"""What the chapter on masks and ends claims, from its own cells: direction, size, a margin."""

import pytest
from chaptercode import computed

from nanogrpo.show.stats import paired_difference

pytestmark = pytest.mark.slow  # five seeds of some trainings


@pytest.fixture(scope="module")
def cells():
    yield from computed("masks")


def ends(cells, kind, name="reward"):
    return [cells["last"](log, name) for log in cells["RUNS"][kind]]


def learns(cells, kind):
    """The reward climbs, whatever is broken: mean gain over five seeds, with its interval."""
    starts = [log["reward"][0] for log in cells["RUNS"][kind]]
    return paired_difference(ends(cells, kind), starts)


def test_pad_equal_to_eos_never_stops_and_no_loss_says_so(cells):
    stopping = cells["stopping"]
    for kind, logs in stopping.items():
        truncated, loss = ([log[-1][name] for log in logs] for name in ("truncated", "loss"))
        assert max(loss) < 0.02 and min(log[-1]["starts right"] for log in logs) > 0.9
        if kind == "one id, mask from ids":
            assert min(truncated) > 0.9
        else:
            assert max(truncated) < 0.05, f"{kind}: it stops"


def test_without_the_eos_a_constant_reward_lengthens_and_with_it_does_nothing(cells):
    table = cells["exact_eos"]
    right, left_out = (table[table["mask"] == name] for name in ("right", "EOS left out"))
    assert right["all rewards 1: length"].max() < 1e-12 and right["one b: to the truth"].min() > 1 - 1e-9
    assert left_out["all rewards 1: to longer"].min() > 0.8 and left_out["all rewards 1: length"].min() > 1
    assert left_out["one b: to the truth"].median() > 0.5 and left_out["one b: to the truth"].min() < 0


@pytest.mark.parametrize("kind", ["EOS left out", "every token but EOS"])
def test_broken_trainers_learn_all_the_same(cells, kind):
    gain = learns(cells, kind)
    assert gain.estimate > 0.2 and gain.low > 0.03, f"the chapter says that the reward climbs: {gain}"


def test_and_less_than_the_right_one(cells):
    gap = paired_difference(ends(cells, "every token but EOS"), ends(cells, "right"))
    assert gap.estimate < -0.05 and gap.high < 0.01, gap


def test_the_length_that_is_logged_is_one_short_without_the_eos(cells):
    name = "completions/mean_length"
    gap = paired_difference(ends(cells, "right", name), ends(cells, "EOS left out", name))
    assert 0.5 < gap.low and gap.high < 2, gap


def test_only_the_early_mask_keeps_nan_out_of_the_gradient(cells):
    for way, row in cells["afterexp"].items():
        for junk, said in row.items():
            loss, slope = said.split(" / ")
            assert ("nan" in slope) == (junk != "0" and way != "early"), (way, junk, said)
            assert ("nan" in loss) == (junk != "0" and way == "multiply")

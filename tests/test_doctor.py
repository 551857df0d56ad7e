"""The doctor's rules on worked columns, each beside the nearest run that they must leave alone."""

import math
import re

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from nanogrpo.__main__ import main
from nanogrpo.show.studies import STUDIES
from nanogrpo.teach.doctor import METRICS, RULES, Curves, change, diagnose, report
from nanogrpo.teach.doctor.trends import noise, since, slope

ROWS = 40
ROOT = STUDIES.parents[1]
ONE = {"num_iterations": 1, "num_mini_batches": 1}
GROUP = {**ONE, "scale_rewards": "group", "baseline": "group", "group_size": 8}


def line(start, end, wobble=0.0):
    """A curve from start to end that wobbles up and down."""
    return [start + (end - start) * i / (ROWS - 1) + wobble * (-1) ** i for i in range(ROWS)]


def run(settings=ONE, **columns):
    """A run that learns, but for the columns that are given; None leaves one out."""
    healthy = {
        "reward": line(0.3, 0.7, 0.02),
        "reward_std": line(0.45, 0.45),
        "frac_reward_zero_std": line(0.2, 0.5),
        "completions/mean_length": line(2.4, 2.5, 0.1),
        "completions/clipped_ratio": line(0, 0),
        "entropy": line(1.0, 0.5, 0.02),
        "advantage_abs_mean": line(0.5, 0.3),
        "kl": line(0.0, 0.3),
        "loss": line(0, 0),
        "clip_ratio/region_mean": line(0, 0),
        "grad_norm": line(1, 1),
    }
    names = {"length": "completions/mean_length", "cut": "completions/clipped_ratio"}
    names |= {"dead": "frac_reward_zero_std", "clip": "clip_ratio/region_mean", "adv": "advantage_abs_mean"}
    healthy |= {names.get(name, name): values for name, values in columns.items()}
    return Curves({n: v for n, v in healthy.items() if v is not None}, list(range(1, ROWS + 1)), settings)


def at(i, value, values):
    return [*values[:i], value, *values[i + 1 :]]


def names(curves):
    return [finding.rule.name for finding in diagnose(curves).findings]


def test_a_run_that_learns_has_no_finding():
    assert names(run()) == [] and diagnose(run()).first == ""
    assert names(run(settings={})) == [] and names(run(GROUP)) == []


BROKEN = {
    "not a number": [
        {"loss": at(7, math.nan, line(0, 0))},
        {"grad_norm": at(7, math.inf, line(1, 1))},
    ],
    "no gradient": [{"grad_norm": line(0, 0)}],
    "ratio not 1 at the first update": [
        {"clip": line(0.03, 0.02)},
        {"settings": {"num_iterations": 2}, "clip": line(0.04, 0.04)},
        {"settings": {"num_iterations": 3}, "clip": [0.1, *[0.06] * 10, *[0.02] * 29]},
        {"settings": {"num_iterations": 2}, "clip": at(0, 0.3, line(0, 0))},
        {"settings": {"num_ppo_epochs": 1, "num_mini_batches": 4}, "clip": line(0.1, 0.1)},
        {"settings": {}, "clip": at(0, 0.5, line(0, 0))},
    ],
    "the reference is not the start": [{"kl": line(0.2, 0.4)}],
    "advantages in dead groups": [
        {"settings": GROUP, "adv": line(0.85, 0.3)},
        {"settings": {**GROUP, "baseline": "leave_one_out"}, "adv": at(0, 0.95, line(0.5, 0.3))},
    ],
    "learning rate too large": [
        {"kl": [0.0, *[1.5] * (ROWS - 1)]},
        {"settings": {"num_iterations": 10}, "kl": [1.1, *[0.2] * (ROWS - 1)]},
        {"reward": [0.6, *[0.1, 0.12] * 19, 0.1]},
        {"reward": [0.4, 0.3, 0.2, 0.1, 0.1, 0.1, 0.15, *[0.5, 0.52] * 16, 0.5]},
    ],
    "reward hacked": [{"rewards/judge/mean": line(0.5, 0.1, 0.01)}],
    "entropy runs up": [
        {"entropy": line(0.8, 2.4, 0.02), "reward": line(0.5, 0.1, 0.02)},
        {"entropy": line(0.8, 1.8, 0.02), "cut": line(0.05, 0.3, 0.01), "length": line(4, 4.3, 0.01)},
    ],
    "KL run-away": [
        {"kl": line(0, 3), "reward": line(0.5, 0.5, 0.02), "entropy": line(1, 0.1, 0.01)},
        {"kl": line(0, 3), "entropy": line(1, 0.5, 0.02)},
        {"kl": line(0, 6), "entropy": line(1, 0.2, 0.02), "reward": line(0.9, 0, 0.02)},
    ],
    "dead groups": [
        {"dead": line(1, 1), "reward": line(0, 0)},
        {"dead": line(0.95, 0.98), "reward": line(1, 1)},
        {"dead": [0.2] * 20 + [1.0] * 20, "reward": [0.3, 0.35] * 10 + [0.0] * 20},
    ],
    "the reward falls": [{"reward": line(0.7, 0.3, 0.02)}],
    "truncation creep": [{"cut": line(0, 0.5, 0.01)}],
    "length drift": [{"length": line(2.4, 4, 0.05)}, {"length": line(2.4, 1.2, 0.05)}],
    "entropy collapse": [{"entropy": [*line(1, 0.05)[:30], *[0.02] * 10]}],
    "the policy does not move": [
        {"kl": line(0, 1e-12), "entropy": line(1, 1, 0.02), "reward": line(0.3, 0.3, 0.02)}
    ],
    "the reference moves": [{"kl": line(0, 1e-4)}],
    "nothing is learned": [
        {"reward": line(0.3, 0.3, 0.02)},
        {"reward": line(0.03, 0.03, 0.01), "dead": line(0.82, 0.8)},
    ],
}
SOUND = {
    "no gradient": [{"grad_norm": line(0, 0), "dead": line(1, 1)}],
    "ratio not 1 at the first update": [
        {"settings": {"num_iterations": 2}, "clip": line(0.1, 0.005)},
        {"settings": {"num_iterations": 3}, "clip": [0.014, *[0.03] * 10, *[0.008] * 29]},  # it moves on
        {"settings": {"num_iterations": 3}, "clip": [0.1, *[0.02] * 39]},
        {"settings": {}, "clip": line(0.1, 0.1)},
    ],
    "the reference is not the start": [{"settings": {"num_iterations": 2}, "kl": line(0.2, 0.4)}],
    "advantages in dead groups": [
        {"settings": {**GROUP, "scale_rewards": "none"}, "adv": line(3, 3)},
        {"settings": {**GROUP, "baseline": "none"}, "adv": line(0.95, 0.95)},
        {"settings": {**GROUP, "kl_in": "reward"}, "adv": line(0.95, 0.95)},
    ],
    "learning rate too large": [
        {"kl": at(2, 50.0, line(0, 0.3))},  # one rare token makes k3 large for a step
        {"reward": at(0, 0.5, line(0.3, 0.7, 0.05))},
        {"kl": [0.0, 0.2, 0.9, 1.3, 1.6, *[2.0] * 35], "reward": line(0.6, 0.1)},  # no jump
        {"reward": [0.6, 0.4, 0.1, 0.05, *[0.0, 0.02] * 18]},
    ],
    "reward hacked": [{"rewards/judge/mean": line(0.1, 0.5)}, {"rewards/judge/mean": line(0.3, 0.3, 0.1)}],
    "entropy runs up": [
        {"entropy": line(1, 1.2)},
        {"entropy": line(0.8, 2), "length": line(2.4, 4)},
        {"entropy": line(0.8, 1.5), "reward": line(0.5, 0.1)},
        {"entropy": [0.6, 0.55, 0.5, *[0.1] * 5, *[0.45] * 32]},  # it comes back to where it began
    ],
    "KL run-away": [
        {"kl": line(0, 3), "length": line(2.4, 4)},
        {"kl": line(0, 3), "reward": line(0.6, 0.1), "entropy": line(1, 0.45)},
    ],
    "dead groups": [{"dead": line(0.3, 1), "reward": line(0.3, 1)}],
    "truncation creep": [{"cut": line(0.5, 0.5)}],
    "entropy collapse": [{"entropy": line(1, 0.02), "reward_std": line(0.45, 0.01)}],
    "the policy does not move": [{"kl": line(0, 0)}],
    "the reference moves": [{"kl": line(0, 0), "entropy": line(1, 1, 0.02), "reward": line(0.3, 0.3, 0.02),
                             "length": line(2, 2)}],
    "nothing is learned": [{"reward": line(0.3, 0.3), "dead": line(1, 1)}],
}  # fmt: skip


@pytest.mark.parametrize(("name", "given"), [(n, g) for n, given in BROKEN.items() for g in given])
def test_what_is_broken_is_named_first(name, given):
    diagnosis = diagnose(run(**given))
    assert diagnosis.first == name
    seen = diagnosis.findings[0].seen
    assert seen.metric in (*METRICS, "rewards/judge/mean") and 1 <= seen.step <= ROWS
    assert re.search(r"\d|nan|inf", seen.evidence)


@pytest.mark.parametrize(("name", "given"), [(n, g) for n, given in SOUND.items() for g in given])
def test_what_is_sound_or_explained_by_another_finding_is_not_named(name, given):
    assert name not in names(run(**given))


def test_every_rule_has_a_worked_run_a_page_and_two_sentences():
    assert {rule.name for rule in RULES} == set(BROKEN) and len(RULES) == len({rule.name for rule in RULES})
    pages = yaml.safe_load((ROOT / "_toc.yml").read_text())["parts"]
    chapters = {entry["file"] for part in pages for entry in part["chapters"]}
    for rule in RULES:
        assert f"book/{rule.chapter}" in chapters and rule.says.endswith("."), rule.name
        assert set(rule.needs) <= set(METRICS), rule.name


def test_a_finding_says_from_which_step_on():
    found = diagnose(run(cut=[0.0] * 24 + [0.6] * 16)).findings[0]
    assert (found.seen.metric, found.seen.step) == ("completions/clipped_ratio", 25)
    assert "0 in the first fifth of the run, 0.6 in the last" in str(found)
    assert "read: book/length-bias" in str(found)


def test_what_the_log_lacks_is_named_and_the_rest_is_looked_at():
    diagnosis = diagnose(run(kl=None, grad_norm=None, cut=line(0, 0.5, 0.01)))
    assert diagnosis.first == "truncation creep"
    assert diagnosis.not_looked_at["KL run-away"] == "no kl in the log"
    assert diagnosis.not_looked_at["no gradient"] == "no grad_norm in the log"
    said = report("runs/a", run(kl=None), diagnose(run(kl=None)))
    assert "KL run-away: no kl in the log" in said and "this is no proof" in said


def test_too_few_rows_for_a_trend_are_named_and_identities_are_looked_at():
    curves = run(clip=line(0.1, 0.1))
    short = Curves({n: v[:4] for n, v in curves.columns.items()}, curves.steps[:4], ONE)
    diagnosis = diagnose(short)
    assert diagnosis.first == "ratio not 1 at the first update"
    assert diagnosis.not_looked_at["the reward falls"] == "reward has 4 values; 10 are needed"


def test_a_resumed_log_does_not_begin_at_the_start():
    curves = run(kl=line(0.2, 0.4))
    late = Curves(curves.columns, [step + 100 for step in curves.steps], ONE)
    assert "the reference is not the start" not in names(late)


def test_worked_statistics():
    curves = run(reward=[0.0, 2.0] * 20)
    points = curves.points("reward")
    assert noise([p.value for p in points]) == pytest.approx(math.sqrt(2))
    assert change(points) == pytest.approx((1.0, 1.0, math.sqrt(2) * math.sqrt(2 / 8)))
    assert slope(run(reward=line(0, 1)).points("reward")) > 100
    assert abs(slope(run(reward=line(1, 1)).points("reward"))) < 1e-6
    steps = run(reward=[0.0] * 30 + [1.0] * 10).points("reward")
    assert since(steps, lambda value: value > 0.5) == 31 and since(steps, lambda value: value > 2) == 40


def test_the_command_reads_folders_and_files_of_ours_and_of_trl(tmp_path, capsys):
    curves = run(clip=line(0.03, 0.02))
    rows = zip(curves.steps, *curves.columns.values(), strict=True)
    text = "\n".join([",".join(["step", *curves.columns]), *(",".join(map(repr, row)) for row in rows)])
    (tmp_path / "metrics.csv").write_text(text + "\n")
    (tmp_path / "config.json").write_text('{"num_iterations": 1, "num_mini_batches": 1}')
    (tmp_path / "other.csv").write_text(text + "\n")
    main(["doctor", str(tmp_path), str(tmp_path / "other.csv")])
    ours, alone = capsys.readouterr().out.split("other.csv: ")
    assert "1. ratio not 1 at the first update: clip_ratio/region_mean, from step 1" in ours
    assert "with its settings" in ours and "read: book/scored" in ours
    assert "without settings" in alone and "Nothing looks wrong" in alone


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["doctor", "none.csv"], "error: cannot read the log none.csv"),
        (["doctor", ""], "error: '' is no name of a file"),
        (["doctor", "a.csv"], "error: a.csv has none of the metrics that are read here; it has step, foo"),
    ],
)
def test_a_log_that_cannot_be_read_is_one_line(tmp_path, monkeypatch, argv, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.csv").write_text("step,foo\n1,2\n")
    with pytest.raises(SystemExit, match=re.escape(message)):
        main(argv)


VALUES = st.lists(
    st.one_of(
        st.none(),
        st.sampled_from([0.0, 1.0, -1.0, 0.5, 1e-300, 1e308, -1e308, math.nan, math.inf, -math.inf]),
        st.floats(),
    ),
    min_size=35,
    max_size=35,
)
SETTINGS = st.fixed_dictionaries(
    {},
    optional={
        "num_iterations": st.sampled_from([0, 1, 2, "1", None, -1, True]),
        "num_mini_batches": st.sampled_from([1, 2, None, "x"]),
        "scale_rewards": st.sampled_from(["group", "none", 3]),
        "baseline": st.sampled_from(["group", "leave_one_out", None]),
        "group_size": st.sampled_from([0, 1, 2, 8, "8", None]),
    },
)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(
    st.dictionaries(st.sampled_from([*METRICS, "rewards/a/mean"]), VALUES, min_size=1),
    st.integers(1, 35),
    SETTINGS,
)
def test_any_columns_are_diagnosed_and_every_rule_answers(columns, rows, how):
    curves = Curves({n: v[:rows] for n, v in columns.items()}, list(range(1, rows + 1)), how)
    diagnosis = diagnose(curves)
    asked = {finding.rule.name for finding in diagnosis.findings}
    assert not asked & diagnosis.not_looked_at.keys()
    for rule in RULES:
        assert rule.name in diagnosis.not_looked_at or set(rule.needs) <= columns.keys()
    assert report("run", curves, diagnosis)
    broken = [n for n in ("loss", "grad_norm", "kl", "entropy", "reward") if n in columns]
    if any(v is not None and not math.isfinite(v) for n in broken for v in columns[n][:rows]):
        assert diagnosis.first == "not a number"

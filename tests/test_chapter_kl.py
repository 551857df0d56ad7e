"""What the chapter on KL claims, run from its own cells: direction, size, and a margin."""

import math
import re
from pathlib import Path

import nbformat
import pytest
import torch

from nanogrpo.show.stats import mean, paired_difference

CHAPTER = Path(__file__).resolve().parents[1] / "book" / "kl.ipynb"


def run(*names, **given):
    """The chapter's cells of these names, run in order; the names that they define."""
    cells = {c.id.removeprefix("kl-"): c.source for c in nbformat.read(CHAPTER, as_version=4).cells}
    space, kind = dict(given), torch.get_default_dtype()
    try:
        for name in ("setup", *names):
            exec(re.sub(r"%pip.*", "pass", cells[name]), space)
    finally:
        torch.set_default_dtype(kind)
    return space


@pytest.fixture
def doubles():
    kind = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(kind)


@pytest.fixture(scope="module")
def drifting():
    return run("moments", "drift", "mended")


@pytest.fixture(scope="module")
def drifts(drifting):
    return drifting["drifts"]


@pytest.mark.usefixtures("doubles")
def test_k1_and_k3_are_unbiased_k2_is_not_and_k1_is_noisy_near_the_reference():
    cell = run("moments")
    for distance in (0.3, 1.0, 3.0):
        kl = cell["kl_exact"](*cell["single_token"](distance)).item()
        means = {name: cell["moments"](distance, k)[0] for name, k in cell["ESTIMATES"].items()}
        assert means["k1"] == pytest.approx(kl, abs=1e-12) == means["k3"]
        assert means["k2"] < kl - 0.003, "k2's mean is expected to be too small in this example"
    near = {name: cell["moments"](0.05, k)[1] for name, k in cell["ESTIMATES"].items()}
    assert near["k1"] > 10 * max(near["k2"], near["k3"])


@pytest.mark.usefixtures("doubles")
def test_expected_gradients_k1_zero_k2_reverse_k3_forward():
    cell = run("world", "gradients")
    single, recipes = cell["single"], cell["RECIPES"]
    none = torch.zeros(len(single.ids))
    reverse, forward = single.gradient(single.kl()), single.gradient(cell["forward_kl"](single))
    assert reverse.norm() > 0.1 and torch.cosine_similarity(reverse, forward, dim=0) < 0.99
    expected = {
        "k1 in the loss": torch.zeros_like(reverse),
        "k2 in the loss": reverse,
        "k3 in the loss (GRPO)": forward,
        "k1 in the reward (PPO)": reverse,
        "ratio * k1 in the loss": reverse,
        "ratio * k3 in the loss": reverse,
    }
    for name, truth in expected.items():
        found = single.expect(recipes[name], none, 1).gradient
        assert (found - truth).abs().max() < 1e-12, name
    found = single.expect(recipes["k3 in the reward"], none, 1).gradient
    assert found @ reverse < 0 and found @ forward < 0, "here k3 in the reward points away from both"


@pytest.mark.usefixtures("doubles")
def test_of_two_tokens_only_k1_in_the_reward_is_exact():
    cell = run("world", "gradients")
    scope = cell["scope"]
    none, reverse = torch.zeros(len(scope.ids)), scope.gradient(scope.kl())
    missed = {
        name: (scope.expect(recipe, none, 1).gradient - reverse).norm() / reverse.norm()
        for name, recipe in cell["RECIPES"].items()
    }
    assert missed.pop("k1 in the reward (PPO)") < 1e-12
    assert min(missed.values()) > 0.05


@pytest.mark.slow
def test_k1_in_the_loss_raises_the_kl_more_with_more_passes(drifts):
    ends = {passes: drifts["k1", passes][:, -1] for passes in (1, 2, 4)}
    assert len(ends[1]) == 20 and ends[1].min() > 0
    assert paired_difference(ends[2], ends[1]).low > 0
    assert paired_difference(ends[4], ends[1]).low > 0.05
    assert ends[4].mean() > 2 * ends[1].mean()


def test_k2_and_k3_stay_at_the_reference(drifts):
    for name in ("k2", "k3"):
        for passes in (1, 2, 4):
            assert drifts[name, passes].max() < 1e-9


def test_k1_with_the_ratio_is_called_back(drifting):
    assert drifting["mended"][:, -1].mean() < 0.1 * drifting["drifts"]["k1", 4][:, -1].mean()


def test_on_old_samples_k1_climbs_the_distance_from_the_old_policy(capsys):
    run("world", "gradients", "stale")
    assert "minus the gradient of KL(old || policy): True" in capsys.readouterr().out


@pytest.mark.usefixtures("doubles")
def test_sequence_estimates_share_a_mean_and_full_distributions_are_quietest():
    cell = run("world", "sequence")
    scope = cell["scope_of"](cell["strayed"], cell["reference"], 3)
    p, kl = scope.probabilities[0].detach(), scope.kl().item()
    spread = {}
    for name, values in cell["sequence_estimates"](cell["strayed"], scope).items():
        assert (p @ values).item() == pytest.approx(kl, abs=1e-12), name
        spread[name] = (p @ (values - kl) ** 2).sqrt().item()
    assert spread["sum of exact KLs"] < 0.5 * min(spread["sum of k1"], spread["sum of k3"])


@pytest.mark.usefixtures("doubles")
def test_a_cited_theorem_fails_for_sums_near_the_optimum_the_sum_of_exact_kls_is_the_noisier():
    cell = run("counterexample")
    for kl, k1, exact in cell["path"][:20]:
        assert exact < k1 < 3 * kl**0.5, "near the reference the exact KLs are quieter"
    kl, k1, exact = cell["path"][-1]
    assert 1 < kl < 2 and exact > 5 * k1
    # with code of its own: all four completions, and the two steps of each
    letter = {"a": 0.9, "b": 0.1}
    texts = ("aa", "ab", "ba", "bb")
    weight = {t: letter[t[0]] * letter[t[1]] * math.exp(10 * (t in ("ab", "ba"))) for t in texts}
    p = {t: w / sum(weight.values()) for t, w in weight.items()}
    first = {x: p[x + "a"] + p[x + "b"] for x in "ab"}
    begin = sum(first[x] * math.log(first[x] / letter[x]) for x in "ab")
    after = {t: p[t] / first[t[0]] for t in texts}
    then = {x: sum(after[x + y] * math.log(after[x + y] / letter[y]) for y in "ab") for x in "ab"}
    sums = {
        "k1": {t: math.log(p[t] / letter[t[0]] / letter[t[1]]) for t in texts},
        "exact": {t: begin + then[t[0]] for t in texts},
    }
    for values, sd in ((sums["k1"], k1), (sums["exact"], exact)):
        middle = sum(p[t] * values[t] for t in texts)
        assert middle == pytest.approx(kl, abs=1e-9)
        assert math.sqrt(sum(p[t] * (values[t] - middle) ** 2 for t in texts)) == pytest.approx(sd, abs=1e-9)


@pytest.mark.usefixtures("doubles")
def test_of_one_token_the_exact_kl_never_has_noise():
    cell = run("world", "sequence")
    scope = cell["scope_of"](cell["strayed"], cell["reference"], 1)
    values = cell["sequence_estimates"](cell["strayed"], scope)["sum of exact KLs"]
    assert values.max() - values.min() < 1e-12


@pytest.mark.usefixtures("doubles")
def test_off_policy_only_k1_and_k3_times_the_ratio_keep_the_reverse_kl():
    cell = run("world", "gradients", "stale", "offpolicy")
    aged, fresh, none = cell["aged"], cell["fresh"], torch.zeros(len(cell["aged"].ids))
    reverse = aged.gradient(aged.kl())
    missed = {
        name: ((aged.expect(recipe, none, 1).gradient - reverse).norm() / reverse.norm()).item()
        for name, recipe in cell["RECIPES"].items()
    }
    right = {"ratio * k1 in the loss", "ratio * k3 in the loss"}
    assert {name for name, gap in missed.items() if gap < 1e-9} == right
    assert min(gap for name, gap in missed.items() if name not in right) > 0.05
    on_policy = fresh.expect(cell["RECIPES"]["ratio * k2 in the loss"], none, 1).gradient
    exact = fresh.gradient(fresh.kl())
    assert (on_policy - exact).norm() > 0.5 * exact.norm(), "wrong on fresh samples, too"


def test_k3_is_negative_by_rounding_alone_and_less_so_with_expm1():
    gap = torch.linspace(-2e-4, 2e-4, 20001, dtype=torch.float32)
    naive = gap.exp() - 1 - gap
    assert -2e-7 < naive.min() < 0 and (naive < 0).float().mean() > 0.1
    wide = torch.linspace(-0.1, 0.1, 20001).bfloat16()
    assert -6e-3 < (wide.exp() - 1 - wide).min() < -2e-3
    assert run("setup")["kl_k3"](torch.zeros_like(gap), gap).min() >= 0


def test_divided_by_the_length_the_penalty_is_negative_for_longer_answers():
    charges = run("length")["charges"]
    assert charges["sum over tokens"].min() > -1e-12
    divided = charges["divided by the length"]
    assert divided.min() < -0.03 and divided.argmin() > 49 + 10  # the reference is at 49


@pytest.mark.usefixtures("doubles")
def test_a_fine_divided_by_the_length_tilts_by_length():
    cell = run("world", "tilt")
    scope, right, found = cell["longer"], cell["right"], cell["found"]
    lengths = {
        (name, kind): cell["mean_length"](policy, scope, kept).item()
        for name, policy in found.items()
        for kind, kept in (("right", right), ("wrong", 1 - right))
    }
    for kind in ("right", "wrong"):
        assert lengths["the sum", kind] == pytest.approx(lengths["the reference", kind], abs=1e-9)
    assert lengths["divided by length", "right"] > lengths["the reference", "right"] + 0.05
    assert lengths["divided by length", "wrong"] < lengths["the reference", "wrong"] - 0.2
    policy, size = found["divided by length"], scope.mask.sum(1)
    at_rest = right - 0.5 * (policy.log() - scope.ref_logprobs[0].sum(1)) / size
    assert (at_rest - at_rest[0]).abs().max() < 1e-9, "the policy gradient does not come to rest here"


@pytest.mark.slow
def test_a_leak_disarms_the_penalty_and_the_log_does_not_show_it(capsys):
    cell = run("world", "tilt", "train", "leak", "leaktable", SEEDS=range(5))
    ends = {
        (kind, name): [log[name][-1] for _, _, log in runs]
        for kind, runs in cell["leaks"].items()
        for name in ("logged", "true")
    }
    rows = cell["rows"]
    assert rows["leaks, not in the optimizer"]["policy as with frozen"]
    assert rows["leaks, not in the optimizer"]["reference has gradients"]
    for kind in ("leaks, in the optimizer", "the policy itself"):
        assert rows[kind]["reference moved"]
        assert max(ends[kind, "logged"]) < 0.5 * min(ends["frozen", "logged"])
        assert all(x > 1.1 * y for x, y in zip(ends[kind, "true"], ends["frozen", "true"], strict=True))


def test_no_grad_leaves_nothing_to_detach(capsys):
    run("world", "tilt", "leak", "nograd", SEEDS=range(0))
    said = capsys.readouterr().out
    assert "under no_grad: False None" in said and "same memory: True" in said and "k3: {None}" in said


@pytest.mark.slow
def test_which_penalties_bring_the_policy_back():
    cell = run("world", "train", "back")
    start = cell["exact_kl"](cell["far"], cell["reference"])
    ends = {name: [curve[-1] for curve in curves] for name, curves in cell["back"].items()}
    for name in ("k2 in the loss", "k3 in the loss", "k1 in the reward"):
        assert mean(ends[name]).high < 0.05 * start
    assert min(ends["k3 in the reward"]) > start
    assert mean(ends["k1 in the loss"]).estimate > 0.3 * start


@pytest.mark.slow
def test_the_frontier_bounds_all_runs_and_beta_orders_them():
    cell = run("world", "train", "frontier", "shortfall", SEEDS=range(5), names={"loss": "", "reward": ""})
    points, betas = cell["points"], cell["BETAS"]
    for values in cell["short"].values():
        assert -1e-4 < min(values) and max(values) < 0.02
    for where in ("loss", "reward"):
        for small, large in zip(betas, betas[1:], strict=False):
            for k in (0, 1):  # reward, KL
                pair = [[p[k] for p in points[where, beta]] for beta in (small, large)]
                assert paired_difference(*pair).low > 0
    for beta in betas:
        kl = mean([p[1] for p in points["reward", beta]]).estimate
        assert math.isclose(kl, cell["optimum"](beta)[1], rel_tol=0.3)
    assert mean([p[1] for p in points["loss", 0.1]]).high < 0.8 * cell["optimum"](0.1)[1]

"""The playground's engine computes what the package computes: in node and in a browser, with all options.

Both sides get the same weights and draw the same uniform numbers. All is float64. Logits, samples, advantages
and gradients are mathematics and agree tightly. A run adds up what rounding does to each step: the weights
after 20 steps agree within 1e-4, which is a tenth of one step of Adam at the smaller learning rate. Where
training itself makes more than that of a change by 1e-12, the package's own two runs say how much more.
"""

import math

import pytest
import torch
from playgroundcheck import CASE, ENGINE, in_node, in_python, needs_node, random_cases

from nanogrpo.show.playground import twin

TIGHT, ONE_STEP, TWENTY = 1e-10, 1e-7, 1e-4
VARIED = (
    "baseline", "scale_rewards", "aggregation", "kl_in", "kl_estimator", "surrogate", "bug",
    "importance_sampling_level", "num_iterations", "num_mini_batches", "max_resamples",
)  # fmt: skip
IN_PAGE = f"""async ([source, cases]) => {{
  const url = URL.createObjectURL(new Blob([source], {{ type: "text/javascript" }}));
  const m = await import(url), run = {CASE};
  return cases.map((c) => run(m, c));
}}"""


@pytest.fixture(autouse=True)
def double():
    """Rewards and advantages in float64 as well."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def apart(a: list[float], b: list[float]) -> float:
    """The largest difference, relative to the largest number; two empty lists agree."""
    a, b = torch.tensor(a), torch.tensor(b)
    assert a.shape == b.shape
    return float((a - b).abs().max() / b.abs().max().clamp(min=1e-3)) if len(a) else 0.0


def again(case: dict) -> dict:
    """The package's run from weights that are off by a relative 1e-12: what rounding alone makes of it."""
    off = [w * (1 + 1e-12 * (-1) ** i) for i, w in enumerate(case["weights"])]
    return in_python(case | {"weights": off})


def compare(case: dict, ours: dict, package: dict):
    """One case; the message says which part differs, and at which setting."""
    setting = case["setting"]
    for name in ("completions", "truncated"):
        assert ours[name] == package[name], (name, setting)
    for name in ("logits", "advantages", "gradient"):
        assert apart(ours[name], package[name]) < TIGHT, (name, setting)
    for mine, theirs in zip(ours["logprobs"], package["logprobs"], strict=True):
        assert apart(mine, theirs) < TIGHT, ("logprobs", setting)
    for at, step in enumerate(case["steps"]):
        mine, theirs = ours["snapshots"][at], package["snapshots"][at]
        far, allowed = apart(mine, theirs), ONE_STEP if step == 1 else TWENTY
        if far >= allowed:
            allowed = 10 * apart(again(case)["snapshots"][at], theirs)
        assert far < allowed, (f"weights after {step}", far, allowed, setting)
    for at, mine in enumerate(ours["log"][:3]):  # later ones have drifted
        theirs = package["log"][at]
        assert set(mine) == set(theirs)
        for name, value in theirs.items():
            got = math.nan if mine[name] is None else mine[name]  # JSON has no NaN
            same = (
                math.isclose(got, value, rel_tol=1e-4, abs_tol=1e-5) or math.isnan(got) and math.isnan(value)
            )
            if not same and at:
                same = abs(got - value) < 10 * abs(again(case)["log"][at][name] - value)
            # A token whose ratio stands on the clip's edge is counted, or not.
            assert same or name == "clip_ratio/region_mean", (name, mine[name], value, mine["step"], setting)


def compare_all(cases: list[dict], results: list[dict]):
    assert len(results) == len(cases)
    for case, result in zip(cases, results, strict=True):
        compare(case, result, in_python(case))


@pytest.mark.slow
@needs_node()
def test_the_engine_computes_what_the_package_computes(tmp_path):
    cases = random_cases(10, seed=1, steps=[1, 3])
    compare_all(cases, in_node(tmp_path, CASE, cases))


@needs_node()
@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 2])
def test_the_engine_computes_what_the_package_computes_over_twenty_steps(tmp_path, seed):
    cases = random_cases(60, seed, steps=[1, 20])
    for name in VARIED:
        assert len({case["setting"][name] for case in cases}) > 1, f"all cases have one {name}"
    assert {case["setting"]["bug"] for case in cases} == set(twin.BUGS)
    compare_all(cases, in_node(tmp_path, CASE, cases))


@pytest.mark.slow
def test_a_browser_computes_what_the_package_computes(browser):
    cases = random_cases(50, seed=2, steps=[1, 20])
    page = browser.new_page()
    try:
        results = page.evaluate(IN_PAGE, [ENGINE.read_text(encoding="utf-8"), cases])
    finally:
        page.close()
    compare_all(cases, results)


@pytest.mark.slow
@needs_node()
@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("ds = probs[p + j] * (dp[j] - dot) * scale", "ds = probs[p + j] * dp[j] * scale"),
        ("sum(logRatio) / n", "sum(logRatio)"),
        ("Math.expm1(delta) - delta, -Math.expm1(delta)]", "Math.expm1(delta) - delta, delta]"),
        ("(sum(group) - r) / (group.length - 1)", "sum(group) / group.length"),
        ("cdf[k] + up[k] * density(up[k])", "cdf[k]"),
        ("Math.sqrt(1 - 0.999 ** t)", "1"),
        ("config.entropy_coef * p * (all[t][v] + H)", "config.entropy_coef * p * all[t][v]"),
    ],
)  # fmt: skip
def test_a_wrong_engine_is_found(tmp_path, monkeypatch, right, wrong):
    import playgroundcheck

    source = ENGINE.read_text(encoding="utf-8")
    assert right in source
    broken = tmp_path / "broken.js"
    broken.write_text(source.replace(right, wrong, 1))
    monkeypatch.setattr(playgroundcheck, "ENGINE", broken)
    cases = random_cases(24, seed=3, steps=[1, 2])
    with pytest.raises(AssertionError):
        compare_all(cases, in_node(tmp_path, CASE, cases))

"""Our losses against the numbers of TRL's, verl's and OpenRLHF's own functions, stored with their versions.

The numbers were drawn by ``make parity``, which runs the frameworks (``tests/parity``). Where they are
installed beside the package, they are run again here.
"""

import dataclasses
import json
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parent / "parity"
sys.path.insert(0, str(FOLDER))
import cases  # noqa: E402
import draw  # noqa: E402

from nanogrpo import losses, surrogates  # noqa: E402

GOLDEN = json.loads((FOLDER / "golden.json").read_text(encoding="utf-8"))
BATCHES = [{k: torch.tensor(v, dtype=torch.float64) for k, v in b.items()} for b in GOLDEN["batches"]]
CASES = {f"{case.side}: {case.name}": case for case in cases.CASES}
EQUAL = [name for name, case in CASES.items() if not case.differs]


def gap(case, name=None):
    """The largest difference of our numbers from theirs, over all batches and all that is compared."""
    found = 0.0
    batches = cases.batches_of(case, BATCHES)
    for batch, row in zip(batches, GOLDEN["cases"][name or f"{case.side}: {case.name}"], strict=True):
        mine = cases.ours(case, batch)
        assert set(row) <= set(mine) or "clipped" in row
        for key in set(row) & set(mine):
            expected = torch.tensor(row[key], dtype=torch.float64)
            found = max(found, (mine[key].double() - expected).abs().max().item())
    return found


def test_every_case_has_its_numbers_and_no_number_is_without_a_case():
    assert GOLDEN["cases"].keys() == CASES.keys()
    assert len(BATCHES) == len(cases.SEEDS) >= 4
    numbers = sum(len(row) for rows in GOLDEN["cases"].values() for row in rows)
    assert numbers >= 400, "so many comparisons are the least"
    assert GOLDEN["versions"]["trl"] == "1.16.0" and GOLDEN["versions"]["verl"] == "0.9.1"
    assert GOLDEN["versions"]["openrlhf"] == "0.11.2"


@pytest.mark.parametrize("name", EQUAL)
def test_ours_is_theirs(name):
    case = CASES[name]
    assert gap(case) <= case.tolerance, f"{name}: off by {gap(case):.2e}"
    assert (case.tolerance == cases.EXACT) == (not case.why), "a tolerance needs its reason"


@pytest.mark.parametrize("name", [name for name in CASES if name not in EQUAL])
def test_a_known_difference_is_one_and_is_the_one_that_is_named(name):
    """TRL's KL with the ratio of the completion: put that in, and the numbers are the same."""
    case = CASES[name]
    assert case.why and gap(case) > 1e-3
    right = losses.importance_ratio

    def of_the_completion(logprobs, old, mask, level="token"):
        return right(logprobs, old, mask, case.mine["importance_sampling_level"])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(losses, "importance_ratio", of_the_completion)
        assert gap(case) <= cases.EXACT


NO_EFFECT = {  # an option that is the default already, or that only says how to compare
    "ref", "gradient_only", "clip_high", "eps", "binary",
}  # fmt: skip


@pytest.mark.parametrize("name", EQUAL)
def test_each_option_of_a_case_is_seen_by_its_numbers(name):
    """Without it, ours is not theirs: the batches are such that every option matters."""
    case = CASES[name]
    usual = {"aggregation": "token_mean", "importance_sampling_level": "token", "clip_low": 0.2}
    usual |= {"level": "token", "rule": "truncate", "kl_estimator": "k3", "correction": 0}
    for option, value in case.mine.items():
        if option in NO_EFFECT or usual.get(option) == value or option in ("estimator", "share", "coef"):
            continue
        less = {k: v for k, v in case.mine.items() if k != option}
        if option in ("select", "surrogate"):
            less = {k: v for k, v in less.items() if k not in ("share", "coef", *SHAPES)}
        changed = dataclasses.replace(case, mine=less)
        try:
            off = gap(changed, name)
        except (TypeError, losses.OptionError):
            continue
        on_policy = case.mine.get("on_policy") or "gspo" in name or "sequence_token" in str(value)
        assert off > 10 * case.tolerance or on_policy, f"{name}: {option}={value!r} changes nothing"


SHAPES = [f"sapo_temperature_{s}" for s in ("pos", "neg")]
SHAPES += [f"vespo_{k}_{s}" for k in ("k", "lambda") for s in ("pos", "neg")]


def swapped(text, old, new, module):
    """The module with one piece of its text replaced, as a namespace to take functions from."""
    assert text.count(old) >= 1, f"no such text: {old}"
    space = {"__name__": "nanogrpo.planted", "__package__": "nanogrpo"}
    exec(compile(text.replace(old, new), module.__file__, "exec"), space)
    return space


FAULTS = {  # (module, text, what stands there instead, a case that must see it)
    "sign of the clip": (losses, "loss = -torch.min(", "loss = torch.min(", "trl: dapo, token"),
    "min is max": (losses, "loss = -torch.min(", "loss = -torch.max(", "trl: dapo, token"),
    "no mask in the sum": (
        losses, "per_token = torch.where(mask, widen(\"per_token\", per_token), 0.0)",
        "per_token = widen(\"per_token\", per_token) + 1e-3", "trl: dapo, token",
    ),
    "length of the padding": (
        losses, "mask.sum(1, keepdim=True).clamp(min=1)\n    if how == \"token_mean\"",
        "mask.shape[1]\n    if how == \"token_mean\"", "trl: grpo, token",
    ),
    "tokens of the padding": (losses, "/ n.num_tokens", "/ mask.numel()", "trl: dapo, token"),
    "rows for tokens": (
        losses, "(n.num_sequences * n.max_length)", "(n.num_tokens)", "trl: dr_grpo, token"
    ),
    "one row less": (losses, "return per_token.sum() / n.num_sequences",
                     "return per_token.sum() / (n.num_sequences - 1)", "trl: luspo, token"),
    "sign of the KL": (losses, "per_token + beta * kl", "per_token - beta * kl", "trl: dapo, token, beta"),
}  # fmt: skip
FAULTS |= {
    f"{what} of {name}": (surrogates, old, new, case)
    for name, case in {"sapo": "trl: sapo", "gmpo": "trl: gmpo", "vespo": "trl: vespo"}.items()
    for what, old, new in {
        "sapo": [
            ("sign", "-gate * advantages", "gate * advantages"),
            ("factor", "* 4 / tau", "* 2 / tau"),
            ("side", "advantages > 0, sapo_temperature_pos", "advantages < 0, sapo_temperature_pos"),
        ],
        "gmpo": [
            ("sign", "-advantages * mean.exp()", "advantages * mean.exp()"),
            ("denominator", "smaller.sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)",
             "smaller.mean(1, keepdim=True)"),
            ("min", "torch.min(sign * log_ratio", "torch.max(sign * log_ratio"),
        ],
        "vespo": [
            ("sign", "torch.where(mask, -weight * advantages * logprobs",
             "torch.where(mask, weight * advantages * logprobs"),
            ("power", "k * log_w", "log_w"),
            ("product", "token.sum(1, keepdim=True)", "token.mean(1, keepdim=True)"),
        ],
    }[name]
}  # fmt: skip
FAULTS |= {
    "sign of dppo": (surrogates, "mask & (advantages != 0), -weight", "mask & (advantages != 0), weight",
                     "verl: dppo_tv"),
    "sides of dppo": (surrogates, "far > clip_high) | down", "far > clip_low) | down", "verl: dppo_tv"),
    "order of the coins": (surrogates, "binary_kl(old, new)", "binary_kl(new, old)", "verl: dppo_kl"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_seen(fault, monkeypatch):
    module, old, new, name = FAULTS[fault]
    space = swapped(Path(module.__file__).read_text(encoding="utf-8"), old, new, module)
    if module is losses:
        monkeypatch.setattr(cases, "grpo_loss", space["grpo_loss"])
    else:
        for function in ("sapo_surrogate", "gmpo_surrogate", "vespo_surrogate", "dppo_surrogate"):
            monkeypatch.setattr(losses, function, space[function])
    assert gap(CASES[name]) > 1e-4, f"{fault} in ours is not seen by {name}"


def test_the_script_that_draws_finds_no_difference_in_what_is_stored():
    compared, wrong = draw.differences(GOLDEN)
    assert compared >= 400 and not wrong


def test_the_frameworks_give_the_stored_numbers_where_they_are_installed():
    sides = draw.installed()
    missing = [name for name in draw.SIDES if name not in sides]
    if "trl" in missing or "verl" in missing:
        pytest.skip(f"{' and '.join(missing)} not installed here; `make parity` runs them")
    now = draw.drawn(sides)
    stored = {side: GOLDEN["defaults"][side] for side in sides}
    assert now["defaults"] == stored, "a default of theirs has changed"
    assert draw.differences(now)[1] == []

"""The page on variants says what the code does: its tables are those that are computed, row by row."""

import json
import re

import pytest
import variant_tables as tables

from nanogrpo import offpolicy, selection, surrogates
from nanogrpo.grpo import GRPOConfig
from nanogrpo.teach import museum
from nanogrpo.teach.checks.registry import CHECKS
from nanogrpo.variants import VARIANTS

TEXT = tables.PAGE.read_text(encoding="utf-8")
PARTS = tables.parts(TEXT)


def rows(name):
    """The rows of a table of the page, by their first cell, without the head."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in PARTS[name].splitlines()[2:]]
    return {line[0].strip("`"): line[1:] for line in lines}


def numbers(cells):
    return [float(x) for cell in cells for x in cell.split(",")]


def close(found, shown):
    """To the last digit shown, and one more: another processor rounds otherwise."""
    assert len(found) == len(shown)
    assert all(abs(a - b) < 0.011 for a, b in zip(found, shown, strict=True)), (found, shown)


def test_every_variant_has_a_row_in_the_dictionary_and_in_the_table_of_effects():
    assert set(tables.DICTIONARY) == set(VARIANTS) == set(rows("names")) == set(rows("effects"))
    assert set(rows("corrections")) == set(tables.CORRECTIONS)
    assert set(PARTS) == set(tables.TABLES)


@pytest.mark.parametrize("name", ["names", "defaults", "tests"])
def test_names_and_defaults_are_those_of_the_code_and_of_the_frameworks(name):
    assert PARTS[name] == tables.TABLES[name](), "run python tests/variant_tables.py"


def test_what_holds_a_variant_is_there_for_each_and_its_piece_is_in_the_museum():
    made = rows("tests")
    assert set(made) == set(VARIANTS) | set(tables.WITH_ANY) and set(tables.MISTAKES) <= set(VARIANTS)
    for name, (_, cases, piece, seen) in made.items():
        compared = name in tables.WITH_ANY or rows("names")[name][-1] != "not compared"
        assert cases.isdigit() == compared and (not compared or int(cases) > 0), name
        assert piece == "none" or museum.find(piece).check in CHECKS, piece
        assert seen == "not seen" or piece != "none", f"{name}: seen in the wild, and no piece"


def test_each_case_that_is_counted_is_there_and_each_option_beside_the_variants_is_one():
    starts = [start for _, starts, *_ in tables.WITH_ANY.values() for start in starts]
    starts += [*tables.VERL.values(), *(start for _, start in tables.OPENRLHF.values())]
    starts += [start for *_, start in tables.DICTIONARY.values() if start]
    assert all(tables.cases_of(start) for start in starts), [s for s in starts if not tables.cases_of(s)]
    for said in tables.WITH_ANY:
        name, value = said.split("=")
        GRPOConfig(max_new_tokens=3, sampler_lag=1, **{name: json.loads(value)})
    chosen = {said.split('"')[1] for said in tables.WITH_ANY if said.startswith("sampler_correction")}
    assert chosen == {f"{level}_{rule}" for level in offpolicy.LEVELS for rule in offpolicy.RULES}


def test_only_what_no_framework_has_is_not_compared():
    alone = {name for name, cells in rows("names").items() if cells[-1] == "not compared"}
    assert alone == {n for n, (_, trl, verl, _) in tables.DICTIONARY.items() if trl == verl == "none"}


def test_each_option_of_openrlhf_has_cases_that_compare_it():
    names = [f"{case.side}: {case.name}" for case in tables.CASES]
    for name, (_, start) in tables.OPENRLHF.items():
        assert name in VARIANTS and any(case.startswith(start) for case in names), name
    ours = [case for case in tables.CASES if case.side == "openrlhf"]
    gates = {case.theirs.get("is_correction_gating", "ratio") for case in ours}
    assert gates == {"ratio"}, "the page says that the other gates have nothing to be compared with"


def check_effect(name):
    on, off = tables.exact(name), tables.exact(name, 0.15)
    found = [on.cosine, on.noise, on.entropy, on.tokens, off.cosine, off.noise]
    close(found, numbers(rows("effects")[name]))


def check_correction(name, columns=slice(None)):
    found = [tables.corrected(name, shake) for shake in tables.SHAKES[columns]]
    shown = numbers(rows("corrections")[name][columns])
    close([x for e in found for x in (tables.bias(e), e.noise * e.length)], shown)


@pytest.mark.slow
def test_an_effect_is_what_is_computed():
    check_effect("gspo")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in VARIANTS if name != "gspo"])
def test_every_effect_is_what_is_computed(name):
    check_effect(name)


def test_a_correction_is_what_is_computed():
    check_correction("MIS, sequence, at most 3", slice(2, 3))


@pytest.mark.slow
@pytest.mark.parametrize("name", tables.CORRECTIONS)
def test_every_correction_is_what_is_computed(name):
    check_correction(name)


def test_what_the_prose_reads_off_the_tables_stands_in_them():
    effect = {name: numbers(cells) for name, cells in rows("effects").items()}
    for same in (("dapo", "cispo", "vespo", "dppo_tv", "dppo_kl", "dual_clip", "kl_cov"),
                 ("grpo", "gspo", "sapo", "gmpo")):  # fmt: skip
        assert len({tuple(effect[name][:4]) for name in same}) == 1, same
    assert [name for name in effect if effect[name][2] > 0] == ["clip_cov"], "all others cost entropy"
    assert effect["clip_cov"][0] < 0 and effect["top_entropy"][2] > effect["dapo"][2]
    made = {name: numbers(cells) for name, cells in rows("corrections").items()}
    biases = {name: values[0::2] for name, values in made.items()}
    noises = {name: values[1::2] for name, values in made.items()}
    assert biases["sequence, no bound"] == [0, 0, 0] and min(biases["none"]) > 0.1
    assert noises["sequence, no bound"] == sorted(noises["sequence, no bound"])
    far = {name: (biases[name][-1], noises[name][-1]) for name in made}
    cut, masked = far["TIS, sequence, at most 2"], far["MIS, sequence, at most 3"]
    assert masked[0] > cut[0] > 0 and masked[1] < cut[1] < far["sequence, no bound"][1]
    assert biases["none"][-1] - biases["TIS, token, at most 2"][-1] < 0.05
    assert far["IcePop, 0.5 to 2"][0] > far["none"][0] < far["in the ratio, clip 0.2"][0]


def test_the_paper_of_a_surrogate_is_the_one_of_its_docstring():
    functions = {"sapo": surrogates.sapo_surrogate, "gmpo": surrogates.gmpo_surrogate}
    functions |= {"vespo": surrogates.vespo_surrogate, "dppo_tv": surrogates.dppo_surrogate}
    functions |= {"opsm": offpolicy.off_policy_mask, "top_entropy": selection.top_entropy}
    functions |= {"clip_cov": selection.clip_cov, "adaptive_entropy": selection.next_entropy_coef}
    for name, function in functions.items():
        assert re.findall(r"arXiv (\d{4}\.\d{5})", function.__doc__ or "")[0] == tables.DICTIONARY[name][0], (
            name
        )

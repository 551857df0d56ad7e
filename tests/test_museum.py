"""The bug museum: each piece is caught by exactly the check that is meant for it, which names the mistake."""

import importlib
import re
import traceback
from functools import partial

import pytest
import torch

from nanogrpo import grpo, kl, losses, rollout, tokenizer
from nanogrpo.errors import FaultError
from nanogrpo.teach import check, museum
from nanogrpo.teach.collection import FAULTS
from nanogrpo.teach.subjects import SUBJECTS

# What the message of its check must say of each piece.
SAYS = {
    "pad equal to eos": "pad and eos are the same id",
    "mask is every token but EOS": "mask out the EOS and keep what stands after it",
    "EOS left out of the mask": "EOS is left out of the mask",
    "fast path: EOS left out of the mask": "EOS is left out of the mask",
    "target shift off by one": "the shift is missing",
    "fast path: target shift off by one": "has read each token before it predicts it",
    "old log-probs at temperature 1": r"log-probs are those of temperature 1, while .* sampled at (0.4|2.5)",
    "new log-probs at temperature 1": r"temperature (0.5|1.7) is ignored",
    "Bessel's std where population is meant": r"divides by G - 1 = \d \(Bessel",
    "population std where Bessel is meant": "option is ignored: with correction=1",
    "ties by a small eps": "max == min, not by a small eps",
    "group mean over the wrong axis": r"wrong axis: the mean runs over the \d prompts",
    "std of the batch where the group's is meant": "standard deviation is that of the whole batch",
    "own reward in the leave-one-out baseline": "the own one included",
    "GAE without (1 - done)": r"\(1 - done\)",
    "score one token after the end": "one token after the end",
    "k3 reversed": "chi-square",
    "k1 reversed": r"sign is reversed: k1 = -delta",
    "k3 without expm1": "Use expm1",
    "reference not detached": "reference is not detached",
    "reference is the policy itself": "moves with the policy",
    "penalty with the wrong sign": "penalty has the wrong sign",
    "k1 as the loss": "Your penalty is k1",
    "exact KL in the wrong order": r"KL\(reference \|\| policy\), the other order",
    "entropy averaged over the vocabulary": "average over the vocabulary",
    "proxy in place of the entropy": "the proxy",
    "mask applied after exp": "before exp",
    "old log-probs not detached": "old_logprobs: they are not detached",
    "ratio against itself": "ratio is always 1",
    "ratio detached on both sides": "ratio .* has no gradient",
    "the clip's min turned into max": "Your min is a max",
    "clip without the min": "The min is missing",
    "sign of the loss": "sign is reversed",
    "advantages not detached": "advantages: they are not detached",
    "sequence mean over padding": r"divide each completion by \d, the padded length",
    "token mean over padding": r"divides by \d+, the number of positions, instead of \d+",
    "constant length is the padded length": r"divide by \d, the padded length of this batch",
    "normalized by the microbatch": "own counts",
    "value clip's max turned into min": "Your max is a min",
    "returns not detached": "returns: they are not detached",
    "value after the token": "has seen token t",
    "Bradley-Terry reversed": "prefers what was rejected",
    "score read at the padding": "at the padding",
    "targets shifted twice": "shifted twice",
}
each = pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)


def test_the_museum_is_large_and_every_piece_has_its_check_and_its_sentence():
    assert {fault.name for fault in FAULTS} == set(SAYS) and len(FAULTS) >= 12
    checks = {name for name in check.__all__ if name.startswith("check_")}
    assert {fault.check for fault in FAULTS} <= set(SUBJECTS) <= checks
    labs = {name for name in checks if "check_labs" in getattr(check, name).__module__}
    assert checks - set(SUBJECTS) - labs == {"check_grpo_loss"}, "it repeats what the checks of its parts say"


@pytest.mark.parametrize("seed", [None, 1, 2])
def test_the_package_itself_passes_every_check(seed):
    assert museum.failures(museum.implementations(), seed) == {}
    check.check_grpo_loss(partial(losses.grpo_loss, aggregation="sequence_mean"), seed)


@each
@pytest.mark.parametrize("seed", [0, 100])
def test_a_piece_is_caught_by_its_check_alone_which_names_the_mistake(fault, seed):
    # Checks whose function comes from another file are given the package's own, as in the test above.
    given = museum.implementations(fault.name)
    given = {name: f for name, f in given.items() if fault.file in SUBJECTS[name]}
    said = museum.failures(given, seed)
    assert set(said) == {fault.check}
    assert re.search(SAYS[fault.name], said[fault.check]), said[fault.check]
    assert re.search(r"\[check_\w+\(\.\.\., seed=\d+\) draws this case again\]$", said[fault.check])


@pytest.mark.parametrize("name", ["k3 reversed", "clip without the min", "reference is the policy itself"])
def test_what_is_not_of_the_broken_file_is_the_package_s_own(name):
    right, given, file = museum.implementations(), museum.implementations(name), museum.find(name).file
    for which, takes in SUBJECTS.items():
        if file not in takes and not which.endswith("_mean") and which != "check_reward_pooling":
            assert given[which] is right[which]


@each
def test_a_piece_can_be_read_and_mended(fault):
    shown, right = museum.show(fault.name), museum.show(fault.name, mended=True)
    lines = museum.mend(fault.name)
    assert shown != right and '"""' not in shown and shown.startswith(("def ", "class ", "@"))
    removed = [line[1:].strip() for line in lines.splitlines() if line.startswith("-")]
    added = [line[1:].strip() for line in lines.splitlines() if line.startswith("+")]
    assert removed and all(line in shown for line in removed) and all(line in right for line in added)
    compile(shown, fault.name, "exec")


def test_a_broken_module_stands_beside_the_right_one():
    broken = museum.broken("k3 reversed")
    p, q = torch.tensor([-1.0]), torch.tensor([-3.0])
    assert broken.kl_k3(p, q) != kl.kl_k3(p, q) and broken.kl_k1(p, q) == kl.kl_k1(p, q)
    assert broken is not kl and importlib.import_module("nanogrpo.kl") is kl


def test_a_traceback_shows_the_broken_line():
    broken = museum.broken("k3 reversed")
    try:
        broken.kl_k3(torch.zeros(2), torch.zeros(3))
    except ValueError:
        text = traceback.format_exc()
    assert "<kl.py, broken: k3 reversed>" in text and "delta = _delta(" in text


def test_a_name_that_is_none_lists_the_names():
    with pytest.raises(FaultError, match="no piece is called 'nonsense'; there are .*'k3 reversed'"):
        museum.broken("nonsense")


def test_installed_reaches_every_holder_and_leaves_nothing_behind():
    before = (losses.KL_ESTIMATORS["k3"], losses.kl_k3, grpo.KL_ESTIMATORS["k3"], kl.kl_k3)
    with pytest.raises(RuntimeError, match="stop"):
        with museum.installed("k3 reversed") as broken:
            inside = (losses.KL_ESTIMATORS["k3"], losses.kl_k3, grpo.KL_ESTIMATORS["k3"], kl.kl_k3)
            assert all(f is broken.kl_k3 for f in inside)
            raise RuntimeError("stop")
    assert (losses.KL_ESTIMATORS["k3"], losses.kl_k3, grpo.KL_ESTIMATORS["k3"], kl.kl_k3) == before


def test_installed_changes_what_a_trainer_calls():
    logprobs, mask = torch.tensor([[-1.0, -2.0]]), torch.tensor([[True, True]])
    right = grpo.grpo_loss(logprobs, logprobs, None, torch.tensor([1.0]), mask)[0]
    with museum.installed("sign of the loss"):
        assert grpo.grpo_loss(logprobs, logprobs, None, torch.tensor([1.0]), mask)[0] == -right
    with museum.installed("pad equal to eos"):
        assert tokenizer.CharTokenizer("ab").eos_id == 0
    assert tokenizer.CharTokenizer("ab").eos_id == 1 and rollout.choose is not None

"""The bug museum: each piece is caught by exactly the check that is meant for it, which names the mistake."""

import importlib
import re
import traceback
from functools import partial

import pytest
import torch

from nanogrpo import grpo, kl, losses, rollout, step, tokenizer
from nanogrpo.errors import MuseumError
from nanogrpo.teach import check, museum
from nanogrpo.teach.checks.registry import CHECKS
from nanogrpo.teach.museum.pieces import PIECES

each = pytest.mark.parametrize("piece", PIECES, ids=lambda piece: piece.name)


def test_the_museum_is_large_and_every_piece_has_a_check_that_the_package_takes():
    assert len({piece.name for piece in PIECES}) == len(PIECES) >= 12
    taken = {name for name, it in CHECKS.items() if it.takes}
    assert {piece.check for piece in PIECES} <= taken
    labs = {name for name, it in CHECKS.items() if ".lab_" in it.run.__module__}
    assert set(CHECKS) - taken - labs == {"check_grpo_loss"}, "it repeats what the checks of its parts say"


@pytest.mark.parametrize("seed", [None, 1, 2])
def test_the_package_itself_passes_every_check(seed):
    assert museum.failures(museum.implementations(), seed) == {}
    check.check_grpo_loss(partial(losses.grpo_loss, aggregation="sequence_mean"), seed)


@each
@pytest.mark.parametrize("seed", [0, 100])
def test_a_piece_is_caught_by_its_check_alone_which_names_the_mistake(piece, seed):
    # Checks whose function comes from another file are given the package's own, as in the test above.
    given = museum.implementations(piece.name)
    given = {name: f for name, f in given.items() if piece.file in CHECKS[name].takes}
    said = museum.failures(given, seed)
    assert set(said) == {piece.check}
    assert re.search(piece.says, said[piece.check]), said[piece.check]
    assert re.search(r"\[check_\w+\(\.\.\., seed=\d+\) draws this case again\]$", said[piece.check])


@pytest.mark.parametrize("name", ["k3 reversed", "clip without the min", "reference is the policy itself"])
def test_what_is_not_of_the_broken_file_is_the_package_s_own(name):
    right, given, file = museum.implementations(), museum.implementations(name), museum.find(name).file
    for which in given:
        made = which.endswith("_mean") or which == "check_reward_pooling"  # of the module, at each call
        if file not in CHECKS[which].takes and not made:
            own, package = (getattr(f, "func", f) for f in (given[which], right[which]))  # of a partial
            assert own is package


@each
def test_a_piece_can_be_read_and_mended(piece):
    shown, right = museum.show(piece.name), museum.show(piece.name, mended=True)
    lines = museum.mend(piece.name)
    assert shown != right and '"""' not in shown and shown.startswith(("def ", "class ", "@"))
    removed = [line[1:].strip() for line in lines.splitlines() if line.startswith("-")]
    added = [line[1:].strip() for line in lines.splitlines() if line.startswith("+")]
    assert removed and all(line in shown for line in removed) and all(line in right for line in added)
    compile(shown, piece.name, "exec")


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
    with pytest.raises(MuseumError, match="no piece is called 'nonsense'; there are .*'k3 reversed'"):
        museum.broken("nonsense")


def test_installed_reaches_every_holder_and_leaves_nothing_behind():
    before = (losses.KL_ESTIMATORS["k3"], step.kl_k3, grpo.KL_ESTIMATORS["k3"], kl.kl_k3)
    with pytest.raises(RuntimeError, match="stop"):
        with museum.installed("k3 reversed") as broken:
            inside = (losses.KL_ESTIMATORS["k3"], step.kl_k3, grpo.KL_ESTIMATORS["k3"], kl.kl_k3)
            assert all(f is broken.kl_k3 for f in inside)
            raise RuntimeError("stop")
    assert (losses.KL_ESTIMATORS["k3"], step.kl_k3, grpo.KL_ESTIMATORS["k3"], kl.kl_k3) == before


def test_installed_changes_what_a_trainer_calls():
    logprobs, mask = torch.tensor([[-1.0, -2.0]]), torch.tensor([[True, True]])
    right = grpo.grpo_loss(logprobs, logprobs, None, torch.tensor([1.0]), mask)[0]
    with museum.installed("sign of the loss"):
        assert grpo.grpo_loss(logprobs, logprobs, None, torch.tensor([1.0]), mask)[0] == -right
    with museum.installed("pad equal to eos"):
        assert tokenizer.CharTokenizer("ab").eos_id == 0
    assert tokenizer.CharTokenizer("ab").eos_id == 1 and rollout.sample_token is not None

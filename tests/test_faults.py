"""The planted faults: each can still be planted, and each is caught with a message that names the mistake."""

import pytest

from nanogrpo.errors import FaultError
from nanogrpo.teach import faults
from nanogrpo.teach.collection import FAULTS, Fault, planted
from nanogrpo.teach.faults import ROOT, Verdict, examine, examine_all

# What a reader must find in the message of the test that fails.
SAYS = {
    "k3 reversed": "sign is reversed",
    "k1 reversed": "sign is reversed",
    "k3 without expm1": "use expm1",
    "reference not detached": "not detached",
    "reference is the policy itself": "moves with the policy",
    "penalty with the wrong sign": "sign",
    "Bessel's std where population is meant": "population std",
    "population std where Bessel is meant": "not Bessel's std",
    "ties by a small eps": "max == min",
    "group mean over the wrong axis": "wrong axis",
    "GAE without (1 - done)": "1 - done",
    "mask applied after exp": "before exp",
    "the clip's min turned into max": "is its min a max",
    "old log-probs not detached": "not detached",
    "normalized by the microbatch": "of the microbatch, not of the whole batch",
    "target shift off by one": "target shift off by one",
    "EOS left out of the mask": "EOS left out of the mask",
    "fast path: target shift off by one": "a shift by one",
    "fast path: EOS left out of the mask": "EOS left out of the mask",
    "pad equal to eos": "mask the end of every completion",
    "old log-probs at temperature 1": "temperature?",
    "new log-probs at temperature 1": "temperature?",
    "std of the batch where the group's is meant": "another group's rewards",
    "own reward in the leave-one-out baseline": "mean of the OTHER rewards",
    "score one token after the end": "not on the last token",
    "exact KL in the wrong order": "are the two swapped?",
    "entropy averaged over the vocabulary": "log V",
    "proxy in place of the entropy": "not the entropy",
    "clip without the min": "must not touch this",
    "advantages not detached": "not detached",
    "token mean over padding": "how far the batch is padded",
    "constant length is the padded length": "how far the batch is padded",
    "sign of the loss": "not -A grad log p",
    "mask is every token but EOS": "differs: mask, EOS, shift?",
    "k1 as the loss": "not the equation of the docstring",
    "ratio against itself": "must stop the gradient here",
    "ratio detached on both sides": "detached on both sides",
    "sequence mean over padding": "padding in a mean?",
    "value clip's max turned into min": "max turned into a min",
    "returns not detached": "not detached",
    "value after the token": "read after token t",
    "Bradley-Terry reversed": "chosen and rejected swapped?",
    "score read at the padding": "read at the padding",
    "targets shifted twice": "targets shifted",
}
each = pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
ABSENT = Fault("absent", "kl.py", (("no such text", ""),), "", "", "", "test_kl.py")


@each
def test_each_fault_can_still_be_planted_and_is_still_python(fault):
    source = (ROOT / "nanogrpo" / fault.file).read_text(encoding="utf-8")
    broken = planted(source, fault)
    assert broken != source
    compile(broken, fault.file, "exec")
    assert (ROOT / "tests" / fault.tests).is_file() and fault.effect and fault.symptom


def test_the_names_are_unique_and_all_messages_are_checked():
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) == len(SAYS)
    assert {fault.name for fault in FAULTS} == set(SAYS)


@pytest.mark.parametrize("text", ["", "no such text no such text"])
def test_a_fault_whose_text_has_changed_fails_loudly(text):
    with pytest.raises(
        FaultError, match=r"fault 'absent': 'no such text' stands \d times in kl.py, not once"
    ):
        planted(text, ABSENT)


def test_without_the_tests_it_says_where_to_run_it(tmp_path):
    with pytest.raises(FaultError, match="run this from a checkout"):
        examine(FAULTS[0], tmp_path)


def test_the_command_describes_picks_and_counts(monkeypatch, capsys):
    assert faults.main(["--list"]) == 0
    listed = capsys.readouterr().out
    assert all(fault.name in listed and fault.symptom in listed for fault in FAULTS)
    with pytest.raises(SystemExit):
        faults.main(["nonsense"])
    answer = {"k3 reversed": "test_2D_31_x", "k3 without expm1": ""}
    monkeypatch.setattr(
        faults, "examine_all", lambda chosen: [Verdict(f, answer[f.name], "the message") for f in chosen]
    )
    assert faults.main(["k3"]) == 1, "a fault that nobody caught must fail the command"
    printed = capsys.readouterr().out
    assert "test_kl.py: 2D 31 x" in printed and "nobody" in printed
    assert "1 of 2 caught. MISSED: k3 without expm1" in printed


@pytest.mark.slow
def test_a_harmless_change_is_not_reported_as_caught():
    edit = ("return torch.expm1(delta) - delta", "return -delta + torch.expm1(delta)")
    assert examine(Fault("harmless", "kl.py", (edit,), "", "", "", "test_kl.py")).caught_by == ""


@pytest.mark.slow
def test_each_fault_is_caught_with_a_message_that_says_what_is_wrong():
    for verdict in examine_all():
        name = verdict.fault.name
        assert verdict.caught_by, f"{name}: no test in {verdict.fault.tests} noticed"
        assert SAYS[name] in verdict.message, f"{name}: {verdict.caught_by} says only {verdict.message!r}"

"""The planted pieces: each can still be planted, and each is caught with a message that names the mistake."""

import re
from pathlib import Path

import pytest

from nanogrpo.errors import MuseumError
from nanogrpo.teach.museum import __main__ as command
from nanogrpo.teach.museum import pieces
from nanogrpo.teach.museum.__main__ import ROOT, Finding, examine, examine_all
from nanogrpo.teach.museum.pieces import PIECES, Piece, planted

each = pytest.mark.parametrize("piece", PIECES, ids=lambda piece: piece.name)
ABSENT = Piece("absent", "kl.py", (("no such text", ""),), "", "", "", "test_kl.py")


@each
def test_each_piece_can_still_be_planted_and_is_still_python(piece):
    source = (ROOT / "nanogrpo" / piece.file).read_text(encoding="utf-8")
    broken = planted(source, piece)
    assert broken != source
    compile(broken, piece.file, "exec")
    assert (ROOT / "tests" / piece.tests).is_file() and piece.effect and piece.symptom


def test_a_piece_that_lacks_a_part_says_which():
    whole = (Path(pieces.__file__).with_name("pieces.txt")).read_text(encoding="utf-8").split("\n---\n")[1]
    assert len(pieces.read(whole)) == 1
    for part in ("Piece", "File", "Does", "Shows", "Check", "Says", "Tests", "Test-Says"):
        with pytest.raises(MuseumError, match=f"has no {part}:"):
            pieces.read(re.sub(rf"^{part}: .*\n", "", whole, flags=re.MULTILINE))
    with pytest.raises(MuseumError, match="has no edit:"):
        pieces.read(re.sub(r"^[-+].*\n", "", whole, flags=re.MULTILINE))


@pytest.mark.parametrize("text", ["", "no such text no such text"])
def test_a_piece_whose_text_has_changed_fails_loudly(text):
    with pytest.raises(
        MuseumError, match=r"piece 'absent': 'no such text' stands \d times in kl.py, not once"
    ):
        planted(text, ABSENT)


def test_without_the_tests_it_says_where_to_run_it(tmp_path):
    with pytest.raises(MuseumError, match="run this from a checkout"):
        examine(PIECES[0], tmp_path)


def test_the_command_describes_picks_and_counts(monkeypatch, capsys):
    assert command.main(["--list"]) == 0
    listed = capsys.readouterr().out
    assert all(piece.name in listed and piece.symptom in listed for piece in PIECES)
    with pytest.raises(SystemExit):
        command.main(["nonsense"])
    answer = {"k3 reversed": "test_2D_31_x", "k3 without expm1": ""}
    monkeypatch.setattr(
        command, "examine_all", lambda chosen: [Finding(f, answer[f.name], "the message") for f in chosen]
    )
    assert command.main(["k3"]) == 1, "a piece that nobody caught must fail the command"
    printed = capsys.readouterr().out
    assert "test_kl.py: 2D 31 x" in printed and "nobody" in printed
    assert "1 of 2 caught. MISSED: k3 without expm1" in printed


@pytest.mark.slow
def test_a_harmless_change_is_not_reported_as_caught():
    edit = ("return torch.expm1(delta) - delta", "return -delta + torch.expm1(delta)")
    assert examine(Piece("harmless", "kl.py", (edit,), "", "", "", "test_kl.py")).caught_by == ""


@pytest.mark.thorough
def test_each_piece_is_caught_with_a_message_that_says_what_is_wrong():
    missed = {
        finding.piece.name: (finding.piece.tests, finding.caught_by, finding.message)
        for finding in examine_all()
        if not finding.caught_by or finding.piece.test_says not in finding.message
    }
    assert missed == {}

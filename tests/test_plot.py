"""The plot command: every log and every name of a picture is drawn, or refused in one line."""

import sys

import pytest
from test_metrics import FILES

from nanogrpo.__main__ import main

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")

LOG = "step,reward\n1,0.5\n2,0.75\n"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "log.csv").write_text(LOG)
    return tmp_path


def refused(*argv):
    with pytest.raises(SystemExit) as stopped:
        main(["plot", *argv])
    assert str(stopped.value).startswith("error: ") and "\n" not in str(stopped.value)
    return str(stopped.value)


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_no_log_is_one_line_and_leaves_no_picture(here, name):
    (here / "bad.csv").write_bytes(FILES[name])
    assert "bad.csv" in refused("bad.csv", "--out", "x.png")
    assert not (here / "x.png").exists()


@pytest.mark.parametrize(
    "out", ["x.xyz", "x.csv", ".", "folder", "log.csv/x.png", "x.pn g", "x." + "y" * 300]
)
def test_a_picture_that_cannot_be_written_is_one_line_and_spoils_nothing(here, out):
    (here / "folder").mkdir()
    before = sorted(here.rglob("*"))
    refused("log.csv", "--out", out)
    assert sorted(here.rglob("*")) == before and (here / "log.csv").read_text() == LOG


@pytest.mark.parametrize(
    "out", ["x.png", "x.PNG", "new/folder/x.png", "größe $ _x.png", "x.pdf", "x.svg", "x"]
)
def test_a_picture_that_can_be_written_is(here, out):
    main(["plot", "log.csv", "--out", out])
    assert (here / out).stat().st_size > 1000


@pytest.mark.parametrize("text", ["step,reward\n", "step\n1\n", "reward\n0.5\n"])
def test_a_log_without_what_is_drawn_is_one_line(here, text):
    (here / "bad.csv").write_text(text)
    refused("bad.csv")
    refused("log.csv", "bad.csv")
    assert not (here / "plot.png").exists()


@pytest.mark.parametrize(
    "text", ["step,reward\n1,0.5\n", "step,reward\n1,nan\n", "\ufeffstep,reward\r\n1,0.5\r\n"]
)
def test_one_row_is_a_picture_with_something_in_it(here, text):
    """It was an empty frame, and exit 0."""
    (here / "one.csv").write_bytes(text.encode())
    main(["plot", "one.csv", "--out", "one.png"])
    (here / "two.csv").write_text("step,reward\n1,nan\n2,nan\n")
    picture = matplotlib.image.imread(here / "one.png")
    ink = (picture[..., :3].max(-1) - picture[..., :3].min(-1) > 0.3).sum()  # colored pixels are data
    assert ink > 20


def test_without_matplotlib_it_says_what_to_install(here, monkeypatch):
    for name in [
        name for name in sys.modules if name.startswith("matplotlib") or name == "nanogrpo.show.plotting"
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "pip install 'nanogrpo[plot]'" in refused("log.csv")


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ("1 1 2", "row 2: step 1 follows step 1"),
        ("2 1 3", "row 2: step 1 follows step 2"),
        ("1 nan 3", "row 2: step=nan"),
        ("1 inf 3", "row 2: step=inf"),
    ],
)
def test_steps_that_do_not_go_up_are_no_log_of_one_run(here, steps, said):
    """As the doctor has it: a mean over steps of two runs is the curve of neither."""
    rows = "".join(f"{step},0.5\n" for step in steps.split())
    (here / "two.csv").write_text("step,reward\n" + rows)
    assert said in refused("two.csv", "--out", "x.png") and not (here / "x.png").exists()

"""The executor's pure functions: what is stored of an output, and what is refused."""

import copy
import os
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "book" / "_ext"))

import clean as c  # noqa: E402
import execute  # noqa: E402
import needs  # noqa: E402

PATHS = {"/site/lib/site-packages": "site-packages", "/repo/": "", "/repo": ".", "/home/someone": "~"}
v4 = nbformat.v4


def stream(text, name="stdout"):
    return v4.new_output("stream", name=name, text=text)


@pytest.mark.parametrize(
    "raw, stored",
    [
        ("<object at 0x7f12ab34cd56>", "<object at 0x…>"),
        ("color 0xff is short", "color 0xff is short"),
        ("/repo/nanogrpo/losses.py:12", "nanogrpo/losses.py:12"),
        ("/site/lib/site-packages/torch/x.py", "site-packages/torch/x.py"),
        ("/tmp/ipykernel_123/456.py:2: UserWarning", "<cell>:2: UserWarning"),
        ("train: 100%|███| 30/30 [00:12<00:00,  4.10it/s]", "train: 100%|███| 30/30"),
        ("12it [00:03,  3.95it/s]", "12it"),
        (" 30/30 [1:00:12&lt;00:00, 12.3s/it, reward=0.53, kl=0.1]", " 30/30 [reward=0.53, kl=0.1]"),
        ("  0%|          | 0/30 [00:00<?, ?step/s]", "  0%|          | 0/30"),
        ("an empty list [] stays, and so does [0:12]", "an empty list [] stays, and so does [0:12]"),
    ],
)
def test_clean_text(raw, stored):
    assert c.clean_text(raw, PATHS) == stored
    assert c.clean_text(stored, PATHS) == stored, "cleaning twice must change nothing more"


@pytest.mark.parametrize(
    "raw, stored",
    [
        ("a\nb\n", "a\nb\n"),
        ("\r 10%\r 50%\r100%\n", "100%\n"),
        ("\r 10%\r     \r", ""),
        ("windows\r\nline\r\n", "windows\nline\n"),
        ("\r50%\x1b[A\r100%\n", "100%\n"),
    ],
)
def test_last_frame(raw, stored):
    assert c.last_frame(raw) == stored


def test_images_and_widget_programs_are_left_alone():
    value = {"image/png": "/repo/0x7f12ab34cd56", "_esm": "import '/repo/x'", "text/plain": "/repo/x"}
    assert c.clean_value(value, PATHS) == {**value, "text/plain": "x"}


def test_streams_merge_between_displays_and_keep_their_order():
    figure = v4.new_output("display_data", {"text/plain": "figure"})
    outputs = [
        stream("err ", "stderr"),
        stream("a"),
        stream("b"),
        stream("or", "stderr"),
        figure,
        stream("c"),
        stream("\r  "),
    ]
    merged = c.merge_streams(outputs)
    assert [(o.get("name"), o.get("text")) for o in merged] == [
        ("stdout", "ab"),
        ("stderr", "err or"),
        (None, None),
    ], "a wiped progress bar after the figure must leave nothing"


def test_a_bar_that_a_figure_interrupted_stays_one_line():
    figure = v4.new_output("display_data", {"text/plain": "figure"})
    outputs = [stream("\r 10%", "stderr"), figure, stream("\r 50%", "stderr"), stream("\r100%\n", "stderr")]
    outputs += [stream("next\n", "stderr")]
    assert [o.get("text") for o in c.merge_streams(outputs)] == ["100%\n", None, "next\n"]
    assert outputs[0].text == "\r 10%", "the argument is not changed"


def model(kind, **state):
    return {"model_name": kind, "model_module": "m", "model_module_version": "1", "state": state}


def widget_notebook(ids="abc"):
    """A notebook that shows a slider, and a figure that a widget drew."""
    layout, slider, drawing = (letter * 32 for letter in ids)
    state = {
        drawing: model("AnyModel"),
        layout: model("LayoutModel"),
        slider: model("IntSliderModel", layout=f"IPY_MODEL_{layout}"),
    }
    views = [
        v4.new_output("display_data", {c.VIEW: {"model_id": name}, "text/plain": "x"})
        for name in (drawing, slider)
    ]
    views[0].data["text/html"] = "<svg></svg>"
    metadata = {"widgets": {c.STATE: {"state": state, "version_major": 2, "version_minor": 0}}}
    return v4.new_notebook(cells=[v4.new_code_cell("run", outputs=views, id="cell")], metadata=metadata)


def test_a_widget_with_a_picture_is_stored_as_that_and_others_stay():
    nb = c.clean(widget_notebook(), PATHS)
    drawing, slider = nb.cells[0].outputs
    assert drawing.data == {"text/html": "<svg></svg>", "text/plain": "x"}
    state = c.widget_state(nb)
    assert [m["model_name"] for m in state.values()] == ["LayoutModel", "IntSliderModel"]
    assert slider.data[c.VIEW]["model_id"] in state


def test_a_closed_widget_is_dropped_with_all_its_models():
    nb = widget_notebook()
    del nb.cells[0].outputs[0], c.widget_state(nb)["b" * 32]
    nb = c.clean(nb, PATHS)
    assert nb.cells[0].outputs == [] and "widgets" not in nb.metadata


def test_a_link_between_two_shown_widgets_stays():
    state = {
        "a": model("IntSliderModel"),
        "b": model("IntTextModel"),
        "c": model("LinkModel", source=["IPY_MODEL_a", "value"], target=["IPY_MODEL_b", "value"]),
        "d": model("LinkModel", source=["IPY_MODEL_a", "value"], target=["IPY_MODEL_gone", "value"]),
    }
    c.prune(state, ["a", "b"])
    assert list(state) == ["a", "b", "c"]


def test_widget_ids_do_not_depend_on_the_run():
    first, second = (c.clean(widget_notebook(ids), PATHS) for ids in ("abc", "xyz"))
    assert first == second
    assert c.clean(copy.deepcopy(first), PATHS) == first


def test_styled_tables_have_names_of_their_place():
    def page(*names):
        tables = [f'<table id="{name}"><td id="{name}_row0">1</td></table>' for name in names]
        outputs = [v4.new_output("display_data", {"text/html": table}) for table in tables]
        cells = [v4.new_code_cell("x", outputs=[output], id=f"c{i}") for i, output in enumerate(outputs)]
        return v4.new_notebook(cells=cells)

    first, second = (c.clean(page(*names), PATHS) for names in (("T_1a", "T_2b"), ("T_2", "T_c")))
    assert first == second
    assert first.cells[1].outputs[0].data["text/html"] == '<table id="T_2"><td id="T_2_row0">1</td></table>'
    assert c.clean(copy.deepcopy(first), PATHS) == first


def test_a_drawing_is_stored_without_what_it_says_of_its_making():
    made = "\n <metadata>\n  <dc:date>now</dc:date>\n </metadata>"
    drawing = f'<svg>{made}\n <g x="1.23456"/><text>0.12345</text></svg>\n'
    stored = {"image/svg+xml": '<svg> <g x="1.234"/><text>0.12345</text></svg>'}
    assert c.clean_value({"image/svg+xml": drawing}, PATHS) == c.clean_value(stored, PATHS) == stored


def test_machine_and_run_leave_no_trace_in_the_metadata():
    nb = v4.new_notebook(cells=[v4.new_code_cell("1", metadata={"execution": {"iopub.status.busy": "now"}})])
    nb.metadata.kernelspec = {"name": "my-env", "display_name": "Python 3.11 (my-env)"}
    nb = c.clean(nb, PATHS)
    assert nb.metadata.kernelspec.name == "python3" and "version" not in nb.metadata.language_info
    assert "execution" not in nb.cells[0].metadata


def notebook_with(output, **metadata):
    return v4.new_notebook(cells=[v4.new_code_cell("run", outputs=[output], metadata=metadata)])


@pytest.mark.parametrize(
    "path", ["/home/reader/x", "/Users/reader/x", "/tmp/x", "/repo/x", "C:\\Users\\reader"]
)
def test_a_path_of_a_machine_is_refused(path):
    assert "path" in c.problems(notebook_with(stream(f"saved to {path}\n")), PATHS)[0]


@pytest.mark.parametrize(
    "text", ["runs/quickstart/metrics.csv", "https://x.org/home/page", "~/nanogrpo", "and/or"]
)
def test_a_relative_path_is_allowed(text):
    assert c.problems(notebook_with(stream(text)), PATHS) == []


def test_a_figure_needs_an_alt_text():
    figure = v4.new_output("display_data", {"image/png": "aGk=", "text/plain": "<Figure>"})
    assert "alt text" in c.problems(notebook_with(figure), PATHS)[0]
    assert "alt text" in c.problems(notebook_with(figure, mystnb={"image": {"alt": " "}}), PATHS)[0]
    assert c.problems(notebook_with(figure, mystnb={"image": {"alt": "A curve."}}), PATHS) == []


def test_this_machine_is_known():
    paths = c.machine_paths(ROOT)
    assert c.clean_text(str(ROOT / "nanogrpo" / "grpo.py"), paths) == os.path.join("nanogrpo", "grpo.py")
    assert c.clean_text(nbformat.__file__, paths).startswith("site-packages")


def test_chapters_are_those_of_the_contents_in_order(tmp_path):
    (tmp_path / "book").mkdir()
    for name in ("one", "two", "left-out"):
        (tmp_path / "book" / f"{name}.ipynb").touch()
    (tmp_path / "_toc.yml").write_text(
        "format: jb-book\nroot: book/intro\nparts:\n- caption: A\n  chapters:\n  - file: book/two\n"
        "    sections:\n    - file: book/one.ipynb\n  - file: book/text\n"
    )
    assert [path.stem for path in execute.chapters(tmp_path)] == ["two", "one"]


@pytest.mark.slow
def test_two_runs_give_the_same_bytes(tmp_path):
    source = tmp_path / "trial.ipynb"
    cells = [
        "import time\nfrom tqdm import tqdm\nprint(object())",
        "for _ in tqdm(range(5), desc='text'):\n    time.sleep(0.01)",
        "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()",
        "1 / 0",
        "import pandas as pd\npd.DataFrame({'a': [1]}).style.format('{:.1f}')",
    ]
    nb = v4.new_notebook(cells=[v4.new_code_cell(text, id=f"cell-{i}") for i, text in enumerate(cells)])
    nb.cells[2].metadata = {"mystnb": {"image": {"alt": "A line."}}}
    nb.cells[3].metadata = {"tags": ["raises-exception"]}
    nbformat.write(nb, source)
    for name in ("a", "b"):
        assert execute.run(source, tmp_path / f"{name}.ipynb", timeout=900) == []
    stored = (tmp_path / "a.ipynb").read_text()
    assert stored == (tmp_path / "b.ipynb").read_text()
    assert "text: 100%|██████████| 5/5" in stored
    drawing = nbformat.reads(stored, 4).cells[2].outputs[-1].data["image/svg+xml"]
    assert "</text>" in drawing and "<metadata>" not in drawing, "a figure is a drawing, its text is text"
    assert '<table id=\\"T_1\\">' in stored
    assert nbformat.read(source, 4) == nb, "the source is not touched when a copy is written"


def test_a_chapter_that_imports_trl_is_known_and_says_what_it_lacks(tmp_path, monkeypatch):
    def chapter(name, code):
        nbformat.write(v4.new_notebook(cells=[v4.new_code_cell(code)]), tmp_path / name)
        return tmp_path / name

    with_trl = chapter("a.ipynb", "import torch\nfrom trl import GRPOTrainer")
    without = chapter("b.ipynb", "print('from trl import GRPOTrainer')")
    monkeypatch.setattr(needs.importlib.util, "find_spec", lambda name: None)
    assert needs.lacking(with_trl) == needs.NO_TRL and needs.lacking(without) is None
    monkeypatch.setattr(needs.importlib.util, "find_spec", lambda name: name)
    assert needs.lacking(with_trl) is None


def test_a_chapter_that_loads_smollm_says_so_where_the_weights_are_not(tmp_path, monkeypatch):
    path = tmp_path / "a.ipynb"
    nbformat.write(v4.new_notebook(cells=[v4.new_code_cell("import trl\n\nmodel, _ = smollm.load()")]), path)
    monkeypatch.setattr(needs.importlib.util, "find_spec", lambda name: name if name == "trl" else None)
    assert needs.lacking(path) == needs.NO_SMOLLM
    monkeypatch.setattr(sys, "argv", ["execute.py", "--able", str(path)])
    before = path.read_bytes()
    assert execute.main() == 0 and path.read_bytes() == before
    monkeypatch.setattr(needs.importlib.util, "find_spec", lambda name: name)
    assert needs.lacking(path) is None

"""What is wrong in a folder though each of its files can be read: an error with a reason, or it is said."""

import json

import pytest
import torch
from safetensors.torch import save_file

from nanogrpo import weights
from nanogrpo.__main__ import main
from nanogrpo.checkpoint import from_json, load_tensors
from nanogrpo.commands import RM
from nanogrpo.errors import CheckpointError, LogError, RunError
from nanogrpo.grpo import GRPOConfig
from nanogrpo.metrics import CSVLog, read_csv
from nanogrpo.optim import AdamW
from nanogrpo.options import add_options
from nanogrpo.runs import Folder
from nanogrpo.state import TrainState

RUN = ["grpo", "--model", "addition", "--prompts-per-step", "2", "--group-size", "2", "--max-new-tokens", "3"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A finished run of one step."""
    monkeypatch.setattr("nanogrpo.job.summary", lambda *a: "done")
    main([*RUN, "--max-steps", "1", "--out", str(tmp_path / "run")])
    return tmp_path / "run"


def resumed(folder, capsys):
    """What a run says that is to go on for another step, on standard error."""
    capsys.readouterr()
    main(["grpo", "--resume", "--out", str(folder), "--max-steps", "2"])
    return capsys.readouterr().err


def rewritten(folder, change):
    """The checkpoint with other contents, as another program would write it: without our checksum."""
    path = folder / "checkpoint.safetensors"
    tensors, header = load_tensors(path)
    change(tensors, header)
    save_file(tensors, path, metadata=header)


@pytest.mark.parametrize("settings", ["[]", "{", "3", '{"seed": NaN}', '{"a": 1, "a": 2}', "[" * 100000])
def test_settings_in_a_header_that_are_none_are_an_error_of_this_package(folder, capsys, settings):
    rewritten(folder, lambda tensors, header: header.update(settings=settings))
    with pytest.raises(SystemExit, match="settings in its header"):
        resumed(folder, capsys)


@pytest.mark.parametrize("value", [torch.tensor(-3), torch.tensor(1.0), torch.tensor([1])])
@pytest.mark.parametrize("name", ["step", "num_tokens", "optimizer.steps"])
def test_no_run_goes_on_from_a_count_that_none_reaches(folder, capsys, name, value):
    rewritten(folder, lambda tensors, header: tensors.update({f"state.{name}": value}))
    if name == "optimizer.steps" and value.is_floating_point():
        return  # a whole number all the same
    with pytest.raises(SystemExit, match=r"negative|which no run reaches|another shape"):
        resumed(folder, capsys)


def test_a_state_with_a_negative_square_is_refused():
    param = torch.zeros(2, requires_grad=True)
    state = TrainState.start([param], 0.1, 0)
    tensors = state.tensors()
    tensors["optimizer.square.0"] = torch.tensor([-1.0, 0.0])
    with pytest.raises(CheckpointError, match="negative"):
        state.restore(tensors)
    assert AdamW([param], 0.1).steps == state.step == 0


def test_a_setting_that_stands_twice_is_refused_and_not_read_as_the_last_one(folder, capsys):
    config = folder / "config.json"
    config.write_text(config.read_text().replace("{", '{"beta": 0.5,', 1))
    with pytest.raises(SystemExit, match="'beta' stands there more than once"):
        resumed(folder, capsys)
    with pytest.raises(ValueError, match="more than once"):
        from_json('{"a": [{"b": 1, "b": 1}]}')


def test_a_hash_that_has_lost_its_name_is_said_to_be_missing(folder, capsys):
    config = folder / "config.json"
    settings = json.loads(config.read_text())
    settings["inputs"] = {"another": "0" * 64}
    config.write_text(json.dumps(settings))
    assert "has no hash of task addition" in resumed(folder, capsys)


def test_a_folder_may_be_called_as_a_file_of_weights_is(tmp_path, monkeypatch):
    monkeypatch.setattr("nanogrpo.job.summary", lambda *a: "done")
    first, second = tmp_path / "a.safetensors", tmp_path / "b"
    main([*RUN, "--max-steps", "1", "--out", str(first)])
    main(["grpo", "--model", str(first), *RUN[3:], "--max-steps", "1", "--out", str(second)])
    assert (second / "model.safetensors").exists()


@pytest.mark.parametrize("text", ["1e-400", "-0.0001e-999"])
def test_a_number_that_is_too_small_is_refused_and_not_read_as_0(tmp_path, text):
    import argparse

    parser = argparse.ArgumentParser(exit_on_error=False)
    add_options(parser, GRPOConfig)
    with pytest.raises(argparse.ArgumentError, match="learning-rate"):
        parser.parse_args([f"--learning-rate={text}"])
    assert parser.parse_args(["--learning-rate=0.0e-3"]).learning_rate == 0
    (tmp_path / "log.csv").write_text(f"step,reward\n1,{text}\n")
    with pytest.raises(LogError, match="is no number"):
        read_csv(tmp_path / "log.csv")


@pytest.mark.parametrize("text", ['["abc"]', '{"abc": 1}', '"abc"', "[[1, 2, 3]]", '[["a", "b"]]'])
def test_pairs_are_lists_of_texts_and_no_text_is_read_letter_by_letter(tmp_path, text):
    (tmp_path / "pairs.json").write_text(text)
    job = object.__new__(RM)
    job.folder = Folder(tmp_path)
    with pytest.raises(RunError, match="missing or damaged"):
        job.read_pairs()


@pytest.mark.parametrize("append", [False, True])
def test_of_two_writers_of_one_log_one_stops(tmp_path, append):
    path = tmp_path / "log.csv"
    with CSVLog(path) as one:
        one.write({"step": 1})
        with (
            CSVLog(path, append=append) as other,
            pytest.raises(LogError, match="changed by another program"),
        ):
            for step in (2, 3, 4):
                other.write({"step": step})
                one.write({"step": step})
    assert "4" not in path.read_text()


def test_a_file_without_our_checksum_is_said_to_be_unproved_since_its_heads_may_have_changed(folder, capsys):
    path = folder / "checkpoint.safetensors"
    before = json.loads(load_tensors(path)[1]["config"])
    rewritten(folder, lambda _, header: header.update(config=json.dumps({**before, "n_head": 1})))
    assert before["n_head"] != 1 and "has no sha256" in resumed(folder, capsys)
    weights.load("addition")  # what ships is older than the checksum
    assert "sha256" not in capsys.readouterr().err

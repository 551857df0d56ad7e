"""Checkpoints are whole or not there, and damage is a typed error."""

import json
import os

import pytest
import safetensors.torch
import torch

from nanogrpo import checkpoint, weights
from nanogrpo.checkpoint import load_model, load_tensors, save_model, save_tensors
from nanogrpo.errors import CheckpointError, DeviceError
from nanogrpo.model import GPT, GPTConfig
from nanogrpo.tokenizer import CharTokenizer

TOKENIZER = CharTokenizer("ab")


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    model = GPT(GPTConfig(TOKENIZER.vocab_size, block_size=8, n_layer=1, n_head=1, n_embd=8))
    save_model(tmp_path / "model.safetensors", model, TOKENIZER, seed="0")
    return model, tmp_path / "model.safetensors"


def test_a_model_comes_back_bit_for_bit(saved):
    model, path = saved
    loaded, tokenizer = load_model(path)
    assert loaded.config == model.config and tokenizer.chars == TOKENIZER.chars
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name
    assert load_tensors(path)[1]["seed"] == "0"


@pytest.mark.parametrize("damage", ["missing", "empty", "garbage", "truncated"])
def test_a_damaged_file_is_a_checkpoint_error(saved, damage):
    _, path = saved
    whole = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes({"empty": b"", "garbage": b"\x80\x04" * 400, "truncated": whole[:-100]}[damage])
    with pytest.raises(CheckpointError, match="model.safetensors"):
        load_model(path)


def test_a_single_bit_that_has_turned_is_found(saved):
    _, path = saved
    whole = path.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    for at in (start, start + 1001, len(whole) - 2, whole.index(b'"ab"') + 1, whole.index(b'"seed":"0"') + 8):
        turned = bytearray(whole)
        turned[at] ^= 1
        path.write_bytes(bytes(turned))
        with pytest.raises(CheckpointError, match="model.safetensors.*sha256"):
            load_model(path)


def test_a_file_without_a_checksum_is_read_as_ever(saved):
    model, path = saved
    tensors, header = load_tensors(path)
    assert "sha256" not in header
    path.write_bytes(safetensors.torch.save(tensors, metadata=header))
    assert torch.equal(load_model(path)[0].head.weight, model.head.weight)


def test_weights_that_were_rounded_to_whole_numbers_are_refused(saved):
    model, path = saved
    tensors, header = load_tensors(path)
    save_tensors(path, {name: tensor.int() for name, tensor in tensors.items()}, header)
    with pytest.raises(CheckpointError, match="int32"):
        load_model(path)


def test_a_header_that_says_nothing_is_none_of_this_package(tmp_path):
    tensor = {"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    for index, data in (({}, b""), (tensor, bytes(4))):
        text = json.dumps({"__metadata__": None, **index}).encode()  # the format allows it
        path = tmp_path / "null.safetensors"
        path.write_bytes(len(text).to_bytes(8, "little") + text + data)
        with pytest.raises(CheckpointError, match="null.safetensors is no checkpoint of this package"):
            load_model(path)


def test_notes_are_texts_and_do_not_replace_what_a_file_needs(saved):
    model, path = saved
    before = path.read_bytes()
    for note, said in (
        ({"seed": 3}, "seed=3 cannot be noted"),
        ({"alphabet": "ba"}, "alphabet says what the model is"),
        ({"kind": "mine"}, "kind says what the model is"),
    ):
        with pytest.raises(CheckpointError, match=said):
            save_model(path, model, TOKENIZER, **note)
    assert path.read_bytes() == before


def test_a_file_of_another_kind_or_shape_is_refused(saved, tmp_path):
    model, path = saved
    save_tensors(tmp_path / "other.safetensors", {"x": torch.ones(2)}, {})
    with pytest.raises(CheckpointError, match="no checkpoint of this package"):
        load_model(tmp_path / "other.safetensors")
    tensors, header = load_tensors(path)
    save_tensors(path, tensors, header | {"config": header["config"].replace('"n_embd": 8', '"n_embd": 16')})
    with pytest.raises(CheckpointError, match="model.safetensors"):
        load_model(path)


def test_a_pipe_or_a_device_is_not_replaced_by_a_file(tmp_path):
    """As root, moving a file into its place would take /dev/null away from all programs."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="pipe: it is a device or a pipe, and no file"):
        save_tensors(tmp_path / "pipe", {"a": torch.zeros(1)}, {})
    assert (tmp_path / "pipe").is_fifo() and [p.name for p in tmp_path.iterdir()] == ["pipe"]


def test_a_crash_while_saving_leaves_the_old_file_whole(saved, monkeypatch):
    model, path = saved
    before = path.read_bytes()

    def crash(*_):
        raise OSError("disk full")

    monkeypatch.setattr(checkpoint.os, "replace", crash)
    with pytest.raises(CheckpointError, match="disk full; the old file, if any, is untouched"):
        save_model(path, model, TOKENIZER)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name], "the unfinished file was left behind"


@pytest.mark.parametrize("path", [None, 3, b"here", ["here"]])
def test_what_is_no_name_of_a_file_is_no_checkpoint(path):
    with pytest.raises(CheckpointError, match="is no name of a file"):
        load_model(path)


@pytest.mark.parametrize("device", ["gpu", "", "cuda:99", None])
def test_a_device_that_is_not_there_is_named(saved, device):
    with pytest.raises(DeviceError, match=f"device={device!r} is not to be had here"):
        load_model(saved[1], device)
    with pytest.raises(DeviceError, match=f"device={device!r}"):
        weights.load_reward_model("tinyshakespeare-reward", device=device)

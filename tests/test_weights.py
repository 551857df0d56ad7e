"""Weights that ship: loaded by name, as good as their recipe says, and what their script gives."""

import importlib.util
import json
import math

import pytest
import torch
from tolerance import LOGGED_LOSS

from nanogrpo import pretrain, weights
from nanogrpo.checkpoint import load_tensors, save_model, save_tensors
from nanogrpo.data import CORPORA, alphabet, split_corpus
from nanogrpo.errors import CheckpointError
from nanogrpo.metrics import read_csv
from nanogrpo.model import GPT, GPTConfig
from nanogrpo.show.studies import STUDIES, environment
from nanogrpo.tokenizer import CharTokenizer

NAME = "tinyshakespeare"


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """A folder of weights with one tiny model in it."""
    monkeypatch.setattr(weights, "FOLDER", tmp_path)
    model = GPT(GPTConfig(5, 6, n_layer=1, n_head=1, n_embd=4))
    save_model(tmp_path / "tiny.safetensors", model, CharTokenizer("abc"))
    (tmp_path / "tiny.json").write_text(json.dumps({"held_out_loss": 1.5}))
    return tmp_path, model


@pytest.fixture
def one_thread():
    """The order of a sum depends on the threads; the recipe's run had one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_weights_are_loaded_by_name_each_time_anew(folder):
    _, saved = folder
    policy, tokenizer = weights.load("tiny")
    reference, _ = weights.load("tiny")
    assert tokenizer.chars == "abc" and policy.config == saved.config
    for name, value in saved.state_dict().items():
        assert torch.equal(policy.state_dict()[name], value)
    with torch.no_grad():
        policy.head.weight.add_(1)
    assert torch.equal(reference.head.weight, saved.head.weight), "a reference must not follow the policy"


def test_recipe_and_logs_lie_beside_the_weights(folder):
    path, _ = folder
    assert weights.names() == ["tiny"] and weights.recipe("tiny") == {"held_out_loss": 1.5}
    assert weights.log("tiny") == path / "tiny.csv"
    assert weights.log("tiny", held_out=True) == path / "tiny-held-out.csv"


@pytest.mark.parametrize("ask", [weights.load, weights.recipe, weights.log])
@pytest.mark.parametrize("name", ["hamlet", "", "../tiny", "tiny.safetensors"])
def test_an_unknown_name_is_refused_with_those_that_are_known(folder, ask, name):
    with pytest.raises(CheckpointError, match="no weights .* ship with this package; choose one of tiny$"):
        ask(name)


def test_damaged_weights_are_refused(folder):
    path, _ = folder
    file = path / "tiny.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="cannot read the checkpoint"):
        weights.load("tiny")


def test_weights_of_another_configuration_are_refused(folder):
    path, _ = folder
    tensors, header = load_tensors(path / "tiny.safetensors")
    header["config"] = json.dumps(json.loads(header["config"]) | {"n_embd": 8})
    save_tensors(path / "other.safetensors", tensors, header)
    with pytest.raises(CheckpointError, match="other.safetensors is no checkpoint of this package"):
        weights.load("other")


def test_the_recipe_describes_the_weights_that_ship():
    model, tokenizer = weights.load(NAME)
    recipe = weights.recipe(NAME)
    assert {k: getattr(model.config, k) for k in recipe["shape"]} == recipe["shape"]
    assert model.config.vocab_size == tokenizer.vocab_size == 67
    assert recipe["corpus"] == NAME and recipe["sha256"] == CORPORA[NAME][2]
    assert all(value.isfinite().all() for value in model.state_dict().values())
    made = recipe["environment"]
    assert made.keys() == environment().keys() and made["processor"] and made["threads"] == 1
    assert (weights.FOLDER / f"{NAME}.safetensors").stat().st_size < 5e6


def test_the_logs_are_whole_and_end_where_the_recipe_says():
    recipe = weights.recipe(NAME)
    steps = recipe["config"]["max_steps"]
    log, held_out = (read_csv(weights.log(NAME, held_out=which)) for which in (False, True))
    assert log["step"] == list(range(10, steps + 1, 10))
    assert held_out["step"] == list(range(250, steps + 1, 250))
    assert all(math.isfinite(x) for x in log["loss"])
    assert held_out["loss"][-1] == recipe["held_out_loss"] <= 1.65
    config = pretrain.PretrainConfig(**recipe["config"])
    assert log["learning_rate"] == [pretrain.schedule(int(step), config) for step in log["step"]]


@pytest.mark.slow
def test_the_loaded_model_is_as_good_as_its_recipe_says(corpus):
    model, tokenizer = weights.load(NAME)
    assert tokenizer.chars == alphabet(corpus).chars
    held_out = torch.tensor(tokenizer.encode(split_corpus(corpus)[1]))
    assert pretrain.evaluate(model, held_out) == pytest.approx(
        weights.recipe(NAME)["held_out_loss"], abs=1e-4
    )


@pytest.mark.slow
def test_the_script_run_again_gives_the_logged_losses(corpus, one_thread):
    """The first 100 steps."""
    spec = importlib.util.spec_from_file_location("shakespeare", STUDIES / "shakespeare" / "train.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    _, rows, _ = script.start()
    found = [row["loss"] for _, row in zip(range(100), rows, strict=False) if row["step"] % 10 == 0]
    assert found == pytest.approx(read_csv(weights.log(NAME))["loss"][:10], abs=LOGGED_LOSS)

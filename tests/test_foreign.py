"""The emulated foreign machine: what it moves, by how much, and what it must leave alone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOREIGN = Path(__file__).with_name("foreign")
pytestmark = pytest.mark.slow  # a Python of its own for each

# Weights of a fresh model and of one that ships, and the random number that is drawn next.
SCRIPT = """
import sys, torch
from nanogrpo import weights
from nanogrpo.checkpoint import load_model, save_model
from nanogrpo.model import GPT, GPTConfig
from nanogrpo.tokenizer import CharTokenizer
{before}
torch.manual_seed(0)
fresh, again = GPT(GPTConfig(5, 6, 1, 1, 4)), None
drawn = torch.rand(3)
torch.manual_seed(0)
again = GPT(GPTConfig(5, 6, 1, 1, 4))
shipped, twin = weights.load("addition")[0], weights.load("addition")[0]
for a, b in ((fresh, again), (shipped, twin)):
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters())), "two made alike differ"
save_model(sys.argv[1] + "/own.safetensors", fresh, CharTokenizer("abc"))
back = load_model(sys.argv[1] + "/own.safetensors")[0]
assert all(torch.equal(x, y) for x, y in zip(fresh.parameters(), back.parameters())), "a file was moved"
reward = weights.load_reward_model("tinyshakespeare-reward").gpt
torch.save([fresh.state_dict(), shipped.state_dict(), reward.state_dict(), drawn], sys.argv[2])
"""


def made(folder, before="", **settings):
    import torch

    env = {k: v for k, v in os.environ.items() if not k.startswith("FOREIGN")}
    env |= {"PYTHONPATH": str(FOREIGN)} | settings
    command = [sys.executable, "-c", SCRIPT.format(before=before), str(folder), str(folder / "out.pt")]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return torch.load(folder / "out.pt", weights_only=True)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return made(tmp_path_factory.mktemp("home"))


def off(one, other):
    """The largest relative difference, over all weights."""
    pairs = [(one[name].double(), other[name].double()) for name in one]
    return max(((a - b).abs() / b.abs().clamp(min=1e-30)).max().item() for a, b in pairs)


def test_without_a_seed_it_changes_nothing(home, tmp_path):
    plain = made(tmp_path, PYTHONPATH="")
    assert all(off(a, b) == 0 for a, b in zip(plain[:3], home[:3], strict=True))


def test_with_a_seed_all_weights_are_off_by_a_millionth_at_most(home, tmp_path):
    abroad = made(tmp_path, FOREIGN_SEED="1")
    for a, b in zip(abroad[:3], home[:3], strict=True):
        assert 0.5e-6 < off(a, b) < 1.3e-6  # a float32 itself is off by 6e-8
    assert abroad[3].equal(home[3]), "the global random numbers must go on as they would"


def test_another_seed_moves_them_otherwise_and_the_size_can_be_set(home, tmp_path):
    first, second = (made(tmp_path, FOREIGN_SEED=seed, FOREIGN_RELATIVE="1e-4") for seed in "12")
    assert off(first[0], second[0]) > 1e-5 and 0.5e-4 < off(first[1], home[1]) < 1.1e-4


def test_weights_of_a_folder_that_a_test_puts_in_place_are_read_as_they_are(home, tmp_path):
    """As tests of the loading do; their folder holds what this machine wrote."""
    elsewhere = "import shutil, pathlib; copy = shutil.copytree(weights.FOLDER, sys.argv[1] + '/copy')\n"
    found = made(tmp_path, elsewhere + "weights.FOLDER = pathlib.Path(copy)", FOREIGN_SEED="1")
    assert off(found[1], home[1]) == 0 and off(found[0], home[0]) > 0

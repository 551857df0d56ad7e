"""The table of defaults and the code agree, in both directions, and each source that is named exists."""

import ast
import re
from dataclasses import MISSING, fields
from pathlib import Path

import pytest

from nanogrpo.grpo import GRPOConfig
from nanogrpo.model import GPTConfig
from nanogrpo.ppo import PPOConfig
from nanogrpo.pretrain import PretrainConfig
from nanogrpo.reward_model import RewardModelConfig
from nanogrpo.sft import SFTConfig

BOOK = Path(__file__).parents[1] / "book"
CONFIGS = [GRPOConfig, PPOConfig, SFTConfig, RewardModelConfig, PretrainConfig, GPTConfig]
KINDS = {"paper", "TRL", "study", "choice"}


def tables():
    """Heading to {option: (default, kind, source)}."""
    found, now = {}, None
    for line in (BOOK / "defaults.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            now = found.setdefault(line[3:], {})
        elif row := re.fullmatch(r"\| `(\w+)` \| (?:`(.*?)`|none) \| (\w+) \| (.+) \|", line):
            name, default, kind, source = row.groups()
            assert name not in now, f"{name} stands twice"
            now[name] = (MISSING if default is None else ast.literal_eval(default), kind, source)
        else:
            assert not line.startswith("| `"), f"this row is not read: {line}"
    return found


TABLES = tables()


def documented(config):
    """The rows that hold for a config."""
    name = config.__name__
    return {
        option: row for head, rows in TABLES.items() if name in head.split() for option, row in rows.items()
    }


def test_each_table_is_of_a_config():
    assert {name for head in TABLES for name in re.findall(r"\w+Config", head)} == {
        c.__name__ for c in CONFIGS
    }


@pytest.mark.parametrize("config", CONFIGS)
def test_every_default_is_in_the_table_with_its_value_and_nothing_else_is(config):
    code = {f.name: f.default for f in fields(config)}
    page = {name: default for name, (default, *_) in documented(config).items()}
    assert page.keys() == code.keys(), page.keys() ^ code.keys()
    for name, value in code.items():
        assert page[name] == value and type(page[name]) is type(value), f"{config.__name__}.{name}"


@pytest.mark.parametrize("head", TABLES)
def test_a_source_is_of_a_known_kind_and_a_study_that_is_named_exists(head):
    studies = {path.name for path in (BOOK / "studies").iterdir() if path.is_dir()}
    for name, (_, kind, source) in TABLES[head].items():
        assert kind in KINDS and source.endswith("."), name
        named = set(re.findall(r"`(\w+)`", source)) & (studies | {"ppo_vs_grpo"})
        assert named <= studies and (kind != "study" or named), f"{name}: which study?"

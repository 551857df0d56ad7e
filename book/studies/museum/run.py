"""Plant every piece of the museum in the trainer that it reaches; the protocol is in README.md."""

import copy
import csv
import json
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from unittest.mock import patch

import torch

from nanogrpo import grpo, microbatches, ppo, sft, tasks
from nanogrpo import reward_model as rm
from nanogrpo.model import GPT, GPTConfig
from nanogrpo.show.studies import environment
from nanogrpo.tasks import Addition, exact_match
from nanogrpo.teach import museum
from nanogrpo.teach.museum.pieces import PIECES
from nanogrpo.variants import variant

HERE = Path(__file__).parent
SEEDS = range(5)
TASK = Addition(digits=1, held_out=20)
PROBLEMS, ROOM = TASK.split()[0], 5
EXAMPLES = [(row["prompt"], row["answer"]) for row in PROBLEMS]

BASE = {
    "max_new_tokens": ROOM,
    "group_size": 8,
    "prompts_per_step": 8,
    "max_steps": 10,
    "learning_rate": 2e-3,
    "temperature": 1.5,
    "beta": 0.1,
}
GRPO = {  # options of each setting beside those of BASE
    "grpo": {},
    "grpo, leave-one-out": {"baseline": "leave_one_out", "scale_rewards": "none"},
    "grpo, correction=1": {"correction": 1},
    "grpo, sequence mean": {"aggregation": "sequence_mean"},
    "grpo, constant length": {"aggregation": "constant"},
    "grpo, k1 in the reward": {"kl_in": "reward"},
    "grpo, entropy bonus": {"entropy_coef": 0.05},
    "grpo, rewards 0.3 and 1.3": {},
    "grpo, small microbatches": {},
    "grpo, two rewards, one watched": {"reward_weights": (1.0, 0.0)},
    "grpo, a reward that may be None": {},
    "grpo, the task's own limit and problems": {},
    "grpo, sampler one step old": {"sampler_lag": 1},
    "grpo, REINFORCE++ with baseline": variant("reinforce_pp_baseline"),
    "grpo, GSPO": variant("gspo"),
    "grpo, CISPO, clip_high 0.272": variant("cispo") | {"clip_high": 0.272},
    "grpo, dual clip": variant("dual_clip"),
    "grpo, unbiased KL": {"use_bias_correction_kl": True},
    "grpo, sampler one step old, sequence weights": {
        "sampler_lag": 1,
        "sampler_correction": "sequence_truncate",
    },
}
AT = {  # the setting that reaches a piece, where it is not "grpo"
    "pad equal to eos": "sft",
    "targets shifted twice": "sft",
    "population std where Bessel is meant": "grpo, correction=1",
    "ties by a small eps": "grpo, rewards 0.3 and 1.3",
    "own reward in the leave-one-out baseline": "grpo, leave-one-out",
    "k1 reversed": "grpo, k1 in the reward",
    "entropy averaged over the vocabulary": "grpo, entropy bonus",
    "sequence mean over padding": "grpo, sequence mean",
    "constant length is the padded length": "grpo, constant length",
    "normalized by the microbatch": "grpo, small microbatches",
    "None counts as 1": "grpo, a reward that may be None",
    "weights of the rewards ignored": "grpo, two rewards, one watched",
    "a limit without room for the end": "grpo, the task's own limit and problems",
    "held-out problems are trained on": "grpo, the task's own limit and problems",
    "weights that never reach the sampler": "grpo, sampler one step old",
    "divided by two deviations": "grpo, REINFORCE++ with baseline",
    "GSPO's ratio without its root": "grpo, GSPO",
    "CISPO trains the clipped ratio": "grpo, CISPO, clip_high 0.272",
    "dual clip at both signs": "grpo, dual clip",
    "ratio before the KL detached": "grpo, unbiased KL",
    "mean in the sampler's sequence weight": "grpo, sampler one step old, sequence weights",
    **dict.fromkeys(
        [
            "GAE without (1 - done)",
            "score one token after the end",
            "advantages not detached",
            "value clip's max turned into min",
            "returns not detached",
            "value after the token",
        ],
        "ppo",
    ),
    "Bradley-Terry reversed": "reward model",
    "score read at the padding": "reward model",
}

Rows = Iterator[dict[str, float]]


def untrained() -> GPT:
    torch.manual_seed(0)
    size = TASK.tokenizer.vocab_size
    return GPT(GPTConfig(size, block_size=4 + ROOM, n_layer=1, n_head=2, n_embd=48))


@cache
def started() -> GPT:
    """The model that all runs of RL start from."""
    model = untrained()
    options = sft.SFTConfig(max_steps=40, batch_size=32, learning_rate=3e-3)
    list(sft.train(model, TASK.tokenizer, EXAMPLES, options))
    return model


def graded(prompts: list[str], completions: list[str], answer: list[str]) -> list[float]:
    return [0.3 + right for right in exact_match(prompts, completions, answer)]


def parsed(prompts: list[str], completions: list[str], answer: list[str]) -> list[float | None]:
    """As a parser that knows digits only: None for what it cannot read."""
    right = exact_match(prompts, completions, answer)
    return [hit if text.isdigit() else None for hit, text in zip(right, completions, strict=True)]


def length(prompts: list[str], completions: list[str], answer: list[str]) -> list[float]:
    return [float(len(text)) for text in completions]


def reinforce(setting: str, seed: int) -> Rows:
    """GRPO or PPO from the common start."""
    policy, vocabulary = copy.deepcopy(started()), TASK.tokenizer
    if setting == "ppo":
        config = ppo.PPOConfig(**BASE, num_ppo_epochs=2, critic="head", seed=seed)
        yield from ppo.train(policy, vocabulary, PROBLEMS, exact_match, config, copy.deepcopy(policy))
        return
    judges = {"rewards": graded, "None": parsed, "watched": [exact_match, length]}
    reward = next((judge for word, judge in judges.items() if word in setting.split()), exact_match)
    problems, options = PROBLEMS, BASE | GRPO[setting]
    if "own" in setting:
        task = tasks.Addition(digits=1, held_out=20)  # of the package as it is now, planted or not
        problems, options = task.split()[0], options | {"max_new_tokens": task.max_new_tokens}
    config = grpo.GRPOConfig(**options, num_iterations=2, seed=seed)
    few = {"cpu": 64} if "microbatches" in setting else microbatches.MICROBATCH_TOKENS
    with patch.object(microbatches, "MICROBATCH_TOKENS", few):
        yield from grpo.train(policy, vocabulary, problems, reward, config)


def imitate(seed: int) -> Rows:
    """SFT from the start; what its samples are like, every ten steps."""
    model, vocabulary = untrained(), type(TASK.tokenizer)(TASK.tokenizer.chars)
    asking = grpo.GRPOConfig(max_new_tokens=ROOM, group_size=2)
    prompts, chance = [row["prompt"] for row in PROBLEMS], torch.Generator().manual_seed(seed)
    options = sft.SFTConfig(max_steps=40, batch_size=32, learning_rate=3e-3, seed=seed)
    for row in sft.train(model, vocabulary, EXAMPLES, options):
        if row["step"] % 10 == 0:
            answers = grpo.sample(model, vocabulary, prompts, asking, chance)
            texts = vocabulary.decode_batch(answers.completion_ids)
            right = [row["answer"] for row in PROBLEMS for _ in range(2)]
            hits = sum(text == one for text, one in zip(texts, right, strict=True))
            row["samples right"] = hits / len(texts)
            row["samples truncated"] = answers.truncated.float().mean().item()
            yield row


def prefer(seed: int) -> Rows:
    """A reward model of letters; the text with more a is preferred."""
    chance = torch.Generator().manual_seed(seed)
    letters = TASK.tokenizer.chars[:4]
    pairs = []
    while len(pairs) < 200:
        texts = [
            "".join(letters[i] for i in torch.randint(0, 4, (n,), generator=chance))
            for n in torch.randint(1, 6, (2,), generator=chance)
        ]
        first, second = (text.count(letters[0]) for text in texts)
        if first != second:
            chosen, rejected = texts if first > second else texts[::-1]
            pairs.append(rm.Preference(letters[1], chosen, rejected))
    model = rm.RewardModel(untrained(), TASK.tokenizer)
    yield from rm.train(model, pairs, rm.RewardModelConfig(max_steps=30, learning_rate=3e-3, seed=seed))


def run(piece: str, setting: str, seed: int) -> list[dict]:
    """The rows of one run; the last one has an ``error`` if it stopped with one."""
    started()  # before anything is planted
    rows: list[dict] = []
    with museum.installed(piece) if piece else nullcontext():
        how = {"sft": imitate, "reward model": prefer}.get(setting, lambda s: reinforce(setting, s))
        try:
            rows.extend(how(seed))
        except (ArithmeticError, RuntimeError, ValueError) as stopped:
            rows.append({"error": f"{type(stopped).__name__}: {str(stopped)[:90]}"})
    return [{"piece": piece, "setting": setting, "seed": seed} | row for row in rows]


def main() -> None:
    """All runs that the log lacks: with ``--new NAME`` those alone, else from the beginning."""
    torch.set_num_threads(1)
    made, rows, log = environment(), [], HERE / "results.csv"
    new = sys.argv[2] if "--new" in sys.argv[1:2] else ""  # of the file that says what made them
    if new:
        with open(log, newline="", encoding="utf-8") as file:
            rows = [{k: v for k, v in row.items() if v or k == "piece"} for row in csv.DictReader(file)]
    there = {(row["piece"], row["setting"]) for row in rows}
    settings = [("", setting) for setting in dict.fromkeys(["grpo", *AT.values()])]
    for pair in [*settings, *((piece.name, AT.get(piece.name, "grpo")) for piece in PIECES)]:
        if pair not in there:
            for seed in SEEDS:
                rows += run(*pair, seed)
            print(*pair, flush=True)
    (HERE / f"environment{new and '_' + new}.json").write_text(json.dumps(made, indent=2) + "\n")
    names = list(dict.fromkeys(name for row in rows for name in row))
    with open(log, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(
            {n: f"{v:.6g}" if isinstance(v, float) else v for n, v in row.items()} for row in rows
        )


if __name__ == "__main__":
    main()

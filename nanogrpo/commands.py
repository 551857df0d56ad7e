"""What the commands of ``python -m nanogrpo`` do; ``__main__.py`` reads their options.

A run's settings come from three places: the defaults of its config, what was given on the command line, and,
where a run is resumed, the ``config.json`` in its folder. Another trainer is one more function like these.
"""

import argparse
import copy
import json
from dataclasses import asdict, fields
from pathlib import Path

import torch
from tqdm import tqdm

from nanogrpo import grpo, plays, ppo, reward_model, runs, sft, weights
from nanogrpo.checkpoint import load_model, save_model
from nanogrpo.critic import new_critic
from nanogrpo.data import load_corpus, split_corpus
from nanogrpo.errors import CheckpointError, OptionError, RunError
from nanogrpo.model import GPT
from nanogrpo.recipes import measure, new_policy, sft_until, test_problems
from nanogrpo.runs import MODEL, Run
from nanogrpo.state import TrainState
from nanogrpo.tasks import Addition, Problem, exact_match
from nanogrpo.tokenizer import CharTokenizer

TASKS = ("addition", "lines")  # the first lines of speeches in tiny Shakespeare
MAY_CHANGE = ("max_steps", "save_every")  # when a run is resumed: no step depends on them
POLICY = {"addition": "runs/sft", "lines": "runs/sft-lines"}


def run_sft(args: argparse.Namespace) -> None:
    """Fine-tune: on addition until ``target`` of the answers are right, or on lines of Shakespeare."""
    task = getattr(args, "task", "addition")
    start = {"model": "new", "target": 0.3} if task == "addition" else {"model": "tinyshakespeare"}
    defaults = sft.SFTConfig() if task == "addition" else plays.LINES_CONFIG
    settings, config = settle(args, sft.SFTConfig, {"task": task, **start, **asdict(defaults)})
    out, device = folder_of(args, task), pick_device(args.device)
    if settings["model"] == "new" and not args.resume:
        policy, tokenizer = new_policy(Addition(), config.seed, device), Addition().tokenizer
    else:
        policy, tokenizer = start_model(args, out, settings, device)
    state = TrainState.start(policy.parameters(), config.learning_rate, config.seed)
    run = open_run(
        args, settings, Run(out, policy, tokenizer, {"policy": policy}, state, settings["save_every"])
    )
    if settings["task"] == "addition":
        check_alphabet(tokenizer, Addition().tokenizer)
        accuracy = run.last_row().get("accuracy", 0.0)
        rows = sft_until(
            policy, Addition(), settings["target"], config=config, state=state, accuracy=accuracy
        )
    else:
        lines = plays.first_lines(split_corpus(load_corpus())[0])
        rows = sft.train(policy, tokenizer, lines, config, state)
    drive(run, rows, "SFT", config.max_steps)
    finish(run, settings["task"], config.max_steps)


def run_rm(args: argparse.Namespace) -> None:
    """Train a reward model on preferences of the hidden judge between lines that a policy writes."""
    extra = {"model": POLICY["lines"], "pairs": 2000, "temperature": plays.TEMPERATURE}
    defaults = reward_model.RewardModelConfig()
    # The learning rate falls to 0 at max_steps, so max_steps belongs to what may not change.
    settings, config = settle(args, reward_model.RewardModelConfig, extra | asdict(defaults), ("save_every",))
    out, device = folder_of(args, "addition"), pick_device(args.device)
    policy, tokenizer = start_model(args, out, settings, device)
    text = load_corpus()
    pairs_file = out / "pairs.json"
    model = reward_model.RewardModel(policy, tokenizer)
    state = TrainState.start(model.parameters(), config.learning_rate, config.seed)
    run = Run(out, policy, tokenizer, {"reward_model": model}, state, settings["save_every"])
    if args.resume:
        pairs = [
            reward_model.Preference(*pair) for pair in json.loads(pairs_file.read_text(encoding="utf-8"))
        ]
    else:
        prompts = [heading for heading, _ in plays.first_lines(split_corpus(text)[0])]
        drawn = plays.sample_pairs(policy, tokenizer, prompts, settings["pairs"], config.seed)
        pairs, _ = plays.judge_pairs(plays.Judge(text), drawn, settings["temperature"], config.seed)
    open_run(args, settings, run)
    if not args.resume:
        pairs_file.write_text(json.dumps([[p.prompt, p.chosen, p.rejected] for p in pairs]), encoding="utf-8")
    drive(run, reward_model.train(model, pairs, config, state), "reward model", config.max_steps)
    reward_model.save_reward_model(out / MODEL, model)
    print(f"{state.step} steps on {len(pairs)} pairs; log and weights are in {out}/")


def run_rl(args: argparse.Namespace) -> None:
    """GRPO or PPO, on a rule or on a trained reward model."""
    task = getattr(args, "task", "addition")
    trainer, config_class = {"grpo": (grpo, grpo.GRPOConfig), "ppo": (ppo, ppo.PPOConfig)}[args.command]
    tokens = Addition().max_new_tokens if task == "addition" else plays.MAX_NEW_TOKENS
    extra = {"task": task, "model": POLICY[task], "reward": ["exact" if task == "addition" else "runs/rm"]}
    settings, config = settle(args, config_class, extra | asdict(config_class(tokens)))
    out, device = folder_of(args, task), pick_device(args.device)
    policy, tokenizer = start_model(args, out, settings, device)
    problems = problems_of(settings["task"], tokenizer)
    rewards = [reward_of(name, settings["task"], device) for name in settings["reward"]]
    models, parts = {"policy": policy}, {}
    if config.beta:
        models["reference"] = parts["reference"] = copy.deepcopy(policy).requires_grad_(False)
    if args.command == "ppo":
        models["critic"] = parts["critic"] = new_critic(policy, config.critic)
        state = ppo.start(policy, parts["critic"], config)
    else:
        state = TrainState.start(policy.parameters(), config.learning_rate, config.seed)
    run = open_run(args, settings, Run(out, policy, tokenizer, models, state, settings["save_every"]))
    reward = rewards if len(rewards) > 1 else rewards[0]
    rows = trainer.train(policy, tokenizer, problems, reward, config, state=state, **parts)
    drive(run, rows, args.command.upper(), config.max_steps)
    finish(run, settings["task"], config.max_steps)


def settle(args: argparse.Namespace, config_class: type, base: dict, may_change=MAY_CHANGE) -> tuple:
    """A run's settings and its config: the defaults with what was given, or those of the run that goes on."""
    base = {"command": args.command, **base, "save_every": 50}
    given = {name: value for name, value in vars(args).items() if name in base}
    if args.resume:
        settings = runs.resume_folder(folder_of(args, given.get("task", "addition")), given, may_change)
    else:
        settings = base | given
    if settings["save_every"] < 1:
        raise OptionError(f"save_every={settings['save_every']} must be at least 1")
    names = [field.name for field in fields(config_class)]
    missing = sorted({*names, *base} - settings.keys() - {"target"})
    if missing:
        raise RunError(f"the run was made by another version: its config.json lacks {', '.join(missing)}")
    values = {name: settings[name] for name in names}
    return settings, config_class(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def folder_of(args: argparse.Namespace, task: str) -> Path:
    """The folder of the run."""
    return Path(args.out or f"runs/{args.command}{'' if task == 'addition' else '-lines'}")


def start_model(
    args: argparse.Namespace, out: Path, settings: dict, device: str
) -> tuple[GPT, CharTokenizer]:
    """The model to start from: a run's folder, a file, or the name of weights that ship with the package."""
    if args.resume:
        model, tokenizer = runs.blank_model(out)
        return model.to(device), tokenizer
    name = settings["model"]
    path = weights_file(name)
    if path.exists():
        return load_model(path, device)
    if name in weights.names():
        return weights.load(name, device)
    before = (
        "sft" if args.command in ("grpo", "ppo") and settings["task"] == "addition" else "sft --task lines"
    )
    raise CheckpointError(
        f"there is no model {path}; make one by `python -m nanogrpo {before} --out {name}`, or choose "
        f"another --model (with the package come: {', '.join(weights.names()) or 'none'})"
    )


def weights_file(name: str) -> Path:
    """The weights in a run's folder, or the file itself."""
    return Path(name) if name.endswith(".safetensors") else Path(name) / MODEL


def open_run(args: argparse.Namespace, settings: dict, run: Run) -> Run:
    """Make the run's folder with its first checkpoint, or take up its last one."""
    if args.resume:
        run.load()
    else:
        runs.start_folder(run.folder, settings, args.overwrite)
        run.save()
    return run


def check_alphabet(tokenizer: CharTokenizer, needed: CharTokenizer) -> None:
    """Raise OptionError where a model was made for another task."""
    if tokenizer.chars != needed.chars:
        raise OptionError(
            f"the model reads the alphabet {tokenizer.chars!r}, the task is written in {needed.chars!r}; "
            "choose another --model or --task"
        )


def problems_of(task: str, tokenizer: CharTokenizer) -> list[Problem]:
    """The training problems of a task."""
    if task == "addition":
        check_alphabet(tokenizer, Addition().tokenizer)
        return Addition().split()[0]
    return [{"prompt": heading} for heading, _ in plays.first_lines(split_corpus(load_corpus())[0])]


def reward_of(name: str, task: str, device: str):
    """A reward function by its name, or a trained reward model by its folder or file."""
    if name == "exact" and task == "addition":
        return exact_match
    if name == "judge" and task == "lines":
        return plays.Judge(load_corpus())
    if name in ("exact", "judge"):
        raise OptionError(f"--reward {name} does not go with --task {task}")
    if not weights_file(name).exists():
        raise CheckpointError(
            f"there is no reward model {weights_file(name)}; make one by `python -m nanogrpo rm --out {name}`"
        )
    return reward_model.load_reward_model(weights_file(name), device).score


def drive(run: Run, rows, name: str, total: int) -> None:
    """Run a trainer to its end, with a progress bar."""
    with tqdm(run.rows(rows), desc=name, total=total, initial=run.state.step) as bar:
        for row in bar:
            shown = [key for key in ("reward", "accuracy", "loss", "entropy") if key in row][:2]
            bar.set_postfix({key: f"{row[key]:.2f}" for key in shown})


def finish(run: Run, task: str, total: int) -> None:
    """Save the policy, and say where it is and how good."""
    save_model(run.folder / MODEL, run.policy, run.tokenizer)
    result = ""
    if task == "addition":
        problems = test_problems(Addition())
        accuracy = measure(run.policy, Addition(), problems)["accuracy"]
        result = f"; {accuracy:.1%} of the answers to {len(problems)} held-out problems are right"
    print(f"{run.state.step} steps{result}. Log and weights are in {run.folder}/")


def pick_device(name: str) -> str:
    """``auto`` is a CUDA GPU where there is one, else the CPU."""
    if name not in ("auto", "cpu") and not (name.startswith("cuda") and torch.cuda.is_available()):
        raise OptionError(f"--device {name} is not to be had here; choose cpu, or auto for the best there is")
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name

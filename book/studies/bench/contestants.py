"""What the benchmark compares. A contestant prepares itself, then does one unit of work whenever it is asked.

Run by ``bench.py``, each in a process of its own. A unit is one rollout, one training step, or one
measurement of the machine. All models have one shape (``SHAPES``), the same activation and no dropout; every
completion has its full length, and every group has a reward signal, so that all do the same work.
"""

import json
import os
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

import torch

V, LAYERS, HEADS, BETA = 66, 4, 4, 0.04
# prompts, completions a prompt, tokens of a prompt, tokens of a completion, channels
SHAPES = {"A": (8, 8, 32, 64, 128), "S": (4, 8, 12, 12, 128), "W": (8, 8, 32, 64, 256)}
CHARS = "".join(chr(ord("0") + i) for i in range(V - 2))


def prompts(shape: str, count: int) -> list[str]:
    chance = random.Random(0)
    return ["".join(chance.choices(CHARS, k=SHAPES[shape][2])) for _ in range(count)]


def our_model(shape: str):
    from nanogrpo.model import GPT, GPTConfig

    _, _, Tp, T, C = SHAPES[shape]
    torch.manual_seed(0)
    return GPT(GPTConfig(V, Tp + T, LAYERS, HEADS, C))


def our_tokenizer():
    from nanogrpo.tokenizer import CharTokenizer

    class Endless(CharTokenizer):
        """No token ends a completion, so that all have their full length."""

        eos_id = -1

    return Endless(CHARS)


def hf_model(shape: str):
    from transformers import GPT2Config, GPT2LMHeadModel

    _, _, Tp, T, C = SHAPES[shape]
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=V, n_positions=Tp + T, n_embd=C, n_layer=LAYERS, n_head=HEADS, activation_function="gelu",
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, tie_word_embeddings=False,
        bos_token_id=None, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def rollout_of(path: str, shape: str) -> Callable[[], None]:
    """``simple``, ``packed``, ``no cache`` or ``HF``: one rollout."""
    P, G, Tp, T, _ = SHAPES[shape]
    tokenizer = our_tokenizer()
    ids, lens = tokenizer.encode_prompts(prompts(shape, P))
    if path == "HF":
        model, rows = hf_model(shape).eval(), ids.repeat_interleave(G, 0)
        options = dict(do_sample=True, top_k=0, top_p=1.0, temperature=1.0, max_new_tokens=T)
        return lambda: model.generate(input_ids=rows, attention_mask=torch.ones_like(rows), **options)

    from nanogrpo import packed, rollout

    model, generator = our_model(shape), torch.Generator().manual_seed(0)

    @torch.no_grad()
    def without_cache():
        rows = ids.repeat_interleave(G, 0)
        for numbers in rollout.draw_uniforms(T, P * G, generator, model.head.weight):
            chosen, _ = rollout.sample_token(model(rows)[:, -1], numbers)
            rows = torch.cat([rows, chosen.unsqueeze(1)], 1)

    def sample():
        module = {"simple": rollout, "packed": packed}[path]
        uniforms = rollout.draw_uniforms(P * G, T, generator, model.head.weight)
        module.generate(
            model, ids, lens, group_size=G, max_new_tokens=T, eos_id=-1, pad_id=0, uniforms=uniforms
        )

    return without_cache if path == "no cache" else sample


def our_steps(shape: str, beta: float, steps: int = 10**9) -> Iterator[dict]:
    """The trainer that a reader runs."""
    from nanogrpo import grpo

    P, G, _, T, _ = SHAPES[shape]
    chance = random.Random(0)
    config = grpo.GRPOConfig(
        max_new_tokens=T, group_size=G, prompts_per_step=P, learning_rate=1e-4, max_steps=steps, beta=beta
    )
    problems = [{"prompt": prompt} for prompt in prompts(shape, 256)]

    def reward(prompts, completions, **columns):
        return [chance.random() for _ in completions]

    return grpo.train(our_model(shape), our_tokenizer(), problems, reward, config)


def trl_trainer(shape: str, beta: float, checkpointing: bool, steps: int = 10**6, callbacks=()):
    """TRL's trainer on the same model; its defaults but for what the shape of the work demands."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    from datasets import Dataset, disable_progress_bars
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    from trl import GRPOConfig, GRPOTrainer

    disable_progress_bars()
    P, G, _, T, _ = SHAPES[shape]
    ids = {"<pad>": 0, "<eos>": 1} | {c: i for i, c in enumerate(CHARS, 2)}
    words = Tokenizer(models.WordLevel(ids, "<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", padding_side="left"
    )
    chance, folder = random.Random(0), tempfile.mkdtemp()
    model = hf_model(shape)
    if beta:  # TRL loads the reference from where the model came from
        model.save_pretrained(folder)
        model = type(model).from_pretrained(folder)

    def reward(completions, completion_ids, **columns):
        assert all(len(ids) == T for ids in completion_ids), "a completion ended early"
        return [chance.random() for _ in completions]

    config = GRPOConfig(
        output_dir=folder, use_cpu=True, bf16=False, per_device_train_batch_size=P * G, num_generations=G,
        max_completion_length=T, generation_kwargs={"min_new_tokens": T}, learning_rate=1e-4, beta=beta,
        gradient_checkpointing=checkpointing, max_steps=steps, logging_steps=1, report_to="none",
        save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    data = Dataset.from_list([{"prompt": " ".join(prompt)} for prompt in prompts(shape, 256)])
    return GRPOTrainer(
        model, reward, args=config, train_dataset=data, processing_class=tokenizer, callbacks=list(callbacks)
    )


class Timed:
    """Sums the seconds spent in a function, apart from those in other timed functions that it calls."""

    totals: dict[str, float] = {}
    inner = [0.0]

    @classmethod
    def wrap(cls, owner, name: str, part: str) -> None:
        inside = getattr(owner, name)

        def timed(*args, **kwargs):
            start = time.perf_counter()
            cls.inner.append(0.0)
            try:
                return inside(*args, **kwargs)
            finally:
                took = time.perf_counter() - start
                cls.totals[part] = cls.totals.get(part, 0.0) + took - cls.inner.pop()
                cls.inner[-1] += took

        setattr(owner, name, timed)


def time_our_parts() -> None:
    from nanogrpo import optim, step

    Timed.wrap(step, "sample", "rollout")
    Timed.wrap(step, "update", "forward")
    Timed.wrap(torch.Tensor, "backward", "backward")
    Timed.wrap(step, "clip_grad_norm", "optimizer")
    Timed.wrap(optim.AdamW, "step", "optimizer")


def time_trl_parts() -> None:
    import accelerate
    from trl import GRPOTrainer

    Timed.wrap(GRPOTrainer, "_generate_and_score_completions", "rollout")
    Timed.wrap(GRPOTrainer, "compute_loss", "forward")
    Timed.wrap(accelerate.Accelerator, "backward", "backward")
    Timed.wrap(accelerate.Accelerator, "clip_grad_norm_", "optimizer")
    Timed.wrap(accelerate.optimizer.AcceleratedOptimizer, "step", "optimizer")


def machine() -> Callable[[], dict]:
    """What this core can do: multiply matrices (GFLOP/s), and read memory (GB/s) in and beyond its cache."""
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    near, far = torch.randn(2**20), torch.randn(2**26)  # 4 MiB, 256 MiB

    def rate(work: Callable, amount: float, times: int) -> float:
        start = time.perf_counter()
        for _ in range(times):
            work()
        return amount * times / (time.perf_counter() - start) / 1e9

    def measure() -> dict:
        near.sum()
        return {
            "gflops": rate(lambda: a @ b, 2 * 1024**3, 5),
            "cache_gbs": rate(near.sum, near.nbytes, 100),
            "memory_gbs": rate(far.sum, far.nbytes, 1),
        }

    return measure


def prepare(kind: str, name: str, shape: str) -> Callable[[], dict | None] | Iterator:
    if kind == "machine":
        return machine()
    if kind == "rollout":
        return rollout_of(name, shape)
    beta = BETA if "KL" in name else 0.0
    if name.startswith("nanogrpo"):
        if "parts" in name:
            time_our_parts()
        return our_steps(shape, beta).__next__
    raise ValueError(name)


def answer(channel, seconds: float, extra: dict | None) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # MiB on Linux
    parts, Timed.totals = Timed.totals, {}
    reply = {"seconds": seconds, "peak_mib": peak, "parts": parts, "extra": extra}
    print(json.dumps(reply), file=channel, flush=True)


def serve_trl(channel, name: str, shape: str) -> None:
    """TRL owns its loop, so it is held at the start of each step until the next one is asked for."""
    from transformers import TrainerCallback

    class Gate(TrainerCallback):
        started = None

        def on_step_begin(self, *args, **kwargs):
            if self.started is not None:
                answer(channel, time.perf_counter() - self.started, None)
            else:
                print(json.dumps({"ready": True}), file=channel, flush=True)
            if not sys.stdin.readline().strip():
                os._exit(0)
            Timed.totals = {}
            self.started = time.perf_counter()

    if "parts" in name:
        time_trl_parts()
    trl_trainer(shape, BETA if "KL" in name else 0.0, "defaults" in name, callbacks=[Gate()]).train()


def serve(kind: str, name: str, shape: str) -> None:
    """Answer each line on stdin with one unit of work, until there is none."""
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    if name.startswith("TRL"):
        return serve_trl(channel, name, shape)
    work = prepare(kind, name, shape)
    print(json.dumps({"ready": True}), file=channel, flush=True)
    while sys.stdin.readline().strip():
        start = time.perf_counter()
        extra = work()
        answer(channel, time.perf_counter() - start, extra if kind == "machine" else None)


def job(name: str, shape: str, steps: int) -> None:
    """A whole training run, from the start of the process to its end."""
    if name == "nanogrpo":
        for _ in our_steps(shape, 0.0, steps):
            pass
    else:
        trl_trainer(shape, 0.0, True, steps).train()


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "job":
        job(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    else:
        serve(*sys.argv[1:4])

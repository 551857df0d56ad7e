"""A run's folder: ``config.json``, ``metrics.csv``, ``checkpoint.safetensors``, and at the end the weights.

Weights and state are in one file that is moved into place as a whole: whenever a run is killed, what is there
belongs together. The first checkpoint is written before the first step, so every run can be taken up again.

What it leaves out, and why: older checkpoints (one is enough to go on), a lock (start a run once).
"""

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import nn

from nanogrpo.checkpoint import load_tensors, save_tensors
from nanogrpo.errors import CheckpointError, LogError, RunError
from nanogrpo.metrics import CSVLog, cut_log, read_csv
from nanogrpo.model import GPT, GPTConfig
from nanogrpo.state import TrainState
from nanogrpo.tokenizer import CharTokenizer

CONFIG, LOG, CHECKPOINT, MODEL = "config.json", "metrics.csv", "checkpoint.safetensors", "model.safetensors"


def start_folder(folder: str | os.PathLike, settings: dict, overwrite: bool = False) -> None:
    """Make the folder of a new run and write its ``config.json``.

    Raises:
        RunError: the folder holds a run already.
        LogError: the folder cannot be written.
    """
    folder = Path(folder)
    old = [folder / name for name in (CHECKPOINT, LOG, MODEL) if (folder / name).exists()]
    if old and not overwrite:
        raise RunError(
            f"{folder} holds a run already; go on with it by --resume, replace it by --overwrite, "
            "or choose another --out"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in old:
            path.unlink()
        write_settings(folder, settings)
    except OSError as error:
        raise LogError(f"cannot write to {folder}: {error.strerror}; choose another --out") from error


def write_settings(folder: Path, settings: dict) -> None:
    """Write ``config.json``, whole or not at all."""
    part = folder / f"{CONFIG}.{os.getpid()}.part"
    part.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    os.replace(part, folder / CONFIG)


def resume_folder(folder: str | os.PathLike, given: dict, may_change: tuple[str, ...] = ()) -> dict:
    """The settings of a run that is taken up again, with those ``given`` anew that may change.

    Raises:
        RunError: there is no run, or it was started with another value of a setting.
    """
    folder = Path(folder)
    try:
        settings = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"cannot resume {folder}: no readable {CONFIG} there; leave --resume out") from error
    if not (folder / CHECKPOINT).exists():
        raise RunError(f"cannot resume {folder}: no {CHECKPOINT} there; leave --resume out")
    for name, value in given.items():
        if name not in may_change and settings.get(name) != value:
            raise RunError(
                f"{folder} was started with {name}={settings.get(name)!r} and cannot go on with {value!r}; "
                "leave the option out, or start a new run in another --out"
            )
    for part in sorted(folder.glob("*.part")):
        part.unlink()
        print(f"removed {part}, which a killed run left unfinished", file=sys.stderr)
    settings |= {name: value for name, value in given.items() if name in may_change}
    write_settings(folder, settings)
    return settings


def blank_model(folder: str | os.PathLike) -> tuple[GPT, CharTokenizer]:
    """A model in the shape of a run's policy, and its tokenizer; :meth:`Run.load` fills in the weights."""
    path = Path(folder) / CHECKPOINT
    _, header = load_tensors(path)
    try:
        return GPT(GPTConfig(**json.loads(header["config"]))), CharTokenizer(header["alphabet"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is no checkpoint of a run, or is damaged: {error}") from error


@dataclass(frozen=True)
class Run:
    """The parts of a run that its checkpoint holds.

    Attributes:
        folder: made by :func:`start_folder`.
        policy: whose shape goes into the header.
        tokenizer: its alphabet.
        models: all that has weights, by name: the policy, and a reference or a critic where there is one.
        state: what the trainer was given.
        save_every: steps between two checkpoints.
    """

    folder: Path
    policy: GPT
    tokenizer: CharTokenizer
    models: dict[str, nn.Module]
    state: TrainState
    save_every: int = 50

    def save(self) -> None:
        """Write weights and state as one file, whole or not at all."""
        tensors = {f"state.{key}": value for key, value in self.state.tensors().items()}
        for name, model in self.models.items():
            tensors |= {f"{name}.{key}": value for key, value in model.state_dict().items()}
        header = {"config": json.dumps(asdict(self.policy.config)), "alphabet": self.tokenizer.chars}
        save_tensors(self.folder / CHECKPOINT, tensors, header)

    def load(self) -> None:
        """Take up the checkpoint, and cut the log back to it; what was dropped is said on stderr.

        Raises:
            CheckpointError: it is damaged, or belongs to another run.
            LogError: the log does not reach up to it.
        """
        tensors, _ = load_tensors(self.folder / CHECKPOINT)
        for name, part in {**self.models, "state": self.state}.items():
            own = {
                key.removeprefix(f"{name}."): t for key, t in tensors.items() if key.startswith(f"{name}.")
            }
            try:
                part.restore(own) if name == "state" else part.load_state_dict(own)
            except RuntimeError as error:
                raise CheckpointError(f"{self.folder / CHECKPOINT} does not fit {name}: {error}") from error
        dropped = cut_log(self.folder / LOG, self.state.step)
        if dropped:
            print(dropped, file=sys.stderr)

    def last_row(self) -> dict[str, float]:
        """The last row of the log; empty before the first step."""
        if not self.state.step:
            return {}
        return {name: values[-1] for name, values in read_csv(self.folder / LOG).items()}

    def rows(self, trainer: Iterator[dict[str, float]]) -> Iterator[dict[str, float]]:
        """Pass the rows of a trainer on, each logged; save every ``save_every`` steps and at the end."""
        with CSVLog(self.folder / LOG, append=True) as log:
            for row in trainer:
                log.write(row)
                if row["step"] % self.save_every == 0:
                    log.sync()
                    self.save()
                yield row
            log.sync()
            self.save()

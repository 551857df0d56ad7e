"""A run's folder: ``config.json``, ``metrics.csv``, ``checkpoint.safetensors``, and at the end the weights.

Weights and state are in one file that is moved into place as a whole: whenever a run is killed, what is there
belongs together. All files of a new run are on the disk, under other names, before it takes the place of an
older one, and its first step has been made; the checkpoint comes last, so a folder with a checkpoint can be
taken up again. One process at a time holds a folder.

What it leaves out, and why: older checkpoints (one is enough to go on).
"""

import hashlib
import json
import os
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nanogrpo.checkpoint import from_json, load_tensors, pack, save_tensors, stage
from nanogrpo.errors import CheckpointError, RunError, check_like, os_errors
from nanogrpo.lock import Lock
from nanogrpo.metrics import CSVLog, cut_log, read_csv
from nanogrpo.model import GPT
from nanogrpo.state import TrainState
from nanogrpo.tokenizer import CharTokenizer

CONFIG, LOG, CHECKPOINT, MODEL = "config.json", "metrics.csv", "checkpoint.safetensors", "model.safetensors"
PAIRS = "pairs.json"  # of a reward model
FILES = (CONFIG, CHECKPOINT, LOG, MODEL, PAIRS)
ANEW = "restore a copy, or start over without --resume, with --overwrite"
ASKED, TABLE, CURVES = "demo.json", "samples.txt", "curves.png"  # of a demo, beside its run


def fingerprint(content: str | bytes | os.PathLike) -> str:
    """The sha256 of some bytes, of a text, or of what a file holds."""
    if isinstance(content, os.PathLike):
        with os_errors(RunError, f"read {content}", "check its name and its permissions"):
            content = Path(content).read_bytes()
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


def as_json(settings: Any) -> bytes:
    """Settings as the bytes of a file."""
    return (json.dumps(settings, indent=2) + "\n").encode()


class Folder:
    """The folder of a run, held by this process from ``with`` on, or from :meth:`start` if it is new."""

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        if not str(path) or "\0" in str(path):
            raise RunError(f"{str(path)!r} is no name of a folder; choose another --out")
        self.lock = Lock(self.path / ".lock", f"the run in {self.path}")
        self.started = False

    def __enter__(self) -> "Folder":
        place = next(p for p in (self.path, *self.path.parents, Path.cwd()) if os.path.lexists(p))
        if not os.path.isdir(place) or not os.access(place, os.W_OK):
            raise RunError(f"cannot write to {self}: {place} is no folder to write to; choose another --out")
        if place == self.path:
            self.hold()
        return self

    def __exit__(self, *exc) -> None:
        self.lock.release()

    def __str__(self) -> str:
        return str(self.path)

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def hold(self) -> None:
        """Lock the folder, and clear away what a killed run left unfinished.

        Raises:
            RunError: another process holds it, or it cannot be written.
        """
        self.lock.acquire()
        with os_errors(RunError, f"write to {self.path}", "choose another --out"):
            parts = [self.path.glob(f"{name}.*.part") for name in (*FILES, ASKED, TABLE, CURVES)]
            for part in sorted(chain(*parts)):
                part.unlink()
                print(f"removed {part}, which a killed run left unfinished", file=sys.stderr)

    def check_free(self) -> None:
        """Raise RunError if a run is here already."""
        if any(os.path.exists(self / name) for name in (CHECKPOINT, LOG, MODEL)):
            raise RunError(
                f"{self} holds a run already; go on with it by --resume, replace it by --overwrite, "
                "or choose another --out"
            )

    def clear(self) -> None:
        """Remove the run that is here, its settings first, so that what is left cannot be taken up."""
        with os_errors(RunError, f"remove the run in {self.path}", "choose another --out"):
            for name in FILES:
                (self / name).unlink(missing_ok=True)

    def start(self, files: Mapping[str, bytes]) -> None:
        """Begin a run with these files, of which the checkpoint comes last; an older run makes way.

        Whatever fails before all of them are on the disk leaves the older run as it was, and no new folder.

        Raises:
            RunError: the folder cannot be written, or another process has just taken it.
        """
        new = [p for p in (self.path, *self.path.parents) if not os.path.exists(p)]
        parts: list[tuple[Path, Path]] = []
        try:
            with os_errors(RunError, f"write to {self.path}", "choose another --out, or make room"):
                self.path.mkdir(parents=True, exist_ok=True)
                if not self.lock.held:
                    self.hold()
                    self.check_free()  # a run that another process has begun and ended meanwhile
                for name, content in files.items():
                    parts.append((stage(self / name, content), self / name))
                self.clear()
                for part, path in parts:
                    os.replace(part, path)
        except BaseException:
            with suppress(OSError):
                for part, _ in parts:
                    part.unlink(missing_ok=True)
                self.lock.release()
                for path in new:
                    path.rmdir()  # only where it is empty
            raise
        self.started = True

    def settings(
        self, names: Collection[str], given: Mapping[str, Any], may_change: Collection[str]
    ) -> tuple[dict[str, Any], dict[str, str]]:
        """The settings of a run that is to go on, and the hashes of what it was started with.

        Args:
            names: of all settings.
            given: settings that are asked for now.
            may_change: those of them that may differ from what is there.

        Raises:
            RunError: there is no run, it is damaged or of another version, or it was started otherwise.
        """
        settings = self._read_config()
        hashes = settings.pop("inputs", None)
        for name in given.keys() - set(may_change):
            if settings.get(name, given[name]) != given[name]:
                raise RunError(
                    f"{self} was started with {name}={settings[name]!r} and cannot go on with "
                    f"{given[name]!r}; leave the option out, or start a new run in another --out"
                )
        lacks, odd = sorted(set(names) - settings.keys()), sorted(settings.keys() - set(names))
        if lacks or odd:
            said = [f"lacks {', '.join(lacks)}"] * bool(lacks) + [f"has {', '.join(odd)}"] * bool(odd)
            raise RunError(
                f"cannot resume {self}: its {CONFIG} {' and '.join(said)}; it is damaged, or of another "
                "version of nanogrpo. Weights of finished runs are loaded as ever, by --model"
            )
        if hashes is None or hashes == {}:
            print(
                f"{self} has no hashes of what it was started with, so they are not compared", file=sys.stderr
            )
        elif not isinstance(hashes, dict) or not all(isinstance(value, str) for value in hashes.values()):
            raise RunError(f"cannot resume {self}: inputs={hashes!r} in {CONFIG} must be hashes by name")
        return {**settings, **{name: given[name] for name in given.keys() & set(may_change)}}, hashes or {}

    def _read_config(self) -> dict[str, Any]:
        path, remedy = self / CONFIG, "leave --resume out to start a new run"
        try:
            settings = from_json(path.read_text(encoding="utf-8"))
            if not isinstance(settings, dict):
                raise ValueError(f"it holds a {type(settings).__name__}")
        except (OSError, ValueError, RecursionError) as error:
            raise RunError(f"cannot resume {self}: no readable {CONFIG} there ({error}); {remedy}") from error
        self.started = os.path.exists(self / CHECKPOINT)
        if not self.started and any(os.path.exists(self / name) for name in (LOG, MODEL)):
            raise RunError(f"cannot resume {self}: no {CHECKPOINT} there; {remedy}, with --overwrite")
        if not self.started:
            print(f"{self} has no {CHECKPOINT} yet: the run starts over as {CONFIG} says", file=sys.stderr)
        return settings


@dataclass(frozen=True)
class Run:
    """The parts of a run that its checkpoint holds.

    Attributes:
        folder: where it is.
        policy: whose shape goes into the header.
        tokenizer: its alphabet.
        models: all that has weights, by name: the policy, and a reference or a critic where there is one.
        state: what the trainer was given.
        save_every: steps between two checkpoints.
        files: further files that the run begins with, by name.
        settings: those that a run under way keeps, to be compared with what its checkpoint was made with.
        after: gives the state the parts that it has after so many steps, and says between which bounds its
            numbers are then.
    """

    folder: Folder
    policy: GPT
    tokenizer: CharTokenizer
    models: Mapping[str, nn.Module]
    state: TrainState
    save_every: int = 50
    files: Mapping[str, bytes] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    after: Callable[[int], Mapping[str, tuple[float, float]]] = lambda step: {}

    def contents(self) -> tuple[dict, dict[str, str]]:
        """Weights and state as named tensors, and the header of their file."""
        tensors = {f"state.{key}": value for key, value in self.state.tensors().items()}
        for name, model in self.models.items():
            tensors |= {f"{name}.{key}": value for key, value in model.state_dict().items()}
        header = {"config": json.dumps(asdict(self.policy.config)), "alphabet": self.tokenizer.chars}
        return tensors, header | ({"settings": json.dumps(self.settings)} if self.settings else {})

    def save(self) -> None:
        """Write weights and state as one file, whole or not at all; it knows the log that led to it."""
        tensors, header = self.contents()
        if (log := self.folder / LOG).exists():
            header["log"] = fingerprint(log)
        save_tensors(self.folder / CHECKPOINT, tensors, header)

    def load(self) -> None:
        """Take up the checkpoint, and cut the log back to it; what was dropped is said on stderr.

        Raises:
            CheckpointError: it is damaged, or belongs to another run, or is none that this run writes.
            RunError: it was made with other settings than the folder's, or the log is of another run.
            LogError: the log does not reach up to it.
        """
        path = self.folder / CHECKPOINT
        tensors, header = load_tensors(path)
        try:
            before = from_json(header.get("settings", "{}"))
            if not isinstance(before, dict):
                raise ValueError(f"they are a {type(before).__name__}")
        except (ValueError, RecursionError) as error:
            raise CheckpointError(
                f"{path} is damaged: the settings in its header cannot be read: {error}"
            ) from error
        self.check_settings(before)
        self._check_tensors(path, tensors)
        parts: dict[str, Any] = {**self.models, "state": self.state}
        for name, part in parts.items():
            own = {
                key.removeprefix(f"{name}."): t for key, t in tensors.items() if key.startswith(f"{name}.")
            }
            try:
                part.restore(own) if part is self.state else part.load_state_dict(own)
            except (RuntimeError, TypeError, ValueError) as error:  # such as random numbers that are none
                raise CheckpointError(f"{path} does not fit {name}: {error}; {ANEW}") from error
        self._check_log(header.get("log"))
        dropped = cut_log(self.folder / LOG, self.state.step)
        if dropped:
            print(dropped, file=sys.stderr)
        logged = self.last_row().get("num_tokens", 0)
        if self.state.num_tokens != logged:
            raise CheckpointError(
                f"{path} has num_tokens={self.state.num_tokens}, and its {LOG} {logged:.0f}; {ANEW}"
            )

    def _check_tensors(self, path: Path, tensors: Mapping[str, Tensor]) -> None:
        """Raise CheckpointError unless these are what this run has after as many steps as they say.

        A checksum tells of accidents; who edits a file writes a new one. PyTorch takes numbers of any type
        for any other.
        """
        step = tensors.get("state.step", torch.tensor(-1))
        bounds: Mapping[str, tuple[float, float]] = {}
        if step.dtype == torch.int64 and not step.ndim and step >= 0:  # else that is what is said of it
            bounds = self.after(int(step))
        check_like(str(path), tensors, self.contents()[0], ANEW)
        for name, (low, high) in bounds.items():
            if not low <= (value := tensors[f"state.{name}"].item()) <= high:
                told = f"has {low}" if low == high else f"is from {low} to {high}"
                raise CheckpointError(
                    f"{path} has state.{name}={value}, after {int(step)} steps, and this run by then {told}; "
                    f"{ANEW}"
                )

    def _check_log(self, before: str | None) -> None:
        """Raise RunError where the rows up to the checkpoint are not those that led to it."""
        path = self.folder / LOG
        if before is None or not path.exists():
            return
        with os_errors(RunError, f"read {path}", "check its permissions"):
            rows = path.read_bytes().splitlines(keepends=True)[: self.state.step + 1]
        if len(rows) == self.state.step + 1 and fingerprint(b"".join(rows)) != before:
            raise RunError(
                f"cannot resume {self.folder}: its {LOG} is not the one that led to its {CHECKPOINT}: of "
                "another run, or edited; put it back, or start a new run in another --out"
            )

    def check_settings(self, before: Mapping[str, Any]) -> None:
        """Raise RunError where the checkpoint was made with others: half a run would be another run."""
        now = json.loads(json.dumps(self.settings))  # with lists for tuples
        for name in before.keys() & now.keys():
            if before[name] != now[name]:
                raise RunError(
                    f"cannot resume {self.folder}: its {CONFIG} says {name}={now[name]!r}, and its "
                    f"{CHECKPOINT} was made with {name}={before[name]!r}; put it back, or start a new run in "
                    "another --out"
                )

    def last_row(self) -> dict[str, float]:
        """The last row of the log; empty before the first step."""
        if not self.state.step:
            return {}
        return {name: values[-1] for name, values in read_csv(self.folder / LOG).items()}

    def rows(self, trainer: Iterator[dict[str, float]]) -> Iterator[dict[str, float]]:
        """Pass the rows of a trainer on, each logged; save every ``save_every`` steps and at the end.

        A new run begins its folder only when its first step has been made: what goes wrong before leaves
        nothing behind, and an older run as it was.
        """
        start = None if self.folder.started else pack(*self.contents())
        row = next(trainer, None)
        if start is not None:
            self.folder.start({**self.files, CHECKPOINT: start})
        with CSVLog(self.folder / LOG, append=True) as log:
            while row is not None:
                log.write(row)
                if row["step"] % self.save_every == 0:
                    log.sync()
                    self.save()
                yield row
                row = next(trainer, None)
            log.sync()
            self.save()

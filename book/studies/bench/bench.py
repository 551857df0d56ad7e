"""The benchmark: nanogrpo against Hugging Face ``generate``, TRL's ``GRPOTrainer`` and the machine itself.

    make bench              about 15 minutes; needs a quiet machine
    make bench QUICK=1      about 3 minutes, noisier
    make bench AGAINST=dir  against an older copy of the package alone, see ``against.py``

Every contestant is a process of its own, pinned to one core, with one thread. They take turns: in each round
each does one unit of work. A ratio is taken within a round, and the median over all rounds is reported with
quartiles, so that a slow minute of the machine slows both sides.

Writes ``results.json``, all seconds of all rounds; until the last is measured it is ``results.part``, written
after each shape. ``report.py`` then makes the table and the figure, in the book's environment.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).parent
PACKAGES = ("torch", "nanogrpo", "transformers", "trl", "accelerate", "datasets", "numpy")
ROLLOUTS = ("HF generate", "packed", "simple", "no cache")
STEPS = ("TRL", "TRL defaults", "TRL KL", "nanogrpo", "nanogrpo KL", "TRL parts", "nanogrpo parts")
# shape: (rounds, rounds when quick, training steps that are compared)
PLAN = {"A": (15, 3, STEPS), "S": (41, 9, STEPS), "W": (7, 2, ("TRL", "nanogrpo"))}


class Contestant:
    """One process that does one unit of work when asked; the package is that of a folder, if one is named."""

    def __init__(self, kind: str, name: str, shape: str, core: int, folder: Path | None = None):
        self.kind, self.name, self.rounds = kind, name, []
        self.errors = tempfile.TemporaryFile("w+")
        short = {"HF generate": "HF"}.get(name, name)
        command = [sys.executable, str(HERE / "contestants.py"), kind, short, shape]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True,
            env=environ() | ({"PYTHONPATH": str(folder.resolve())} if folder else {}),
            preexec_fn=lambda: os.sched_setaffinity(0, {core}),
        )  # fmt: skip
        self.read()

    def read(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            self.errors.seek(0)
            raise RuntimeError(f"{self.kind} {self.name} stopped:\n{self.errors.read()}")
        return json.loads(line)

    def turn(self, record: bool = True) -> None:
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        reply = self.read()
        if record:
            self.rounds.append(reply)

    def close(self) -> None:
        self.process.stdin.write("\n")
        self.process.stdin.close()
        self.process.wait()


def environ() -> dict[str, str]:
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    quiet = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    return {**os.environ, **threads, **quiet}


def take_turns(shape: str, rounds: int, steps: tuple[str, ...], core: int) -> dict:
    """All contestants at one shape, round after round; the slow loop without a cache only in three."""
    names = [("machine", "machine")] + [("rollout", n) for n in ROLLOUTS] + [("step", n) for n in steps]
    if shape == "W":
        names.remove(("rollout", "no cache"))
    print(f"{shape}: {len(names)} contestants start ...", flush=True)
    contestants = [Contestant(kind, name, shape, core) for kind, name in names]
    for c in contestants:
        for _ in range(1 if c.name == "no cache" else 3):
            c.turn(record=False)
    for i in range(rounds):
        for c in contestants:
            if c.name != "no cache" or i < 3:
                c.turn()
        print(f"\r{shape}: round {i + 1} of {rounds}", end="", flush=True)
    print()
    for c in contestants:
        c.close()
    return {
        f"{c.kind}: {c.name}": {
            "seconds": [round(r["seconds"], 5) for r in c.rounds],
            "peak_mib": round(c.rounds[-1]["peak_mib"]),
            "parts": [{k: round(s, 5) for k, s in r["parts"].items()} for r in c.rounds if r["parts"]],
            "extra": [r["extra"] for r in c.rounds if r["extra"]],
        }
        for c in contestants
    }


def whole_process(pairs: int, core: int, shape: str = "S", steps: int = 50) -> dict:
    """Seconds and peak memory of a whole job, start-up included, in turn."""
    runs = {"TRL defaults": [], "nanogrpo": []}
    for i in range(pairs + 1):
        for name, rows in runs.items():
            command = [sys.executable, str(HERE / "contestants.py"), "job", name, shape, str(steps)]
            start = time.perf_counter()
            process = subprocess.Popen(
                command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environ(),
                preexec_fn=lambda: os.sched_setaffinity(0, {core}),
            )  # fmt: skip
            _, status, usage = os.wait4(process.pid, 0)
            if status:
                raise RuntimeError(f"the job of {name} failed; run: {' '.join(command)}")
            if i:  # the first pair warms the disk's cache
                seconds = round(time.perf_counter() - start, 3)
                rows.append({"seconds": seconds, "peak_mib": usage.ru_maxrss // 1024})
        print(f"\rwhole process: pair {i} of {pairs}", end="", flush=True)
    print()
    return {"shape": shape, "steps": steps, **runs}


def hardware() -> dict:
    def read(path: str, key: str) -> str:
        lines = Path(path).read_text().splitlines() if Path(path).exists() else []
        return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(key)), "unknown")

    git = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    commit = subprocess.run(git, cwd=HERE, capture_output=True, text=True).stdout.strip()
    return {
        "cpu": read("/proc/cpuinfo", "model name"),
        "cache": read("/proc/cpuinfo", "cache size"),
        "cores": os.cpu_count(),
        "memory": read("/proc/meminfo", "MemTotal"),
        "python": platform.python_version(),
        "commit": commit,
        "versions": {name: version(name) for name in PACKAGES},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few rounds")
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)), help="the core to pin to")
    parser.add_argument("--shapes", default="ASW", help="which shapes, for example AS")
    parser.add_argument("--out", type=Path, default=HERE, help="the folder of results.json")
    options = parser.parse_args()
    log = {"date": time.strftime("%Y-%m-%d"), "hardware": hardware(), "quick": options.quick, "shapes": {}}
    options.out.mkdir(parents=True, exist_ok=True)
    draft = options.out / "results.part"
    for shape in options.shapes:
        many, few, steps = PLAN[shape]
        log["shapes"][shape] = take_turns(shape, few if options.quick else many, steps, options.core)
        draft.write_text(json.dumps(log, indent=1) + "\n")
    log["process"] = whole_process(1 if options.quick else 5, options.core)
    draft.write_text(json.dumps(log, indent=1) + "\n")
    draft.replace(options.out / "results.json")


if __name__ == "__main__":
    main()

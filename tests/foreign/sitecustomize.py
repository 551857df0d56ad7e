"""Another machine's rounding, for every Python that has this folder on its PYTHONPATH.

Python imports a module of this name when it starts, so chapters' kernels and the commands that tests start
are reached as well, and the package need not know. With ``FOREIGN_SEED=1`` every weight of a fresh model,
and every weight that ships with the package, is off by a relative 1e-6 or less: some ten units in the last
place of a float32, as a few layers of another processor's sums make of them.

The noise depends on the seed, the tensor's name and its shape alone. So two models made alike, or loaded
from one file, still agree to the bit, as they do on any one machine. What a run wrote is read as it is.
"""

import functools
import importlib.abc
import importlib.machinery
import os
import sys
import zlib

RELATIVE = float(os.environ.get("FOREIGN_RELATIVE", "1e-6"))


def perturb(module, seed):
    """Multiply each weight by 1 + 1e-6 u, with u uniform between -1 and 1; the global random state stays."""
    import torch

    with torch.no_grad():
        for name, p in module.named_parameters():
            key = zlib.crc32(f"{seed} {name} {tuple(p.shape)}".encode())
            u = 2 * torch.rand(p.shape, generator=torch.Generator().manual_seed(key), dtype=torch.float64) - 1
            p.copy_(p.double() * (1 + RELATIVE * u.to(p.device)))


def perturbed(function, seed, wanted=lambda: True):
    """The function, with the model that it returns, returns first, or is a method of, perturbed."""

    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        result = function(*args, **kwargs)
        made = args[0] if result is None else result[0] if isinstance(result, tuple) else result
        if wanted():
            perturb(made, seed)
        return result

    return wrapper


class Foreign(importlib.abc.MetaPathFinder):
    """Finds the two modules where weights come from, and wraps those functions once they are there."""

    def __init__(self, seed):
        self.seed = seed

    def find_spec(self, name, path=None, target=None):
        if name not in ("nanogrpo.model", "nanogrpo.weights"):
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None:
            execute = spec.loader.exec_module
            spec.loader.exec_module = lambda module: (execute(module), self.wrap(module))[0]
        return spec

    def wrap(self, module):
        if module.__name__ == "nanogrpo.model":
            module.GPT._initialize = perturbed(module.GPT._initialize, self.seed)
            return
        ships = module.FOLDER  # a test may put a folder of its own in its place; that one is read as it is
        for name in ("load", "load_reward_model"):
            setattr(module, name, perturbed(getattr(module, name), self.seed, lambda: module.FOLDER == ships))


if os.environ.get("FOREIGN_SEED"):
    sys.meta_path.insert(0, Foreign(int(os.environ["FOREIGN_SEED"])))

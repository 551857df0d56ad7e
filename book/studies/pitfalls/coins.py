"""The sixth part of the study: the clip, on rewards that are tossed coins. The protocol is in README.md."""

from collections.abc import Iterator

import torch

from nanogrpo.kl import entropy
from nanogrpo.teach.clipping import CLIPS, CONTROLS, Clip, coin_runs

V, STEPS = 65, 20
STARTS = {"one token at 0.6": 0.6, "all alike": 1 / V}


def end(share: float, clip: Clip, seed: int) -> float:
    """Mean entropy after the last batch, from a start where one token has this share."""
    *_, (last, _) = coin_runs(takeover(share), clip, seed, STEPS)
    return last


def takeover(share: float) -> torch.Tensor:
    """Log-probs of a policy with one token of this share, the others alike."""
    rest = [(1 - share) / (V - 1)] * (V - 1)
    return torch.tensor([share, *rest], dtype=torch.float64).log()


def one_seed(seed: int) -> Iterator[tuple[str, float, float]]:
    """For each start, the mean entropy at the end with each clip, and without one."""
    for start, share in STARTS.items():
        ends = {name: end(share, clip, seed) for name, clip in (CLIPS | CONTROLS).items()}
        free = ends["no clip"]
        for name in [*list(CLIPS)[1:], *CONTROLS]:
            yield f"{start}: {name}", ends[name], free
        for name in ("clip-low", "clip-high"):
            yield f"{start}: {name} less its control", ends[f"{name} only"], ends[f"{name}, any token"]
        for name in ("no clip", "both"):
            yield f"{start}: {name} less the start", ends[name], entropy(takeover(share)).item()

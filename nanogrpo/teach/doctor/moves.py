"""What moves that should not, or without its reason: pure functions of the curves, evidence or None.

log -> curves -> **looks** -> findings -> report
"""

from functools import partial
from operator import ge, le
from statistics import median

from nanogrpo.teach.doctor.curves import Curves
from nanogrpo.teach.doctor.trends import CLEAR, LEAP, LEARNED, Seen, change, mean, noise, since, updates


def hacked(curves: Curves) -> Seen | None:
    """The reward rises, and one of its parts, or what is watched, falls."""
    gain = change(curves.points("reward"))
    for name in curves.parts():
        points = curves.points(name)
        if len(points) >= 10 and gain.size > CLEAR and (loss := change(points)).size < -CLEAR:
            half = (loss.before + loss.after) / 2
            step = since(points, partial(ge, half))
            return Seen(name, step, f"reward {gain}; {name} {loss}")
    return None


def jumps(curves: Curves) -> Seen | None:
    """A KL above 1 nat a token in the first steps, a reward that is gone at once, or one that dips.

    At once means at the second step: what is pushed the wrong way gets there in some steps, too.
    """
    kl, reward = curves.points("kl"), curves.points("reward")
    if kl and kl[0].step == 1 and kl[0].value > LEAP and (updates(curves) or 1) > 1:
        return Seen("kl", 1, f"the KL is {kl[0].value:.3g} nats a token within the updates of step 1")
    kl = kl[1:5]
    if len(kl) == 4 and kl[0].value > LEAP / 2 and (middle := median([p.value for p in kl])) > LEAP:
        return Seen("kl", kl[0].step, f"the KL is {middle:.3g} nats a token within the first steps")
    values, first = [p.value for p in reward], reward[0].value
    gone = values[1] < 0.5 * first and mean(values[1:4]) < 0.4 * first
    if gone and first - mean(values[1:4]) > 4 * noise(values[1:]):
        said = f"reward {first:.3g} at the first step, {mean(values[1:4]):.3g} in the next three"
        return Seen("reward", reward[1].step, said)
    early = range(1, max(2, len(values) // 4))
    low, at = min((mean(values[i : i + 3]), i) for i in early)
    if low < 0.6 * first and min(first, change(reward).after) - low > 4 * noise(values):
        said = f"reward {first:.3g} at the first step, {low:.3g} in the three from here"
        return Seen("reward", reward[at].step, f"{said}, {change(reward).after:.3g} in the last fifth")
    return None


def truncation(curves: Curves) -> Seen | None:
    """More truncated completions at the end."""
    points = curves.points("completions/clipped_ratio")
    cut = change(points)
    if cut.after < cut.before + 0.15 or cut.size < CLEAR:
        return None
    half = (cut.before + cut.after) / 2
    return Seen("completions/clipped_ratio", since(points, partial(le, half)), f"truncated {cut}")


def runs_away(curves: Curves) -> Seen | None:
    """A KL above 1 nat a token, which no reward pays for; where the reward falls, only with the entropy."""
    kl, gain, spread = (change(curves.points(name)) for name in ("kl", "reward", "entropy"))
    if kl.after < LEAP or kl.after < 2 * kl.before:
        return None
    if gain.size > LEARNED and (truncation_or_length(curves) or hacked(curves)):
        return None  # these say why it goes away
    if gain.size < -CLEAR and spread.after > 0.4 * spread.before:
        return None  # what falls is the better name, unless the policy has become one text on its way
    return Seen("kl", since(curves.points("kl"), partial(le, LEAP)), f"KL {kl}; reward {gain}")


def collapses(curves: Curves) -> Seen | None:
    """An entropy that has gone, while prompts still differ in what they earn: this is no mastery."""
    spread, differ = change(curves.points("entropy")), change(curves.points("reward_std"))
    if spread.after > 0.15 * spread.before or spread.size > -CLEAR or differ.after < 0.5 * differ.before:
        return None
    half = spread.before / 2
    step = since(curves.points("entropy"), partial(ge, half))
    return Seen("entropy", step, f"entropy {spread}; reward_std {differ}")


def loosens(curves: Curves) -> Seen | None:
    """An entropy half as large again as it began, which is not the freedom of longer completions.

    Where the reward falls it must be twice as large: what is pushed the wrong way becomes more random, too.
    """
    spread, gain = change(curves.points("entropy")), change(curves.points("reward"))
    start = mean([p.value for p in curves.points("entropy")[:3]])  # in a fifth it may have fallen far
    if spread.after < (2 if gain.size < -CLEAR else 1.5) * start or spread.size < CLEAR:
        return None
    long = curves.points("completions/mean_length")
    if gain.size > LEARNED and ((long and length_drifts(curves)) or hacked(curves)):
        return None
    half = (spread.before + spread.after) / 2
    step = since(curves.points("entropy"), partial(le, half))
    return Seen("entropy", step, f"entropy {spread}; reward {gain}")


def truncation_or_length(curves: Curves) -> bool:
    """Whether completions have become longer, shorter or unfinished, where that was logged."""
    cut, long = curves.points("completions/clipped_ratio"), curves.points("completions/mean_length")
    return bool((cut and truncation(curves)) or (long and length_drifts(curves)))


def falls(curves: Curves) -> Seen | None:
    """A reward that is clearly lower at the end."""
    points = curves.points("reward")
    gain = change(points)
    if gain.size > -CLEAR:
        return None
    half = (gain.before + gain.after) / 2
    return Seen("reward", since(points, partial(ge, half)), f"reward {gain}")


def length_drifts(curves: Curves) -> Seen | None:
    """A length that has changed by a fifth or more."""
    points = curves.points("completions/mean_length")
    long = change(points)
    if abs(long.after - long.before) < 0.2 * long.before or abs(long.size) < CLEAR:
        return None
    half = (long.before + long.after) / 2
    step = since(points, partial(le if long.size > 0 else ge, half))
    return Seen("completions/mean_length", step, f"mean length {long}")

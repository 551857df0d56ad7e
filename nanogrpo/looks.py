"""How each rule of the run doctor looks at the curves: pure functions, evidence or None.

A trend compares the first fifth of a curve with its last. Its noise is read from the differences of
neighboring values, which a slow trend hardly touches. Thresholds were set on the training part of
``book/studies/doctor``; what they are worth on other runs, its held-out part says.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from operator import ge, le
from statistics import median
from typing import NamedTuple

from nanogrpo.curves import Curves, Point

CLEAR = 5.0  # standard errors that a change must have to be one
LEARNED = 3.0  # and that the reward must have risen by, to explain another change
MANY = 0.85  # a share of dead groups
LEAP = 1.0  # a KL, in nats a token


class Seen(NamedTuple):
    """The evidence: where it is seen, from which step on, and the numbers."""

    metric: str
    step: int
    evidence: str


class Change(NamedTuple):
    """Means of the first and of the last fifth of a curve, and the standard error of their difference."""

    before: float
    after: float
    error: float

    @property
    def size(self) -> float:
        """How many standard errors the curve has risen."""
        return (self.after - self.before) / max(self.error, 1e-6)

    def __str__(self) -> str:
        return f"{self.before:.3g} in the first fifth of the run, {self.after:.3g} in the last"


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean."""
    return math.fsum(v / len(values) for v in values)  # divided first, since a sum may overflow


def noise(values: Sequence[float]) -> float:
    """Standard deviation about a slow trend, from the differences of neighboring values."""
    steps = [abs(b - a) for a, b in zip(values, values[1:], strict=False)]
    return math.hypot(*steps) / math.sqrt(2 * max(len(steps), 1))


def change(points: Sequence[Point]) -> Change:
    """From the first fifth of a curve to its last."""
    values = [point.value for point in points]
    k = max(2, len(values) // 5)
    return Change(mean(values[:k]), mean(values[-k:]), noise(values) * math.sqrt(2 / k))


def slope(points: Sequence[Point]) -> float:
    """The slope of the least-squares line through a curve, in its standard errors."""
    values, middle = [point.value for point in points], (len(points) - 1) / 2
    places = [i - middle for i in range(len(values))]
    length = math.hypot(*places)
    return math.fsum(x / length * y for x, y in zip(places, values, strict=True)) / max(noise(values), 1e-6)


def since(points: Sequence[Point], odd: Callable[[float], bool]) -> int:
    """The first step from which on all values are odd; the last step if none is."""
    step = points[-1].step
    for point in reversed(points):
        if not odd(point.value):
            break
        step = point.step
    return step


def updates(curves: Curves) -> int | None:
    """Updates for each batch of samples; None where the settings do not say."""
    passes = curves.settings.get("num_iterations", curves.settings.get("num_ppo_epochs"))
    both = (passes, curves.settings.get("num_mini_batches", 1))
    return math.prod(both) if all(type(n) is int and n > 0 for n in both) else None


def moved(curves: Curves, *names: str) -> list[str]:
    """Those of the metrics that have changed clearly."""
    found = [(name, curves.points(name)) for name in names]
    return [name for name, points in found if len(points) >= 10 and abs(change(points).size) > CLEAR]


def not_a_number(curves: Curves) -> Seen | None:
    """A value that is NaN or infinite, where a trainer has no reason to write one."""
    names = [n for n in ("loss", "grad_norm", "kl", "entropy", "reward") if n in curves.columns]
    for i, step in enumerate(curves.steps):
        for name in names:
            value = curves.columns[name][i]
            if value is not None and not math.isfinite(value):
                return Seen(name, step, f"{name} is {value} at step {step}")
    return None


def no_gradient(curves: Curves) -> Seen | None:
    """grad_norm 0 where there are live groups."""
    dead = dict(curves.points("frac_reward_zero_std"))
    spread = dict(curves.points("reward_std"))
    live = [
        p for p in curves.points("grad_norm") if dead.get(p.step, 0.0) < 1 and spread.get(p.step, 1.0) > 0
    ]
    flat = [p.step for p in live if abs(p.value) < 1e-9]
    if len(flat) < 3 or len(flat) < len(live) / 2:
        return None
    return Seen(
        "grad_norm", flat[0], f"grad_norm is 0 at {len(flat)} of {len(live)} steps that have a live group"
    )


def ratio_not_one(curves: Curves) -> Seen | None:
    """Tokens clipped at the first update, where none can be.

    With one update a batch the log shows that update alone. With several it shows their mean, which is not 0
    in a sound run either: then too many in step 1 count, or a share that stays, since Adam's first steps are
    its largest and our trainers have no warm-up.
    """
    name, number = "clip_ratio/region_mean", updates(curves)
    points = curves.points(name)
    if number == 1:
        clipped = [p for p in points if p.value > 0]
        share = mean([p.value for p in points])
        said = f"one update a batch, and {share:.3g} of the tokens are clipped on average"
        return Seen(name, clipped[0].step, said) if clipped else None
    first = points[0]
    if first.step == 1 and first.value > (0.4 if number is None else 0.5 * (number - 1) / number):
        return Seen(
            name, 1, f"{first.value:.3g} of the tokens are clipped in step 1, before it can have moved far"
        )
    if number is None or first.step > 1 or len(points) < 20:
        return None
    start, end = mean([p.value for p in points[:3]]), change(points).after
    if end < 0.01 or end < 0.45 * start:
        return None
    said = f"{start:.3g} of the tokens are clipped in the first three steps, and still {end:.3g} at the end"
    return Seen(name, first.step, said)


def reference_elsewhere(curves: Curves) -> Seen | None:
    """KL above 0 at the first step, where there is one update, so that it is measured before any."""
    first = curves.points("kl")[0]
    if first.step != 1 or updates(curves) != 1 or abs(first.value) < 1e-3:
        return None
    return Seen("kl", 1, f"one update a batch, and the KL before it is {first.value:.3g}")


def blown_up(curves: Curves) -> Seen | None:
    """A mean size of advantages above the share of live groups."""
    how = curves.settings
    if how.get("scale_rewards") != "group" or how.get("kl_in") == "reward" or how.get("max_resamples"):
        return None
    if how.get("baseline") not in ("group", "leave_one_out") or how.get("overlong_buffer"):
        return None
    size = how.get("group_size")
    G = size if how["baseline"] == "leave_one_out" and isinstance(size, int) and size > 1 else math.inf
    most = 1.0 if G == math.inf else G / (G - 1)
    dead = dict(curves.points("frac_reward_zero_std"))
    for p in curves.points("advantage_abs_mean"):
        if p.step in dead and p.value > (bound := most * (1 - dead[p.step])) + 0.01:
            said = f"at most {bound:.3g} is possible at step {p.step}, and it is {p.value:.3g}"
            return Seen("advantage_abs_mean", p.step, said)
    return None


def stands_still(curves: Curves) -> Seen | None:
    """KL 0 to the end, and nothing else has changed."""
    most = max(abs(p.value) for p in curves.points("kl"))
    if most > 1e-5 or moved(curves, "entropy", "reward", "completions/mean_length"):
        return None
    return Seen("kl", curves.steps[0], f"the largest KL of {len(curves.points('kl'))} steps is {most:.1g}")


def reference_moves(curves: Curves) -> Seen | None:
    """KL that does not grow, while other curves change."""
    points = curves.points("kl")
    late = change(points).after
    changed = moved(curves, "entropy", "reward", "completions/mean_length")
    if not changed or late > 0.02:
        return None
    return Seen(
        "kl", points[0].step, f"the KL is {late:.2g} at the end, while {' and '.join(changed)} changed"
    )


def dead_groups(curves: Curves) -> Seen | None:
    """Nearly all groups dead: from the start, without a gain, or by a reward that has become one number."""
    dead, reward = curves.points("frac_reward_zero_std"), curves.points("reward")
    share, gain = change(dead), change(reward)
    last = [p.value for p in reward[-max(2, len(reward) // 5) :]]
    constant = min(last) == max(last) and share.after == 1
    if share.after < MANY or not (constant or share.before >= MANY) or gain.size > LEARNED:
        return None
    said = f"share of dead groups {share}; reward {gain}"
    return Seen("frac_reward_zero_std", since(dead, lambda value: value >= MANY - 0.1), said)


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
    """A KL above 1 nat a token in the first steps, a reward that is gone at once, or one that dips."""
    kl, reward = curves.points("kl")[1:5], curves.points("reward")
    if len(kl) == 4 and (middle := median([p.value for p in kl])) > LEAP:
        return Seen("kl", kl[0].step, f"the KL is {middle:.3g} nats a token within the first steps")
    values, first = [p.value for p in reward], reward[0].value
    if first - mean(values[1:4]) > 4 * noise(values[1:]) and mean(values[1:4]) < 0.4 * first:
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
    if gain.size < -CLEAR and spread.after > 0.5 * spread.before:
        return None
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
    """An entropy half as large again at the end, which is not the freedom of longer completions."""
    spread, gain = change(curves.points("entropy")), change(curves.points("reward"))
    if spread.after < 1.5 * spread.before or spread.size < CLEAR:
        return None
    if gain.size > LEARNED and (truncation_or_length(curves) or hacked(curves)):
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


def learns_nothing(curves: Curves) -> Seen | None:
    """A reward whose straight line does not rise, by its own noise, though groups differ."""
    points, dead = curves.points("reward"), curves.points("frac_reward_zero_std")
    rise = slope(points)
    if rise > 2.5 or (dead and change(dead).after > MANY - 0.1):
        return None
    said = f"reward {change(points)}; a straight line through it rises by {rise:.1f} standard errors"
    return Seen("reward", points[0].step, said)

"""How each rule of the run doctor looks at the curves: pure functions, evidence or None.

A trend compares the first fifth of a curve with its last. Its noise is read from the differences of
neighboring values, which a slow trend hardly touches. Thresholds were set on the training part of
``book/studies/doctor``; what they are worth on other runs, its held-out part says.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from nanogrpo.curves import Curves, Point

CLEAR = 5.0  # standard errors that a change must have to be one
LEARNED = 3.0  # and that the reward must have risen by, for a run that has learned something


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


def change(points: Sequence[Point]) -> Change:
    """From the first fifth of a curve to its last."""
    values = [point.value for point in points]
    k = max(2, len(values) // 5)
    steps = [abs(b - a) for a, b in zip(values, values[1:], strict=False)]
    noise = math.hypot(*steps) / math.sqrt(2 * max(len(steps), 1))
    return Change(mean(values[:k]), mean(values[-k:]), noise * math.sqrt(2 / k))


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
    parts = curves.settings.get("num_mini_batches", 1)
    return passes * parts if isinstance(passes, int) and isinstance(parts, int) else None


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
    """Tokens clipped at the first update, where none can be; without settings, too many at the first step."""
    points, number = curves.points("clip_ratio/region_mean"), updates(curves)
    if number == 1:
        clipped = [p for p in points if p.value > 0]
        if not clipped:
            return None
        share = mean([p.value for p in points])
        said = f"one update a batch, and {share:.3g} of the tokens are clipped on average"
        return Seen("clip_ratio/region_mean", clipped[0].step, said)
    first = points[0]
    most = 0.25 if number is None else 0.25 * (number - 1) / number
    if first.step > 1 or first.value <= most:
        return None
    said = f"{first.value:.3g} of the tokens are clipped in step 1, before the policy can have moved far"
    return Seen("clip_ratio/region_mean", first.step, said)


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
    early, late = change(points)[:2]
    changed = moved(curves, "entropy", "reward", "completions/mean_length")
    if not changed or late > 0.01 or late > 3 * max(early, 1e-4):
        return None
    return Seen(
        "kl", points[0].step, f"the KL is {late:.2g} at the end, while {' and '.join(changed)} changed"
    )


def dead_groups(curves: Curves) -> Seen | None:
    """Nearly all groups dead: from the start, or later without a reward that has risen."""
    dead, reward = curves.points("frac_reward_zero_std"), curves.points("reward")
    early, late = change(dead)[:2]
    gain = change(reward)
    if late < 0.85 or (early < 0.85 and gain.size > LEARNED):
        return None
    step = since(dead, lambda share: share >= 0.75)
    said = f"share of dead groups {change(dead)}; reward {gain}"
    return Seen("frac_reward_zero_std", step, said)


def hacked(curves: Curves) -> Seen | None:
    """The reward rises, and one of its parts, or what is watched, falls."""
    gain = change(curves.points("reward"))
    for name in curves.parts():
        points = curves.points(name)
        if len(points) < 10:
            continue
        loss = change(points)
        if gain.size > CLEAR and loss.size < -CLEAR:
            step = since(points, lambda value, high=loss.before: value < high)  # type: ignore[misc]
            return Seen(name, step, f"reward {gain}; {name} {loss}")
    return None


def jumps(curves: Curves) -> Seen | None:
    """A KL, a clipped share or an entropy that leaps in the first steps, and a reward that does not rise."""
    return None


def truncation(curves: Curves) -> Seen | None:
    """More truncated completions at the end."""
    points = curves.points("completions/clipped_ratio")
    cut = change(points)
    if cut.after < 0.3 or cut.after < cut.before + 0.2 or cut.size < CLEAR:
        return None
    half = (cut.before + cut.after) / 2
    return Seen("completions/clipped_ratio", since(points, lambda v: v > half), f"truncated {cut}")


def runs_away(curves: Curves) -> Seen | None:
    """A KL that is large and still growing."""
    return None


def collapses(curves: Curves) -> Seen | None:
    """An entropy that has gone, without a reward that explains it."""
    return None


def loosens(curves: Curves) -> Seen | None:
    """An entropy that is clearly larger at the end."""
    return None


def falls(curves: Curves) -> Seen | None:
    """A reward that is clearly lower at the end."""
    return None


def length_drifts(curves: Curves) -> Seen | None:
    """A length that has changed by a third or more."""
    return None


def learns_nothing(curves: Curves) -> Seen | None:
    """A reward that has not risen, by its own noise."""
    return None

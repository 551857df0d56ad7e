"""What does not move, though it should: pure functions of the curves, evidence or None.

log -> curves -> **looks** -> findings -> report
"""

from nanogrpo.teach.doctor.curves import Curves
from nanogrpo.teach.doctor.trends import LEARNED, MANY, Seen, change, moved, since, slope


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


def learns_nothing(curves: Curves) -> Seen | None:
    """A reward whose straight line does not rise, by its own noise, though groups differ."""
    points, dead = curves.points("reward"), curves.points("frac_reward_zero_std")
    rise = slope(points)
    if rise > 2 or (dead and change(dead).after > MANY):
        return None
    said = f"reward {change(points)}; a straight line through it rises by {rise:.1f} standard errors"
    return Seen("reward", points[0].step, said)

"""What a curve may never be: pure functions of the curves, evidence or None.

log -> curves -> **looks** -> findings -> report
"""

import math

from nanogrpo.teach.doctor.curves import Curves
from nanogrpo.teach.doctor.trends import Seen, change, mean, updates


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
    in a sound run either: then too many in step 1 count, or a share that stays what it was in step 1, since
    Adam's first steps are its largest and our trainers have no warm-up.
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
    soon, end = mean([p.value for p in points[1:11]]), change(points).after
    if not 0.5 <= soon / max(first.value, 1e-9) <= 1.5 or end < max(0.005, 0.2 * soon):
        return None
    said = f"{first.value:.3g} of the tokens are clipped in step 1, {soon:.3g} in the ten that follow"
    return Seen(name, first.step, f"{said}, and still {end:.3g} at the end")


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

"""What can look wrong in a run's curves: one table of rules, each a pure function of the curves.

    log -> curves -> looks -> **findings** -> report

A new rule is one function in :mod:`~nanogrpo.teach.doctor.identities`, :mod:`~nanogrpo.teach.doctor.moves` or
:mod:`~nanogrpo.teach.doctor.still`, and one row of :data:`RULES`. The order of the table is
that of the report: what contradicts an identity, then causes, then what follows from them.
"""

from collections.abc import Callable
from dataclasses import dataclass

from nanogrpo.teach.doctor import identities, moves, still
from nanogrpo.teach.doctor.curves import Curves
from nanogrpo.teach.doctor.trends import Seen

FEWEST = 10  # rows without which a trend is none


@dataclass(frozen=True)
class Rule:
    """What to call it, what it means, where to read of it, what it needs, and how to look.

    Attributes:
        name: of the finding.
        says: what it means, and where to look for the cause.
        chapter: the page of the book that explains it.
        needs: metrics without which it cannot be looked for.
        look: the function of the curves that finds it, or does not.
        rows: how many values of each metric it needs.
    """

    name: str
    says: str
    chapter: str
    needs: tuple[str, ...]
    look: Callable[[Curves], Seen | None]
    rows: int = FEWEST

    def cannot(self, curves: Curves) -> str:
        """Why the rule cannot be asked; empty if it can."""
        if lacks := [name for name in self.needs if name not in curves.columns]:
            return f"no {' and no '.join(lacks)} in the log"
        counts = {name: len(curves.points(name)) for name in self.needs}
        few = [name for name, n in counts.items() if n < self.rows]
        return f"{few[0]} has {counts[few[0]]} values; {self.rows} are needed" if few else ""


RULES = (
    Rule(
        "not a number",
        "A value is NaN or infinite. What comes after it is not training. Look at the step before: a "
        "learning rate that is too large, a mask that is applied after exp, a logarithm of zero.",
        "masks",
        (),
        identities.not_a_number,
        rows=1,
    ),
    Rule(
        "no gradient",
        "There are groups with a signal, and the gradient is zero all the same. Something is detached that "
        "should not be: often both sides of the ratio.",
        "policy-gradients",
        ("grad_norm",),
        identities.no_gradient,
        rows=3,
    ),
    Rule(
        "ratio not 1 at the first update",
        "On the first update after sampling, policy and sampler are one network, so every ratio is 1 and "
        "nothing is clipped. Here something is: two temperatures, a shift by one token, dropout, or another"
        " engine.",
        "scored",
        ("clip_ratio/region_mean",),
        identities.ratio_not_one,
        rows=1,
    ),
    Rule(
        "the reference is not the start",
        "Before anything has moved, policy and reference are one model, so their KL is 0. Here it is not: "
        "another checkpoint, another temperature, or another mask.",
        "kl",
        ("kl",),
        identities.reference_elsewhere,
        rows=1,
    ),
    Rule(
        "advantages in dead groups",
        "Divided by its own standard deviation, a group's advantages have a mean size of at most 1, and a "
        "dead group's are 0. Here they are larger: rounding, divided by a very small eps.",
        "zero-variance",
        ("advantage_abs_mean", "frac_reward_zero_std"),
        identities.blown_up,
        rows=1,
    ),
    Rule(
        "learning rate too large",
        "Within the first steps the policy jumps: the reward falls, or the KL leaps, and the entropy with "
        "it. Divide the learning rate by ten.",
        "quickstart",
        ("reward", "entropy"),
        moves.jumps,
    ),
    Rule(
        "reward hacked",
        "What is trained on rises, and a reward that is only watched falls. The policy has found what the "
        "one pays for and the other does not.",
        "over-optimization",
        ("reward",),
        moves.hacked,
    ),
    Rule(
        "entropy runs up",
        "The policy becomes more random than it was at the start. A bonus on the entropy is too large, or "
        "what is pushed is noise.",
        "entropy",
        ("entropy", "reward"),
        moves.loosens,
    ),
    Rule(
        "KL run-away",
        "The policy leaves the reference as if it were paid to. Look at the sign of the penalty, at its "
        "size, and at which estimator of the KL has a gradient where it stands.",
        "kl",
        ("kl", "reward", "entropy"),
        moves.runs_away,
    ),
    Rule(
        "dead groups",
        "Nearly all groups have equal rewards, so nothing can be learned from them: the reward is never "
        "earned, always earned, or broken. Look at completions and their rewards.",
        "zero-variance",
        ("frac_reward_zero_std", "reward"),
        still.dead_groups,
    ),
    Rule(
        "the reward falls",
        "What is trained on gets worse, steadily. Look at the signs: of the loss, of the advantage, of the "
        "reward.",
        "policy-gradients",
        ("reward",),
        moves.falls,
    ),
    Rule(
        "truncation creep",
        "More and more completions do not end. They are cut off, and what is cut off is rewarded, or the "
        "end of a completion is not trained.",
        "length-bias",
        ("completions/clipped_ratio",),
        moves.truncation,
    ),
    Rule(
        "length drift",
        "Completions become much longer or shorter. Length is what is paid for, or what the loss divides by.",
        "length-bias",
        ("completions/mean_length",),
        moves.length_drifts,
    ),
    Rule(
        "entropy collapse",
        "The policy writes the same thing again and again, and the reward does not say that this is right. "
        "With the entropy goes what could still be learned.",
        "entropy",
        ("entropy", "reward_std"),
        moves.collapses,
    ),
    Rule(
        "the policy does not move",
        "KL, entropy, reward and length stay what they were. The learning rate is zero or tiny, the "
        "optimizer holds other weights, or they are frozen.",
        "policy-gradients",
        ("kl", "entropy"),
        still.stands_still,
    ),
    Rule(
        "the reference moves",
        "The policy changes, and its distance to the reference does not grow. The reference moves with it: "
        "it is the same object, or is copied anew at every step. The penalty restrains nothing.",
        "kl",
        ("kl", "entropy", "reward"),
        still.reference_moves,
    ),
    Rule(
        "nothing is learned",
        "The reward is what it was, though there are groups with a signal. It may say nothing of the "
        "completion, or the learning rate may be too small.",
        "quickstart",
        ("reward",),
        still.learns_nothing,
        rows=30,
    ),
)

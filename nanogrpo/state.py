"""What a run needs besides its weights to go on where it stopped: moments, random numbers, counters.

A trainer makes a fresh one unless it is given one. Whoever means to save a run makes it, hands it to the
trainer and keeps it: at every row that the trainer yields, state and weights belong together.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from nanogrpo.errors import CheckpointError, check_like
from nanogrpo.optim import AdamW


@dataclass
class TrainState:
    """Everything that the next step depends on, apart from weights, data and options.

    Attributes:
        optimizer: of the model that is trained.
        generator: every random draw of the run comes from it.
        critic_optimizer: of PPO's critic.
        step: steps done.
        num_tokens: completion tokens sampled so far.
        entropy_coef: the price of entropy where it adapts itself; None where it does not.
        past: weights of the last steps, newest last, where the sampler is as many steps old.
    """

    optimizer: AdamW
    generator: torch.Generator
    critic_optimizer: AdamW | None = None
    step: int = 0
    num_tokens: int = 0
    entropy_coef: float | None = None
    past: list[dict[str, Tensor]] = field(default_factory=list)

    @classmethod
    def start(cls, params: Iterable[Tensor], learning_rate: float, seed: int) -> "TrainState":
        """The state before the first step."""
        return cls(AdamW(params, learning_rate), torch.Generator().manual_seed(seed))

    def count(self, mask: Tensor) -> dict[str, float]:
        """One more step, which sampled the tokens of this completion mask; where the run is now."""
        self.step, self.num_tokens = self.step + 1, self.num_tokens + int(mask.sum())
        return {"step": self.step, "num_tokens": self.num_tokens}

    def tensors(self) -> dict[str, Tensor]:
        """The state as named tensors, to be written by :func:`~nanogrpo.checkpoint.save_tensors`."""
        result = {
            "generator": self.generator.get_state(),
            "step": torch.tensor(self.step),
            "num_tokens": torch.tensor(self.num_tokens),
        }
        if self.entropy_coef is not None:
            result["entropy_coef"] = torch.tensor(self.entropy_coef, dtype=torch.float64)
        for i, weights in enumerate(self.past):
            result |= {f"past.{i}.{key}": value for key, value in weights.items()}
        for name, optimizer in self._optimizers().items():
            result |= {f"{name}.{key}": value for key, value in optimizer.state_dict().items()}
        return result

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take up what :meth:`tensors` gave.

        Raises:
            CheckpointError: a part is missing, or belongs to other parameters.
        """
        indices = {key.split(".")[1] for key in tensors if key.startswith("past.")}
        oldest = {key.removeprefix("past.0."): t for key, t in tensors.items() if key.startswith("past.0.")}
        price = 0.0 if "entropy_coef" in tensors else None  # a state does not know whether there is one
        like = replace(self, entropy_coef=price, past=[oldest] * len(indices))
        check_like("the saved state", tensors, like.tensors(), "start over without --resume")
        for name in ("step", "num_tokens"):
            if tensors[name] < 0:
                raise CheckpointError(
                    f"the saved state has {name}={int(tensors[name])}, which no run reaches; start over "
                    "without --resume"
                )
        for name, optimizer in self._optimizers().items():
            start = f"{name}."
            optimizer.load_state_dict(
                {key.removeprefix(start): value for key, value in tensors.items() if key.startswith(start)}
            )
        self.generator.set_state(tensors["generator"])
        self.step, self.num_tokens = int(tensors["step"]), int(tensors["num_tokens"])
        self.entropy_coef = tensors["entropy_coef"].item() if "entropy_coef" in tensors else None
        self.past = [
            {name: tensors[f"past.{i}.{name}"].clone() for name in oldest} for i in range(len(indices))
        ]

    def _optimizers(self) -> dict[str, AdamW]:
        both = {"optimizer": self.optimizer, "critic_optimizer": self.critic_optimizer}
        return {name: optimizer for name, optimizer in both.items() if optimizer is not None}

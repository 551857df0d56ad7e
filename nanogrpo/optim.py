"""The step: AdamW and gradient clipping, small enough to read.

What it leaves out, and why: parameter groups, sparse gradients, AMSGrad (nothing here needs them). PyTorch's
own ``torch.optim.AdamW`` gives the same numbers; building it also imports PyTorch's compiler, which a run
that lasts seconds would have to wait for.
"""

import math
from collections.abc import Iterable
from numbers import Real
from typing import Any, cast

import torch
from torch import Tensor

from nanogrpo.errors import CheckpointError, NonFiniteError, OptionError, check_like
from nanogrpo.precision import check_gradients, check_trainable

# Weights that are shorter than this, all together, are far from the largest float, and need not be measured.
NEAR = 200.0


class AdamW:
    r"""Adam with decoupled weight decay (arXiv:1412.6980, arXiv:1711.05101).

    .. math::
        m \leftarrow \beta_1 m + (1-\beta_1) g, \quad v \leftarrow \beta_2 v + (1-\beta_2) g^2, \quad
        \theta \leftarrow (1 - \eta\lambda)\,\theta - \eta\,
        \frac{m / (1-\beta_1^t)}{\sqrt{v / (1-\beta_2^t)} + \epsilon}

    Weights are changed in place. Weight decay acts on matrices only, not on biases and norms.

    Args:
        params: the tensors to train.
        lr: :math:`\eta`, the learning rate; may be changed between steps.
        betas: :math:`(\beta_1, \beta_2)`.
        eps: :math:`\epsilon`.
        weight_decay: :math:`\lambda`.

    Raises:
        DTypeError, DeviceError, OptionError: see :func:`nanogrpo.precision.check_trainable`; or a number is
            negative or not finite, or a beta is not below 1.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ):
        self.params = list(params)
        check_trainable(self.params)
        if not isinstance(betas, (tuple, list)) or len(betas) != 2:
            raise OptionError(f"betas={betas!r} must be two numbers")
        for name, value in (("lr", lr), ("eps", eps), ("weight_decay", weight_decay)):
            _check_number(name, value)
        for beta in betas:
            _check_number("betas", beta, below=1.0)
        self.lr, self.betas, self.eps, self.weight_decay = lr, betas, eps, weight_decay
        self.mean = [torch.zeros_like(p) for p in self.params]
        self.square = [torch.zeros_like(p) for p in self.params]
        self.before = [torch.empty_like(p) for p in self.params]  # to take back a step that breaks them
        self.root_count = math.sqrt(sum(p.numel() for p in self.params))
        self.steps = 0
        self.norm = math.inf  # at most so long are all parameters together; unknown before the first step

    def zero_grad(self) -> None:
        """Forget the gradients, since new ones are to be computed.

        Raises:
            OptionError: PyTorch is told to keep none.
        """
        check_gradients()
        for p in self.params:
            p.grad = None

    @torch.no_grad()
    def step(self, where: str = "this step", grad_norm: float = math.inf) -> None:
        """Move every parameter once along its gradient; one without a gradient counts as gradient 0.

        Args:
            where: the step, for messages.
            grad_norm: what :func:`clip_grad_norm` has measured; it spares a look at the new weights where
                these can be neither infinite nor NaN.

        Raises:
            NonFiniteError: a new weight would be NaN or infinite; all are as they were. ``where`` is named.
            OptionError: ``lr`` was changed to a number that is negative or not finite.
        """
        _check_number("lr", self.lr)
        self.steps += 1
        beta1, beta2 = self.betas
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.params]
        torch._foreach_lerp_(self.mean, grads, 1 - beta1)
        torch._foreach_mul_(self.square, beta2)
        torch._foreach_addcmul_(self.square, grads, grads, 1 - beta2)
        scale = torch._foreach_sqrt(self.square)
        torch._foreach_div_(scale, (1 - beta2**self.steps) ** 0.5)
        torch._foreach_add_(scale, self.eps)
        most = torch.finfo(scale[0].dtype).max  # a larger number is none of this type
        rate = min(self.lr / (1 - beta1**self.steps), most)
        at_most = self.norm + self._reach(rate, grad_norm)
        if at_most > NEAR:
            torch._foreach_copy_(self.before, self.params)
        if self.weight_decay and (matrices := [p for p in self.params if p.ndim >= 2]):
            torch._foreach_mul_(matrices, max(1 - self.lr * self.weight_decay, -most))
        torch._foreach_addcdiv_(self.params, self.mean, scale, -rate)
        if at_most <= NEAR:
            self.norm = at_most
            return
        self.norm = norm = float(torch.stack(torch._foreach_norm(self.params)).norm())
        if not norm < math.inf:
            torch._foreach_copy_(self.params, self.before)
            self.norm = math.inf
            raise NonFiniteError(
                f"the weights' norm would be {norm} after {where} with learning rate {self.lr:g}; they are "
                "as they were before it, and the last checkpoint is untouched. Lower the learning rate"
            )

    def _reach(self, rate: float, grad_norm: float) -> float:
        r"""How far a step of finite gradients moves the weights at most; infinity where nothing bounds it.

        By the inequality of Cauchy and Schwarz, with :math:`m` and :math:`v` sums over one history,
        :math:`|m| / \sqrt{v} \le (1 - \beta_1) / \sqrt{(1 - \beta_2)(1 - \beta_1^2 / \beta_2)}`.
        A square that float32 rounds to 0 needs an ``eps`` that outweighs its :math:`m`.
        """
        beta1, beta2 = self.betas
        shrinks = self.lr * self.weight_decay <= 2
        if not (grad_norm < math.inf and beta1**2 < beta2 and self.eps >= 1e-12 and shrinks):
            return math.inf
        ratio = (1 - beta1) / math.sqrt((1 - beta2) * (1 - beta1**2 / beta2))
        return rate * ratio * self.root_count

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that the next step depends on, as named tensors."""
        state = {f"mean.{i}": m for i, m in enumerate(self.mean)} | {
            f"square.{i}": s for i, s in enumerate(self.square)
        }
        return state | {"steps": torch.tensor(self.steps)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take up a state that :meth:`state_dict` gave.

        Raises:
            CheckpointError: the state belongs to other parameters.
        """
        mine = self.state_dict()
        check_like("the optimizer state", state, mine, "resume with the same config")
        if state["steps"] < 0 or any((v < 0).any() for k, v in state.items() if k.startswith("square")):
            raise CheckpointError(
                "the optimizer state has a negative number of steps, or of a square; it is damaged"
            )
        with torch.no_grad():
            for key, tensor in mine.items():
                tensor.copy_(state[key])
        self.steps = int(state["steps"])
        self.norm = math.inf  # of weights that are as new here as the state


def _check_number(name: str, value: Any, below: float = math.inf) -> None:
    """Raise OptionError unless a number is at least 0, and below a bound."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= cast(float, value) < below:
        stated = "a finite number, at least 0" if below == math.inf else f"at least 0 and below {below:g}"
        raise OptionError(f"{name}={value!r} must be {stated}")


def clip_grad_norm(params: Iterable[Tensor], max_norm: float | None, where: str) -> float:
    r"""Scale all gradients together so that their length is at most ``max_norm``; return the length before.

    The length is :math:`\lVert g \rVert_2` over all parameters at once. With ``max_norm`` 0 or None it is
    only measured.

    Raises:
        OptionError: ``max_norm`` is negative or NaN; scaled to it, the step would go uphill.
        NonFiniteError: the length is NaN or infinite; no weight has been changed by it. ``where`` is named.
    """
    if max_norm is not None and (not isinstance(max_norm, Real) or not max_norm >= 0):
        raise OptionError(f"max_norm={max_norm} must be at least 0; 0 or None for no clipping")
    grads = [p.grad for p in params if p.grad is not None]
    if not grads:
        return 0.0
    norm = float(torch.stack(torch._foreach_norm(grads)).norm())
    if not norm < float("inf"):
        raise NonFiniteError(
            f"the gradient's norm is {norm} at {where}; the weights are as they were before this step. "
            "Lower the learning rate, or look for a log-prob or reward that is not finite"
        )
    if max_norm and norm > max_norm:
        torch._foreach_mul_(grads, max_norm / norm)
    return norm

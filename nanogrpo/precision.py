"""How many digits the arithmetic keeps: where numbers are widened, and what is refused.

A model may hold its weights in half precision. What is made of its logits may not: bfloat16 has eight bits,
so a running sum over an alphabet loses the rare tokens, and a log-prob is off by a hundredth. Log-probs,
distributions and losses are therefore in float32 at least, and float32 and float64 go through untouched.

What it leaves out, and why: a scaler of the loss and float32 copies of half weights, as mixed precision needs
them. The models here are small, so training keeps its weights in float32, and anything else is refused.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from nanogrpo.errors import DeviceError, DTypeError, OptionError


def widen(what: str, tensor: Tensor) -> Tensor:
    """The tensor in float32 if its numbers are narrower than that, else the tensor itself.

    Raises:
        DTypeError: it is no tensor of floating point numbers; ``what`` is named.

    >>> import torch
    >>> widen("logits", torch.tensor([0.5], dtype=torch.bfloat16))
    tensor([0.5000])
    """
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
        kind = tensor.dtype if isinstance(tensor, Tensor) else f"of type {type(tensor).__name__}"
        raise DTypeError(f"{what} is {kind}, need a tensor of floating point numbers; use .float()")
    return tensor if tensor.element_size() >= 4 else tensor.float()


def check_trainable(params: Sequence[Tensor]) -> None:
    """Raise a typed error where these parameters cannot be trained, or would not.

    A step of Adam has the length of the learning rate. A bfloat16 weight of 0.1 can only move by 0.0005, so
    a step of 0.0001 is rounded away: the run would look alive, and learn nothing.

    Raises:
        DTypeError: one is narrower than float32, or they are of several types.
        DeviceError: one is on the device ``meta``, which holds no numbers.
        OptionError: there is none, or none has a gradient.
    """
    for p in params:
        if not p.is_floating_point() or p.element_size() < 4:
            raise DTypeError(
                f"a parameter is {p.dtype}: it would round small steps away. Train in float32, by "
                "model.float(); a trained model can be converted to sample from it"
            )
        if p.dtype != params[0].dtype:
            raise DTypeError(
                f"one parameter is {params[0].dtype}, another {p.dtype}; use model.float() or model.double()"
            )
        if p.is_meta:
            raise DeviceError("a parameter is on the device meta, which holds no numbers; load the weights")
    if not any(p.requires_grad for p in params):
        raise OptionError(
            f"none of {len(params)} parameters is to be trained; undo the freezing by requires_grad_(True)"
        )


def check_gradients() -> None:
    """Raise OptionError where PyTorch is told to keep no gradients, so that nothing could be learned."""
    if not torch.is_grad_enabled():
        raise OptionError(
            "gradients are off, by torch.no_grad, inference_mode or set_grad_enabled(False); train outside"
        )


def check_no_autocast(weight: Tensor) -> None:
    """Raise DTypeError where ``torch.autocast`` changes what a product of these weights is.

    Sampling and the training pass multiply in different orders and kernels. Under autocast they would round
    apart by a hundredth, and the ratio of new to old policy would not be 1 at the first step.
    """
    made = (weight[:1] @ weight[:1].T).dtype  # asked of the arithmetic itself: the same on every device
    if made != weight.dtype:
        raise DTypeError(
            f"torch.autocast is on, so that {weight.dtype} weights are multiplied as {made}; sample outside "
            f"of it, or convert the model itself by model.to({made})"
        )

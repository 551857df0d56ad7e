"""What a trainer is given must belong together: options, model, tokenizer, reference, state.

Where it does not, a run would often look alive and train nothing, or something else. So this is asked once,
before the first step; nothing here looks at the values of weights.
"""

import warnings

from nanogrpo.errors import OptionError
from nanogrpo.model import GPT
from nanogrpo.options import Options
from nanogrpo.state import TrainState
from nanogrpo.tokenizer import CharTokenizer


def check_config(config: Options, kind: type[Options]) -> None:
    """Raise OptionError unless these are the options of this trainer; warn of those that do nothing."""
    # By name: a module that is loaded a second time, as the museum does, has a class of its own.
    if kind.__name__ not in [one.__name__ for one in type(config).__mro__]:
        what = config.__name__ if isinstance(config, type) else f"of type {type(config).__name__}"
        raise OptionError(f"the config is {what}; this trainer needs one made by {kind.__name__}(...)")
    for said in config.idle():
        warnings.warn(said, stacklevel=3)


def check_vocabulary(model: GPT, tokenizer: CharTokenizer) -> None:
    """Raise OptionError unless a tokenizer has as many ids as the model's vocabulary has.

    An alphabet of the same size in another order cannot be told apart: a model does not know its characters.
    """
    V, ids = (
        getattr(getattr(model, "config", None), "vocab_size", None),
        getattr(tokenizer, "vocab_size", None),
    )
    if V is None or V != ids:
        raise OptionError(
            f"the tokenizer, a {type(tokenizer).__name__}, has {ids} ids, and the vocabulary of the model, "
            f"a {type(model).__name__}, has {V}; give a GPT and the tokenizer that it was made for"
        )


def check_reference(reference: GPT | None, model: GPT) -> None:
    """Raise OptionError where a reference is the policy itself, or reads another vocabulary.

    The KL of a policy to itself is 0 at every step, whatever it learns.
    """
    if reference is None:
        return
    mine = {id(p) for p in model.parameters()}
    if reference is model or any(id(p) in mine for p in getattr(reference, "parameters", list)()):
        raise OptionError(
            "the reference is the policy itself, or shares weights with it, so that it moves along; give "
            "copy.deepcopy(policy).requires_grad_(False)"
        )
    V = getattr(getattr(reference, "config", None), "vocab_size", None)
    if V != model.config.vocab_size:
        raise OptionError(
            f"the reference, a {type(reference).__name__}, has a vocabulary of {V}, the policy one of "
            f"{model.config.vocab_size}; give a frozen copy of the policy at the start"
        )


def check_state(state: TrainState, model, critic=None) -> None:
    """Raise OptionError where an optimizer of the state moves the weights of another model."""
    for name, part, optimizer in (
        ("model", model, state.optimizer),
        ("critic", critic, state.critic_optimizer),
    ):
        if part is None or optimizer is None:
            continue
        own = {id(p) for p in part.parameters()}
        if not all(id(p) in own for p in optimizer.params):
            raise OptionError(
                f"the optimizer of the state moves the weights of another model than the {name} that is "
                f"given, which would stay as it is; make a new state for this {name}"
            )

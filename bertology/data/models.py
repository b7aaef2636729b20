"""What a model says of itself: its config, its task, and the arguments of its forward pass."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from functools import lru_cache
from types import FunctionType
from typing import Any
from weakref import WeakKeyDictionary

import transformers
from torch import Tensor, nn

from ..anatomy.modules import attributes_of, each_module
from ..anatomy.names import (
    ADAPTER_KIND_NAME,
    ADAPTER_NAME,
    ALL_IN_ONE_ARGUMENTS,
    LABELLING_CLASSES,
    LABELS_ARGUMENT,
    LEARNED_TOKENS_NAME,
    LEARNS_KEYS,
    LEARNS_TOKENS_NAME,
    MODEL_LIBRARIES,
    SET_BY_GENERATE,
    TASK_CLASSES,
    UNUSED_MASKS,
)


def config_of(model: nn.Module) -> Any:
    """The outermost config in the model, or None."""
    config = vars(model).get("config")
    return config or next((module.config for module in each_module(model).with_attribute("config")), None)


def is_encoder_decoder(model: nn.Module) -> bool:
    """Whether the model is an encoder-decoder, also inside a wrapper."""
    config, name = config_of(model), "is_encoder_decoder"
    held = attributes_of(config)
    return bool(held[name] if name in held else getattr(config, name, False))


def writes(model: nn.Module) -> bool:
    """Whether the model is an encoder-decoder whose labels are the tokens that its decoder is to write."""
    return is_encoder_decoder(model) and re.search(LABELLING_CLASSES, task_name(model)) is None


def prompt_tokens(model: nn.Module) -> int:
    """How many tokens an adapter of peft puts before each text (prompt tuning, p-tuning), also inside a wrapper."""
    if isinstance(model, transformers.PreTrainedModel):
        return 0  # peft is around it, if anywhere: to look through all modules takes as long as a small layer
    adapted = next(iter(each_module(model).with_attribute(ADAPTER_NAME)), None)
    if adapted is None or getattr(vars(adapted).get("forward"), "__self__", adapted) is not adapted:
        return 0  # `disable_adapter` puts the forward pass of the model inside in the place of the adapter's
    adapter = getattr(adapted, ADAPTER_NAME, None)
    learns_tokens = getattr(adapter, LEARNS_TOKENS_NAME, False)
    keys_alone = LEARNS_KEYS in str(getattr(adapter, ADAPTER_KIND_NAME, ""))
    return int(getattr(adapter, LEARNED_TOKENS_NAME, 0)) if learns_tokens and not keys_alone else 0


def task_model(model: nn.Module) -> nn.Module:
    """The outermost `PreTrainedModel`, without wrappers around it."""
    if isinstance(model, transformers.PreTrainedModel):
        return model
    return next((module for module in model.modules() if isinstance(module, transformers.PreTrainedModel)), model)


def generated(model: nn.Module, **arguments: Any) -> Tensor:
    """What a model writes, by `generate` of the outermost part that has it and is of a library of models.

    Where prompts were learned by peft, its own `generate` puts them before the tokens: the model inside generates
    without them. It sets attributes of the modules inside and leaves some of them there: they are put back.
    """
    writer: Any = next((one for one in model.modules() if hasattr(one, "generate") and _is_of_a_library(one)), model)
    held = list(map(vars, model.modules()))
    before = [{name: one[name] for name in SET_BY_GENERATE if name in one} for one in held]
    try:
        written: Tensor = writer.generate(**arguments | {"return_dict_in_generate": False})
    finally:
        for one, own in zip(held, before, strict=True):
            for name in SET_BY_GENERATE:
                one.pop(name, None)
            one.update(own)
    return written


def _is_of_a_library(model: nn.Module) -> bool:
    return any(kind.__module__.split(".")[0] in MODEL_LIBRARIES for kind in type(model).__mro__)


def task_name(model: nn.Module) -> str:
    """The name of the task class of transformers that the model is of, or is derived from; else that of its class."""
    return _task_name(type(task_model(model)).__mro__)


@lru_cache(maxsize=64)
def _task_name(kinds: tuple[type, ...]) -> str:
    theirs = (kind.__name__ for kind in kinds if kind.__module__.startswith("transformers.models."))
    return next((name for name in theirs if re.search(TASK_CLASSES, name)), kinds[0].__name__)


def arguments_of(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """The arguments of a function or a bound method, by name: to read a signature takes as long as a small layer."""
    held = getattr(function, "__func__", function)
    if not isinstance(held, FunctionType):
        return inspect.signature(function).parameters
    known, bound = _arguments.setdefault(held, {}), held is not function
    if bound not in known:
        known[bound] = inspect.signature(function).parameters
    return known[bound]


def takes_one_mapping(model: nn.Module, inputs: Mapping[str, Any]) -> bool:
    """Whether the forward pass takes these arguments together, as one mapping.

    It has to be given one: `forward(self, *input, **options)` passes on what it is called with.
    """
    first = next(iter(arguments_of(model.forward).values()), None)
    if first is None or first.kind is not first.POSITIONAL_OR_KEYWORD or first.default is not first.empty:
        return False
    return first.name in ALL_IN_ONE_ARGUMENTS and first.name not in inputs


_arguments: WeakKeyDictionary[FunctionType, dict[bool, Mapping[str, inspect.Parameter]]] = WeakKeyDictionary()


def not_taken(model: nn.Module, names: Iterable[str]) -> list[str]:
    """Which of these names are no arguments of the forward pass.

    A forward pass with `**kwargs` takes all of them. Those of transformers do nothing with an unknown name: masks that
    are not known, and names that are almost those of an argument, such as `atention_mask`, are not taken there.
    """
    taken = arguments_of(model.forward)
    others = [name for name in names if name not in taken]
    if not others:
        return []
    if not any(one.kind is inspect.Parameter.VAR_KEYWORD for one in taken.values()):
        return others
    if not type(model).__module__.startswith("transformers.models."):
        return []
    # A function that is put in the place of the method, `forward(*args, **kwargs)`, names nothing.
    known = [name for name, one in inspect.signature(type(model).forward).parameters.items() if one.kind in _NAMED]
    return [name for name in others if name not in known and len(known) > 1 and _is_misspelt(name, known)]


_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def _is_misspelt(name: str, taken: Iterable[str]) -> bool:
    if name.endswith("mask") and name not in UNUSED_MASKS:
        return True
    # An argument may be named after another one: mm_token_type_ids.
    others = [other for other in taken if f"_{other}_" not in f"_{name}_" and f"_{name}_" not in f"_{other}_"]
    return bool(get_close_matches(name, set(others) - {LABELS_ARGUMENT}, 1, cutoff=0.87))

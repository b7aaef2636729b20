"""Every type of model that transformers knows, built on the meta device: which of its attention is measured?

Weights on the meta device take no memory, so that a model of any size is built in a moment. Its attention modules are
counted here by a rule of their own, which the library does not use.
"""

from __future__ import annotations

import re
import warnings
from functools import cache
from typing import Any, NamedTuple

import torch
import transformers
from torch import nn
from transformers.models.auto import configuration_auto, modeling_auto

import bertology
from bertology.anatomy.unmeasured import find_unmeasured
from bertology.errors import UnknownAnatomy

# Settings that say how many blocks there are.
_BLOCKS = re.compile(r"(num_|n_)?\w*(layers?|blocks)|depth")
_NO_BLOCKS = re.compile(r".*(types|indices|dense|frozen|first_k|moe|mlp|shared|interval|period|offset|every).*")
# Classes of attention, and of parts of attention that are none.
_ATTENTION = re.compile(r"(Attention|Attn|MHA)(?!\w*(Output|Norm|MLP|Bias|Residual|Embeddings?|Projection)$)")


def every_type() -> list[str]:
    """The types of models that have a class to build."""
    return [name for name in sorted(configuration_auto.CONFIG_MAPPING) if _name_of_class(name) is not None]


def class_of_type(model_type: str) -> Any:
    """The class without a task head, or the first with one, or None."""
    name = _name_of_class(model_type)
    return None if name is None else getattr(transformers, name)


def _name_of_class(model_type: str) -> str | None:
    for classes in _classes():
        found = classes.get(model_type)
        for one in found if isinstance(found, (tuple, list)) else [found]:
            if one in _exported():
                return one
    return None


@cache
def _classes() -> list[dict[str, Any]]:
    """{model type: names of classes} of each task, that of no task first."""
    names = [name for name in dir(modeling_auto) if re.fullmatch("MODEL_.*_MAPPING_NAMES", name)]
    return [getattr(modeling_auto, name) for name in ["MODEL_MAPPING_NAMES", *names]]


@cache
def _exported() -> frozenset[str]:
    """What transformers has; to ask for it by `hasattr` would import every model while tests are collected."""
    return frozenset(dir(transformers))


class CannotBuildError(Exception):
    """transformers cannot build this type from its default config here."""


def on_meta(model_type: str) -> nn.Module:
    """A model of this type with two blocks a stack, or as many as its default config has where it wants those."""
    kind = class_of_type(model_type)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for few in (True, False):
            try:
                config = configuration_auto.CONFIG_MAPPING[model_type]()
                if few:
                    _shorten(config)
                with torch.device("meta"):
                    return kind(config)
            except Exception as error:  # whatever the model's own code raises
                last = error
    raise CannotBuildError(f"{type(last).__name__}: {last}") from last


def _shorten(config: Any) -> None:
    for name, value in list(vars(config).items()):
        if isinstance(value, transformers.PretrainedConfig):
            _shorten(value)
        elif type(value) is int and value > 2 and _BLOCKS.fullmatch(name) and not _NO_BLOCKS.fullmatch(name):
            setattr(config, name, 2)


class Attentions(NamedTuple):
    """The attention of a model, as far as it is known."""

    stacks: tuple[str, ...]
    unmeasured: dict[str, str]
    refused: str
    omitted: list[str]
    """Paths of modules that are attention by the rule of this file, and are neither measured nor named."""


def attentions_of(model: nn.Module) -> Attentions:
    """What the library says of a model's attention, and what it does not mention."""
    modules = dict(model.named_modules())
    refused, measured = "", []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            anatomy = bertology.dissect(model)
        unmeasured = dict(anatomy.unmeasured)
        measured = [site.attention for site in anatomy.sites]
        stacks = tuple(dict.fromkeys(site.stack for site in anatomy.sites))
    except UnknownAnatomy as error:
        refused, stacks, unmeasured = str(error), (), find_unmeasured(modules, ())
        if not all(type(modules[path]).__name__ in refused for path in unmeasured):
            return Attentions((), unmeasured, refused, [])  # several stacks that cannot be told apart, for example
    known = measured + [modules[path] for path in unmeasured]
    parts = {part for attention in known for part in attention.modules()}
    around = {path.rsplit(".", back)[0] for path, one in modules.items() if one in set(known) for back in range(30)}
    omitted = [path for path in attention_paths(modules) if modules[path] not in parts and path not in around]
    return Attentions(stacks, unmeasured, refused, omitted)


def attention_paths(modules: dict[str, nn.Module]) -> list[str]:
    """The modules that are attention by their class, or by layers for queries, keys and values in them."""
    found = []
    for path, module in modules.items():
        children = {re.sub(r"[^a-z]", "", name.lower()) for name, _ in module.named_children()}
        letters = {name[:1] for name in children if re.fullmatch(r"[qkv](proj|lin|linear|head)?", name)}
        words = {word for word in ("query", "key", "value") if any(word in name for name in children)}
        by_parts = len(letters) == 3 or len(words) == 3 or any("qkv" in name for name in children)
        by_class = _ATTENTION.search(type(module).__name__) and any(True for _ in module.parameters())
        if by_parts or by_class or isinstance(module, nn.MultiheadAttention):
            found.append(path)
    return found

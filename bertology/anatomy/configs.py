"""Which of the configs of a model has the settings of a part of it?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import transformers
from torch import nn

from .sites import Site
from .stacks import configs_around


def nested_configs(config: Any) -> dict[str, Any]:
    """{path: config}: a config, by the path "", and all configs in it, such as that of the text in one of images."""
    found, waiting = {"": config}, [""]
    while waiting:
        path = waiting.pop()
        for name, one in vars(found[path]).items():
            if isinstance(one, transformers.PretrainedConfig):
                waiting.append(f"{path}.{name}".lstrip("."))
                found[waiting[-1]] = one
    return found


def sites_of_configs(model: nn.Module, sites: Iterable[Site]) -> dict[str, list[Site]]:
    """{path of a config: the sites with its settings}, paths as in `nested_configs` of the model's own config."""
    configs, modules = nested_configs(model.config), dict(model.named_modules())
    found: dict[str, list[Site]] = {}
    for site in sites:
        found.setdefault(_nearest(configs, _configs_around(modules, site.path)), []).append(site)
    return found


def sites_of_own_configs(model: nn.Module, sites: Iterable[Site]) -> list[tuple[Any, list[Site]]]:
    """(config, sites): the config nearest to each site, which may be a part's own copy of a nested one."""
    modules = dict(model.named_modules())
    found: dict[int, tuple[Any, list[Site]]] = {}
    for site in sites:
        config = next(iter(_configs_around(modules, site.path)), model.config)
        found.setdefault(id(config), (config, []))[1].append(site)
    return list(found.values())


def _configs_around(modules: dict[str, nn.Module], path: str) -> Iterator[Any]:
    """The configs of transformers at a path and around it, the nearest first."""
    path = path if path in modules else path.rpartition(".")[0]  # a parameter (XLNet)
    return (one for one in configs_around(modules, f"{path}.") if isinstance(one, transformers.PretrainedConfig))


def _nearest(configs: dict[str, Any], around: Iterable[Any]) -> str:
    """The path of the first of these configs that is nested, or of the one that it is a copy of."""
    for own in around:
        for path, config in configs.items():
            if config is own:
                return path
        same = [path for path, config in configs.items() if type(config) is type(own)]
        if same:
            return max(same, key=lambda path: _alike(configs[path], own))
    return ""


def _alike(config: Any, other: Any) -> int:
    """How many settings two configs have in common."""
    return sum(name in vars(other) and vars(other)[name] == value for name, value in vars(config).items())

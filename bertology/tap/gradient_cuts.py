"""Where a forward pass loses gradients that should reach the heads.

A part without gradients (int8 matrices, a module under `no_grad`, `detach`) beside a residual connection raises no
error in the backward pass: the gradient is that of the other paths alone. Here the torch functions of a pass are
watched: a floating tensor that was computed from the heads, that has no gradient, and that meets the graph again.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..anatomy.kept import Said, settings_of
from ..anatomy.modules import Modules, each_module, each_weight
from ..anatomy.sites import Anatomy
from ..errors import UnknownAnatomy
from .function_mode import reader_runs
from .listed import modules_of
from .private_api import module_states, push_mode, running_modules


@contextmanager
def lost_gradients(anatomy: Anatomy, batch: Iterable[str]) -> Iterator[list[UnknownAnatomy]]:
    """Watch whether gradients reach the heads from all that the model computes of them, in the pass in this `with`.

    It is for one pass of several, with arguments of these names: the parts of a model are the same in all of them. A
    model of torch's and transformers' own modules in which nothing was lost is not watched again while it is as it was.
    At the end the list holds an error that names the module where a part of the gradient is lost, if one is. The loss
    may not depend on that part.

    Raises `UnknownAnatomy` itself where torch has no derivative of a function, and for parts in TorchScript.
    """
    modules = modules_of(anatomy.model)
    check_not_inference(anatomy.model, modules)
    lost: list[UnknownAnatomy] = []
    whole = _whole.get(anatomy.model)
    if whole is not None and whole.is_that_of(modules, batch):
        yield lost
        return
    if any(isinstance(module, torch.jit.ScriptModule) for module in modules):  # which takes no hooks
        raise UnknownAnatomy(
            f"a part of this {type(anatomy.model).__name__} is in TorchScript: it is not known whether it passes on "
            "all gradients of the heads. Put the module that it was made from in its place, or measure with "
            "head_ablation, which needs no gradient"
        )
    state = _State(modules, batch) if _is_known(modules) else None
    mode = _Following(anatomy.model)
    with ExitStack() as undo:
        push_mode(mode, undo)
        for attention in {site.attention for site in anatomy.sites}:
            undo.callback(attention.register_forward_pre_hook(mode.start).remove)
        for module in modules:
            undo.callback(module.register_forward_hook(mode.end, with_kwargs=True).remove)
        yield lost
    if mode.met:
        lost.append(UnknownAnatomy(_told(anatomy.model, mode.met)))
    elif state is not None:
        _whole[anatomy.model] = state
    if mode.no_derivative:
        raise lost[0]


def check_not_inference(model: nn.Module, modules: Modules) -> None:
    """Raise `UnknownAnatomy` for weights that were made in inference mode, through which no gradient can pass."""
    if any(map(Tensor.is_inference, each_weight(modules))):
        named = (*model.named_parameters(), *model.named_buffers())
        first = next((name for name, x in named if x.is_inference()), "a weight")
        raise UnknownAnatomy(
            f"{first} was made in torch.inference_mode(), so no gradient can pass through it: build or load the model "
            "outside of inference mode, or measure copy.deepcopy(model)"
        )


class _State:
    """What decides how a model of torch's and transformers' own modules computes a batch."""

    def __init__(self, modules: Modules, batch: Iterable[str]) -> None:
        self._form, self._said = modules.form, Said(settings_of(modules))
        self._rest = self._rest_of(modules, batch)

    @staticmethod
    def _rest_of(modules: Modules, batch: Iterable[str]) -> Any:
        forwards = [getattr(kind, "forward", None) for kind in dict.fromkeys(modules.form.types)]
        return forwards, module_states(modules.held), sorted(batch), torch.is_autocast_enabled()

    def is_that_of(self, modules: Modules, batch: Iterable[str]) -> bool:
        """Whether a model with these modules would compute such a batch alike."""
        return (
            self._form is modules.form
            and self._rest == self._rest_of(modules, batch)
            and self._said.is_said_by(settings_of(modules))
        )


# {model: its state when all gradients reached the heads}
_whole: WeakKeyDictionary[nn.Module, _State] = WeakKeyDictionary()


def _is_known(modules: Modules) -> bool:
    """Whether a model has torch's and transformers' own modules only."""
    kinds = dict.fromkeys(modules.form.types)
    return all(kind.__module__.startswith(("torch.nn.modules.", "transformers.")) for kind in kinds)


@dataclass(frozen=True, eq=False)
class Cut:
    """A call that returned values without a gradient: the module that made it, and the name of the function."""

    module: nn.Module | None
    function: str


def _cut_here(function: str) -> Cut:
    return Cut(next(running_modules(), None), function)


class _Following(TorchFunctionMode):
    """Follows, through the torch functions of a pass, which values are computed from the heads without gradients."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.met: Cut | None = None
        self.no_derivative = False
        self._started = False
        # {id: (tensor, where it was cut off the graph; None for what is not computed from the heads)}
        self._known: dict[int, tuple[weakref.ref[Tensor], Cut | None]] = {}
        self._weights = {id(x) for x in each_weight(each_module(model))}
        self._outside: Cut | None = None

    def start(self, *_: Any) -> None:
        """Follow from here on: what is before the first attention is before the heads."""
        self._started = True

    def end(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """Look at what a module returns: kernels of other packages and of int8 are no functions that a mode sees."""
        given = _floating((args, kwargs))
        if self._started and any(self._is_of_heads(x) for x in given):
            passed = {id(x) for x in given}
            for x in _floating(output):
                if _has_no_derivative(x):
                    self.met, self.no_derivative = self.met or Cut(module, "forward"), True
                elif not x.requires_grad and not self._is_known(x) and id(x) not in passed | self._weights:
                    self._note(x, Cut(module, "forward"))

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if self.met is None and not reader_runs():
            made = _floating(args[0] if func is Tensor.__setitem__ else output)
            if made or func in _LEAVING:
                name = getattr(func, "__name__", str(func))
                given = _floating(_values_of(name, args, kwargs))
                self._follow(name, given, made, leaving=func in _LEAVING)
        return output

    def _follow(self, name: str, given: list[Tensor], made: list[Tensor], *, leaving: bool) -> None:
        cut = next((cut for x in given if not x.requires_grad and (cut := self._cut_of(x)) is not None), None)
        of_heads = self._started and any(self._is_of_heads(x) for x in given)
        if leaving and (cut is not None or of_heads):
            self._outside = cut or _cut_here(name)
        for x in made:
            if cut is None and of_heads and not x.requires_grad:
                cut = _cut_here(name)
            if x.requires_grad and (cut is not None or (of_heads and _has_no_derivative(x))):
                self.met, self.no_derivative = cut or _cut_here(name), cut is None
            elif cut is not None or (not of_heads and self._is_other(x, given)):
                self._note(x, cut)

    def _is_of_heads(self, x: Tensor) -> bool:
        return x.requires_grad and not isinstance(x, nn.Parameter) and not self._is_known(x)

    def _is_other(self, x: Tensor, given: list[Tensor]) -> bool:
        """Whether a value is known to be computed from something else than the heads."""
        if not self._started:
            return not x.requires_grad
        return x.requires_grad or all(self._is_known(one) or id(one) in self._weights for one in given)

    def _is_known(self, x: Tensor) -> bool:
        return id(x) in self._known and self._known[id(x)][0]() is x

    def _cut_of(self, x: Tensor) -> Cut | None:
        if self._is_known(x):
            return self._known[id(x)][1]
        # Values that left torch come back as new tensors.
        return None if id(x) in self._weights else self._outside

    def _note(self, x: Tensor, cut: Cut | None) -> None:
        key = id(x)
        self._known[key] = (weakref.ref(x, lambda _: self._known.pop(key, None)), cut)


_LEAVING = (Tensor.numpy, Tensor.tolist, Tensor.__array__)


def _floating(values: Any) -> list[Tensor]:
    """The tensors of real or complex numbers in values, which may be nested."""
    found: list[Tensor] = []
    _add_floating(values, found)
    return found


def _add_floating(values: Any, found: list[Tensor]) -> None:
    if isinstance(values, Tensor):
        if values.is_floating_point() or values.is_complex():
            found.append(values)
    elif isinstance(values, dict):
        for value in values.values():
            _add_floating(value, found)
    elif isinstance(values, (tuple, list)):
        for value in values:
            _add_floating(value, found)


def _values_of(name: str, args: Any, kwargs: Any) -> Any:
    """The arguments of a function whose values matter, not the shape or the type alone."""
    if name.endswith("_like") or name.startswith("new_"):
        return ()
    return args[:1] if name == "to" or name.endswith("_as") else (args, kwargs)


def _has_no_derivative(x: Tensor) -> bool:
    """Whether a value belongs to the graph, but comes from a kernel without a derivative: torch passes no gradient."""
    return x.grad_fn is not None and "NotImplemented" in x.grad_fn.name()


def _told(model: nn.Module, cut: Cut) -> str:
    name = next((name for name, module in model.named_modules() if module is cut.module), "")
    kind = "" if cut.module is None else type(cut.module).__name__
    where = f"{name} ({kind})" if name else kind or "the model"
    return (
        f"the gradient of the heads would be incomplete: {where} computes with their outputs without a gradient "
        f"({cut.function}), as under no_grad, after detach or in int8. Run that part with gradients and without "
        "quantization, or measure with head_ablation, which needs none"
    )

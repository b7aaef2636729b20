"""The private names of torch, transformers and Python that are used, and changes that no public name makes.

This file and `anatomy/forward_source.py` are the only ones that rest on the insides of other people's code, and each of
their functions has a test that says what breaks when the inside changes.
"""

from __future__ import annotations

import dis
import sys
import types
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from operator import attrgetter, itemgetter, methodcaller
from typing import Any, NamedTuple

import torch
import torch.utils.checkpoint
import transformers
from torch import Tensor, nn
from torch.backends.cuda import SDPAParams, can_use_efficient_attention, can_use_flash_attention
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack, _pop_mode, _push_mode
from torch.utils.hooks import RemovableHandle

from ..anatomy.divided import has_processes, is_fully_sharded

# Fragile: the attribute of a config that says which attention function its modules look up when they run. The public
# setter also checks and changes the configs of parts, which could not be undone.
ATTENTION_SETTING = "_attn_implementation_internal"


def push_mode(mode: TorchFunctionMode, undo: ExitStack) -> None:
    """Let a mode see every torch function, while `undo` is open; taps may be closed in any order."""
    # Fragile: rests on torch's private stack of function modes. The public `with mode:` can only leave the newest mode,
    # but generators close taps in any order.
    _push_mode(mode)
    undo.callback(_remove_mode, mode)


def _remove_mode(mode: TorchFunctionMode) -> None:
    """Take a mode out of the stack, also from below others."""
    if mode not in _get_current_function_mode_stack():
        return
    above = []
    while (top := _pop_mode()) is not mode:
        above.append(top)
    for other in reversed(above):
        _push_mode(other)


def replace_entry(interface: Any, name: str, function: Callable[..., Any], undo: ExitStack) -> None:
    """Put another function under a name of transformers' attention interface, while `undo` is open."""
    # Fragile: rests on the interface being a mapping whose items hide the functions that are registered for all of
    # its instances, and on `del` to uncover them.
    own = interface[name]
    try:
        del interface[name]
        undo.callback(interface.__setitem__, name, own)
    except KeyError:
        undo.callback(interface.__delitem__, name)
    interface[name] = function


def may_be_compiled() -> bool:
    """Whether anything can have been compiled in this process."""
    # Fragile: rests on torch importing its compiler only when it is first used, in a module of this name.
    return "torch._dynamo" in sys.modules


def replace_forward(module: nn.Module, forward: Callable[..., Any], undo: ExitStack) -> None:
    """Give a module another forward pass, while `undo` is open."""
    # Fragile: rests on `module(...)` calling the attribute `forward` of the instance, which torch does not promise.
    held = vars(module)  # a module in TorchScript keeps elsewhere what is set on it
    own = held.get("forward")
    undo.callback(lambda: held.pop("forward") if own is None else held.update(forward=own))
    held["forward"] = forward


OutputEdit = Callable[[nn.Module, Any, Any], Any]


class _EditedForward:
    """A forward pass with edits of what it returns, which may be removed in any order."""

    def __init__(self, module: nn.Module) -> None:
        self._own, self._forward = vars(module).get("forward"), module.forward
        self.edits: list[OutputEdit] = []

    def __call__(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        output = self._forward(*args, **kwargs)
        for edit in tuple(self.edits):
            new = edit(module, args, output)
            output = output if new is None else new
        return output

    def remove(self, module: nn.Module, edit: OutputEdit) -> None:
        """Remove one edit; with the last one, the module gets its own forward pass again."""
        self.edits.remove(edit)
        if not self.edits:
            vars(module).pop("forward") if self._own is None else vars(module).update(forward=self._own)


def edit_output(module: nn.Module, edit: OutputEdit, undo: ExitStack) -> None:
    """Call `edit(module, args, output)` on what a forward pass returns, before any hook, while `undo` is open.

    As for hooks of torch, None leaves the output as it is. Of several edits the newest comes first.
    """
    # Fragile: rests on the same as `replace_forward`.
    found = vars(module).get("forward")
    edited = found.func if isinstance(found, partial) and isinstance(found.func, _EditedForward) else None
    if edited is None:
        edited = _EditedForward(module)
        vars(module)["forward"] = partial(edited, module)
    edited.edits.insert(0, edit)
    undo.callback(edited.remove, module, edit)


def hook_behind_own(module: nn.Module, hook: OutputEdit) -> RemovableHandle:
    """Register a forward hook behind all hooks of the user's own, and before those of this library and transformers.

    Of several that are registered so, the newest comes first.
    """
    # Fragile: rests on torch calling forward hooks in the order of this mapping.
    hooks: Any = module._forward_hooks
    others = list(hooks.items())
    behind = 1 + max((place for place, (_, one) in enumerate(others) if is_own_hook(one)), default=-1)
    handle = module.register_forward_hook(hook)
    for number, _ in others[behind:]:  # moved, so that an interrupt loses none
        hooks.move_to_end(number)
    return handle


def has_own_hooks(module: nn.Module) -> bool:
    """Whether a module has a forward hook of the user's own."""
    # Fragile: rests on torch keeping forward hooks in a mapping of this name.
    return any(map(is_own_hook, module._forward_hooks.values()))


def is_own_hook(hook: Any) -> bool:
    """Whether a hook is none of this library, of transformers or of torch."""
    # Fragile: rests on transformers and torch defining their hooks in modules of their own packages.
    while isinstance(hook, partial):
        hook = hook.func
    return not str(getattr(hook, "__module__", "")).startswith(("bertology.", "transformers.", "torch."))


def current_modes() -> tuple[Any, ...]:
    """The function modes that see what is called now, the newest last; a mode does not see what it calls itself."""
    # Fragile: rests on torch's private list of function modes.
    return tuple(_get_current_function_mode_stack())


Wrap = Callable[[Callable[..., Any]], Callable[..., Any]]


_CHECKPOINT_GENERATORS = ("_checkpoint_without_reentrant_generator_impl", "_checkpoint_without_reentrant_generator")


def wrap_checkpoints(both_runs: Wrap, second_run: Wrap, first_run: Any, undo: ExitStack) -> None:
    """Wrap each function that torch's gradient checkpointing is given, while `undo` is open.

    Of a reentrant checkpoint both runs are wrapped. Of any other the second one is, in the backward pass, and the first
    one is in a `with first_run()`.
    """
    # Fragile: rests on the names under which `torch.utils.checkpoint.checkpoint` looks up its two variants, which take
    # the function first. The public `context_fn` serves one of them only, and is the model's to choose.
    module: Any = torch.utils.checkpoint
    # The older name is still there in torch 2.14, which no longer looks it up.
    newer, older = _CHECKPOINT_GENERATORS
    name = newer if hasattr(module, newer) else older
    reentrant, generator = module.CheckpointFunction, getattr(module, name)

    def apply(function: Callable[..., Any], *args: Any) -> Any:
        return reentrant.apply(both_runs(function), *args)

    def wrapped(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        second = second_run(function)
        with first_run():
            yield from generator(second, *args, **kwargs)

    undo.callback(setattr, module, "CheckpointFunction", reentrant)
    undo.callback(setattr, module, name, generator)
    module.CheckpointFunction = types.SimpleNamespace(apply=apply)
    setattr(module, name, wrapped)


def running_modules() -> Iterator[nn.Module]:
    """The modules whose methods are running in this thread, the innermost first."""
    # Fragile: rests on CPython's frames, and on methods calling their instance `self`.
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, nn.Module):
            yield owner
        frame = frame.f_back


class Hook(NamedTuple):
    """A hook and the modules, each of which is there once, that call it before they run, or after.

    What the other names mean is said at torch's own `register_forward_hook`.
    """

    modules: Iterable[nn.Module]
    call: Callable[..., Any]
    before: bool = False
    with_kwargs: bool = False
    always_call: bool = False
    prepend: bool = False


def set_hooks(hooks: Sequence[Hook], undo: ExitStack) -> None:
    """Set hooks, while `undo` is open.

    torch's own functions take five times as long, and longer to remove what they have set: a call on a short text pays
    for each hook.
    """
    # Fragile: rests on the private dictionaries of a module's hooks, and on the counter that gives hooks their numbers.
    first = RemovableHandle.next_id
    RemovableHandle.next_id += len(hooks)
    places = [(number, *_places_of(one)) for number, one in enumerate(hooks, start=first)]
    undo.callback(_remove_hooks, places)  # first: an interrupt may come after any step
    for (number, filled, told), one in zip(places, hooks, strict=True):
        for marks in told:  # before the hooks: a module that another thread runs meanwhile calls a hook as it is marked
            marks[number] = True
        for held in filled:
            set_hook(held, number, one.call)
            if one.prepend:
                held.move_to_end(number, last=False)


def _places_of(hook: Hook) -> tuple[list[Any], list[Any]]:
    """Where modules keep a hook, and where they keep what it wants."""
    kind, modules = "_forward_pre_hooks" if hook.before else "_forward_hooks", list(hook.modules)
    told: list[Any] = list(map(attrgetter(f"{kind}_with_kwargs"), modules)) if hook.with_kwargs else []
    if hook.always_call:
        told += map(attrgetter("_forward_hooks_always_called"), modules)
    return list(map(attrgetter(kind), modules)), told


def set_hook(hooks: dict[int, Any], number: int, hook: Callable[..., Any]) -> None:
    """Set one hook; tests let it fail."""
    # Fragile: as `set_hooks`.
    hooks[number] = hook


def _remove_hooks(places: list[tuple[int, list[Any], list[Any]]]) -> None:
    for number, filled, told in places:
        # What is empty, or no mapping, never got the hook; all others must lose it.
        for hooks in filter(None, filled + told):
            hooks.pop(number, None)


def has_pre_hooks(module: nn.Module) -> bool:
    """Whether something looks at the inputs of a module, or edits them."""
    # Fragile: rests on the private dictionary of a module's hooks.
    return bool(module._forward_pre_hooks)


def module_states(held: list[Mapping[str, Any]]) -> list[list[Any]]:
    """Of modules that hold this: how many attributes and hooks each has, and whether it runs again in backward."""
    # Fragile: rests on the private dictionaries of a module's hooks, and on the name of transformers' own switch.
    counted = [held, *(list(map(itemgetter(name), held)) for name in ("_forward_hooks", "_forward_pre_hooks"))]
    return [*(list(map(len, some)) for some in counted), list(map(methodcaller("get", "gradient_checkpointing"), held))]


def code_parts(code: types.CodeType) -> tuple[Any, ...]:
    """What a function computes: its instructions, the names that they use, and its constants."""
    # Fragile: rests on CPython's code objects. Instructions differ between releases of Python, so that one release
    # takes a function of another for a different one.
    return code.co_code, code.co_names, code.co_varnames, code.co_flags, code.co_consts


def function_parts(function: types.FunctionType) -> tuple[Any, ...]:
    """The code of a function, its defaults, and the values that its closure holds."""
    # Fragile: rests on CPython's function objects; a cell that was not filled yet has no content.
    held = []
    for cell in function.__closure__ or ():
        with suppress(ValueError):
            held.append(cell.cell_contents)
    return function.__code__, function.__defaults__, function.__kwdefaults__, *held


def globals_read(function: types.FunctionType) -> set[str]:
    """The names that a function, and those inside it, look up among the globals."""
    # Fragile: rests on the names of CPython's instructions.
    found, waiting = set(), [function.__code__]
    while waiting:
        code = waiting.pop()
        steps = dis.get_instructions(code)
        found |= {str(step.argval) for step in steps if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
        waiting += [inner for inner in code.co_consts if isinstance(inner, types.CodeType)]
    return found & set(function.__globals__)


def library_versions() -> tuple[str, str]:
    """The versions of torch and transformers."""
    # Fragile: two processes are taken to compute alike if both are of one version.
    return torch.__version__, transformers.__version__


def divided_groups(modules: list[nn.Module]) -> list[tuple[nn.Module, Any]]:
    """The modules that `fully_shard` divides, each with its groups of parameters; none without torch.distributed."""
    # Fragile: rests on the private groups of parameters of torch's FSDP; up to 2.10 a module has one of them at most.
    if not has_processes():
        return []
    found = []
    for module in modules:
        if is_fully_sharded(module):
            state = module._get_fsdp_state()  # type: ignore[operator]
            groups = getattr(state, "_fsdp_param_groups", None)
            groups = [state._fsdp_param_group] if groups is None else groups
            found += [(module, group) for group in groups if group is not None]
    return found


def are_divided(groups: list[tuple[nn.Module, Any]]) -> bool:
    """Whether this process holds a part of some of these weights only."""
    # Fragile: rests on a private state of torch's groups of parameters.
    return any(not group.is_unsharded for _, group in groups)


def bring_together(groups: list[tuple[nn.Module, Any]], undo: ExitStack) -> None:
    """Give this process whole weights, and keep them through all passes, while `undo` is open; all processes do it."""
    # Fragile: rests on the two private settings that say when torch divides them again, which no public name reads.
    for module, group in groups:
        undo.callback(_divide_again, module, group, group.post_forward_mesh_info, group.reshard_after_backward)
        group.post_forward_mesh_info, group.reshard_after_backward = None, False
        if not group.is_unsharded:
            undo.callback(group.reshard)
    for module in dict.fromkeys(module for module, _ in groups):
        module.unshard()  # type: ignore[operator]


def _divide_again(module: Any, group: Any, after_forward: Any, after_backward: bool) -> None:
    state = module._get_fsdp_state()
    # Of the outermost module torch itself turns the first one off, in the first pass.
    if not (state._is_root and getattr(state, "_auto_reshard_after_forward", True)):
        group.post_forward_mesh_info = after_forward
    group.reshard_after_backward = after_backward


def fused_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool, scale: float
) -> tuple[Tensor, Tensor] | None:
    """[batch, head, query, width] of attention by a fused kernel, and [batch, head, query] of ln Σ exp(score).

    None where there is no such kernel for the device, the type and the shapes. Without a gradient; `mask` is added.
    """
    # Fragile: rests on torch's private kernels, whose public function keeps the logarithms to itself.
    width, heads = value.shape[3], query.shape[1]
    # The kernels want one width, which on a GPU is a multiple of 8; zeros change no score.
    many = max(query.shape[3], width) if _device_of(query) == "cpu" else -(-max(query.shape[3], width) // 8) * 8
    query, key, value = (x if x.shape[3] == many else F.pad(x, (0, many - x.shape[3])) for x in (query, key, value))
    aten = torch.ops.aten
    if mask is not None:
        # In the kernels the lowest value is multiplied; a query that sees no key would become NaN.
        mask = mask.clamp_min(torch.finfo(mask.dtype).min / 4).to(query.dtype)
    groups = heads // key.shape[1]
    if _device_of(query) == "cpu":
        if groups > 1:  # torch 2.6 reads beyond fewer heads of keys
            key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
        found = aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, causal, attn_mask=mask, scale=scale
        )
        return found[0][..., :width], found[1]
    if _device_of(query) != "cuda":
        return None
    given = SDPAParams(query, key, value, mask, 0.0, causal, heads != key.shape[1])
    if mask is None and can_use_flash_attention(given):
        found = aten._scaled_dot_product_flash_attention(query, key, value, 0.0, causal, False, scale=scale)
        return found[0][..., :width], found[1][..., : query.shape[2]]
    key, value = (x if groups == 1 else x.repeat_interleave(groups, 1) for x in (key, value))
    mask = None if mask is None else _aligned(mask.expand(*query.shape[:3], -1))
    if not can_use_efficient_attention(SDPAParams(query, key, value, mask, 0.0, causal, False)):
        return None
    found = aten._scaled_dot_product_efficient_attention(query, key, value, mask, True, 0.0, causal, scale=scale)
    return found[0][..., :width], found[1][..., : query.shape[2]]


def _device_of(x: Tensor) -> str:
    return x.device.type


def _aligned(mask: Tensor) -> Tensor:
    """A mask whose rows begin at multiples of 16 numbers, as the kernel wants it."""
    keys = mask.shape[3]
    return F.pad(mask, (0, -keys % 16))[..., :keys]

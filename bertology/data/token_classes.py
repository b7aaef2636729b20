"""Token classes: separators, punctuation, or any other set of tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..anatomy.sites import Anatomy
from ..errors import DataError, described, is_whole, shown
from .batches import Batch, reads_text, token_ids, with_added_positions

TokenClass = int | str | Sequence[int] | Sequence[str] | Tensor | Callable[[Batch], Tensor]
"""Token ids, strings, or a function of the batch that returns [batch, token], bool."""
OTHER = "other"


class TokenClasses:
    """Token classes by name, and the class `other` of all remaining tokens.

    A string means every token of the vocabulary with this text, not counting blanks around it. Raises `DataError` for
    strings without a tokenizer, for strings that are no token, and for empty classes.
    """

    def __init__(self, tokens: Mapping[str, TokenClass] | None, tokenizer: Any = None) -> None:
        given = _by_name({} if tokens is None else tokens)
        if tokenizer is not None:
            check_is_tokenizer(tokenizer)
        if OTHER in given:
            raise DataError(
                f"the name {OTHER!r} is taken: it is the class of all tokens in none of the other classes. "
                "Give your class another name"
            )
        self.names: tuple[str, ...] = (*given, OTHER) if given else ()
        self._functions = {name: one for name, one in given.items() if callable(one)}
        self._ids = {name: _ids(name, one, tokenizer) for name, one in given.items() if not callable(one)}

    def settings(self) -> str:
        """The names of the classes and their token ids."""
        return f"{self.names} { {name: ids.tolist() for name, ids in self._ids.items()} }"

    def masks(self, anatomy: Anatomy, batch: Batch, stack: str, positions: int) -> Tensor | None:
        """[class, batch, token], bool, for the tokens that a stack attends from and to, or None if they are not known.

        They are not known in cross attention, for a decoder without `decoder_input_ids` in the batch, and when a stack
        has another number of positions than the text has tokens.
        """
        ids = token_ids(anatomy.model, batch, stack)
        decoding = not reads_text(anatomy.model, stack)
        if "cross" in stack or (decoding and (ids is None or self._functions)):
            return None
        found = [self._mask(name, batch, ids) for name in self.names[:-1]]
        if any(mask.shape != found[0].shape for mask in found):
            raise DataError(
                "all token classes must have the same shape [batch, token], got "
                f"{', '.join(str(list(mask.shape)) for mask in found)}"
            )
        masks = torch.stack([*found, ~torch.stack(found).any(0)])
        masks = with_added_positions(masks, positions, anatomy, stack)
        return masks if masks.shape[-1] == positions else None

    def _mask(self, name: str, batch: Batch, ids: Any) -> Tensor:
        if name in self._functions:
            mask = self._functions[name](batch)
            if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.dim() != 2:
                what = f"{mask.dtype} {list(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
                raise DataError(f"the function of class {name!r} must return a bool tensor [batch, token], got {what}")
            if isinstance(ids, Tensor) and mask.shape != ids.shape:
                raise DataError(
                    f"the function of class {name!r} must return one value per token, "
                    f"got {list(mask.shape)} for input_ids {list(ids.shape)}"
                )
            return mask.to(ids.device) if isinstance(ids, Tensor) else mask
        if not isinstance(ids, Tensor):
            raise DataError(
                f"class {name!r} is given as token ids, but the batch has no input_ids: "
                "pass a function of the batch instead"
            )
        return torch.isin(ids, self._ids[name].to(ids.device))


def check_is_tokenizer(tokenizer: Any) -> None:
    """Raise `DataError` for what is no tokenizer."""
    if not callable(tokenizer) or isinstance(tokenizer, (type, nn.Module)):
        raise DataError(
            f"tokenizer must be a tokenizer, such as AutoTokenizer.from_pretrained returns, got {described(tokenizer)}"
        )


def _by_name(tokens: Any) -> dict[str, Any]:
    """The classes by name. Raises `DataError` for classes without names."""
    if not isinstance(tokens, Mapping):
        raise DataError(
            f"tokens must be a mapping from the name of each class to its tokens, got {shown(tokens)}: give the class "
            f"a name, as in tokens={{'my class': {shown(tokens)}}}"
        )
    wrong = [name for name in tokens if not isinstance(name, str)]
    if wrong:
        raise DataError(f"the name of a class of tokens must be a string, got {described(wrong[0])} in {shown(tokens)}")
    return dict(tokens)


def _listed(given: Any) -> list[Any]:
    """The ids or strings of a class; empty for what is neither."""
    if isinstance(given, str) or is_whole(given):
        return [given]
    return list(given.tolist() if hasattr(given, "tolist") else given) if isinstance(given, Iterable) else []


def _ids(name: str, given: Any, tokenizer: Any) -> Tensor:
    many = _listed(given)
    if not many or not (all(map(is_whole, many)) or all(isinstance(one, str) for one in many)):
        raise DataError(
            f"class {name!r} must be token ids, strings or a function of the batch, got {shown(given)}: such as "
            f"tokens={{{name!r}: ['.', ',']}}"
        )
    if not isinstance(many[0], str):
        ids = torch.tensor([int(one) for one in many])
        if ids.min() < 0:
            raise DataError(f"class {name!r}: a token id is 0 or more, got {many}")
        return ids
    if tokenizer is None:
        raise DataError(f"class {name!r} is given as strings: pass tokenizer= as well, to look up their ids")
    reading: dict[str, list[int]] = {}
    for token, number in tokenizer.get_vocab().items():
        reading.setdefault(token, []).append(number)
        read = tokenizer.convert_tokens_to_string([token]).strip()
        if read != token:
            reading.setdefault(read, []).append(number)
    missing = [one for one in many if one not in reading]
    if missing:
        are = "is not a token" if len(missing) == 1 else "are not tokens"
        raise DataError(
            f"class {name!r}: {', '.join(map(shown, missing))} {are} "
            f"of this tokenizer: tokenizer.tokenize({shown(missing[0])}) lists the tokens of a text"
        )
    return torch.tensor(sorted({number for one in map(str, many) for number in reading[one]}))

"""The attention maps of one example, without padding, over its tokens or its words."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..corpora.words import Aligned, WordMaps
from ..data.tokens import PADDING, beginning, label_of, word_strings
from ..errors import DataError, how_many, is_whole
from ..results.fields import Fields
from ..results.heads import place_of
from ..streaming.one_batch import Capture


@dataclass(frozen=True)
class ExampleMaps:
    """The maps of one example in one stack, with what stands beside them in pictures."""

    result: Capture
    """The maps of this stack alone."""
    maps: Tensor
    """[layer, head, query, key], float32 on the CPU: NaN for pruned heads."""
    queries: list[str]
    """The tokens or words that attend."""
    keys: list[str]
    """The tokens or words that are attended to."""
    named: bool
    """Whether these are tokens or words, and not the numbers of positions."""
    title: str
    """The beginning of the text, in quotes, of which model it is, and its number among several."""

    def place(self, head: object) -> tuple[int, int]:
        """The row and the column of a head, however given. Raises `HeadError`."""
        return place_of(self.result, head, self.maps.shape[1])


def example_maps(result: Capture, example: int, stack: str | None, *, words: bool, head: object = None) -> ExampleMaps:
    """Take one example out of the maps of a batch, and join the tokens of words if wanted.

    Raises `DataError` for an example or a stack that is not there, and where words are not known.
    """
    name = stack or _stack_of(result, head)
    part = result.stack(name)
    values = part.stacks[name]
    count = values.shape[1]
    if not is_whole(example) or not 0 <= example < count:
        raise DataError(f"example must be from 0 to {count - 1}, got {example!r}")
    maps = values[:, example].detach().to("cpu", torch.float32)
    asking, asked = _real(result, name, example, maps.shape[-2:])
    queries, keys = (
        list(tokens[example]) if tokens and len(tokens[example]) == size else []
        for tokens, size in zip(result.tokens_of(name), maps.shape[-2:], strict=True)
    )
    if result.positions:  # the mask is that of the queries
        asked = torch.tensor([bool(key) for key in keys]) if keys else torch.ones_like(asked)
    named = bool(queries and keys)
    text = beginning([key for key, there in zip(keys, asked, strict=True) if there], 44) if named else ""
    title = title_of_example(
        result, f"“{text}”" if text else f"{how_many(int(asked.sum()), 'position')}", example, count
    )
    if words:
        word_of = result.word_of[example] if result.word_of else ()
        if not named or len(word_of) != len(keys) or queries != keys:
            raise DataError(
                "the words are not known: measure a text with a fast tokenizer, attention_maps(model, text, "
                "tokenizer=tokenizer). They are known of self attention over the input alone"
            )
        joined = _of_words(maps, [word if there else PADDING for word, there in zip(word_of, asked, strict=True)])
        labels = word_strings(keys, [w if there else PADDING for w, there in zip(word_of, asked, strict=True)])
        return ExampleMaps(part, joined, labels, labels, True, title)
    maps = maps[:, :, asking][..., asked]
    if not named:
        queries, keys = ([str(place) for place in range(size)] for size in values.shape[-2:])
        queries = [str(position) for position in result.positions] or queries
    rows, columns = (
        [label_of(one) if named else one for one, there in zip(names, real, strict=True) if there]
        for names, real in ((queries, asking.tolist()), (keys, asked.tolist()))
    )
    return ExampleMaps(part, maps, rows, columns, named, title)


def title_of_example(result: Fields, text: str, example: int, count: int) -> str:
    """A title, and below it of which model and which example of the batch it is."""
    of = [result.model_name] if result.model_name else []
    return "\n".join([text, ", ".join(of + ([f"example {example} of {count}"] if count > 1 else []))]).strip()


def _stack_of(result: Capture, head: object) -> str:
    """The stack of a head that names one, or the only stack. Raises `DataError` if there are several."""
    if len(result.stacks) == 1:
        return next(iter(result.stacks))
    if head is not None:
        label = result.labels[place_of(result, head, 10**6)[0]]
        return label.rpartition(".")[0]
    raise DataError(f"this result has several stacks: say which, stack='...', one of {', '.join(result.stacks)}")


def _real(result: Capture, stack: str, example: int, sizes: torch.Size) -> tuple[Tensor, Tensor]:
    """[query] and [key], bool: which of them are no padding; all of them where that is not known."""
    found = []
    # The keys of cross attention are those of the encoder.
    for name, size in zip((stack, "encoder" if stack.startswith("cross") else stack), sizes, strict=True):
        mask = result.masks.get(name)
        fits = mask is not None and mask.shape[1] == size and bool(mask[example].any())
        found.append(mask[example].cpu() if fits and mask is not None else torch.ones(size, dtype=torch.bool))
    return found[0], found[1]


def _of_words(maps: Tensor, word_of: list[int]) -> Tensor:
    """[layer, head, word, word]: attention to the tokens of a word summed, attention from them averaged."""
    pruned = maps.isnan().flatten(2).all(-1)
    words = WordMaps([Aligned(None, tuple(word_of))])
    joined = torch.stack([words.between_groups(layer[None])[0] for layer in maps.nan_to_num(0)])
    return joined.masked_fill(pruned[..., None, None], float("nan"))

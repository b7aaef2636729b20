"""How far does a model's attention follow the structure of code?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

from torch import nn

from ..anatomy.dissect import dissect
from ..data.batches import Batches
from ..errors import DataError
from ..streaming.accumulate import accumulate
from ..syntax import randomized
from .aligning import AlignedCode
from .comparing import CatComparison
from .filtering import TOP, published_types
from .masks import QUARTER
from .measuring import CatAccumulator, Types
from .reading import snippets_in
from .typed import LeafTypes, TypesAccumulator

RANDOM = "random weights"


def cat_scores(
    model: nn.Module, batches: Batches, *, types: Literal["frequent", "published", "all"] | Sequence[str] = "frequent",
    top: int = TOP, quantile: float = QUARTER, upgraded: bool = True, random_weights: bool = False, seed: int = 0,
    progress: str | None = None,
) -> CatComparison:  # fmt: skip
    """Measure how far the attention of each layer and head agrees with the structure of code (Chen et al. 2022).

    In each snippet, the quarter of the pairs of leaves with the highest attention is held against the quarter that are
    nearest in the U-AST: the score is |both| / |either|, its mean over snippets the CAT-score. Local attention scores
    by itself, since neighbours are near in the tree: so beside the model stand its own attention with its pairs
    shuffled (at most 1/7), and each map with its mean at every offset, which knows positions alone.

    Args:
        model: any model with self attention over the text, under any attention implementation; left as it was found.
            Of a decoder the pairs of a leaf with itself and earlier ones count.
        batches: what `align_code` makes, or some of these batches. The layers' scores are of the mean over heads.
        types: which leaves count: those of the `top` types with the most high attention in each layer ("frequent", as
            in the released code), those behind the published scores ("published"), "all", or the types given.
        top: how many types are frequent.
        quantile: the share of pairs that is high in attention, and near in the tree.
        upgraded: whether distances are those of the U-AST, or of the tree alone.
        random_weights: whether to measure the model with weights drawn anew, too, on the same types of leaves.
        seed: of shuffled pairs and random weights.
        progress: the title of a progress bar; no bar without it.

    Raises `DataError` for batches of something else, for an iterator of batches, for "frequent" or "published" types
    of code in several languages, for types that no leaf has, and where no layer reads the code.

        >>> from transformers import AutoTokenizer, BertConfig, BertModel
        >>> from bertology.code_structure import align_code, cat_scores, parse_code
        >>> from bertology.demo import minilm_path
        >>> tokenizer = AutoTokenizer.from_pretrained(minilm_path())
        >>> model = BertModel(BertConfig(num_hidden_layers=2, num_attention_heads=4, hidden_size=32))
        >>> batches = align_code(tokenizer, [parse_code("def f(x):\\n    return g(x) + 1", "python")])
        >>> found = cat_scores(model, batches, types="all")
        >>> found.scores.head_macro.shape, found.kinds
        (torch.Size([2, 4]), ('attention', 'shuffled', 'positional'))
    """
    snippets = snippets_in(batches)
    chosen = _chosen(model, batches, snippets, types, top, quantile, progress)
    counter = partial(CatAccumulator, snippets, types=chosen, quantile=quantile, upgraded=upgraded, seed=seed)
    found: CatComparison = accumulate(model, batches, counter(), progress=progress)[0]
    if random_weights:
        title = None if progress is None else f"{progress}, {RANDOM}"
        other = accumulate(randomized(model, seed=seed), batches, counter(nulls=False), progress=title)[0]
        found = found.joined(other, RANDOM)
    return replace(found, skipped=len(getattr(batches, "skipped", ())))


def leaf_types(
    model: nn.Module, batches: Batches, *, quantile: float = QUARTER, progress: str | None = None
) -> LeafTypes:
    """Count how often each layer's attention is high at leaves of each type (Chen et al. 2022).

    Args:
        model: as in `cat_scores`.
        batches: what `align_code` makes.
        quantile: the share of pairs that is high in attention.
        progress: the title of a progress bar; no bar without it.

    Raises `DataError` for batches of something else, for an iterator of them, and where no layer reads the code.

        >>> from transformers import AutoTokenizer, BertConfig, BertModel
        >>> from bertology.code_structure import align_code, leaf_types, parse_code
        >>> from bertology.demo import minilm_path
        >>> tokenizer = AutoTokenizer.from_pretrained(minilm_path())
        >>> model = BertModel(BertConfig(num_hidden_layers=2, num_attention_heads=4, hidden_size=32))
        >>> leaf_types(model, align_code(tokenizer, [parse_code("x = x + 1", "python")])).types
        ('+', '=', 'identifier', 'integer')
    """
    every = {kind for one in snippets_in(batches) for kind in one.tree.types}
    counter = TypesAccumulator(sorted(every), quantile=quantile)
    found: LeafTypes = accumulate(model, batches, counter, progress=progress)[0]
    return found


def _chosen(
    model: nn.Module, batches: Batches, snippets: Sequence[AlignedCode], types: str | Sequence[str], top: int,
    quantile: float, progress: str | None,
) -> Types | None:  # fmt: skip
    """[layer]: the types of leaves that count in each layer; None for all."""
    if types == "all":
        return None
    languages = sorted({one.tree.language for one in snippets})
    if types in ("frequent", "published") and len(languages) > 1:
        raise DataError(
            f"types of leaves are those of one language, got code in {', '.join(languages)}: measure each by itself, "
            "or pass types='all'"
        )
    if types == "frequent":
        title = None if progress is None else f"{progress}, types of leaves"
        found = leaf_types(model, batches, quantile=quantile, progress=title)
        return [found.frequent(row, top=top) if found.snippets[row] else None for row in range(len(found.labels))]
    if isinstance(types, str) and types != "published":
        raise DataError(f"types are 'frequent', 'published', 'all' or a list of types, got {types!r}")
    given = published_types(languages[0]) if types == "published" else tuple(types)
    there = {kind for one in snippets for kind in one.tree.types}
    if not there.intersection(given):
        some = ", ".join(sorted(there)[:10])
        raise DataError(f"no leaf of the code is of the types {list(given)}: its own are such as {some}")
    return [given] * len(dissect(model).labels)

"""What tests of syntax share: sentences with trees, and tokenizers made on the spot."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st

from bertology.syntax import Sentence, align

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "purred", "under", "stars"]


def sentence(words: str, heads: list[int], relations: str = "", name: str = "one") -> Sentence:
    many = words.split()
    return Sentence(tuple(many), tuple(heads), tuple(relations.split() or ["dep"] * len(many)), name)


CATS = [
    sentence("the cat sat on a mat", [2, 3, 0, 6, 6, 3], "det nsubj root case det obl", "first"),
    sentence("stars purred", [2, 0], "nsubj root", "second"),
    sentence("and the under mat sat", [5, 4, 4, 5, 0], "cc det case obl root", "third"),
    sentence("cat", [0], "root", "fourth"),
]


@st.composite
def heads(draw: Any, least: int = 1, most: int = 8) -> list[int]:
    """A random tree: each word hangs from one that was placed before it, in a random order of words."""
    many = draw(st.integers(least, most))
    order = draw(st.permutations(range(1, many + 1)))
    found = [0] * many
    for place, word in enumerate(order[1:], 1):
        found[word - 1] = order[draw(st.integers(0, place - 1))]
    return found


def wordpiece_tokenizer() -> Any:
    """Splits "purred", "under" and "stars" in two, marks ends with [CLS] and [SEP]; ids below the zoo's 40."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    whole = [word for word in WORDS if word not in ("purred", "under", "stars")]
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *whole, "purr", "##ed", "und", "##er", "star", "##s"]
    made = Tokenizer(models.WordPiece({name: i for i, name in enumerate(names)}, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=False)
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=32,
        model_input_names=["input_ids", "attention_mask"],  # transformers 4 adds segments, which DistilBERT has not
    )


def byte_tokenizer(**options: Any) -> Any:
    """As GPT-2's: no special tokens around a text, no padding token, a blank counted to the word behind it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted({letter for word in WORDS for letter in word})
    vocabulary = {name: i for i, name in enumerate(["Ġ", *letters, "Ġc", "Ġm", "Ġs", "th", "at"])}
    merges = [("Ġ", "c"), ("Ġ", "m"), ("Ġ", "s"), ("t", "h"), ("a", "t")]
    made = Tokenizer(models.BPE(vocabulary, merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, **options)


def arguments(one: Any, family: Any) -> dict[str, Any]:
    """What the family's models take of a batch."""
    names = {"input_ids", "attention_mask"} | ({"token_type_ids"} if family.name == "bert" else set())
    return {name: x for name, x in one.items() if name in names}


def batches_for(family: Any, sentences: Any = CATS, **options: Any) -> Any:
    """Aligned batches for the family: of bytes for a decoder, else of word pieces between [CLS] and [SEP]."""
    made = align(byte_tokenizer() if family.causal else wordpiece_tokenizer(), sentences, **options)
    kept = tuple({**arguments(one, family), "annotations": one["annotations"]} for one in made)
    return type(made)(kept, made.skipped)


def one_hot_maps(sentences: list[Sentence], tokens: int, groups: list[list[int]]) -> torch.Tensor:
    """[batch, 1, token, token]: the first token of each word attends to the first token of its head, others to token 0."""
    maps = torch.zeros(len(sentences), 1, tokens, tokens, dtype=torch.float64)
    for example, s in enumerate(sentences):
        first = [groups[example].index(word) for word in range(len(s.words))]
        for token in range(tokens):
            word = groups[example][token]
            head = s.heads[word] if word >= 0 else 0
            maps[example, 0, token, first[head - 1] if head else 0] = 1
    return maps

"""What do heads know of syntax? Clark et al. (2019), §4 and §5.

    treebank = read_conllu("en_ewt-ud-dev.conllu")
    print(dependency_heads(model, align(tokenizer, treebank)).table())

`treebank` reads trees, `words` says which word each token is part of and how words attend to one another,
`dependencies` counts how often heads pick a word's syntactic head, and `table` says which are best.
"""

from .dependencies import DependencyAccumulator, DependencyHeads, dependency_heads
from .table import RelationScore, RelationTable
from .treebank import Sentence, Skip, Treebank, read_conllu, read_depparse, read_json
from .words import Aligned, AlignedBatches, align, word_attention

__all__ = [
    "Aligned",
    "AlignedBatches",
    "DependencyAccumulator",
    "DependencyHeads",
    "RelationScore",
    "RelationTable",
    "Sentence",
    "Skip",
    "Treebank",
    "align",
    "dependency_heads",
    "read_conllu",
    "read_depparse",
    "read_json",
    "word_attention",
]

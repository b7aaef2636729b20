"""How far does attention follow the structure of code?

CAT-probing (Chen et al. 2022), and past it.

    snippets = read_code("python.jsonl")
    batches = align_code(tokenizer, snippets)
    leaf_distances(snippets[0])

`snippets` reads code, `trees` parses it by the `grammars` of tree-sitter, `distances` says how far apart the leaves of
a tree are, and `aligning` which leaf each token is part of. `leaf_maps` makes attention of tokens that of leaves,
`masks` counts where it is high and the leaves are near, `filtering` keeps the leaves of some types, `scores` says what
the counts of all snippets come to, and `nulls` what attention scores that knows nothing of structure. `relations` looks
at what belongs together: blocks, arguments, brackets, variables and their definitions.
"""

from .aligning import AlignedCode, CodeBatches, align_code
from .comparing import CatComparison
from .distances import graph_edges, leaf_distances
from .filtering import TypeCounts, leaves_of, published_types, rank_sum, restricted
from .leaf_maps import LeafMaps, token_map, visible
from .masks import CatCounts, HighAttention, attention_mask, cat_counts, distance_mask, overlap
from .nulls import OffsetMeans, positional, shuffled
from .probing import cat_scores, leaf_types
from .relations import RelationSums, related, relation_scores
from .resampling import cat_mean
from .scores import CatGain, CatScores, scores_of
from .snippets import Snippets, read_code
from .trees import CodeTree, parse_code
from .typed import LeafTypes

__all__ = [
    "AlignedCode",
    "CatComparison",
    "CatCounts",
    "CatGain",
    "CatScores",
    "CodeBatches",
    "CodeTree",
    "HighAttention",
    "LeafMaps",
    "LeafTypes",
    "OffsetMeans",
    "RelationSums",
    "Snippets",
    "TypeCounts",
    "align_code",
    "attention_mask",
    "cat_counts",
    "cat_mean",
    "cat_scores",
    "distance_mask",
    "graph_edges",
    "leaf_distances",
    "leaf_types",
    "leaves_of",
    "overlap",
    "parse_code",
    "positional",
    "published_types",
    "rank_sum",
    "read_code",
    "related",
    "relation_scores",
    "restricted",
    "scores_of",
    "shuffled",
    "token_map",
    "visible",
]

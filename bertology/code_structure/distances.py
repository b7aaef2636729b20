"""How far apart are any two leaves of a tree?"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..errors import need
from .trees import CodeTree

BLOCK = 512
"""From how many leaves at once distances are measured: what bounds the memory."""
LEVELS = 64
"""Farther than this the spread of bits, which pays for every step, gives way to a search from each leaf."""


def graph_edges(tree: CodeTree, *, upgraded: bool = True) -> NDArray[np.int64]:
    """[edge, end]: the pairs of nodes that are joined, each pair once (Chen et al. 2022).

    Every node is joined to its parent. In the upgraded tree (U-AST) adjacent leaves are joined, too, and so are each
    occurrence of an identifier and the next: leaves of equal text, and of exactly the type `identifier`.

    Args:
        tree: what `parse_code` makes.
        upgraded: whether to join leaves; without it the edges are those of the tree alone.

    Nodes have the numbers that they have in the tree; neither end of an edge comes first.

        >>> from bertology.code_structure import parse_code
        >>> tree = parse_code("x = x", "python")
        >>> tree.node_types
        ('module', 'expression_statement', 'assignment', 'identifier', '=', 'identifier')
        >>> graph_edges(tree).tolist()
        [[0, 1], [1, 2], [2, 3], [2, 4], [2, 5], [3, 4], [4, 5], [3, 5]]
    """
    nodes = np.arange(1, len(tree.parents))
    edges = [np.stack([tree.parents[1:], nodes], axis=1)]
    if upgraded:
        edges += [np.stack([tree.leaf_nodes[:-1], tree.leaf_nodes[1:]], axis=1), tree.leaf_nodes[_recurring(tree)]]
    return np.concatenate(edges).astype(np.int64)


def leaf_distances(tree: CodeTree, *, upgraded: bool = True) -> NDArray[np.int16 | np.int32]:
    """[leaf, leaf]: how many edges the shortest path between two leaves has, as small integers.

    Exact. A tree of thousands of leaves takes tenths of a second, and little memory beside the distances themselves.

    Args:
        tree: what `parse_code` makes.
        upgraded: whether paths may take the edges between leaves of the upgraded tree (U-AST), or those of the tree
            alone.

    Raises `MissingExtra` without SciPy, which expressions that are nested very deep need (extra `code`).

        >>> from bertology.code_structure import parse_code
        >>> leaf_distances(parse_code("x = x + 1", "python"))
        array([[0, 1, 1, 2, 3],
               [1, 0, 1, 2, 3],
               [1, 1, 0, 1, 2],
               [2, 2, 1, 0, 1],
               [3, 3, 2, 1, 0]], dtype=int16)
    """
    many = len(tree)
    found = np.zeros((many, many), dtype=np.int16 if many <= np.iinfo(np.int16).max else np.int32)
    edges = graph_edges(tree, upgraded=upgraded)
    for start in range(0, many if len(edges) else 0, BLOCK):
        sources = slice(start, start + BLOCK)
        if not _spread(edges, tree.leaf_nodes, sources, found[:, sources]):
            found[:, sources] = _searched(edges, tree.leaf_nodes, sources).T
    return found


def _recurring(tree: CodeTree) -> NDArray[np.int64]:
    """[pair, end]: each occurrence of an identifier and the next, but for neighbours, which are joined anyway."""
    latest: dict[str, int] = {}
    pairs = []
    for leaf in np.flatnonzero(tree.identifiers).tolist():
        start, end = tree.spans[leaf]
        before = latest.get(text := tree.code[start:end], leaf)
        latest[text] = leaf
        if before + 1 < leaf:
            pairs.append((before, leaf))
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


def _spread(
    edges: NDArray[np.int64], leaves: NDArray[np.int32], sources: slice, out: NDArray[np.int16 | np.int32]
) -> bool:
    """Count into `out [leaf, source]` the steps after which each leaf is reached; or give up, and tell so.

    Breadth first from all sources at once: a node has a bit for each source, and at every step takes over the bits of
    its neighbours. (Measured on real functions, six times as fast as SciPy's search from one leaf after another.)
    """
    both = np.concatenate([edges, edges[:, ::-1]])
    both = both[np.argsort(both[:, 0], kind="stable")]
    neighbours, first = both[:, 1], np.flatnonzero(np.diff(both[:, 0], prepend=-1))
    bits = np.zeros((len(first), -(-out.shape[1] // 64) * 64), dtype=bool)
    bits[leaves[sources], np.arange(out.shape[1])] = True
    reached = np.packbits(bits, axis=1).view(np.uint64)
    for _ in range(LEVELS):
        far = np.unpackbits(~reached[leaves].view(np.uint8), axis=1, count=out.shape[1])
        if not far.any():
            return True
        out += far
        reached |= np.bitwise_or.reduceat(reached[neighbours], first, axis=0)
    return False


def _searched(edges: NDArray[np.int64], leaves: NDArray[np.int32], sources: slice) -> NDArray[np.float64]:
    """[source, leaf]: the distances by a search from each leaf."""
    sparse, csgraph = need("scipy.sparse", extra="code"), need("scipy.sparse.csgraph", extra="code")
    nodes = int(edges.max()) + 1
    graph = sparse.csr_matrix((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(nodes, nodes))
    found = csgraph.dijkstra(graph, directed=False, unweighted=True, indices=leaves[sources])
    return found[:, leaves]

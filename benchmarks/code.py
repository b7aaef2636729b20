"""How fast is CAT-probing, compared with networkx and loops over pairs of leaves?

    python benchmarks/code.py                                  # 1,200 functions, every 40th also in the slow way
    python benchmarks/code.py --functions 40 --every 20 --whole 0

The small BERT (6 layers of 12 heads) reads 300 functions in each of Go, Java, JavaScript and Python (CodeSearchNet) if
their files are beside the checkout, else the functions of this library. There are two ways from code to the scores of
all layers and heads (Chen et al. 2022), on the same attention maps; neither includes the forward pass of the model.
- slow: as in the paper's code. The nodes of the tree from tree-sitter are added one by one to a networkx graph, which
  finds the shortest paths between all pairs. Then there are loops over pairs of leaves and their tokens for each map,
  and over pairs for each score. The loops run over NumPy arrays, and also over lists of lists, which is the fastest
  way to write them.
- ours: `parse_code`, `leaf_distances`, and from `token_map` to `overlap` on all maps of a snippet at once.
The slow way runs on some functions only. The ratio is that on these functions, whose scores are compared; the time for
all functions is estimated from the seconds per function. Finally, `cat_scores` with the passes of the model and all
null models is timed, and the passes of the model alone.
"""

from __future__ import annotations

import ast
import importlib
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import networkx
import numpy as np
import torch
from _timing import Row, at_least, parser_of, table, timed
from torch import Tensor
from tqdm import tqdm
from transformers import AutoModel, AutoTokenizer

from bertology.code_structure import (
    CodeTree,
    align_code,
    attention_mask,
    cat_scores,
    distance_mask,
    leaf_distances,
    overlap,
    parse_code,
    token_map,
)
from bertology.demo import minilm_path

ROOT = Path(__file__).parents[1]
FOLDER = ROOT.parent / "shared" / "data" / "code"
STAGES = ("trees", "distances", "scores")


def slow_tree(code: str, language: str) -> tuple[networkx.Graph, list[int]]:
    """The upgraded tree as a graph, and which of its nodes are leaves."""
    sitter, grammar = (importlib.import_module(name) for name in ("tree_sitter", f"tree_sitter_{language}"))
    root = sitter.Parser(sitter.Language(grammar.language())).parse(code.encode()).root_node
    graph, leaves = networkx.Graph(), []

    def walk(node: Any) -> None:
        graph.add_node(node.id)
        if not node.children and node.text:
            leaves.append(node)
        for child in node.children:
            if "comment" not in child.type:
                graph.add_edge(node.id, child.id)
                walk(child)

    walk(root)
    graph.add_edges_from((left.id, right.id) for left, right in itertools.pairwise(leaves))
    latest: dict[bytes, int] = {}
    for leaf in leaves:
        if leaf.type == "identifier":
            if leaf.text in latest:
                graph.add_edge(latest[leaf.text], leaf.id)
            latest[leaf.text] = leaf.id
    return graph, [leaf.id for leaf in leaves]


def slow_distances(graph: networkx.Graph, leaves: list[int]) -> list[list[int]]:
    paths = dict(networkx.all_pairs_shortest_path_length(graph))
    return [[paths[left][right] for right in leaves] for left in leaves]


def slow_score(weights: Any, tokens: list[list[int]], distance: Any) -> float:
    """Of one map, [token][token]; `tokens` are those of each leaf that has any."""
    values: Any = []
    for queries in tokens:
        row = []
        for keys in tokens:
            total = 0.0
            for query in queries:
                line = weights[query]
                for key in keys:
                    total += line[key]
            row.append(total / (len(queries) * len(keys)))
        values.append(row)
    high, near = np.quantile(values, 0.75), np.quantile(distance, 0.25)
    if isinstance(weights, np.ndarray):
        values = np.array(values)
    else:
        high, near = float(high), float(near)
    matched = either = 0
    for row, steps in zip(values, distance, strict=True):
        for value, step in zip(row, steps, strict=True):
            matched += value > high and step < near
            either += value > high or step < near
    return matched / either if either else float("nan")


def slow_scores(maps: Tensor, leaf_of: tuple[int, ...], distance: list[list[int]], form: str) -> np.ndarray:
    """[layer, head + 1], as `our_scores`; looping over "arrays" or "lists"."""
    tokens: dict[int, list[int]] = {}
    for place, leaf in enumerate(leaf_of):
        if leaf >= 0:
            tokens.setdefault(leaf, []).append(place)
    kept = sorted(tokens)
    places = [tokens[leaf] for leaf in kept]
    some: Any = [[distance[i][j] for j in kept] for i in kept]
    some = np.array(some) if form == "arrays" else some
    rows = [[layer.mean(0), *layer] for layer in maps]
    found = [[slow_score(x.numpy() if form == "arrays" else x.tolist(), places, some) for x in row] for row in rows]
    return np.array(found)


def our_scores(maps: Tensor, leaf_of: tuple[int, ...], distance: np.ndarray) -> np.ndarray:
    """[layer, head + 1] of maps [layer, head, token, token]: in front, the mean over heads."""
    values, kept = token_map(maps, leaf_of, len(distance))
    values = torch.cat([values.mean(1, keepdim=True), values], dim=1)
    near = distance_mask(torch.from_numpy(distance)[kept][:, kept])
    matched, either = overlap(attention_mask(values), near)
    return (matched.double() / either).numpy()


def read(functions: int) -> list[tuple[str, str]]:
    """Code and language, so many functions of each."""
    if FOLDER.is_dir():
        lines = [line for file in sorted(FOLDER.glob("*.jsonl")) for line in file.read_text().splitlines()[:functions]]
        return [(one["code"], one["language"]) for one in map(json.loads, lines)]
    found = []
    for file in sorted((ROOT / "bertology").rglob("*.py")):
        text = file.read_text()
        functions_in = (node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef))
        found += [(ast.get_source_segment(text, node) or "", "python") for node in functions_in]
    return found[:functions]


def parse(code: str, language: str) -> CodeTree:
    return parse_code(code, language, broken="keep")


def passes(model: Any, batches: Any) -> Iterator[tuple[Any, Tensor]]:
    """Of each snippet its tokens' leaves, and its maps [layer, head, token, token]."""
    for batch in tqdm(batches, desc="batches"):
        found = torch.stack(plain(model, batch, output_attentions=True).attentions)
        for example, one in enumerate(batch["annotations"]):
            many = int(batch["attention_mask"][example].sum())
            yield one, found[:, example, :, :many, :many].contiguous()


@torch.no_grad()
def plain(model: Any, batch: dict[str, Any], **options: Any) -> Any:
    return model(**{name: x for name, x in batch.items() if isinstance(x, Tensor)}, **options)


def compare(sources: list[tuple[str, str]], every: int, batch_size: int) -> None:
    parsed = [timed(parse, *source) for source in tqdm(sources, desc="trees")]
    tokenizer = AutoTokenizer.from_pretrained(minilm_path())
    batches = align_code(tokenizer, [tree for _, tree in parsed], batch_size=batch_size)
    model = AutoModel.from_pretrained(minilm_path(), attn_implementation="eager").eval()
    print(f"{len(sources)} functions, {batches}", flush=True)
    ours = []
    both: list[tuple[list[float], list[float], list[float]]] = []
    worst = off = 0.0
    for one, maps in passes(model, batches):
        leaf_of = one.leaf_of[: maps.shape[-1]]
        seconds, distance = timed(leaf_distances, one.tree)
        scoring, found = timed(our_scores, maps, leaf_of, distance)
        ours.append([parsed[one.number][0], seconds, scoring])
        if one.number % every:
            continue
        growing, (graph, leaves) = timed(slow_tree, *sources[one.number])
        walking, steps = timed(slow_distances, graph, leaves)
        slow = []
        exact = our_scores(maps.double(), leaf_of, distance)
        assert np.array_equal(distance, steps), one.tree.name
        for form in ("lists", "arrays"):
            seconds, expected = timed(slow_scores, maps.double(), leaf_of, steps, form)
            slow.append([growing, walking, seconds])
            np.testing.assert_array_equal(np.isnan(exact), np.isnan(expected))
            worst = max(worst, np.nanmax(abs(exact - expected), initial=0))
            off = max(off, np.nanmax(abs(found - expected), initial=0))
        both.append((ours[-1], slow[0], slow[1]))
    print(f"{len(both)} functions both ways; scores differ by {worst:.0e} at most ({off:.0e} on maps in float32)")
    assert worst < 1e-6
    tell(np.array(ours), np.array(both))


def tell(ours: np.ndarray, both: np.ndarray) -> None:
    """Seconds [function, stage] of all functions; and of those that went both ways, [function, way, stage]."""
    of_all, some = ours.sum(0), both.sum(0)
    guessed = some / len(both) * len(ours)  # by their seconds a function
    rows: list[Row] = []
    for name, at in (*((stage, [n]) for n, stage in enumerate(STAGES)), ("together", [0, 1, 2])):
        fast, lists, arrays = (float(way[at].sum()) for way in some)
        rows.append({
            "stage": name, "ours, ms": round(1000 * fast, 1), "lists / ours": round(lists / fast, 1),
            "arrays / ours": round(arrays / fast, 1), "all, seconds": round(float(of_all[at].sum()), 1),
            "all by arrays": round(float(guessed[1, at].sum())),
        })  # fmt: skip
    note = (
        f"{len(both)} functions both ways, and all {len(ours)} by ours; the seconds of all by loops over arrays are "
        "extrapolated."
    )
    table("Trees and CAT-scores", rows, [at_least("together", "arrays / ours", 40)], note=note)


def whole(sources: list[tuple[str, str]], batch_size: int) -> None:
    """`cat_scores` with the model's passes, of all languages together."""
    trees = [parse(*one) for one in sources]
    batches = align_code(AutoTokenizer.from_pretrained(minilm_path()), trees, batch_size=batch_size)
    model = AutoModel.from_pretrained(minilm_path()).eval()
    bare, _ = timed(lambda: [plain(model, batch) for batch in batches])
    seconds, found = timed(lambda: cat_scores(model, batches, types="all", progress="cat_scores"))
    print(f"cat_scores of {len(found.names)} functions, of every layer and head, with {', '.join(found.kinds[1:])}")
    print(f"  {seconds:.1f} s (the model alone: {bare:.1f} s)")


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--functions", type=int, default=300, help="of each language")
    parser.add_argument("--every", type=int, default=40, help="the slow way runs on every n-th function")
    parser.add_argument("--whole", type=int, default=200, help="the number of functions for cat_scores; 0 for none")
    parser.add_argument("--batch_size", type=int, default=16)
    args = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, numpy {np.__version__}")
    sources = read(args.functions)
    compare(sources, args.every, args.batch_size)
    if args.whole:
        whole(sources[:: max(1, len(sources) // args.whole)], args.batch_size)


if __name__ == "__main__":
    main()

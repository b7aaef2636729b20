"""The rooms of the package: who may import whom, also inside functions and for types alone; no circles."""

import ast
from pathlib import Path

import pytest

import bertology

pytestmark = pytest.mark.any_transformers
ROOT = Path(bertology.__file__).parent
ORDER = [
    {"type_hints"},
    {"errors"},
    {"anatomy"},
    {"results"},
    {"data"},
    {"corpora"},
    {"tap"},
    {"streaming"},
    {"measures"},
    {"importance"},
    {"pruning"},
    {"syntax", "edge_probing", "code_structure"},
    {"plot", "demo", "losses", "metrics", "pictures"},
    {"cli"},
    {"__init__", "__main__"},
]
FLOOR = {room: floor for floor, rooms in enumerate(ORDER) for room in rooms}


def modules(root):
    """{module: file}, packages by their own name."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name, path, known):
    """The modules of the package that a file imports, wherever in the file."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in known}
        if not isinstance(node, ast.ImportFrom):
            continue
        base = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1]) if node.level else ""
        source = ".".join(part for part in (base, node.module) if part)
        for alias in node.names:
            whole = f"{source}.{alias.name}"
            found |= {whole} if whole in known else {source} & known
    return found


def room(name):
    """The folder, or the file at the top."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def graph(root=ROOT):
    known = modules(root)
    return {name: imports(name, path, set(known)) for name, path in known.items()}


def wrong_arrows(arrows):
    return [
        f"{source} imports {target}"
        for source, targets in arrows.items()
        for target in sorted(targets)
        if room(target) != room(source) and FLOOR[room(target)] >= FLOOR[room(source)]
    ]


def circle(arrows):
    """The modules of a circle of imports, or none."""
    done, path = set(), []

    def visit(name):
        if name in path:
            return path[path.index(name) :]
        if name in done:
            return []
        path.append(name)
        found = next((one for one in map(visit, sorted(arrows[name])) if one), [])
        path.pop()
        done.add(name)
        return found

    return next((one for one in map(visit, sorted(arrows)) if one), [])


def test_every_folder_is_a_room_with_a_place():
    assert {room(name) for name in modules(ROOT)} == set(FLOOR)
    assert all((path.parent / "__init__.py").is_file() for path in ROOT.rglob("*.py"))


def test_rooms_import_only_rooms_below():
    assert wrong_arrows(graph()) == []


def test_there_are_no_circles():
    assert circle(graph()) == []


def test_no_module_of_the_package_is_imported_inside_a_function():
    known = set(modules(ROOT))
    for name, path in modules(ROOT).items():
        tree = ast.parse(path.read_text())
        top = {node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)}
        inner = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node not in top]
        lazy = [ast.unparse(node) for node in inner if node.level or (node.module or "") in known]
        assert lazy == [], f"{name} imports inside a function or for types alone: {lazy}"


def test_the_tests_of_rooms_can_fail(tmp_path):
    package = tmp_path / "bertology"
    for folder in ("anatomy", "tap"):
        (package / folder).mkdir(parents=True)
        (package / folder / "__init__.py").write_text("")
    (package / "__init__.py").write_text("")
    (package / "anatomy" / "names.py").write_text("def f():\n    from ..tap.hooks import g\n")
    (package / "tap" / "hooks.py").write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ..anatomy import names\n"
    )
    arrows = graph(package)
    assert wrong_arrows(arrows) == ["bertology.anatomy.names imports bertology.tap.hooks"]
    assert circle(arrows) == ["bertology.anatomy.names", "bertology.tap.hooks"]

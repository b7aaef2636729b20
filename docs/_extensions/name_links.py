"""Code in a sentence that names something public is a link to its entry in the reference."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.inventory import InventoryFile

NAME = re.compile(r"(?:bertology\.)?([\w.]+)(?:\(.*\))?", re.DOTALL)
# These are also words of the language, of torch or of other code on the pages.
TOO_COMMON = {"axes", "stat", "score", "plot", "Result", "Head"}
SKIPPED = (nodes.reference, nodes.title, addnodes.desc_signature, addnodes.pending_xref)


def entries(app: Sphinx) -> dict[str, str]:
    """{full name: address from the root of the site}, of this build or of the English site that it stands in."""
    if app.config.python_inventory:
        kinds = InventoryFile.loads(
            Path(app.config.python_inventory).read_bytes(), uri=".."
        ).data
        python = [items for kind, items in kinds.items() if kind.startswith("py:")]
        return {name: item.uri for items in python for name, item in items.items()}
    found = app.env.domains["py"].objects
    return {
        name: f"{app.builder.get_target_uri(one.docname)}#{one.node_id}"
        for name, one in found.items()
    }


def short_names(full: dict[str, str]) -> dict[str, str]:
    """Names as sentences have them: without `bertology.`, and without the room or class where that is unambiguous."""
    short: dict[str, set[str]] = {}
    for name in full:
        parts = name.split(".")[1:]
        for start in range(len(parts)):
            end = ".".join(parts[start:])
            is_plain_word = "." not in end and "_" not in end and end.islower()
            # A plain word stands for a function only where that is what `import bertology` gives.
            if not is_plain_word or len(parts) == 1:
                short.setdefault(end, set()).add(name)
    found = {
        end: min(names, key=len)
        for end, names in short.items()
        if len(names) == 1 or end in names
    }
    found |= {name.partition(".")[2]: name for name in full if "." in name}
    return {end: name for end, name in found.items() if end not in TOO_COMMON}


class LinkNames(SphinxPostTransform):
    """Wrap each piece of code that is such a name in a link."""

    default_priority = 700

    def run(self, **kwargs: Any) -> None:
        """Look at the code of one page."""
        full = entries(self.app)
        short = short_names(full)
        here = self.app.builder.get_target_uri(self.env.docname)
        for code in list(self.document.findall(nodes.literal)):
            found = NAME.fullmatch(code.astext())
            if (
                found is None
                or found[1] not in short
                or self.is_skipped(code, short[found[1]])
            ):
                continue
            target = full[short[found[1]]]
            address = posixpath.relpath(target, posixpath.dirname(here) or ".")
            link = nodes.reference(
                "", "", refuri=address, internal=True, reftitle=short[found[1]]
            )
            code.replace_self(link)
            link += code

    def is_skipped(self, code: nodes.Node, name: str) -> bool:
        """Whether it is in a title or a link already, or in the entry of what it names."""
        parent = code.parent
        while parent is not None:
            if isinstance(parent, SKIPPED):
                return True
            if isinstance(parent, addnodes.desc):
                signature = parent.next_node(addnodes.desc_signature)
                if signature is not None and name in signature.get("ids", ()):
                    return True
            parent = parent.parent
        return False


def setup(app: Sphinx) -> dict[str, bool]:
    """Add the transform."""
    app.add_config_value("python_inventory", "", "env")
    app.add_post_transform(LinkNames)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

"""Bicep files, as far as a parser goes: what they declare, and texts that they put together."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import tree_sitter_bicep
from tree_sitter import Language, Node, Parser


def parse(path: Path) -> Node:
    """Raises `ValueError` where it is not Bicep."""
    tree = Parser(Language(tree_sitter_bicep.language())).parse(path.read_bytes())
    for node in walk(tree.root_node):
        if node.is_error or node.is_missing:
            raise ValueError(f"{path.name}:{node.start_point.row + 1}: not Bicep")
    return tree.root_node


def walk(node: Node) -> Iterator[Node]:
    yield node
    for child in node.children:
        yield from walk(child)


def text(node: Node) -> str:
    assert node.text is not None
    return node.text.decode()


def declared(root: Node, kind: str) -> set[str]:
    """Names of all `param`, `var`, `resource` or `output` declarations."""
    types = {"param": "parameter_declaration", "var": "variable_declaration"}
    nodes = [node for node in root.children if node.type == types.get(kind, f"{kind}_declaration")]
    return {match[1] for node in nodes if (match := re.search(rf"\b{kind} (\w+)", text(node)))}

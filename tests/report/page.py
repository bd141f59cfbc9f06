"""A page as a tree that tests can ask: every element with its attributes and text."""

from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"meta", "link", "input", "line", "img", "br"}


@dataclass
class Node:
    tag: str
    attributes: dict[str, str]
    parts: list["str | Node"] = field(default_factory=list)

    @property
    def text(self) -> str:
        joined = "".join(part if isinstance(part, str) else part.text for part in self.parts)
        return " ".join(joined.split())

    def all(self, tag: str, **wanted: str) -> list["Node"]:
        """Every element of this kind below, with these attributes (class_ for class, data_x for data-x)."""
        asked = {name.rstrip("_").replace("_", "-"): value for name, value in wanted.items()}
        return [
            node
            for child in self.parts
            if isinstance(child, Node)
            for node in ([child] if child.tag == tag and asked.items() <= child.attributes.items() else [])
            + child.all(tag, **wanted)
        ]

    def one(self, tag: str, **wanted: str) -> "Node":
        (found,) = self.all(tag, **wanted)
        return found


class _Tree(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.root = Node("root", {})
        self.open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        node = Node(tag, {name: value or "" for name, value in attrs})
        self.open[-1].parts.append(node)
        if tag not in VOID:
            self.open.append(node)

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID:
            return
        assert self.open[-1].tag == tag, f"</{tag}> closes <{self.open[-1].tag}>"
        self.open.pop()

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open[-1].parts.append(Node(tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.open[-1].parts.append(data)


def parse(text: str) -> Node:
    """The tree of a page; every element must be closed where it was opened."""
    tree = _Tree()
    tree.feed(text)
    tree.close()
    assert tree.open == [tree.root], f"never closed: {[node.tag for node in tree.open[1:]]}"
    return tree.root

"""Which client a node of a federation is."""

import logging
from collections.abc import Iterable

LOGGER = logging.getLogger("flwr")


class Clients:
    """Which client a node is, once that is settled.

    It is the number it signs with. A node that signs nothing has its place among the nodes, sorted by id, that were
    there before the first round, or where that is taken the lowest number that is free.
    """

    def __init__(self, nodes: Iterable[int], most: int) -> None:
        self._order = {node: place for place, node in enumerate(sorted(nodes))}
        self._most = most
        self._number: dict[int, int] = {}
        self.nodes: dict[int, list[int]] = {}
        """By client, the nodes that were it, latest last."""

    @property
    def count(self) -> int:
        """How many clients are known."""
        return max([len(self._order), *(number + 1 for number in self._number.values())])

    def number(self, node: int) -> int | None:
        """The client that a node is; None while that is not settled."""
        return self._number.get(node)

    def claim(self, node: int, signed: int, present: Iterable[int]) -> None:
        """Believe a node's signature, unless it is no number or another node that is present has signed with it."""
        if not 0 <= signed < self._most:
            LOGGER.warning(
                "FedSiege: node %d signs as client %d; expected 0 to %d (fedsiege-clients says how many can come)",
                node,
                signed,
                self._most - 1,
            )
            return
        holder = next((other for other in present if other != node and self._number.get(other) == signed), None)
        if holder is not None:
            LOGGER.warning("FedSiege: node %d signs as client %d, which is node %d", node, signed, holder)
        elif self._number.get(node) != signed:
            self._take(node, signed)

    def settle(self, node: int) -> int:
        """The client that a node is; one that has signed nothing gets a number now."""
        if node not in self._number:
            place, taken = self._order.get(node, len(self._order)), set(self._number.values())
            self._take(node, place if place not in taken else min(set(range(len(taken) + 1)) - taken))
        return self._number[node]

    def _take(self, node: int, number: int) -> None:
        # A site that came back under another node's id takes its number with it.
        self._number = {other: kept for other, kept in self._number.items() if kept != number}
        self._number[node] = number
        self.nodes.setdefault(number, []).append(node)

"""How a site's reply says which client it is: a record beside the app's own, which is taken off again."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flwr.app import ConfigRecord, Context, Message

KEY = "fedsiege.site"
"""The record's name in a message's content."""


@dataclass(frozen=True, slots=True)
class Signature:
    """Who answered: `client` is the node's `partition-id`; `declared` are the privacy mods it says it ran.

    Each declared mod is a component as a config names it, `{name: ..., field: ...}`.
    """

    client: int
    declared: tuple[Mapping[str, Any], ...] = ()


def sign(reply: Message, context: Context, declared: Sequence[Mapping[str, Any]] = ()) -> None:
    """Put a site's signature into its reply; a node without `partition-id` in its node-config signs nothing."""
    number = context.node_config.get("partition-id")
    if isinstance(number, int) and reply.has_content():
        reply.content[KEY] = ConfigRecord({"client": number, "declared": json.dumps(list(declared))})


def unsign(reply: Message) -> Signature | None:
    """Take the signature out of a reply, so that the app sees its own records alone; None where there is none."""
    if not reply.has_content() or KEY not in reply.content:
        return None
    record = reply.content[KEY]
    del reply.content[KEY]
    try:
        declared = json.loads(str(record["declared"]))
        return Signature(int(str(record["client"])), tuple(declared))
    except (KeyError, TypeError, ValueError, RecursionError):
        return None

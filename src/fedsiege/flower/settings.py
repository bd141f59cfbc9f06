"""What a tap or a mod is told: keys `fedsiege-...` of the node, then of its environment, then of the run.

What a site says of itself goes first, whichever way it says it: whoever submits the run does not change that.
"""

import os

from flwr.app import Context

from fedsiege.errors import InputError

Setting = str | int | float | bool


def setting(context: Context, name: str, default: Setting = "") -> Setting:
    """The value of `fedsiege-<name>`: the node's, else $FEDSIEGE_<NAME>, else the run's, else the default.

    An empty text counts as nothing: a key may stand in pyproject.toml only to be overridden by `--run-config`.
    """
    key = f"fedsiege-{name}"
    for said in (context.node_config.get(key), os.environ.get(_variable(key)), context.run_config.get(key)):
        if said is not None and said != "":
            return said
    return default


def whole(context: Context, name: str, default: int, least: int) -> int:
    """A whole number of at least `least`; InputError for anything else."""
    said = setting(context, name, default)
    try:
        if isinstance(said, bool) or int(said) != float(said) or int(said) < least:
            raise ValueError
    except (ValueError, OverflowError):
        raise InputError(f"fedsiege-{name}: got {said!r}; expected a whole number from {least}") from None
    return int(said)


def _variable(key: str) -> str:
    return key.replace("-", "_").upper()

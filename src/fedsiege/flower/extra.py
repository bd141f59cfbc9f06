"""Whether Flower can be used here, and one clear message where it cannot."""

from collections.abc import Iterator
from contextlib import contextmanager

from fedsiege.errors import InputError


@contextmanager
def checked() -> Iterator[None]:
    """InputError where what is imported within is missing because the extra is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in {"flwr", "ray"}:
            raise
        raise InputError(
            f"engine: flower needs {error.name}, which is not installed; expected it: pip install fedsiege[flower]"
        ) from None

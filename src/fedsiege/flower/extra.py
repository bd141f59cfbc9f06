"""Whether Flower can be used here, and one clear message where it cannot."""

import importlib.util

from fedsiege.errors import InputError


def require(*packages: str) -> None:
    """InputError where a package of the extra `flower` is not installed."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise InputError(
                f"engine: flower needs {package}, which is not installed; expected it: pip install fedsiege[flower]"
            )

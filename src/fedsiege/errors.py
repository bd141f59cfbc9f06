"""What can go wrong, and the exit code that says so."""


class FedSiegeError(Exception):
    """A failure that has one clear message; the command line exits with `exit_code`."""

    exit_code = 1


class InputError(FedSiegeError):
    """Bad input: the message names file, field, value and what was expected (exit code 2)."""

    exit_code = 2


class ThreatModelError(InputError):
    """An attack or rule asked for more than its adversary may see."""


class TrainingDivergedError(FedSiegeError):
    """A model became non-finite in training; the checkpoint before it is kept."""

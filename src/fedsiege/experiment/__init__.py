"""The experiment: its config, its run, and its comparison with published figures."""

from fedsiege.experiment.config import Experiment, load
from fedsiege.experiment.reproduce import reproduce
from fedsiege.experiment.run import run

__all__ = ["Experiment", "load", "reproduce", "run"]

"""The experiment: its config, its run, a sweep over many, and the comparison with published figures."""

from fedsiege.experiment.config import Experiment, load
from fedsiege.experiment.reproduce import reproduce
from fedsiege.experiment.run import audit, run
from fedsiege.experiment.sweep import sweep

__all__ = ["Experiment", "audit", "load", "reproduce", "run", "sweep"]

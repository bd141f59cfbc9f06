"""Promised and delivered: whether a privacy mod that a client declared shows in what the server received.

A server cannot make a site run a mod, and can look at what comes. Each declared defence of the update is turned
into what it promises about an update (its length, its noise, its zeros, its levels), and each promise is held
against every received update by itself, with nobody's data and no model of training:

- a *length* promised by clipping alone, *zeros* and *levels* are bounds, which no honest update passes but by
  rounding;
- *noise* is promised by a distribution, so that an honest client passes a bound now and then. The chance that any
  honest client of the log is called broken is at most `alpha`, which is shared out evenly over all such tests, one
  for each promise in each received update (Bonferroni).

What arrives is the sum of a model and an update, rounded, less the model. That rounding is allowed for, coordinate
by coordinate: float32's, or float16's where the server's own model is written in it.

`kept` says that what was received is what the mod makes, and would hardly have come without it; it does not say who
made it. A client that takes the trouble to forge a length, noise or zeros delivers them. `cannot be told` says why.
"""

from fedsiege.promises.judgement import ALPHA, Verdict, check
from fedsiege.promises.terminal import verify

__all__ = ["ALPHA", "Verdict", "check", "verify"]

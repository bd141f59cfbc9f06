"""The Flower app that `flwr run` names: an experiment whose server is the ServerApp and whose clients are nodes.

What is run stands in the app's run-config:

- `config`: a shipped experiment's name; a YAML file, which lies in the app's folder (Flower brings it to every
  node) or at the same path on every machine; or a whole config as JSON;
- `set`: changes of it, `KEY=VALUE`, with semicolons between them;
- `out`: the run folder, on the SuperLink's machine; as in `fedsiege run` where it is left out;
- `resume`: whether to go on with the run in that folder.

A run that fails makes the ServerApp fail with one message. It ends in the exit code that `fedsiege run` has.
"""

import functools
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedsiege.attacks.poisoning.base import Scene
from fedsiege.errors import FedSiegeError, InputError
from fedsiege.experiment import run
from fedsiege.experiment.config import Experiment, load, validated
from fedsiege.federation.rounds import Engine, Federation
from fedsiege.federation.state import Models, Reply
from fedsiege.flower.client import client_app
from fedsiege.flower.engine import FlowerEngine
from fedsiege.flower.seat import digest
from fedsiege.records import Memory

SAID = "fedsiege: "
"""How the lines begin that an app says itself, among Flower's own."""


class RunFailedError(Exception):
    """A run that did not succeed; the text is the one message, with the exit code."""


@dataclass(frozen=True, slots=True)
class Announced:
    """An engine that says which round begins: bars do not show in a log."""

    engine: Engine

    def answers(
        self, federation: Federation, number: int, invited: list[int], models: Models, memory: Memory
    ) -> Iterator[Reply]:
        """The engine's answers, after a line for the log."""
        print(f"{SAID}round {number} of {federation.rounds}", flush=True)
        return self.engine.answers(federation, number, invited, models, memory)

    def poisoned(self, federation: Federation, scene: Scene) -> Iterator[Reply]:
        """The engine's."""
        return self.engine.poisoned(federation, scene)


def serve(grid: Grid, context: Context) -> None:
    """Run the experiment of a run-config with the nodes of a grid; RunFailedError where it fails."""
    try:
        asked = context.run_config
        experiment, out, resume = experiment_of(asked), str(asked.get("out", "")), asked.get("resume", False)
        if not isinstance(resume, bool):
            raise InputError(f"run-config: resume: got {resume!r}; expected true or false")
        engine = FlowerEngine(grid, experiment.engine, digest(experiment))
        done = run(
            experiment.model_dump(mode="json"),
            out or None,
            resume=resume,
            progress=False,
            engine=Announced(engine),
        )
    except FedSiegeError as error:
        failure = RunFailedError(f"{error} (exit code {error.exit_code})")
    else:
        print(f"{SAID}report: {(done.folder / 'report.html').absolute()}", flush=True)
        return
    print(f"{SAID}error: {failure}", file=sys.stderr, flush=True)
    raise failure


def experiment_of(asked: Mapping[str, object]) -> Experiment:
    """The experiment that a run-config asks for, on the engine `flower`; InputError where it asks for none."""
    config, changes = asked.get("config", ""), asked.get("set", "")
    if not isinstance(config, str) or not config.strip():
        raise InputError(f"run-config: config: got {config!r}; expected a shipped name, a YAML file or JSON")
    if not isinstance(changes, str):
        raise InputError(f"run-config: set: got {changes!r}; expected KEY=VALUE; KEY=VALUE")
    overrides = [change.strip() for change in changes.split(";") if change.strip()]
    return on_flower(load(_read(config), overrides))


def on_flower(experiment: Experiment) -> Experiment:
    """The same experiment, whose clients are Flower's."""
    raw = experiment.model_dump(mode="json")
    engine = {**experiment.engine.model_dump(mode="json"), "name": "flower"}
    return validated({**raw, "engine": engine}, "config")


def _read(config: str) -> str | Path | Mapping[str, object]:
    """A config as `load` takes it: a mapping, a file of the app's folder, or what is found by its name."""
    if config.lstrip().startswith("{"):
        try:
            found = json.loads(config)
        except ValueError as error:
            raise InputError(f"run-config: config: is no JSON ({error})") from None
        return dict(found)
    # Flower puts the app's folder, wherever it unpacked it, on the path of modules.
    places = (Path(entry) / config for entry in sys.path)
    return next((place for place in places if place.is_file()), config)


@functools.lru_cache(maxsize=1)
def _config_of(config: str, changes: str) -> str:
    return json.dumps(experiment_of({"config": config, "set": changes}).model_dump(mode="json"))


def configured(context: Context) -> str:
    """The config that a client carries out, with its defaults, as JSON: the run's own."""
    asked = context.run_config
    return _config_of(str(asked.get("config", "")), str(asked.get("set", "")))


server = ServerApp()
server.main()(serve)
client = client_app(configured)

"""The experiment: the config file's type, and how a file, a profile and overrides become one."""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_serializer,
)
from pydantic_core import ErrorDetails

from fedsiege.attacks.poisoning.campaign import Compromised
from fedsiege.data.candidates import CandidateSpec
from fedsiege.errors import InputError
from fedsiege.registry import nearest
from fedsiege.shipped import find, is_grid
from fedsiege.trace import Groups
from fedsiege.training import Training


def _component(value: Any) -> Any:
    if isinstance(value, str) or (isinstance(value, dict) and isinstance(value.get("name"), str)):
        return value
    raise ValueError("expected a name or {name: ..., field: ...}")


def _components(value: Any) -> Any:
    return value if value is None or isinstance(value, list) else _component(value)


def _clients(value: Any) -> Any:
    numbers = value if isinstance(value, list) else [value]
    if value == "all" or all(isinstance(one, int) and not isinstance(one, bool) for one in numbers):
        return value
    raise ValueError("expected all, a client's number or a list of numbers")


Spec = Annotated[str | dict[str, Any], BeforeValidator(_component)]
"""A component: its name, or `{name: ..., field: ...}`."""

FEDMIA_ATTACKS: list[Spec] = [
    "blackbox_loss",
    "grad_cosine",
    "grad_diff",
    "grad_norm",
    "loss_series",
    "avg_cosine",
    "fedmia_i",
    "fedmia_ii",
    "label_only",
]


NEUTRAL = frozenset(
    {
        *("name", "title", "description", "profile", "attacks", "shadows", "targets"),
        *("out", "device", "threads", "evaluate_every", "checkpoint_every", "trace", "cache", "engine"),
    }
)
"""Fields that decide neither the federation nor what it is asked: published figures stay comparable."""


class Strict(BaseModel):
    """A frozen part of a config in which every key is known."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class TraceSpec(Strict):
    """What is written down of a recorded round."""

    groups: Groups = "blocks"
    """Products are kept per `total`, per `blocks` of the model, or per parameter `tensors`."""
    logits: bool = False
    """Keep every client's logits for every candidate (large)."""
    tail: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of the trained parameters, the last ones, in which noise is looked for; null: the coalition's."""


class ShadowSpec(Strict):
    """The federations that an adversary trains itself; how many, its attacks say."""

    clients: Annotated[int, Field(ge=1)] | None = None
    """Clients of each; null: as many as the attacked federation has."""
    cache: str | None = None
    """Folder that keeps them for other runs; null: `$FEDSIEGE_CACHE/shadows`, else `~/.cache/fedsiege/shadows`."""


class EngineSpec(Strict):
    """What gets the clients trained; all but the name is about `flower`."""

    name: Literal["local", "flower"] = "local"
    """`local` trains them one after the other in this process; `flower` has Flower's clients do it."""
    patience: Annotated[float, Field(gt=0)] = 60.0
    """Seconds that round 1 waits at most until a client's node has come for every client."""
    timeout: Annotated[float, Field(gt=0)] | None = None
    """Seconds that a round waits for its answers; null: until each has come or its node is known to be gone."""
    staleness: Annotated[int, Field(ge=0)] = 0
    """A late answer is taken, with its age, up to so many rounds after it was asked for; 0: it is dropped."""
    in_flight: Annotated[int, Field(ge=1)] | None = None
    """Clients that are asked at the same time; null: all, and in a simulation four for each of its workers."""
    cpus: Annotated[int, Field(ge=1)] = 1
    """In a simulation, CPU cores of a worker; there are as many workers as the machine has room for."""
    gpus: Annotated[float, Field(ge=0)] = 0.0
    """In a simulation, the share of a GPU that a worker has."""


def _ascending(numbers: list[int]) -> list[int]:
    return sorted(set(numbers))


def _engine(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


class Published(Strict):
    """One published figure."""

    attack: str
    metric: Literal["auc", "tpr@0.1", "tpr@0.01", "tpr@0.001", "tpr@0.0001"]
    value: float
    spread: float | None = None
    """The published standard deviation."""


class Paper(Strict):
    """What a paper reports for this setting."""

    claim: str
    source: str
    table: str
    link: str
    figures: list[Published]


class BackdoorSpec(Strict):
    """A backdoor: what calls it, and what it answers with."""

    trigger: Spec = "pixel"
    """What an example shows that calls the backdoor."""
    target: int | str | None = None
    """The class, by number or name, that triggered examples shall get; a trigger sentence ends in its own."""
    test: Annotated[int, Field(ge=1)] | None = None
    """At most so many held-out examples with the trigger, drawn at random; null: all there are."""


class Experiment(Strict):
    """Everything that decides a run."""

    name: str = ""
    """Short name; the file's, when empty."""
    title: str = ""
    """Headline of the report."""
    description: str = ""
    """What the run is for, in a sentence or two."""
    data: Spec = "digits"
    """Where the examples come from."""
    partition: Spec = "iid"
    """How the training examples are dealt to clients."""
    model: Spec = "mlp"
    """A registered model, or the user's own `package.module:function`."""
    clients: Annotated[int, Field(ge=1)] = 10
    """Number of clients K."""
    examples_per_client: Annotated[int, Field(ge=1)] | None = None
    """At most this many examples a client, drawn at random."""
    rounds: Annotated[int, Field(ge=1)] = 50
    """Number of rounds."""
    seed: int = 0
    """Everything random is a function of it."""
    training: Training = Training()
    """How clients train."""
    participation: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the clients invited to a round."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the answers that get lost on their way to the server, at random."""
    delay: Annotated[int, Field(ge=0)] = 0
    """A client may answer from a model up to this many rounds old."""
    server_step: Annotated[float, Field(gt=0)] = 1.0
    """What the aggregate is multiplied with."""
    aggregator: Spec = "fedavg"
    """How the server combines updates."""
    defences: list[Spec] = []
    """Client-side defences, in order."""
    server_defences: list[Spec] = []
    """What the server does to a cohort before aggregation, in order."""
    coalition: Annotated[str | dict[str, Any] | list[Spec] | None, BeforeValidator(_components)] = None
    """Clients that defend together; a list where there are several coalitions."""
    adversary: Spec | None = None
    """What compromised clients do; null: all are honest."""
    compromised: Compromised = Compromised()
    """Which clients the adversary plays, and when they attack."""
    backdoor: BackdoorSpec | None = None
    """What the adversary plants, and what its success is measured on."""
    root: Annotated[int, Field(ge=0)] = 0
    """Held-out examples that are the server's own: no candidates, and not tested on."""
    start: str | None = None
    """A checkpoint, or a state dict in safetensors, whose model round 1 begins with; null: fresh weights."""
    pretrain_rounds: Annotated[int, Field(ge=0)] = 0
    """Honest rounds of plain FedAvg before round 1, kept in a cache: cells that share them train them once."""
    cache: str | None = None
    """Folder that keeps pretrained models; null: `$FEDSIEGE_CACHE/start`, else `~/.cache/fedsiege/start`."""
    secure_aggregation: bool = False
    """The server sees only the sum of the updates."""
    targets: Annotated[Literal["all"] | int | list[int], BeforeValidator(_clients)] = "all"
    """The clients whose members are looked for."""
    candidates: CandidateSpec = CandidateSpec()
    """The examples whose membership is tested."""
    validation: Annotated[int, Field(ge=0)] = 0
    """Held-out examples reserved for the choices of defences: no candidates, and not tested on."""
    attacks: list[Spec] = FEDMIA_ATTACKS
    """The membership attacks to score; an empty list: no membership is audited, and no evidence recorded."""
    shadows: ShadowSpec = ShadowSpec()
    """The federations that an adversary trains itself, for attacks that want some."""
    record_every: Annotated[int, Field(ge=1)] = 10
    """Rounds between recorded rounds; the last round is always recorded."""
    record_rounds: Annotated[list[Annotated[int, Field(ge=1)]], AfterValidator(_ascending)] | None = None
    """The recorded rounds by number, whatever record_every says; null: as it says."""
    evaluate_every: Annotated[int, Field(ge=1)] = 1
    """Rounds between measurements of the global model's accuracy; the last is always measured."""
    checkpoint_every: Annotated[int, Field(ge=1)] = 10
    """Rounds between checkpoints."""
    trace: TraceSpec = TraceSpec()
    """What a recorded round keeps."""
    updates: str | None = None
    """A log of updates that were recorded elsewhere: its rounds are audited, and nothing is trained."""
    engine: Annotated[EngineSpec, BeforeValidator(_engine)] = EngineSpec()
    """What gets the clients trained: `local`, `flower`, or `{name: flower, ...}`."""
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    """`auto` takes a GPU when there is one."""
    threads: Annotated[int, Field(ge=1)] | None = None
    """Threads of torch on the CPU; its own default when left out. Sums in another order change last digits."""
    out: str | None = None
    """Run folder; the command line's --out goes first."""
    paper: Paper | None = None
    """The published figures of this setting."""
    profile: str | None = None
    """Which of the profiles is applied."""
    profiles: dict[str, dict[str, Any]] = {}
    """Named sets of changes: `--set profile=small`."""
    changed: list[str] = []
    """The fields that a profile or overrides changed; filled in by the program."""

    @property
    def coalitions(self) -> list[Spec]:
        """The coalitions, however many there are."""
        if self.coalition is None:
            return []
        return self.coalition if isinstance(self.coalition, list) else [self.coalition]

    @property
    def oldest(self) -> int:
        """The age of the oldest model that an answer may be based on."""
        return self.delay + self.engine.staleness

    @field_serializer("engine")
    def _named(self, engine: EngineSpec) -> str | dict[str, Any]:
        """By its name alone, where all else is at its default."""
        fields = engine.model_dump(mode="json", exclude_defaults=True)
        return engine.name if fields.keys() <= {"name"} else {"name": engine.name, **fields}

    def recorded(self, number: int) -> bool:
        """Whether round `number` is recorded."""
        if not self.attacks:
            return False
        if self.record_rounds is None:
            return number % self.record_every == 0 or number == self.rounds
        place = bisect_left(self.record_rounds, number)
        return place < len(self.record_rounds) and self.record_rounds[place] == number

    def sure(self, number: int) -> tuple[int, ...]:
        """The compromised clients that are sure to be invited to round `number`; none where nobody attacks."""
        return () if self.adversary is None else self.compromised.sure(number, self.clients, self.rounds, self.seed)


def load(config: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> Experiment:
    """An experiment from a path, the name of a shipped experiment, or a mapping; overrides are `a.b=value`.

    A profile (`--set profile=small`) is applied before the other overrides. Raises InputError naming file, field,
    value and what was expected.
    """
    where, raw = ("config", dict(config)) if isinstance(config, Mapping) else read_mapping(find(config))
    if is_grid(raw):
        raise InputError(f"{where}: is a grid of experiments; expected a single one: use fedsiege sweep for it")
    if not isinstance(config, Mapping):
        raw.setdefault("name", Path(where).stem)
    return changed(raw, [parsed(text) for text in overrides], where)


class Change(NamedTuple):
    """A value for one field of a config, by its path; `said` is what a message calls the place it was asked for."""

    said: str
    path: list[str]
    value: Any


def changed(raw: Mapping[str, Any], changes: Sequence[Change], where: str) -> Experiment:
    """The experiment of `raw` after its profile, or the one that the changes name, and then the changes, in order.

    What the program wrote (it says what was changed) has its profile applied already.
    """
    named = [change.value for change in changes if change.path == ["profile"]]
    profile = named[-1] if named else None if "changed" in raw else raw.get("profile")
    made = dict(raw) if profile is None else _merged(raw, _profile(raw.get("profiles"), profile, where))
    for change in changes:
        _put(made, change)
    known = {key: field.default for key, field in Experiment.model_fields.items()}
    fields = [key for key in made if key not in NEUTRAL and made[key] != raw.get(key, known.get(key))]
    return validated({"changed": fields, **made}, where, changes)


def validated(raw: Mapping[str, Any], where: str, changes: Sequence[Change] = ()) -> Experiment:
    """The experiment these values describe; InputError with the first thing that is wrong with them.

    `changes` are those that the values went through: one asked for by --set may be what is wrong.
    """
    try:
        return Experiment.model_validate(dict(raw))
    except ValidationError as error:
        first = error.errors()[0]
        said = " (or --set)" if any(_concerns(change, _place(first)) for change in changes) else ""
        raise InputError(f"{where}{said}: {_fault(first)}") from None


def _concerns(change: Change, place: Sequence[int | str]) -> bool:
    """Whether --set asked for the field at this place, for a part of it, or for what it is a part of."""
    alike = (str(part) == asked for part, asked in zip(place, change.path, strict=False))
    return change.said.startswith("--set ") and all(alike)


def _place(error: ErrorDetails) -> tuple[int | str, ...]:
    """The path of the field that an error is about."""
    return tuple(part for part in error["loc"] if part not in ("str", "dict[str,any]"))


def _fault(error: ErrorDetails) -> str:
    """Field, value given and what was expected, as people say it."""
    place = _place(error)
    field = ".".join(map(str, place))
    if error["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        known = _fields_at(place[:-1])
        return f"{field}: unknown field{nearest(str(place[-1]), known)}; known: {', '.join(known)}"
    if error["type"] in ("missing", "missing_keyword_only_argument"):
        return f"{field}: missing; expected a value"
    if error["type"] in ("model_type", "dataclass_type"):
        return f"{field}: got {error['input']!r}; expected a mapping of fields to values"
    return f"{field}: got {error['input']!r}; {error['msg'].removeprefix('Value error, ')}"


def _profile(profiles: Any, name: Any, where: str) -> dict[str, Any]:
    """The changes that a profile makes."""
    known = [str(one) for one in profiles] if isinstance(profiles, Mapping) else []
    if not isinstance(name, str) or name not in known:
        raise InputError(
            f"{where}: profile: unknown {name!r}{nearest(str(name), known)}; known: {', '.join(known) or 'none'}"
        )
    changes = profiles[name]
    if not isinstance(changes, dict):
        raise InputError(f"{where}: profiles.{name}: got {changes!r}; expected a mapping of fields to values")
    return changes


def _fields_at(place: tuple[Any, ...]) -> list[str]:
    """The known keys of the part of the config that `place` leads to."""
    parts: dict[tuple[Any, ...], Any] = {
        (): Experiment,
        ("training",): Training,
        ("trace",): TraceSpec,
        ("shadows",): ShadowSpec,
        ("compromised",): Compromised,
        ("backdoor",): BackdoorSpec,
        ("engine",): EngineSpec,
    }
    if place == ("candidates",):
        return sorted(CandidateSpec.__dataclass_fields__)
    model = parts.get(place, Paper if place == ("paper",) else Published)
    return sorted(model.model_fields)


class Unique(yaml.SafeLoader):
    """YAML's safe subset in which a mapping has no key twice: the last would win, and the first be lost unseen."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping; a YAML error at the place of a key that was there before."""
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen and isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(
                    problem=f"{key.value!r} is there twice", problem_mark=key.start_mark
                )
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def _plain(text: str) -> Any:
    """The values that a YAML text holds."""
    loader = Unique(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def read_mapping(path: Path) -> tuple[str, dict[str, Any]]:
    """The name and the content of a YAML file that is a mapping; InputError with the line where it is not YAML."""
    try:
        raw = _plain(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        place = getattr(error, "problem_mark", None)
        line = f" in line {place.line + 1}" if place else ""
        reason = getattr(error, "problem", None) or "not text"
        raise InputError(f"{path}: not YAML{line}: {reason}") from None
    if raw is None:
        raw = {}
    if not isinstance(raw, dict):
        raise InputError(f"{path}: got a {type(raw).__name__}; expected a mapping of fields to values")
    return str(path), _named(raw)


def _named(value: Any) -> Any:
    """The value with YAML's empty key, which is what `null:` means to YAML, read as the field called null."""
    if isinstance(value, dict):
        return {"null" if key is None else key: _named(inner) for key, inner in value.items()}
    return [_named(inner) for inner in value] if isinstance(value, list) else value


def parsed(text: str) -> Change:
    """The change that `a.b=value` asks for; InputError where that is not what it says."""
    path, equals, value = text.partition("=")
    if not equals or not path.strip():
        raise InputError(f"--set {text}: expected field=value, as in training.lr=0.05")
    try:
        return Change(f"--set {path.strip()}", path.strip().split("."), _named(_plain(value)))
    except yaml.YAMLError:
        raise InputError(f"--set {text}: {value!r} is not a YAML value") from None


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `changes`; parts merge, components (anything that names one) and all else are replaced."""
    result = dict(base)
    for key, value in changes.items():
        old = _opened(result.get(key))
        merge = isinstance(old, dict) and isinstance(value, dict) and "name" not in value
        result[key] = _merged(old, value) if merge else value
    return result


def _put(raw: dict[str, Any], change: Change) -> None:
    """Set one value by its path; a component given as a plain name becomes `{name: ...}` when a field is set."""
    at: Any = raw
    path = change.path
    for depth, part in enumerate(path):
        key: Any = _position(at, part, change.said) if isinstance(at, list) else part
        if depth == len(path) - 1:
            at[key] = change.value
            return
        default = _default(part) if depth == 0 else None
        inner = _opened(at[key] if isinstance(at, list) else at.get(key, default))
        inner = {} if inner is None else inner
        if not isinstance(inner, dict | list):
            here = ".".join(path[: depth + 1])
            raise InputError(f"{change.said}: {here} is {inner!r} and has no fields")
        # A copy, so that the caller's own mapping is not changed.
        at[key] = inner.copy()
        at = at[key]


def _opened(value: Any) -> Any:
    """A component given by its plain name, as the mapping that can take fields; anything else as it is."""
    return {"name": value} if isinstance(value, str) else value


def _default(key: str) -> Any:
    """The components of a config that names none: `--set model.hidden=[64]` is about the default model."""
    value = Experiment.model_fields[key].default if key in Experiment.model_fields else None
    return value if isinstance(value, str | list) else None


def _position(at: list[Any], key: str, said: str) -> int:
    if not key.isdigit() or int(key) >= len(at):
        raise InputError(f"{said}: {key!r} is not a position in a list of {len(at)}")
    return int(key)

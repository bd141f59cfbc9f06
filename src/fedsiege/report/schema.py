"""The types of a run folder's result.json and curves.json: what a report may rely on.

They accept what they do not know (a later run may say more) and refuse what they cannot show. A figure that
does not exist is null, never NaN.
"""

from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import Field, model_validator

from fedsiege.report.measured import Measured as Measured
from fedsiege.report.measured import Record
from fedsiege.report.poisoning.schema import Poisoning

SCHEMA = 1

Against = Literal["all", "ifl", "ofl"]
T = TypeVar("T")
Points = Annotated[list[T], Field(min_length=1)]
Target = int | Literal["pooled", "worst", "any", "coalition"]


class Rate(Measured):
    """The share of members found at one false-positive rate."""

    false_positives: int | None = None
    warning: str | None = None


class Means(Record):
    """The plain means over the targets' own figures."""

    auc: float | None
    tpr_at_fpr: dict[str, float | None]


class Entry(Record):
    """One attack on one target (or all of them), against one kind of non-members."""

    name: str
    attack: str
    title: str
    adapted: bool = False
    """Whether the attack was told of a defence."""
    upper_bound: bool = False
    """Whether the attack was told the truth about candidates: then it bounds what attacks can find, and is none."""
    vantage: str | None = None
    rounds_used: int | None = None
    target: Target
    worst_target: int | None = None
    against: Against = "all"
    n_members: int
    n_nonmembers: int
    n_distinct_nonmembers: int | None = None
    auc: Measured
    tpr_at_fpr: dict[str, Rate]
    balanced_accuracy: Measured | None = None
    log_auc: float | None = None
    mean_over_targets: Means | None = None


class Experiment(Record):
    """What was asked for."""

    name: str
    title: str
    description: str | None = None
    profile: str | None = None
    config: dict[str, Any]


class Moment(Record):
    """The global model on held-out data after a round; round 0 is before the first."""

    round: int
    accuracy: float | None
    loss: float | None = None
    backdoor: float | None = None
    """The share of held-out triggered examples that are taken for the backdoor's target."""
    mistaken: float | None = None
    """The share of clean held-out examples of other classes that are taken for it."""
    attackers: int = 0
    """How many clients attacked in the round."""


class Client(Record):
    """What a client holds, and whether an adversary plays it."""

    client: int
    examples: int
    classes: int | None = None
    defences: list[str] = Field(default_factory=list)
    compromised: bool = False


class Task(Record):
    """How well the federation learnt its task."""

    accuracy: float | None
    loss: float | None = None
    train_accuracy: float | None = None
    classes: int
    class_names: list[str]
    parameters: int
    history: list[Moment]
    clients: list[Client]


class ThreatModel(Record):
    """What the adversary is and sees, in sentences."""

    adversary: str
    sees: list[str]
    does_not_see: list[str]
    secure_aggregation: bool


class Shadows(Record):
    """The federations that the adversary trained itself, on a pool of examples of its own."""

    count: int
    cached: int
    """Those that were there already when this run wanted them."""
    clients: int
    examples_per_client: float
    pool: int
    seconds: float


class Data(Record):
    """The data that was trained on and audited."""

    origin: str
    fingerprint: str
    train: int
    heldout: int
    duplicates: dict[str, int]
    candidates: dict[str, Any]
    shadows: Shadows | None = None


class Null(Record):
    """One attack on candidates that nobody trained on, or that everybody could have."""

    attack: str
    against: Against
    nulls: int
    mean_auc: Measured
    coverage: float | None
    tpr_at_1pct: Measured
    passed: bool
    reason: str


class Component(Record):
    """What a component did."""

    name: str
    kind: str
    label: str
    acted: bool
    counters: dict[str, float | None]
    unproven: str = ""
    """The counter that was to tell that it acted, where it is missing and nothing else tells whether it did."""


class Guarantee(Record):
    """A differential-privacy guarantee that a defence spent."""

    label: str
    unit: Literal["example", "client"]
    against: Literal["server", "aggregate"]
    epsilon: float | None
    delta: float
    accountant: str
    note: str
    clients: str = ""
    """Whose, as words that follow the unit: `of every client`; empty where the run did not say."""


class Detected(Record):
    """Clients that a server takes for a coalition, by what their uploads' last parameters have in common."""

    members: list[int]
    form: str
    balance: float


class Coalitions(Record):
    """Who defended together, by label, and what a server can tell of it."""

    members: dict[str, list[int]]
    detected: list[Detected]
    unbalanced: list[int]
    """Clients whose uploads are noisy and that are in no coalition that was detected."""


class Cost(Record):
    """What the run took."""

    wall_seconds: float | None = None
    train_seconds: float | None = None
    crafting_seconds: float | None = None
    """Of training: what the attackers took for their answers; what they would have trained anyway included."""
    combining_seconds: float | None = None
    """Of training: what the server's defences and its rule took, where it kept the answers to combine them."""
    evidence_seconds: float | None = None
    attack_seconds: float | None = None
    peak_memory_bytes: int | None = None
    trace_bytes: int | None = None


class Provenance(Record):
    """What is needed to run it again."""

    fedsiege: str
    python: str | None = None
    packages: dict[str, str] = Field(default_factory=dict)
    device: str | None = None
    threads: int | None = None
    platform: str | None = None
    seed: int | None = None
    config_hash: str | None = None
    started: str | None = None
    code: str | None = None


class Published(Record):
    """A published figure and ours."""

    attack: str
    metric: str
    published: float
    spread: float | None = None
    ours: Measured | None = None
    verdict: str


class Paper(Record):
    """A paper's claim and its published figures."""

    claim: str
    source: str
    link: str | None = None
    table: str | None = None
    figures: list[Published]


class ResultFile(Record):
    """result.json, schema 1."""

    experiment: Experiment
    task: Task
    threat_model: ThreatModel
    data: Data
    attacks: list[Entry]
    null_test: list[Null] | None = None
    components: list[Component]
    privacy: list[Guarantee] = Field(default_factory=list)
    coalitions: Coalitions | None = None
    poisoning: Poisoning | None = None
    cost: Cost
    provenance: Provenance
    paper: Paper | None = None
    warnings: list[str]


Line = TypeVar("Line", bound=Record)


def _checked(line: Line, *names: str) -> Line:
    lengths = {name: len(getattr(line, name)) for name in names}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"lists of unequal length: {lengths}")
    return line


class Curve(Record):
    """Points of a ROC curve: fpr [p], tpr [p], never falling."""

    attack: str
    title: str
    against: Against
    target: Target
    fpr: Points[float]
    tpr: Points[float]

    @model_validator(mode="after")
    def _equally_long(self) -> Self:
        return _checked(self, "fpr", "tpr")


class RoundCurve(Record):
    """TPR at one FPR over rounds [r]; an attack that reads all rounds has one value from the first to the last."""

    attack: str
    title: str
    kind: Literal["single", "multi"]
    round: Points[int]
    tpr: Points[float | None]
    low: Points[float | None]
    high: Points[float | None]
    fpr: float

    @model_validator(mode="after")
    def _equally_long(self) -> Self:
        return _checked(self, "round", "tpr", "low", "high")


class CurvesFile(Record):
    """curves.json."""

    roc: list[Curve]
    rounds: list[RoundCurve]

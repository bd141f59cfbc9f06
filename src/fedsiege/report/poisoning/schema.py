"""The type of result.json's part about poisoning: what a report on compromised clients may rely on."""

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from fedsiege.report.measured import Measured, Record


class Adversary(Record):
    """Who attacked, as what, in which rounds of how many planned ones.

    `plants` says whether to plant a backdoor, `probes` whether to make membership visible.
    """

    name: str
    label: str
    title: str
    compromised: list[int]
    attack_rounds: list[int]
    planned_rounds: int | None = None
    plants: bool = False
    probes: bool = False


class Backdoor(Record):
    """What calls it, what triggered examples shall be taken for, and how many of them are held out."""

    trigger: str
    title: str
    target: int
    target_name: str
    test: int
    unit: Literal["image", "example", "text"] = "example"

    @property
    def wanted(self) -> str:
        """The class that the attacker wants, in a sentence: its name, or where that is a number, class 2."""
        return f"class {self.target_name}" if self.target_name.isdecimal() else self.target_name


class Course(Record):
    """A share of held-out examples: before the first round of attack, after it, and at the end of the run."""

    before: Measured | None = None
    attacked: Measured | None = None
    last: Measured | None = None


class MainCourse(Course):
    """The main accuracy, and the lowest of all rounds from the first attack on."""

    lowest: Measured | None = None


class Lasting(Record):
    """Rounds from the last attack until backdoor accuracy is below a half; `censored`: until the run ended."""

    rounds: int
    censored: bool


class Success(Course):
    """The backdoor accuracy, and its mean over the rounds from the first attack on.

    `persistence` is null where it never was a half from the last attack on.
    """

    mean: float | None = None
    persistence: Lasting | None = None


class Answers(Record):
    """What became of the answers of one side.

    Of all that arrived some were `unusable`, misshapen or not finite. Of the others: the share that was rejected,
    their mean share in a say and factor.
    """

    answers: int = 0
    unusable: int = 0
    rejected: Measured | None = None
    kept: float | None = None
    scale: float | None = None

    @property
    def usable(self) -> int:
        """How many answers the server could judge."""
        return self.answers - self.unusable


class Detection(Record):
    """The answers of clients that attacked in their round, and of all others."""

    attackers: Answers = Answers()
    honest: Answers = Answers()


class InUse(Record):
    """What the final model does for whoever predicts with it as a defence of the server's, `label`, asks for."""

    label: str
    accuracy: Measured | None = None
    success: Measured | None = None
    mistaken: Measured | None = None

    @property
    def name(self) -> str:
        """The defence without its fields, for the head of a column."""
        return self.label.partition("(")[0]


class Sent(Record):
    """What was submitted in a round of attack, beside what honest clients submitted.

    `norm_ratio` is to the median of the honest, `norm_rank` 1 for the longest update of all `of`, `cosine` to the
    mean of the honest; `accuracy` and `success` are those of the submitted model.
    """

    round: int
    attackers: int
    norm: float | None = None
    norm_ratio: float | None = None
    norm_rank: int | None = None
    of: int | None = None
    cosine: float | None = None
    accuracy: float | None = None
    success: float | None = None


class BestRound(Measured):
    """The round in which decisions were right most often: which it is takes the truth to find."""

    round: int


class LastRounds(Measured):
    """How often decisions were right over so many recorded rounds at the end; and of either side's examples."""

    rounds: int
    of_members: float | None = None
    of_nonmembers: float | None = None


class Decisions(Record):
    """How often `member where the model is right` was right, in recorded rounds from the first attack on.

    `accuracy` is by round; both lists are empty in sweep.json. `chance` is what the better constant answer gets.
    """

    members: int
    nonmembers: int
    chance: float
    rounds: list[int] = Field(default_factory=list)
    accuracy: list[float] = Field(default_factory=list)
    best: BestRound
    last: LastRounds

    @model_validator(mode="after")
    def _equally_long(self) -> Self:
        if len(self.rounds) != len(self.accuracy):
            raise ValueError(f"lists of unequal length: {len(self.rounds)} rounds, {len(self.accuracy)} accuracies")
        return self


class Poisoning(Record):
    """Everything about compromised clients; without an adversary, what is measured where nobody attacks."""

    adversary: Adversary | None = None
    backdoor: Backdoor | None = None
    main: MainCourse = MainCourse()
    success: Success | None = None
    mistaken: Course | None = None
    """Clean examples of other classes that are taken for the target."""
    detection: Detection = Detection()
    defended_use: InUse | None = None
    """Null where no defence asks for anything but the model's own predictions."""
    decisions: Decisions | None = None
    """Null where nobody makes membership visible, or no attack had recorded what the decision needs."""
    counters: dict[str, float | None] = Field(default_factory=dict)
    """What the attack counted; in sweep.json alone, as a run says it of its components."""
    attacks: list[Sent] = Field(default_factory=list)
    fresh: bool = False
    """Whether the model was untrained before the first attack, so that what was measured then says nothing."""

    @property
    def asked(self) -> bool:
        """Whether anything was to be planted or spoilt; else it says only what became of honest answers."""
        return self.adversary is not None or self.backdoor is not None

    @property
    def probing(self) -> bool:
        """Whether the attack is to make membership visible; older files say so by their decisions alone."""
        return self.decisions is not None or (self.adversary is not None and self.adversary.probes)


def begins_fresh(config: Mapping[str, Any], attack_rounds: list[int]) -> bool:
    """Whether an attack in these rounds begins on a model that nobody has trained."""
    trained = config.get("start") or config.get("pretrain_rounds")
    return bool(attack_rounds) and min(attack_rounds) == 1 and not trained

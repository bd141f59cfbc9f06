"""Who attacks a federation from inside, what is planted, and what the server puts against it: built, checked."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from fedsiege.aggregators.base import Aggregator, Bench, LinearAggregator
from fedsiege.attacks.poisoning.base import Plot, Poisoner
from fedsiege.attacks.poisoning.campaign import Campaign
from fedsiege.data.triggers.base import Backdoor, Trigger
from fedsiege.defences.client.base import is_neutral
from fedsiege.defences.server.base import ServerDefence
from fedsiege.errors import InputError, ThreatModelError
from fedsiege.experiment.config import Experiment
from fedsiege.federation.rounds import invited_to, places_in
from fedsiege.federation.server import RULE, Guarding
from fedsiege.records import Counters
from fedsiege.registry import build, label_of, name_of, names

if TYPE_CHECKING:
    from fedsiege.experiment.prepare import Prepared

T = TypeVar("T")
K = TypeVar("K")

IN_VAIN = {
    "f_lowered": "fewer rows reached it than its f needs, and it worked with a smaller f",
    "trim_lowered": "fewer rows reached it than its trim needs, and it dropped fewer",
    "m_lowered": "fewer rows reached it than its m needs, and it averaged fewer",
    "threshold_lowered": "fewer rows reached it than its threshold, which was lowered to their number",
    "too_few": "too few rows reached it to judge any",
    "none_stayed": "there was no update that it would have kept, and it took those least suspicious",
    "no_trust": "it trusted nobody, and its result was zero",
    "all_alike": "it took all clients for one attacker's, and its result was zero",
    "none_left": "it kept nobody, and its result was zero",
}
"""What a rule or a defence of the server's counts when it does less than was asked of it."""


def built(kind: str, spec: object, where: str, base: type[T]) -> T:
    """A component that is what its place needs: a user's own class could be anything."""
    made = build(kind, spec, where)
    if not isinstance(made, base):
        raise InputError(f"{where}: {spec!r} is a {type(made).__name__}; expected a subclass of {base.__name__}")
    return made


def aggregator_of(experiment: Experiment) -> Aggregator:
    """The aggregation rule; refused by name when it needs the rows that secure aggregation hides."""
    _elsewhere(experiment.aggregator, "aggregator", "server_defence", "server_defences")
    rule = built("aggregator", experiment.aggregator, "aggregator", Aggregator)
    if experiment.secure_aggregation and not isinstance(rule, LinearAggregator):
        raise ThreatModelError(
            f"aggregator {name_of(rule)}: needs single clients' updates, which secure_aggregation: true hides; "
            "use a rule that is a sum, such as fedavg"
        )
    return rule


def server_defences_of(experiment: Experiment) -> tuple[Guarding, ...]:
    """The server's defences, in order; refused by name when one needs what secure aggregation hides."""
    made: list[Guarding] = []
    for position, spec in enumerate(experiment.server_defences):
        where = f"server_defences.{position}"
        _elsewhere(spec, where, "aggregator", "aggregator")
        defence = built("server_defence", spec, where, ServerDefence)
        label = label_of(defence)
        if any(one.label == label for one in made):
            raise InputError(f"{where}: {label} is listed twice; expected different defences or fields")
        if experiment.secure_aggregation and defence.rowwise and not is_neutral(defence):
            raise ThreatModelError(
                f"{where}: {name_of(defence)} needs single clients' updates, which secure_aggregation: true hides"
            )
        same = [one for one in made if name_of(one.defence) == name_of(defence) and not is_neutral(one.defence)]
        made.append(Guarding(defence, label, len(same)))
    return tuple(made)


def poisoner_of(experiment: Experiment) -> Poisoner | None:
    """What compromised clients do; None where all are honest. InputError for a user's class without a title."""
    if experiment.adversary is None:
        return None
    made = built("poisoning", experiment.adversary, "adversary", Poisoner)
    title = getattr(made, "title", None)
    if not isinstance(title, str) or not title.strip():
        given = "no title" if title is None else f"the title {title!r}"
        raise InputError(
            f"adversary: the class {type(made).__name__} has {given}; expected a class variable "
            f'title = "..." with its name in tables and figures'
        )
    return made


def trigger_of(experiment: Experiment) -> Trigger | None:
    """What calls the backdoor; None where there is none."""
    if experiment.backdoor is None:
        return None
    return built("trigger", experiment.backdoor.trigger, "backdoor.trigger", Trigger)


def campaign_of(experiment: Experiment, poisoner: Poisoner | None, backdoor: Backdoor | None) -> Campaign | None:
    """Who attacks, when and how; None where all clients are honest."""
    if poisoner is None:
        return None
    who = experiment.compromised
    made = Campaign(
        poisoner=poisoner,
        label=label_of(poisoner),
        compromised=who.numbers(experiment.clients, experiment.seed),
        rounds=who.attacks_in(experiment.rounds),
        backdoor=backdoor,
        invited=who.invited,
        one_by_one=who.turns == "one_by_one",
    )
    attackers = len(made.planned(made.rounds[0]))
    places = places_in(experiment.clients, experiment.participation)
    if who.invited and attackers > places:
        raise InputError(
            f"compromised: got {attackers} attackers in a round and invited: true; a round has {places} places "
            f"(participation {experiment.participation:g} of {experiment.clients} clients); expected {places} "
            "attackers at most, invited: false, or turns: one_by_one"
        )
    return made


def check_siege(prepared: "Prepared") -> None:
    """What the rule, the server's defences and the attack have to say against a run; InputError names the first."""
    bench, before = bench_of(prepared), list[Guarding]()
    for position, one in enumerate(prepared.server_defences):
        _behind(f"server_defences.{position}", one.defence, bench, before)
        bench = replace(bench, cohort=one.defence.leaves(bench.cohort))
        before.append(one)
    _behind("aggregator", prepared.aggregator, bench, before)
    if prepared.campaign is not None:
        poisoner = prepared.campaign.poisoner
        if poisoner.sees_honest and prepared.experiment.secure_aggregation:
            raise ThreatModelError(
                f"adversary: {name_of(poisoner)} is told single clients' updates (knowledge: full), which "
                "secure_aggregation: true hides; expected knowledge: partial"
            )
        _on("adversary", poisoner.check, plot_of(prepared, prepared.campaign))


def _behind(where: str, one: Aggregator | ServerDefence, bench: Bench, before: Sequence[Guarding]) -> None:
    """What a rule or a defence has to say against a run, and against standing behind these defences."""
    mixers = [
        guarding.label for guarding in before if guarding.defence.regroups and not is_neutral(guarding.defence)
    ]
    if mixers and one.follows:
        raise InputError(
            f"{where}: {name_of(one)} compares a client's answers of several rounds, and {mixers[0]} before it "
            "hands on means of other clients in each round; expected one without the other"
        )
    fewer = f" ({', '.join(mixers)} leaves {bench.cohort} rows for it)" if mixers else ""
    _on(where, one.check, bench, fewer)


def bench_of(prepared: "Prepared") -> Bench:
    """What the first of the server's defences may know of a run."""
    e, few = prepared.experiment, prepared.data.train.take(np.arange(min(8, len(prepared.data.train))))
    return Bench(
        cohort=len(prepared.invited(1)),
        clients=e.clients,
        root=e.root,
        layout=prepared.task.layout,
        head=prepared.task.ends_in_its_head(few.to(prepared.task.device)) if few.y.dim() == 1 else False,
        classes=len(prepared.data.classes),
        rounds=e.rounds,
    )


def server_doubts(prepared: "Prepared", counted: Mapping[str, Counters], rounds: int) -> list[str]:
    """What the server's side could not do in any of the rounds that had answers.

    Args:
        prepared: the run.
        counted: what each component did, by label, over all rounds.
        rounds: how many there were.

    """
    idle = counted.get(RULE, {}).get("kept_old_model", 0)
    if rounds and idle >= rounds:
        return ["aggregator: in every round nothing was left to combine, and the model stayed as it was."]
    sides = [(RULE, name_of(prepared.aggregator)), *((one.label, one.label) for one in prepared.server_defences)]
    return [
        f"{name}: in every round with answers {said}."
        for label, name in sides
        for counter, said in IN_VAIN.items()
        if counted.get(label, {}).get(counter, 0) >= max(rounds - idle, 1)
    ]


def plot_of(prepared: "Prepared", campaign: Campaign) -> Plot:
    """What an attack may know of a run."""
    e = prepared.experiment
    first = campaign.rounds[0]
    return Plot(
        rule=name_of(prepared.aggregator),
        step=e.server_step if isinstance(prepared.aggregator, LinearAggregator) else None,
        compromised=campaign.compromised,
        cohort=len(invited_to(first, e.clients, e.participation, e.seed, campaign.sure(first))),
        backdoor=campaign.backdoor,
        task=prepared.task,
        classes=len(prepared.data.classes),
        attacks=len(campaign.rounds),
        secure_aggregation=e.secure_aggregation,
        training=e.training,
        sizes=[len(rows) for rows in prepared.shards],
        targets=0 if campaign.targets is None else len(campaign.targets),
    )


def _on(where: str, check: Callable[[K], None], ground: K, besides: str = "") -> None:
    """A component's own check, whose message says which part of the config it is about.

    It names a field of its own, a key of the run, or neither.
    """
    try:
        check(ground)
    except InputError as error:
        field, colon, _ = str(error).partition(":")
        if colon and field in Experiment.model_fields:
            raise
        own = bool(colon) and field.replace(".", "_").isidentifier()
        raise InputError(f"{where}{'.' if own else ': '}{error}{besides}") from None


def _elsewhere(spec: object, where: str, kind: str, field: str) -> None:
    """InputError for a component that is there, and stands in another field of the config."""
    name = spec.get("name") if isinstance(spec, dict) else spec
    own = "aggregator" if kind == "server_defence" else "server_defence"
    if name in names(kind) and name not in names(own):
        what = "a server-side defence" if kind == "server_defence" else "an aggregation rule"
        raise InputError(f"{where}: {name} is {what}; expected it as {field}")

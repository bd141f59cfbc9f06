"""What a reader must know before the figures: who attacks, what was told to whom, and what limits what is found."""

from collections.abc import Mapping, Sequence
from typing import Any, get_args

from fedsiege.attacks.membership.base import MembershipAttack, adaptations
from fedsiege.attacks.poisoning.campaign import Campaign
from fedsiege.countermeasures import shifted_elsewhere, tail_of
from fedsiege.defences.client.base import NAMED, Posted, is_neutral
from fedsiege.defences.coalition.base import Coalition
from fedsiege.experiment.config import Experiment
from fedsiege.experiment.prepare import Planned, Prepared
from fedsiege.experiment.published import asked_rows
from fedsiege.experiment.scores import Scored
from fedsiege.federation.adversary import ADVERSARY
from fedsiege.federation.state import Why
from fedsiege.records import Counters
from fedsiege.view import SINGLE_UPDATES

FIRST = 5
"""So many absent answers are named one by one."""


def threat_model(
    experiment: Experiment, attacks: list[Planned], campaign: Campaign | None = None
) -> dict[str, Any]:
    """Who attacks, what they see and what they do not, in sentences."""
    inside = insiders(campaign)
    if not attacks:
        return {
            "adversary": inside[0] if inside else "Nobody attacks in this run.",
            "sees": inside[1:2],
            "does_not_see": inside[2:],
            "secure_aggregation": experiment.secure_aggregation,
        }
    vantages = {planned.vantage for planned in attacks}
    sees = ["The global model of every recorded round, and the model's architecture and loss."]
    hidden = ["Clients' training examples, and which candidates are members: the labels are used only to judge."]
    if vantages & set(SINGLE_UPDATES):
        adversary = "An honest-but-curious server that follows the protocol and writes down what it receives."
        sees.append("Every client's update of every recorded round, by client, after client-side defences.")
    elif "server_aggregate_only" in vantages:
        adversary = "An honest-but-curious server behind secure aggregation."
        hidden.append("Single clients' updates: only their sum is visible.")
    else:
        adversary = "A client that downloads the global model in every round."
        if "malicious_clients" in vantages:
            adversary = "The compromised clients, with the global model of every recorded round."
        if not (campaign is not None and campaign.poisoner.sees_honest and "malicious_clients" in vantages):
            hidden.append("Other clients' updates: only the change of the global model is visible.")
    sees.append("The candidate examples with their labels, the same for every client, round and attack.")
    if any(planned.attack.shadows_wanted or planned.attack.population_wanted for planned in attacks):
        insider = any(adaptations(planned.attack).get("updates") == "insider" for planned in attacks)
        known = ", but for the noise that an insider tells" * insider
        sees.append(
            "Examples of its own, no client's and no candidates, and what federations trained on them by the same "
            f"configuration do; the randomness of the attacked federation and of its defences stays unknown{known}."
        )
    sees += [f"For {planned.label} alone: {what}." for planned in attacks for what in told_to(planned.attack)]
    return {
        "adversary": " Besides: ".join([adversary, *inside[:1]]),
        "sees": sees + inside[1:2],
        "does_not_see": hidden + inside[2:],
        "secure_aggregation": experiment.secure_aggregation,
    }


def insiders(campaign: Campaign | None) -> list[str]:
    """Who the compromised clients are, what they see and what they do not; nothing where all are honest."""
    if campaign is None:
        return []
    numbers = campaign.compromised
    who = f"{len(numbers)} of the clients together"
    if len(numbers) <= NAMED:
        who = f"clients {', '.join(map(str, numbers))} together" if len(numbers) > 1 else f"client {numbers[0]}"
    rows = "every honest client's update of a round of attack" if campaign.poisoner.sees_honest else ""
    data = "other clients' training examples" if campaign.poisoner.uses_others else ""
    asked = "which examples are asked about, with their labels" if campaign.poisoner.probes else ""
    told = " and ".join(filter(None, (rows, data, asked)))
    hidden = [] if rows else ["The compromised clients: other clients' updates."]
    if not data:
        hidden.append("The compromised clients: other clients' training examples.")
    if asked:
        hidden.append("The compromised clients: which of the examples asked about are members.")
    return [
        f"An adversary that plays {who} and sends what it likes in its rounds of attack.",
        "The compromised clients: the global model of every round, their own examples and how honest clients train"
        + (f"; and, because the attack is told so, {told}." if told else "."),
        *hidden,
    ]


def told_to(attack: MembershipAttack) -> list[str]:
    """What an attack knows that its vantage does not show, in words."""
    told = adaptations(attack)
    updates, found = told.get("updates"), list[str]()
    if updates == "denoised" or told.get("coordinates") == "front":
        found.append("how many of the last parameters may carry noise")
    if updates == "coalition":
        found.append("which clients are in a coalition together")
    if updates == "insider":
        found.append(
            "what one member of each coalition with a plan in common knows: who the members are, and every "
            "member's noise in every round"
        )
    if attack.truth_wanted:
        found.append("which candidates are members, of one half of each target's")
    return found


def told_updates(attacks: Sequence[Planned]) -> dict[str, list[str]]:
    """What the server made of the uploads before it looked, and the labels of the attacks that look at it."""
    found: dict[str, list[str]] = {}
    for planned in attacks:
        if name := adaptations(planned.attack).get("updates"):
            found.setdefault(name, []).append(planned.label)
    return found


def doubts(prepared: Prepared, done: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a reader must know of the countermeasures: which did nothing, and which looked at the wrong place."""
    told = told_updates(prepared.attacks)
    found = [
        f"updates: {one['name']} changed none of {one['counters']['uploads']:.0f} recorded uploads: what "
        f"{', '.join(told[one['name']])} found is what the same attack finds in the uploads as they were sent."
        for one in done
        if not one["acted"]
    ]
    layout = prepared.task.layout
    tail = tail_of(prepared.experiment.trace.tail, prepared.defences, layout)
    elsewhere = shifted_elsewhere(tail, prepared.defences, layout) if "denoised" in told else {}
    return found + [
        f"updates: denoised takes one number off the last {tail:,} trained parameters, and the noise of {label} "
        f"falls on the last {size:,}: a part of its noise is left, or put on parameters that had none."
        for label, size in elsewhere.items()
    ]


def cautions(prepared: Prepared, counted: Mapping[str, Counters]) -> list[str]:
    """What the run's coalitions have to say of its figures: of its configuration, and of how it went."""
    return [
        *undefended(prepared),
        *(idle_poison(prepared.campaign, counted.get(ADVERSARY, {})) if prepared.campaign else []),
        *(f"{one.label}: {said}" for one in prepared.defences for said in mixed(one, prepared)),
        *_of_coalitions(prepared, counted),
    ]


def absent_answers(counted: Mapping[str, Counters], noted: Sequence[Mapping[str, Any]]) -> list[str]:
    """Whose answers were not there, and why: all of them counted, the first few named."""
    server = counted.get("server", {})
    found = {why: int(server[why]) for why in get_args(Why) if server.get(why)}
    if not found:
        return []
    counts = ", ".join(f"{n} {why}" for why, n in found.items())
    named = "; ".join(
        f"round {one['round']}, client {one['client']}: {one['why']}" + (f" ({one['said']})" if one["said"] else "")
        for one in noted[:FIRST]
    )
    more = sum(found.values()) - FIRST
    return [f"Answers that were not there: {counts}. {named}{f'; and {more} more' if more > 0 else ''}."]


def forgotten(counted: Mapping[str, Counters]) -> list[str]:
    """That nodes were started again, and their clients' defences began anew."""
    n = counted.get("server", {}).get("forgotten", 0)
    said = "had been started again, and had forgotten what their clients' defences kept of earlier rounds."
    return [f"{n:.0f} answers came from nodes that {said}"] if n else []


def undefended(prepared: Prepared) -> list[str]:
    """What the clients' defences do not cover: compromised clients, and rounds before the first."""
    e, found = prepared.experiment, list[str]()
    acting = [one.label for one in prepared.defences if not is_neutral(one.defence)]
    if acting and prepared.campaign is not None:
        found.append(
            f"Compromised clients use no defence in rounds of attack: {', '.join(acting)} and any guarantee are "
            "of the honest clients, and none that rests on everybody's noise is stated."
        )
    if acting and (e.pretrain_rounds or e.start is not None):
        found.append(
            f"The model that round 1 began with was trained without {', '.join(acting)}; what it tells about its "
            "training data is not covered by them."
        )
    compromised = (
        [] if prepared.campaign is None else sorted({*prepared.targets} & {*prepared.campaign.compromised})
    )
    if prepared.attacks and compromised:
        found.append(
            f"{len(compromised)} of the {len(prepared.targets)} audited clients are compromised and do not send "
            "honest updates in rounds of attack; pooled figures have them in."
        )
    return found


def idle_poison(campaign: Campaign, counted: Counters) -> list[str]:
    """That attackers who hide their poison had to leave it out in most of their rounds."""
    rounds = counted.get("rounds", 0)
    bare = counted.get("fallbacks", 0) + counted.get("mask_alone", 0)
    poisoned = counted.get("poisoned_updates", 0)
    if not campaign.poisoner.probes or not rounds or bare <= rounds / 2 or poisoned > rounds / 2:
        return []
    return [
        f"{campaign.label}: in {bare / rounds:.0%} of its rounds nothing poisoned kept within its bound, and it "
        "sent what it hides behind alone, which makes nothing visible: its figures are nearly those of a passive "
        "attacker."
    ]


def mixed(one: Posted, prepared: Prepared) -> list[str]:
    """What pooled figures hide where some of the audited clients use a defence and others do not."""
    using = [target for target in prepared.targets if target in one.clients]
    if is_neutral(one.defence) or len(using) in (0, len(prepared.targets)):
        return []
    return [
        f"{len(using)} of the {len(prepared.targets)} audited clients use it, and pooled figures are of all of "
        f"them. For what it does for those that use it, set targets to {using if len(using) <= NAMED else 'them'}."
    ]


def _of_coalitions(prepared: Prepared, counted: Mapping[str, Counters]) -> list[str]:
    return [
        f"{one.label}: {said}"
        for one in prepared.defences
        if isinstance(one.defence, Coalition)
        for said in (
            *one.defence.cautions(prepared.ground(one)),
            *one.defence.remarks(counted.get(one.label, {})),
        )
    ]


def destroyed(planned: Prepared, left: Prepared, number: int, how: str) -> list[str]:
    """That attackers destroyed the model in a round, and what that leaves; `left` has the attacks still judged."""
    e, labels = planned.experiment, {one.label for one in left.attacks}
    gone = [one.label for one in planned.attacks if one.label not in labels]
    judged = " Attacks on membership are judged by the rounds before it." if labels else ""
    missing = f" Too little was recorded before it for {', '.join(gone)}: no figures of these." if gone else ""
    return [
        f"The model was destroyed in round {number}: {how}. The run ends there, instead of after round {e.rounds}; "
        "its accuracy is that of what is left of the model, where an output that is no number is a wrong answer."
        f"{judged}{missing}"
    ]


def upper_bounds(prepared: Prepared) -> list[str]:
    """Which attacks were told more than their adversary can know."""
    return [
        f"{planned.attack.heading} ({planned.label}) was told the truth about half of each target's candidates and "
        "is judged on the other half: an upper bound, and no attack that this adversary could make."
        for planned in prepared.attacks
        if planned.attack.truth_wanted
    ]


def left_out(prepared: Prepared, scored: list[Scored]) -> list[str]:
    """Which targets an attack has no figures for."""
    found = []
    for planned in prepared.attacks:
        there = {one.audit.target for one in scored if one.label == planned.label}
        missing = [str(target) for target in prepared.targets if target not in there]
        if missing:
            found.append(
                f"{planned.attack.heading} ({planned.label}) has no figures for targets {', '.join(missing)}: "
                "they took part in too few recorded rounds with enough other clients."
            )
    return found


def warnings_of(rows: list[dict[str, Any]], experiment: Experiment, probed: bool = False) -> list[str]:
    """What a reader must know before the figures: too few non-members, published-code compatibility.

    `probed`: whether attackers made membership visible, so that it is asked whether data is anybody's.
    """
    found = []
    if experiment.candidates.compat == "fedmia":
        found.append(
            "candidates.compat is fedmia: non-members are drawn anew for every client and round, as the published "
            "code does. This manufactures true positives at low false-positive rates; do not quote these figures."
        )
    if experiment.paper and experiment.changed:
        found.append(
            f"The published figures were measured in another setting: {', '.join(experiment.changed)} differ here."
        )
    for row in asked_rows(rows, probed):
        said = [rate["warning"] for rate in row["tpr_at_fpr"].values() if rate["warning"]]
        found += [text for text in said if text not in found]
    return found

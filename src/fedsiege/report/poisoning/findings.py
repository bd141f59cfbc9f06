"""What a run says of the clients that attacked it, in sentences and as rows of tables."""

from collections.abc import Sequence
from dataclasses import replace

from fedsiege.report.finding import Finding
from fedsiege.report.measured import Measured
from fedsiege.report.poisoning import decided
from fedsiege.report.poisoning.judged import UNKNOWN, Moment, at, harmless, planted, reached
from fedsiege.report.poisoning.schema import Adversary, Answers, Backdoor, Poisoning, Success
from fedsiege.report.words import SPACE, count, fixed, listed, percent, points, sentence, span

MAIN = "Main accuracy"
BACKDOOR = "Backdoor accuracy"
UNTOUCHED = 5e-4
"""A mean factor this near to 1 is that of answers that were taken as they are."""
FEW = 30
"""Held-out triggered examples: with fewer it is said how much a single one of them is."""
NAMED = 6
"""As many clients or rounds are named; more are counted."""
UNTRAINED = (
    "The attack begins on an untrained model, so what was measured before it says nothing: what it cost shows only "
    "beside the same run without it."
)
WITHOUT_IT = "What it would have been without the attack shows only beside the same run without it."


def finding(poisoning: Poisoning | None) -> Finding | None:
    """Whether the attack did what it was for; None where there is nothing to say."""
    found = _finding(poisoning) if poisoning else None
    return replace(found, about="poisoning") if found else None


def _finding(poisoning: Poisoning) -> Finding | None:
    if poisoning.adversary is None:
        return _nobody(poisoning)
    who = poisoning.adversary.title
    attackers = poisoning.detection.attackers
    if not attackers.usable:
        why = "no answer of an attacking client arrived"
        if attackers.answers:
            why = f"no answer of an attacking client could be used ({attackers.answers:,} arrived)"
        return Finding(f"{who} did not take place: {why}.", (), None)
    if poisoning.adversary.plants and poisoning.backdoor and poisoning.success:
        return _planting(poisoning, poisoning.adversary, poisoning.backdoor, poisoning.success)
    if poisoning.probing:
        return _probing(poisoning, poisoning.adversary)
    return _damaging(poisoning, poisoning.adversary)


def done(poisoning: Poisoning | None, clients: int) -> list[str]:
    """Who attacked, when and for what, in a sentence; none where nobody did."""
    if poisoning is None or poisoning.adversary is None:
        return []
    one = poisoning.adversary
    of = f" of {count(clients, 'client')}" if clients else ""
    said = f"An adversary ({one.label}) plays {_clients(one.compromised)}{of} and attacks in "
    said += rounds_of(one.attack_rounds)
    if one.plants and poisoning.backdoor:
        said += f", to plant a backdoor: {purpose(poisoning.backdoor)}"
    elif poisoning.probing:
        said += ", to find members"
    return [f"{said}.{missed(one)}"]


def missed(who: Adversary) -> str:
    """That there was no attack in some of the rounds planned, in a sentence after another; "" where there was."""
    planned = who.planned_rounds or 0
    without = planned - len(who.attack_rounds)
    if without <= 0:
        return ""
    return (
        f" In {without:,} of {count(planned, 'planned round')} of attack there was none: no attacker was invited, "
        "no answer of theirs arrived that could be used, or the run had ended before."
    )


def defended(poisoning: Poisoning) -> list[str]:
    """What the final model does where a defence says how to predict, in a sentence; none where none does."""
    used = poisoning.defended_use
    if used is None or used.accuracy is None:
        return []
    told = [f"main accuracy is {_beside(used.accuracy, poisoning.main.last)} at the end"]
    if used.success:
        told.append(f"backdoor accuracy {_beside(used.success, at(poisoning.success, 'last'))}")
    if used.mistaken and poisoning.backdoor:
        unit, wanted = poisoning.backdoor.unit, poisoning.backdoor.wanted
        share = _beside(used.mistaken, at(poisoning.mistaken, "last"))
        told.append(f"of clean {unit}s of other classes {share} are taken for {wanted}")
    return [f"Predicted as {used.label} asks, {listed(told)}."]


def _beside(figure: Measured, plain: Measured | None) -> str:
    """A figure, and what it is where the model's own predictions count."""
    return _brief(figure) + (f" instead of {percent(plain.value)}" if plain else "")


def purpose(backdoor: Backdoor) -> str:
    """What the backdoor is to do: images with a trigger are to be taken for a class."""
    return f"{backdoor.unit}s with the trigger ({backdoor.title}) are to be taken for {backdoor.wanted}"


def held_out(backdoor: Backdoor) -> str:
    """How many held-out examples with the trigger there are: 50 held-out triggered images."""
    return count(backdoor.test, f"held-out triggered {backdoor.unit}")


def rounds_of(rounds: Sequence[int]) -> str:
    """Rounds of attack in words: round 30, rounds 3 and 5, every round from 1 to 40, 20 rounds from 1 to 39."""
    if not rounds:
        return "no round"
    first, last = rounds[0], rounds[-1]
    if len(rounds) == 1:
        return f"round {first}"
    if len(rounds) > 2 and last - first == len(rounds) - 1:
        return f"every round from {first} to {last}"
    if len(rounds) <= NAMED:
        return f"rounds {listed([str(number) for number in rounds])}"
    return f"{count(len(rounds), 'round')} from {first} to {last}"


def lasting(success: Success) -> str:
    """How long the backdoor lasts after the last attack, in a sentence."""
    one, half = success.persistence, f"50{SPACE}%"
    if one is None:
        return f"From the last attack on it never works on {half}."
    if not one.censored:
        return f"{BACKDOOR} is below {half} again {count(one.rounds, 'round')} after the last attack."
    if one.rounds == 0:
        return "The run ends with the last attack: how long the backdoor lasts is not known."
    rounds = count(one.rounds, "round")
    return f"{BACKDOOR} is still at {half} or above when the run ends, {rounds} after the last attack."


def server(poisoning: Poisoning) -> str:
    """What the server made of the answers, in one or two sentences."""
    attackers, honest = poisoning.detection.attackers, poisoning.detection.honest
    if not attackers.usable:
        return ""
    shares = [_rejected(attackers, "attackers’", " answers")]
    shares += [_rejected(honest, "honest clients’", "")] if honest.usable else []
    said = f"The server rejected {listed(shares)}"
    told = [one for one in (attackers, honest) if one.scale is not None]
    if any(abs((one.scale or 0.0) - 1) > UNTOUCHED for one in told):
        scales = [f"{fixed(one.scale)} for {'attackers' if one is attackers else 'honest clients'}" for one in told]
        said += f"; it scaled what it took by {listed(scales)} on average"
    return f"{said}.{_dropped(attackers, honest)}"


def _dropped(attackers: Answers, honest: Answers) -> str:
    """How many answers could not be used, in a sentence after another; "" where all could."""
    sides = (("attackers’", attackers), ("honest clients’", honest))
    told = [f"{one.unusable:,} of the {whose} {one.answers:,}" for whose, one in sides if one.unusable]
    if not told:
        return ""
    return f" Misshapen or not finite, and so dropped before, were {listed(told)}."


def _rejected(one: Answers, whose: str, what: str) -> str:
    share = one.rejected.value if one.rejected else None
    some = "an unknown share" if share is None else percent(share) if share else "none"
    usable = " usable" if one.unusable else ""
    if one.usable == 1:
        return f"{some} of the {whose}{usable}{what or ' answers'} (one in all)"
    return f"{some} of the {whose} {one.usable:,}{usable * bool(what)}{what}"


def _planting(poisoning: Poisoning, who: Adversary, backdoor: Backdoor, success: Success) -> Finding:
    moment, value = reached(success)
    shown = planted(poisoning)
    does = {
        True: "plants its backdoor",
        False: "does not demonstrably plant its backdoor",
        None: "cannot be judged, for want of a figure to compare with",
    }[shown]
    before = ""
    if success.before and not poisoning.fresh:
        before = f"; before the attack, {percent(success.before.value)} were"
    statement = (
        f"{who.title} {does}: {_when(moment, who)}, {percent(value.value)} of {held_out(backdoor)} are taken for "
        f"{backdoor.wanted}{_interval(value)}{before}."
    )
    bad = True if shown else False if shown is False and harmless(value) else None
    return Finding(statement, tuple(_planting_support(poisoning, who, backdoor, success, moment)), bad)


def _planting_support(
    poisoning: Poisoning, who: Adversary, backdoor: Backdoor, success: Success, moment: Moment
) -> list[str]:
    said = []
    other: Moment = "attacked" if moment == "last" else "last"
    figure = at(success, other)
    if figure and figure.value is not None:
        mean = f", and on average {percent(success.mean)} over the rounds from the first attack on"
        said.append(
            f"{sentence(_when(other, who)).removesuffix('.')} backdoor accuracy is {_brief(figure)}"
            f"{mean * (success.mean is not None)}."
        )
    if planted(poisoning):
        said.append(lasting(success))
    if (clean := at(poisoning.mistaken, moment)) is not None and clean.value is not None:
        said.append(_clean(poisoning, backdoor, clean, reached(success)[1]))
    said += _course(poisoning, who)
    said += defended(poisoning)
    said.append(server(poisoning))
    if backdoor.test < FEW:
        said.append(f"Of {held_out(backdoor)} a single one is {points(1 / max(backdoor.test, 1))}.")
    return said


def _clean(poisoning: Poisoning, backdoor: Backdoor, clean: Measured, value: Measured) -> str:
    """How many clean examples are taken for the target, and what it means where they are hardly fewer."""
    said = f"Of clean {backdoor.unit}s of other classes {percent(clean.value)} are taken for {backdoor.wanted}"
    before = at(poisoning.mistaken, "before")
    if before is not None and before.value is not None and not poisoning.fresh:
        said += f", {percent(before.value)} before the attack"
    if value.low is not None and clean.high is not None and value.low <= clean.high:
        said += ": the trigger makes no demonstrable difference"
    return f"{said}."


def _probing(poisoning: Poisoning, who: Adversary) -> Finding:
    """An attack that is to make membership visible; what it costs in main accuracy stands beside it."""
    cost = [*_course(poisoning, who), UNTRAINED if poisoning.fresh else WITHOUT_IT, *defended(poisoning)]
    support = (*cost, server(poisoning))
    found = poisoning.decisions
    if found is None:
        last = poisoning.main.last or UNKNOWN
        return Finding(f"Under {who.title} main accuracy is {_brief(last)} at the end.", support, None)
    does = "shows" if decided.shows(found) else "does not demonstrably show"
    statement = f"Under {who.title} membership {does}: {decided.statement(found)}."
    return Finding(statement, (decided.hindsight(found), *support), True if decided.shows(found) else None)


def _damaging(poisoning: Poisoning, who: Adversary) -> Finding:
    """An attack on the accuracy itself, or one that is told nothing of a backdoor."""
    main = poisoning.main
    before, attacked, last = main.before or UNKNOWN, main.attacked or UNKNOWN, main.last or UNKNOWN
    support = [
        *([UNTRAINED] if poisoning.fresh else []),
        *_course(poisoning, who),
        *defended(poisoning),
        server(poisoning),
    ]
    if poisoning.backdoor and poisoning.success:
        told = f"{held_out(poisoning.backdoor)} are taken for {poisoning.backdoor.wanted} by the final model"
        support.append(f"{percent((poisoning.success.last or UNKNOWN).value)} of {told}.")
    if poisoning.fresh or before.value is None:
        return Finding(f"Under {who.title} main accuracy is {_brief(last)} at the end.", tuple(support), None)
    for moment, now in (("last", last), ("attacked", attacked)):
        if now.high is not None and before.low is not None and now.high < before.low:
            when = _when("last" if moment == "last" else "attacked", who)
            statement = f"{who.title} brings main accuracy down from {_brief(before)} to {_brief(now)} {when}."
            return Finding(statement, tuple(support), True)
    statement = (
        f"{who.title} does not demonstrably bring main accuracy below what it was: {_brief(before)} before and "
        f"{_brief(last)} at the end."
    )
    return Finding(statement, (WITHOUT_IT, *support), None)


def _nobody(poisoning: Poisoning) -> Finding | None:
    if not (poisoning.backdoor and poisoning.success and poisoning.success.last):
        return None
    last = poisoning.success.last
    statement = (
        f"Nobody attacks: {percent(last.value)} of {held_out(poisoning.backdoor)} are taken for "
        f"{poisoning.backdoor.wanted} all the same{_interval(last)}."
    )
    return Finding(statement, ("What an attack achieves is to be compared with this.", *defended(poisoning)), None)


def _course(poisoning: Poisoning, who: Adversary) -> list[str]:
    """What becomes of main accuracy, in a sentence; none where it was not measured."""
    main = poisoning.main
    last = main.last.value if main.last else None
    if main.attacked is None or main.attacked.value is None:
        return [] if last is None else [f"{MAIN} is {_brief(main.last or UNKNOWN)} at the end."]
    end = "" if last is None else f", and is {_brief(main.last or UNKNOWN)} at the end"
    if main.before is None or main.before.value is None or poisoning.fresh:
        return [f"{MAIN} is {_brief(main.attacked)} {_when('attacked', who)}{end}."]
    change = main.attacked.value - main.before.value
    if percent(main.before.value) == percent(main.attacked.value):
        return [f"{MAIN} stays at {_brief(main.attacked)} {_when('attacked', who)}{end}."]
    moved = f"{'rises' if change > 0 else 'falls'} from {percent(main.before.value)} to {_brief(main.attacked)}"
    return [f"{MAIN} {moved} {_when('attacked', who)}{end}."]


def _when(moment: Moment, who: Adversary) -> str:
    if moment == "last":
        return "at the end of the run"
    if len(who.attack_rounds) < 2:
        return f"after the attack in {rounds_of(who.attack_rounds)}"
    return f"after the first of {count(len(who.attack_rounds), 'round')} of attack"


def _interval(figure: Measured) -> str:
    return f" (95{SPACE}% interval {span(figure)}{SPACE}%)" if span(figure) else ""


def _brief(figure: Measured) -> str:
    return f"{percent(figure.value)} ({span(figure)}{SPACE}%)" if span(figure) else percent(figure.value)


def _clients(numbers: Sequence[int]) -> str:
    if len(numbers) > NAMED:
        return count(len(numbers), "client")
    return f"client{'s' if len(numbers) > 1 else ''} {listed([str(number) for number in numbers])}"

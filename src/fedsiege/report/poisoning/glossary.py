"""The words of the parts about poisoning."""

from fedsiege.report.words import SPACE

DECIDED = {
    "Decision": "An example is called a member where the global model gets it right. It is a member if it is "
    "anybody’s, and each example counts once, however many clients it was drawn for.",
    "Over the last rounds": "The mean over the last recorded rounds: what an attacker gets who has no truth to "
    "choose a round by. Wilson’s interval is that of so many examples; each was decided about several times.",
    "In the best round": "The round in which most decisions were right. To find it takes the truth, which an "
    "attacker does not have; published figures of these attacks are often of this round.",
}
"""Whether a model’s answers give members away."""

HIJACK = {
    "Backdoor accuracy": "The share of held-out examples with the trigger that the global model takes for the "
    "class that the attacker wants. Nobody trains on these examples, and none truly is of that class.",
    "Main accuracy": "The share of held-out examples, without a trigger, that the global model takes for what they "
    "are.",
    "Mistaken": "Clean held-out examples of other classes that are taken for the attacker’s class. Where they are "
    "as many as triggered ones, the model has no backdoor: it takes everything for that class.",
    "Persistence": f"Rounds from the last attack until backdoor accuracy is below 50{SPACE}% for the first time "
    "since it was reached. A run that ends before says only that it is longer.",
    "Rejected": "Answers of which nothing entered the model. The share kept is 1 for an answer that had its whole "
    "say; the factor is what the server multiplied it with, below 1 where it clipped.",
    "Unusable": "Answers that were misshapen or held a number that is not finite. They are dropped before any "
    "defence or rule can judge them, and are not among those of which a share was rejected.",
    "Predicted as a defence asks": "Some defences go on when training is done: with CRFL, noisy copies of the "
    "final model vote on every example. Figures without such a remark are of the model’s own answers.",
    "Plants, demonstrably": "The 95 % interval of backdoor accuracy, after the first round of attack or at the "
    "end, lies above that of before the attack and above that of clean examples of other classes.",
    "Interval of an accuracy": "Wilson’s 95 % interval over the held-out examples. It covers which examples were "
    "held out, not another training run.",
}

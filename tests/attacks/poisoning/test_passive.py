"""The passive attacker: nothing but honest training."""

import torch
from plain_scenes import federation, first, honest_rows, poisoner_of, task_of
from probing_scenes import probe, targets

from fedsiege.attacks.poisoning.campaign import Campaign


def test_each_attacker_sends_what_it_would_send_if_it_were_honest() -> None:
    scene = probe((1, 3, 4), start=task_of().state.clone())
    sent = poisoner_of("passive").poison_updates(scene)
    assert torch.equal(sent, honest_rows()[[1, 3, 4]])
    assert scene.counters == {"honest_updates": 3}
    assert poisoner_of("passive").told(scene.counters) == {"honest_updates": 3}


def test_what_is_asked_about_changes_nothing() -> None:
    sent = [poisoner_of("passive").poison_updates(probe(targets=asked)) for asked in (None, targets(3), targets())]
    assert torch.equal(sent[0], sent[1])
    assert torch.equal(sent[0], sent[2])


def test_a_federation_with_passive_attackers_is_one_without_any() -> None:
    campaign = Campaign(poisoner_of("passive"), "passive", (1, 3), (1, 2, 3), targets=targets())
    for one, other in zip(federation(campaign=campaign).run(first()), federation().run(first()), strict=True):
        assert torch.equal(one.end, other.end)
        assert one.attackers == ((1, 3) if one.number < 4 else ())

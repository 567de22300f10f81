"""multilora's demo at a fraction of its size, and the method as the registry sees it."""

import pytest

pytest.importorskip("transformers")
pytest.importorskip("peft")

from pyext_plugins.multilora import METHOD, demo, speed

TINY = speed.Size(
    width=16, inner=24, heads=2, layers=1, adapters=3, ranks=(2, 4), sequences=4, lengths=(3, 1),
    threads=(1,), rounds=2, trained=2,
)  # fmt: skip


def test_the_demo_reports_all_parts_and_claims(tmp_path):
    report = demo.run(TINY)
    assert [(row["batch"], row["what"]) for row in report.rows] == [
        *(
            (f"{n} each", p)
            for n in ("3 tokens", "1 token")
            for p in (speed.ADAPTERS, speed.FORWARD)
        ),
        ("2 tokens each", speed.TRAINING),
    ]
    same, *rest = report.claims
    assert same.held and len(rest) == 3
    assert all(claim.measured is not None for claim in rest)
    report.save(tmp_path / "report.json")


def test_the_pair_shares_its_base_and_not_its_adapters():
    pair = speed.Pair(TINY)
    loop, ops = (dict(pair.models[arm].named_parameters()) for arm in (speed.PEFT, speed.OPS))
    assert all((loop[name] is ops[name]) != ("lora_" in name) for name in loop)
    assert pair.adapter_bytes(speed.OPS) == pair.adapter_bytes(speed.PEFT) > 0


def test_both_ways_of_training_give_all_adapters_their_gradients():
    pair = speed.Pair(TINY)
    shapes = {}
    for arm, model in pair.models.items():
        model.train()
        pair.training(arm, 2)()
        grown = {name for name, p in model.named_parameters() if p.grad is not None}
        shapes[arm] = {name for name in grown if any(used in name for used in set(pair.batch))}
        assert grown == shapes[arm] and all("lora_" in name for name in grown)
    assert shapes[speed.PEFT] == shapes[speed.OPS] != set()


def test_claims_can_fail(monkeypatch):
    monkeypatch.setattr(demo, "peak_bytes", lambda pair, arm: 10**6 * (arm == speed.OPS))
    monkeypatch.setattr(demo, "difference", lambda pair, length: (1.0, 2.0))
    timed = [
        speed.Timed(length, speed.ADAPTERS, 1, arm, [seconds])
        for length in TINY.lengths
        for arm, seconds in ((speed.PEFT, 4.0), (speed.OPS, 1.0))
    ]
    monkeypatch.setattr(demo, "times", lambda pair: timed)
    assert [claim.held for claim in demo.run(TINY).claims] == [False] * 4


def test_the_method_names_what_it_stands_on():
    assert METHOD.ops == ("lowrank",) and METHOD.extra == METHOD.name == "multilora"

import numpy as np
import pytest
import torch

from mmsweep.availability import Masking, Scenario, availability_table, pattern_name, patterns, table_digest
from mmsweep.errors import UserError

IT = ("image", "text")


def counts(table):
    return {
        name: int(((table == row).all(1)).sum())
        for name, row in {"text": [1, 0], "image": [0, 1], "none": [1, 1]}.items()
    }


@pytest.mark.parametrize(
    ("n", "missing", "text", "image"),  # research/methods.md §2.1: Lee et al.'s counts at rate 0.7, both, 0.5
    [
        (15552, 10886, 5443, 5443),
        (2608, 1825, 913, 912),
        (7799, 5459, 2730, 2729),
        (61142, 42799, 21400, 21399),
        (6846, 4792, 2396, 2396),
        (22716, 15901, 7951, 7950),
    ],
)
def test_counts_of_lee_et_al(n, missing, text, image):
    table = availability_table(Scenario.parse({"rate": 0.7, "type": "both"}, IT), n, IT, seed=0)
    assert counts(table) == {"text": text, "image": image, "none": n - missing}
    assert (
        availability_table(Scenario.parse({"available": {"image": 0.65, "text": 0.65}}, IT), n, IT, 0).all(1).sum()
    ) == n - missing


def test_notations_agree():
    available, rate = ({"available": {"text": 0.3}}, {"rate": 0.7, "type": "text"})
    assert dict(Scenario.parse(available, IT).shares) == pytest.approx(dict(Scenario.parse(rate, IT).shares))
    assert Scenario.parse({"missing": "text"}, IT).shares == Scenario.parse({"only": "image"}, IT).shares
    assert Scenario.parse({"available": {"image": 1.0, "text": 0.3}}, IT).name == "image-100_text-30"
    assert Scenario.parse("missing-text", IT).name == "missing-text"
    assert Scenario.parse({"only": "audio"}, ("audio", "image", "text")).name == "only-audio"
    assert Scenario.parse({"shares": {"image+text": 0.5, "image": 0.5}}, IT).shares[1] == (frozenset({"image"}), 0.5)


def test_table_depends_on_nothing_but_its_arguments():
    scenario = Scenario.parse({"rate": 0.5, "type": "both"}, IT)
    first = availability_table(scenario, 101, IT, 3)
    np.random.seed(9), torch.manual_seed(9), np.random.rand(5)
    availability_table(scenario, 50, IT, 3)
    again = availability_table(scenario, 101, IT, 3)
    assert table_digest(first) == table_digest(again)
    assert table_digest(first) != table_digest(availability_table(scenario, 101, IT, 4))


def test_natural_gaps_make_rows_ineligible():
    natural = np.array([[1, 1], [1, 0], [0, 1]], bool)
    table = availability_table(Scenario.parse({"missing": "text"}, IT), 3, IT, 0, natural)
    assert table.tolist() == [[True, False], [True, False], [False, False]]


@pytest.mark.parametrize(
    "spec",
    [
        "nothing",
        {"missing": "txt"},
        {"missing": ["image", "text"]},
        {"available": {"image": 0.3, "text": 0.3}},
        {"available": {"image": 30}},
        {"shares": {"image": 0.4}},
        {"rate": -0.1, "type": "both"},
        {"missing": "text", "rate": 1},
    ],
)
def test_wrong_scenarios_are_refused(spec):
    with pytest.raises(UserError, match="scenario"):
        Scenario.parse(spec, IT)


def test_patterns_are_ordered_and_named():
    three = ("a", "b", "c")
    assert [pattern_name(p, three) for p in patterns(three)] == [
        "complete", "missing-c", "missing-b", "missing-a", "missing-b-c", "missing-a-c", "missing-a-b",
    ]  # fmt: skip


@pytest.mark.parametrize("granularity", ["sample", "batch"])
@pytest.mark.parametrize("distribution", ["uniform", "one"])
@pytest.mark.parametrize("M", [2, 3, 4])
def test_masking_never_empties_and_never_invents(granularity, distribution, M):
    generator = torch.Generator().manual_seed(0)
    present = torch.rand(500, M, generator=generator) < 0.6
    present[:, 0] |= ~present.any(1)
    used = Masking(1.0, granularity, distribution).draw(present, generator)
    assert used.any(1).all() and (used <= present).all()
    if granularity == "sample":  # whoever has something to lose loses
        assert ((used.sum(1) < present.sum(1)) == (present.sum(1) > 1)).all()
    if distribution == "one" and granularity == "sample":
        assert ((present.sum(1) - used.sum(1)) <= 1).all()
    assert (Masking(0.0).draw(present, generator) == present).all()


def test_masking_frequencies():
    generator = torch.Generator().manual_seed(1)
    used = Masking(2 / 3).draw(torch.ones(30000, 2, dtype=torch.bool), generator)
    shares = [(used == torch.tensor(row)).all(1).double().mean().item() for row in ([1, 1], [1, 0], [0, 1])]
    assert shares == pytest.approx([1 / 3] * 3, abs=0.01)
    three = Masking(1.0).draw(torch.ones(30000, 3, dtype=torch.bool), generator)
    codes = (three * torch.tensor([1, 2, 4])).sum(1).bincount(minlength=8)
    assert codes[[0, 7]].tolist() == [0, 0] and (codes[1:7].double() / 30000).tolist() == pytest.approx(
        [1 / 6] * 6, abs=0.01
    )


def test_masking_draws_the_same_stream_whatever_is_present():
    a, b = torch.Generator().manual_seed(2), torch.Generator().manual_seed(2)
    Masking(0.5).draw(torch.ones(8, 3, dtype=torch.bool), a)
    Masking(0.5).draw(torch.eye(3, dtype=torch.bool)[[0, 1, 2, 0, 1, 2, 0, 1]], b)
    assert torch.equal(a.get_state(), b.get_state())


@pytest.mark.parametrize("name", ["complete", "missing-image", "a/b", ""])
def test_a_scenario_cannot_take_another_pattern_s_name(name):
    with pytest.raises(UserError, match=r"scenarios.name"):
        Scenario.parse({"missing": "text", "name": name}, IT)
    assert Scenario.parse({"missing": "text", "name": "no-words"}, IT).name == "no-words"
    assert Scenario.parse({"missing": "text", "name": "missing-text"}, IT).name == "missing-text"

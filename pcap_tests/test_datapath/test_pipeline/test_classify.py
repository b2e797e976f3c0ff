"""The classifier against a search through all entries, one after the other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datapath.pipeline.classify import Classifier
from datapath.pipeline.flower import FLOWER_DTYPE

NONE = 0xFFFFFFFF
Entry = tuple[int, Any, Any]


def fields(**values: Any) -> Any:
    record = np.zeros((), dtype=FLOWER_DTYPE)
    for name, value in values.items():
        record[name] = value
    return record


def entry(place: int, value: Any, mask: Any) -> tuple[int, bytes, bytes]:
    return place, value.tobytes(), mask.tobytes()


def packets(*records: Any) -> Any:
    return np.stack(records)


def one_after_the_other(entries: list[Entry], key: Any, least: int = 0) -> int:
    """The slow way: every entry, all bytes."""
    packet = np.frombuffer(key.tobytes(), dtype=np.uint8)

    def matches(value: Any, mask: Any) -> bool:
        return bool((packet & np.frombuffer(mask.tobytes(), dtype=np.uint8) == np.frombuffer(value.tobytes(), dtype=np.uint8)).all())

    return min((place for place, value, mask in entries if place >= least and matches(value, mask)), default=NONE)


HTTP = fields(dst_port=80), fields(dst_port=0xFFFF)
ANY = fields(), fields()


def test_the_first_rule_wins_whatever_its_mask() -> None:
    classifier = Classifier([[entry(0, *HTTP), entry(1, *ANY)], [entry(0, *ANY), entry(1, *HTTP)]])
    web, other = fields(dst_port=80), fields(dst_port=81)
    assert classifier.lookup(packets(web, other), 0).tolist() == [0, 1]
    assert classifier.lookup(packets(web, other), 1).tolist() == [0, 0]


def test_the_search_goes_on_behind_a_rule() -> None:
    classifier = Classifier([[entry(3, *HTTP), entry(5, *HTTP), entry(9, *ANY)]])
    assert [int(classifier.lookup(packets(fields(dst_port=80)), 0, least)[0]) for least in (0, 3, 4, 6, 10)] == [3, 3, 5, 9, NONE]


def test_an_empty_chain_has_nothing() -> None:
    assert Classifier([[], [entry(0, *ANY)]]).lookup(packets(fields()), 0).tolist() == [NONE]


def test_equal_rules_are_no_harm() -> None:
    classifier = Classifier([[entry(place, *HTTP) for place in range(1000)]])
    classifier.check()
    assert classifier.lookup(packets(fields(dst_port=80)), 0, 998).tolist() == [998]


def test_other_arrays_are_refused() -> None:
    with pytest.raises(ValueError, match="FLOWER_DTYPE"):
        Classifier([[]]).lookup(np.zeros(1))
    with pytest.raises(ValueError, match="chain = 1"):
        Classifier([[]]).lookup(packets(fields()), 1)


BITS = [("dst_port", 3), ("src_port", 1), ("ip_proto", 3), ("ct_state", 7), ("ct_mark", 1)]


@st.composite
def entries(draw: st.DrawFn) -> list[Entry]:
    """Few values and masks, so that much overlaps."""
    found = []
    for place in draw(st.lists(st.integers(0, 30), unique=True, max_size=25)):
        value, mask = fields(), fields()
        for name, bits in draw(
            st.lists(st.sampled_from([("dst_port", 3), ("src_port", 1), ("ip_proto", 3), ("ct_state", 7), ("ct_mark", 1)]), max_size=3)
        ):
            mask[name] = draw(st.integers(0, bits))
            value[name] = draw(st.integers(0, bits)) & int(mask[name])
        found.append((place, value, mask))
    return found


KEYS = st.builds(
    fields,
    dst_port=st.integers(0, 3),
    src_port=st.integers(0, 1),
    ip_proto=st.integers(0, 3),
    ct_state=st.integers(0, 7),
    ct_mark=st.integers(0, 1),
)


@given(chains=st.lists(entries(), min_size=1, max_size=3), keys=st.lists(KEYS, min_size=1, max_size=10), least=st.integers(0, 31))
def test_it_finds_what_a_search_through_all_finds(chains: list[list[Entry]], keys: list[Any], least: int) -> None:
    classifier = Classifier([[entry(*each) for each in some] for some in chains], seed=7)
    classifier.check()
    for chain, some in enumerate(chains):
        assert classifier.lookup(packets(*keys), chain, least).tolist() == [one_after_the_other(some, key, least) for key in keys]

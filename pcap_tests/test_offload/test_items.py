"""Every numbered item of the offload contract has a test that is named after it: test_a<section>_<item>_<what holds>.

The contract in plain Python (offload/contract) has tests of its own, which do not count here: an item is tested where it is done, by flow table,
mirror or NIC. Not here: A10 and A11, which have no numbers.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
# By section, its first item and the last one.
SECTIONS = {1: (1, 6), 2: (7, 19), 3: (20, 24), 4: (25, 36), 5: (37, 43), 6: (44, 51), 7: (52, 59), 8: (60, 61), 9: (62, 72)}
OF_THE_CONTRACT_IN_PYTHON = {"test_contract.py", "test_contract_ends.py", "test_contract_twins.py"}
NAME = re.compile(r"test_a(\d+)_(\d+)_\w+$")


def items_of(source: str) -> list[tuple[int, int]]:
    """Section and item of each test function that is named after one; a decorator that leaves it out would be seen as one."""
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
    return [(int(found[1]), int(found[2])) for each in functions if (found := NAME.match(each.name)) and not left_out(each)]


def left_out(function: ast.FunctionDef) -> bool:
    return any(word in ast.unparse(decorator) for decorator in function.decorator_list for word in ("skip", "xfail"))


FILES = {path: items_of(path.read_text()) for path in sorted(TESTS.rglob("test_*.py"))}
TESTED = {item for path, items in FILES.items() if path.name not in OF_THE_CONTRACT_IN_PYTHON for item in items}
ITEMS = [(section, item) for section, (first, last) in SECTIONS.items() for item in range(first, last + 1)]


@pytest.mark.parametrize("item", ITEMS, ids=[f"A{section}.{number}" for section, number in ITEMS])
def test_each_item_has_a_test_named_after_it(item):
    assert item in TESTED


def test_all_items_are_seventy_two_and_no_test_is_named_after_another():
    assert [number for _, number in ITEMS] == list(range(1, 73))
    assert {item for items in FILES.values() for item in items if item[1]} <= set(ITEMS)


def test_names_are_read_and_what_is_left_out_is_not_counted():
    source = "def test_a1_2_holds(): ...\n@pytest.mark.skip\ndef test_a1_3_holds(): ...\ndef test_a1_4(): ...\ndef a1_5_x(): ...\n"
    assert items_of(source) == [(1, 2)]

"""What is asked for, as attributes and as lines of devlink(8): the same in both."""

from __future__ import annotations

import pytest

from offload.devlink import attributes as of
from offload.devlink.changes import EswitchSet, FunctionAdd, FunctionDelete, FunctionSet
from offload.devlink.functions import Function, Nic

NIC = Nic("pci", "0000:08:00.0")
NAMED = [("BUS_NAME", "pci"), ("DEV_NAME", "0000:08:00.0")]
MAC = "00:11:22:33:44:55"


@pytest.mark.parametrize(
    ("change", "line", "about", "asked"),
    [
        (EswitchSet(NIC, "switchdev"), "dev eswitch set pci/0000:08:00.0 mode switchdev", "eswitch mode switchdev", [("ESWITCH_MODE", 1)]),
        (EswitchSet(NIC, "legacy", "transport", "basic"), "dev eswitch set pci/0000:08:00.0 mode legacy inline-mode transport encap-mode basic",
         "eswitch mode legacy, inline-mode transport, encap-mode basic",
         [("ESWITCH_MODE", 0), ("ESWITCH_INLINE_MODE", 3), ("ESWITCH_ENCAP_MODE", 1)]),
        (FunctionAdd(NIC, Function(0, sf=88)), "port add pci/0000:08:00.0 flavour pcisf pfnum 0 sfnum 88", "function pf0sf88: add",
         [("PORT_FLAVOUR", 7), ("PORT_PCI_PF_NUMBER", 0), ("PORT_PCI_SF_NUMBER", 88)]),
        (FunctionAdd(NIC, Function(1, sf=0, controller=2), 77), "port add pci/0000:08:00.0/77 flavour pcisf pfnum 1 sfnum 0 controller 2",
         "function c2pf1sf0: add", [("PORT_INDEX", 77), ("PORT_FLAVOUR", 7), ("PORT_PCI_PF_NUMBER", 1), ("PORT_PCI_SF_NUMBER", 0),
                                    ("PORT_CONTROLLER_NUMBER", 2)]),
        (FunctionAdd(NIC, Function(0)), "port add pci/0000:08:00.0 flavour pcisf pfnum 0", "function pf0sf: add",
         [("PORT_FLAVOUR", 7), ("PORT_PCI_PF_NUMBER", 0)]),
        (FunctionDelete(NIC, 5, "pf0sf88"), "port del pci/0000:08:00.0/5", "function pf0sf88: delete", [("PORT_INDEX", 5)]),
        (FunctionDelete(NIC, 5), "port del pci/0000:08:00.0/5", "port 5: delete", [("PORT_INDEX", 5)]),
        (FunctionSet(NIC, 5, MAC, "active"), f"port function set pci/0000:08:00.0/5 hw_addr {MAC} state active",
         f"port 5: hw_addr {MAC} state active",
         [("PORT_INDEX", 5), ("PORT_FUNCTION", [("HW_ADDR", bytes.fromhex("001122334455")), ("STATE", 1)])]),
        (FunctionSet(NIC, 5, state="inactive", name="pf0sf1"), "port function set pci/0000:08:00.0/5 state inactive",
         "function pf0sf1: state inactive",
         [("PORT_INDEX", 5), ("PORT_FUNCTION", [("STATE", 0)])]),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str | list) else "",
)  # fmt: skip
def test_a_change(change, line, about, asked):
    assert change.line() == f"devlink {line}"
    assert change.about() == f"pci/0000:08:00.0: {about}"
    assert change.attributes() == [*NAMED, *asked]


def test_a_function_that_is_not_there_yet_has_no_number():
    change = FunctionSet(NIC, None, state="active")
    assert change.line() == "devlink port function set pci/0000:08:00.0/PORT_INDEX state active"
    with pytest.raises(ValueError, match="number"):
        change.attributes()


def test_names_out_of_a_kernel_are_no_words_of_a_shell():
    assert EswitchSet(Nic("pci", "a b; c"), "legacy").line() == "devlink dev eswitch set 'pci/a b; c' mode legacy"
    assert FunctionDelete(Nic("$x", "y"), 1).line() == "devlink port del '$x/y/1'"


def test_words_and_numbers():
    assert of.word(of.MODES, 7) == "#7" and of.number(of.MODES, "switchdev") == 1
    with pytest.raises(KeyError):
        of.number(of.MODES, "#7")

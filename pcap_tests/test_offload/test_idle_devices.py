"""Devices that no packet comes through: each change is said once, however many look."""

from __future__ import annotations

import pytest

from offload.drift import Drift, Finding
from offload.idle_devices import IdleDevices

DEVICES = ("eth0", "vf0")


def test_each_change_is_said_once(caplog):
    caplog.set_level("INFO")
    idle = IdleDevices()
    for told in ({"eth0": True, "vf0": True, "lo": False}, {"eth0": False, "vf0": True}, {"eth0": False}, {"eth0": True, "vf0": True}):
        for _ in range(2):
            idle.look(lambda told=told: told, DEVICES)
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "offload: eth0 is down: no packet comes through it"),
        ("WARNING", "offload: vf0 is not there"),
        ("INFO", "offload: eth0 is up again"),
        ("INFO", "offload: vf0 is up again"),
    ]
    assert idle.idle == {} and list(idle.findings()) == []


def test_a_device_that_is_nobody_s_any_more_is_forgotten_without_a_word(caplog):
    caplog.set_level("INFO")
    idle = IdleDevices()
    idle.look(lambda: {"eth0": False}, DEVICES)
    assert list(idle.findings()) == [Finding(Drift.DEVICE_DOWN, "eth0", "no packet comes through it"), Finding(Drift.DEVICE_MISSING, "vf0")]
    idle.look(lambda: {"eth0": False}, ("vf0",))
    assert list(idle.idle) == ["vf0"] and len(caplog.records) == 2


def test_what_could_not_be_seen_is_as_it_was():
    idle = IdleDevices()
    idle.look(lambda: {"eth0": False, "vf0": True}, DEVICES)
    with pytest.raises(OSError, match="no buffers"):
        idle.look(lambda: (_ for _ in ()).throw(OSError("no buffers")), DEVICES)
    assert idle.idle == {"eth0": Drift.DEVICE_DOWN}

"""Floods of new connections under address translation: strangers choose the sources, and must not choose what a connection costs."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address
from time import process_time

from ctcore.config import Config
from ctcore.nat_rules import NatRule, Range
from datapath import Pipeline, craft
from datapath.frame import frames_of

PORTS = range(1024, 1024 + 20_000)
POOL = NatRule("snat", Range(ip_address("192.0.2.0"), ip_address("192.0.2.255")))


def seconds(octets: Iterable[int]) -> float:
    """How long the processor is busy with a connection from each port. octets: the two in the middle of its address, as 16 bits."""
    pipeline = Pipeline(Config(nat=(POOL,)))
    pairs = zip(PORTS, octets, strict=True)
    memory, frames = frames_of([craft.udp(f"10.{middle & 0xFF}.{middle >> 8}.1", "198.51.100.1", port, 53) for port, middle in pairs])
    start = process_time()
    pipeline.process(memory, frames, decisions=False)
    assert pipeline.tracker.count == len(PORTS)
    return process_time() - start


def test_sources_that_agree_in_address_xor_port_cost_no_more_than_others():
    """They are all in one chain if chains go by that, and each connection reads all of it."""
    others = min(seconds(port * 40503 & 0xFFFF for port in PORTS) for _ in range(2))
    crafted = min(seconds(port ^ 0x1234 for port in PORTS) for _ in range(2))
    assert crafted < 8 * max(others, 0.02)

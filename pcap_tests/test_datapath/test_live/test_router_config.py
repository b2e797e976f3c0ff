"""[router] and [[route]] in a node's configuration, and what is wrong with them, by line; addresses that stay the host's."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from ctcore.errors import ConfigError
from datapath.live.config import parse
from datapath.live.neighbours import HOST_NETWORKS, host_networks
from datapath.pipeline.findings import Findings
from datapath.pipeline.rules_file import parse as parse_rules

HEAD = 'rules = "node.tc"\n[[iface]]\nname = "lan"\nrouted = true\n[[iface]]\nname = "wan"\n'  # lines 1 to 6


def test_what_it_says_and_its_defaults():
    config = parse(HEAD + 'routed = true\n[router]\nkernel_routes = true\n[[route]]\nprefix = "10.0.0.0/8"\nvia = "192.0.2.1"\n', "n")
    assert [iface.routed for iface in config.iface] == [True, True]
    assert config.router.kernel_routes and config.router.icmp_rate == 1000 and config.router.icmp_burst == 50
    assert (config.route[0].prefix, config.route[0].via, config.route[0].iface) == ("10.0.0.0/8", "192.0.2.1", None)
    assert parse(HEAD, "n").route == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('inward = "lan"\nrouted = true\n', "n:7: iface[1].inward: expected none for an interface that is routed"),
        ("routed = true\n[iface.filter]\nall = true\n", "n:9: iface[1].filter.all: expected false"),
        ('[[route]]\nprefix = "10.0.0.1/8"\n', "n:8: route[0].prefix: expected a prefix without bits behind it, as '10.0.0.0/8', not '10.0.0.1/8'"),
        ('[[route]]\nprefix = "10.0.0.0/8"\nvia = "gateway"\n', "n:9: route[0].via: expected an address, not 'gateway'"),
        ('[[route]]\nprefix = "10.0.0.0/8"\nvia = "fe80::1"\n', "n:9: route[0].via: fe80::1: expected an address of the prefix's family"),
        ('[[route]]\nprefix = "10.0.0.0/8"\niface = "wan"\n', "n:9: route[0].iface: wan: expected an interface that is routed"),
        ('[[route]]\nprefix = "10.0.0.0/8"\n', "n:7: route[0]: expected `via` or `iface`, or both"),
        (2 * '[[route]]\nprefix = "::/0"\niface = "lan"\n', "n:11: route[1].prefix: ::/0: expected each prefix once: see route[0]"),
        ("[router]\nicmp_rate = -1\n", "n:8: router.icmp_rate: -1"),
        ("[router]\nrate = 5\n", "n:8: router.rate: no such setting"),
    ],
)
def test_what_is_wrong_is_said_by_line(text, said):
    with pytest.raises(ConfigError) as caught:
        parse(HEAD + text, "n")
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize("section", ["[router]\nkernel_routes = true\n", '[[route]]\nprefix = "::/0"\niface = "eth0"\n'])
def test_routes_want_an_interface_that_is_routed(section):
    with pytest.raises(ConfigError, match=r"n:4: (router|route).*: expected an interface with `routed = true`"):
        parse('rules = "node.tc"\n[[iface]]\nname = "eth0"\n' + section, "n")


@pytest.mark.usefixtures("interfaces")
def test_the_host_s_addresses_are_the_host_s_unless_rules_translate_to_them(wires):
    wire = wires("wan")
    with wire.here.netlink() as netlink:
        index = netlink.link_lookup(ifname="wan")[0]
        for address in ("192.0.2.1", "192.0.2.7", "192.0.2.8"):
            netlink.addr("add", index=index, address=address, prefixlen=24)
    rules = parse_rules(
        "tc filter add dev wan egress protocol ip prio 1 flower action ct commit nat src addr 192.0.2.7-192.0.2.9 pipe action pass\n",
        "rules",
        Findings(),
    )
    with wire.here.entered():
        found = host_networks(rules)
    assert set(found) == {*HOST_NETWORKS, ip_network("192.0.2.1/32"), ip_network("192.0.2.255/32")}

"""A node's configuration: what it says, and what is wrong with it, by file, line and key."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctcore.errors import ConfigError, CtmirrorError
from datapath.live.config import load, parse
from pcap_tests.test_datapath.command import run

WHOLE = """
rules = "node.tc"
flowtable = true
cpu = 1

[[iface]]
name = "eth0"
inward = "eth1"
ring = 512

[[iface]]
name = "eth1"
driver = "packet"
[iface.filter]
all = true

[conntrack]
max = 1000
tcp_liberal = true

[memory]
chunks = 4096

[control]
socket = "/run/ctmirror/control.sock"
events = false

[metrics]
listen = "127.0.0.1:9464"

[state]
file = "node.state"
max_age = 60

[privileges]
user = "nobody"

[offload]
backend = "sim"
profile = "tiny"
policy = "by-rate"

[log]
level = "info"
format = "json"
"""
# What a line of it is replaced by, the key that the error names, and what it says.
MISTAKES = [
    ('backend = "sim"', 'backend = "nic"', "offload.backend", "'nic': expected 'sim'"),
    ('policy = "by-rate"', 'policy = "by-luck"', "offload.policy", "'by-luck': expected 'first-come', 'by-rate' or 'by-bytes'"),
    ('profile = "tiny"', "profil = 1", "offload.profil", "no such setting (is profile meant?): expected one of backend, profile, policy"),
    ("flowtable = true", 'flowtable = "perhaps"', "flowtable", "'perhaps': expected true or false"),
    ("flowtable = true", 'flowtable = "no"', "flowtable", "'no': expected true or false"),
    ("ring = 512", 'ring = "512"', "iface[0].ring", "'512': expected a whole number"),
    ("ring = 512", "rings = 512", "iface[0].rings", "no such setting (is ring meant?): expected one of name, driver, inward"),
    ("tcp_liberal = true", "tcp_libral = true", "conntrack.tcp_libral", "no such setting (is tcp_liberal meant?): expected one of acct, "),
    (
        'name = "eth0"',
        'name = "a-name-of-an-interface"',
        "iface[0].name",
        "'a-name-of-an-interface': expected the name of an interface, of 1 to 15 characters",
    ),
    ("cpu = 1", "cpu = -1", "cpu", "-1: expected greater than or equal to 0"),
    ('name = "eth0"', 'name = "a name"', "iface[0].name", "'a name': expected the name of an interface, of 1 to 15 characters"),
    ('name = "eth0"', 'nam = "eth0"', "iface[0].name", "missing"),
    ('inward = "eth1"', 'inward = "eth7"', "iface[0].inward", "eth7: expected another interface of this file"),
    ("ring = 512", "ring = 500", "iface[0].ring", "ring"),
    ('driver = "packet"', 'driver = "dpdk"', "iface[1].driver", "'dpdk': expected 'auto', 'xdp-native'"),
    ("all = true", "every = true", "iface[1].filter.every", "no such setting"),
    ("max = 1000", "max = -1", "conntrack.max", "max"),
    ("max = 1000", "maximum = 1000", "conntrack.maximum", "no such setting (is max meant?): expected one of acct, "),
    ("tcp_liberal = true", 'tcp_liberal = "so"', "conntrack.tcp_liberal", ""),
    ("chunks = 4096", "chunks = 4096.5", "memory.chunks", "4096.5: expected a whole number"),
    ("events = false", "event = false", "control.event", "no such setting"),
    ('listen = "127.0.0.1:9464"', "listen = 9464", "metrics.listen", "9464: expected a text"),
    ("max_age = 60", "max_age = 0", "state.max_age", "0: expected greater than or equal to 1"),
    ('user = "nobody"', "user = true", "privileges.user", "True: expected a text"),
    ('level = "info"', 'level = "loud"', "log.level", "'loud': expected 'debug', 'info', 'warning' or 'error'"),
    ('format = "json"', 'format = "xml"', "log.format", "'xml': expected 'text' or 'json'"),
]


def told(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(text, "n")
    return str(caught.value)


def test_the_whole_of_it_is_right():
    config = parse(WHOLE, "n")
    assert [iface.name for iface in config.iface] == ["eth0", "eth1"] and config.iface[1].filter.all and config.cpu == 1
    assert (config.tracking().capacity, config.privileges.user, config.metrics.zones, config.log.format) == (1000, "nobody", 32, "json")


@pytest.mark.parametrize(("right", "wrong", "key", "said"), MISTAKES, ids=[wrong for _, wrong, _, _ in MISTAKES])
def test_a_mistake_is_told_by_line_and_key(right, wrong, key, said):
    assert WHOLE.count(right) == 1
    line = WHOLE[: WHOLE.index(right)].count("\n") + 1
    if said == "missing":  # there is no such line: that of its section
        line -= 1
    error = told(WHOLE.replace(right, wrong))
    assert error.startswith(f"n:{line}: {key}: {said}") and "\n" not in error


@given(st.sampled_from(MISTAKES), st.lists(st.sampled_from(["", "# max = 7", "   ", "  # [iface]"]), min_size=60, max_size=60))
def test_the_line_is_right_whatever_stands_between(mistake, between):
    """Comments and blank lines move it, and are never taken for it."""
    right, wrong, key, said = mistake
    lines = [line for filler, line in zip(between, WHOLE.replace(right, wrong).split("\n"), strict=False) for line in (filler, line)]
    wanted = "[[iface]]" if said == "missing" else wrong
    assert told("\n".join(lines)).startswith(f"n:{lines.index(wanted) + 1}: {key}: ")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rules = node.tc\n", "n:1:9: invalid value"),
        ('rules = "a"\n[[iface]\n', "n:2:8: "),
        ('rules = "a"\nrules = "b"\n', "n:2:12: cannot overwrite a value"),
        ('rules = "a"\n', "n: iface: missing"),
        (WHOLE.replace('backend = "sim"\n', ""), "n:40: offload.policy: expected `backend` with it: sim"),
        (WHOLE.replace("flowtable = true", "flowtable = false"), "n:39: offload.backend: expected `flowtable = true`: connections are off"),
        ('rules = "a"\niface = []\n', "n:2: iface: "),
        ('rules = "a"\n[[iface]]\nname = "x"\n[[iface]]\nname = "x"\n', "n:5: iface[1].name: x: expected each interface once"),
        (
            'rules = "a"\n[[iface]]\nname = "x"\nfilter = { ports = ["tcp 22", "http"] }\n',
            "n:4: iface[0].filter.ports[1]: expected a protocol and a port",
        ),
        (
            'rules = "a"\n[[iface]]\nname = "x"\nring = 64\nfilter = { ports = ["tcp 99999"] }\n',
            "n:5: iface[0].filter.ports: ports: tcp 99999: expected",
        ),
        ('rules = "a"\n[[iface]]\nname = "x"\nring = 64\n[iface.filter]\nlocal = ["10.0.0.1/8"]\n', "n:6: iface[0].filter.local: local: "),
        ('rules = "a"\n[[iface]]\nname = "x"\nfilter.all = 3\n', "n:4: iface[0].filter.all: 3: expected true or false"),
    ],
)
def test_what_is_no_toml_or_no_configuration(text, said):
    assert told(text).lower().startswith(said.lower())


def test_files_are_relative_to_it_and_errors_name_it(tmp_path):
    (tmp_path / "node.toml").write_text(WHOLE)
    config = load(str(tmp_path / "node.toml"))
    assert (config.rules, config.state.file) == (str(tmp_path / "node.tc"), str(tmp_path / "node.state"))
    assert config.offload.profile == "tiny", "a name is none of a file"
    (tmp_path / "node.toml").write_text(WHOLE.replace('"tiny"', '"mine.toml"'))
    assert load(str(tmp_path / "node.toml")).offload.profile == str(tmp_path / "mine.toml")
    with pytest.raises(ConfigError, match=r"none\.toml: cannot be read: No such file or directory"):
        load(str(tmp_path / "none.toml"))
    (tmp_path / "node.toml").write_bytes(b"rules = '\xff'")
    with pytest.raises(ConfigError, match=r"node\.toml: byte 9 is no UTF-8: expected TOML"):
        load(str(tmp_path / "node.toml"))


@given(st.text(alphabet='ab=[]".\n# {}1,', max_size=80))
def test_no_text_makes_anything_but_one_line_of_an_error(text):
    try:
        parse(text, "n")
    except ConfigError as error:
        assert "\n" not in str(error) and str(error).startswith("n:")


@pytest.mark.parametrize("ring", [64, 128, 65536])
def test_small_rings_send_as_much_at_a_time_as_they_hold(ring):
    config = parse(f'rules = "a"\n[[iface]]\nname = "x"\nring = {ring}\n', "n")
    assert config.iface[0].wanted(0).xsk.tx_budget == min(ring, 256)


# --- functions of a NIC -----------------------------------------------------------------------------------------------------------------------

FUNCTIONS = """
rules = "node.tc"
[[iface]]
name = "p0@0000:08:00.0"
inward = "pf0vf3@0000:08:00.0"
routed = false
[[iface]]
name = "pf0vf3@0000:08:00.0"
[[iface]]
name = "eth5"
routed = true
[[route]]
prefix = "10.0.0.0/8"
iface = "eth5"
"""
STANDING = {"p0@0000:08:00.0": "ens1", "pf0vf3@0000:08:00.0": "ens1_3"}


def loaded(tmp_path, iface_of, text=FUNCTIONS):
    (tmp_path / "node.toml").write_text(text)
    return load(str(tmp_path / "node.toml"), None, iface_of)


def test_functions_of_a_nic_are_the_interfaces_that_stand_for_them(tmp_path):
    config = loaded(tmp_path, lambda name: STANDING.get(name, name))
    assert [(iface.name, iface.inward) for iface in config.iface] == [("ens1", "ens1_3"), ("ens1_3", None), ("eth5", None)]
    assert config.route[0].iface == "eth5"
    assert [config.called(device) for device in (*STANDING, "eth5", "eth9")] == ["ens1", "ens1_3", "eth5", "eth9"]


def test_routes_go_by_functions_too(tmp_path):
    text = FUNCTIONS.replace('"eth5"', '"pf0sf8@0000:08:00.0"')
    config = loaded(tmp_path, lambda name: (STANDING | {"pf0sf8@0000:08:00.0": "sf8"}).get(name, name), text)
    assert (config.route[0].iface, config.iface[2].name) == ("sf8", "sf8")


def test_nothing_is_asked_for_where_nobody_can_say(tmp_path):
    config = loaded(tmp_path, None)
    assert config.iface[0].name == "p0@0000:08:00.0" and config.called("p0@0000:08:00.0") == "p0@0000:08:00.0"


def test_a_function_that_is_not_there_is_told_by_line_and_key(tmp_path):
    def refused(name):
        if name in STANDING:
            raise CtmirrorError("no interface stands for it here")
        return name

    with pytest.raises(ConfigError, match=r"node.toml:4: iface\[0\].name: no interface stands for it here$"):
        loaded(tmp_path, refused)


def test_two_names_of_one_interface_are_a_mistake(tmp_path):
    with pytest.raises(ConfigError, match=r"node.toml:8: iface\[1\].name: pf0vf3@0000:08:00.0: this is ens1: expected each interface once$"):
        loaded(tmp_path, lambda name: "ens1" if "@" in name else name)


def test_check_says_which_functions_have_no_interface_here(capfd, tmp_path):
    (tmp_path / "node.tc").write_text("tc filter add dev pf0vf3@0000:08:00.0 ingress protocol ip prio 1 flower action drop\n")
    (tmp_path / "node.toml").write_text(FUNCTIONS)
    code, out, err = run(capfd, "run", "--config", str(tmp_path / "node.toml"), "--check")
    assert code == 0 and "pf0vf3@0000:08:00.0: no such interface in this network namespace now" in err
    assert "this node has no such interface" not in err
    code, out, err = run(capfd, "run", "--config", str(tmp_path / "node.toml"))
    assert (code, out, err.count("\n")) == (2, "", 1) and "iface[0].name: p0@pci/0000:08:00.0: no interface stands for it here" in err

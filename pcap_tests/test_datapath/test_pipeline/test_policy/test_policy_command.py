"""`ctmirror policy` as people call it."""

from __future__ import annotations

import re
import sys
from ipaddress import ip_network
from pathlib import Path

import pytest
import yaml

from datapath.extras import remedy
from datapath.pipeline import rules_file, tc_text
from datapath.pipeline.findings import Findings
from datapath.pipeline.policy.compiler import Options, compile_policies
from datapath.pipeline.policy.devices import attach
from datapath.pipeline.policy.load import load
from datapath.pipeline.tc_print import print_ruleset
from datapath.pipeline.validate import validate
from pcap_tests.test_datapath.command import run
from pcap_tests.test_datapath.test_pipeline.test_policy.recipes import NAMES, Recipe

PAGE = (Path(__file__).parents[4] / "docs/policy.md").read_text()


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A recipe's objects as a file in the current directory."""
    monkeypatch.chdir(tmp_path)

    def write(name):
        Path(f"{name}.yaml").write_text(yaml.safe_dump_all(Recipe(name).objects))
        return f"{name}.yaml"

    return write


# --- explain ----------------------------------------------------------------------------------------------------------------------------


def test_the_examples_of_the_page_are_those_of_today(capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("shop.yaml").write_text(re.search(r"^```yaml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)[1])
    shown = re.findall(r"^```\n\$ ctmirror (policy explain .*?)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert len(shown) == 2
    assert [run(capfd, *command.split())[:2] for command, _ in shown] == [(code, text) for code, (_, text) in enumerate(shown)]


def test_explain_names_the_policy_and_the_rule_at_both_ends(capfd, files):
    code, out, err = run(capfd, "policy", "explain", files("both-ends"), "--from", "left/a", "--to", "right/x", "--port", "80/tcp")
    assert (code, err) == (0, "")
    assert out.splitlines()[:3] == [
        "left/a (10.1.0.2) > right/x (10.1.0.4) 80/tcp: allowed, and so are its replies",
        "  leaving   allowed  NetworkPolicy left/out allows it by egress[0]",
        "  entering  allowed  NetworkPolicy right/in allows it by ingress[0]",
    ]


def test_explain_tells_each_family_of_two_pods_and_is_denied_if_one_is(capfd, files):
    name = files("dual-stack")
    code, out, _ = run(capfd, "policy", "explain", name, "--from", "shop/web", "--to", "shop/db", "--port", "80")
    assert code == 1
    assert "shop/web (10.1.0.2) > shop/db (10.1.0.4) 80/tcp: denied" in out and "shop/web (fd00:1::2) > shop/db (fd00:1::4) 80/tcp: denied" in out
    code, out, _ = run(capfd, "policy", "explain", name, "--from", "198.51.100.7", "--to", "shop/db", "--port", "443/TCP")
    assert code == 0 and "2001" not in out


def test_explain_knows_whose_an_address_is(capfd, files):
    name = files("own-node")
    code, out, _ = run(capfd, "policy", "explain", name, "--from", "192.0.2.11", "--to", "10.1.0.2", "--port", "icmp", "--node-traffic", "from")
    assert code == 0
    assert out.startswith("node n1 (192.0.2.11) > shop/a (10.1.0.2) icmp: allowed")
    assert "traffic from a pod's own node is allowed (--node-traffic from)" in out
    assert run(capfd, "policy", "explain", name, "--from", "192.0.2.11", "--to", "shop/a", "--port", "80", "--node-traffic", "none", "-q") == (
        1,
        "",
        "",
    )


def test_explain_takes_the_name_of_a_port_of_the_target(capfd, files):
    def asked(target, port):
        return run(capfd, "policy", "explain", files("named-port"), "--from", "shop/client", "--to", target, "--port", port)

    assert asked("shop/old", "http") == asked("shop/old", "8080/tcp")
    assert asked("shop/new", "http/TCP") == asked("shop/new", "9090")
    assert (asked("shop/old", "http")[0], asked("shop/new", "admin")[0]) == (0, 1)
    code, out, err = asked("shop/new", "web")
    assert (code, out) == (2, "")
    assert err == "ctmirror: --port 'web': shop/new has no such port: expected one of its ports (http/tcp, admin/tcp), or N/tcp\n"
    assert "shop/bare has no such port: expected one of its ports (none with a name)" in asked("shop/bare", "http")[2]
    assert "has no such port" in asked("shop/new", "http/udp")[2]
    assert "names are those of a pod's ports" in asked("198.51.100.7", "http")[2]


def test_explain_names_the_exception_that_is_the_cause(capfd, files):
    """Of the rule that would have allowed the port; not where another rule allows it, nor of a port that is not meant."""
    name = files("ip-block-except")
    text = Path(name).read_text()
    block = re.search(r"cidr: (\S+)\n\s+except:\n\s+- (\S+)", text)
    outside = str(next(ip_network(block[2]).hosts()))
    _, out, _ = run(capfd, "policy", "explain", name, "--from", outside, "--to", "shop/web", "--port", "80")
    assert f"and no rule allows it; NetworkPolicy shop/office ingress[0] has {block[1]}, but `except {block[2]}`\n" in out


SERVICE = """---
apiVersion: v1
kind: Service
metadata: {name: api, namespace: left}
spec: {clusterIP: 10.96.0.9, clusterIPs: [10.96.0.9, "fd00:96::9"], externalIPs: [7, none]}
"""


def test_explain_knows_the_addresses_of_services(capfd, files):
    name = files("both-ends")
    Path(name).write_text(Path(name).read_text() + SERVICE)
    code, out, _ = run(capfd, "policy", "explain", name, "--from", "left/a", "--to", "10.96.0.9", "--port", "80")
    assert code == 1
    assert out.splitlines()[:3] == [
        "left/a (10.1.0.2) > Service left/api (10.96.0.9) 80/tcp: denied",
        "  leaving   denied   NetworkPolicy left/out selects left/a for egress, and no rule allows it; "
        "10.96.0.9 is the address of Service left/api, which policies do not see: ask for a pod behind it",
        "  entering  allowed  10.96.0.9 is the address of Service left/api: no policy applies",
    ]


def test_explain_says_with_verbose_what_was_taken_for_granted(capfd, files):
    name = files("allow-from-namespace-by-name")
    _, _, err = run(capfd, "policy", "explain", name, "--from", "blog/front", "--to", "shop/web", "--port", "80", "-v")
    assert err == "note: namespaces that are in no file, taken to have no labels but the name: blog, shop, wiki\n"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--from", "left/none", "--to", "left/a", "--port", "80"], "--from 'left/none': no such pod with an address in the files"),
        (["--from", "left/a", "--to", "somewhere", "--port", "80"], "--to 'somewhere': expected NAMESPACE/POD or an address"),
        (
            ["--from", "left/a", "--to", "left/b", "--port", "80/gre"],
            "--port '80/gre': expected N/tcp, N/udp or N/sctp with N from 1 to 65535, the name of a port, or icmp",
        ),
        (["--from", "left/a", "--to", "left/b", "--port", "0"], "--port '0': expected N/tcp"),
        (["--from", "left/a", "--to", "left/b", "--port", "99999/udp"], "--port '99999/udp': expected N/tcp"),
        (["--from", "left/a", "--to", "2001:db8::1", "--port", "80"], "left/a > outside: expected two ends with addresses of one family"),
    ],
)
def test_what_explain_does_not_take(capfd, files, options, expected):
    code, out, err = run(capfd, "policy", "explain", files("both-ends"), *options)
    assert (code, out) == (2, "") and err.startswith(f"ctmirror: {expected}") and err.count("\n") == 1


# --- compile ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("established", ["packet", "connection"])
@pytest.mark.parametrize("form", ["tc", "yaml"])
def test_what_compile_prints_is_read_as_the_rules_that_were_compiled(capfd, files, form, established):
    name = files("three-tiers")
    code, out, err = run(capfd, "policy", "compile", name, "-o", f"rules.{form}", "--format", form, "--established", established)
    found = compile_policies(load([name]), attach(load([name]).pods), Options(established=established))
    assert (code, out, err) == (0, "", f"policies 3, pods 4, rules {len(found.rules)}\n")
    assert rules_file.load(f"rules.{form}") == found
    assert run(capfd, "rules", "check", f"rules.{form}")[0] == 0


def test_compile_prints_everything_that_is_wrong_with_its_files(capfd, files):
    text = Path(files("both-ends")).read_text()
    Path("wrong.yaml").write_text(text.replace("podSelector:", "podSelctor:").replace("- Egress", "- egress"))
    code, out, err = run(capfd, "policy", "compile", "wrong.yaml")
    assert (code, out) == (2, "")
    assert err.count("\n") > 1 and err.count("did you mean podSelector?") == text.count("podSelector:")
    assert all(line.startswith("ctmirror: wrong.yaml:") for line in err.splitlines())


@pytest.mark.parametrize("form", ["tc", "yaml"])
def test_compiled_rules_say_whose_they_are(capfd, files, form):
    """Devices of all pods at the head, policies above the rules of each hook, or in YAML at the head as well."""
    _, out, _ = run(capfd, "policy", "compile", files("both-ends"), "--format", form, "--device-of", "{namespace}-{name}")
    lines = out.splitlines()
    assert lines[0] == "# pod left/a: device left-a, zone 1"
    assert [line.split()[2] for line in lines if line.startswith("# pod ")] == ["left/a:", "left/b:", "right/x:", "right/y:"]
    comments = [i for i, line in enumerate(lines) if line.startswith("# ") and "what it" in line]
    leaving = next(i for i in comments if "NetworkPolicy left/out" in lines[i])
    if form == "tc":
        assert lines[leaving] == "# left/a, what it sends (egress): NetworkPolicy left/out"
        assert all(lines[i + 1].startswith("tc filter add dev ") and not lines[i - 1].startswith("# left") for i in comments)
        assert "dev left-a ingress" in lines[leaving + 1]
    else:
        assert lines[leaving] == "# left-a ingress: what it sends (egress): NetworkPolicy left/out"


def test_pods_of_a_mapping_that_are_in_no_file(capfd, files):
    Path("devices.yaml").write_text("left/aa: one\nleft/b: two\nelse/where: three\n")
    assert run(capfd, "policy", "compile", files("both-ends"), "--devices", "devices.yaml") == (
        2,
        "",
        "ctmirror: devices.yaml: 'left/aa': no such pod with an address in the files: did you mean left/a?\n"
        "ctmirror: devices.yaml: 'else/where': no such pod with an address in the files\n",
    )


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_s_rules_are_such_as_a_rules_file_may_hold(name):
    cluster, said = Recipe(name).cluster(), Findings()
    made = compile_policies(cluster, attach(pod for pod in cluster.pods if not pod.host_network), Options(forward="redirect"))
    assert validate(made, said) == made
    assert (said.errors, said.warnings) == ([], [])
    assert tc_text.parse(print_ruleset(made), name, said) == made


def test_compile_tells_with_verbose_whose_device_is_which(capfd, files):
    Path("devices.yaml").write_text("shop/web: {device: web0, zone: 7}\n")
    options = ("--devices", "devices.yaml", "--device-of", "{name}0", "-v", "-o", "rules.tc")
    code, _, err = run(capfd, "policy", "compile", files("deny-all-ingress-to-app"), *options)
    assert code == 0 and "  web0             zone     7  shop/web\n" in err and "  db0              zone     2  shop/db\n" in err
    assert "tc qdisc add dev web0 clsact\n" in Path("rules.tc").read_text()


def test_what_compile_does_not_take(capfd, files):
    name = files("host-network")
    code, out, err = run(capfd, "policy", "compile", name, "--node", "n2")
    assert (code, out) == (2, "") and err.startswith("ctmirror: no pod of node 'n2' with an address of its own in the files; expected some")
    assert run(capfd, "policy", "compile", name, "--device-of", "{x}")[2].startswith("ctmirror: --device-of '{x}': '{x}': expected {namespace}")
    assert run(capfd, "policy", "compile", "none.yaml")[2] == "ctmirror: none.yaml: No such file or directory\n"


@pytest.mark.parametrize("word", [["compile"], ["explain"]])
def test_both_commands_have_help_with_examples(capfd, word):
    code, out, _ = run(capfd, "policy", *word, "--help")
    assert code == 0 and f"ctmirror policy {word[0]}" in out.partition("Examples:")[2]


@pytest.mark.parametrize(("module", "name"), [("pydantic", "pydantic"), ("yaml", "PyYAML")])
def test_without_its_libraries_the_command_names_the_extra(capfd, files, monkeypatch, module, name):
    monkeypatch.setitem(sys.modules, module, None)
    code, _, err = run(capfd, "policy", "compile", files("both-ends"))
    assert (code, err) == (2, f"ctmirror: policies need {name}: {remedy('policy')}\n")

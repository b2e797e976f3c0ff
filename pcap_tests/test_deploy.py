"""deploy/: what it names is there, its configurations are right, and it asks for no more rights than a node needs.

No container is built and no cluster asked here: files are read as these would read them.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from datapath.commands.run import command as run_command
from datapath.live import config as configuration
from datapath.live.metrics import METRICS, OWN
from datapath.live.metrics_server import PATIENCE
from datapath.live.service import LATE
from pcap_tests.required import cannot
from pcap_tests.test_datapath.command import in_process

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
THREE = {"NET_RAW", "NET_ADMIN", "BPF"}
UID = 65532


def options_of(words: list[str]) -> None:
    """The command line that follows `ctmirror` is one that it takes."""
    assert words[0] == "run"
    context = run_command.make_context("run", words[1:])
    assert isinstance(context, click.Context)


def checked(folder: Path) -> configuration.NodeConfig:
    """node.toml of a folder, as `--check` has it."""
    done = in_process("run", "--config", folder / "node.toml", "--check")
    assert done.returncode == 0, done.stderr
    return configuration.load(str(folder / "node.toml"))


def test_the_example_is_right_and_gives_up_its_rights():
    config = checked(DEPLOY)
    assert config.privileges.drop and config.metrics.listen == "127.0.0.1:9464" and config.log.format == "json"
    done = in_process("rules", "check", DEPLOY / "node.tc")
    assert (done.returncode, done.stderr) == (0, "")


# --- systemd ----------------------------------------------------------------------------------------------------------------------------------


def unit() -> dict[str, list[str]]:
    """Settings of all sections, each with its values in order."""
    found: dict[str, list[str]] = {}
    for line in (DEPLOY / "ctmirror.service").read_text().splitlines():
        if line and line[0] not in "#[":
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


def test_the_unit_s_commands_are_ours():
    it = unit()
    (start,) = it["ExecStart"]
    check, hang_up = it["ExecReload"]
    for line in (start, check):
        program, *words = shlex.split(line)
        assert program == "/opt/ctmirror/bin/ctmirror"
        options_of(words)
    assert hang_up == "/bin/kill -HUP $MAINPID" and "--check" in check and it["Type"] == ["notify"]


def test_the_unit_gives_the_datapath_time_enough_to_be_alive():
    """It is asked every half of the watchdog's time, and waited for LATE seconds."""
    (seconds,) = map(float, unit()["WatchdogSec"])
    assert seconds / 2 + LATE < seconds


def test_the_unit_asks_for_three_capabilities_and_no_root():
    it = unit()
    wanted = {f"CAP_{name}" for name in THREE}
    assert set(it["CapabilityBoundingSet"][0].split()) == set(it["AmbientCapabilities"][0].split()) == wanted
    assert it["DynamicUser"] == it["NoNewPrivileges"] == ["yes"] and it["ProtectSystem"] == ["strict"]


def test_the_unit_s_folders_are_those_of_the_example():
    it, config = unit(), configuration.load(str(DEPLOY / "node.toml"))
    assert Path(config.control.socket).parent == Path("/run") / it["RuntimeDirectory"][0]
    assert Path(config.state.file or "").parent == Path("/var/lib") / it["StateDirectory"][0]
    assert f"/etc/{it['ConfigurationDirectory'][0]}/node.toml" in it["ExecStart"][0]


def test_systemd_takes_the_unit_and_finds_little_exposed(tmp_path):
    if shutil.which("systemd-analyze") is None:
        cannot("systemd-analyze is missing, which reads units")
    text = (DEPLOY / "ctmirror.service").read_text()
    (tmp_path / "ctmirror.service").write_text(text.replace("/opt/ctmirror/bin/ctmirror", "/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", str(tmp_path / "ctmirror.service")], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=30", str(tmp_path / "ctmirror.service")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


# --- the image --------------------------------------------------------------------------------------------------------------------------------


def instructions() -> list[tuple[str, str]]:
    """Of the Dockerfile, with continued lines as one."""
    text = re.sub(r"^#.*\n", "", (DEPLOY / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    found = [line.partition(" ")[::2] for line in text.splitlines() if line.strip()]
    known = {"FROM", "RUN", "COPY", "WORKDIR", "ENV", "USER", "STOPSIGNAL", "HEALTHCHECK", "ENTRYPOINT", "CMD"}
    assert {word for word, _ in found} <= known
    return found


def all_of(word: str) -> list[str]:
    return [rest for found, rest in instructions() if found == word]


def test_what_the_image_copies_is_there_and_not_ignored():
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    local = [rest.split()[:-1] for rest in all_of("COPY") if "--from" not in rest]
    names = {name for each in local for name in each}
    assert {"ctcore", "datapath", "offload", "pyproject.toml", "setup.py"} <= names
    assert all((ROOT / name).exists() for name in names)
    assert ignored.index("*") < min(ignored.index(f"!{name}") for name in names)
    (stage,) = (rest.split() for rest in all_of("COPY") if "--from" in rest)
    assert stage[0] == "--from=build" and any(rest.endswith(" AS build") for rest in all_of("FROM"))


def test_the_image_installs_extras_that_exist_and_all_that_the_example_needs():
    (extras,) = re.findall(r"'\.\[([\w,]+)\]'", " ".join(all_of("RUN")))
    assert set(extras.split(",")) <= set(EXTRAS) and {"live", "metrics"} <= set(extras.split(","))


def test_both_stages_have_the_same_python():
    assert len({rest.split()[0] for rest in all_of("FROM")}) == 1


def test_the_image_s_user_is_not_root_and_its_interpreter_has_three_capabilities():
    assert all_of("USER") == [f"{UID}:{UID}"]
    (given,) = re.findall(r"setcap ([\w,]+)=ep (\S+)", " ".join(all_of("RUN")))
    assert {name.removeprefix("cap_").upper() for name in given[0].split(",")} == THREE
    (entry,) = map(json.loads, all_of("ENTRYPOINT"))
    assert entry[0] == given[1] and entry[1:] == ["-P", "-m", "datapath"]
    (words,) = map(json.loads, all_of("CMD"))
    options_of(words)


def test_the_image_s_check_is_a_command():
    (check,) = all_of("HEALTHCHECK")
    program, *words = json.loads(check[check.index("[") :])
    done = in_process(*words, "--socket", "/nonexistent")
    assert program == "/opt/ctmirror/bin/ctmirror" and done.returncode == 2 and "no node is running there" in done.stderr


# --- Kubernetes -------------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def objects() -> dict[str, Any]:
    found = list(yaml.safe_load_all((DEPLOY / "daemonset.yaml").read_text()))
    assert all(set(each) >= {"apiVersion", "kind", "metadata"} for each in found)
    return {each["kind"]: each for each in found}


@pytest.fixture(scope="module")
def pod(objects) -> dict[str, Any]:
    return objects["DaemonSet"]["spec"]["template"]["spec"]


@pytest.fixture
def config(objects, tmp_path) -> configuration.NodeConfig:
    for name, text in objects["ConfigMap"]["data"].items():
        (tmp_path / name).write_text(text)
    return checked(tmp_path)


def test_what_belongs_together_has_the_same_names(objects, pod):
    namespace = objects["Namespace"]["metadata"]["name"]
    assert objects["ConfigMap"]["metadata"]["namespace"] == objects["DaemonSet"]["metadata"]["namespace"] == namespace
    spec = objects["DaemonSet"]["spec"]
    assert spec["selector"]["matchLabels"] == spec["template"]["metadata"]["labels"]
    assert objects["DaemonSet"]["apiVersion"] == "apps/v1"
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounted = {mount["name"] for container in (*pod["containers"], *pod["initContainers"]) for mount in container["volumeMounts"]}
    assert mounted == set(volumes) and volumes["config"]["configMap"]["name"] == objects["ConfigMap"]["metadata"]["name"]


def test_a_container_has_three_capabilities_and_nothing_to_write_to(pod):
    (container,) = pod["containers"]
    allowed = container["securityContext"]
    assert allowed["capabilities"]["drop"] == ["ALL"] and set(allowed["capabilities"]["add"]) == THREE
    assert allowed["readOnlyRootFilesystem"] and "privileged" not in allowed
    assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] == UID and pod["hostNetwork"]
    assert not pod["automountServiceAccountToken"]
    (first,) = pod["initContainers"]
    assert first["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": ["CHOWN"]} and first["command"][1] == f"{UID}:{UID}"
    assert first["command"][2] == first["volumeMounts"][0]["mountPath"]


def test_its_configuration_fits_the_container(config, pod):
    (container,) = pod["containers"]
    options_of(container["args"])
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert container["args"][container["args"].index("--config") + 1] == f"{mounts['config']}/node.toml"
    assert str(Path(config.control.socket).parent) == mounts["run"] and str(Path(config.state.file or "").parent) == mounts["state"]
    assert config.privileges.drop and config.privileges.user is None and config.log.format == "json"


def test_its_probes_ask_where_the_node_answers(config, pod):
    (container,) = pod["containers"]
    host, port = configuration.listen_address(config.metrics.listen or "")
    for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
        probe = container[kind]
        assert probe["httpGet"] == {"host": host, "port": port, "path": "/healthz"} and probe["timeoutSeconds"] > PATIENCE


# --- Grafana ----------------------------------------------------------------------------------------------------------------------------------

SUFFIXES = {"counter": [""], "gauge": [""], "histogram": ["_bucket", "_sum", "_count"]}
KNOWN = {f"{metric.full_name}{suffix}": {*metric.labels, "instance"} for metric in METRICS for suffix in SUFFIXES[metric.kind]}
KNOWN |= {name: {*labels, "instance"} for name, _, _, labels in OWN}
KNOWN |= {f"{metric.full_name}_bucket": {"le", "instance"} for metric in METRICS if metric.kind == "histogram"}
PROCESS = {"process_cpu_seconds_total": {"instance"}, "process_resident_memory_bytes": {"instance"}}


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    return json.loads((DEPLOY / "grafana-dashboard.json").read_text())


def queries(dashboard: dict[str, Any]) -> list[str]:
    return [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]


def test_every_metric_that_is_queried_exists_and_has_the_labels(dashboard):
    known = KNOWN | PROCESS
    for query in queries(dashboard):
        names = re.findall(r"\b((?:ctmirror|process)_\w+)", query)
        assert names and set(names) <= set(known), query
        asked = {label for part in re.findall(r"\{([^}]*)\}", query) for label in re.findall(r"(\w+)\s*[=!]", part)}
        asked |= {label.strip() for part in re.findall(r"by \(([^)]*)\)", query) for label in part.split(",")}
        assert all(asked <= known[name] for name in names), query
        assert all(query.count(left) == query.count(right) for left, right in ("()", "{}", "[]"))
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            labels = set().union(*(known[name] for name in re.findall(r"\b((?:ctmirror|process)_\w+)", target["expr"])))
            assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= labels


def test_every_metric_that_there_is_to_watch_is_on_it(dashboard):
    shown = " ".join(queries(dashboard))
    hidden = {"state_bytes", "frames_sent", "loop_rounds", "loop_waits", "iface_mended", "rules", "router_neighbours"}
    assert {metric.name for metric in METRICS if f"ctmirror_{metric.name}" not in shown} == hidden


def test_counters_are_shown_as_rates(dashboard):
    counters = [metric.full_name for metric in METRICS if metric.kind == "counter"]
    for query in queries(dashboard):
        for name in counters:
            assert all(query[: match.start()].endswith("rate(") for match in re.finditer(rf"\b{name}\b", query)), query


def test_panels_have_numbers_of_their_own_and_do_not_overlap(dashboard):
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        mine = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24 and not mine & cells, panel["title"]
        cells |= mine
        assert panel["type"] == "row" or panel["datasource"]["uid"] == "${datasource}"
    assert [each["name"] for each in dashboard["templating"]["list"]] == ["datasource", "instance"]


def test_every_query_is_of_the_nodes_that_are_chosen(dashboard):
    for query in queries(dashboard):
        assert len(re.findall(r'instance=~"\$instance"', query)) == len(re.findall(r"\b(?:ctmirror|process)_\w+", query)), query

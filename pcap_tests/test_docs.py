"""The documentation is true: examples run, outputs are those of today, links lead somewhere, and what is listed exists."""

from __future__ import annotations

import importlib.util
import re
import tempfile
import tomllib
from pathlib import Path

import pytest

from ctcore.config import Config
from datapath.cli import COMMANDS
from datapath.differences import lines_of
from datapath.live.config import parse as parse_configuration
from datapath.pipeline.findings import Findings
from datapath.pipeline.rules_file import parse as parse_rules
from datapath.scenario import expectation, steps, words
from datapath.scenario.run import judged
from datapath.scenario.text import parse

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs/api.md").read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def generate():
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs/generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_the_examples_of_the_python_interface_run(number, tmp_path, monkeypatch, capsys):
    (tmp_path / "pcap_tests").symlink_to(ROOT / "pcap_tests")
    (tmp_path / "written").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "written"))
    names: dict = {}
    exec(compile(EXAMPLES[number], f"docs/api.md, example {number}", "exec"), names)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pcap_tests", "written"]  # nothing is left where it is tried
    if number == 0:
        assert re.search(r"^\d+ alive; the largest has \d+ packets$", capsys.readouterr().out, re.MULTILINE)
        assert names["accepted"].stat().st_size > 100_000


def test_there_are_examples():
    assert len(EXAMPLES) == 4


# --- docs/scenarios.md -----------------------------------------------------------------------------------------------------------------

SCENARIOS = (ROOT / "docs/scenarios.md").read_text()
SCENARIO_EXAMPLES = re.findall(r"^```ct\n(.*?)^```$", SCENARIOS, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("judge", ["engine", "model"])
@pytest.mark.parametrize("number", range(len(SCENARIO_EXAMPLES)))
def test_the_scenarios_of_the_page_hold(number, judge):
    scenario = parse(SCENARIO_EXAMPLES[number], f"example {number}")
    assert any(step.expect for step in scenario.steps)
    found = judged(scenario, judge, Config())[1]
    assert not found, "\n".join(line for line, _ in lines_of(found, ("expected", judge)))


def test_the_scenario_of_the_readme_holds():
    lines = re.findall(r"^    (\+.* => .*)$", (ROOT / "README.md").read_text(), re.MULTILINE)
    seen, found = judged(parse("\n".join(lines)), "engine", Config())
    assert (len(seen), found) == (4, [])


def test_there_are_scenarios_and_python_that_makes_them():
    assert len(SCENARIO_EXAMPLES) == 5
    (code,) = re.findall(r"^```python\n(.*?)^```$", SCENARIOS, re.MULTILINE | re.DOTALL)
    exec(compile(code, "docs/scenarios.md", "exec"), {})


def test_the_table_of_scenarios_names_all_of_them():
    named = set(re.findall(r"`((?:nat|helpers|fragments|zones)/[\w-]+)`", SCENARIOS))
    folder = ROOT / "pcap_tests/scenarios"
    there = {f"{kind}/{path.stem}" for kind in ("nat", "helpers", "fragments", "zones") for path in (folder / kind).glob("*.ct")}
    assert named == there


def test_every_word_of_the_language_is_on_the_page():
    known = {word for table in (*words.FIELDS.values(), words.IP, words.CHUNK) for field in table for word in field.words}
    known |= {*words.EXT_TYPES, *expectation.STATES, *expectation.DIRS, *expectation.VERDICTS, *expectation.SIDE_VARIABLES, *expectation.VARIABLES}
    prose = re.sub(r"^```.*?^```$", "", SCENARIOS, flags=re.MULTILINE | re.DOTALL)
    shown = set(re.findall(r"[\w-]+", " ".join(re.findall(r"`([^`]+)`", prose))))
    assert known - shown == set()
    assert all(name in SCENARIOS for name in steps.SETTINGS)


def test_the_outputs_in_the_readme_are_those_of_today(generate):
    readme = (ROOT / "README.md").read_text()
    for name, text in generate.parts().items():
        shown = generate.marked(name).search(readme)[0]
        assert generate.VARYING.sub("", generate.block(text)) in generate.VARYING.sub("", shown), "README.md is old: run make docs"


def test_the_generated_pages_are_those_of_today(generate):
    for name, text in generate.pages().items():
        assert (ROOT / "docs" / name).read_text() == text, f"docs/{name} is old: run make docs"


# --- docs/rules.md ---------------------------------------------------------------------------------------------------------------------

RULES = (ROOT / "docs/rules.md").read_text()


def test_the_tables_of_rules_are_those_of_today(generate):
    for name, text in generate.tables().items():
        assert text in generate.marked(name).search(RULES)[0], "docs/rules.md is old: run make docs"


def test_the_tables_of_records_are_those_of_today(generate):
    page = (ROOT / "docs/records.md").read_text()
    for name, text in generate.records().items():
        assert text in generate.marked(name).search(page)[0], "docs/records.md is old: run make docs"


def test_the_tables_of_metrics_are_those_of_today(generate):
    page = (ROOT / "docs/metrics.md").read_text()
    for name, text in generate.metrics().items():
        assert text in generate.marked(name).search(page)[0], "docs/metrics.md is old: run make docs"


def test_the_configuration_that_is_shown_is_one():
    """Sections of pages about a node, each put behind what every node has."""
    pages = [(ROOT / f"docs/{page}.md").read_text() for page in ("metrics", "operations", "control")]
    shown = [text for page in pages for text in re.findall(r"^```toml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)]
    assert len(shown) == 4
    for text in shown:
        parse_configuration('rules = "node.tc"\n[[iface]]\nname = "eth0"\n' + text, "page")


def test_the_rules_of_the_page_are_fine_and_the_same_in_both_languages():
    (tc,), (yaml,) = (re.findall(rf"^```{kind}\n(.*?)^```$", RULES, re.MULTILINE | re.DOTALL) for kind in ("tc", "yaml"))
    found = Findings()
    assert parse_rules(tc, "rules.tc", found) == parse_rules(yaml, "rules.yaml", found)
    assert (found.errors, found.warnings) == ([], [])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_exist(page):
    if page.name in ("CHANGELOG.md",):
        return
    for name in re.findall(r"`((?:ctcore|datapath|offload|docs|bench|pcap_tests)/[\w./-]+\.\w+)`", page.read_text()):
        assert (ROOT / name).exists(), name


def test_commands_in_the_documentation_exist():
    for page in PAGES:
        for name in re.findall(r"^(?:    |\$ )ctmirror (\w+)", page.read_text(), re.MULTILINE):
            assert name in COMMANDS, (page.name, name)


def test_make_targets_in_the_documentation_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        for name in re.findall(r"^    make (\w+)|`make (\w+)`", page.read_text(), re.MULTILINE):
            assert (name[0] or name[1]) in targets, (page.name, name)


def test_libraries_are_justified():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    decisions = (ROOT / "docs/decisions.md").read_text().lower()
    optional = [each for extra in ("arrow", "rules", "metrics", "plot") for each in project["optional-dependencies"][extra]]
    for requirement in project["dependencies"] + optional:
        assert f"**{re.match(r'[a-z0-9-]+', requirement.lower())[0]}**" in decisions


def test_the_readme_says_what_is_not_supported_and_which_name_clashes():
    readme = (ROOT / "README.md").read_text()
    assert readme.count("\n- **", readme.index("## Not supported"), readme.index("## A name that clashes")) >= 5
    assert "top-level `datapath`" in readme


def test_the_licence_is_whole():
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text

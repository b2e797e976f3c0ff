"""Writes what of the documentation is made from the code: docs/states.md, docs/reasons.md, docs/offload-reasons.md, docs/rules.schema.json,
the tables of docs/rules.md, docs/records.md and docs/metrics.md, and the outputs shown in README.md.

    python docs/generate.py            # or make docs

pcap_tests/test_docs.py compares. Invariant: everything outside the marked parts of README.md and of these pages stays as it is.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
DEMO = "pcap_tests/captures/demo.pcap"
# What differs from run to run and from machine to machine.
VARYING = re.compile(r"replayed in .*$", re.MULTILINE)


def printed(*argv: str) -> str:
    """What the command prints into a pipe of 80 columns."""
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR", "FORCE_COLOR")}
    command = [sys.executable, "-m", "datapath", *argv]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env=environment).stdout


def pages() -> dict[str, str]:
    """The generated pages by their names under docs/."""
    sys.path.insert(0, str(ROOT))
    from offload.contract import why

    return {
        "states.md": printed("states", "--format", "markdown"),
        "reasons.md": printed("states", "--reasons", "--format", "markdown"),
        "rules.schema.json": printed("rules", "schema"),
        "offload-reasons.md": why.page(),
    }


def parts() -> dict[str, str]:
    """The marked parts of README.md by their names. The packet that is explained is the first that was ignored."""
    summary = printed("replay", DEMO)
    ignored = summary.partition("why ignored")[2]
    number = re.search(r"--packet (\d+)", ignored)[1]
    return {
        "demo": f"$ ctmirror replay {DEMO}\n{summary}",
        "explain": f"$ ctmirror explain {DEMO} --packet {number}\n" + printed("explain", DEMO, "--packet", number),
    }


def tables() -> dict[str, str]:
    """The marked parts of docs/rules.md by their names."""
    sys.path.insert(0, str(ROOT))
    from datapath.pipeline.flower_keys import KEYS, REFUSED_KEYS
    from datapath.pipeline.header_fields import HEADER_FIELDS

    reasons: dict[str, list[str]] = {}
    for name, why in REFUSED_KEYS.items():
        reasons.setdefault(why.partition(":")[0], []).append(f"`{name}`")
    return {
        "keys": table(("key", "value", ""), [(f"`{name}`", f"`{key.form}`", key.about) for name, key in KEYS.items()]),
        "refused": table(("keys", ""), [(", ".join(names), why) for why, names in reasons.items()]),
        "fields": table(
            ("header", "field", "byte", "bytes", "changes without `retain`"),
            [
                (header, f"`{name}`", str(field.offset), str(field.size), "all of it" if field.whole else f"`{field.mask:#x}`")
                for (header, name), field in HEADER_FIELDS.items()
            ],
        ),
    }


def records() -> dict[str, str]:
    """The marked parts of docs/records.md by their names."""
    sys.path.insert(0, str(ROOT))
    from datapath import record_words

    head = ("field", "holds", "")
    return {
        **{kind: table(head, record_words.record_rows(kind)) for kind in record_words.RECORDS},
        "ends": table(head, record_words.end_rows()),
        "offload": table(("offload", ""), [(f"`{code}`", said) for code, said in record_words.offload_rows()]),
    }


def metrics() -> dict[str, str]:
    """The marked parts of docs/metrics.md by their names."""
    sys.path.insert(0, str(ROOT))
    from datapath.live.metrics import table_rows
    from datapath.live.rows import COUNTERS, RING_DROPS

    drops = [(f"`{name[:2]}`", f"`{reason}`", COUNTERS[name]) for name, reason in RING_DROPS.items()]
    return {
        "metrics": table(("metric", "kind", "labels", ""), table_rows()),
        "ring_drops": table(("direction", "reason", ""), drops),
    }


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A table of Markdown, with a blank line around it."""
    lines = [head, tuple("---" for _ in head), *(tuple(cell.replace("|", "\\|") for cell in row) for row in rows)]
    return "\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines) + "\n"


def marked(name: str) -> re.Pattern[str]:
    """The part of a page between a pair of marks."""
    return re.compile(rf"(<!-- {name}:[^\n]*-->\n).*?(<!-- /{name} -->)", re.DOTALL)


def block(text: str) -> str:
    return f"\n```\n{text.rstrip()}\n```\n\n"


def main() -> None:
    for name, text in pages().items():
        (ROOT / "docs" / name).write_text(text)
    put("README.md", {name: block(text) for name, text in parts().items()})
    put("docs/rules.md", tables())
    put("docs/records.md", records())
    put("docs/metrics.md", metrics())


def put(page: str, texts: dict[str, str]) -> None:
    """Each text between its marks."""
    whole = (ROOT / page).read_text()
    for name, text in texts.items():
        whole = marked(name).sub(lambda match, text=text: match[1] + text + match[2], whole)
    (ROOT / page).write_text(whole)


if __name__ == "__main__":
    main()

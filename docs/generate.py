"""Writes what of the documentation is made from the code: docs/states.md, docs/reasons.md, and the outputs shown in README.md.

    python docs/generate.py            # or make docs

pcap_tests/test_docs.py compares. Invariant: everything outside the marked parts of README.md stays as it is.
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
    return {"states.md": printed("states", "--format", "markdown"), "reasons.md": printed("states", "--reasons", "--format", "markdown")}


def parts() -> dict[str, str]:
    """The marked parts of README.md by their names. The packet that is explained is the first that was ignored."""
    summary = printed("replay", DEMO)
    ignored = summary.partition("why ignored")[2]
    number = re.search(r"--packet (\d+)", ignored)[1]
    return {
        "demo": f"$ ctmirror replay {DEMO}\n{summary}",
        "explain": f"$ ctmirror explain {DEMO} --packet {number}\n" + printed("explain", DEMO, "--packet", number),
    }


def marked(name: str) -> re.Pattern[str]:
    """The part of README.md between a pair of marks."""
    return re.compile(rf"(<!-- {name}:[^\n]*-->\n).*?(<!-- /{name} -->)", re.DOTALL)


def block(text: str) -> str:
    return f"\n```\n{text.rstrip()}\n```\n\n"


def main() -> None:
    for name, text in pages().items():
        (ROOT / "docs" / name).write_text(text)
    readme = (ROOT / "README.md").read_text()
    for name, text in parts().items():
        readme = marked(name).sub(lambda match, text=text: match[1] + block(text) + match[2], readme)
    (ROOT / "README.md").write_text(readme)


if __name__ == "__main__":
    main()

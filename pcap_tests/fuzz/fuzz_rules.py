"""Fuzzer of rules files, coverage-guided: tc lines and YAML.

Invariant: whatever a file holds, it gives rules, or errors of one line each, and nothing else; and rules without error can be printed, in either
form, and read again.

    python pcap_tests/fuzz/fuzz_rules.py [CORPUS] [-max_total_time=60]

Takes libFuzzer's arguments. Needs atheris, and the extra `rules`. Without a corpus it starts from the seeds below.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import atheris

with atheris.instrument_imports(include=["datapath.pipeline"]):
    from pcap_tests.test_datapath.test_pipeline.test_tc_hostile import WORDS, sound

from pcap_tests.test_datapath.test_pipeline.test_yaml_rules import SAME, WHOLE
from pcap_tests.written_rules import FILTER, WRITTEN


def one_input(data: bytes) -> None:
    sound(data.decode("utf-8", "replace"))


def main() -> None:
    """Run libFuzzer over one_input, with seeds and a dictionary in a folder of their own behind the one given."""
    with tempfile.TemporaryDirectory() as folder:
        seeds, words = Path(folder, "seeds"), Path(folder, "words")
        seeds.mkdir()
        for i, seed in enumerate([SAME, WHOLE, *(f"{FILTER} {line}" for line in WRITTEN)]):
            (seeds / f"seed{i}").write_text(seed)
        words.write_text("".join('"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"\n' for word in WORDS if word.isprintable()))
        for argument in sys.argv[1:]:
            if not argument.startswith("-"):
                Path(argument).mkdir(parents=True, exist_ok=True)
        atheris.Setup([*sys.argv, f"-dict={words}", "-max_len=2000", str(seeds)], one_input)
        atheris.Fuzz()


if __name__ == "__main__":
    main()

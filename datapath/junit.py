"""Cases of `ctmirror check` as JUnit XML, which CI systems show.

The format is that which Jenkins, GitLab and others read: testsuites > testsuite > testcase > failure or error. Written with the standard library.
Invariant: whatever names and messages hold, the file is well-formed XML.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from xml.etree import ElementTree as ET

from datapath.check import Case
from datapath.differences import lines_of
from datapath.export import STDOUT, naming
from datapath.names import printable

# What XML 1.0 cannot hold, not even escaped (its section 2.2).
_FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def _clean(text: str) -> str:
    return _FORBIDDEN.sub("\ufffd", text)


def junit_xml(cases: Sequence[Case]) -> bytes:
    """One suite for each judge, one test case for each file."""
    root = ET.Element("testsuites")
    for judge in dict.fromkeys(case.judge for case in cases):
        mine = [case for case in cases if case.judge == judge]
        counts = {"tests": len(mine), "failures": sum(bool(c.differing) for c in mine), "errors": sum(c.error is not None for c in mine)}
        seconds = f"{sum(case.seconds for case in mine):.3f}"
        suite = ET.SubElement(root, "testsuite", {"name": f"ctmirror {judge}", "time": seconds, **{name: str(n) for name, n in counts.items()}})
        for case in mine:
            _case(suite, case)
    ET.indent(root)
    return ET.tostring(root, encoding="utf-8", xml_declaration=True) + b"\n"


def _case(suite: ET.Element, case: Case) -> None:
    element = ET.SubElement(
        suite, "testcase", {"classname": f"ctmirror.{case.judge}", "name": _clean(printable(case.name)), "time": f"{case.seconds:.3f}"}
    )
    if case.differing:
        failure = ET.SubElement(element, "failure", {"message": f"{case.differing} of {case.compared} packets differ"})
        failure.text = _clean("\n".join(line for line, _ in lines_of(case.shown, ("expected", case.judge))))
    if case.error is not None:
        ET.SubElement(element, "error", {"message": _clean(case.error)})


def write_junit(name: str, cases: Sequence[Case]) -> None:
    """To a file, or stdout for "-". Raises CtmirrorError naming it."""
    with naming(name):
        if name == STDOUT:
            sys.stdout.buffer.write(junit_xml(cases))
            return
        with open(name, "wb") as file:
            file.write(junit_xml(cases))

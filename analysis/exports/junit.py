"""JUnit XML, as CI servers show it: cases that passed, failed or were skipped. Knows not what they are of."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree

# What XML 1.0 cannot hold, not even escaped (section 2.2, "Char").
_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True, slots=True)
class Case:
    """One thing that was judged. text: one line, why it failed or was skipped, or what was found."""

    name: str
    status: Literal["pass", "fail", "skip"]
    text: str = ""


def write_junit(path: Path, suite: str, cases: Sequence[Case], remark: str = "") -> None:
    """Write `cases` as one test suite, each text with `remark` before it, if there is one.

    Characters that XML does not know are left out. Raises OSError.
    """
    if remark:
        cases = [replace(case, text=f"{remark}; {case.text}" if case.text else remark) for case in cases]
    counts = {
        "tests": str(len(cases)),
        "failures": str(sum(case.status == "fail" for case in cases)),
        "errors": "0",
        "skipped": str(sum(case.status == "skip" for case in cases)),
    }
    root = ElementTree.Element("testsuites", counts)
    inside = ElementTree.SubElement(root, "testsuite", {"name": _clean(suite), **counts})
    for case in cases:
        one = ElementTree.SubElement(inside, "testcase", {"classname": _clean(suite), "name": _clean(case.name)})
        match case.status:
            case "fail":
                ElementTree.SubElement(one, "failure", {"message": _clean(case.text)})
            case "skip":
                ElementTree.SubElement(one, "skipped", {"message": _clean(case.text)})
            case "pass" if case.text:
                ElementTree.SubElement(one, "system-out").text = _clean(case.text)
    ElementTree.indent(root)
    ElementTree.ElementTree(root).write(path, encoding="utf-8", xml_declaration=True)


def _clean(text: str) -> str:
    return _NO_XML.sub("", text)

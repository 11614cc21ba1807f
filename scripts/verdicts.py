"""One verdict a claim, from pytest's XML: `verdicts.py claims.xml [result.json]`."""

import json
import sys
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path

_UNTESTED = 3


def main(arguments: list[str]) -> int:
    claims = [_verdict(case) for case in ET.parse(arguments[0]).iter("testcase")]
    for verdict, claim, why in claims:
        sys.stdout.write(f"{verdict:10}  {claim}{f' ({why})' if why else ''}\n")
    counts = Counter(verdict for verdict, _, _ in claims)
    sys.stdout.write(", ".join(f"{n} {verdict}" for verdict, n in counts.items()) + "\n")
    if len(arguments) > 1:
        rows = [{"verdict": v, "claim": claim, "why": why} for v, claim, why in claims]
        Path(arguments[1]).write_text(json.dumps(rows, indent=1) + "\n", "utf-8")
    if counts["FAILS"]:
        return 1
    return 0 if counts["holds"] else _UNTESTED


def _verdict(case: ET.Element) -> tuple[str, str, str]:
    claim = case.attrib["name"].removeprefix("test_").replace("_", " ")
    for kind, verdict in (("failure", "FAILS"), ("error", "FAILS"), ("skipped", "not tested")):
        found = case.find(kind)
        if found is not None:
            return verdict, claim, " ".join(found.attrib.get("message", "").split())[:300]
    return "holds", claim, ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

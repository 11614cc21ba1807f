"""Tries damaged files, failures and strange models, and writes what happened.

    python scripts/reliability.py [--cases 200] [--seconds 20] [--part tests]

Three parts: cases of every reader from a seeded generator, under limits of memory and time;
atheris over every reader, guided by coverage; and the tests of tests/reliability, those of
minutes too, and of tests/cli/test_bad_files.py, counted. Results go to
benchmarks/results/reliability.json and, drawn from it, into docs/reliability.md between two
marks.
"""

import argparse
import json
import random
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from fuzz.guard import Forbidden, bounded  # noqa: E402 - this folder is no package
from fuzz.mutations import Pick  # noqa: E402
from fuzz.readers import READERS, Reader, damaged, make_whole_home, run_case  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "reliability.json"
PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
TESTS = (
    "tests/reliability/test_failures.py",
    "tests/reliability/test_long_verbs.py",
    "tests/reliability/test_models.py",
    "tests/reliability/test_readers.py",
    "tests/cli/test_bad_files.py",
)
SECONDS, BYTES = 120, 3 * 2**30


@dataclass(frozen=True)
class Row:
    """One reader: cases that were read and refused, and what is a defect."""

    reader: str
    read: int
    refused: int
    defects: tuple[str, ...]
    slowest: float


def sampled(reader: Reader, home: Path, cases: int) -> Row:
    clean = (home / reader.file).read_bytes()
    counts: Counter[str] = Counter()
    defects: list[str] = []
    slowest = 0.0
    for case in range(cases):
        generator = random.Random(f"{reader.name} {case}")
        data = damaged(reader, clean, _picker(generator))
        started = time.monotonic()
        try:
            with bounded(SECONDS, BYTES):
                counts[run_case(reader, home, data)] += 1
        except (Exception, Forbidden) as error:
            defects.append(f"case {case}: {type(error).__name__} {str(error)[:200]}")
        slowest = max(slowest, time.monotonic() - started)
    return Row(reader.name, counts["read"], counts["refused"], tuple(defects), slowest)


def _picker(generator: random.Random) -> Pick:
    return lambda below: generator.randrange(max(1, below))


def readers(cases: int) -> list[dict[str, object]]:
    rows = []
    with TemporaryDirectory() as place:
        home = make_whole_home(Path(place) / "home")
        for reader in READERS:
            rows.append(sampled(reader, home, cases))
            print(rows[-1], file=sys.stderr)
    return [asdict(row) for row in rows]


def guided(seconds: int) -> list[dict[str, object]]:
    # Here: atheris is an extra of its own.
    from fuzz.run import campaign

    rows = []
    for reader in READERS:
        rows.append(asdict(campaign(reader, seconds)))
        print(rows[-1], file=sys.stderr)
        # It is long: what was found stays when it is stopped.
        _save("atheris", rows)
    return rows


def tested(paths: Sequence[str]) -> dict[str, dict[str, int]]:
    """Counts the outcomes of every test function over its parameters; others stay."""
    with TemporaryDirectory() as place:
        report = Path(place) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "--slow", "-p", "no:randomly", *paths]
        subprocess.run([*command, f"--junitxml={report}"], cwd=ROOT, check=False)
        cases = ElementTree.parse(report).iter("testcase")
        counts: dict[str, Counter[str]] = {}
        for case in cases:
            name = case.attrib["name"].partition("[")[0]
            outcome = next((child.tag for child in case if child.tag in _BAD), "passed")
            counts.setdefault(name, Counter())[outcome] += 1
    return {**_before().get("tests", {}), **{n: dict(count) for n, count in counts.items()}}


def _save(part: str, measured: object) -> None:
    # Read late: parts may be measured side by side.
    text = json.dumps({**_before(), part: measured}, indent=1)
    RESULTS.write_text(f"{text}\n", "utf-8")


def _before() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}
    return found


_BAD = ("failure", "error", "skipped")


def drawn(found: dict[str, Any]) -> str:
    lines = [
        "| reader | cases | read | refused in one line | anything else | slowest |",
        "|---|---|---|---|---|---|",
    ]
    for row in found.get("readers", ()):
        total = row["read"] + row["refused"] + len(row["defects"])
        cells = (row["reader"], total, row["read"], row["refused"], len(row["defects"]))
        lines.append(f"| {' | '.join(map(str, cells))} | {row['slowest']:.1f} s |")
    if "atheris" in found:
        lines += ["", "| atheris over | cases | most memory | outcome |", "|---|---|---|---|"]
    for row in found.get("atheris", ()):
        verdict = "a finding" if row["failed"] else "held"
        lines.append(
            f"| {row['reader']} | {row['runs']} | {row['megabytes']} MB | {verdict} |"
        )
    if "tests" in found:
        lines += ["", "| test | cases | held | skipped | failed |", "|---|---|---|---|---|"]
    for name, count in found.get("tests", {}).items():
        bad = count.get("failure", 0) + count.get("error", 0)
        words = name.removeprefix("test_").replace("_", " ")
        cells = (sum(count.values()), count.get("passed", 0), count.get("skipped", 0), bad)
        lines.append(f"| {words} | {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def write_page(found: dict[str, Any]) -> None:
    before, _, rest = PAGE.read_text("utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n\n{drawn(found)}\n\n{END}{after}", "utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cases", type=int, default=200, help="of each reader")
    parser.add_argument("--seconds", type=int, default=20, help="of atheris for each reader")
    parser.add_argument("--part", choices=["tests", "atheris", "readers"], help="only this")
    parser.add_argument("--tests", nargs="+", default=list(TESTS), help="files of tests")
    given = parser.parse_args(arguments)
    parts = {
        "tests": lambda: tested(given.tests),
        "atheris": lambda: guided(given.seconds),
        "readers": lambda: readers(given.cases),
    }
    for part, measure in parts.items():
        if given.part in (None, part):
            measured = measure()
            _save(part, measured)
    write_page(_before())
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""One verdict a claim: a pytest plugin that writes them as they fall, and their sum.

As a plugin (`-p verdicts --claims FILE`) it appends a line of JSON an event, so that a crash
or a stop loses nothing, and prints each verdict to the file descriptor in $CLAIMS_FD. As a
program, `verdicts.py FILE CODE [result.json]` tells what came of those that have no verdict,
prints the sum, and exits with 0 if every claim that was tested holds, 1 if one fails, 3 if
none could be tested. CODE is what pytest ended with.
"""

import json
import os
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest

_UNTESTED = 3
# What `timeout` ends with.
_STOPPED = ("124", "137")
_WORDS = 300


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--claims", help="file of verdicts, a line of JSON each")


def pytest_configure(config: pytest.Config) -> None:
    path = config.getoption("--claims")
    if path is not None:
        config.pluginmanager.register(Recorder(Path(path)))


class Recorder:
    """Writes down which claims there are, which one is being tested, and its verdict."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seconds: defaultdict[str, float] = defaultdict(float)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        for item in session.items:
            self._write({"event": "known", "id": item.nodeid})

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._write({"event": "started", "id": nodeid})

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._seconds[report.nodeid] += report.duration
        if report.failed:
            self._tell(report, "FAILS", _reason(report))
        elif report.skipped:
            self._tell(report, "not tested", _reason(report))
        elif report.when == "call":
            self._tell(report, "holds", "")

    def _tell(self, report: pytest.TestReport, verdict: str, why: str) -> None:
        seconds = round(self._seconds[report.nodeid], 1)
        event = {"event": "verdict", "id": report.nodeid, "verdict": verdict, "why": why}
        self._write({**event, "seconds": seconds})
        if "CLAIMS_FD" in os.environ:
            line = f"{_line(report.nodeid, verdict, why)} [{seconds:.0f} s]\n"
            os.write(int(os.environ["CLAIMS_FD"]), line.encode())

    def _write(self, event: dict[str, Any]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(event) + "\n")


def _reason(report: pytest.TestReport) -> str:
    found = report.longrepr
    if isinstance(found, tuple):
        # Of a skip: (file, line, "Skipped: reason").
        text = str(found[2]).removeprefix("Skipped: ")
    else:
        crash = getattr(found, "reprcrash", None)
        text = str(found if crash is None else crash.message)
    return " ".join(text.split())[:_WORDS]


def _line(name: str, verdict: str, why: str) -> str:
    return f"{verdict:10}  {_claim(name)}{f' ({why})' if why else ''}"


def _claim(name: str) -> str:
    return name.rpartition("::")[2].removeprefix("test_").replace("_", " ")


def main(arguments: list[str]) -> int:
    path, code, *result = arguments
    events = [json.loads(line) for line in Path(path).read_text("utf-8").splitlines()]
    verdicts = {e["id"]: e for e in events if e["event"] == "verdict"}
    for name in dict.fromkeys(e["id"] for e in events if e["id"] not in verdicts):
        started = any(e["event"] == "started" and e["id"] == name for e in events)
        verdicts[name] = _unfinished(code, started=started)
        found = verdicts[name]
        sys.stdout.write(_line(name, found["verdict"], found["why"]) + "\n")
    counts = Counter(found["verdict"] for found in verdicts.values())
    sys.stdout.write(", ".join(f"{n} {verdict}" for verdict, n in counts.items()) + "\n")
    rows = [
        {"claim": _claim(name), "verdict": v["verdict"], "why": v["why"], "s": v["seconds"]}
        for name, v in verdicts.items()
    ]
    for target in result:
        Path(target).write_text(json.dumps(rows, indent=1) + "\n", "utf-8")
    if counts["FAILS"] or not rows:
        return 1
    return 0 if counts["holds"] else _UNTESTED


def _unfinished(code: str, *, started: bool) -> dict[str, Any]:
    """A claim under test when the process died fails; one that was stopped is not tested."""
    if code in _STOPPED:
        verdict, why = "not tested", "the time was over"
    elif started:
        verdict, why = "FAILS", f"the process ended with exit code {code} while testing it"
    else:
        verdict, why = "not tested", f"the process ended with exit code {code} before it"
    return {"verdict": verdict, "why": why, "seconds": None}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

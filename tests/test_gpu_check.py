"""The script for a GPU machine: one verdict a claim, none of them by default."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from patch_compile.runtimes.gpu import find_gpus

ROOT = Path(__file__).parent.parent
XML = """<testsuites><testsuite>
<testcase classname="a" name="test_one_thing_holds[x-y]"/>
<testcase classname="a" name="test_another_fails">
<failure message="assert&#10; 1 == 2"/></testcase>
<testcase classname="a" name="test_a_third_breaks"><error message="boom"/></testcase>
<testcase classname="a" name="test_a_fourth_waits"><skipped message="no GPU"/></testcase>
</testsuite></testsuites>"""


def _verdicts(xml: str, folder: Path) -> tuple[int, list[str], list[dict[str, str]]]:
    (folder / "claims.xml").write_text(xml)
    command = [sys.executable, "scripts/verdicts.py", folder / "claims.xml", folder / "r.json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    rows = json.loads((folder / "r.json").read_text("utf-8"))
    return done.returncode, done.stdout.splitlines(), rows


def test_every_claim_gets_its_verdict(tmp_path: Path) -> None:
    code, lines, rows = _verdicts(XML, tmp_path)
    assert code == 1
    assert lines == [
        "holds       one thing holds[x-y]",
        "FAILS       another fails (assert 1 == 2)",
        "FAILS       a third breaks (boom)",
        "not tested  a fourth waits (no GPU)",
        "1 holds, 2 FAILS, 1 not tested",
    ]
    assert [row["verdict"] for row in rows] == ["holds", "FAILS", "FAILS", "not tested"]


def test_claims_that_were_not_tested_do_not_hold(tmp_path: Path) -> None:
    only = '<a><testcase name="test_a"><skipped message="m"/></testcase></a>'
    assert _verdicts(only, tmp_path)[0] == 3
    assert _verdicts('<a><testcase name="test_a"/></a>', tmp_path)[0] == 0


@pytest.mark.skipif(bool(find_gpus()), reason="there is a GPU: run it by hand")
def test_without_a_gpu_nothing_is_claimed() -> None:
    bash = shutil.which("bash")
    assert bash is not None
    done = subprocess.run(
        [bash, "scripts/gpu_check.sh"],
        cwd=ROOT,
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 3, done.stdout + done.stderr
    *claims, total = done.stdout.splitlines()
    assert {line.split("  ")[0] for line in claims} == {"not tested"}
    assert total == f"{len(claims)} not tested"
    assert len(claims) >= 15

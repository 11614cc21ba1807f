"""`doctor` prints the parts and what mends them; JSON has all of it."""

import json

import pytest

from patch_compile.cli import doctor_verb
from patch_compile.runtimes.doctor import Check, Diagnosis
from tests.cli.conftest import Cli

FOUND = Diagnosis(
    "Linux",
    "3.11.7",
    {"numpy": "2.4.6"},
    (
        Check("GPU and driver", "missing", "none", "speed", "buy one"),
        Check("torch", "works", "torch 2.13", "learn"),
    ),
)


@pytest.fixture(autouse=True)
def diagnosis(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_verb, "diagnose", lambda progress: FOUND)


def test_every_part_has_a_row_and_what_is_missing_a_remedy(cli: Cli) -> None:
    ran = cli("doctor")
    assert (ran.code, ran.err) == (0, "")
    assert "numpy 2.4.6" in ran.out
    assert "to mend GPU and driver: buy one" in ran.out
    assert "to mend torch" not in ran.out
    assert "1 of 2 parts work" in ran.out


def test_json_is_complete(cli: Cli) -> None:
    told = json.loads(cli("doctor", "--json").out)
    assert told["packages"] == {"numpy": "2.4.6"}
    assert told["checks"][0] == {
        "name": "GPU and driver",
        "state": "missing",
        "found": "none",
        "serves": "speed",
        "mend": "buy one",
    }

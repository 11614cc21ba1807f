"""Shared fixtures and options."""

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from patch_compile.runtimes.gpu import find_gpus

os.environ["HF_HUB_OFFLINE"] = "1"
# Threads that wait for each other make tiny products many times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# derandomize: a failure on one machine is a failure on every machine.
settings.register_profile(
    "default",
    deadline=None,
    derandomize=True,
    max_examples=40,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("thorough", deadline=None, max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden", action="store_true", help="rewrite the files in tests/golden"
    )
    parser.addoption("--slow", action="store_true", help="run the tests on the real model")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    reasons = {}
    if not config.getoption("--slow"):
        reasons["slow"] = "runs for minutes on the real model; ask with --slow"
    if any("gpu" in item.keywords for item in items) and not find_gpus():
        reasons["gpu"] = "nvidia-smi finds no NVIDIA GPU"
    for item in items:
        for mark, reason in reasons.items():
            if mark in item.keywords:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> "Golden":
    return Golden(bool(request.config.getoption("--update-golden")))


class Golden:
    """Compares a text with the file of that name in tests/golden."""

    def __init__(self, update: bool) -> None:
        self.update = update

    def check(self, name: str, text: str) -> None:
        path = Path(__file__).parent / "golden" / name
        if self.update:
            path.write_text(text, "utf-8")
        assert text == path.read_text("utf-8"), f"{name} changed; review with --update-golden"

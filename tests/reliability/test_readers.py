"""Damaged files of every kind end in a result or in one line; `make fuzz` goes on longer."""

import pickle
import random
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuzz.guard import Forbidden, bounded, watched
from fuzz.mutations import Pick
from fuzz.readers import READERS, Reader, damaged, make_whole_home, run_case

# What a case may take: this machine may be busy.
SECONDS, BYTES = 120, 3 * 2**30


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_whole_home(tmp_path_factory.mktemp("fuzz") / "home")


# A reader runs a command; the home is the same for all.
SLOW = (HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture)


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_whole_file_is_read(home: Path, reader: Reader) -> None:
    assert run_case(reader, home, (home / reader.file).read_bytes()) == "read"


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
@settings(max_examples=8, suppress_health_check=SLOW)
@given(draw=st.data())
def test_damaged_file_is_read_or_refused(
    home: Path, reader: Reader, draw: st.DataObject
) -> None:
    def pick(below: int) -> int:
        return draw.draw(st.integers(0, max(0, below - 1)))

    data = damaged(reader, (home / reader.file).read_bytes(), pick)
    with bounded(SECONDS, BYTES):
        run_case(reader, home, data)


def test_guard_sees_a_file_outside_and_a_pickle(tmp_path: Path) -> None:
    with pytest.raises(Forbidden, match="outside of its folder"), watched(tmp_path):
        Path("/etc/passwd").read_bytes()
    with pytest.raises(Forbidden, match=r"ran code: pickle\.find_class"), watched(tmp_path):
        pickle.loads(b"cos\nsystem\n(S'true'\ntR.")


def test_guard_ends_what_hangs_or_grows() -> None:
    with pytest.raises(Forbidden, match="went on for more than 1 seconds"), bounded(1, BYTES):
        time.sleep(20)
    with pytest.raises(MemoryError), bounded(SECONDS, 2**28):
        bytearray(2**30)


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_damages_are_many(home: Path, reader: Reader) -> None:
    """A mutation that always gives the same file would try nothing."""
    clean = (home / reader.file).read_bytes()

    def pick_from(seed: int) -> Pick:
        generator = random.Random(seed)
        return lambda below: generator.randrange(max(1, below))

    made = {damaged(reader, clean, pick_from(seed)) for seed in range(40)}
    assert len(made - {clean}) > 20

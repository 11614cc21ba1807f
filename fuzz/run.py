"""Coverage-guided fuzzing of the readers with atheris: `python -m fuzz.run --seconds 60`.

Each reader runs in a process of its own, from a corpus of its valid file. Half of the
mutations are libFuzzer's, half those of `fuzz.mutations`. What fails is kept in build/fuzz,
from where `python -m fuzz.run --reader NAME --replay FILE` runs it again.
"""

import argparse
import random
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import atheris  # pyright: ignore[reportMissingImports] # an extra of its own, `make fuzz`

_instrumented: Any = getattr(atheris, "instrument_imports")  # noqa: B009 # its stubs lack it
with _instrumented(include=["patch_compile"]):
    from fuzz.readers import READERS, Reader, damaged, make_whole_home, run_case

__all__ = ["Campaign", "campaign"]

_FINDINGS = Path("build/fuzz")
# Of one case and of the process: libFuzzer ends what takes more.
_TIMEOUT, _MEGABYTES = 120, 2048


@dataclass(frozen=True)
class Campaign:
    """What a reader's fuzzing came to.

    Attributes:
        reader: its name.
        runs: cases that were tried.
        megabytes: most memory that the process held.
        failed: a case was found that is neither read nor refused.
    """

    reader: str
    runs: int
    megabytes: int
    failed: bool


def campaign(reader: Reader, seconds: int) -> Campaign:
    """Fuzzes one reader for so many seconds in a process of its own.

    The log of one that fails is kept beside its finding.
    """
    command = [sys.executable, "-W", "ignore", "-m", "fuzz.run", "--reader", reader.name]
    done = subprocess.run(
        [*command, "--seconds", str(seconds), "--inside"],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode:
        _FINDINGS.mkdir(parents=True, exist_ok=True)
        name = re.sub(r"\W+", "-", reader.name)
        (_FINDINGS / f"{name}.log").write_text(done.stderr, "utf-8")
    return Campaign(
        reader.name,
        _stat(done.stderr, "number_of_executed_units"),
        _stat(done.stderr, "peak_rss_mb"),
        done.returncode != 0,
    )


def _stat(text: str, name: str) -> int:
    match = re.search(rf"stat::{name}:\s*(\d+)", text)
    return 0 if match is None else int(match[1])


def _inside(reader: Reader, seconds: int) -> None:
    """Runs libFuzzer in this process, which it ends."""
    _FINDINGS.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as place:
        home = make_whole_home(Path(place) / "home")
        corpus = Path(place) / "corpus"
        corpus.mkdir()
        (corpus / "valid").write_bytes((home / reader.file).read_bytes())

        def one(data: bytes) -> None:
            run_case(reader, home, data)

        def mutated(data: bytes, size: int, seed: int) -> bytes:
            generator = random.Random(seed)
            if generator.randrange(2):
                return bytes(atheris.Mutate(data, size))
            new = damaged(reader, data, lambda below: generator.randrange(max(1, below)))
            return new[:size]

        options = [
            f"-max_total_time={seconds}",
            f"-timeout={_TIMEOUT}",
            f"-rss_limit_mb={_MEGABYTES}",
            "-max_len=100000",
            "-print_final_stats=1",
            f"-artifact_prefix={_FINDINGS}/",
        ]
        atheris.Setup([sys.argv[0], *options, str(corpus)], one, custom_mutator=mutated)
        atheris.Fuzz()


def _replay(reader: Reader, data: bytes) -> None:
    with TemporaryDirectory() as place:
        print(run_case(reader, make_whole_home(Path(place) / "home"), data))


def main() -> int:
    """Fuzzes all readers, or one, or replays a finding."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reader", choices=[reader.name for reader in READERS])
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--replay", type=Path)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    chosen = [reader for reader in READERS if given.reader in (None, reader.name)]
    if given.replay is not None:
        _replay(chosen[0], given.replay.read_bytes())
        return 0
    if given.inside:
        _inside(chosen[0], given.seconds)
        return 0
    failed = 0
    for reader in chosen:
        found = campaign(reader, given.seconds)
        failed += found.failed
        verdict = f"FAILED, see {_FINDINGS}" if found.failed else "held"
        print(f"{reader.name:32} {found.runs:8} runs {found.megabytes:5} MB  {verdict}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

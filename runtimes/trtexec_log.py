"""Reading logs of trtexec and of TensorRT's builder.

Two generations of `(Sparsity)` lines exist. The older: `Layers eligible for sparse math: a, b`
and `TRT inference plan picked sparse implementation for layers: a`. From 10 on: `Found 2
layer(s) eligible to use sparse tactics: a, b` and `Chose 1 layer(s) using sparse tactics: a`,
with names in verbose logs alone. Both come once a pass; the last is that of the engine.
"""

import re
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

from patch_compile.runtimes.evidence import DeviceMemory, Performance, Sparsity, Spread

__all__ = [
    "log_lines",
    "read_device",
    "read_errors",
    "read_memory",
    "read_performance",
    "read_sparsity",
    "read_version",
    "stage",
]

# A longer line is read in parts: a log may be anything.
_LONGEST = 2**20
_LEAD = r"\(Sparsity\) "
_OLD_FOUND = re.compile(_LEAD + r"Layers eligible for sparse math:(?P<names>.*)")
_OLD_CHOSE = re.compile(
    _LEAD + r"TRT inference plan picked sparse implementation for layers:(?P<names>.*)"
)
_FOUND = re.compile(
    _LEAD
    + r"Found (?P<count>[0-9]{1,9}) layer\(s\) eligible to use sparse tactics:?(?P<names>.*)"
)
_CHOSE = re.compile(
    _LEAD + r"Chose (?P<count>[0-9]{1,9}) layer\(s\) using sparse tactics:?(?P<names>.*)"
)

# Digits are counted, so that what is read is finite.
_NUMBER = r"[-+]?[0-9]{1,20}(?:\.[0-9]{0,20})?(?:[eE][-+]?[0-9]{1,2})?"
_SPREAD = re.compile(
    rf"min = (?P<least>{_NUMBER}) ms, max = (?P<most>{_NUMBER}) ms, "
    rf"mean = (?P<mean>{_NUMBER}) ms, median = (?P<median>{_NUMBER}) ms(?P<rest>.*)"
)
_PERCENTILE = re.compile(rf"percentile\(({_NUMBER})%\) = ({_NUMBER}) ms")
_THROUGHPUT = re.compile(rf"\] Throughput: ({_NUMBER}) qps")
_BUILT = re.compile(rf"Engine built in ({_NUMBER}) sec")
# In bytes, with the word from 10 on; all by the builder but the last.
_MEMORY = {
    "weights": re.compile(r"Total Weights Memory: ([0-9]{1,19})(?: bytes)?\s*$"),
    "persistent": re.compile(r"Total Device Persistent Memory: ([0-9]{1,19})(?: bytes)?\s*$"),
    "activations": re.compile(r"Total Activation Memory: ([0-9]{1,19})(?: bytes)?\s*$"),
}
_CONTEXT = re.compile(rf"Created execution context with device memory size: ({_NUMBER}) MiB")
_BANNER = re.compile(r"TensorRT\.trtexec \[TensorRT v([0-9]{1,9})\]")
_DEVICE = re.compile(r"Selected Device: (.+)")
_CAPABILITY = re.compile(r"Compute Capability: ([0-9]{1,3})\.([0-9]{1,3})")
# trtexec marks errors by [E]; the Python builder's log names the severity.
_ERROR = re.compile(r"(?:\[E\] (?:\[TRT\] )?|^(?:INTERNAL_)?ERROR: )(.+)")

# Milestones in the order they come, each with what goes on after it.
_STAGES = (
    ("&&&& RUNNING", "starting"),
    ("Start parsing network model", "parsing"),
    ("Finished parsing network model", "building"),
    ("Engine built in", "loading"),
    ("Starting inference", "timing"),
    ("=== Performance summary", "reporting"),
    ("&&&& PASSED", "done"),
)


def log_lines(log: Path) -> Iterator[str]:
    """Yields the lines of a log, which is never held whole; none if there is no such file."""
    if not log.is_file():
        return
    with log.open(encoding="utf-8", errors="replace") as lines:
        yield from iter(partial(lines.readline, _LONGEST), "")


def read_sparsity(lines: Iterable[str]) -> Sparsity:
    """Returns what the last pass of the builder says of sparse kernels.

    A `Found` after a `Chose` opens another pass, whose choice is not known until it is told.
    """
    result = Sparsity()
    for line in lines:
        if "(Sparsity)" not in line:
            continue
        found = _match(line, _FOUND, _OLD_FOUND)
        chose = _match(line, _CHOSE, _OLD_CHOSE)
        if found is not None:
            result = Sparsity(found=found[0], eligible=found[1])
        if chose is not None:
            result = Sparsity(result.found, result.eligible, chose[0], chose[1])
    return result


def _match(
    line: str, new: re.Pattern[str], old: re.Pattern[str]
) -> tuple[int, tuple[str, ...] | None] | None:
    """Count and names of one line; the names are None where the line leaves them out."""
    match = new.search(line)
    if match is not None:
        count = int(match["count"])
        names = _names(match["names"])
        return count, names if len(names) == count else None
    match = old.search(line)
    if match is None:
        return None
    names = _names(match["names"])
    return len(names), names


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(", ") if name.strip())


def read_performance(lines: Iterable[str]) -> Performance | None:
    """Returns throughput, latencies and build time; None if the log has none of them.

    Throughput is in queries a second, where trtexec takes a run of the engine for a query.
    """
    found = {name: value for line in lines for name, value in _measured(line)}
    if not found:
        return None
    return Performance(
        throughput=_number(found.get("throughput")),
        latency=_spread(found.get("latency")),
        compute=_spread(found.get("compute")),
        build=_number(found.get("build")),
    )


def _number(value: float | Spread | None) -> float | None:
    return value if isinstance(value, float) else None


def _spread(value: float | Spread | None) -> Spread | None:
    return value if isinstance(value, Spread) else None


def _measured(line: str) -> Iterator[tuple[str, float | Spread]]:
    for name, pattern in (("throughput", _THROUGHPUT), ("build", _BUILT)):
        match = pattern.search(line)
        if match is not None:
            yield name, float(match[1])
    for name, label in (("latency", "] Latency: "), ("compute", "] GPU Compute Time: ")):
        match = _SPREAD.search(line) if label in line else None
        if match is not None:
            yield name, _read_spread(match)


def _read_spread(match: re.Match[str]) -> Spread:
    return Spread(
        least=float(match["least"]),
        most=float(match["most"]),
        mean=float(match["mean"]),
        median=float(match["median"]),
        percentiles=tuple(
            (float(percent), float(value))
            for percent, value in _PERCENTILE.findall(match["rest"])
        ),
    )


def read_memory(lines: Iterable[str]) -> DeviceMemory:
    """Returns what a log says of the engine's memory on the GPU.

    Of several engines it is the last one's. TensorRT 8 names no weights: the sum stays
    unknown.
    """
    found: dict[str, int] = {}
    for line in lines:
        for part, pattern in _MEMORY.items():
            match = pattern.search(line)
            if match is not None:
                found[part] = int(match[1])
        match = _CONTEXT.search(line)
        if match is not None:
            found["context"] = _bytes_of(match[1])
    return DeviceMemory(**found)


def _bytes_of(mebibytes: str) -> int:
    return round(float(mebibytes) * 2**20)


def read_version(text: str) -> tuple[int, int, int] | None:
    """Returns (major, minor, patch) from the banner of trtexec, as in `[TensorRT v101602]`.

    Up to 8.x the digits are major, minor and patch as 1-1-2; from 10 on as 2-2-2.
    """
    match = _BANNER.search(text)
    if match is None:
        return None
    number = int(match[1])
    if number < 10_000:
        return number // 1000, number // 100 % 10, number % 100
    return number // 10_000, number // 100 % 100, number % 100


def read_device(lines: Iterable[str]) -> tuple[str, int | None]:
    """Returns the GPU's name and its compute capability, as in 86."""
    name, capability = "", None
    for line in lines:
        device, number = _DEVICE.search(line), _CAPABILITY.search(line)
        if device is not None:
            name = device[1].strip()
        if number is not None:
            capability = int(number[1]) * 10 + int(number[2])
    return name, capability


def read_errors(lines: Iterable[str]) -> list[str]:
    """Returns the messages of all errors, in order."""
    matches = (_ERROR.search(line) for line in lines)
    return [" ".join(match[1].split()) for match in matches if match is not None]


def stage(line: str) -> tuple[int, int, str] | None:
    """Returns (stages done, stages, what comes next) if the line is a milestone."""
    for index, (mark, what) in enumerate(_STAGES):
        if mark in line:
            return index, len(_STAGES) - 1, what
    return None

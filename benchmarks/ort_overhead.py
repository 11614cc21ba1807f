"""What the cut costs where nothing is gained by it: ONNX Runtime on a CPU.

python benchmarks/ort_overhead.py --dense fp32/model.onnx \\
    --compiled bands=fp32-band/compiled.onnx --compiled whole=fp32-weight/compiled.onnx

The CPU multiplies 2:4 pieces as if they were dense, so the ratio compiled / dense is the price
of Gathers, Concats and smaller products alone. Runs of both models alternate on one thread,
in one process; on a shared machine CPU seconds tell more than the clock, so both are given.
A node profile of each model, taken apart from the times, says where the price is paid.

Give fp32 models. On x86 ONNX Runtime multiplies float16 between two Casts of its own, so a
piece more costs two Casts more: what fp16 would show here is their price, not that of the cut.
"""

import argparse
import json
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from measuring import write_result
from numpy.typing import NDArray

from patch_compile.bench.statistics import Interval, median_interval, ratio_interval
from patch_compile.runtimes.inputs import random_inputs
from patch_compile.runtimes.onnxruntime import session_options, start_session

Samples = dict[str, NDArray[np.float64]]

AIM = 1.03


@dataclass(frozen=True)
class Node:
    """A node of the optimised graph and the least of its microseconds."""

    name: str
    op: str
    microseconds: float


def open_model(path: Path, profile: str = "") -> Any:
    options = session_options(optimise=True)
    options.intra_op_num_threads = 1
    if profile:
        options.enable_profiling = True
        options.profile_file_prefix = profile
    return start_session(f"model '{path}'", str(path), options)


def alternate(sessions: dict[str, Any], tokens: int, rounds: int) -> Samples:
    """Seconds of every round by model and clock: `dense cpu`, `dense wall`."""
    feeds = random_inputs(sessions["dense"], sequence=tokens)
    samples: dict[str, list[float]] = {}
    for done in range(rounds + 2):
        names = list(sessions)[:: 1 if done % 2 else -1]
        for name in names:
            wall, cpu = time.perf_counter(), time.process_time()
            sessions[name].run(None, feeds)
            samples.setdefault(f"{name} cpu", []).append(time.process_time() - cpu)
            samples.setdefault(f"{name} wall", []).append(time.perf_counter() - wall)
    # The first two rounds warm up.
    return {name: np.array(seconds[2:]) for name, seconds in samples.items()}


def profile(paths: dict[str, Path], tokens: int, runs: int) -> dict[str, list[Node]]:
    """Runs models by turns under ONNX Runtime's profiler; a node's time is its least.

    Two at a time: the first, and each of the others beside it.
    """
    first, *others = paths
    found = {}
    for other in others:
        with tempfile.TemporaryDirectory() as folder:
            sessions = {n: open_model(paths[n], f"{folder}/{n}") for n in (first, other)}
            feeds = random_inputs(sessions[first], sequence=tokens)
            for _ in range(runs):
                for session in sessions.values():
                    session.run(None, feeds)
            for name, session in sessions.items():
                found[f"{name} beside {other}" if name == first else name] = _nodes(
                    json.loads(Path(session.end_profiling()).read_text("utf-8"))
                )
    return found


def _nodes(events: list[dict[str, Any]]) -> list[Node]:
    times: dict[str, list[int]] = {}
    kinds = {}
    for event in events:
        if event["cat"] == "Node" and event["name"].endswith("_kernel_time"):
            times.setdefault(event["name"], []).append(event["dur"])
            kinds[event["name"]] = event["args"]["op_name"]
    return [Node(name, kinds[name], min(values)) for name, values in times.items()]


def by_kind(nodes: list[Node]) -> dict[str, tuple[int, float]]:
    """Count and milliseconds by operator."""
    counts = Counter(node.op for node in nodes)
    return {
        op: (count, sum(node.microseconds for node in nodes if node.op == op) / 1e3)
        for op, count in counts.items()
    }


def compare(dense: Path, compiled: Path, tokens: int, rounds: int) -> dict[str, Any]:
    sessions = {"dense": open_model(dense), "compiled": open_model(compiled)}
    samples = alternate(sessions, tokens, rounds)
    clocks = ("cpu", "wall")
    ratios = {
        clock: ratio_interval(samples[f"compiled {clock}"], samples[f"dense {clock}"], 0.95, 0)
        for clock in clocks
    }
    medians = {name: median_interval(s, 0.95, 0) for name, s in samples.items()}
    least = {
        clock: float(samples[f"compiled {clock}"].min() / samples[f"dense {clock}"].min())
        for clock in clocks
    }
    return {
        "seconds": {name: found.to_json() for name, found in medians.items()},
        "ratio": {clock: found.to_json() for clock, found in ratios.items()},
        "ratio_of_least": least,
        "samples": {name: s.tolist() for name, s in samples.items()},
    }


def show(name: str, found: dict[str, Any], profiles: dict[str, list[Node]]) -> None:
    cpu, wall = (Interval(**found["ratio"][clock]) for clock in ("cpu", "wall"))
    met = "met" if cpu.median <= AIM else "missed"
    print(
        f"{name:12} CPU {cpu.median:.3f} ({cpu.low:.3f} to {cpu.high:.3f}), clock "
        f"{wall.median:.3f} ({wall.low:.3f} to {wall.high:.3f}), least against least "
        f"{found['ratio_of_least']['cpu']:.3f}; aim {AIM} {met}"
    )
    if not profiles:
        return
    before, after = (by_kind(profiles[n]) for n in (f"dense beside {name}", name))
    rows = sorted(
        (after.get(op, (0, 0.0))[1] - before.get(op, (0, 0.0))[1], op)
        for op in before.keys() | after.keys()
    )
    for change, op in reversed(rows):
        (n, ms), (m, after_ms) = before.get(op, (0, 0.0)), after.get(op, (0, 0.0))
        if abs(change) >= 0.5 or n != m:
            print(f"    {op:12} {n:4} -> {m:4} nodes, {ms:8.2f} -> {after_ms:8.2f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dense", type=Path, required=True)
    parser.add_argument("--compiled", action="append", required=True, help="NAME=FILE")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--profile-runs", type=int, default=10)
    parser.add_argument("--result", default="ort_overhead")
    options = parser.parse_args()
    pairs = dict(text.split("=", 1) for text in options.compiled)
    # The noise: the dense model against itself.
    pairs = {"dense again": str(options.dense), **pairs}
    profiles: dict[str, list[Node]] = {}
    if options.profile_runs:
        paths = {"dense": options.dense, **{n: Path(p) for n, p in pairs.items()}}
        profiles = profile(paths, options.tokens, options.profile_runs)
    results = {}
    for name, path in pairs.items():
        results[name] = compare(options.dense, Path(path), options.tokens, options.rounds)
        show(name, results[name], profiles)
    tables = {name: by_kind(nodes) for name, nodes in profiles.items()}
    write_result(
        options.result,
        {"tokens": options.tokens, "rounds": options.rounds, "rows": results, "nodes": tables},
    )


if __name__ == "__main__":
    main()

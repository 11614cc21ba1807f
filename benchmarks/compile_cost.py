"""Wall time and peak memory of a compile against copying the same files, in one run.

python benchmarks/compile_cost.py --gigabytes 0.5 2 7 13.5 --scratch /somewhere/large
python benchmarks/compile_cost.py --model demo-out/model.onnx \\
    --tiles demo-out/band-64/masks.json
python benchmarks/compile_cost.py --gigabytes 2 --peers venv/bin/python

Copies and compiles alternate; the table gives medians and the median of the pairwise ratios.
The input is dropped from the page cache before each, as a model that does not fit there would
not be in it, and each is followed by `sync`, so that all pay for the same disk. Compiles run
with and without comparing digests.

`--peers` names an interpreter that has onnxslim, onnxsim, onnxruntime and polygraphy: each
optimises the same file, within `--limit` GB of memory that no file backs and `--timeout`
seconds; `prlimit` and `timeout` see to it. They do another job: none of them prunes or cuts.
"""

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from measuring import Run, attempted, timed, write_result

# From here on one round is measured: the page cache holds neither input nor output.
_LARGE = 5.0

# What each peer is called with: {i} the model, {o} the file to write.
_ORT = (
    "import onnxruntime as o; s = o.SessionOptions();"
    "s.graph_optimization_level = o.GraphOptimizationLevel.ORT_ENABLE_BASIC;"
    "s.optimized_model_filepath = r'{o}';"
    "s.add_session_config_entry("
    "'session.optimized_model_external_initializers_file_name', 'out.onnx.data');"
    "o.InferenceSession(r'{i}', s, providers=['CPUExecutionProvider'])"
)
_POLYGRAPHY = (
    "import sys; from polygraphy.tools import main;"
    "sys.argv = ['polygraphy', 'surgeon', 'sanitize', r'{i}', '-o', r'{o}',"
    "'--fold-constants', '--save-external-data', 'out.onnx.data']; sys.exit(main())"
)
_PEERS: dict[str, tuple[str, ...]] = {
    "onnxruntime": ("-c", _ORT),
    "onnxslim": ("-m", "onnxslim", "{i}", "{o}", "--save-as-external-data"),
    "onnxsim": ("-m", "onnxsim", "{i}", "{o}", "--save-as-external-data"),
    "polygraphy": ("-c", _POLYGRAPHY),
}


def measure(model: Path, tiles: Path, scratch: Path, rounds: int) -> dict[str, Any]:
    """Alternates copy and compile and returns their figures."""
    files = _files(model)
    command = [sys.executable, "-m", "patch_compile", str(model), "--tiles", str(tiles)]
    command += ["-o", str(scratch / "out")]
    copies, compiles, unchecked = [], [], []
    for _ in range(rounds):
        copies.append(_fresh(files, scratch / "out", ["cp", *files, str(scratch / "out")]))
        compiles.append(_fresh(files, scratch / "out", command))
        unchecked.append(_fresh(files, scratch / "out", [*command, "--no-check-digests"]))
    shutil.rmtree(scratch / "out")
    ratios = [b.seconds / a.seconds for a, b in zip(copies, compiles, strict=True)]
    bare = [b.seconds / a.seconds for a, b in zip(copies, unchecked, strict=True)]
    return {
        "bytes": sum(Path(file).stat().st_size for file in files),
        "rounds": rounds,
        "copy_seconds": median(run.seconds for run in copies),
        "copy_cpu_seconds": median(run.cpu for run in copies),
        "compile_seconds": median(run.seconds for run in compiles),
        "compile_cpu_seconds": median(run.cpu for run in compiles),
        "no_digest_seconds": median(run.seconds for run in unchecked),
        "ratio": median(ratios),
        "no_digest_ratio": median(bare),
        "ratios": ratios,
        "compile_peak_bytes": max(run.peak for run in compiles),
        "load_average": os.getloadavg()[1],
    }


def _files(model: Path) -> list[str]:
    return [str(path) for path in (model, Path(f"{model}.data")) if path.exists()]


def _fresh(files: Sequence[str], folder: Path, command: list[str]) -> Run:
    """Runs a command that fills an empty folder, from files that are not in memory."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    timed(["sync"])
    _forget(files)
    run = timed(command)
    flush = timed(["sync"])
    return Run(run.seconds + flush.seconds, run.peak, run.cpu)


def _forget(files: Sequence[str]) -> None:
    for file in files:
        with Path(file).open("rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def peers(
    python: Path, model: Path, scratch: Path, limit: float, timeout: float
) -> dict[str, dict[str, Any]]:
    """What each peer needs for its pass over the same file, or how it fails."""
    found = {}
    for name, arguments in _PEERS.items():
        folder = scratch / "peer"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        paths = {"i": str(model), "o": str(folder / "out.onnx")}
        # A limit of resident memory is none on Linux.
        command = [
            "prlimit",
            f"--data={int(limit * 1e9)}",
            "timeout",
            str(timeout),
            str(python),
        ]
        command += [argument.format(**paths) for argument in arguments]
        timed(["sync"])
        _forget(_files(model))
        run, code, said = attempted(command, folder)
        flush = timed(["sync"])
        found[name] = {
            "exit": code,
            "seconds": run.seconds + flush.seconds,
            "cpu_seconds": run.cpu,
            "peak_bytes": run.peak,
            "written": sum(file.stat().st_size for file in folder.iterdir()),
            "said": said[:200] if code else "",
        }
        shutil.rmtree(folder)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--tiles", type=Path)
    parser.add_argument("--name", help="of --model, in the table")
    parser.add_argument("--gigabytes", type=float, nargs="*", default=[])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--peers", type=Path)
    parser.add_argument("--limit", type=float, default=10.0)
    parser.add_argument("--timeout", type=float, default=900.0)
    parser.add_argument("--result", default="compile_cost")
    options = parser.parse_args()
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        scratch = Path(folder)
        if options.model is not None:
            name = options.name or options.model.name
            rows[name] = measure(options.model, options.tiles, scratch, options.rounds)
            print(_line(name, rows[name]), flush=True)
            write_result(options.result, rows)
        for size in options.gigabytes:
            rows[f"Llama-shaped, {size:g} GB"] = _synthetic(size, scratch, options)
            write_result(options.result, rows)


def _synthetic(size: float, scratch: Path, options: argparse.Namespace) -> dict[str, Any]:
    source = scratch / "source"
    maker = Path(__file__).with_name("make_model.py")
    # In a process of its own: a child's peak is never below what its parent had resident.
    timed([sys.executable, str(maker), str(source), "--gigabytes", str(size)])
    model, masks = source / "model.onnx", source / "masks.json"
    row = measure(model, masks, scratch, options.rounds if size < _LARGE else 1)
    print(_line(f"{size:g} GB", row), flush=True)
    if options.peers is not None:
        row["peers"] = peers(options.peers, model, scratch, options.limit, options.timeout)
        for name, run in row["peers"].items():
            print(f"  {_peer_line(name, run, row)}", flush=True)
    shutil.rmtree(source)
    return row


def _line(name: str, row: dict[str, Any]) -> str:
    return (
        f"{name:12} {row['bytes'] / 1e9:5.2f} GB  copy {row['copy_seconds']:6.2f} s  "
        f"compile {row['compile_seconds']:6.2f} s, {row['ratio']:.2f} times  "
        f"(without digests {row['no_digest_ratio']:.2f} times)  "
        f"CPU {row['copy_cpu_seconds']:.1f} and {row['compile_cpu_seconds']:.1f} s  "
        f"peak {row['compile_peak_bytes'] / 1e6:.0f} MB"
    )


def _peer_line(name: str, run: dict[str, Any], row: dict[str, Any]) -> str:
    told = (
        f"{name:12} {run['seconds']:7.2f} s, {run['seconds'] / row['copy_seconds']:.2f} times"
    )
    told += f"  peak {run['peak_bytes'] / 1e6:.0f} MB  wrote {run['written'] / 1e9:.2f} GB"
    return told if run["exit"] == 0 else f"{told}  exit {run['exit']}: {run['said']}"


if __name__ == "__main__":
    main()

"""Wall time and peak memory of a compile against copying the same files, in one run.

python benchmarks/compile_cost.py --model demo-out/model.onnx \\
    --tiles demo-out/band-64/masks.json
python benchmarks/compile_cost.py --gigabytes 4

Copies and compiles alternate; the table gives medians and the median of the pairwise ratios.
`cp` is followed by `sync` of its file, and so is the compile, so that both pay for the disk.
"""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path
from statistics import median

from measuring import Run, timed, write_result
from synthetic import write_model


def measure(model: Path, tiles: Path, scratch: Path, rounds: int) -> dict[str, object]:
    """Alternates copy and compile and returns their figures."""
    files = [str(path) for path in (model, Path(f"{model}.data")) if path.exists()]
    copies, compiles, unchecked = [], [], []
    # The first round warms the page cache and is dropped.
    for _ in range(rounds + 1):
        copies.append(_fresh(scratch / "copy", ["cp", *files, str(scratch / "copy")]))
        command = [sys.executable, "-m", "patch_compile", str(model), "--tiles", str(tiles)]
        command += ["-o", str(scratch / "out")]
        compiles.append(_fresh(scratch / "out", command))
        unchecked.append(_fresh(scratch / "out", [*command, "--no-check-digests"]))
    del copies[0], compiles[0], unchecked[0]
    ratios = [b.seconds / a.seconds for a, b in zip(copies, compiles, strict=True)]
    return {
        "bytes": sum(Path(file).stat().st_size for file in files),
        "rounds": rounds,
        "copy_seconds": median(run.seconds for run in copies),
        "compile_seconds": median(run.seconds for run in compiles),
        "no_digest_seconds": median(run.seconds for run in unchecked),
        "ratio": median(ratios),
        "ratios": ratios,
        "compile_peak_bytes": max(run.peak for run in compiles),
    }


def _fresh(folder: Path, command: list[str]) -> Run:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    timed(["sync"])
    run = timed(command)
    flush = timed(["sync"])
    return Run(run.seconds + flush.seconds, run.peak)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--tiles", type=Path)
    parser.add_argument("--gigabytes", type=float, nargs="*", default=[])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()))
    options = parser.parse_args()
    rows: dict[str, dict[str, object]] = {}
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        scratch = Path(folder)
        if options.model is not None:
            rows["SmolLM2-135M"] = measure(
                options.model, options.tiles, scratch, options.rounds
            )
        for size in options.gigabytes:
            source = scratch / "source"
            model, masks = write_model(source, size, "band:128", 0.5)
            rows[f"synthetic {size:g} GB"] = measure(model, masks, scratch, options.rounds)
            shutil.rmtree(source)
    for name, row in rows.items():
        print(
            f"{name:18} {row['bytes'] / 1e9:5.2f} GB  copy {row['copy_seconds']:6.2f} s  "  # type: ignore[operator]
            f"compile {row['compile_seconds']:6.2f} s  ratio {row['ratio']:.2f}  "
            f"(without digests {row['no_digest_seconds']:.2f} s)  "
            f"peak {row['compile_peak_bytes'] / 1e6:.0f} MB"  # type: ignore[operator]
        )
    write_result("compile_cost", rows)


if __name__ == "__main__":
    main()

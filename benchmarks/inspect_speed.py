"""2:4 inspection of one model: this package against `polygraphy inspect sparsity`, in one run.

python benchmarks/inspect_speed.py demo-out/everywhere/compiled.onnx

Polygraphy stops at the first group that is not 2:4, so a model that is 2:4 everywhere makes
both read all weights. Both are timed as whole commands; ours also without Python's start.
"""

import argparse
import re
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

from measuring import timed, write_result

from patch_compile import inspect_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    polygraphy, theirs = _polygraphy(options.model)
    command = [sys.executable, "-m", "patch_compile", "inspect", str(options.model)]
    ours = median(timed(command).seconds for _ in range(options.rounds))
    inside = median(_inspect(options.model) for _ in range(options.rounds))
    found = inspect_model(options.model)
    eligible = {weight.weight for weight in found.weights if weight.eligible}
    if theirs != eligible:
        raise SystemExit(f"verdicts | differ on {sorted(theirs ^ eligible)[:5]}")
    weights = sum(weight.shape[0] * weight.shape[1] for weight in found.weights)
    data = {
        "weights": weights,
        "bytes": sum(_bytes(w.dtype) * w.shape[0] * w.shape[1] for w in found.weights),
        "polygraphy_seconds": polygraphy,
        "command_seconds": ours,
        "library_seconds": inside,
        "command_ratio": polygraphy / ours,
        "library_ratio": polygraphy / inside,
        "eligible": len(eligible),
    }
    for name, value in data.items():
        print(f"{name:20} {value:.4g}")
    write_result("inspect_speed", data)


def _polygraphy(model: Path) -> tuple[float, set[str]]:
    """Seconds, and the names of the weights it calls 2:4."""
    program = Path(sys.executable).with_name("polygraphy")
    command = [str(program), "inspect", "sparsity", str(model)]
    start = time.perf_counter()
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    return seconds, set(re.findall(r"Found sparse tensor: (.*)", done.stdout))


def _inspect(model: Path) -> float:
    start = time.perf_counter()
    inspect_model(model)
    return time.perf_counter() - start


def _bytes(dtype: str) -> int:
    return 4 if dtype == "float" else 2


if __name__ == "__main__":
    main()

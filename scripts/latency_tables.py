"""Makes patch_compile/targets/tables from one CSV of measured GEMM latencies.

python scripts/latency_tables.py gemm_latency.csv

The CSV has columns gpu, dtype, shapes_from, M, N, K, dense_us and sparse24_us. It is the
kernel benchmark of the SlideSparse authors (GitHub bcacdwk/vllmbench, folder
slidesparse/benchmark_kernel/kernel_speedup_results, Apache-2.0), reshaped: cuBLASLt against
cuSPARSELt, the best algorithm of each, CUDA 12.9, warm caches.
"""

import argparse
import csv
import sys
from collections import defaultdict
from itertools import groupby
from pathlib import Path

import numpy as np

from patch_compile.targets.datasheets import BYTES
from patch_compile.targets.model import fitted
from patch_compile.targets.table import Table

_SOURCE = (
    "cuBLASLt and cuSPARSELt, best algorithms, CUDA 12.9, warm caches; measured by the "
    "SlideSparse authors, github.com/bcacdwk/vllmbench, Apache-2.0"
)
_TABLES = Path(__file__).parents[1] / "patch_compile" / "targets" / "tables"

# The dense kernel of B200 int8 is not a tensor core's; of H100 fp16 there are three points.
_BROKEN = {("b200", "int8"), ("h100", "fp16")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("csv", type=Path)
    for _, own in groupby(tables(parser.parse_args().csv), lambda table: table.gpu):
        for table in fitted(list(own)):
            path = _TABLES / f"{table.gpu}-{table.dtype}.json"
            path.write_text(table.to_json(), "utf-8")
            sys.stdout.write(f"{path.name}: {len(table.sizes)} points\n")


def tables(path: Path) -> list[Table]:
    rows: dict[tuple[str, str], dict[str, list[list[float]]]] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            key = row["gpu"].lower(), row["dtype"]
            numbers = [float(row[c]) for c in ("M", "N", "K", "dense_us", "sparse24_us")]
            # fp4 was measured too rarely; a latency of 0 is a kernel that did not run.
            if key in _BROKEN or key[1] not in BYTES or min(numbers) <= 0:
                continue
            origins = rows.setdefault(key, defaultdict(list))
            origins[row["shapes_from"]].append(numbers)
    return [
        Table(gpu, dtype, {o: np.array(points) for o, points in origins.items()}, _SOURCE)
        for (gpu, dtype), origins in sorted(rows.items())
    ]


if __name__ == "__main__":
    main()

"""Tables of measured GEMM latencies: files of one GPU and one dtype.

M: tokens. N: out features. K: in features. T: measured points.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patch_compile.errors import ModelError
from patch_compile.parsing import DAMAGE, parse_json
from patch_compile.targets.datasheets import BYTES, GPUS

__all__ = ["QUANTITIES", "Table"]

Floats = NDArray[np.float64]

# What the processes of a table predict, each a log over the roofline's, and from how many of
# the columns of `features`. `ratio` and `pooled` are the same, from the table alone and from
# all dtypes of the GPU.
QUANTITIES = {"dense": 8, "sparse24": 8, "mean": 8, "ratio": 8, "pooled": 11}
_VERSION = 2


@dataclass(frozen=True, eq=False)
class Table:
    """Measured latencies of one GPU and dtype.

    Attributes:
        gpu: a key of `GPUS`.
        dtype: of the operands.
        points: by origin, usually a model: float (T, 5) of M, N, K and the microseconds of
            the dense and of the 2:4 product.
        source: where the numbers are from, and their licence.
        parameters: for each of `QUANTITIES` those of its process.
    """

    gpu: str
    dtype: str
    points: Mapping[str, Floats]
    source: str
    parameters: Mapping[str, Floats] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.gpu not in GPUS or self.dtype not in BYTES:
            raise ModelError(
                f"table | is of '{self.gpu}' and '{self.dtype}'; expected a GPU of "
                f"{', '.join(GPUS)} and a dtype of {', '.join(BYTES)}"
            )
        if not any(map(len, self.points.values())):
            raise ModelError(
                f"table '{self.gpu}-{self.dtype}' | has no points; expected measured "
                "products; make it by calibrate"
            )
        for origin, rows in self.points.items():
            shaped = rows.ndim == 2 and rows.shape[1] == 5
            if not (shaped and (rows > 0).all() and np.isfinite(rows).all()):
                raise ModelError(
                    f"table '{self.gpu}-{self.dtype}' | has rows of '{origin}' that are not "
                    "five positive numbers M, N, K, dense_us, sparse24_us; leave them out"
                )
        for quantity, parameters in self.parameters.items():
            # Beside a length each, two deviations and a noise.
            if parameters.shape != (QUANTITIES.get(quantity, 0) + 3,):
                raise ModelError(
                    f"table '{self.gpu}-{self.dtype}' | has {parameters.size} parameters of "
                    f"'{quantity}'; expected those of {', '.join(QUANTITIES)}; make it again"
                )

    @property
    def sizes(self) -> Floats:
        """M, N, K of every point, float (T, 3)."""
        return np.concatenate(list(self.points.values()))[:, :3]

    @property
    def log_us(self) -> Floats:
        """Log microseconds of every point, dense and 2:4, float (T, 2)."""
        logs: Floats = np.log(np.concatenate(list(self.points.values()))[:, 3:])
        return logs

    def to_json(self) -> str:
        """Returns the table as JSON text, a point a line."""
        head = {
            "version": _VERSION,
            "gpu": self.gpu,
            "dtype": self.dtype,
            "source": self.source,
            "parameters": {n: np.round(p, 4).tolist() for n, p in self.parameters.items()},
        }
        lines = [f" {json.dumps(name)}: {json.dumps(value)}," for name, value in head.items()]
        origins = [
            f"  {json.dumps(origin)}: [\n" + ",\n".join(_line(row) for row in rows) + "\n  ]"
            for origin, rows in self.points.items()
        ]
        body = '\n "points": {\n' + ",\n".join(origins) + "\n }\n}\n"
        return "{\n" + "\n".join(lines) + body

    @classmethod
    def from_json(cls, text: str) -> "Table":
        """Reads what `to_json` wrote.

        Raises:
            ModelError: if the text is not such a table.
        """
        try:
            data = parse_json(text)
            known = data["version"] == _VERSION
            points = {o: np.array(rows, np.float64) for o, rows in data["points"].items()}
            parameters = {n: np.array(p, np.float64) for n, p in data["parameters"].items()}
            words = str(data["gpu"]), str(data["dtype"]), str(data["source"])
        except DAMAGE as error:
            lack = f"it has no {error}" if isinstance(error, KeyError) else str(error)
            raise ModelError(
                f"table | is no latency table: {lack}; give one that calibrate wrote"
            ) from error
        if not known:
            raise ModelError(
                f"table | has version {data['version']}; expected {_VERSION}; make it again"
            )
        return cls(words[0], words[1], points, words[2], parameters)


def _line(row: Any) -> str:
    m, n, k = (int(size) for size in row[:3])
    return f"   [{m}, {n}, {k}, {row[3]:.6g}, {row[4]:.6g}]"

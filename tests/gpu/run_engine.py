"""Runs an engine once: `python -m tests.gpu.run_engine m.engine x.npy out.npz`.

In a process of its own, for native code can end it. Exit code 3: nothing here moves arrays to
the GPU.
"""

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np

NOTHING = 3


def main(engine: Path, given: Path, out: Path) -> int:
    x = np.load(given)
    if importlib.util.find_spec("torch") is not None:
        torch: Any = importlib.import_module("torch")
        if torch.cuda.is_available():
            np.savez(out, **_by_torch(torch, engine.read_bytes(), x))
            return 0
    if importlib.util.find_spec("polygraphy") is not None:
        np.savez(out, **_by_polygraphy(engine.read_bytes(), x))
        return 0
    return NOTHING


def _by_torch(torch: Any, plan: bytes, x: Any) -> dict[str, Any]:
    trt: Any = importlib.import_module("tensorrt")
    # Named to the end: TensorRT does not keep what it needs alive.
    logger = trt.Logger(trt.Logger.ERROR)
    runtime = trt.Runtime(logger)
    engine = runtime.deserialize_cuda_engine(plan)
    context = engine.create_execution_context()
    values = {"x": torch.from_numpy(x).cuda()}
    context.set_input_shape("x", tuple(x.shape))
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        if name != "x":
            shape = tuple(context.get_tensor_shape(name))
            values[name] = torch.empty(shape, dtype=torch.float16, device="cuda")
        context.set_tensor_address(name, values[name].data_ptr())
    # TensorRT advises against the default stream.
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    if not context.execute_async_v3(stream.cuda_stream):
        raise SystemExit("the engine did not run")
    stream.synchronize()
    return {n: v.float().cpu().numpy() for n, v in values.items() if n != "x"}


def _by_polygraphy(plan: bytes, x: Any) -> dict[str, Any]:
    common: Any = importlib.import_module("polygraphy.backend.trt")
    with common.TrtRunner(common.EngineFromBytes(plan)) as runner:
        found = runner.infer({"x": x})
        return {name: np.asarray(value, np.float32) for name, value in found.items()}


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))

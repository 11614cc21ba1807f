"""A program that stands in for trtexec, which no package index carries.

It answers --help as a published version does, writes the files it is told to, and prints a
log of the published form. It shows how ours runs such a program, and nothing of TensorRT.
"""

import sys
from pathlib import Path

from tests.runtimes import published

_BODY = """\
import json, os, sys, time
given = dict(a[2:].split("=", 1) if "=" in a else (a[2:], "") for a in sys.argv[1:])
if "help" in given:
    print({help!r})
    raise SystemExit(0)
def write(option, text):
    if option in given:
        open(given[option], "w").write(text)
print("&&&& RUNNING TensorRT.trtexec [TensorRT v100500] [b18] #", *sys.argv, flush=True)
print({device!r}, flush=True)
print("[I] Start parsing network model.", flush=True)
print("[I] Finished parsing network model. Parse time: 0.1", flush=True)
{during}
write("saveEngine", "engine of " + given.get("onnx", ""))
write("exportLayerInfo", {layers!r})
write("exportProfile", {profile!r})
write("exportTimes", {times!r})
print({log!r}, flush=True)
print("&&&& PASSED TensorRT.trtexec", flush=True)
"""

DEVICE = """\
[I] Selected Device: NVIDIA RTX A6000
[I] Compute Capability: 8.6
"""


def stand_in(
    folder: Path, *, log: str = "", layers: str = '{"Layers": []}', during: str = ""
) -> Path:
    """Writes the program and returns its path.

    Args:
        folder: to write it to.
        log: what it says of the build.
        layers: its layer information.
        during: Python it runs in place of a build.
    """
    body = _BODY.format(
        help=published.HELP_10,
        device=DEVICE,
        during=during,
        layers=layers,
        profile=published.PROFILE,
        times=published.TIMES,
        log=log,
    )
    path = folder / "trtexec"
    path.write_text(f"#!{sys.executable}\n{body}")
    path.chmod(0o755)
    return path

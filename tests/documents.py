"""What documents tell a reader to type: found, told apart, and run."""

import os
import re
import subprocess
import sys
from pathlib import Path

__all__ = ["blocks", "code_of", "commands", "run_command", "run_examples", "skipped"]

# What a command begins with, or holds, and why a test cannot run it.
SKIPPED = {
    r"make\b": "installs and tests the whole project",
    r"git clone\b": "needs a network",
    r"(python3? -m )?pip install\b": "needs a network and would change this environment",
    r"cd\b": "the folder is this test's",
    r".*\btrtexec\b": "needs TensorRT and a GPU",
    r".*\btorchrun\b": "needs several processes for minutes",
}


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands(text: str) -> list[str]:
    """The command lines of all bash blocks, continued lines joined, comments dropped."""
    lines = "".join(blocks(text, "bash")).replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def skipped(command: str) -> bool:
    """Whether a test cannot run it; see `SKIPPED`."""
    return any(re.match(pattern, command) for pattern in SKIPPED)


def code_of(text: str) -> str:
    """Fenced blocks and inline code: what is meant literally."""
    fenced = re.findall(r"^```\w*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    return "\n".join([*fenced, *re.findall(r"`([^`]+)`", prose)])


def run_command(command: list[str], folder: Path) -> str:
    """Runs it with this environment's programs first on the PATH; returns what it prints."""
    programs = Path(sys.executable).parent
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"{command[-1]}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def run_examples(text: str, folder: Path) -> None:
    """Runs the commands in order, and then the Python blocks in one process."""
    for command in commands(text):
        if not skipped(command):
            run_command(["bash", "-euo", "pipefail", "-c", command], folder)
    examples = "\n".join(blocks(text, "python"))
    if examples:
        run_command([sys.executable, "-c", examples], folder)

"""The command line: `patch-compile`, and `python -m patch_compile`."""

import sys

__all__ = ["main"]


def main() -> None:
    """Runs the command line, and stops quietly if it is stopped while it is still loading."""
    try:
        from patch_compile.cli.main import main as run
    except KeyboardInterrupt:
        sys.stderr.write("patch-compile: stopped\n")
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()

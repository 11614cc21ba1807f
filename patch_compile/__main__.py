"""`python -m patch_compile` is the command line."""

from patch_compile.cli.main import main

main()

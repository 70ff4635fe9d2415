"""Lets `python -m tdmpc_opt` and `torchrun -m tdmpc_opt` stand for the command."""

import sys

from tdmpc_opt.cli import main

if __name__ == "__main__":
    sys.exit(main())

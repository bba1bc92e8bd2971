"""`python -m main`, and `accelerate launch -m main`: the same as `main-peft`."""

import sys

from main.cli.entry import console

if __name__ == "__main__":
    sys.exit(console())

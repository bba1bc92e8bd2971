"""The command line: `main-peft`, or `python -m main`."""

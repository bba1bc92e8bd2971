"""The command `python -m main.utils.report`."""

import argparse
import sys
from collections.abc import Sequence

from main.utils.report import __doc__ as about
from main.utils.report import report


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m main.utils.report", description=(about or "").splitlines()[0]
    )
    parser.add_argument("runs", nargs="+", help="save_model/<task_name> folders")
    parser.add_argument("--output", default="report.html", help="the HTML file (report.html)")
    given = parser.parse_args(arguments)
    print(report(given.runs, given.output))
    return 0


if __name__ == "__main__":
    sys.exit(main())

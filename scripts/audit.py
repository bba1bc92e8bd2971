"""Known faults of the dependencies: `make audit` asks PyPI's advisories about constraints.txt.

    python scripts/audit.py constraints.txt

Fails for a fault that scripts/audit.toml does not accept with a reason, for an entry there that is
no longer found, and where the service does not answer for every package. Needs pip-audit.
"""

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

ACCEPTED = Path(__file__).with_name("audit.toml")
SHOWN = 10  # packages of a list


def ask(constraints: str) -> dict[str, Any]:
    """What pip-audit reports.

    Raises:
        SystemExit: it does not run, or has no answer.
    """
    command = [sys.executable, "-m", "pip_audit", "--requirement", constraints, "--no-deps"]
    command += ["--disable-pip", "--progress-spinner", "off", "--format", "json"]
    done = subprocess.run(command, capture_output=True, text=True)
    try:
        return json.loads(done.stdout)
    except ValueError:
        said = done.stderr.strip().splitlines()
        raise SystemExit(
            f"No answer from the advisory service: {said[-1] if said else 'nothing was said'}. "
            "This needs pip-audit and the network; nothing was checked."
        ) from None


def problems(report: dict[str, Any], accepted: dict[str, str]) -> list[str]:
    """One sentence for each fault, each package without an answer, each needless entry.

    >>> problems({"dependencies": [{"name": "a", "version": "1", "vulns": []}]}, {})
    []
    """
    packages = report["dependencies"]
    silent = [package["name"] for package in packages if "skip_reason" in package]
    found: list[str] = []
    if silent:
        shown = ", ".join(silent[:SHOWN]) + (", ..." if len(silent) > SHOWN else "")
        found.append(
            f"The advisory service has no answer for {len(silent)} of {len(packages)} packages "
            f"({shown}): they are not checked. Is it a mirror without advisories?"
        )
    seen: set[str] = set()
    for package in packages:
        for fault in package.get("vulns", []):
            names = {fault["id"], *fault.get("aliases", [])}
            seen |= names
            if not names & accepted.keys():
                found.append(_told(package, fault))
    if not silent:
        found += [f"{name} in {ACCEPTED.name} is not found any more: take it out."
                  for name in accepted if name not in seen]  # fmt: skip
    return found


def _told(package: dict[str, Any], fault: dict[str, Any]) -> str:
    mended = ", ".join(fault.get("fix_versions", [])) or "no version yet"
    first = str(fault.get("description", "")).strip().partition("\n")[0]
    return f"{package['name']} {package['version']}: {fault['id']}, mended in {mended}. {first}"


def main() -> None:
    report = ask(sys.argv[1])
    accepted = tomllib.loads(ACCEPTED.read_text(encoding="utf-8"))["accepted"]
    found = problems(report, accepted)
    if found:
        raise SystemExit("\n".join(found))
    print(
        f"{len(report['dependencies'])} packages, no known fault beside {len(accepted)} accepted."
    )


if __name__ == "__main__":
    main()

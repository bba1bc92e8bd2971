"""`make audit`: a known fault, a silent service and a needless exception all fail."""

import subprocess
import sys

import pytest
from conftest import ROOT, script

audit = script("audit")
FAULT = {"id": "PYSEC-1", "aliases": ["CVE-2026-1"], "fix_versions": ["2.1"], "description": "Bad."}
SOUND = {"name": "jinja2", "version": "3.1.6", "vulns": []}
FAULTY = {"name": "urllib3", "version": "2.0", "vulns": [FAULT]}
SILENT = {"name": "torch", "skip_reason": "Dependency not found on PyPI"}


@pytest.mark.parametrize(
    ("packages", "accepted", "expected"),
    [
        ([SOUND], {}, []),
        ([SOUND, FAULTY], {}, ["urllib3 2.0: PYSEC-1, mended in 2.1. Bad."]),
        ([FAULTY], {"CVE-2026-1": "its server alone, which nothing here starts"}, []),
        ([SOUND], {"PYSEC-1": "x"}, ["PYSEC-1 in audit.toml is not found any more: take it out."]),
        ([SOUND, SILENT], {"PYSEC-1": "x"}, ["no answer for 1 of 2 packages (torch)"]),
    ],
)
def test_what_is_not_accepted_with_a_reason_is_a_problem(packages, accepted, expected):
    found = audit.problems({"dependencies": packages}, accepted)
    assert len(found) == len(expected)
    assert all(text in problem for text, problem in zip(expected, found, strict=True))


def test_without_an_answer_nothing_is_called_sound(tmp_path):
    """Here pip-audit is not installed, or the file is not there: neither is an answer."""
    command = [sys.executable, ROOT / "scripts" / "audit.py", tmp_path / "gone.txt"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and "nothing was checked" in done.stderr

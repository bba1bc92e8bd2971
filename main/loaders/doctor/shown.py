"""A checkup as text of 80 columns and as HTML."""

import html
import textwrap

from main.loaders.doctor.findings import Examination, Finding, SplitCounts

WIDTH = 80
_COLOURS = {"error": "\033[31m", "warning": "\033[33m", "note": "\033[36m"}
_RESET = "\033[0m"
_STYLE = """<style>
.checkup{font:14px/1.5 system-ui,sans-serif;color-scheme:light dark;max-width:60em}
.checkup table{border-collapse:collapse;margin:.5em 0}
.checkup td,.checkup th{padding:.2em .8em .2em 0;text-align:left;vertical-align:top}
.checkup .error{color:light-dark(#b00020,#ff8a8a)}
.checkup .warning{color:light-dark(#8a5a00,#ffc966)}
.checkup .note{color:light-dark(#00607a,#7fd4ea)}
.checkup small{opacity:.75}
</style>"""


def text_of(checkup: Examination, colour: bool = False) -> str:
    limit = f", max_length={checkup.max_length}" if checkup.max_length else ""
    lines = [f"Rows of {checkup.loader}{limit}", ""]
    for split, counts in checkup.splits.items():
        lines += textwrap.wrap(f"{split}: {summary(counts)}", WIDTH, subsequent_indent="  ")
    lines.append("")
    for finding in checkup.findings:
        lines += _finding(finding, colour)
    lines += textwrap.wrap(verdict(checkup), WIDTH)
    return "\n".join(lines)


def html_of(checkup: Examination) -> str:
    rows = "".join(
        f"<tr><th>{html.escape(split)}</th><td>{html.escape(summary(counts))}</td></tr>"
        for split, counts in checkup.splits.items()
    )
    findings = "".join(
        f'<tr><td class="{f.level}">{f.level}</td><td><code>{f.code}</code></td><td>{f.count}</td>'
        f"<td>{html.escape(f.meaning)} {html.escape(f.advice)}"
        f"<br><small>{html.escape(_places(f))}</small></td></tr>"
        for f in checkup.findings
    )
    return (
        f'{_STYLE}<div class="checkup"><p><b>{html.escape(checkup.loader)}</b></p>'
        f"<table>{rows}</table><table>{findings}</table><p>{html.escape(verdict(checkup))}</p></div>"
    )


def summary(counts: SplitCounts) -> str:
    """A split in one line."""
    parts = [f"{counts.rows} rows"]
    if counts.usable != counts.rows:
        parts.append(f"{counts.usable} usable")
    if found := counts.lengths:
        parts.append(
            f"{found.shortest} to {found.longest} {found.unit} (median {found.median}, "
            f"95 % up to {found.p95})"
        )
    parts += [f"{name} {n}" for name, n in counts.languages.items()]
    parts += [f"label {name} {n}" for name, n in counts.labels.items()]
    return ", ".join(parts)


def verdict(checkup: Examination) -> str:
    counts = {
        level: sum(f.level == level for f in checkup.findings)
        for level in ("error", "warning", "note")
    }
    if not any(counts.values()):
        return "Nothing found."
    told = [f"{n} {level}{'s' if n > 1 else ''}" for level, n in counts.items() if n]
    trains = "Training would refuse these rows." if counts["error"] else "Training would take them."
    return f"{', '.join(told)}. {trains}"


def _finding(finding: Finding, colour: bool) -> list[str]:
    rows = "1 row" if finding.count == 1 else f"{finding.count} rows"
    head = f"{finding.level.upper():8}{finding.code}: {rows}"
    words = [finding.meaning, finding.advice, _places(finding)]
    lines = textwrap.wrap(
        " ".join(filter(None, words)), WIDTH, initial_indent=" " * 8, subsequent_indent=" " * 8
    )
    shown = f"{_COLOURS[finding.level]}{head}{_RESET}" if colour else head
    return [shown, *lines, ""]


def _places(finding: Finding) -> str:
    more = ", ..." if finding.count > len(finding.places) and finding.places else ""
    return f"({', '.join(finding.places)}{more})" if finding.places else ""

"""What `check` returns: what was found, and the ways to look at it."""

import json
from dataclasses import asdict, dataclass
from typing import Any

from main.loaders.doctor.findings import Examination
from main.loaders.doctor.shown import html_of, text_of


@dataclass
class Checkup(Examination):
    """What `check` found; `print` shows it in 80 columns, notebooks as HTML."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def to_json(self) -> str:
        return json.dumps(self.as_dict(), ensure_ascii=False, indent=1)

    def to_html(self) -> str:
        """A fragment that stands by itself, in light and dark."""
        return html_of(self)

    def to_text(self, colour: bool = False) -> str:
        """At most 80 columns."""
        return text_of(self, colour)

    def __str__(self) -> str:
        return self.to_text()

    def _repr_html_(self) -> str:
        return self.to_html()

"""Answers of a given form: the options of predictors whose engine holds the model to one."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from main.predictor.sampling import GenerationOptions


@dataclass
class StructuredOptions(GenerationOptions):
    """What a caller may say about one call, beside `GenerationOptions`.

    json_schema: the answer is JSON of this schema (a dict, its text, or a pydantic class).
    regex: the answer matches this regular expression as a whole.
    choice: the answer is one of these texts.
    """

    json_schema: Any = None
    regex: str | None = None
    choice: list[str] | None = None

    def problems(self) -> list[str]:
        """One sentence for every value that cannot work."""
        given = [n for n in ("json_schema", "regex", "choice") if getattr(self, n) is not None]
        found = super().problems()
        if len(given) > 1:
            found.append(f"{' and '.join(given)} exclude each other: give one of them.")
        if self.choice is not None and not all(isinstance(c, str) and c for c in self.choice):
            found.append(f"choice={self.choice!r} must be a list of texts that are not empty.")
        if self.choice == []:
            found.append("choice=[] leaves no answer: give at least one text.")
        if not isinstance(self.json_schema, str | Mapping | type | None):
            kind = type(self.json_schema).__name__
            found.append(f"json_schema must be a dict, its text or a pydantic class, not {kind}.")
        return found

    @property
    def structure(self) -> dict[str, Any]:
        """What vLLM's `StructuredOutputsParams` is told; empty for free text."""
        schema: Any = self.json_schema
        if hasattr(schema, "model_json_schema"):
            schema = schema.model_json_schema()
        kinds = {"json": schema, "regex": self.regex, "choice": self.choice}
        return {kind: value for kind, value in kinds.items() if value is not None}

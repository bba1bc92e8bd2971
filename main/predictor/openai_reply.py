"""What a server answers -> the text, tokens and log-probabilities that the other predictors give.

Thoughts and tool calls that a server has taken out of the text are written back into it, in
`<think>` and in Hermes' form, so that an answer is whole wherever it is kept as text.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from main.dialogue.normal import AROUND
from main.errors import GenerationError
from main.types import ScoredAnswer

FAILED = {
    "content_filter": "the server's content filter withheld the answer, or the rest of it",
    "abort": "the server broke the answer off",
    "error": "the server failed in the middle of the answer",
}


class Reply:
    """One answer as it grows.

    Args:
        number: of the request, for messages.
        begun: what the answer begins with, which stood in the prompt.
    """

    def __init__(self, number: int, begun: str = ""):
        self.number = number
        self.text = ""
        self.token_ids: list[int] = []
        self.tokens: list[str] = []
        self.logprobs: list[float] = []
        self.reason = ""
        self._begun = begun
        self._thinking = False
        self._blanks = ""  # after thoughts: of them if more of them come
        self._calls: dict[int, dict[str, str]] = {}

    def take(self, response: Mapping[str, Any]) -> str:
        """Add a whole response, or a chunk of a stream; what is new in `text`.

        Raises:
            GenerationError: an answer that the server did not finish.
        """
        new = ""
        for choice in response.get("choices") or []:
            new += self._say(choice)
            self._score(choice)
            if choice.get("finish_reason"):
                new += self._finish(str(choice["finish_reason"]), self.text + new)
        self.text += new
        return new

    def check_ended(self) -> None:
        """Raises:
        GenerationError: the server's answer stopped before its end.
        """
        if not self.reason:
            raise GenerationError(
                f"request {self.number}: the server broke off before the end of its answer, after "
                f"{len(self.text)} characters."
            )

    def scored(self) -> ScoredAnswer:
        """The answer with its tokens.

        Raises:
            GenerationError: the server told no log-probabilities.
        """
        if len(self.logprobs) != len(self.token_ids or self.tokens):
            raise GenerationError(
                f"request {self.number}: the server told {len(self.token_ids)} tokens and "
                f"{len(self.logprobs)} log-probabilities."
            )
        if not self.logprobs and self.text:
            raise GenerationError(
                f"request {self.number}: the server told no log-probabilities; it may not know "
                "`logprobs`, or not for this model."
            )
        reason: Literal["stop", "length"] = "length" if self.reason == "length" else "stop"
        return ScoredAnswer(self.text, self.token_ids, self.logprobs, reason, self.tokens)

    def _say(self, choice: Mapping[str, Any]) -> str:
        said = choice.get("message") or choice.get("delta") or {"content": choice.get("text")}
        self._call(said.get("tool_calls") or [])
        thoughts = said.get("reasoning") or said.get("reasoning_content") or ""
        content = said.get("content") or said.get("refusal") or ""
        new = self._thoughts(thoughts) if thoughts else ""
        if content and self._thinking:
            new += AROUND[1]
            content = content.lstrip("\n")
            self._thinking, self._blanks = False, ""
        begun, self._begun = self._begun, ""
        return begun + new + content

    def _thoughts(self, thoughts: str) -> str:
        opening = "" if self._thinking else AROUND[0]
        text = self._blanks + (thoughts if self._thinking else thoughts.lstrip("\n"))
        self._thinking = True
        kept = text.rstrip("\n")
        self._blanks = text[len(kept) :]
        return opening + kept

    def _call(self, pieces: Iterable[Mapping[str, Any]]) -> None:
        """Calls come whole, or in pieces that name their number."""
        for number, piece in enumerate(pieces):
            call = self._calls.setdefault(piece.get("index", number), {"name": "", "arguments": ""})
            function = piece.get("function") or {}
            for key in call:
                call[key] += function.get(key) or ""

    def _finish(self, reason: str, text: str) -> str:
        """The calls, as they follow the text so far."""
        if reason in FAILED:
            raise GenerationError(f"request {self.number}: {FAILED[reason]} ({reason}).")
        self.reason = reason
        calls = [_hermes(call) for _, call in sorted(self._calls.items())]
        self._calls = {}
        if not calls:
            return ""
        gap = AROUND[1] if self._thinking else "\n" * bool(text)
        return gap + "\n".join(calls)

    def _score(self, choice: Mapping[str, Any]) -> None:
        self.token_ids += choice.get("token_ids") or []
        told = choice.get("logprobs") or {}
        if told.get("content") is not None:  # of a dialogue
            self.tokens += [str(token["token"]) for token in told["content"]]
            self.logprobs += [float(token["logprob"]) for token in told["content"]]
        elif told.get("token_logprobs") is not None:  # of a finished prompt
            self.tokens += [str(token) for token in told["tokens"]]
            self.logprobs += [float(value) for value in told["token_logprobs"]]


def _hermes(call: Mapping[str, str]) -> str:
    try:
        arguments = json.loads(call["arguments"] or "{}")
    except ValueError:
        arguments = call["arguments"]
    body = json.dumps({"name": call["name"], "arguments": arguments}, ensure_ascii=False)
    return f"<tool_call>\n{body}\n</tool_call>"

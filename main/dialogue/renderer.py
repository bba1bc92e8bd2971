"""The one place where a tokenizer's chat template is applied, and what it wants its input to be."""

import datetime
import json
import re
from collections import deque
from collections.abc import Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from main.dialogue.frame import Frame, probe, probe_dialogue, tool_roles
from main.dialogue.messages import WEIGHTS
from main.dialogue.normal import AROUND, THOUGHT_KEYS, normal
from main.dialogue.tokens import TextEncoder
from main.dialogue.trial import FREE, environment, most
from main.dialogue.tried import check_sources
from main.errors import ConfigError, DataError, ModelError
from main.options import nearest
from main.vision import VisionProcessor, template_message, visuals_in

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Messages = Sequence[Mapping[str, Any]]

# Variables that a template reads and a caller does not choose.
_NOT_OPTIONS = {"messages", "add_generation_prompt", "raise_exception", "strftime_now"}
# What `apply_chat_template` takes for its own arguments, whatever the template reads.
_NOT_OPTIONS |= {"conversation", "chat_template", "tokenize", "tokenizer_kwargs", "padding"}
_NOT_OPTIONS |= {"truncation", "max_length", "return_tensors", "return_dict"}
_NOT_OPTIONS |= {"return_assistant_tokens_mask", "continue_final_message"}
# A template that has no such role may write it all the same, as a role like any other.
_QUOTED = re.compile(r"""["']observation["']""")
_THOUGHT, _ANSWER, _NAME, _KEY, _VALUE = "herontheta", "ibexiota", "call_kudu", "of", "lynxmu"


class Calls(NamedTuple):
    """How a template wants a turn with tool calls.

    text: it wants the arguments as JSON text, not as an object.
    empty: what it wants in the place of a missing content: None, '', or 'absent' = no key.
    """

    text: bool = False
    empty: str | None = "absent"


class Spelling(NamedTuple):
    """What a template wants its messages to be.

    parts: contents as lists of parts. roles: role of a row -> the name that the template knows.
    tool_gap: what stands between a call and the tool's result, of a dialogue as it writes it.
    """

    parts: bool
    roles: Mapping[str, str] = MappingProxyType({})
    tool_gap: str = ""


class Renderer:
    """A chat template with its variables, and how it wants roles, contents, thoughts and calls.

    Args:
        tokenizer: whose template it is.
        vision: of a model that takes images.
        variables: of the template, e.g. {"enable_thinking": False}.
        today: the date that the template writes, if it writes one; None = of this moment.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        vision: VisionProcessor | None = None,
        variables: Mapping[str, Any] | None = None,
        today: datetime.date | None = None,
    ):
        self.tokenizer, self.vision, self.today = tokenizer, vision, today
        self.variables = dict(variables or {})
        self.sources = _sources(tokenizer)
        check_sources(self.sources)
        self.shapes: dict[str, Any] = {}  # main/dialogue/accounts.py keeps them
        self._spelling: Spelling | None = None

    def render(
        self,
        messages: Messages,
        add_generation_prompt: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The dialogue as text, special tokens included.

        Raises:
            DataError: the template refuses the dialogue (some allow no system turn), or writes more
                than a hundred characters for each of its own.
            ModelError: the template was changed to one that takes too much time or memory.
        """
        given = {**self.variables, **(variables or {})}
        if self.today is not None and "strftime_now" in self.names:
            given["strftime_now"] = self._midnight.strftime
        if tools:
            given["tools"] = tools
        check_sources(_sources(self.tokenizer))
        try:
            spelt = [self._spelt(message) for message in normal(messages)]
            text = self._apply(spelt, add_generation_prompt=add_generation_prompt, **given)
        except Exception as error:  # a template may raise anything
            raise DataError(f"the chat template refuses this dialogue: {error}") from error
        return text if self.vision is None else self.vision.write(text, visuals_in(messages))

    @cached_property
    def encoder(self) -> TextEncoder:
        """The tokenizer's text -> ids; a copy of a large vocabulary takes a second."""
        return TextEncoder(self.tokenizer)

    @property
    def spelling(self) -> "Spelling":
        """How the template wants roles and contents, found when first needed."""
        if self._spelling is None:
            self._spelling = Spelling(parts=self._wants_parts())
            roles, gap = tool_roles(self._render)
            if not _QUOTED.search("".join(self.sources)) and "tool" not in roles:
                roles["observation"] = "tool"
            self._spelling = Spelling(self._spelling.parts, roles | self._developer(), gap)
        return self._spelling

    @cached_property
    def frame(self) -> Frame:
        """What the template writes around an assistant's turn.

        Raises:
            ModelError: the turns of a dialogue cannot be found in what the template writes.
        """
        encoder = self.encoder
        eos = self.tokenizer.eos_token
        try:
            return probe(self._render, encoder.added, encoder.special, eos, self.spelling.tool_gap)
        except (DataError, ModelError) as error:
            raise ModelError(
                f"The chat template of {self.tokenizer.name_or_path!r} cannot be used for "
                f"training: {error}"
            ) from error

    @cached_property
    def control(self) -> re.Pattern[str]:
        """Finds control tokens: the special ones and the texts that end a turn."""
        special = self.encoder.special.pattern
        try:
            return re.compile(f"{special}|{self.frame.ends.pattern}")
        except ModelError:  # no template for training; prompts can be made all the same
            return self.encoder.special

    @cached_property
    def names(self) -> set[str]:
        """Every variable that the template reads."""
        return set().union(*(_variables(source) for source in self.sources))

    def variable_names(self) -> set[str]:
        """Those that a caller may hand over, e.g. {'enable_thinking', 'tools'}."""
        return {n for n in self.names - _NOT_OPTIONS if not n.endswith("_token")}

    def refuse_unread(self, given: Mapping[str, Any]) -> None:
        """A variable that the template never reads would be accepted and ignored."""
        names = sorted(self.names - _NOT_OPTIONS)
        for name in given:
            if name not in names:
                raise ConfigError(
                    f"The chat template reads no variable '{name}'.{nearest(name, names)} "
                    f"It reads {names}."
                )

    @cached_property
    def thought_style(self) -> str:
        """The key of a message's thoughts; 'inline' = in its content; '' = nowhere."""
        source = "".join(self.sources)
        question = {"role": "user", "content": "a"}
        for key in [key for key in THOUGHT_KEYS if key in source]:
            turn = {"role": "assistant", key: _THOUGHT, "content": self._content(_ANSWER)}
            if self._writes([question, turn], [_THOUGHT, _ANSWER]):
                return key
        inline = self._content(AROUND[0] + _THOUGHT + AROUND[1] + _ANSWER)
        turn = {"role": "assistant", "content": inline}
        return "inline" if self._writes([question, turn], [_THOUGHT, _ANSWER]) else ""

    @cached_property
    def calls_style(self) -> Calls:
        """What a turn with tool calls has to look like for its call to be written."""
        styles = [Calls(text, e) for text in (False, True) for e in ("absent", "", None)]
        for style in styles:
            call = {"name": _NAME, "arguments": {_KEY: _VALUE}}
            turn = {"role": "assistant", "tool_calls": [{"id": "ibexcall1", "function": call}]}
            spelt = self._with_calls({"role": "assistant"}, normal([turn])[0], style)
            wrong = (f"'{_KEY}'", f'\\"{_KEY}', "None")
            if self._writes([{"role": "user", "content": "a"}, spelt], [_NAME, _VALUE], wrong):
                return style
        return Calls(empty="")

    @cached_property
    def writes_tools(self) -> bool:
        """Whether the template writes the tools that it is given."""
        parameters = {"type": "object", "properties": {_ANSWER: {"type": "string"}}}
        function = {"name": _NAME, "description": _VALUE, "parameters": parameters}
        tools = [{"type": "function", "function": function}]
        try:
            text = self.render([{"role": "user", "content": "a"}], True, tools)
        except DataError:
            return False
        return all(word in text for word in (_NAME, _VALUE, _ANSWER))

    @property
    def date_written(self) -> str:
        """The date that the template writes into a dialogue; '' if it writes none."""
        return str(self.today or "") if "strftime_now" in self.names else ""

    @property
    def _midnight(self) -> datetime.datetime:
        assert self.today is not None
        return datetime.datetime.combine(self.today, datetime.time())

    def _render(self, messages: list[dict[str, Any]], add_generation_prompt: bool) -> str:
        return self.render(messages, add_generation_prompt)

    def _writes(self, spelt: list[Any], wanted: list[str], unwanted: Sequence[str] = ()) -> bool:
        """Whether the template writes these texts of messages that are spelt out already."""
        spelt = [{**m, "content": self._content(m["content"])} if "content" in m else m
                 for m in spelt]  # fmt: skip
        check_sources(_sources(self.tokenizer))
        try:
            text = self._apply(spelt, **self.variables)
        except Exception:  # a template may raise anything; then it does not write them
            return False
        return all(t in text for t in wanted) and not any(t in text for t in unwanted)

    def _apply(self, spelt: list[Any], **given: Any) -> str:
        """What the template writes, in proportion to what it is given."""
        text: Any = self.tokenizer.apply_chat_template(spelt, tokenize=False, **given)
        if len(text) > FREE and len(text) > most(size := len(str([spelt, given]))):
            raise ValueError(f"it writes {len(text):,} characters of a dialogue of {size:,}")
        return text

    def _wants_parts(self) -> bool:
        """Templates of some vision models take contents as parts only."""
        dialogue = probe_dialogue()
        wanted = [message["content"] for message in dialogue]
        for parts in (False, True):
            self._spelling = Spelling(parts)
            if self._writes(dialogue, wanted):
                return parts
        return False

    def _developer(self) -> dict[str, str]:
        """A developer's turn is a system turn to templates that do not know it."""
        dialogue = [{"role": "developer", "content": _VALUE}, *probe_dialogue()[:1]]
        known = "developer" in "".join(self.sources) and self._writes(dialogue, [_VALUE])
        return {} if known else {"developer": "system"}

    def _spelt(self, message: dict[str, Any]) -> dict[str, Any]:
        """A message in the spelling that this template wants."""
        role = message["role"]
        unsaid = ("around", *THOUGHT_KEYS, *WEIGHTS)
        spelt = {k: v for k, v in message.items() if k not in unsaid}
        spelt["role"] = self.spelling.roles.get(role, role)
        if "content" in message:
            spelt["content"] = message["content"]
        if message.get("reasoning_content"):
            spelt = self._with_thought(spelt, message)
        if self.vision is not None and visuals_in([message]):
            return template_message(spelt)
        if "content" in spelt:
            spelt["content"] = self._content(spelt["content"])
        if message.get("tool_calls"):
            return self._with_calls(spelt, message, self.calls_style)
        return spelt if "content" in spelt else {**spelt, "content": self._content("")}

    def _with_thought(self, spelt: dict[str, Any], message: dict[str, Any]) -> dict[str, Any]:
        thought, style = message["reasoning_content"], self.thought_style
        if style == "inline":
            before, after = message["around"]
            return {**spelt, "content": before + thought + after + _text(message.get("content"))}
        return {**spelt, style: thought} if style else spelt

    def _with_calls(
        self, spelt: dict[str, Any], message: dict[str, Any], style: Calls
    ) -> dict[str, Any]:
        spelt = {k: v for k, v in spelt.items() if k != "content" or v}
        if not spelt.get("content") and style.empty != "absent":
            spelt["content"] = style.empty
        calls = message["tool_calls"]
        return {**spelt, "tool_calls": [_as_text(c) for c in calls] if style.text else calls}

    def _content(self, content: Any) -> Any:
        """Text, or parts for a template that takes only these."""
        if self.spelling.parts and isinstance(content, str):
            return [{"type": "text", "text": content}]
        if not self.spelling.parts and isinstance(content, list):
            return _joined(content)
        return content


_known: "deque[Renderer]" = deque(maxlen=8)


def renderer_of(
    tokenizer: "PreTrainedTokenizerBase", vision: VisionProcessor | None = None
) -> Renderer:
    """The renderer of a tokenizer's template without variables; the last few are kept."""
    sources = _sources(tokenizer)
    for known in _known:
        if known.tokenizer is tokenizer and known.vision is vision and known.sources == sources:
            return known
    _known.append(Renderer(tokenizer, vision))
    return _known[-1]


def _sources(tokenizer: Any) -> list[str]:
    templates = tokenizer.chat_template or ""
    return list(templates.values()) if isinstance(templates, Mapping) else [str(templates)]


def _as_text(call: dict[str, Any]) -> dict[str, Any]:
    """The call with its arguments as JSON text."""
    function = call["function"]
    given = function["arguments"]
    text = given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)
    return {**call, "function": {**function, "arguments": text}}


def _text(content: Any) -> str:
    return _joined(content) if isinstance(content, list) else content or ""


def _joined(parts: list[dict[str, Any]]) -> str:
    other = [part["type"] for part in parts if part["type"] != "text"]
    if other:
        raise ValueError(f"it takes text only, not a part of type '{other[0]}'")
    return "".join(part["text"] for part in parts)


def _variables(template: str) -> set[str]:
    from jinja2 import TemplateError, meta

    made = environment()
    for name in ("raise_exception", "strftime_now"):  # read, as far as we are concerned
        del made.globals[name]
    try:
        return meta.find_undeclared_variables(made.parse(template))
    except (TemplateError, RecursionError) as error:
        raise ModelError(f"The chat template cannot be read as jinja2: {error}") from error

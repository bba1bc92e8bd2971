"""How families write that they call a tool: a table, by which answers are read.

Which entry a model's template follows is measured: a call is rendered, and the entry that reads the
same call out of the text is the template's. A template that none reads is refused by name.
"""

import ast
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from main.dialogue.normal import normal
from main.dialogue.renderer import Renderer
from main.errors import DataError, ModelError

_CONSTANTS = {"true": True, "false": False, "null": None}  # of JSON; and of Python:
_CONSTANTS |= {"True": True, "False": False, "None": None}


class Found(NamedTuple):
    """A call in a text: where it stands, which tool, and with what arguments."""

    start: int
    end: int
    name: str
    arguments: dict[str, Any]


class CallFormat(NamedTuple):
    """One way to write calls.

    name: for messages. find: (text) -> its calls, in order; what is no sound call is left out.
    frame: what stands around all calls of a turn and is no text either.
    typed: whether a string is told from a number; where not, the tool's schema decides.
    vllm: the parser of `vllm serve` that reads it; '' = none is known to.
    """

    name: str
    find: Callable[[str], list[Found]]
    frame: re.Pattern[str] = re.compile(r"(?!)")
    typed: bool = True
    vllm: str = ""


def format_of(renderer: Renderer) -> CallFormat:
    """The format that a template writes calls in.

    Raises:
        ModelError: a template that writes no calls, or in a way that is not in the table.
    """
    arguments = {"lynxmu": "ibex iota", "herontheta": {"of": [2, True]}}
    call = {"function": {"name": "call_kudu", "arguments": arguments}}
    turns: list[dict[str, Any]] = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "tool_calls": [{"id": "ibexcall1", **call}]},
    ]
    try:
        text = renderer.render(turns)
    except DataError as error:
        raise ModelError(f"this chat template refuses a tool call: {error}") from error
    if "call_kudu" not in text:
        raise ModelError("this chat template writes no tool call, so none can be read in answers.")
    text = text[text.index("a") :]
    for known in FORMATS:
        if any(f.name == "call_kudu" and f.arguments == arguments for f in known.find(text)):
            return known
    raise ModelError(
        "this chat template writes tool calls in a way that is not known here: "
        f"{text[:120]!r}. Known: {', '.join(known.name for known in FORMATS)}."
    )


def read_answer(
    text: str, form: CallFormat, tools: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """An answer as a message: `content`, `reasoning_content` and `tool_calls`, where it has them.

    Args:
        text: of the answer, with the control tokens that mark calls.
        form: of the model.
        tools: JSON schemas; they say which values are strings where the format does not.
    """
    (message,) = normal([{"role": "assistant", "content": text}])
    said = message.get("content") or ""
    calls = form.find(said)
    if calls:
        pieces, position = [], 0
        for call in calls:
            pieces.append(said[position : call.start])
            position = call.end
        rest = form.frame.sub("", "".join([*pieces, said[position:]])).strip()
        message["content"] = rest
        message["tool_calls"] = [_message(call, form, tools) for call in calls]
    message.pop("around", None)
    return message


def _message(call: Found, form: CallFormat, tools: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    arguments = call.arguments
    if not form.typed:
        strings = _string_parameters(call.name, tools)
        arguments = {
            key: _as_text(value) if key in strings else value for key, value in arguments.items()
        }
    return {"type": "function", "function": {"name": call.name, "arguments": arguments}}


def _string_parameters(name: str, tools: Sequence[Mapping[str, Any]]) -> set[str]:
    for tool in tools:
        function = tool.get("function", tool)
        if function.get("name") == name:
            properties = function.get("parameters", {}).get("properties", {})
            return {key for key, value in properties.items() if value.get("type") == "string"}
    return set()


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _object(text: str) -> dict[str, Any] | None:
    try:
        read = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return read if isinstance(read, dict) else None


def _value(text: str) -> Any:
    """A value written without quotes: of JSON or Python where it is one, else the text itself."""
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _named(read: dict[str, Any] | None) -> tuple[str, dict[str, Any]] | None:
    """(name, arguments) of {"name": ..., "arguments" or "parameters": {...}}."""
    if read is None or not isinstance(read.get("name"), str):
        return None
    arguments = read.get("arguments", read.get("parameters", {}))
    arguments = _object(arguments) if isinstance(arguments, str) else arguments
    return (read["name"], arguments) if isinstance(arguments, dict) else None


def _json_between(opening: str, closing: str) -> Callable[[str], list[Found]]:
    """{"name": ..., "arguments": {...}} between two texts."""
    pattern = re.compile(rf"{opening}\s*(\{{.*?\}})\s*(?:{closing})", re.DOTALL)

    def find(text: str) -> list[Found]:
        matches = [(m, _named(_object(m[1]))) for m in pattern.finditer(text)]
        return [Found(m.start(), m.end(), *read) for m, read in matches if read]

    return find


def _named_json(pattern: str) -> Callable[[str], list[Found]]:
    """A name and the JSON of the arguments, as the groups `name` and `json` of a pattern."""
    compiled = re.compile(pattern, re.DOTALL)

    def find(text: str) -> list[Found]:
        matches = [(m, _object(m["json"])) for m in compiled.finditer(text)]
        return [Found(m.start(), m.end(), m["name"], a) for m, a in matches if a is not None]

    return find


def _tagged(outer: str, inner: str) -> Callable[[str], list[Found]]:
    """A name and arguments one by one: groups `name`, `all` of a call, `key`, `value` of each."""
    call, argument = re.compile(outer, re.DOTALL), re.compile(inner, re.DOTALL)

    def find(text: str) -> list[Found]:
        found = []
        for match in call.finditer(text):
            arguments = {m["key"]: _value(m["value"]) for m in argument.finditer(match["all"])}
            found.append(Found(match.start(), match.end(), match["name"].strip(), arguments))
        return found

    return find


def _whole_json(text: str) -> list[Found]:
    """The whole answer is a call, or several one after the other."""
    start = re.match(r"(.*<\|end_header_id\|>)?(?:<\|python_tag\|>|\s)*", text, re.DOTALL)
    assert start is not None
    found, position, begin = [], start.end(), len(start[1] or "")
    decoder = json.JSONDecoder()
    while position < len(text) and text[position] == "{":
        try:
            read, end = decoder.raw_decode(text, position)
        except (ValueError, RecursionError):
            break
        call = _named(read)
        if call is None or "parameters" not in read:
            break
        found.append(Found(begin, end, *call))
        gap = re.compile(r"[;\s]*").match(text, end)
        position, begin = gap.end() if gap else end, end
    return found


def _json_list(opening: str) -> Callable[[str], list[Found]]:
    """[{"name": ..., "arguments": {...}}, ...] after a text."""

    def find(text: str) -> list[Found]:
        start = text.find(opening)
        begin = text.find("[", start + len(opening)) if start >= 0 else -1
        if begin < 0 or text[start + len(opening) : begin].strip():
            return []
        try:
            read, end = json.JSONDecoder().raw_decode(text, begin)
        except (ValueError, RecursionError):
            return []
        calls = [_named(item if isinstance(item, dict) else None) for item in read]
        return [Found(start, end, *call) for call in calls if call]

    return find


def _python(pattern: str) -> Callable[[str], list[Found]]:
    """Calls in Python's own spelling, the group `calls` of a pattern: f(a="x"), g(n=2)."""
    compiled = re.compile(pattern, re.DOTALL)

    def find(text: str) -> list[Found]:
        found = []
        for match in compiled.finditer(text):
            name = match.groupdict().get("name")
            for called, arguments in _python_calls(match["calls"]):
                found.append(Found(match.start(), match.end(), name or called, arguments))
        return found

    return find


class _Constants(ast.NodeTransformer):
    """JSON's constants among Python's literals."""

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.Constant(_CONSTANTS[node.id]) if node.id in _CONSTANTS else node


def _python_calls(text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        tree = ast.parse(f"[{text}]", mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    assert isinstance(tree.body, ast.List)
    for node in tree.body.elts:
        if not (isinstance(node, ast.Call) and not node.args):
            continue
        try:
            values = [(str(k.arg), _Constants().visit(k.value)) for k in node.keywords]
            arguments = {name: ast.literal_eval(value) for name, value in values}
        except (ValueError, TypeError, RecursionError):
            continue
        yield ast.unparse(node.func), arguments


def _gemma(text: str) -> list[Found]:
    """call:name{key:<|"|>text<|"|>,number:2}: JSON with bare keys and quotes of its own."""
    found = []
    for match in re.finditer(r"<\|tool_call>call:(\w+)(\{.*?\})<tool_call\|>", text, re.DOTALL):
        pieces = match[2].split('<|"|>')
        bare = [re.sub(r"([{,]\s*)([\w.-]+):", r'\1"\2":', piece) for piece in pieces[::2]]
        said = [json.dumps(piece, ensure_ascii=False) for piece in pieces[1::2]]
        whole = "".join(a + b for a, b in zip(bare, [*said, ""], strict=True))
        arguments = _object(whole)
        if arguments is not None:
            found.append(Found(match.start(), match.end(), match[1], arguments))
    return found


_GPT_OSS = (
    r"(?:<\|start\|>assistant)?(?: to=functions\.(?P<name>[\w.-]+))<\|channel\|>commentary ?"
    r"(?:<\|constrain\|>)?json<\|message\|>(?P<json>\{.*?\})(?:<\|call\|>|\Z)"
)
_GPT_OSS_SAID = (
    r"(?:<\|start\|>assistant)?<\|channel\|>commentary to=functions\.(?P<name>[\w.-]+) ?"
    r"(?:<\|constrain\|>)?(?:json)?<\|message\|>(?P<json>\{.*?\})(?:<\|call\|>|\Z)"
)


def _gpt_oss(text: str) -> list[Found]:
    """The name before the channel, as the template writes it, or behind it, as the model does."""
    found = _named_json(_GPT_OSS)(text) + _named_json(_GPT_OSS_SAID)(text)
    return sorted(found, key=lambda call: call.start)


# Those with the more particular marks first: the first that reads a template's call is its own.
FORMATS: list[CallFormat] = [
    CallFormat(
        "Hermes (Qwen 2.5 and 3)", _json_between("<tool_call>", "</tool_call>"), vllm="hermes"
    ),
    CallFormat(
        "XML (Qwen 3.5, Nemotron)",
        _tagged(
            r"<tool_call>\s*<function=(?P<name>[^>\n]+)>(?P<all>.*?)</function>\s*</tool_call>",
            r"<parameter=(?P<key>[^>\n]+)>\n?(?P<value>.*?)\n?</parameter>",
        ),
        typed=False,
        vllm="qwen3_xml",
    ),
    CallFormat(
        "GLM-4.5 (GLM-4-MoE)",
        _tagged(
            r"<tool_call>(?P<name>[^\n<]+)\n?(?P<all>(?:\s*<arg_key>.*?</arg_value>)*)\s*"
            r"</tool_call>",
            r"<arg_key>(?P<key>.*?)</arg_key>\s*<arg_value>(?P<value>.*?)</arg_value>",
        ),
        typed=False,
        vllm="glm45",
    ),
    CallFormat(
        "DeepSeek",
        _named_json(
            r"<｜tool▁call▁begin｜>(?:function<｜tool▁sep｜>)?(?P<name>[^<\n]+)"
            r"(?:\n```json\n|<｜tool▁sep｜>)(?P<json>\{.*?\})(?:\n```)?<｜tool▁call▁end｜>"
        ),
        re.compile(r"<｜tool▁calls▁(?:begin|end)｜>"),
    ),
    CallFormat("gpt-oss", _gpt_oss, re.compile(r"<\|channel\|>(?:analysis|final)<\|message\|>")),
    CallFormat(
        "Mistral",
        _named_json(
            r"\[TOOL_CALLS\](?P<name>[\w.-]+)(?:\[CALL_ID\]\w+)?\[ARGS\](?P<json>\{.*?\})"
            r"(?=\[TOOL_CALLS\]|</s>|\s*\Z)"
        ),
    ),
    CallFormat("Mistral, as a list", _json_list("[TOOL_CALLS]")),
    CallFormat(
        "LFM2",
        _python(r"<\|tool_call_start\|>\[(?P<calls>.*?)\]<\|tool_call_end\|>"),
        vllm="lfm2",
    ),
    CallFormat("Gemma 4", _gemma, vllm="gemma4"),
    CallFormat(
        "XML by names (Muse)",
        _tagged(
            r"<atem:invoke name=\"(?P<name>[^\"]+)\">(?P<all>.*?)</atem:invoke>",
            r"<atem:parameter name=\"(?P<key>[^\"]+)\">(?P<value>.*?)</atem:parameter>",
        ),
        re.compile(r"</?atem:function_calls>"),
        typed=False,
        vllm="muse_glimmer",
    ),
    CallFormat(
        "ChatGLM3",
        _python(r"(?:^|\n|<\|assistant\|>)(?P<name>[\w.-]+)\n ?```python\n(?P<calls>.*?)\n```"),
    ),
    CallFormat("Llama 3.1", _whole_json, vllm="llama3_json"),
    CallFormat(
        "GLM-4",
        _named_json(r"(?:^|<\|assistant\|>)\s*(?P<name>[\w.-]+)\n(?P<json>\{.*\})(?=\s*\Z|<\|)"),
    ),
]

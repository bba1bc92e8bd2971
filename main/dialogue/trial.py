"""Tries a chat template in a process of its own, with limits of time and memory.

    python -I -S trial.py SECONDS MEGABYTES FOLDER < TEMPLATE

FOLDER: where jinja2 lies. The process loads nothing else of anybody's, so that it begins in a tenth
of a second. It writes BEGUN, then what is wrong with the template, or nothing, and ENDED. A
template that no limit stops may have ended it between the two.
"""

import contextlib
import itertools
import json
import sys
from collections.abc import Iterator
from typing import Any

BEGUN, ENDED = "begun", "ended"
FREE = 200_000  # characters that a template may write of its own
GROWTH = 100  # characters for each one that it is given
LONGEST = 60  # exchanges of a dialogue that is tried
QUESTIONED = 200  # texts that a template looks for which are tried
ROLES = ("system", "developer", "user", "assistant", "tool", "observation")

Messages = list[dict[str, Any]]


def most(given: int) -> int:
    """Characters that a template may write of an input of so many.

    >>> most(0), most(1000)
    (200000, 300000)
    """
    return FREE + GROWTH * given


def environment() -> Any:
    """jinja2, set up as transformers does it for chat templates."""
    from jinja2 import ext, nodes
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(ext.Extension):
        """A tag of transformers' own, around what an assistant wrote."""

        tags = {"generation"}  # noqa: RUF012 (jinja2 has it so)

        def parse(self, parser: Any) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, ext.loopcontrols]
    )
    made.filters["tojson"] = _tojson
    made.globals |= {"raise_exception": _refuse, "strftime_now": lambda form: f"today {form}"}
    return made


def try_out(source: str) -> str:
    """What is wrong with a template, as a sentence's end; '' where nothing is."""
    from jinja2 import meta

    try:
        made = environment()
        tree = made.parse(source)
        template = made.from_string(source)
        names = meta.find_undeclared_variables(tree)
        for messages, more in _inputs(tree, names):
            problem = _render(template, messages, more)
            if problem:
                return problem
    except MemoryError:
        return "takes more memory than it may"
    except Exception:  # no template at all: whoever renders it says so
        return ""
    return ""


def _render(template: Any, messages: Messages, more: dict[str, Any]) -> str:
    try:
        text = template.render(messages=messages, bos_token="<s>", eos_token="</s>", **more)
    except MemoryError:
        raise
    except Exception:  # a template may refuse a dialogue
        return ""
    given = len(json.dumps([messages, more]))
    if len(text) <= most(given):
        return ""
    return f"writes {len(text):,} characters of a dialogue of {given:,}"


def _inputs(tree: Any, names: set[str]) -> Iterator[tuple[Messages, dict[str, Any]]]:
    """Every dialogue, with and without tools, and with each variable that is read set."""
    set_all = dict.fromkeys(names, True) | {"tools": [_tool()], "documents": [_document()]}
    for name in ("messages", "bos_token", "eos_token"):
        set_all.pop(name, None)
    for messages in _dialogues(tree):
        yield messages, {"add_generation_prompt": False}
        yield messages, set_all | {"add_generation_prompt": True}


def _dialogues(tree: Any) -> Iterator[Messages]:
    from jinja2 import nodes

    plain = _exchanges("Quokka alpha", "Narwhal beta", 2)
    yield plain
    yield [{"role": "system", "content": "Be kind."}, *plain[:-1]]
    yield [m | {"content": [{"type": "text", "text": m["content"]}]} for m in plain]
    yield _with_calls()
    yield _exchanges("word 42\n" * 50, "answer " * 50, LONGEST)
    found = {c.value for c in tree.find_all(nodes.Const) if isinstance(c.value, str)}
    looked_for = sorted(found, key=lambda text: (len(text), text))[:QUESTIONED]
    for text in looked_for:
        yield _exchanges(text, text, 1)
    for role in {*ROLES, *looked_for}:
        yield [plain[0], {"role": role, "content": "Ibex gamma"}]


def _exchanges(question: str, answer: str, count: int) -> Messages:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return [dict(turn) for turn in itertools.chain(*[turns] * count)]


def _with_calls() -> Messages:
    call = {"name": "call_ibex", "arguments": {"of": "Gazelle eta"}}
    answer = {"role": "assistant", "content": "", "reasoning_content": "It is easy."}
    calls = [{"id": "ibexcall1", "type": "function", "function": call}]
    result = {"role": "tool", "name": "call_ibex", "content": "sunny", "tool_call_id": "ibexcall1"}
    turns = _exchanges("Quokka alpha", "<think>\nIt is easy.\n</think>\n\nNarwhal beta", 1)
    return [turns[0], answer | {"tool_calls": calls}, result, *turns[::-1], turns[1]]


def _tool() -> dict[str, Any]:
    parameters = {"type": "object", "properties": {"of": {"type": "string"}}, "required": ["of"]}
    function = {"name": "call_ibex", "description": "Calls it.", "parameters": parameters}
    return {"type": "function", "function": function}


def _document() -> dict[str, str]:
    return {"title": "Ibexes", "text": "They climb."}


def _tojson(value: Any, **options: Any) -> str:
    return json.dumps(value, **{"ensure_ascii": False, **options})


def _refuse(message: str) -> None:
    raise ValueError(message)


def _limit(seconds: int, megabytes: int) -> None:
    """As far as the system has such limits; the process that waits has its own."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        resource.setrlimit(resource.RLIMIT_AS, (megabytes * 2**20,) * 2)


def main() -> None:
    seconds, megabytes, *folders = sys.argv[1:]
    sys.path += folders
    source = sys.stdin.buffer.read().decode("utf-8", "surrogatepass")
    environment()  # what is needed is there
    print(BEGUN, flush=True)
    _limit(int(seconds), int(megabytes))
    print(try_out(source))
    print(ENDED)


if __name__ == "__main__":
    main()

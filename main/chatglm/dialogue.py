"""The three chat formats as chat templates (jinja), which a saved tokenizer carries along.

A message is `role`, `content` and, of an assistant that calls a tool, `metadata` (the tool); the
result follows as `observation` (or `tool`). The text of a message can neither be nor end a control
token, see main/chatglm/vocabulary.py. What is in capitals here is filled in by `chat_template`.
"""

from collections.abc import Iterable

from main.chatglm.kind import Kind
from main.chatglm.ranks import SEAM
from main.chatglm.vocabulary import MARK

# "[Round 1]\n\n问：...\n\n答：...\n\n[Round 2]...": an answer to learn is a text of its own, with
# the blank that begins each text, and ends with </s>; an earlier one is part of the question.
CHATGLM2 = r"""
{{- 'MARK[gMASK]MARKsop' -}}
{%- set round = namespace(number=0) -%}
{%- for message in messages -%}
  {%- set content = (message.content or '') | replace('MARK', '') -%}
  {%- if message.role == 'user' -%}
    {%- set round.number = round.number + 1 -%}
    {{- '\n\n' if round.number > 1 else '' -}}
    {{- '[Round ' ~ round.number ~ ']\n\n问：' ~ content -}}
  {%- elif message.role == 'assistant' and not message.tool_calls -%}
    {{- '\n\n答：' ~ (' ' ~ content ~ 'MARK</s>' if loop.last else content) -}}
  {%- else -%}
    {{- raise_exception("ChatGLM2 knows the roles user and assistant, and no tools; got '"
        ~ message.role ~ "'. Write a system text at the start of the first question.") -}}
  {%- endif -%}
{%- endfor -%}
{{- '\n\n答：' if add_generation_prompt else '' -}}
"""

# "<|user|>\n text<|assistant|>metadata\n text": header and content are texts of their own, each
# beginning with a blank; the header's need not be written, a control token stands before it.
CHATGLM3 = r"""
{{- 'MARK[gMASK]MARKsop' -}}
{%- for message in messages -%}
  CHECK_ROLE
  {%- set content = message.content or '' -%}
  {%- if message.tools -%}
    {%- set content = content ~ '\n' ~ (message.tools | tojson(indent=4)) -%}
  {%- endif -%}
  {{- 'MARK<|' ~ role ~ '|>' ~ ((message.metadata or '') | replace('MARK', '')) ~ '\n' -}}
  {{- ' ' ~ (content | replace('MARK', '')) if content else '' -}}
{%- endfor -%}
{{- 'MARK<|assistant|>' if add_generation_prompt else '' -}}
"""

# The same without blanks; SEAM keeps the header's line end from joining one in the content.
GLM4 = r"""
{%- macro plain(text) -%}
  {{- text | replace('MARK', '') | replace('SEAM', '') ESCAPE_NAMES -}}
{%- endmacro -%}
{{- '[gMASK]<sop>' -}}
{%- for message in messages -%}
  CHECK_ROLE
  {%- if message.tools -%}
    {{- raise_exception("tools are not written for GLM-4: describe them in the system turn.") -}}
  {%- endif -%}
  {{- '<|' ~ role ~ '|>' ~ plain(message.metadata or '') ~ '\nSEAM' -}}
  {{- plain(message.content or '') -}}
{%- endfor -%}
{{- '<|assistant|>' if add_generation_prompt else '' -}}
"""

CHECK_ROLE = r"""
  {%- set role = 'observation' if message.role == 'tool' else message.role -%}
  {%- if role not in ['system', 'user', 'assistant', 'observation'] -%}
    {{- raise_exception("ChatGLM knows no role '" ~ role ~ "'.") -}}
  {%- endif -%}
  {%- if message.tool_calls -%}
    {{- raise_exception("ChatGLM writes a call as 'metadata' (the tool) and 'content' "
        ~ "(```python\ntool_call(...)\n```), not as 'tool_calls'.") -}}
  {%- endif -%}
"""

_TEMPLATES: dict[Kind, str] = {"chatglm2": CHATGLM2, "chatglm3": CHATGLM3, "glm4": GLM4}


def chat_template(kind: Kind, control_names: Iterable[str]) -> str:
    """The chat template of a format; `control_names` are those that GLM-4 would read in text."""
    inside = [f"| replace('{name}', '{name[0]}MARK{name[1:]}')" for name in control_names]
    text = _TEMPLATES[kind].strip().replace("CHECK_ROLE", CHECK_ROLE.strip())
    text = text.replace("ESCAPE_NAMES", " ".join(inside))
    # as jinja escapes: invisible characters in a file are easily lost
    return text.replace("MARK", ascii(MARK)[1:-1]).replace("SEAM", ascii(SEAM)[1:-1])

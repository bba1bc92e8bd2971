"""Dialogues and answers between our form and OpenAI's: pictures, calls, thoughts, pieces."""

import base64
import io
from typing import Any

import pytest

from main.dialogue.calls import read_answer
from main.errors import ConfigError, DataError, GenerationError
from main.predictor.openai import HERMES
from main.predictor.openai_messages import wire_messages
from main.predictor.openai_reply import Reply
from main.predictor.openai_servers import address

Image = pytest.importorskip("PIL.Image")


def asked_about(image, **sizes):
    part = {"type": "image", "image": image, **sizes}
    (message,) = wire_messages([{"role": "user", "content": [part]}], thoughts=False)
    return message["content"][0]["image_url"]["url"]


def decoded(url):
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))


@pytest.fixture
def picture():
    return Image.linear_gradient("L").resize((8, 6)).convert("RGB")


def test_an_upright_file_is_sent_as_it_is(tmp_path, picture):
    path = tmp_path / "a.jpg"
    picture.save(path)
    url = asked_about(str(path))
    assert url.startswith("data:image/jpeg;base64,")
    assert base64.b64decode(url.partition(",")[2]) == path.read_bytes()


def test_what_a_server_might_see_otherwise_is_sent_as_it_is_seen_here(tmp_path, picture):
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    picture.save(tmp_path / "turned.jpg", exif=exif)
    clear = picture.convert("RGBA")
    clear.putalpha(0)
    clear.save(tmp_path / "clear.png")
    turned = asked_about(str(tmp_path / "turned.jpg"))
    assert turned.startswith("data:image/png") and decoded(turned).size == (6, 8)
    assert decoded(asked_about(str(tmp_path / "clear.png"))).getpixel((0, 0)) == (255, 255, 255)
    assert list(decoded(asked_about(picture)).getdata()) == list(picture.getdata())


def test_pictures_that_cannot_be_sent_are_refused_by_name(tmp_path, picture):
    (tmp_path / "half.png").write_bytes(b"\x89PNG no more")
    with pytest.raises(DataError, match=r"half\.png"):
        asked_about(str(tmp_path / "half.png"))
    with pytest.raises(ConfigError, match=r"max_pixels of Image in memory: a server sizes"):
        asked_about(picture, max_pixels=100)
    with pytest.raises(ConfigError, match="images, not videos"):
        wire_messages([{"role": "user", "content": [{"type": "video", "video": [picture]}]}], True)


def test_every_call_has_an_id_and_every_result_that_of_its_call():
    call: dict[str, Any] = {"function": {"name": "f", "arguments": {"x": 1}}}
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "go"},
        {"role": "assistant", "content": "", "tool_calls": [call, {**call, "id": "mine"}]},
        {"role": "tool", "content": "one"},
        {"role": "observation", "content": "two"},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "content": "three"},
    ]
    sent = wire_messages(messages, thoughts=True)
    assert [c["id"] for m in sent for c in m.get("tool_calls", [])] == ["call_1", "mine", "call_2"]
    assert [(m["role"], m["tool_call_id"]) for m in sent if "tool_call_id" in m] == [
        ("tool", "call_1"),
        ("tool", "mine"),
        ("tool", "call_2"),
    ]
    assert sent[1]["content"] is None
    assert sent[1]["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"x": 1}'}
    assert "id" not in call


def test_thoughts_go_under_their_key_or_into_the_text():
    turn = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nFour."}
    (sent,) = wire_messages([turn], thoughts=True)
    assert (sent["reasoning"], sent["content"]) == ("hm", "Four.")
    assert wire_messages([turn], thoughts=False) == [turn]


def test_what_the_protocol_has_no_place_for_is_refused():
    with pytest.raises(ConfigError, match="'metadata' 'python'"):
        wire_messages([{"role": "assistant", "metadata": "python", "content": "x"}], True)


WHOLE = {
    "content": "\n\nI look.",
    "reasoning": "\nWhat is it?\n",
    "tool_calls": [
        {"id": "a", "function": {"name": "f", "arguments": '{"x": "é"}'}},
        {"id": "b", "function": {"name": "g", "arguments": ""}},
    ],
}
PIECES = [
    {"role": "assistant"},
    {"reasoning": "\nWhat is"},
    {"reasoning": " it?\n"},
    {"content": "\n\nI "},
    {"content": "look."},
    {"tool_calls": [{"index": 0, "id": "a", "function": {"name": "f", "arguments": '{"x"'}}]},
    {"tool_calls": [{"index": 0, "function": {"arguments": ': "é"}'}}]},
    {"tool_calls": [{"index": 1, "id": "b", "function": {"name": "g"}}]},
]


def test_thoughts_and_calls_stand_in_the_text_whole_or_in_pieces():
    whole, streamed = Reply(0), Reply(0)
    whole.take({"choices": [{"message": WHOLE, "finish_reason": "tool_calls"}]})
    chunks = [streamed.take({"choices": [{"delta": piece}]}) for piece in PIECES]
    chunks.append(streamed.take({"choices": [{"delta": {}, "finish_reason": "tool_calls"}]}))
    assert whole.text == streamed.text == "".join(chunks)
    assert whole.text == (
        "<think>\nWhat is it?\n</think>\n\nI look.\n"
        '<tool_call>\n{"name": "f", "arguments": {"x": "é"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "g", "arguments": {}}\n</tool_call>'
    )
    message = read_answer(whole.text, HERMES)
    assert (message["reasoning_content"], message["content"]) == ("What is it?", "I look.")
    assert [c["function"] for c in message["tool_calls"]] == [
        {"name": "f", "arguments": {"x": "é"}},
        {"name": "g", "arguments": {}},
    ]


def test_calls_close_thoughts_that_no_text_follows():
    reply, call = Reply(0), {"function": {"name": "f", "arguments": "{}"}}
    reply.take({"choices": [{"message": {"reasoning": "so", "tool_calls": [call]}}]})
    reply.take({"choices": [{"delta": {}, "finish_reason": "tool_calls"}]})
    message = read_answer(reply.text, HERMES)
    assert message["reasoning_content"] == "so"
    assert message["tool_calls"][0]["function"] == {"name": "f", "arguments": {}}


@pytest.mark.parametrize("reason", ["content_filter", "abort"])
def test_an_answer_that_the_server_withholds_is_an_error(reason):
    reply = Reply(3)
    with pytest.raises(GenerationError, match=rf"request 3: .*\({reason}\)"):
        reply.take({"choices": [{"message": {"content": "so"}, "finish_reason": reason}]})


def test_an_answer_without_an_end_or_without_log_probabilities_is_an_error():
    reply = Reply(1)
    reply.take({"choices": [{"delta": {"content": "so far"}}]})
    with pytest.raises(GenerationError, match=r"request 1: the server broke off .* 6 characters"):
        reply.check_ended()
    with pytest.raises(GenerationError, match="told no log-probabilities"):
        reply.scored()


@pytest.mark.parametrize(
    "given, read",
    [
        ("http://localhost:8000", "http://localhost:8000/v1"),
        ("http://localhost:8000/v1/", "http://localhost:8000/v1"),
        ("https://a.example/api/v3", "https://a.example/api/v3"),
    ],
)
def test_an_address_without_a_path_gets_the_usual_one(given, read):
    assert address(given) == read
    with pytest.raises(ConfigError, match="must be an address such as"):
        address(given.partition("://")[2])

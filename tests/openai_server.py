"""A small server that speaks OpenAI's protocol over a predictor, and fails when it is told to.

A real transport: http.server in threads, JSON, server-sent events and broken connections.
"""

import contextlib
import http.server
import json
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

COMMON = {"model", "messages", "prompt", "stream", "temperature", "top_p", "max_tokens", "stop"}
COMMON |= {"seed", "logprobs", "tools", "tool_choice", "response_format"}
EXTRAS = {
    "vllm": {"top_k", "min_p", "repetition_penalty", "stop_token_ids", "skip_special_tokens"}
    | {"chat_template_kwargs", "return_token_ids", "add_generation_prompt"}
    | {"continue_final_message"},
    "library": set(),
    "somebody": set(),
}


class Fault(NamedTuple):
    """What one request meets: a status with its headers, and what is done with the connection.

    how: 'answer' = the status; 'hang up' = nothing is sent; 'cut' = half of the answer is sent;
        'slow' = the answer comes after `seconds`; 'end early' = a stream without its last chunk.
    """

    how: str = "answer"
    status: int = 500
    headers: Mapping[str, str] = {}
    seconds: float = 0.0
    text: str = "out of order"


class Served:
    """What the server was asked, and what it is to do next.

    requests: (path, headers, body) of each POST. faults: of the requests to come, in order.
    most_at_once: requests that it answered at the same time. hung_up: clients that left.
    """

    def __init__(self, predictor: Any, owner: str, key: str):
        self.predictor, self.owner, self.key = predictor, owner, key
        self.url = ""
        self.cards: list[dict[str, Any]] = [{"id": "tiny", "owned_by": owner}]
        self.list_status = 200  # of the list of models
        self.requests: list[tuple[str, Mapping[str, str], dict[str, Any]]] = []
        self.faults: deque[Fault] = deque()
        self.pause = 0.0  # before each answer, and between the chunks of a stream
        self.most_at_once = self.at_once = 0
        self.hung_up = threading.Event()
        self.lock, self.computing = threading.Lock(), threading.Lock()

    @property
    def bodies(self) -> list[dict[str, Any]]:
        return [body for _, _, body in self.requests]


@contextlib.contextmanager
def speaking(predictor: Any, owner: str = "vllm", key: str = "") -> Iterator[Served]:
    """A server for the model 'tiny'.

    Args:
        predictor: answers; None = every answer is 'ok'.
        owner: as a kind of server names itself in its list of models.
        key: that requests must bring.
    """
    served = Served(predictor, owner, key)
    handler = type("Handler", (_Handler,), {"served": served})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    served.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    served: Served

    def log_message(self, *_: Any) -> None:
        """Nothing on the terminal of the tests."""

    def do_GET(self) -> None:
        if self._known():
            status = self.served.list_status
            self._send(status, {"object": "list", "data": self.served.cards})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        served = self.served
        with served.lock:
            headers = {name.lower(): value for name, value in self.headers.items()}
            served.requests.append((self.path, headers, body))
            served.at_once += 1
            served.most_at_once = max(served.most_at_once, served.at_once)
            fault = served.faults.popleft() if served.faults else None
        try:
            self._respond(body, fault)
        except (BrokenPipeError, ConnectionResetError):
            served.hung_up.set()
            self.close_connection = True
        finally:
            with served.lock:
                served.at_once -= 1

    def _respond(self, body: dict[str, Any], fault: Fault | None) -> None:
        time.sleep(self.served.pause)
        if not self._known():
            return
        if fault and fault.how == "answer":
            error = {"error": {"message": fault.text, "type": "error", "code": fault.status}}
            self._send(fault.status, error, fault.headers)
        elif fault and fault.how == "hang up":
            self._hang_up()
        elif body["model"] not in [card["id"] for card in self.served.cards]:
            self._send(404, {"error": {"message": f"no model {body['model']}"}})
        elif unknown := body.keys() - COMMON - EXTRAS[self.served.owner]:
            self._send(400, {"error": {"message": f"unknown fields: {sorted(unknown)}"}})
        else:
            time.sleep(fault.seconds if fault else 0)
            how = fault.how if fault else ""
            self._stream(body, how) if body.get("stream") else self._whole(body, how == "cut")

    def _known(self) -> bool:
        key = self.served.key
        if not key or self.headers.get("Authorization") == f"Bearer {key}":
            return True
        given = self.headers.get("Authorization")  # a server that is careless with keys
        self._send(401, {"error": {"message": f"Incorrect API key provided: {given}"}})
        return False

    def _whole(self, body: dict[str, Any], cut: bool) -> None:
        chat = "messages" in body
        answer = _answers(self.served, body, "predict_with_logprobs")
        text, ids, logprobs, reason = answer[0][:4] if answer else ("ok", [1], [0.0], "stop")
        choice: dict[str, Any] = {"index": 0, "finish_reason": reason}
        if chat:
            choice["message"] = {"role": "assistant", "content": text}
        else:
            choice["text"] = text
        if body.get("logprobs"):
            names = [str(i) for i in ids]
            pairs = [{"token": n, "logprob": p} for n, p in zip(names, logprobs, strict=True)]
            of_text = {"tokens": names, "token_logprobs": logprobs}
            choice["logprobs"] = {"content": pairs} if chat else of_text
        if body.get("return_token_ids"):
            choice["token_ids"] = ids
        self._send(200, {"object": "chat.completion", "choices": [choice]}, cut=cut)

    def _stream(self, body: dict[str, Any], how: str) -> None:
        self._begin(200, {"Content-Type": "text/event-stream", "Transfer-Encoding": "chunked"})
        chat = "messages" in body
        items = _answers(self.served, body, "predict_stream") or [(["o"], []), (["k"], [])]
        self._event({"choices": [{"index": 0, "delta": {"role": "assistant"}, "text": ""}]})
        for chunks, _ in items:
            said = {"delta": {"content": chunks[-1]}} if chat else {"text": chunks[-1]}
            self._event({"choices": [{"index": 0, **said}]})
            if how == "cut":
                self._hang_up()
                return
            time.sleep(self.served.pause)
        if how != "end early":
            self._event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
            self._event("[DONE]")
        self.wfile.write(b"0\r\n\r\n")

    def _event(self, data: Any) -> None:
        text = data if isinstance(data, str) else json.dumps(data)
        line = f"data: {text}\n\n".encode()
        self.wfile.write(f"{len(line):x}\r\n".encode() + line + b"\r\n")
        self.wfile.flush()

    def _send(
        self, status: int, body: Any, headers: Mapping[str, str] | None = None, cut: bool = False
    ) -> None:
        content = json.dumps(body).encode()
        plain = {"Content-Type": "application/json", "Content-Length": str(len(content))}
        self._begin(status, plain | dict(headers or {}))
        self.wfile.write(content[: len(content) // 2] if cut else content)
        if cut:
            self._hang_up()

    def _begin(self, status: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _hang_up(self) -> None:
        self.wfile.flush()
        self.close_connection = True


def _answers(served: Served, body: Mapping[str, Any], method: str) -> list[Any]:
    """What the predictor says to a request, in the words of the protocol."""
    if served.predictor is None:
        return []
    options: dict[str, Any] = dict(body.get("chat_template_kwargs") or {})
    options |= {"max_new_tokens": body["max_tokens"], "temperature": body["temperature"]}
    number = 0
    if "seed" in body:  # as a predictor sends it: of its own seed and the answer's number
        options["seed"], number = divmod(body["seed"], 1_000_003)
        options["num_return_sequences"] = number + 1
    for name in ("top_p", "stop", "top_k", "min_p", "repetition_penalty", "tools"):
        if name in body and (body["temperature"] or name not in ("top_p", "top_k", "min_p")):
            options[name] = body[name]
    for name in ("stop_token_ids", "skip_special_tokens"):
        if name in body:
            options[name] = body[name]
    messages = [_message(message) for message in body.get("messages", ())]
    if body.get("continue_final_message"):
        begun = messages.pop()["content"]
        options["assistant_prefix"] = begun
    query: Any = [messages] if messages else body["prompt"]
    options["build_message"] = bool(messages)
    with served.computing:
        found = list(getattr(served.predictor, method)(query, **options))
    if body.get("continue_final_message"):
        found = [_without(begun, answer) for answer in found]
    return found[number:] if method == "predict_with_logprobs" else found


def _without(begun: str, answer: Any) -> Any:
    """What a server gives to go on from the beginning of an answer: what follows it."""
    if isinstance(answer, tuple) and not hasattr(answer, "text"):
        return [chunk.removeprefix(begun) for chunk in answer[0]], answer[1]
    return answer._replace(text=answer.text.removeprefix(begun))


def _message(sent: Mapping[str, Any]) -> dict[str, Any]:
    content = sent.get("content")
    if isinstance(content, list):
        content = [
            {"type": "image", "image": part["image_url"]["url"]} if "image_url" in part else part
            for part in content
        ]
    message = {**sent, "content": content}
    if "reasoning" in message:
        message["reasoning_content"] = message.pop("reasoning")
    return message

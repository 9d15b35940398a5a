"""HTTP for the model server: which protocol a request is, and the answer on the wire."""

from __future__ import annotations

import gzip
import json
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

from .anthropic import Anthropic
from .chat import Chat
from .dialect import Dialect, Frame, Json, Reply
from .gemini import Gemini
from .ledger import Ledger
from .playing import Playing, turn_of
from .responses import Responses
from .scenario import Hang, Usage

MOST_BYTES: Final = 64 << 20
"""The largest request that is read."""


class Stage(ABC):
    """What a handler needs of its server: which scenario a key plays, and where requests are written down."""

    ledger: Ledger

    @abstractmethod
    def playing(self, key: str) -> Playing:
        """The scenario of this key."""


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server_version = "scripted-model/1"
    stage: Stage  # of a subclass that the server makes

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - so named by the base
        """Nothing: the ledger tells."""

    def do_HEAD(self) -> None:
        """Clients look whether anyone is there."""
        self._json(200, {})

    def do_GET(self) -> None:
        """The list of models; there is nothing else to read."""
        if not self.path.split("?")[0].endswith("/models"):
            return self._nothing_here()
        model = {"id": "scripted", "object": "model", "created": 0, "owned_by": "scripted"}
        return self._json(200, {"object": "list", "data": [model], "models": []})

    def do_POST(self) -> None:
        """A request to a model, or to count tokens."""
        path, body = self.path.split("?")[0], self._body()
        dialect = _dialect(path)
        try:
            if body is None:
                self._json(400, {"error": {"message": "the body is no JSON object", "type": "invalid_request_error"}})
            elif dialect is not None:
                self._ask(dialect, body)
            elif "count_tokens" in path or "countTokens" in path:
                self._json(200, {"input_tokens": 100, "totalTokens": 100})
            else:
                self._nothing_here()
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the client has gone: the ledger has no end of the answer

    def _ask(self, dialect: Dialect, body: Json) -> None:
        key, turn, model = self._key(), turn_of(dialect, body), str(body.get("model") or _model(self.path))
        headers, tools = {name.lower(): value for name, value in self.headers.items()}, tuple(dialect.tools(body))
        session = dialect.session(body, headers)
        number = self.stage.ledger.add(
            protocol=dialect.name, model=model, key=key, session=session, turn=turn, tools=tools
        )
        playing = self.stage.playing(key)
        fault = playing.fault(turn)
        if fault is not None:
            refusal = dialect.refusal(fault)
            self.stage.ledger.answered(number, refusal.status)
            return self._json(refusal.status, refusal.body, refusal.headers)
        reply = playing.reply(dialect, body, turn=turn, model=model, answer=uuid.uuid4().hex[:16])
        answer = _Answer(self, number, reply, playing, playing.hang(turn))
        if body.get("stream") or "streamGenerateContent" in self.path:
            return answer.stream(dialect.stream(reply, body))
        return answer.whole(dialect.whole(reply))

    def _body(self) -> Json | None:
        raw = self._raw()
        if self.headers.get("content-encoding", "") == "gzip":
            raw = gzip.decompress(raw)
        try:
            body = json.loads(raw or b"{}")
        except ValueError:
            return None
        return body if isinstance(body, dict) else None

    def _raw(self) -> bytes:
        if self.headers.get("transfer-encoding", "").lower() != "chunked":
            return self.rfile.read(min(int(self.headers.get("content-length") or 0), MOST_BYTES))
        whole = b""
        while len(whole) < MOST_BYTES:
            size = int(self.rfile.readline().split(b";")[0], 16)
            whole += self.rfile.read(size)
            self.rfile.readline()
            if size == 0:
                break
        return whole

    def _key(self) -> str:
        """The key of the client, by whichever header or parameter it comes."""
        bearer = self.headers.get("authorization", "").removeprefix("Bearer ")
        in_path = parse_qs(urlsplit(self.path).query).get("key", [""])[0]
        return self.headers.get("x-api-key") or self.headers.get("x-goog-api-key") or bearer or in_path

    def _nothing_here(self) -> None:
        self._json(404, {"error": {"message": "not found", "type": "not_found_error"}})

    def _json(self, status: int, body: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"content-type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


class _Answer:
    """An answer on its way. What it costs is written down before its end is sent: a client that has it, finds it."""

    def __init__(self, handler: Handler, number: int, reply: Reply, playing: Playing, hang: Hang | None) -> None:
        self._handler: Final = handler
        self._number: Final = number
        self._reply: Final = reply
        self._playing: Final = playing
        self._hang: Final = hang

    def whole(self, body: Json) -> None:
        """At once."""
        if self._hang and self._silence(self._hang):
            return
        self._written(200, self._reply.usage)
        self._handler._json(200, body)

    def stream(self, frames: Iterator[Frame]) -> None:
        """Event by event."""
        if self._hang and self._hang.after == 0 and self._silence(self._hang):
            return
        self._written(200, None)
        self._begin()
        for sent, frame in enumerate(frames):
            if self._hang and 0 < self._hang.after == sent and self._silence(self._hang):
                return
            if frame.end:
                self._written(200, self._reply.usage)
            self._send(frame)
            if frame.delta:
                time.sleep(self._playing.scenario.chunk_delay)

    def _written(self, status: int, usage: Usage | None) -> None:
        self._handler.stage.ledger.answered(self._number, status, usage)

    def _begin(self) -> None:
        self._handler.send_response(200)
        for name, value in (("content-type", "text/event-stream"), ("connection", "close")):
            self._handler.send_header(name, value)
        self._handler.end_headers()
        self._handler.close_connection = True

    def _send(self, frame: Frame) -> None:
        data = frame.data if isinstance(frame.data, str) else json.dumps(frame.data)
        event = f"event: {frame.event}\n" if frame.event else ""
        self._handler.wfile.write(f"{event}data: {data}\n\n".encode())
        self._handler.wfile.flush()

    def _silence(self, hang: Hang) -> bool:
        """Wait; whether the connection is then dropped."""
        self._playing.over.wait(hang.seconds)
        self._handler.close_connection = self._handler.close_connection or hang.drop
        return hang.drop


def _dialect(path: str) -> Dialect | None:
    if path.endswith("/messages"):
        return Anthropic()
    if path.endswith("/chat/completions"):
        return Chat()
    if path.endswith("/responses"):
        return Responses()
    return Gemini() if "enerateContent" in path else None


def _model(path: str) -> str:
    return path.rpartition("/models/")[2].partition(":")[0]

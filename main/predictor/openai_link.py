"""Requests to an OpenAI-compatible server: so many at once, sent again where that may help.

The client is the package openai's; what is tried again, for how long, and what an error means is
decided here, so that a key stands in no message and a `Retry-After` is kept however long it is.
"""

import asyncio
import itertools
import logging
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Sequence
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

from main.errors import EngineDiedError, GenerationError, MainError, MissingExtraError
from main.predictor.background import Background
from main.predictor.openai_errors import (
    BUSY,
    Limits,
    OutOfTime,
    Place,
    pause_before,
    reason_of,
    told,
)
from main.predictor.secret import Key

log = logging.getLogger(__name__)
T = TypeVar("T")

CONNECT_SECONDS = 30.0
END_SECONDS = 10.0
LOOPBACK = ("localhost", "127.0.0.1", "::1")


class Request(NamedTuple):
    """path: below the server's address, or an address. body: what becomes JSON."""

    path: str
    body: dict[str, Any]


class Link:
    """The way to one server; may be used from several threads at once.

    Raises (all methods):
        ConfigError: a key that is missing or wrong (401, 403).
        ModelError: no such model, or no such path (404).
        GenerationError: a request that the server refuses, or fails at; EngineDiedError: it cannot
            be reached, or turns everything away.
    """

    def __init__(self, base_url: str, key: Key, limits: Limits):
        self.base_url, self.limits = base_url, limits
        self.place = Place(base_url, key, limits)
        self._client = _client(base_url, key)
        self._options: Any = {} if key else _without_key()
        self._places = asyncio.Semaphore(limits.max_concurrency)
        self._background = Background("openai")
        self._close = weakref.finalize(self, _shutdown, self._client, self._background)

    def close(self) -> None:
        """End what is on its way, and the connections; calling it twice is fine."""
        self._close()

    def get(self, path: str, patient: bool = True) -> Any:
        """What GET returns, as JSON has it.

        Args:
            patient: try again whatever may pass, and not only while the server is busy.
        """
        return self._wait(self._attempts(path, lambda: self._get(path), patient))

    def run(self, requests: Sequence[Request]) -> list[dict[str, Any]]:
        """The answers, in order; the first request that fails ends the others."""
        found: dict[int, dict[str, Any]] = {}
        self._wait(self._all(requests, self._whole, lambda item: found.update([item])))
        return [found[i] for i in range(len(requests))]

    def stream(
        self, requests: Sequence[Request]
    ) -> Generator[list[tuple[int, dict[str, Any]]], None, None]:
        """Yield what came since the last item: (index of the request, chunk of its answer).

        Closing the generator closes the connections, and returns when that is done.
        """
        self._check_open()
        return self._background.stream(lambda put: self._all(requests, self._pieces, put))

    def _wait(self, coroutine: Any) -> Any:
        if not self._close.alive:
            coroutine.close()
        self._check_open()
        return self._background.wait(coroutine)

    def _check_open(self) -> None:
        if not self._close.alive:
            raise EngineDiedError("this openai.Predictor is closed: make a new one.")

    async def _all(
        self,
        requests: Sequence[Request],
        answer: Callable[[Request], AsyncIterator[dict[str, Any]]],
        put: Callable[[tuple[int, dict[str, Any]]], None],
    ) -> None:
        async def one(index: int, request: Request) -> None:
            async with self._places:
                async for piece in answer(request):
                    put((index, piece))

        try:
            async with asyncio.TaskGroup() as group:
                for index, request in enumerate(requests):
                    group.create_task(one(index, request))
        except ExceptionGroup as failed:
            raise _first(failed) from None

    async def _whole(self, request: Request) -> AsyncIterator[dict[str, Any]]:
        yield await self._attempts(request.path, lambda: self._post(request))

    async def _pieces(self, request: Request) -> AsyncIterator[dict[str, Any]]:
        """The chunks of a stream. Until the first of them has come, it may be begun anew."""
        stream, first = await self._attempts(request.path, lambda: self._open(request))
        try:
            yield first
            while (piece := await self._next(stream, request.path)) is not None:
                yield piece
        finally:
            await stream.close()

    async def _get(self, path: str) -> Any:
        return await self._client.get(path, cast_to=object, options=self._options)

    async def _post(self, request: Request) -> dict[str, Any]:
        found = await self._client.post(
            request.path, body=request.body, cast_to=object, options=self._options
        )
        return self._checked(found, request.path)

    async def _open(self, request: Request) -> tuple[Any, dict[str, Any]]:
        import openai

        body = {**request.body, "stream": True}
        stream = await self._client.post(
            request.path,
            body=body,
            cast_to=object,
            options=self._options,
            stream=True,
            stream_cls=openai.AsyncStream[object],
        )
        try:
            return stream, self._checked(await anext(stream, None), request.path)
        except BaseException:
            await stream.close()
            raise

    async def _next(self, stream: Any, path: str) -> dict[str, Any] | None:
        import openai

        try:
            async with asyncio.timeout(self.limits.timeout):
                found = await anext(stream, None)
        except TimeoutError:
            raise told(OutOfTime(), path, 1, self.place) from None
        except openai.OpenAIError as error:
            raise told(error, path, 1, self.place) from None
        return None if found is None else self._checked(found, path)

    def _checked(self, found: Any, path: str) -> dict[str, Any]:
        if isinstance(found, dict):
            return found
        shown = self.place.key.hidden_in(str(found))[:200]
        raise GenerationError(
            f"{self.base_url} answers {path} with something that is not of OpenAI's protocol: "
            f"{shown!r}. base_url is the address that ends in /v1."
        )

    async def _attempts(
        self, path: str, attempt: Callable[[], Awaitable[T]], patient: bool = True
    ) -> T:
        """What `attempt` returns; it is made again where that may help, after a pause."""
        import openai

        for number in itertools.count():
            problem: Exception
            try:
                async with asyncio.timeout(self.limits.timeout):
                    return await attempt()
            except TimeoutError:
                problem = OutOfTime()
            except (openai.OpenAIError, ValueError) as error:
                if isinstance(error, MainError):
                    raise
                problem = error
            pause = pause_before(problem, number, self.limits)
            if not patient and getattr(problem, "status_code", None) not in BUSY:
                pause = None
            if pause is None or number >= self.limits.max_retries:
                raise told(problem, path, number + 1, self.place) from None
            log.info("%s: %s; again in %.1f s.", self.base_url, reason_of(problem), pause)
            await asyncio.sleep(pause)
        raise AssertionError("count() has no end")


def is_local(base_url: str) -> bool:
    """Whether an address is this machine's own."""
    return urlsplit(base_url).hostname in LOOPBACK


def _client(base_url: str, key: Key) -> Any:
    try:
        import openai
    except ImportError as error:
        raise MissingExtraError("openai", "openai", "main.predictor.openai") from error
    return openai.AsyncOpenAI(
        base_url=base_url,
        api_key=key.reveal() or "none",
        max_retries=0,
        timeout=openai.Timeout(None, connect=CONNECT_SECONDS),
        # a proxy of the environment is not the way to a server on this machine
        http_client=openai.DefaultAsyncHttpxClient(trust_env=not is_local(base_url)),
    )


def _without_key() -> dict[str, Any]:
    """What requests without a key need: a header that is left out on purpose."""
    import openai

    return {"headers": {"Authorization": openai.Omit()}}


def _shutdown(client: Any, background: Background) -> None:
    if not background.is_here:  # where the last reference was that of a request
        background.cancel_all(END_SECONDS)
        background.wait(client.close())
    background.stop(END_SECONDS)


def _first(failed: BaseException) -> BaseException:
    while isinstance(failed, BaseExceptionGroup):
        failed = failed.exceptions[0]
    return failed

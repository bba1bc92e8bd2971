"""Waits for functions of the user, rewards and tools, as long as they may take.

What is awaited runs on one event loop, which stands as long as the process: a client, a lock or a
semaphore that a user made once belongs to the loop that first used it, and on a new loop for every
batch it fails at the second one ("Event loop is closed"). The loop runs in a thread of its own, as
a notebook's own loop is already running. What has a time limit and is not awaited runs in another
thread, one for all batches; nothing can end it there, so that it may go on behind the run's back.
"""

import asyncio
import contextvars
import inspect
import math
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future
from functools import cache
from queue import SimpleQueue
from typing import Any, NamedTuple

import torch

AT_ONCE = 64  # calls that run side by side
GRACE = 1.0  # seconds beyond the limit for a function to notice that it is cancelled


class OutOfTime(Exception):
    """A function took longer than it may."""


class _Worker:
    """A thread that does one thing after the other, and does not keep the process alive."""

    def __init__(self) -> None:
        self.queue: SimpleQueue[tuple[Callable[[], Any], Future]] = SimpleQueue()
        threading.Thread(target=self._run, name="reward function", daemon=True).start()

    def _run(self) -> None:
        while True:
            _fulfil(*self.queue.get())

    def submit(self, work: Callable[[], Any]) -> Future:
        future: Future = Future()
        self.queue.put((work, future))
        return future


_worker = cache(_Worker)


def _fulfil(work: Callable[[], Any], future: Future) -> None:
    try:
        future.set_result(work())
    except BaseException as error:
        future.set_exception(error)


def within(work: Callable[[], Any], seconds: float | None) -> Any:
    """What `work` returns; without a limit in this thread, else in the one for that.

    Raises:
        OutOfTime: it is not done after so many seconds.
    """
    if seconds is None:
        return work()
    context = contextvars.copy_context()
    future = _worker().submit(lambda: context.run(_on_device(work)))
    try:
        return future.result(seconds)
    except TimeoutError:
        if future.done():
            raise  # its own
        _worker.cache_clear()  # this one is busy, for ever perhaps
        raise OutOfTime from None


def _on_device(work: Callable[[], Any]) -> Callable[[], Any]:
    """With the GPU that is current here: every thread has a current one of its own."""
    if not (torch.cuda.is_available() and torch.cuda.is_initialized()):
        return work
    device = torch.cuda.current_device()

    def there() -> Any:
        torch.cuda.set_device(device)
        return work()

    return there


@cache
def _event_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="rewards", daemon=True).start()
    return loop


def await_all(waiting: Sequence[Awaitable[Any]], seconds: float | None = None) -> list[Any]:
    """Results or errors, in order; they run side by side.

    What is not done after so many seconds is cancelled, and its result an `OutOfTime`.
    """
    if not waiting:
        return []

    async def together() -> list[Any]:
        tasks = [asyncio.ensure_future(each) for each in waiting]
        try:
            _, late = await asyncio.wait(tasks, timeout=seconds)
        except asyncio.CancelledError:
            for task in tasks:
                task.cancel()
            raise
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late, timeout=GRACE)
        done = [task for task in tasks if task not in late]
        results = iter(await asyncio.gather(*done, return_exceptions=True))
        return [OutOfTime() if task in late else next(results) for task in tasks]

    running = asyncio.run_coroutine_threadsafe(together(), _event_loop())
    try:
        return running.result(None if seconds is None else seconds + 2 * GRACE)
    except TimeoutError:  # one of them blocks the loop itself
        running.cancel()
        return [OutOfTime() for _ in waiting]
    except BaseException:  # Ctrl-C: what still waits must not go on behind the run's back
        running.cancel()
        raise


class Settled(NamedTuple):
    """What a call came to: a value or an error, and the seconds that it took."""

    value: Any
    error: BaseException | None
    seconds: float


def settled(calls: Sequence[Callable[[], Any]], seconds: float | None = None) -> list[Settled]:
    """What each call comes to, in order; they run side by side, at most `AT_ONCE` of them.

    An `async def` function runs on the loop, any other in a thread of its own.

    Args:
        seconds: for each call; the error of one that is not done is an `OutOfTime`.
    """
    room = asyncio.Semaphore(AT_ONCE)
    limit = None if seconds is None else seconds * math.ceil(len(calls) / AT_ONCE) + GRACE
    found = await_all([_settle(call, room, seconds) for call in calls], limit)
    return [
        Settled(None, one, limit or 0.0) if isinstance(one, BaseException) else one for one in found
    ]


async def _settle(
    call: Callable[[], Any], room: asyncio.Semaphore, seconds: float | None
) -> Settled:
    async with room:
        start = time.monotonic()
        try:
            value, error = await _value(call, seconds), None
        except Exception as raised:
            value, error = None, raised
        return Settled(value, error, time.monotonic() - start)


async def _value(call: Callable[[], Any], seconds: float | None) -> Any:
    if inspect.iscoroutinefunction(call):
        return await _in_time(_awaited(call()), seconds)
    value = await _in_time(asyncio.wrap_future(_in_a_thread(call)), seconds)
    return await _in_time(_awaited(value), seconds) if inspect.isawaitable(value) else value


async def _awaited(work: Awaitable[Any]) -> Any:
    try:
        return await work
    except (SystemExit, KeyboardInterrupt) as error:  # they would end the loop itself
        raise RuntimeError(type(error).__name__) from error


async def _in_time(work: Awaitable[Any], seconds: float | None) -> Any:
    task = asyncio.ensure_future(work)
    done, _ = await asyncio.wait([task], timeout=seconds)
    if not done:
        task.cancel()
        raise OutOfTime
    return task.result()


def _in_a_thread(work: Callable[[], Any]) -> Future:
    """The result to come of `work`, in a thread of its own that does not keep the process alive."""
    future: Future = Future()
    future.set_running_or_notify_cancel()  # who waits may give up; the thread itself goes on
    context, work = contextvars.copy_context(), _on_device(work)

    def contained() -> Any:
        try:
            return context.run(work)
        except (SystemExit, KeyboardInterrupt) as error:
            raise RuntimeError(type(error).__name__) from error

    threading.Thread(target=_fulfil, args=(contained, future), name="tool", daemon=True).start()
    return future

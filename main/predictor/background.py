"""An event loop in a thread of its own, behind ordinary calls from any thread."""

import asyncio
import queue
import threading
from collections.abc import Callable, Coroutine, Generator
from typing import Any

END = object()


class Background:
    """Runs coroutines; may be used from several threads at once.

    Args:
        name: of the thread.
    """

    def __init__(self, name: str):
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def wait(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """What the coroutine returns; an interrupt here cancels it there."""
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def stream(
        self, work: Callable[[Callable[[Any], None]], Coroutine[Any, Any, None]]
    ) -> Generator[list[Any], None, None]:
        """Yield what came since the last item: what `work` gives to the function that it gets.

        Closing the generator cancels the work, and returns when that is done.
        """
        items: queue.SimpleQueue[Any] = queue.SimpleQueue()
        task = self.wait(self._spawn(work(items.put), items))
        try:
            while (item := items.get()) is not END:
                found, ended = _drain(item, items)
                yield found
                if ended:
                    break
        finally:
            if not task.done():
                self._loop.call_soon_threadsafe(task.cancel)
                while items.get() is not END:
                    pass
        task.result()

    def cancel_all(self, seconds: float) -> None:
        """Cancel what runs, and wait so long for it to end."""
        asyncio.run_coroutine_threadsafe(_cancel_all(), self._loop).result(timeout=seconds)

    def stop(self, seconds: float) -> None:
        """End the thread; nothing may run any more. From the thread itself it is not waited for."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        if not self.is_here:
            self._thread.join(timeout=seconds)
            self._loop.close()

    @property
    def is_here(self) -> bool:
        """Whether the caller is the thread itself, which cannot wait for what it runs."""
        return threading.current_thread() is self._thread

    async def _spawn(
        self, coroutine: Coroutine[Any, Any, None], items: "queue.SimpleQueue[Any]"
    ) -> "asyncio.Task[None]":
        task = asyncio.ensure_future(coroutine)
        # also when the task is cancelled before its first step
        task.add_done_callback(lambda _: items.put(END))
        return task


def _drain(first: Any, items: "queue.SimpleQueue[Any]") -> tuple[list[Any], bool]:
    """`first` and what else is there already; True when the last of it was the end."""
    found = [first]
    while True:
        try:
            item = items.get_nowait()
        except queue.Empty:
            return found, False
        if item is END:
            return found, True
        found.append(item)


async def _cancel_all() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)

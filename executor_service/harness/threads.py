"""A bounded pool of daemon threads for functions that block.

Not concurrent.futures: its threads are joined at exit, and a function that ignores its cancellation would keep the
executor from ever ending.
"""

import asyncio
import contextvars
import queue
import threading
from collections.abc import Callable
from typing import Any


class Threads:
    """Runs calls in threads; as many as there are slots, and some more for calls that were given up."""

    def __init__(self, threads_max: int) -> None:
        self._threads_max = threads_max
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._threads = 0
        self._busy = 0

    def submit(self, fn: Callable[[], Any]) -> asyncio.Future[Any] | None:
        """Runs the call in the caller's context; None when every thread is busy."""
        if self._busy >= self._threads_max:
            return None
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        context = contextvars.copy_context()
        self._busy += 1
        if self._busy > self._threads:
            self._threads += 1
            threading.Thread(target=self._work, name=f"function-{self._threads}", daemon=True).start()
        self._calls.put(lambda: self._call(loop, future, context, fn))
        return future

    def _work(self) -> None:
        while True:
            self._calls.get()()

    def _call(
        self,
        loop: asyncio.AbstractEventLoop,
        future: asyncio.Future[Any],
        context: contextvars.Context,
        fn: Callable[[], Any],
    ) -> None:
        result, error = None, None
        try:
            result = context.run(fn)
        except BaseException as raised:  # noqa: BLE001 - a SystemExit of the function is the function's failure
            error = raised
        try:
            loop.call_soon_threadsafe(self._done, future, result, error)
        except RuntimeError:  # the executor has stopped meanwhile
            return

    def _done(self, future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
        self._busy -= 1
        if future.done():
            return
        if error is None:
            future.set_result(result)
        elif isinstance(error, StopIteration):  # which a future refuses
            future.set_exception(RuntimeError(f"function raised StopIteration({error.value!r})"))
        else:
            future.set_exception(error)

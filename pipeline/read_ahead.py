"""Threads that work ahead of whoever consumes their results."""

import collections
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future


class ReadAhead:
    """Applies a function to items in threads, and gives the results in order.

    At most `depth` items are under way or waiting to be taken, which bounds the
    memory. The threads are daemons: one that hangs in a read must not keep the
    process from ending, as the standard library's executors would.
    """

    def __init__(self, function: Callable, *, threads: int, depth: int):
        """Starts the threads.

        Args:
          function: Called with one item; what it raises is raised to the consumer.
          threads: Number of them.
          depth: Items that may be under way at once; at least `threads`.
        """
        self._function = function
        self._depth = depth
        self._waiting: queue.SimpleQueue = queue.SimpleQueue()
        self._pending: collections.deque[Future] = collections.deque()
        self._threads = threads
        for _ in range(threads):
            threading.Thread(target=self._work, daemon=True, name="read-ahead").start()

    def put(self, item) -> Iterator:
        """Takes an item in, once the results that it gives have made room.

        Iterate over it to the end: that is what takes the item in.
        """
        while len(self._pending) >= self._depth:
            yield self._pending.popleft().result()
        future: Future = Future()
        self._waiting.put((future, item))
        self._pending.append(future)

    def drain(self) -> Iterator:
        """Gives the results of all items taken in so far."""
        while self._pending:
            yield self._pending.popleft().result()

    def close(self) -> None:
        """Ends the threads once they are idle."""
        for _ in range(self._threads):
            self._waiting.put(None)

    def _work(self) -> None:
        while (job := self._waiting.get()) is not None:
            future, item = job
            try:
                future.set_result(self._function(item))
            except BaseException as error:  # the consumer raises it
                future.set_exception(error)

"""Work ahead: what comes next is prepared in threads while the present is in use, a bounded number of pieces ahead."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

from csm.threads import available_threads

MOST_THREADS = 8
Item = TypeVar("Item")
Made = TypeVar("Made")


def spare_threads() -> int:
    """Threads for work ahead: those that this process may run beside the one that encodes."""
    return min(available_threads()[0] - 1, MOST_THREADS)


def ahead(items: Iterable[Item], make: Callable[[Item], Made], threads: int) -> Iterator[tuple[Item, Made]]:
    """Each item with what `make` made of it, in order; up to 2 a thread are made ahead. No threads: made when asked for.

    Raises what `make` raises, at the item.
    """
    if threads < 1:
        for item in items:
            yield item, make(item)
        return
    rest, waiting = iter(items), deque[tuple[Item, Future[Made]]]()
    with ThreadPoolExecutor(threads, "ahead") as pool:
        try:
            for item in islice(rest, 2 * threads):
                waiting.append((item, pool.submit(make, item)))
            while waiting:
                item, made = waiting.popleft()
                yield item, made.result()
                for following in islice(rest, 1):
                    waiting.append((following, pool.submit(make, following)))
        finally:
            for _, made in waiting:
                made.cancel()

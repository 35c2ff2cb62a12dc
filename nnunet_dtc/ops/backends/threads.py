"""Threads of our own for kernels that release the interpreter's lock.

As many as torch uses, the calling one among them. They are made at the first use and again in a process that was
forked, where the threads of its parent do not exist: nnU-Net forks its workers.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

PARTS_A_THREAD = 4  # so that a thread that was late leaves its parts to the others
WORTH_A_PART = 1 << 15  # elements of the result; below, another thread costs more than it helps

_pool: ThreadPoolExecutor | None = None
_size = 0


def _forget() -> None:
    global _pool, _size
    _pool, _size = None, 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def in_threads(kernel: Callable[..., Any], count: int, elements: int, *arguments: Any) -> None:
    """Call ``kernel(first, last, *arguments)`` for ranges that make up 0 to ``count``, and wait for all.

    ``elements`` is the size of the work, in elements of the result.
    """
    threads = torch.get_num_threads()
    parts = min(count, threads * PARTS_A_THREAD, elements // WORTH_A_PART)
    if threads == 1 or parts <= 1:
        kernel(0, count, *arguments)
        return
    ranges = iter([(count * part // parts, count * (part + 1) // parts) for part in range(parts)])

    def work() -> None:
        for first, last in ranges:  # one iterator for all of them: next() of a list's iterator is atomic
            kernel(first, last, *arguments)

    waiting = [_threads(threads - 1).submit(work) for _ in range(min(threads, parts) - 1)]
    work()
    for other in waiting:
        if not other.cancel():  # a thread that has not begun by now has nothing left to do
            other.result()


def _threads(size: int) -> ThreadPoolExecutor:
    """The pool, grown where torch was given more threads since."""
    global _pool, _size
    if _pool is None or _size < size:
        _pool, _size = ThreadPoolExecutor(size, thread_name_prefix="nnunet_dtc"), size
    return _pool

"""Processes that score cases in parallel, started fresh (`spawn`). They end with the process that started them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any

from nnunet_dtc.evaluation.images import EvaluationError
from nnunet_dtc.processes import end_with_parent

__all__ = ["Progress", "Workers"]

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many of it are done, and how many there are."""


class Workers:
    """A pool of processes as a context manager. When the block ends by an exception, they are killed at once, in the
    middle of their work; they write nothing.

    Args:
        count: of processes; 1 means that the work is done in this process.
    """

    def __init__(self, count: int) -> None:
        self.pool = ProcessPoolExecutor(count, get_context("spawn"), initializer=end_with_parent) if count > 1 else None

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, error: type[BaseException] | None, *more: object) -> None:
        if self.pool is None:
            return
        if error is not None:
            # ProcessPoolExecutor.kill_workers is new in Python 3.14
            processes = list((getattr(self.pool, "_processes", None) or {}).values())
            self.pool.shutdown(wait=False, cancel_futures=True)
            for process in processes:
                process.kill()
        self.pool.shutdown(cancel_futures=True)

    def map(
        self, what: str, function: Callable[[Any], Any], items: Sequence[Any], progress: Progress | None
    ) -> list[Any]:
        """The results in the order of the items."""
        report = progress or (lambda what, done, total: None)
        report(what, 0, len(items))
        results: dict[int, Any] = {}
        for index, result in self._results(function, items):
            results[index] = result
            report(what, len(results), len(items))
        return [results[index] for index in range(len(items))]

    def _results(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[tuple[int, Any]]:
        if self.pool is None:
            for index, item in enumerate(items):
                yield index, function(item)
            return
        try:
            futures = {self.pool.submit(function, item): index for index, item in enumerate(items)}
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool as error:
            raise EvaluationError(
                "a process was killed, most likely for want of memory: try fewer (-np 1). In a script, call this under "
                'if __name__ == "__main__":'
            ) from error

"""Processes that score cases in parallel, started fresh (`spawn`). They end with the process that started them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.context import SpawnContext
from multiprocessing.process import BaseProcess
from typing import Any

from nnunet_dtc.study.evaluation.images import EvaluationError
from nnunet_dtc.study.processes import end_with_parent

__all__ = ["Progress", "Workers"]

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many of it are done, and how many there are."""


class _RecordingContext(SpawnContext):
    """Knows the processes that were made through it, also those that the pool was interrupted in starting."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[BaseProcess] = []

    def Process(self, *arguments: Any, **options: Any) -> BaseProcess:
        process = SpawnContext.Process(*arguments, **options)
        self.made.append(process)
        return process

    def kill_all(self) -> None:
        for process in self.made:
            if process.pid is not None:
                process.kill()


class Workers:
    """A pool of processes as a context manager. When the block ends by an exception, they are killed at once, in the
    middle of their work; they write nothing.

    Args:
        count: of processes; 1 means that the work is done in this process.
    """

    def __init__(self, count: int) -> None:
        self.context = _RecordingContext()
        self.pool = ProcessPoolExecutor(count, self.context, initializer=end_with_parent) if count > 1 else None

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, error: type[BaseException] | None, *more: object) -> None:
        if self.pool is None:
            return
        if error is not None:
            self.context.kill_all()
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

"""Processes that work in parallel, started by `spawn`. They end with the process that started them."""

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
"""Called with the step, the number of its items that are done, and the number of all."""


class _RecordingContext(SpawnContext):
    """Keeps the processes that were made with it, including those that the pool was interrupted in starting."""

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
    """A pool of processes as a context manager.

    If the block raises an exception, the processes are killed in the middle of their work; they write nothing.

    Args:
        count: the number of processes; with 1, the work is done in this process.
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
        """Call a function with each item.

        Args:
            what: the name of the step for `progress`.
            function: is sent to the processes, as are the items.
            items: the arguments of the calls.
            progress: is called at the start and after each item.

        Returns:
            The results in the order of the items.

        Raises:
            EvaluationError: a process was killed.
        """
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
                "a process was killed, most likely because memory ran out: use fewer processes. In a script, call this "
                'under if __name__ == "__main__":'
            ) from error

"""Who grades: this process, processes beside it, or the workers of a dask cluster.

Whoever does, one process records: the one that asked.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from autograder.engine import Engine, EngineError, Outcome, Task

TRIES = 2  # of a submission, when it is the grader that fails
NAME = "attention-to-detail"

Record = Callable[[Task, Outcome], dict]


@dataclass
class Done:
    """A submission that has been graded and recorded.

    Args:
        marks: what the gradebook holds of it; empty after a fault.
        page: its feedback, as HTML.
    """

    task: Task
    outcome: Outcome
    marks: dict[str, Any]
    page: str = ""


def here(engine: Engine, tasks: Iterable[Task], record: Record) -> Iterator[Done]:
    """Grade in this process, one after the other.

    Args:
        engine: entered.
        tasks: what to grade.
        record: keeps an outcome, and returns the marks.
    """
    for task in tasks:
        for _ in range(TRIES):
            outcome = engine.grade(task)
            if not outcome.fault:
                break
        if outcome.fault:
            yield Done(task, outcome, {})
        else:
            marks = record(task, outcome)
            yield Done(task, outcome, marks, engine.feedback(outcome.notebook, marks))


class Pool:
    """Grades with one or many processes, here or elsewhere. Use it as a context manager.

    Processes on this machine take seconds to start; this one grades until they are there.

    Args:
        engine: what each of them is to be; not entered.
        workers: processes on this machine.
        scheduler: address of a dask scheduler, whose workers are used instead.

    Raises:
        EngineError: the cluster cannot be reached, or a worker of it has no sandbox.
    """

    def __init__(self, engine: Engine, workers: int = 1, scheduler: str = ""):
        self.engine, self.workers, self.scheduler = engine, workers, scheduler
        self._stack = contextlib.ExitStack()
        self._client: Future | None = None

    def __enter__(self) -> Pool:
        with contextlib.ExitStack() as stack:
            if not self.scheduler:
                stack.enter_context(self.engine)
            if self.workers > 1 or self.scheduler:
                cluster = stack.enter_context(contextlib.ExitStack())
                starter = stack.enter_context(ThreadPoolExecutor(1))
                self._client = starter.submit(self._equipped, cluster)
            if self.scheduler:
                self._client.result()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _equipped(self, cluster: contextlib.ExitStack) -> Any:
        client = cluster.enter_context(_client(self.workers, self.scheduler))
        _equip(client, self.engine)
        return client

    def run(self, tasks: Iterator[Task], record: Record) -> Iterator[Done]:
        """Grade, record here, and make the feedback; in the order in which they are done."""
        while self._client is None or not self._client.done():
            task = next(tasks, None)
            if task is None:
                return
            yield from here(self.engine, [task], record)
        yield from _spread(self._client.result(), tasks, record)


# ---------------------------------------------------------------------------------- dask


@contextlib.contextmanager
def _client(workers: int, scheduler: str) -> Iterator[Any]:
    import dask
    from distributed import Client, LocalCluster

    dask.config.set({"distributed.comm.timeouts.connect": "10s"})
    if scheduler:
        try:
            client = Client(scheduler, timeout=10, set_as_default=False)
        except (OSError, ValueError, TypeError) as error:
            reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
            raise EngineError(f"no dask scheduler at {scheduler} ({reason})") from None
        with contextlib.closing(client):
            yield client
        return
    # Whoever may connect to a scheduler may run code as us; hence certificates, made for the run.
    with (
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            dashboard_address=None,
            memory_limit=0,
            security=True,
            silence_logs=logging.CRITICAL,
            preload=["autograder.engine"],
        ) as cluster,
        contextlib.closing(Client(cluster, set_as_default=False)) as client,
    ):
        yield client


def _equip(client: Any, engine: Engine) -> None:
    """Have an engine on every worker, now and later."""
    from distributed import WorkerPlugin

    class Grader(WorkerPlugin):
        """Holds a worker's engine."""

        name = NAME

        def __init__(self, sandbox: bool, hidden: tuple, limits: Any):
            self.settings = (sandbox, hidden, limits)

        def setup(self, worker: Any) -> None:
            self.engine = Engine(*self.settings).__enter__()

        def teardown(self, worker: Any) -> None:
            self.engine.__exit__()

    try:
        client.register_plugin(Grader(engine.sandbox, engine.hidden, engine.limits))
    except EngineError as error:
        raise EngineError(f"a worker cannot grade: {error}") from None
    except ModuleNotFoundError as error:
        raise EngineError(
            f"a worker has no {error.name}: the course has to be installed there, too"
        ) from None


def _engine() -> Engine:
    from distributed import get_worker

    return get_worker().plugins[NAME].engine


def _grade(task: Task) -> Outcome:
    return _engine().grade(task)


def _feedback(outcome: Outcome, marks: dict) -> str:
    return _engine().feedback(outcome.notebook, marks)


def _spread(client: Any, tasks: Iterator[Task], record: Record) -> Iterator[Done]:
    from distributed import as_completed

    tasks = iter(tasks)
    waiting = as_completed(loop=client.loop)
    tries: dict[str, tuple[Task, int]] = {}  # of runs, by the key of their future
    recorded: dict[str, Done] = {}  # by the key of the feedback's future

    def start(task: Task, count: int = 1) -> None:
        future = client.submit(_grade, task, pure=False)
        tries[future.key] = task, count
        waiting.add(future)

    # A few more than there are workers, so that none waits; not all, for each holds a file.
    for task in itertools.islice(tasks, 2 * max(1, len(client.scheduler_info()["workers"])) + 2):
        start(task)
    for future in waiting:
        if (done := recorded.pop(future.key, None)) is not None:
            try:
                done.page = future.result()
            except Exception as error:
                done.outcome.fault = f"no feedback: {_words(error)}"
            yield done
            continue
        task, count = tries.pop(future.key)
        try:
            outcome = future.result()
        except Exception as error:  # of dask: a worker that was killed, a connection that broke
            outcome = Outcome(None, [*task.odd], _words(error))
        if outcome.fault and count < TRIES:
            start(task, count + 1)
            continue
        for following in itertools.islice(tasks, 1):
            start(following)
        if outcome.fault:
            yield Done(task, outcome, {})
            continue
        marks = record(task, outcome)
        page = client.submit(_feedback, future, marks, pure=False, priority=1)
        recorded[page.key] = Done(task, outcome, marks)
        waiting.add(page)


def _words(error: Exception) -> str:
    first = str(error).strip().splitlines()
    return f"{type(error).__name__}: {first[0][:200] if first else 'no reason given'}"

"""How the runs of a sweep are spread: one after another, in threads, or on a dask scheduler.

A run is a process of its own, so threads of this process are enough to look after several. Workers
elsewhere are those of a scheduler that runs already (extra `cluster`); SLURM and its like start
them through dask-jobqueue, see notebooks/sweeps/README.md.
"""

import asyncio
import contextlib
import logging
import os
import queue
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from .plan import Job
from .sweep import Outcome, Spread, fail

ANSWER_S = 5  # seconds that a scheduler may take to answer
Outcomes = Iterator[tuple[Job, Outcome]]
Act = Callable[..., Outcome]  # `sweep.carry_out` with all but the job given


def in_turn(jobs: Iterable[Job], act: Act) -> Outcomes:
    """One after another."""
    return ((job, act(job)) for job in jobs)


def in_threads(environments: Sequence[dict[str, str]]) -> Spread:
    """As many at a time as there are environments; each of them serves one run at a time."""

    def spread(jobs: Iterable[Job], act: Act) -> Outcomes:
        free: queue.SimpleQueue[dict[str, str]] = queue.SimpleQueue()
        for environment in environments:
            free.put(environment)
        stopped = threading.Event()

        def on_cell(job: Job, done: int) -> None:
            if stopped.is_set():
                raise KeyboardInterrupt

        def one(job: Job) -> tuple[Job, Outcome]:
            environment = free.get()
            try:
                return job, act(job, environment=environment, on_cell=on_cell)
            finally:
                free.put(environment)

        with ThreadPoolExecutor(len(environments)) as pool:
            futures = [pool.submit(one, job) for job in jobs]
            try:
                for future in as_completed(futures):
                    yield future.result()
            finally:  # on Ctrl-C the runs in other threads end as well
                stopped.set()
                pool.shutdown(wait=False, cancel_futures=True)

    return spread


def environments(jobs: int) -> list[dict[str, str]]:
    """What each of some runs at a time finds in its environment: a GPU, a share of the cores.

    GPUs are shared where there are more runs. CUDA_VISIBLE_DEVICES, where it is set, names those to
    share. OMP_NUM_THREADS, which MKL and OpenBLAS follow too, stays as it is where it is set.
    """
    import torch

    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // jobs))
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = named.split(",") if named else list(map(str, range(torch.cuda.device_count())))
    shared = {"OMP_NUM_THREADS": threads}
    if not gpus:
        return [shared] * jobs
    return [shared | {"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]} for i in range(jobs)]


@contextlib.contextmanager
def connect(address: str, folder: Path) -> Iterator[Spread]:
    """The workers of a dask scheduler; OSError where none answers."""
    distributed = _distributed()

    async def greet() -> None:  # a client would wait for ever on a port that says nothing
        comm = await asyncio.wait_for(distributed.comm.connect(address), ANSWER_S)
        await comm.close()

    try:
        asyncio.run(greet())
        client = distributed.Client(address, timeout=ANSWER_S)
    except (OSError, ValueError, TypeError) as error:
        raise OSError(
            f"no dask scheduler answers at {address!r} ({error or 'it says nothing'}); start one "
            "with `dask scheduler`, or leave --scheduler out to run here"
        ) from error
    with client:
        yield on_workers(client, folder)


def on_workers(client: Any, folder: Path) -> Spread:
    """On the workers of a dask client.

    A worker that dies takes its notebook with it, and its run goes to another worker. After dask's
    `distributed.scheduler.allowed-failures` such deaths the run is recorded as failed.
    """
    distributed = _distributed()

    def spread(jobs: Iterable[Job], act: Act) -> Outcomes:
        futures = {
            client.submit(act, job, key=f"{job.folder}-{uuid.uuid4().hex}", pure=False): job
            for job in jobs
        }
        try:
            for future in distributed.as_completed(futures):
                try:
                    outcome = future.result()
                except distributed.KilledWorker as error:
                    died = f"all {error.allowed_failures + 1} workers died that ran this notebook"
                    outcome = fail(futures[future], folder, died)
                except distributed.CancelledError as error:
                    raise OSError(
                        "the scheduler is gone; what is finished is kept: start the sweep again"
                    ) from error
                yield futures[future], outcome
        finally:
            with contextlib.suppress(Exception):  # a scheduler that is gone needs no cancelling
                client.cancel(list(futures))

    return spread


def _distributed() -> Any:
    try:
        import distributed
    except ImportError as error:
        raise ValueError("--scheduler needs dask: pip install -e '.[cluster]'") from error
    for name in list(logging.root.manager.loggerDict):
        if name.split(".")[0] in ("distributed", "tornado"):  # what matters is raised as well
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    return distributed

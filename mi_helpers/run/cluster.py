"""Runs of a sweep on the workers of dask.distributed (extra `cluster`).

A local cluster has one process for each job, with one GPU each where there are GPUs and an equal
part of the cores where there are none. Any other scheduler is named by its address; SLURM and its
like start workers through dask-jobqueue, see notebooks/sweeps/README.md.

A worker that dies takes its notebook with it, and its run goes to another worker. After dask's
`distributed.scheduler.allowed-failures` such deaths the run is recorded as failed.
"""

import asyncio
import contextlib
import logging
import os
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from .plan import Job
from .sweep import Outcome, Spread, fail

ANSWER_S = 5  # seconds that a scheduler may take to answer


@contextlib.contextmanager
def local(jobs: int, folder: Path) -> Iterator[Spread]:
    """A cluster of `jobs` workers on this machine, as a `spread` for `Sweep.work`.

    Worker i gets GPU i; GPUs are shared where there are more workers.
    """
    distributed = _distributed()
    own = {"host": "127.0.0.1", "nthreads": 1, "memory_limit": 0, "silence_logs": "CRITICAL"}
    workers = {
        index: {"cls": distributed.Nanny, "options": own | {"env": env}}
        for index, env in enumerate(environments(jobs))
    }
    options = {"host": "127.0.0.1", "port": 0, "dashboard": False, "dashboard_address": None}
    scheduler = {"cls": distributed.Scheduler, "options": options}
    with (
        distributed.SpecCluster(workers, scheduler, silence_logs="CRITICAL") as cluster,
        distributed.Client(cluster) as client,
    ):
        yield spread(client, folder)


def environments(jobs: int) -> list[dict[str, str]]:
    """What each local worker's notebooks find in their environment: a GPU, a share of the cores.

    CUDA_VISIBLE_DEVICES, where it is set, names the GPUs to share. OMP_NUM_THREADS, which MKL and
    OpenBLAS follow too, stays as it is where it is set.
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
    """The workers of a scheduler that runs already; OSError where none answers."""
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
        yield spread(client, folder)


def spread(client: Any, folder: Path) -> Spread:
    """Calls a function on jobs through a client, and yields the outcomes as they come."""
    distributed = _distributed()

    def on_workers(
        jobs: Iterable[Job], act: Callable[[Job], Outcome]
    ) -> Iterator[tuple[Job, Outcome]]:
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

    return on_workers


def _distributed() -> Any:
    try:
        import distributed
    except ImportError as error:
        raise ValueError("--jobs and --scheduler need dask: pip install -e '.[cluster]'") from error
    for name in list(logging.root.manager.loggerDict):
        if name.split(".")[0] in ("distributed", "tornado"):  # what matters is raised as well
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    return distributed

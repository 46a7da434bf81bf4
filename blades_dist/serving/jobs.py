"""Work that is asked for now and fetched later: a bounded number of jobs, in memory, each gone after a time. No Ray."""

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from blades_dist.serving.bodies import Upload
from blades_dist.serving.config import ServiceConfig
from blades_dist.serving.problems import Refused
from blades_dist.serving.schema import BatchItem, Job, JobStatus
from blades_dist.serving.webhook import Webhooks, deliver
from blades_dist.serving.work import Judge, Options, judge_many

RUNNING = 2  # jobs worked on at once; they share the service with those who wait for an answer
_log = logging.getLogger(__name__)


@dataclass
class _Entry:
    submitted: float
    size: int
    status: JobStatus = "queued"
    finished: float | None = None
    results: list[BatchItem] | None = None
    task: "asyncio.Task[None] | None" = field(default=None, repr=False)


class JobStore:
    """Jobs of one process. They end with it: whoever asks then gets 404, and sends them again."""

    def __init__(
        self, backend: Judge, config: ServiceConfig, webhooks: Webhooks, clock: Callable[[], float] = time.time
    ) -> None:
        self._backend, self._config, self._webhooks, self._clock = backend, config, webhooks, clock
        self._jobs: dict[str, _Entry] = {}
        self._room = asyncio.Semaphore(RUNNING)

    def submit(self, uploads: Sequence[Upload], options: Options, webhook: str | None) -> Job:
        """A new job, which begins by itself.

        Raises:
            Refused: 429 when there are too many, 413 when its images and those that wait are too large, 403 for a
                webhook that is not allowed.
        """
        if webhook is not None:
            self._webhooks.check(webhook)
        self._forget()
        if len(self._jobs) >= self._config.max_jobs:
            raise Refused(429, "too_many_jobs", f"{len(self._jobs)} jobs are kept; fetch and delete some, or wait")
        size = sum(len(upload.data) for upload in uploads)
        waiting = sum(entry.size for entry in self._jobs.values())
        if size + waiting > self._config.max_job_bytes:
            raise Refused(429, "too_many_jobs", f"{waiting} bytes of images wait already; try again later")
        name = uuid.uuid4().hex
        entry = self._jobs[name] = _Entry(self._clock(), size)
        named = replace(options, request_id=f"{options.request_id}/job")
        entry.task = asyncio.create_task(self._run(name, entry, list(uploads), named, webhook))
        return self._shown(name, entry)

    def get(self, name: str) -> Job:
        """A job as it stands.

        Raises:
            Refused: 404, there is none of that name.
        """
        self._forget()
        return self._shown(name, self._entry(name))

    def drop(self, name: str) -> None:
        """Ends and forgets a job.

        Raises:
            Refused: 404, there is none of that name.
        """
        entry = self._entry(name)
        if entry.task is not None:
            entry.task.cancel()
        del self._jobs[name]

    async def close(self) -> None:
        """Ends all that runs."""
        tasks = [entry.task for entry in self._jobs.values() if entry.task is not None]
        for task in tasks:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(
        self, name: str, entry: _Entry, uploads: list[Upload], options: Options, webhook: str | None
    ) -> None:
        try:
            async with self._room:
                entry.status = "running"
                deadline, patience = self._config.deadline_seconds, self._config.job_seconds
                entry.results = await judge_many(self._backend, uploads, options, deadline, patience)
            entry.status = "done"
        except Exception as error:
            _log.error("request %s: the job failed", options.request_id, exc_info=error)
            entry.status = "failed"
        finally:
            entry.size = 0
            uploads.clear()
            entry.finished = self._clock()
        if webhook is not None:
            body = self._shown(name, entry).model_dump_json().encode()
            await asyncio.to_thread(deliver, self._webhooks, webhook, body)

    def _forget(self) -> None:
        end = self._clock() - self._config.job_seconds
        for name in [name for name, entry in self._jobs.items() if entry.finished is not None]:
            if (self._jobs[name].finished or 0.0) < end:
                del self._jobs[name]

    def _entry(self, name: str) -> _Entry:
        if name not in self._jobs:
            raise Refused(404, "no_job", "there is no such job; it may have been deleted, or kept for its time")
        return self._jobs[name]

    @staticmethod
    def _shown(name: str, entry: _Entry) -> Job:
        return Job(
            id=name,
            status=entry.status,
            submitted=entry.submitted,
            finished=entry.finished,
            results=entry.results,
        )

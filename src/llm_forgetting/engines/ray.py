"""The engine of a Ray cluster."""

from typing import Any

from llm_forgetting.engines.engine import Job, JobResult
from llm_forgetting.errors import UserError


class RayEngine:
    """Engine of a Ray cluster: an existing one (`address`), or one that is started here; a GPU for each task where it has any.

    Folders must be seen by all nodes.
    """

    def __init__(self, workers: int, threads: int, address: str | None = None) -> None:
        try:
            import ray
        except ImportError as error:
            raise UserError(
                "--engine ray needs Ray: pip install 'llm-forgetting[ray]', or use --engine local"
            ) from error
        self._ray: Any = ray
        self.slots = workers
        self._started = not ray.is_initialized()
        if self._started:
            own = {} if address else {"num_cpus": workers * threads, "include_dashboard": False}
            try:
                ray.init(address=address, log_to_driver=False, configure_logging=False, **own)
            except (ConnectionError, ValueError) as error:
                raise UserError(
                    f"--address must be that of a running Ray cluster, {address} is not: {error}"
                ) from error
        # A task that asks for no GPU sees none.
        self.gpus = 1 if ray.cluster_resources().get("GPU") else 0
        # The scheduler retries jobs, and counts how often their workers died.
        self._run = ray.remote(num_cpus=threads, num_gpus=self.gpus, max_retries=0)(_call)
        self._busy: dict[Any, Job] = {}

    def submit(self, job: Job) -> None:
        """See `Engine`."""
        self._busy[self._run.remote(job)] = job

    def finished(self, seconds: float) -> list[JobResult]:
        """See `Engine`."""
        done, _ = self._ray.wait(list(self._busy), num_returns=1, timeout=seconds)
        results = []
        for reference in done:
            job = self._busy.pop(reference)
            try:
                results.append(JobResult(job, self._ray.get(reference)))
            except self._ray.exceptions.RayError:
                results.append(JobResult(job, died=True))
        return results

    def close(self) -> None:
        """See `Engine`."""
        for reference in self._busy:
            self._ray.cancel(reference, force=True)
        self._busy = {}
        if self._started:
            self._ray.shutdown()


def _call(job: Job) -> str:
    return job()

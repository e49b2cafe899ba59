"""Launchers that lose nothing: every job of a sweep is waited for, though others fail.

submitit starts the jobs and puts them back into the queue; how each ended is a file of its own (`Outcome`). A failed
job is one sentence here and the exit code of the command, and fails as a job too.
"""

import os
import signal
import sys
import time
from abc import abstractmethod
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from types import FrameType
from typing import Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, filter_overrides
from hydra_plugins.hydra_submitit_launcher.submitit_launcher import BaseSubmititLauncher

from hydra_plugins.infoscope_launchers.config import LocalConf, SlurmConf
from infoscope.config.sweeps import check_layers, make_collect_command, names_layer, read_sweep
from infoscope.launchers import slurm
from infoscope.launchers.outcome import Outcome, explain_failure, name_outcome, read_outcome, write_outcome
from infoscope.runtime.bounds import check_settings
from infoscope.runtime.errors import InputError
from infoscope.runtime.output import EXIT_BUG, EXIT_INPUT, adapt_streams, say, say_failure

LOOK_EVERY_S = 0.5
ASK_EVERY_S = (1.0, 30.0)
"""Seconds between questions to Slurm: at first, at last."""


@dataclass(frozen=True, eq=False)
class PlannedJob:
    """A job before it starts: its place in the sweep, the overrides that it alone has, what it is called with."""

    number: int
    overrides: str
    arguments: tuple[Any, ...]

    def __str__(self) -> str:
        return f"job {self.number} ({self.overrides})"


class SweepLauncher(BaseSubmititLauncher):
    """What both launchers do: say how every job ends, and fail in the job when it fails."""

    schema: type
    """What can be set of it."""
    left_behind = ""
    """What is said of the jobs at Ctrl-C; empty where they end with it."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs, wait for all, say how each ended.

        Raises:
            InputError: they cannot be started, or ask for a layer that the model lacks.
        """
        check_settings(self.schema, self.params, "hydra.launcher.")
        assert self.config is not None
        if any(map(names_layer, job_overrides)):
            check_layers(job_overrides, read_sweep(Path(self.config.hydra.sweep.dir)).config_dirs)
        shared = set.intersection(*map(set, job_overrides)) if len(job_overrides) > 1 else set()
        state = Singleton.get_state()
        planned, n_failed = [], 0
        for number, overrides in enumerate(job_overrides, initial_job_idx):
            own = " ".join(override for override in filter_overrides(overrides) if override not in shared)
            planned.append(
                PlannedJob(number, own, (list(overrides), "hydra.sweep.dir", number, f"job_{number}", state))
            )
        from infoscope.runtime.progress import Display

        try:
            with closing(self.run_jobs(planned)) as ended, Display().bar("jobs", len(planned), "jobs") as advance:
                for n_ended, (job, outcome) in enumerate(ended, 1):
                    n_failed += _tell(job, outcome)
                    advance(n_ended)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(self.left_behind) from None
        if n_failed:
            say(f"{n_failed} of {len(planned)} jobs failed; the same command does again only what is missing.")
        if not self.config.plan:
            command = make_collect_command(self.config.hydra.sweep.dir, self.config.output_dir)
            say(f"This joins what the jobs have found:\n    {command}")
        return [JobReturn(overrides=overrides, status=JobStatus.COMPLETED) for overrides in job_overrides]

    @abstractmethod
    def run_jobs(self, planned: list[PlannedJob]) -> Generator[tuple[PlannedJob, Outcome], None, None]:
        """Start the jobs, and yield each with its outcome when it is over, in any order."""

    def __call__(self, *args: Any, **kwargs: Any) -> JobReturn:
        """Do one job, in its own process."""
        from submitit import JobEnvironment

        adapt_streams()
        _keep_signals_from_children()
        os.environ.setdefault("COLUMNS", "160")  # lines of the log
        place = JobEnvironment().paths
        rank = place.task_id
        path = name_outcome(place.folder, str(place.job_id), rank)
        path.unlink(missing_ok=True)  # of the time before a requeue
        try:
            returned = super().__call__(*args, **kwargs)
            if returned.status is JobStatus.FAILED:
                raise returned._return_value
        except Exception as error:
            outcome = explain_failure(error, place.stdout)
            write_outcome(path, outcome)
            if not outcome.is_input:
                raise
            say_failure(outcome.failure, error)
            sys.exit(EXIT_INPUT)
        write_outcome(path, Outcome(log=str(place.stdout)))
        return returned


class LocalLauncher(SweepLauncher):
    """Jobs as processes of this machine, `n_parallel` at a time."""

    _EXECUTOR = "local"
    schema = LocalConf

    def run_jobs(self, planned: list[PlannedJob]) -> Generator[tuple[PlannedJob, Outcome], None, None]:
        from infoscope.launchers.local import ShareExecutor, share_machine

        n_parallel, n_tasks = self.params["n_parallel"], self.params["tasks_per_node"]
        places = range(min(n_parallel, len(planned)))
        shares = [share_machine(len(places), place, n_tasks) for place in places]
        executor = ShareExecutor(self.params["submitit_folder"], n_tasks)
        waiting, running = deque(planned), {}
        try:
            while waiting or running:
                for place in places:
                    if waiting and place not in running:
                        job, executor.environment = waiting.popleft(), shares[place]
                        running[place] = job, executor.submit(self, *job.arguments)
                time.sleep(LOOK_EVERY_S)
                for place, (job, process) in list(running.items()):
                    if process.done():
                        del running[place]
                        yield job, _find_outcome(process) or _die(process, "it was killed (by hand, or out of memory).")
        finally:
            for _, process in running.values():  # none, unless this process was interrupted
                process.cancel()


class SlurmLauncher(SweepLauncher):
    """Jobs as an array of Slurm."""

    _EXECUTOR = "slurm"
    schema = SlurmConf

    def run_jobs(self, planned: list[PlannedJob]) -> Generator[tuple[PlannedJob, Outcome], None, None]:
        slurm.check_commands()
        running = dict(zip(planned, self.submit(planned), strict=True))
        array = ",".join(sorted({job.job_id.split("_")[0] for job in running.values()}))
        self.left_behind = (
            f"the jobs go on in Slurm: `squeue -j {array}` shows them, `scancel {array}` ends them, and the same"
            " command does later only what is missing by then."
        )
        folder = Path(self.params["submitit_folder"]).parent.absolute()
        say(f"{len(running)} jobs are with Slurm as {array} (squeue -j {array}); their logs: {folder}")
        yield from _follow(running)

    def submit(self, planned: list[PlannedJob]) -> list[Any]:
        """Hand the jobs to Slurm.

        Raises:
            InputError: it does not take them.
        """
        import submitit
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        params = {name: value for name, value in self.params.items() if value is not None}
        folder, n_timeouts = params.pop("submitit_folder"), params.pop("max_num_timeout")
        params.setdefault("name", f"infoscope-{self.config.stage.name}" if self.config else "infoscope")
        if "cpus_per_task" in params:  # srun does not take it over from sbatch
            params["srun_args"] = [*params.get("srun_args", []), f"--cpus-per-task={params['cpus_per_task']}"]
        generic = submitit.AutoExecutor._typed_parameters()
        executor = submitit.AutoExecutor(folder, cluster="slurm", slurm_max_num_timeout=n_timeouts)
        executor.update_parameters(**{x if x in generic else f"slurm_{x}": value for x, value in params.items()})
        how_to_reach = {name: value for name, value in os.environ.items() if name in ("SLURM_CONF", "SLURM_JWT")}
        try:
            # Clean, for this process may be in a job of Slurm itself; quiet, for submitit prints what sbatch says.
            with submitit.helpers.clean_env(), redirect_stderr(StringIO()):
                os.environ.update(how_to_reach)
                return executor.map_array(self, *zip(*(job.arguments for job in planned), strict=True))
        except (FailedJobError, FailedSubmissionError) as error:
            words = slurm.explain_refusal(str(error), params.get("partition"), params.get("account"))
            raise InputError(words) from error


def _follow(running: dict[PlannedJob, Any]) -> Iterator[tuple[PlannedJob, Outcome]]:
    """Yield every job of Slurm when it is over.

    A success is believed at once, a failure when Slurm says that the job is over: what a job says while it is being
    preempted is not its last word.
    """
    over_since: dict[PlannedJob, float] = {}
    reported: set[str] = set()
    pause_s, asked = ASK_EVERY_S[0], time.monotonic()
    while running:
        time.sleep(LOOK_EVERY_S)
        found = {job: _find_outcome(process) for job, process in running.items()}
        for job, outcome in found.items():
            if outcome is not None and not outcome.failure:
                del running[job]
                yield job, outcome
        if time.monotonic() - asked < pause_s or not running:
            continue
        states = slurm.ask_states(process.job_id for process in running.values()) or {}
        pause_s, asked = min(1.2 * pause_s, ASK_EVERY_S[1]), time.monotonic()
        for reason in slurm.find_obstacles(states.values()) - reported:
            reported.add(reason)
            say(f"Slurm does not start all jobs: {reason} (`man squeue` explains it).")
        for job, process in list(running.items()):
            state = states.get(process.job_id)
            patience_s = None if state is None else slurm.find_patience_s(state)
            if state is None or patience_s is None:
                over_since.pop(job, None)
                continue
            since = over_since.setdefault(job, time.monotonic())
            outcome = _find_outcome(process)
            if outcome is not None or time.monotonic() - since >= patience_s:
                del running[job]
                yield job, outcome or _die(process, slurm.explain_end(state))


def _tell(job: PlannedJob, outcome: Outcome) -> bool:
    """Say how a job ended, and return whether it failed."""
    if outcome.failure:
        code = EXIT_INPUT if outcome.is_input else EXIT_BUG
        say_failure(f"{job}: {outcome.failure} Its log: {outcome.log}", code=code)
    else:
        say(f"{job} is done.")
    return bool(outcome.failure)


def _find_outcome(process: Any) -> Outcome | None:
    """Return how a job of submitit says that it ended; None: it has not said it."""
    return read_outcome(process.paths.folder, process.job_id)


def _die(process: Any, words: str) -> Outcome:
    """Return the outcome of a job that was ended before it could say so."""
    return Outcome(words, log=str(process.task(0).paths.stdout))


def _keep_signals_from_children() -> None:
    """Let the signal by which submitit puts a job back into the queue mean nothing to copies of this process."""
    from submitit.core.job_environment import JobEnvironment

    number = getattr(signal, f"SIG{JobEnvironment.USR_SIG}")
    handler, owner = signal.getsignal(number), os.getpid()

    def handle(signum: int, frame: FrameType | None) -> None:
        if os.getpid() == owner and callable(handler):
            handler(signum, frame)

    signal.signal(number, handle)

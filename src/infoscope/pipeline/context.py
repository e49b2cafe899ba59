"""What every stage works with: the configuration, the store, the device, the display, the tracker, room on the disk."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property, wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch

from infoscope.config.tree import Config, Device, to_tree
from infoscope.pipeline.profiling import Profiles
from infoscope.runtime import processes
from infoscope.runtime.errors import InputError
from infoscope.runtime.job import Job
from infoscope.runtime.lightning import count_steps
from infoscope.runtime.manifests import Spec
from infoscope.runtime.precision import Precision
from infoscope.runtime.progress import Advance, Display, format_bytes
from infoscope.runtime.read_only import ReadOnlyStore
from infoscope.runtime.store import Store
from infoscope.runtime.uses import UseRecord
from infoscope.tracking.config import LoggerConfig, LoggerKind
from infoscope.tracking.names import choose_group, name_job
from infoscope.tracking.tracker import JobTracking, Tracker, TrackerLogger

P = ParamSpec("P")
R = TypeVar("R")


class Context:
    """One configuration on this machine; nothing here knows what a stage computes."""

    def __init__(self, config: Config, display: Display, job: Job | None = None) -> None:
        self.config, self.display, self.job = config, display, job or Job()
        self.tree, self.n_processes = to_tree(config), processes.current().size
        self.output_dir = Path(config.output_dir)
        root, wait_s = self.output_dir / "artifacts", config.trainer.max_wait_s
        self.store = Store(root, self.on_event, wait_s, display.bar, self.tree)
        self.used: dict[str, Spec] = {}
        """What was read or built, by hash."""
        self.goals: list[Any] = []
        """The nodes that the command ends with, and so everything that it will ask for; see `Node`."""
        self.handles: dict[Any, Any] = {}
        """By stage and item."""
        self.known: dict[Any, Any] = {}
        """What `once` remembers."""
        self.image_sets: dict[str, Any] = {}
        """The image sets found on the disk, by their configuration; contexts over the same disk may share it."""
        self._beside: dict[str, Context] = {}
        self._main: Context | None = None
        self.profiles = Profiles()
        self._uses = UseRecord(self.job.folder, self.store.root)
        self.title = config.logger.group or f"{config.model.name}-{config.data.kind.name}"
        """What this experiment is called in tables and folders."""

    def on_event(self, event: str, spec: Spec, detail: str) -> None:
        """Write down what is used, and show it; the store calls this."""
        if event in ("built", "reused"):
            self.used.setdefault(spec.hash, spec)
        if event in ("claimed", "building", "reused"):
            self._uses.add(spec)
        if event != "claimed":
            self.display.event(event, spec, detail)

    def reading(self) -> Context:
        """Return a silent context over the same folder that builds nothing: it raises `MissingArtifact`."""
        reading = Context(self.config, Display.silent(), Job(layers=self.job.layers))
        reading.store = ReadOnlyStore.of(self.store)
        reading.known, reading.image_sets = dict(self.known), self.image_sets  # what it reads is not read for the run
        reading._beside = {key: reading._place_beside(other.config, other) for key, other in self._beside.items()}
        return reading

    def beside(self, config: Config) -> Context:
        """Return the context of another configuration in the same run, the same one each time: what it makes, and
        logs, is the run's too."""
        key = repr(config)
        if key not in self._beside:
            self._beside[key] = self._place_beside(config, None)
        return self._beside[key]

    def _place_beside(self, config: Config, like: Context | None) -> Context:
        """Return such a context, which knows what another one of the same configuration knows."""
        other = Context(config, self.display, self.job)
        other.store, other.image_sets, other.profiles = self.store, self.image_sets, self.profiles
        other.known, other._main = {} if like is None else dict(like.known), self
        return other

    @cached_property
    def device(self) -> torch.device:
        """Where the heavy work runs."""
        choice = self.config.trainer.device
        if choice is Device.cuda and not torch.cuda.is_available():
            raise InputError("trainer.device=cuda, but torch finds no CUDA device: use trainer.device=cpu or auto.")
        use_cuda = choice is Device.cuda or (choice is Device.auto and torch.cuda.is_available())
        return torch.device("cuda" if use_cuda else "cpu")

    @cached_property
    def precision(self) -> Precision:
        """Of the products with an SAE's weights: 32 or bf16, never auto."""
        return self.config.trainer.precision.resolve(self.device.type)

    @cached_property
    def tracking(self) -> JobTracking:
        """The one run of this job, by its main process alone; it ends with the job: `with ctx.tracking: ...`."""
        if self._main is not None:
            return self._main.tracking
        logger, job = self.config.logger, self.job
        name = name_job(choose_group(logger.group, job, self.title), self.config.stage.name, self.tree, job)
        if not processes.is_main():
            logger = LoggerConfig(kind=LoggerKind.none)
        is_of_sweep = job.sweep is not None
        return JobTracking(logger, name, self.tree, self.output_dir, self.display.say, tells_failure=is_of_sweep)

    @contextmanager
    def track(self, stage: str, seed: int | None = None) -> Iterator[Tracker]:
        """Give what a stage logs to: the job's run, under the stage's name."""
        yield self.tracking.view(stage if seed is None else f"{stage}/seed{seed}")

    def recorded(self, *stages: str) -> AbstractContextManager[object]:
        """Count what is done inside as the work of these stages, if `trainer.profile` asks for it."""
        return self.profiles.record(*stages) if self.config.trainer.profile else nullcontext()

    def trainer_options(self, advance: Advance, tracker: Tracker) -> dict[str, Any]:
        """Return what a Lightning trainer of this experiment is made with; `advance` is called at every step."""
        return {
            "accelerator": self.device.type,
            "devices": 1,
            "callbacks": [count_steps(advance)],
            "logger": TrackerLogger(tracker),
            "enable_progress_bar": False,
        }

    def check_disk(self, n_bytes: int) -> None:
        """Refuse what cannot fit, before hours of work.

        Raises:
            InputError: the output folder's disk has less room.
        """
        self.output_dir.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.output_dir).free
        if n_bytes > free:
            raise InputError(
                f"This needs {format_bytes(n_bytes)} in {self.output_dir}, where {format_bytes(free)} are free: use"
                " fewer images, data.cache_dtype=float16, or another output_dir."
            )


def once(function: Callable[Concatenate[Context, P], R]) -> Callable[Concatenate[Context, P], R]:
    """Let a function of a context be computed once per context and arguments, distinguished by their `repr`."""

    @wraps(function)
    def remember(ctx: Context, *args: P.args, **kwargs: P.kwargs) -> R:
        key = (function.__module__, function.__qualname__, repr((args, kwargs)))
        if key not in ctx.known:
            ctx.known[key] = function(ctx, *args, **kwargs)
        return ctx.known[key]

    return remember

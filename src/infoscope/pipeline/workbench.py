"""What every stage works with: the store, the device, the display, the tracker, trained SAEs, room on the disk."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from infoscope.config import Config, Device, Stage, to_tree
from infoscope.runtime import processes
from infoscope.runtime.errors import InputError
from infoscope.runtime.job import Job
from infoscope.runtime.lightning import StepCounter
from infoscope.runtime.manifests import Artifact, Spec
from infoscope.runtime.progress import Advance, Display
from infoscope.runtime.store import Store
from infoscope.runtime.uses import UseRecord
from infoscope.sae.checkpoint import load_sae
from infoscope.sae.model import SparseAutoencoder
from infoscope.tracking.config import LoggerConfig, LoggerKind
from infoscope.tracking.lightning import TrackerLogger
from infoscope.tracking.names import choose_group, name_job
from infoscope.tracking.tracker import JobTracking, Tracker


class Workbench:
    """One configuration on this machine; nothing here knows what a stage computes."""

    def __init__(self, config: Config, display: Display, job: Job | None = None) -> None:
        self.config, self.display, self.job = config, display, job or Job()
        self.tree = to_tree(config)
        self.output_dir = Path(config.output_dir)
        self.store = Store(self.output_dir / "artifacts", self.on_event, config.trainer.max_wait_s, display.bar)
        self.used: dict[str, Spec] = {}
        """What was read or built, by hash."""
        self._uses = UseRecord(self.job.folder, self.store.root)
        self.title = config.logger.group or f"{config.model.name}-{config.data.kind.name}"
        """What people call this experiment."""

    def on_event(self, event: str, spec: Spec, detail: str) -> None:
        """Write down what is used, and show it; told by the store."""
        if event in ("built", "reused"):
            self.used.setdefault(spec.hash, spec)
        if event in ("claimed", "building", "reused"):
            self._uses.add(spec)
        if event != "claimed":
            self.display.event(event, spec, detail)

    @cached_property
    def device(self) -> torch.device:
        """Where the heavy work runs."""
        choice = self.config.trainer.device
        if choice is Device.cuda and not torch.cuda.is_available():
            raise InputError("trainer.device=cuda, but torch finds no CUDA device: use trainer.device=cpu or auto.")
        use_cuda = choice is Device.cuda or (choice is Device.auto and torch.cuda.is_available())
        return torch.device("cuda" if use_cuda else "cpu")

    def get(self, spec: Spec, build: Any, *, shared: bool = False, **upstream: Artifact) -> Artifact:
        """Return an artifact, building it if it is missing; its config is this experiment's. See `Store.get`."""
        return self.store.get(spec, build, shared=shared, config=self.tree, **upstream)

    def get_together(
        self, specs: Mapping[str, Spec], build: Any, *, shared: bool = False, **upstream: Artifact
    ) -> dict[str, Artifact]:
        """Return several artifacts, building by one call those that are missing; see `Store.get_together`."""
        return self.store.get_together(specs, build, shared=shared, config=self.tree, **upstream)

    def load_sae(self, artifact: Artifact) -> SparseAutoencoder:
        """Return a trained SAE, frozen, on this machine's device."""
        return load_sae(artifact.folder).to(self.device).requires_grad_(False)

    @cached_property
    def tracking(self) -> JobTracking:
        """The one run of this job, by its main process alone; it ends with the job: `with bench.tracking: ...`."""
        logger, job = self.config.logger, self.job
        name = name_job(choose_group(logger.group, job, self.title), self.config.stage.name, self.tree, job)
        if not processes.is_main():
            logger = LoggerConfig(kind=LoggerKind.none)
        is_of_sweep = job.sweep is not None
        return JobTracking(logger, name, self.tree, self.output_dir, self.display.say, tells_failure=is_of_sweep)

    @contextmanager
    def track(self, stage: Stage, seed: int | None = None) -> Iterator[Tracker]:
        """Give what a stage logs to: the job's run, under the stage's name."""
        yield self.tracking.view(stage.name if seed is None else f"{stage.name}/seed{seed}")

    def trainer_options(self, advance: Advance, tracker: Tracker) -> dict[str, Any]:
        """Return what a Lightning trainer of this experiment is made with; `advance` is told its steps."""
        return {
            "accelerator": self.device.type,
            "devices": 1,
            "callbacks": [StepCounter(advance)],
            "logger": TrackerLogger(tracker),
            "enable_progress_bar": False,
        }

    def check_disk(self, n_bytes: int) -> None:
        """Refuse what cannot fit, before hours of work."""
        self.output_dir.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.output_dir).free
        if n_bytes > free:
            raise InputError(
                f"This needs {n_bytes / 1e9:.1f} GB in {self.output_dir}, where {free / 1e9:.1f} GB are free: use fewer"
                " images, data.cache_dtype=float16, or another output_dir."
            )

"""What a stage is: what it needs, what determines it, how it is built, what it shows.

A stage is one class in `infoscope.stages`, without state. It asks other stages for what it needs by handles: a handle's
hash is known without building anything; its artifact is built when it is asked for. The engine saves what a stage
returns, on the main process.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, Generic, NamedTuple, Protocol, TypeVar

from infoscope.pipeline.context import Context
from infoscope.report.section import ReportSection
from infoscope.report.tables import Column, Table, Value
from infoscope.runtime import processes
from infoscope.runtime.manifests import Artifact, Spec
from infoscope.runtime.profile import Kind, spent_on
from infoscope.runtime.read_only import MissingArtifact
from infoscope.runtime.store import Workspace
from infoscope.sae.latent_table import LatentColumn

R = TypeVar("R")
Key = dict[str, Any]
"""Plain JSON types: everything that determines a result, and no path, device, worker count or time."""
Row = dict[str, Value]
"""One row of the collected table: values by column key."""
Shown = Sequence[Table | str]
"""What is printed: tables, and sentences."""


class Saved(Protocol):
    """A result that can be written into a folder."""

    def save(self, folder: Path) -> object:
        """Write all of it into an existing folder."""
        ...


class NotBuiltYet(Exception):
    """A hash that depends on the content of an artifact that does not exist yet."""


class Needs(SimpleNamespace):
    """The nodes that a stage needs, by role: `up.sae.hash`, `up.tokens.folder`."""

    def __iter__(self) -> Iterator[tuple[str, Node]]:
        return iter(vars(self).items())


@dataclass(frozen=True)
class Work:
    """What building something costs, in counts.

    n: how many of the things that its time grows with: images, steps, distances; 0: not known.
    like: what else its time depends on, such as the size of the SAE: plain JSON types.
    forwards: pictures that go through the backbone.
    shared_forwards: how many of these serve other jobs of the sweep as well (`Job.layers`), so that the first job to
        come runs them for all.
    naive_forwards: what these would be if every latent encoded both crops of its own top images.
    distances: earth mover's distances to compute.
    disk_bytes, scratch_bytes: bytes that stay on the disk, and temporary bytes during the build.
    memory_bytes: the largest arrays held while it is made.
    is_bound: whether the counts are upper bounds.
    says: what else a plan says of it, in sentences.
    """

    n: int = 0
    like: Any = None
    forwards: int = 0
    shared_forwards: int = 0
    naive_forwards: int = 0
    distances: int = 0
    disk_bytes: int = 0
    scratch_bytes: int = 0
    memory_bytes: int = 0
    is_bound: bool = False
    says: str = ""


class Count(NamedTuple):
    """How many artifacts of an item would be built, and how many exist.

    is_bound: whether so many are built at most.
    """

    n_built: int
    n_reused: int
    is_bound: bool = False


class Stage:
    """What `stage=` can name, or what another stage needs."""

    kind: ClassVar[str] = ""
    """The folder of the artifacts that it makes, and part of their hashes."""
    in_report: ClassVar[bool] = False
    """Whether its section stands in the report of stage=report."""
    in_report_at_hand: ClassVar[bool] = False
    """Whether that is so only where another command has made it, of all SAE seeds."""
    report_version: ClassVar[int] = 0
    """Part of the keys of reports with its section: raise it when the same results are shown or told in another way."""
    is_optional: ClassVar[bool] = False
    """Whether the table of latents has its columns only where the command makes it anyway, or another has made it."""
    is_without_maps: ClassVar[bool] = False
    """Whether the table of latents has its columns of features too that have no place in the picture (pooled ones)."""
    is_seeded: ClassVar[bool] = True
    """Whether its rows of the collected table are those of an SAE seed."""
    columns: ClassVar[Sequence[Column]] = ()
    """Headings of its own metrics in the collected table, after those that every stage has."""

    @classmethod
    def at(cls, ctx: Context, *item: Any) -> Node:
        """Return the node of this stage for one item: an SAE seed, a split, nothing."""
        return Node(ctx, cls(), item)

    @classmethod
    def is_goal(cls, ctx: Context) -> bool:
        """Whether the command ends with it, among others."""
        return any(isinstance(node.stage, cls) for node in ctx.goals)

    def goals(self, ctx: Context) -> list[Node]:
        """Return what `stage=` of this name makes, in order: one node per SAE seed."""
        return [self.at(ctx, seed) for seed in ctx.config.seeds]

    def reads(self, ctx: Context) -> list[Node]:
        """Return what `end` reads besides the goals; a plan counts what is missing of it."""
        return []

    def applies(self, ctx: Context) -> bool:
        """Whether the experiment's data know enough for it to have a part in the report, or columns of latents."""
        return True

    def hashes(self, ctx: Context) -> list[str]:
        """Return the hashes of what it makes, on which a report of it depends."""
        return [node.hash for node in self.goals(ctx) if isinstance(node, Handle)]

    def describe(self, ctx: Context, *item: Any) -> str:
        """Return what an item is called in a plan."""
        return self.kind

    def identify(self, *item: Any) -> str:
        """Return a string that identifies an item."""
        return repr(item)

    def needs(self, ctx: Context, *item: Any) -> Needs:
        """Return what has to exist before an item can be made."""
        return Needs()

    def check(self, ctx: Context, *item: Any) -> None:
        """Refuse what could only be said hours later; nothing is built. Everything needed was checked before.

        Raises:
            InputError: settings, data or a model that will not do.
        """

    def make(self, ctx: Context, *item: Any) -> Any:
        """Make what is missing of an item; by default nothing, for what others make and a plan alone counts."""

    def count(self, ctx: Context, *item: Any) -> Count:
        """Return how many artifacts of an item would be built, and how many exist; by default it has none."""
        return Count(0, 0)

    def work(self, ctx: Context, *item: Any) -> Work:
        """Return what building an item costs."""
        return Work()

    def rows(self, ctx: Context, seed: int) -> Iterator[Row]:
        """Yield what it has found for an SAE seed as rows of the collected table."""
        return iter(())

    def latents(self, ctx: Context, seed: int) -> Iterable[LatentColumn]:
        """Return what it has found of each latent of an SAE seed: columns of the table of latents."""
        return ()

    def latents_read(self, ctx: Context, seed: int) -> Sequence[Handle]:
        """Return what `latents` reads besides the stage's own artifact of the seed: the table's key has it too."""
        return ()

    def section(self, ctx: Context) -> ReportSection | None:
        """Return its part of a report."""
        return None

    def closing(self, ctx: Context) -> Shown:
        """Return what is printed when `stage=` of this name has ended: by default its section."""
        section = self.section(ctx)
        return [] if section is None else [*section.tables.values(), *section.findings]

    def end(self, ctx: Context) -> Any:
        """Show what was found, when all goals are made."""
        for shown in self.closing(ctx):
            if isinstance(shown, Table):
                shown.show(ctx.display.console)
            else:
                ctx.display.say(shown)

    def find_last(self, ctx: Context) -> Artifact | None:
        """Return what `end` made, if it is an artifact.

        Raises:
            MissingArtifact: it, or what it is made from, is missing; of a context that builds nothing.
        """


class Node:
    """One thing that a stage makes, for one item."""

    def __init__(self, ctx: Context, stage: Stage, item: tuple[Any, ...]) -> None:
        self.ctx, self.stage, self.item = ctx, stage, item

    @cached_property
    def needs(self) -> Needs:
        """What it needs."""
        return self.stage.needs(self.ctx, *self.item)

    @property
    def place(self) -> tuple[type[Stage], str]:
        """Its identity within a context."""
        return type(self.stage), self.stage.identify(*self.item)

    def make(self) -> Any:
        """Make what is missing."""
        return self.stage.make(self.ctx, *self.item)

    def work(self) -> Work:
        """Return what building it costs; nothing where that cannot be known yet."""
        try:
            return self.stage.work(self.ctx, *self.item)
        except (NotBuiltYet, MissingArtifact):
            return Work()

    def note(self, work: Workspace, seconds: float | None = None) -> None:
        """Put what was done into the manifest, from which later plans know how long such work takes.

        Args:
            seconds: that it took; None: all the time since its workspace was made.
        """
        found = self.work()
        if found.n:
            measured = {} if seconds is None else {"seconds": round(seconds, 3)}
            work.notes["work"] = {"n": found.n, "like": found.like, **measured}


class ArtifactStage(Stage, ABC, Generic[R]):
    """A stage whose items are artifacts; `R` is what one holds, as it is loaded."""

    version: ClassVar[int] = 0
    """Part of the keys where it is not 0: raise it when the same configuration gives other results than before."""
    is_shared: ClassVar[bool] = True
    """Whether all processes of a job build together; else the main one builds alone."""
    holds: ClassVar[Any] = None
    """What one holds, if that is a class whose `load` reads a folder."""
    is_one_of_many: ClassVar[bool] = False
    """Whether there are dozens for each SAE seed, so that no line is printed for each."""

    @classmethod
    def at(cls, ctx: Context, *item: Any) -> Handle[R]:
        stage = cls()
        handle = Handle(ctx, stage, item)
        return ctx.handles.setdefault(handle.place, handle)

    def name(self, ctx: Context, *item: Any) -> str:
        """Return what an artifact's folder is called; not part of its hash."""
        return ctx.config.model.name

    @abstractmethod
    def key(self, ctx: Context, up: Needs, *item: Any) -> Key:
        """Return everything that determines an artifact; nothing is built for it."""

    def build(self, ctx: Context, up: Needs, work: Workspace, *item: Any) -> Saved | None:
        """Return the result, which the engine saves; or write it into `work.folder` and return nothing.

        Artifacts that are only ever made together with others have none.
        """
        raise AssertionError(f"{self.kind} has no build: say how one is made, or make it together with others")

    def load(self, ctx: Context, folder: Path, *item: Any) -> R:
        """Read what `build` made."""
        return self.holds.load(folder)

    def make(self, ctx: Context, *item: Any) -> Artifact:
        return self.at(ctx, *item).get()

    def count(self, ctx: Context, *item: Any) -> Count:
        return Count(1, 0) if self.at(ctx, *item).find() is None else Count(0, 1)

    def get(self, handle: Handle[R]) -> Artifact:
        """Return the artifact of a handle, built if it is missing, after what it needs."""
        ctx, up = handle.ctx, handle.needs
        upstream = {} if handle.exists() else {role: node.get() for role, node in up if isinstance(node, Handle)}

        def build(work: Workspace) -> None:
            with ctx.recorded(self.kind):
                found = self.build(ctx, up, work, *handle.item)
                if found is not None and processes.is_main():
                    with spent_on(Kind.disk):
                        found.save(work.folder)
            handle.note(work)

        return ctx.store.get(handle.spec, build, shared=self.is_shared, **upstream)


class Handle(Node, Generic[R]):
    """An artifact that may not exist yet."""

    stage: ArtifactStage[R]
    is_known_to_exist = False

    @cached_property
    def spec(self) -> Spec:
        """What determines it.

        Raises:
            NotBuiltYet: that depends on the content of something that does not exist yet.
        """
        stage, ctx = self.stage, self.ctx
        key = stage.key(ctx, self.needs, *self.item)
        if stage.version:
            key = {**key, "version": stage.version}
        return Spec(stage.kind, stage.name(ctx, *self.item), key, stage.is_one_of_many)

    @property
    def hash(self) -> str:
        """Its hash; nothing is built for it."""
        return self.spec.hash

    def find(self) -> Artifact | None:
        """Return the artifact if it exists."""
        try:
            return self.ctx.store.find(self.spec)
        except (NotBuiltYet, MissingArtifact):
            return None

    def get(self) -> Artifact:
        """Return the artifact, built if it is missing."""
        return self.stage.get(self)

    def exists(self) -> bool:
        """Whether it exists, as the main process sees it; a caller that gets False must build it."""
        if not self.is_known_to_exist:
            # when somebody asks again; of what one process asked alone the others know nothing, and will ask together
            self.is_known_to_exist = not processes.is_apart()
            with suppress(NotBuiltYet, MissingArtifact):
                _ = self.spec  # a key may need artifacts, which all processes make together
            return processes.broadcast(processes.is_main() and self.find() is not None)
        return True

    @property
    def folder(self) -> Path:
        """Where it lies; it is built if it is missing."""
        return self.get().folder

    def load(self) -> R:
        """Return what it holds; it is built if it is missing."""
        return self.stage.load(self.ctx, self.folder, *self.item)

    def read_json(self, name: str) -> Any:
        """Return the content of one of its JSON files; it is built if it is missing."""
        return self.get().read_json(name)


class SingleStage(ArtifactStage[R]):
    """A stage that makes one artifact."""

    def goals(self, ctx: Context) -> list[Node]:
        return [self.at(ctx)]


class SeedStage(ArtifactStage[R]):
    """A stage that makes one artifact for each SAE seed."""

    def name(self, ctx: Context, *item: Any) -> str:
        return name_of_seed(ctx, *item)

    def describe(self, ctx: Context, *item: Any) -> str:
        return f"{self.kind}, seed {item[0]}"


def name_artifacts(*artifacts: Artifact) -> Row:
    """Return which artifacts hold the numbers of a row; more than one where tasks have data of their own."""
    return {"artifact": " ".join(f"{artifact.manifest['stage']}:{artifact.hash}" for artifact in artifacts)}


def name_of_seed(ctx: Context, seed: int) -> str:
    """Return what the artifacts of an SAE seed are called."""
    return f"{ctx.config.model.name}-{ctx.config.sae.kind}-seed{seed}"


def list_needed(goals: Sequence[Node]) -> list[Node]:
    """Return goals and everything that they need, each once, and each after what it needs."""
    found: dict[Any, Node] = {}

    def visit(node: Node) -> None:
        if node.place not in found:
            for _, needed in node.needs:
                visit(needed)
            found[node.place] = node

    for goal in goals:
        visit(goal)
    return list(found.values())

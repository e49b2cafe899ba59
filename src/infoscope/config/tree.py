"""The whole configuration: the packages' dataclasses joined into one tree, and what is wrong with it in one line."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from functools import cache
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from omegaconf import MISSING, DictConfig, OmegaConf

from infoscope import registry
from infoscope.analyses.config import (
    AdaptConfig,
    AttributionConfig,
    CrossConfig,
    DescribeConfig,
    ExploreConfig,
    MaskingConfig,
    NameConfig,
    QualityConfig,
    SegmentConfig,
    SteerConfig,
)
from infoscope.config import errors
from infoscope.config.overrides import make_readable, quote_override
from infoscope.config.unread import NAMESAKES, check_read, name_place
from infoscope.data.config import DataConfig, DataKind, ProbeDataConfig
from infoscope.predictions.config import PredictConfig
from infoscope.probes.config import CurveConfig, EffectConfig, ProbeConfig, Readout, SelectConfig
from infoscope.runtime.bounds import Bounds, Few, FilePath, Items, Seconds, Seed, check, check_settings, expand_path
from infoscope.runtime.errors import InputError
from infoscope.runtime.precision import Precision
from infoscope.sae.config import KINDS, SAEConfig, TokenChoice, TrainedConfig
from infoscope.sae.import_config import IMPORT, ImportedConfig
from infoscope.scope.config import Diagonal, EMDMethod, OutlierConfig, PartitionConfig, ScopeConfig, StabilityConfig
from infoscope.tracking.config import LoggerConfig
from infoscope.vision.config import ContrastiveConfig, ModelConfig, ModelKind
from infoscope.vision.hooks import POOLED, PROJECTED

_PACKAGE = Path(__file__).resolve().parents[1]
CONF_FOLDER = _PACKAGE / "conf" if (_PACKAGE / "conf").is_dir() else _PACKAGE.parents[1] / "conf"
"""conf/ inside the package in an installed wheel, at the top of the repository in a checkout."""


_PROBING = ("report", "probe", "select", "curve", "effects")
"""The stages that read probes."""


class StageName(Enum):
    """How far to go, or which command to run: the names of the registry."""

    _ignore_ = ["entry"]  # noqa: RUF012
    for entry in registry.ENTRIES:
        vars()[entry.name] = entry.name


class Device(Enum):
    """Where the heavy work runs; part of no hash."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class TokenBuffer(Enum):
    """Where tokens that are not stored wait to be trained on; part of no hash."""

    ram = "ram"
    device = "device"


@dataclass
class TrainerConfig:
    """How the work is run on this machine; part of no hash but `precision`."""

    device: Device = Device.auto
    precision: Precision = Precision.auto
    """Of the products with an SAE's weights, which stay float32. 32: float32. bf16: bfloat16 in training; in the
    encoder of a trained or imported SAE TF32 on CUDA. auto: bf16 on CUDA, 32 on CPUs, where bf16 is worth asking for
    if the processor has it. bf16 is in the hashes of SAEs and of all that reads them. Backbones: model.precision."""
    n_threads: Few | None = None
    """CPU threads of torch; null: all cores, divided among the processes of a machine."""
    save_every_s: Seconds = 60.0
    """Seconds between checkpoints of long loops: what an interruption can cost. (Passes over images save parts of fixed
    size, SAE training also every sae.checkpoint_every_n_steps steps.)"""
    max_wait_s: Seconds = 6 * 3600.0
    """How long to wait for another process that builds an artifact which this one needs."""
    n_processes: Few = 1
    """Processes on this machine that share the work, one for each GPU. Tasks of a Slurm job, of a launcher's
    tasks_per_node or of torchrun share it by themselves: then this stays 1."""
    progress: bool = True
    """Show how far long loops are: bars in a terminal, elsewhere a line every half minute."""
    compile: bool | None = None
    """Compile the backbone's blocks: a GPU encodes 1.5 times as many images a second, after some seconds of compiling;
    numbers differ by rounding. null: on CUDA, in stages of so many images that it pays."""
    profile: bool = False
    """Print and log where the time of each stage goes (reading, forward, encoder, EMD, disk, ...) and its peak memory.
    On CUDA a run that is profiled waits for the device at each mark, and is slower."""
    token_buffer: TokenBuffer = TokenBuffer.ram
    """Where a pool of tokens waits that are not stored (data.store_tokens=false): sae.pool_images x
    sae.tokens_per_image x d_in x 4 bytes, twice."""

    def __post_init__(self) -> None:
        check(self, "trainer")


@dataclass
class CollectConfig:
    """What stage=collect joins; part of no hash."""

    sweeps: list[FilePath] = field(default_factory=list)
    """Folders of sweeps, or their names in <output_dir>/sweeps; none: the newest one there."""
    require_all: bool = False
    """Exit with code 2 if a job is missing."""

    def __post_init__(self) -> None:
        check(self, "collect")


@dataclass
class HousekeepingConfig:
    """What stage=artifacts does besides listing; part of no hash."""

    verify: bool = False
    """Read every file and compare its checksum."""
    prune: bool = False
    """Say what nothing refers to, and what killed runs have left."""
    delete: bool = False
    """With prune: delete it."""
    min_age_h: Annotated[float, Bounds(0, 1e6)] = 24.0
    """What is younger, in hours, is never pruned: a run may be about to use it."""

    def __post_init__(self) -> None:
        check(self, "artifacts")
        if self.delete and not self.prune:
            raise InputError("artifacts.delete=true deletes what artifacts.prune=true finds: give both.")

    @property
    def unread(self) -> dict[str, str]:
        """The settings that are not read, and in words what would read them."""
        return {} if self.prune else {"min_age_h": "by artifacts.prune=true alone: drop it, or give that"}


@dataclass
class Config:
    """One experiment."""

    stage: StageName = StageName[registry.DEFAULT]
    seeds: Annotated[list[Seed], Items()] = field(default_factory=lambda: [0, 1, 2])
    """Seeds of the SAEs; tables give mean and spread over them."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    sae: SAEConfig = MISSING
    """Of one kind or another: the file that `sae=` chooses says which, and so what can be set."""
    scope: ScopeConfig = field(default_factory=ScopeConfig)
    partition: PartitionConfig = field(default_factory=PartitionConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    probe_data: ProbeDataConfig = field(default_factory=ProbeDataConfig)
    outliers: OutlierConfig = field(default_factory=OutlierConfig)
    predict: PredictConfig = field(default_factory=PredictConfig)
    masking: MaskingConfig = field(default_factory=MaskingConfig)
    attribution: AttributionConfig = field(default_factory=AttributionConfig)
    steer: SteerConfig = field(default_factory=SteerConfig)
    segment: SegmentConfig = field(default_factory=SegmentConfig)
    adapt: AdaptConfig = field(default_factory=AdaptConfig)
    describe: DescribeConfig = field(default_factory=DescribeConfig)
    quality: QualityConfig = field(default_factory=QualityConfig)
    name: NameConfig = field(default_factory=NameConfig)
    judge: ModelConfig = field(default_factory=lambda: ModelConfig("own", ModelKind.own, pretrained=None))
    """Which model says how alike images are (stage=describe): by the vector that it pools of a whole image."""
    stability: StabilityConfig = field(default_factory=StabilityConfig)
    select: SelectConfig = field(default_factory=SelectConfig)
    curve: CurveConfig = field(default_factory=CurveConfig)
    effects: EffectConfig = field(default_factory=EffectConfig)
    cross: CrossConfig = field(default_factory=CrossConfig)
    explore: ExploreConfig = field(default_factory=ExploreConfig)
    clip: ContrastiveConfig = field(default_factory=ContrastiveConfig)
    """How stage=train_clip trains the scenes' own CLIP."""
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    collect: CollectConfig = field(default_factory=CollectConfig)
    artifacts: HousekeepingConfig = field(default_factory=HousekeepingConfig)
    output_dir: FilePath = "outputs"
    plan: bool = False
    """Say what this command would reuse and build, and what that costs here, instead of doing it."""

    def __post_init__(self) -> None:
        check(self, "")
        if self.data.kind is DataKind.own:
            raise InputError("data.kind=own is for probe_data alone: choose data=scenes, image_folder or imagenet.")
        if self.model.kind is ModelKind.own:
            raise InputError("model.kind=own is for judge alone: choose a model, such as model=scenes_clip.")
        if self.data.kind is DataKind.captions and self.model.site != POOLED:
            raise InputError(
                "data=captions holds texts, of which there are embeddings alone: give model.site=pooled, or data of"
                " images."
            )
        is_probed = self.stage.name in _PROBING
        # (Of pooled embeddings it is said later that no stage of scope works on them.)
        is_at_end = self.model.layer == -1 and self.model.site != POOLED
        if is_probed and Readout.cls_final in self.probe.readouts and is_at_end:
            where, instead = "after the last block (model.layer=-1)", "use an earlier layer, or"
            if self.model.site == PROJECTED:
                where, instead = "behind the whole tower (model.site=projected)", "use"
            raise InputError(
                f"probe.readouts holds cls_final, but {where} an edit of patches cannot reach CLS any more: {instead}"
                " probe.readouts=[patch_mean]."
            )
        if self.scope.diagonal is not Diagonal.main and self.stage.name == registry.DEFAULT:
            raise InputError(
                f"scope.diagonal={self.scope.diagonal.name} is for stage=score and stage=probe: the report draws the"
                " main diagonal."
            )
        reads_patches = isinstance(self.sae, TrainedConfig) and self.sae.tokens is TokenChoice.patch
        if Readout.cls_layer in self.probe.readouts and reads_patches:
            raise InputError(
                "probe.readouts holds cls_layer, which cannot change: the SAE reads patch tokens and leaves CLS alone;"
                " use patch_mean or cls_final, or sae.tokens=all."
            )

    @property
    def unread(self) -> dict[str, str]:
        """The settings, or whole sections, that another choice elsewhere would read, and in words which."""
        stage, unread = self.stage.name, {}
        if stage != "stability" and self.scope.emd is EMDMethod.exact:  # that stage solves by the other method too
            words = "by scope.emd=sinkhorn and stage=stability alone: drop it, or choose one of those"
            unread["scope.sinkhorn_blur"] = words
        if self.data.store_tokens:
            unread["trainer.token_buffer"] = "by data.store_tokens=false alone: drop it, or give that"
        if stage != "train_clip" and "train_clip" not in {
            self.model.pretrained,
            self.judge.pretrained,
            self.adapt.pretrained,
        }:
            words = "by stage=train_clip and model.pretrained=train_clip alone: drop it, or choose one of those"
            unread["clip"] = words
        if self.judge.kind is not ModelKind.own:
            words = "of the model alone, a judge gives the vector that it pools of a whole image: drop it"
            unread |= dict.fromkeys(("judge.layer", "judge.site"), words)
        commands = [name for name in ("collect", "artifacts") if name != stage]
        return unread | {name: f"by stage={name} alone: drop it, or choose that" for name in commands}


@cache
def register_schemas() -> None:
    """Make the dataclasses known to Hydra: conf/config.yaml begins with this schema, so typos fail at composition.

    The files in conf/sae begin with the schema of their kind. Those lie in no group: they are no choices themselves.
    And resolvers: ${path:${output_dir}} puts in ~ and $HOME, as `check` does; ${unless_plan:sweeps,${plan}} keeps plans
    apart from sweeps, which stage=collect looks for; ${texture_or_class:...} is what the demo's probes classify, of
    scenes and of other data; ${stages:} and ${tools:} are the lines of --help on the registry.
    """
    OmegaConf.register_new_resolver("tools", lambda: registry.describe_all(registry.TOOLS), replace=True)
    OmegaConf.register_new_resolver("stages", registry.describe_all, replace=True)
    OmegaConf.register_new_resolver("path", lambda text: expand_path(text, "output_dir"), replace=True)
    OmegaConf.register_new_resolver("unless_plan", lambda name, plan: "plans" if plan else name, replace=True)
    OmegaConf.register_new_resolver(
        "texture_or_class",
        lambda data, probed: "texture" if (data if probed is DataKind.own else probed) is DataKind.scenes else "class",
        replace=True,
    )
    ConfigStore.instance().store(name="infoscope_schema", node=Config)
    for kind, schema in {**KINDS, IMPORT: ImportedConfig}.items():
        ConfigStore.instance().store(name=f"sae_{kind}", node=schema)


def make_config(tree: DictConfig) -> Config:
    """Return the typed configuration of a composed tree.

    Raises:
        InputError: missing, unknown or contradictory values.
    """
    missing = sorted(OmegaConf.missing_keys(tree))
    if missing:
        raise InputError(f"Expected a value for {', '.join(missing)}, got none: give it as {missing[0]}=...")
    for key, section in errors.find_unknown_keys(tree):  # added by +key=value, which the schema lets through
        raise InputError(errors.explain_unknown_key(key, Config, section=section))
    check_settings(Config, tree, "")  # before the dataclasses do, for here their places are known
    for key in NAMESAKES:
        try:
            OmegaConf.to_object(OmegaConf.select(tree, key))
        except InputError as error:
            raise InputError(name_place(str(error), key)) from error
    config = OmegaConf.to_object(tree)
    assert isinstance(config, Config)
    return config


def prepare_arguments(arguments: Sequence[str]) -> list[str]:
    """Return a command line as Hydra should get it, see `make_readable`."""
    return make_readable(arguments, lambda key: errors.holds_text(key, Config))


@contextmanager
def open_hydra() -> Iterator[ConfigLoader]:
    """Let Hydra read conf/; the Hydra that runs the program, if one does, is left as it is."""
    register_schemas()
    running = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF_FOLDER), version_base="1.3"):
            yield GlobalHydra.instance().config_loader()
    finally:
        GlobalHydra.instance().clear()
        if running is not None:
            GlobalHydra.instance().initialize(running)


def compose(overrides: Sequence[str] = (), config_dirs: Sequence[str] = (), *, is_past: bool = False) -> Config:
    """Return the configuration of a command line, without running anything.

    Args:
        overrides: as on the command line: `["data=scenes", "scope.k_cds=4"]`.
        config_dirs: absolute folders with choices of one's own, as after `--config-dir`.
        is_past: whether it may have run already, when settings that nothing reads were ignored: they are here too.

    Raises:
        InputError: unknown keys or choices, wrong types, contradictory values.
    """
    folders = [f"file://{folder}" for folder in config_dirs]
    places = [quote_override("hydra.searchpath", folders)] if folders else []
    try:
        with open_hydra():
            tree = hydra_compose("config", overrides=[*prepare_arguments(overrides), *places])
        config = make_config(tree)
    except InputError:
        raise
    except errors.COMPOSITION_ERRORS as error:
        raise InputError(errors.explain(error, Config)) from error
    if not is_past:
        check_read(config, overrides)
    return config


def to_tree(config: Any) -> dict[str, Any]:
    """Return a config dataclass as plain containers (enums by name)."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=attrgetter("name")))

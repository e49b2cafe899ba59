"""Every stage and command: the only list of them, which makes the choices of `stage=`, --help and the dispatch."""

from __future__ import annotations

from importlib import import_module
from typing import Any, NamedTuple


class Entry(NamedTuple):
    """What `stage=` can name.

    name: as on the command line.
    target: "module:Class" of a stage, "module:function" of a command, which gets the configuration and the job; modules
        below infoscope.
    help: one line; more lines follow an end of line.
    """

    name: str
    target: str
    help: str

    def load(self) -> Any:
        """Return the class of the stage, or the function of the command."""
        module, _, name = self.target.partition(":")
        return getattr(import_module(f"infoscope.{module}"), name)


STAGES = (
    Entry("train_clip", "stages.train_clip:TrainClip", "train the scenes' own small CLIP"),
    Entry("train_sae", "stages.train_sae:TrainSAE", "train an SAE per seed on the backbone's patch tokens"),
    Entry(
        "import_sae",
        "stages.import_sae:ImportSAE",
        "an SAE that exists (sae=import sae.path=...), measured on the tokens",
    ),
    Entry("rank", "stages.rank:Rank", "rank the training images for every latent"),
    Entry(
        "score", "stages.score.stage:Score", "CDS: earth mover's distance between activation maps on two shifted crops"
    ),
    Entry("probe", "stages.probe.stage:Probe", "linear probes with groups of features removed"),
    Entry(
        "predict",
        "stages.predict.stage:Predict",
        "the model's own zero-shot predictions and their confidence with groups of features removed",
    ),
    Entry(
        "masking",
        "stages.masking.stage:Masking",
        "the same while only the top latents of each image's true class are kept, or these are dropped",
    ),
    Entry(
        "attribute",
        "stages.attribute.stage:Attribute",
        "which features predictions rest on, by gradients: tested by ablation and deletion, and by scope",
    ),
    Entry(
        "steer",
        "stages.steer.stage:Steer",
        "predictions with single features at a high value, and without those that carry what misleads: worst groups",
    ),
    Entry(
        "stability",
        "stages.stability.stage:Stability",
        "the scores again under other shifts, images, k, seeds, solvers",
    ),
    Entry(
        "select",
        "stages.select.stage:Select",
        "probes on n kept features: chosen by scope, by activation, by the probe's weights, at random",
    ),
    Entry(
        "curve",
        "stages.curve.stage:Curve",
        "probes with growing shares of the mass removed, from either end of the scores and at random",
    ),
    Entry(
        "outliers", "stages.outliers.stage:Outliers", "what outlier tokens do, and which groups of features act on them"
    ),
    Entry(
        "confounds",
        "stages.confounds.stage:Confounds",
        "what else tells features apart: how often, how strongly, how widely they fire, and on what",
    ),
    Entry(
        "extent",
        "stages.extent.stage:Extent",
        "how far the evidence of features reaches: what they keep when all but a window is replaced, and the reverse",
    ),
    Entry(
        "describe",
        "stages.describe.stage:Describe",
        "what features are: the likeness and the labels of the images on which they fire, by scope",
    ),
    Entry(
        "quality",
        "stages.quality.stage:Quality",
        "how good SAEs are, by MSAE's measures: fidelity, CKNNA, decoder rows, k largest activations, a linear probe",
    ),
    Entry(
        "name",
        "stages.name.stage:Name",
        "names of features from a vocabulary, when they are valid and right; search by a concept, and its bias",
    ),
    Entry(
        "segment",
        "stages.segment.stage:Segment",
        "IoU of single latents' maps with label maps, chosen on training images: which latent is the mask of what",
    ),
    Entry(
        "adapt",
        "stages.adapt.stage:Adapt",
        "the model against other weights of it (adapt.pretrained=FILE): which latents fire more, or for other classes",
    ),
    Entry(
        "effects",
        "stages.effects.stage:Effects",
        "the change of each task's loss without each latent alone, and what the score says of it beyond frequency",
    ),
    Entry(
        "cross",
        "stages.cross.stage:Cross",
        "how all that is known of the features goes with their scope, overall and at like firing frequency",
    ),
    Entry(
        "latents",
        "stages.latents:Latents",
        "what is known of each latent, in one table (parquet; load_latents reads it)",
    ),
    Entry(
        "explore",
        "stages.explore.stage:Explore",
        "a page to look at every feature: its images, maps and all that is known of it, in a browser, from the disk",
    ),
    Entry("report", "stages.report.stage:Report", "tables and figures (default)"),
)
COMMANDS = (
    Entry(
        "check_data",
        "commands.check_data:check_data",
        "read every image of the data and all that is known of it; counts, and what is wrong",
    ),
    Entry(
        "collect",
        "commands.collect.command:collect",
        "one table of what the jobs of a sweep have found (the newest, or collect.sweeps=[FOLDER,...]);\n"
        "jobs that are missing are named with the commands that make them",
    ),
    Entry(
        "artifacts",
        "commands.artifacts.command:run_artifacts_command",
        "all artifacts with size, age and users; artifacts.verify=true reads them, artifacts.prune=true says\n"
        "what no run's folder refers to any more, with artifacts.delete=true it is deleted",
    ),
)
TOOLS = (
    Entry(
        "describe-sae",
        "commands.saes:describe_sae",
        "PATH: what the file of an SAE is, computes and was trained on, and the command that scores it",
    ),
    Entry("export-sae", "commands.saes:export_sae", "PATH OUT: an SAE as SAELens reads it, or as plain matrices"),
    Entry(
        "push-sae",
        "commands.saes:push_sae",
        "PATH owner/name: an SAE and its model card, for the Hugging Face hub; uploaded with confirm=true",
    ),
    Entry(
        "view", "commands.view:view", "PATH: serve an explorer (of stage=explore) to the browser, to this machine alone"
    ),
)
"""Commands that need no configuration, `infoscope NAME PLACE ... [KEY=VALUE ...]`: functions whose positional arguments
are the places, and whose others the options."""
ENTRIES = (*STAGES, *COMMANDS)
DEFAULT = "report"


def find_entry(name: str) -> Entry:
    """Return the stage or command of a name."""
    return next(entry for entry in ENTRIES if entry.name == name)


def find_tool(name: str) -> Entry | None:
    """Return the command of a name that needs no configuration."""
    return next((entry for entry in TOOLS if entry.name == name), None)


def is_command(name: str) -> bool:
    """Whether a name is a command's: it makes no artifact."""
    return any(entry.name == name for entry in COMMANDS)


def describe_all(entries: tuple[Entry, ...] = ENTRIES) -> str:
    """Return stages and commands, or other entries, with what they do, in columns: a part of --help."""
    width = max(len(entry.name) for entry in entries) + 2
    lines = [
        ("" if number else entry.name).ljust(width) + line
        for entry in entries
        for number, line in enumerate(entry.help.splitlines())
    ]
    return "\n".join(f"  {line}" for line in lines)

"""stage=import_sae: an SAE that exists already, compared with the backbone of the run and measured on its tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from infoscope.pipeline.context import Context, once
from infoscope.pipeline.stage import Key, Needs, Row, SeedStage, Shown, Work, name_artifacts
from infoscope.runtime.errors import InputError
from infoscope.runtime.files import write_json
from infoscope.runtime.store import Workspace
from infoscope.sae.checkpoint import compute_digest, save_sae
from infoscope.sae.config import TokenChoice
from infoscope.sae.fitting import BATCH_TOKENS, fit_to_tokens, has_free_scale
from infoscope.sae.import_config import ImportedConfig, Statistics
from infoscope.sae.loading import import_sae
from infoscope.sae.model import MAX_PRE_ACTS, SparseAutoencoder
from infoscope.sae.origin import Origin, Source, check_statistics, find_mismatches, lacks_statistics
from infoscope.sae.token_sets import check_prefix
from infoscope.stages.backbone import count_blocks, find_model_facts, fingerprint_model
from infoscope.stages.images import scenes_of
from infoscope.stages.precision import load_frozen, precision_key, say_other_precision
from infoscope.stages.score.tables import make_sae_table
from infoscope.stages.tokens import Tokens, find_sizes
from infoscope.vision.hooks import AT_END, POOLED, PROJECTED
from infoscope.vision.names import find_backbone_name, name_model

SIGNED_SHARE = 0.01
"""Share of the activation that may be below 0 without a warning."""
_NOTED = ("format", "file", "sha256", "address", "revision")


@dataclass(frozen=True)
class Inspected:
    """What a file says of its SAE.

    digest: of its tensors and how they are used.
    has_free_scale: its decoder gives a direction alone.
    prefix_sizes: of a Matryoshka SAE, as of `SparseAutoencoder`.
    """

    origin: Origin
    d_in: int
    d_sae: int
    digest: str
    has_free_scale: bool
    prefix_sizes: Sequence[int] = ()


@once
def inspect_sae(ctx: Context) -> Inspected:
    """Read the file of the SAE; its tensors are not kept.

    Raises:
        InputError: as `load_sae`.
    """
    with ctx.display.bar("reading the SAE"):
        sae = import_sae(get_import_config(ctx))
        digest = compute_digest(sae)
    if _lacks_block(ctx, sae.origin):
        ctx.display.say(_say_block_taken(ctx))
    return Inspected(sae.origin, sae.d_in, sae.d_sae, digest, has_free_scale(sae.origin), sae.prefix_sizes)


def get_import_config(ctx: Context) -> ImportedConfig:
    """Return the settings of the SAE that is imported.

    Raises:
        InputError: one is to be trained.
    """
    config = ctx.config.sae
    if not isinstance(config, ImportedConfig):
        raise InputError(
            f"stage=import_sae reads an SAE, and sae={config.kind} trains one: give sae=import sae.path=..."
        )
    return config


def tokens_read(ctx: Context) -> TokenChoice:
    """Return which tokens the SAE reads."""
    return get_import_config(ctx).tokens or inspect_sae(ctx).origin.tokens or TokenChoice.patch


@once
def list_mismatches(ctx: Context) -> list[str]:
    """Return in what the run's tokens are other ones than the SAE was trained on, in words."""
    sizes, hook, found = find_sizes(ctx), ctx.config.model.hook, inspect_sae(ctx)
    image_px, name = sizes.grid * sizes.patch_px, name_model(ctx.config.model)
    given = Origin(hook.layer, fingerprint_model(ctx), image_px, tokens_read(ctx), hook.site)
    mismatches = find_mismatches(found.origin, given, count_blocks(ctx), name)
    facts = find_model_facts(ctx)
    if found.origin.source is not None and found.origin.source.backbone and facts is not None and facts.is_contradicted:
        mismatches.append(f"{found.origin.source.backbone} as it was trained, given {name} with {facts.words}")
    return mismatches


class ImportSAE(SeedStage[SparseAutoencoder]):
    """The SAE of a file, in our terms, with its metrics on tokens of the training split."""

    kind = "import_sae"
    is_shared = False

    def needs(self, ctx: Context, seed: int) -> Needs:
        return Needs(tokens=Tokens.at(ctx, "train"), **vars(scenes_of(ctx, ctx.config.data)))

    def key(self, ctx: Context, up: Needs, seed: int) -> Key:
        config = get_import_config(ctx)
        key = {
            "tokens": up.tokens.hash,
            "sae": inspect_sae(ctx).digest,
            "tokens_read": tokens_read(ctx).name,
            "statistics": config.statistics.name,
            "fits_scale": inspect_sae(ctx).has_free_scale,
            **precision_key(ctx),
        }
        # An SAE of the same tensors that was trained elsewhere is refused: it must not be found as this one.
        return key | ({"used_in_spite_of": mismatches} if (mismatches := list_mismatches(ctx)) else {})

    def check(self, ctx: Context, seed: int) -> None:
        config, found, sizes = get_import_config(ctx), inspect_sae(ctx), find_sizes(ctx)
        if len(ctx.config.seeds) > 1:
            raise InputError(f"An imported SAE is one, got seeds={ctx.config.seeds}: drop them, or give seeds=[0].")
        if found.origin.site == POOLED and ctx.config.model.site not in AT_END:
            raise InputError(
                "This SAE reads pooled embeddings, one vector for each image or text: give it those of the images"
                " (model.site=pooled), or each patch as the model would embed it (ours: model.site=projected), which"
                " gives it maps to score."
            )
        if found.d_in != sizes.d_in:
            raise InputError(
                f"The SAE reads tokens of width {found.d_in}, and {ctx.config.model.name} gives tokens of width"
                f" {sizes.d_in}: choose the model that it was trained on{_say_trained(found)}."
            )
        check_prefix(tokens_read(ctx), sizes.n_prefix)
        say_other_precision(ctx, self.at(ctx, seed))
        if (mismatches := list_mismatches(ctx)) and not config.ignore_origin:
            raise InputError(
                f"The SAE was trained on other tokens than those of this run: {'; '.join(mismatches)}; or insist with"
                " sae.ignore_origin=true."
            )
        if config.statistics is Statistics.file:
            check_statistics(found.origin)
        elif not lacks_statistics(found.origin):
            raise InputError(
                "sae.statistics=estimate is for an SAE whose file lacks the mean and scale of its tokens, and this one"
                " has what it needs: drop it."
            )

    def build(self, ctx: Context, up: Needs, work: Workspace, seed: int) -> None:
        config = get_import_config(ctx)
        sae = import_sae(config).requires_grad_(False)
        if compute_digest(sae) != inspect_sae(ctx).digest:
            raise InputError(f"{config.path} was changed while it was read: run the same command again.")
        sae.to(ctx.device)
        with ctx.display.bar("measuring the SAE"):
            estimate = config.statistics is Statistics.estimate
            metrics = fit_to_tokens(sae, up.tokens.load(), tokens_read(ctx), estimate=estimate)
        save_sae(work.folder, sae)
        write_json(work.folder / "metrics.json", metrics)
        if (source := sae.origin.source) is not None:
            work.notes["source"] = {name: value for name in _NOTED if (value := getattr(source, name)) is not None}

    def load(self, ctx: Context, folder: Path, seed: int) -> SparseAutoencoder:
        sae = load_frozen(ctx, folder)
        # What it was trained on has been compared, or is ignored: from here on it reads the tokens of the run.
        sae.origin = replace(sae.origin, layer=None, backbone={}, image_px=None, site=None, tokens=tokens_read(ctx))
        return sae

    def work(self, ctx: Context, seed: int) -> Work:
        found = inspect_sae(ctx)
        n_bytes = 4 * (2 * found.d_in * found.d_sae + found.d_sae + 2 * found.d_in)
        encoded = min(MAX_PRE_ACTS, BATCH_TOKENS * found.d_sae)  # before its activation, and after
        held = n_bytes + 4 * found.d_in * found.d_sae + 8 * encoded + 16 * BATCH_TOKENS * found.d_in
        return Work(1, [ctx.config.model.name, found.d_sae], disk_bytes=n_bytes, memory_bytes=held)

    def rows(self, ctx: Context, seed: int) -> Iterator[Row]:
        made = self.at(ctx, seed).get()
        yield {**name_artifacts(made), **made.read_json("metrics.json")}

    def closing(self, ctx: Context) -> Shown:
        metrics = {seed: self.at(ctx, seed).read_json("metrics.json") for seed in ctx.config.seeds}
        return [make_sae_table(metrics), *describe_imported(ctx)]


def describe_imported(ctx: Context) -> list[str]:
    """Return what is to be known of an imported SAE, in sentences."""
    made, source = ImportSAE.at(ctx, ctx.config.seeds[0]), inspect_sae(ctx).origin.source
    kept = Origin.from_json(made.read_json("sae.json")["origin"]).source
    said, facts = ([] if source is None else [describe_source(source), *source.warnings]), kept.facts if kept else {}
    if "statistics" in facts:
        said.append(f"Its {facts['statistics']}.")
    if "fitted_scale" in facts:
        said.append(f"Its reconstruction is scaled by {facts['fitted_scale']:.4g}, fitted to the tokens (ours).")
    if _lacks_block(ctx, inspect_sae(ctx).origin):
        said.append(_say_block_taken(ctx))
    name, metrics = name_model(ctx.config.model), made.read_json("metrics.json")
    if not metrics["fvu"] <= 1:
        said.append(
            f"Warning: it reconstructs these tokens worse than their mean does (FVU {metrics['fvu']:.3g}):"
            f" {_say_why_worse(ctx)}"
        )
    if source is not None and source.backbone and (name is None or find_backbone_name(source.backbone) is None):
        said.append(f"Its backbone, {source.backbone}, could not be compared with {name or ctx.config.model.name}.")
    said += [f"Used all the same (sae.ignore_origin=true): {mismatch}." for mismatch in list_mismatches(ctx)]
    if (share := metrics.get("negative_share", 0)) > SIGNED_SHARE:
        said.append(
            f"{share:.1%} of the activation is negative: rankings, maps and measures of features read what is above 0"
            " alone; edits and reconstruction keep the sign."
        )
    return said


def _say_why_worse(ctx: Context) -> str:
    """Return what is known of why an SAE does not fit the tokens of the run; else what to look at."""
    if inspect_sae(ctx).origin.site == POOLED and ctx.config.model.site == PROJECTED:
        return "it was trained on embeddings of whole images or texts, and these are of single patches."
    if list_mismatches(ctx):
        return "it was trained on other ones."
    return "are they those that it was trained on, and is everything given that its file does not say?"


def describe_source(source: Source) -> str:
    """Return where an imported SAE comes from, as a sentence."""
    return f"Imported: {source.words}."


def _lacks_block(ctx: Context, origin: Origin) -> bool:
    """Whether an SAE's file does not say which block it reads, where it reads one."""
    return origin.layer is None and ctx.config.model.site not in AT_END


def _say_block_taken(ctx: Context) -> str:
    return f"The SAE's file does not say which block it reads: here it reads model.layer={ctx.config.model.layer}."


def _say_trained(found: Inspected) -> str:
    backbone = found.origin.source and found.origin.source.backbone
    return f", {backbone} (infoscope describe-sae ends with the command)" if backbone else ""

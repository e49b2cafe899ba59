"""How faithfully each SAE gives back tokens of the test split: the artifact of a seed, a table, sentences."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np

from infoscope.analyses.fidelity import VERSIONS, FidelityResult, ZeroShotTest, measure_fidelity
from infoscope.data.images import Truth
from infoscope.pipeline.context import Context, once
from infoscope.pipeline.stage import Handle, Key, Needs, NotBuiltYet, SeedStage, Work, list_needed
from infoscope.predictions.inputs import check_predictions
from infoscope.predictions.prompts import Prompts, choose_class_names, choose_templates
from infoscope.predictions.zero_shot import check_prompts
from infoscope.report.tables import Table, compute_stat, format_stat
from infoscope.runtime.errors import InputError
from infoscope.runtime.manifests import Artifact
from infoscope.runtime.store import Workspace
from infoscope.sae.model import MAX_PRE_ACTS
from infoscope.scope.ablations import choose_rows
from infoscope.stages.backbone import hook_of, load_backbone
from infoscope.stages.images import advise_classes, check_split, count_images, find_known, scenes_of
from infoscope.stages.predict.stage import EmbeddedClasses, prompts_of
from infoscope.stages.sae import choose_tokens, count_latents, sae_of
from infoscope.stages.score.tables import Quantity, make_seed_table
from infoscope.stages.tokens import Tokens, find_sizes
from infoscope.vision.config import ModelKind
from infoscope.vision.hooks import POOLED

IN_PLACE = {"reconstruction": "the reconstruction", "zeros": "zeros", "mean": "the mean token"}
"""What stands in place of the tokens in each version but the first, in words."""


class Fidelity(SeedStage[FidelityResult]):
    """How faithfully the SAE of a seed gives back the tokens of the test split that it reads."""

    kind, holds = "fidelity", FidelityResult
    is_shared = False

    def needs(self, ctx: Context, seed: int) -> Needs:
        head = {} if why_no_predictions(ctx) else {"head": EmbeddedClasses.at(ctx)}
        return Needs(sae=sae_of(ctx, seed), tokens=Tokens.at(ctx, "test"), **head)

    def key(self, ctx: Context, up: Needs, seed: int) -> Key:
        config, key = ctx.config.predict, {"sae": up.sae.hash, "tokens": up.tokens.hash}
        if hasattr(up, "head"):
            key["zero_shot"] = {
                "head": up.head.hash,
                "target": config.target,
                "images": None if config.n_images is None else [config.n_images, config.seed],
            }
        return key

    def check(self, ctx: Context, seed: int) -> None:
        check_split(ctx, "test", ctx.config.data)

    def get(self, handle: Handle[FidelityResult]) -> Artifact:
        """Return the artifact of a handle; what the command needs of other seeds is measured in the same reading."""
        ctx = handle.ctx
        if handle.exists():
            return ctx.store.get(handle.spec)
        together = {handle.hash: handle}
        for node in list_needed(ctx.goals):
            if isinstance(node, Handle) and type(node.stage) is type(self):
                together.setdefault(node.hash, node)
        upstream = {name: {role: node.make() for role, node in one.needs} for name, one in together.items()}
        seen = handle.needs.tokens.ctx
        for _, scenes in scenes_of(seen, seen.config.data):  # live tokens: the main process opens them alone, below
            scenes.make()

        def build(works: dict[str, Workspace]) -> None:
            with ctx.recorded(*(self.kind for _ in works)):
                self._measure(ctx, {together[name]: work for name, work in works.items()})

        specs = {name: one.spec for name, one in together.items()}
        made = ctx.store.get_together(specs, build, upstream=upstream)
        for one in together.values():
            one.is_known_to_exist = True
        return made[handle.hash]

    def _measure(self, ctx: Context, works: Mapping[Handle[FidelityResult], Workspace]) -> None:
        """Read the tokens once for all seeds that are missing."""
        up, config, start = next(iter(works)).needs, ctx.config.predict, time.perf_counter()
        tokens, seen = up.tokens.load(), up.tokens.ctx
        zero_shot = None
        if hasattr(up, "head"):
            labels = prompts_of(seen).labels
            assert labels is not None, "why_no_predictions asks for labels"
            rows = choose_rows(len(tokens), config.n_images, config.seed)
            of_rows = labels[np.asarray(tokens.image_index)]
            zero_shot = ZeroShotTest(load_backbone(seen), ctx.config.model.layer, up.head.load(), rows, of_rows)
        seeds = ", ".join(str(one.item[0]) for one in works)
        with ctx.display.bar(f"fidelity, seed {seeds}", len(tokens), "images") as advance:
            saes, reads = [one.needs.sae.load() for one in works], choose_tokens(ctx)
            found = measure_fidelity(saes, tokens, reads, zero_shot, config.batch_images, advance, seen is not ctx)
        seconds = (time.perf_counter() - start) / len(works)
        for (one, work), result in zip(works.items(), found, strict=True):
            result.save(work.folder)
            one.note(work, seconds)

    def work(self, ctx: Context, seed: int) -> Work:
        n, sizes, is_stored = count_images(ctx, "test"), find_sizes(ctx), ctx.config.data.store_tokens
        n_tokens = ctx.config.predict.batch_images * (sizes.n_patches + sizes.n_prefix)
        held = 4 * (min(MAX_PRE_ACTS, n_tokens * count_latents(ctx)) + 8 * n_tokens * sizes.d_in)
        like = [ctx.config.model.name, count_latents(ctx), is_stored]
        return Work(n, like, forwards=0 if is_stored else n, memory_bytes=held)


@once
def why_no_predictions(ctx: Context) -> str:
    """Return in a sentence why no zero-shot head can be held against labels of the test images; empty: one can.

    Raises:
        InputError: as `load_backbone`, or `predict.class_names` or `predict.target` will not do.
    """
    config, known = ctx.config, find_known(ctx, ctx.config.data)[1]
    if Truth.labels not in known.truths:
        return f"data={config.data.kind.name} knows no classes of the test images: give {advise_classes(config.data)}."
    known.n_target_classes(config.predict.target)  # one that the data do not know is a mistake
    if config.model.kind is not ModelKind.open_clip:
        return f"{config.model.name} has no text tower."
    try:
        prompts = Prompts(choose_class_names(config.predict, known), choose_templates(config.predict))
    except InputError as error:
        if config.predict.class_names is not None:  # they are given, and will not do
            raise
        return str(error)
    is_last = hook_of(ctx).layer == -1 and config.model.site != POOLED  # where an edit needs no block behind it
    if not is_last and EmbeddedClasses.at(ctx).find() is not None:
        return ""  # its text tower has read these words, and a block follows: no weights are loaded to know it again
    try:
        backbone = load_backbone(ctx)
    except NotBuiltYet:  # a CLIP that is trained on the words of the scenes, and pools CLS
        return f"model.layer={config.model.layer} is the last block of {config.model.name}." if is_last else ""
    try:
        check_predictions(backbone, config.model.layer)
        check_prompts(backbone, prompts)
    except InputError as error:
        return str(error)
    return ""


def make_fidelity_table(results: Mapping[int, FidelityResult]) -> Table:
    """Return the table: a column per SAE seed; without a zero-shot head the rows on the tokens alone."""
    sections = {
        "tokens": [
            Quantity("n_tokens", "tokens", lambda r: r.n_tokens, 0),
            Quantity("explained_variance", "explained variance (%)", lambda r: r.explained_variance, 2, 100),
            Quantity("fvu_per_token", "unexplained variance within a token (%)", lambda r: r.fvu_per_token, 2, 100),
            Quantity("cosine_raw", "cosine", lambda r: r.cosine_raw, 4),
            Quantity("cosine_centred", "cosine from the mean token", lambda r: r.cosine_centred, 4),
            Quantity("l0", "L0", lambda r: r.l0, 1),
            Quantity("alive_share", "latents that fire (%)", lambda r: r.alive_share, 1, 100),
        ]
    }
    notes = [
        "Explained variance: 1 - squared error / squared deviation from the mean token, both summed over all test"
        " tokens. Within a token: variance of the error over the token's components / variance of these, mean over"
        " tokens (MSAE's reading). Cosine: of the token and its reconstruction, as they are and both less the mean"
        " token, mean over tokens."
    ]
    if all(result.has_predictions for result in results.values()):
        sections |= _prediction_quantities()
        notes.append(
            "Zero-shot: the model goes on from the edited tokens, and its own head names the class of the test images;"
            " tokens that the SAE does not read stay as they are. Recovered: (CE of the baseline - CE of the"
            " reconstruction) / (CE of the baseline - CE of the tokens). The mean token is ours: zeros may lie far"
            " from all tokens."
        )
    return make_seed_table("fidelity", "How faithfully the SAEs give back test tokens", results, sections, notes)


def _prediction_quantities() -> dict[str, list[Quantity]]:
    headings = dict(zip(VERSIONS, ("tokens as they are", *IN_PLACE.values()), strict=True))
    entropies = [
        Quantity(f"ce_{version}", heading, lambda r, version=version: r.mean_cross_entropy(version))
        for version, heading in headings.items()
    ]
    recovered = [
        Quantity(
            f"recovered_{baseline}",
            f"recovered, against {IN_PLACE[baseline]} (%)",
            lambda r, baseline=baseline: r.recovered(baseline),
            1,
            100,
        )
        for baseline in ("zeros", "mean")
    ]
    top1 = [
        Quantity(f"top1_{version}", heading, lambda r, version=version: r.top1(version), 1, 100)
        for version, heading in headings.items()
    ]
    n_images = Quantity("n_images", "images", lambda r: len(r.image_index), 0)
    return {"zero-shot cross-entropy (nats)": [n_images, *entropies, *recovered], "zero-shot top-1 (%)": top1}


def say_fidelity(results: Mapping[int, FidelityResult], why_no_predictions: str = "") -> list[str]:
    """Return what the table says, in sentences.

    Args:
        why_no_predictions: the sentence of that name, for results without a zero-shot head.
    """
    found = list(results.values())
    first = found[0]

    def write(read: Callable[[FidelityResult], float], digits: int, scale: float = 1.0) -> str:
        return format_stat(compute_stat(map(read, found)), digits, scale)

    explains = "The SAE explains" if len(found) == 1 else "The SAEs explain"
    said = [
        f"{explains} {write(lambda r: r.explained_variance, 1, 100)}% of the variance of {first.n_tokens:,} test"
        f" tokens with {write(lambda r: r.l0, 1)} latents on each; the cosine of a token and its reconstruction is"
        f" {write(lambda r: r.cosine_raw, 3)}, and {write(lambda r: r.cosine_centred, 3)} of both less the mean token."
    ]
    if not first.has_predictions:
        return [*said, f"Zero-shot cross-entropy was not measured: {why_no_predictions}"]
    tokens, *replaced = (write(lambda r, version=version: r.mean_cross_entropy(version), 3) for version in VERSIONS)
    instead = [f"{entropy} with {words}" for entropy, words in zip(replaced, IN_PLACE.values(), strict=True)]
    said.append(
        f"Zero-shot cross-entropy on {len(first.image_index):,} test images and {first.n_classes:,} classes is {tokens}"
        f" nats, and {', '.join(instead)} in place of the tokens that the SAE reads: {_say_recovered(found)}."
    )
    return said


def _say_recovered(results: list[FidelityResult]) -> str:
    parts = []
    for baseline in ("zeros", "mean"):
        found = compute_stat(result.recovered(baseline) for result in results)
        if found.n:
            parts.append(f"{format_stat(found, 1, 100)}% is recovered against {IN_PLACE[baseline]}")
        else:
            parts.append(f"{IN_PLACE[baseline]} cost the prediction nothing, so there is nothing to recover")
    return ", and ".join(parts)

"""stage=train_sae: an SAE per seed on the training split's tokens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from infoscope.config.tree import TokenBuffer
from infoscope.pipeline.context import Context
from infoscope.pipeline.stage import Key, Needs, Row, SeedStage, Shown, Work, name_artifacts
from infoscope.runtime import processes
from infoscope.runtime.errors import InputError
from infoscope.runtime.files import write_json
from infoscope.runtime.lightning import count_steps
from infoscope.runtime.store import Workspace
from infoscope.sae.checkpoint import save_sae
from infoscope.sae.config import TrainedConfig
from infoscope.sae.model import SparseAutoencoder
from infoscope.sae.stream import check_batch
from infoscope.sae.token_sets import check_prefix
from infoscope.sae.train import train_sae
from infoscope.stages.backbone import fingerprint_model
from infoscope.stages.images import count_images
from infoscope.stages.precision import load_frozen, precision_key, say_other_precision, say_slow_bf16
from infoscope.stages.score.tables import make_sae_table
from infoscope.stages.tokens import Tokens, find_sizes
from infoscope.tracking.tracker import TrackerLogger


class TrainSAE(SeedStage[SparseAutoencoder]):
    """The SAE of one seed, trained on the training split's tokens; `load` gives it frozen, on this machine's device."""

    kind = "train_sae"

    def needs(self, ctx: Context, seed: int) -> Needs:
        return Needs(tokens=Tokens.at(ctx, "train"))

    def key(self, ctx: Context, up: Needs, seed: int) -> Key:
        sae = {"sae": config_of(ctx).cache_key_fields(), "seed": seed}
        return {"tokens": up.tokens.hash, **sae, **precision_key(ctx)}

    def check(self, ctx: Context, seed: int) -> None:
        n_images, config, sizes = count_images(ctx, "train"), config_of(ctx), find_sizes(ctx)
        if n_images < 2:
            raise InputError(f"Expected tokens of at least 2 images, one of them held out, got {n_images}: add images.")
        check_prefix(config.tokens, sizes.n_prefix)
        config.check_width(config.expansion_factor * sizes.d_in)
        if self.at(ctx, seed).find() is None:
            check_batch(config.batch_tokens, ctx.n_processes)
            say_other_precision(ctx, self.at(ctx, seed))
            say_slow_bf16(ctx)

    def build(self, ctx: Context, up: Needs, work: Workspace, seed: int) -> None:
        buffer_device = ctx.device if ctx.config.trainer.token_buffer is TokenBuffer.device else "cpu"
        what = f"training SAE, seed {seed}" + (", in bfloat16" if ctx.precision.is_bf16 else "")
        with ctx.track(self.kind, seed) as tracker, ctx.display.bar(what, unit="steps") as advance:
            tokens = up.tokens.load()
            sae, metrics = train_sae(
                tokens,
                config_of(ctx),
                seed,
                work.progress,
                accelerator=ctx.device.type,
                precision=ctx.precision.for_lightning,
                callbacks=[count_steps(advance)],
                logger=TrackerLogger(tracker),
                buffer_device=buffer_device,
            )
            tracker.log(metrics)
        if processes.is_main():
            backbone = tokens.meta.get("backbone", fingerprint_model(ctx))  # older tokens do not name theirs
            training = {**ctx.tree["sae"], "lr": config_of(ctx).choose_lr(sae.d_sae), **precision_key(ctx)}
            save_sae(work.folder, sae, backbone=backbone, training=training)
            write_json(work.folder / "metrics.json", metrics)

    def load(self, ctx: Context, folder: Path, seed: int) -> SparseAutoencoder:
        return load_frozen(ctx, folder)

    def work(self, ctx: Context, seed: int) -> Work:
        sae, sizes, data = config_of(ctx), find_sizes(ctx), ctx.config.data
        d_in, d_sae = sizes.d_in, sae.expansion_factor * sizes.d_in
        n_bytes = 4 * (2 * d_in * d_sae + d_sae + 2 * d_in)
        held = 4 * n_bytes + 4 * sae.batch_tokens * (d_sae + 4 * d_in)  # weights, gradients, two moments; one batch
        per_image = min(sae.tokens_per_image or sizes.n_patches, sizes.n_patches)
        forwards = 0
        if not data.store_tokens:
            held += 2 * 4 * min(sae.pool_images, count_images(ctx, "train")) * per_image * d_in
            forwards = -(-sae.n_steps * sae.batch_tokens // per_image)
        like = [ctx.config.model.name, sae.kind, d_sae, sae.batch_tokens, data.store_tokens, *precision_key(ctx)]
        return Work(sae.n_steps, like, forwards=forwards, disk_bytes=n_bytes, memory_bytes=held)

    def rows(self, ctx: Context, seed: int) -> Iterator[Row]:
        made = self.at(ctx, seed).get()
        yield {**name_artifacts(made), **made.read_json("metrics.json")}

    def closing(self, ctx: Context) -> Shown:
        return [make_sae_table({seed: self.at(ctx, seed).read_json("metrics.json") for seed in ctx.config.seeds})]


def config_of(ctx: Context) -> TrainedConfig:
    """Return the settings of the SAEs that are trained.

    Raises:
        InputError: one is imported.
    """
    config = ctx.config.sae
    if not isinstance(config, TrainedConfig):
        raise InputError("stage=train_sae trains SAEs, and sae=import reads one: choose stage=import_sae, score, ...")
    return config

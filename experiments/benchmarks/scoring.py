"""Images per second of scoring: ours, the plain loop that it replaced, and what the model alone takes.

Ours is what stage=score waits for: both crops of every ranked image read, encoded, their maps kept in finished parts,
joined and saved, the distances computed. Plain, as infoscope did before, has dense latent codes of one crop after the
other, dense maps, and solves afterwards. The limit is the backbone's forward of both crops and the encoder's product of
all latents, on images that lie on the device already; gates need fewer latents, so that ours may go below it. The EMD
row is the distances of these maps alone.

Pictures are blobs of colour that lie in memory: reading costs a copy. They are ranked first, which is not counted. The
weights of any model but scenes_clip are random, and no SAE is trained: its latents are tokens that occur. How full maps
are is said.

    python experiments/benchmarks/scoring.py                                                    # scenes_clip
    python experiments/benchmarks/scoring.py --model ViT-B-16 --images 64 --latents 6144
    python experiments/benchmarks/scoring.py --model ViT-L-14 --precision bfloat16 --latents 65536 --images 4096 \\
        --workers 12 --save                                                                     # on a GPU
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from harness import make_parser, make_rows, print_rows, save, take_turns
from PIL import Image

from infoscope.data.pictures import Pictures
from infoscope.data.reader import iterate_images
from infoscope.runtime.profile import recording
from infoscope.sae.activations import make_activation
from infoscope.sae.model import MAX_PRE_ACTS, SparseAutoencoder
from infoscope.sae.passes import measure_one
from infoscope.scope import crops
from infoscope.scope.config import ScopeConfig
from infoscope.scope.maps import WantedMaps
from infoscope.scope.ranking import ImageTokens, Ranking, measure_ranking
from infoscope.scope.scores import Scores
from infoscope.scope.scoring import compute_scores, score_latents
from infoscope.vision.backbone import Backbone
from infoscope.vision.config import ModelConfig
from infoscope.vision.load import load_backbone

LAYER = -2
PART_IMAGES = 1024
"""Images in a part of the plain loop, whose readers start anew for each."""


def make_pictures(n: int, size_px: int) -> np.ndarray:
    """Return smooth pictures of random colours, uint8 [n, size_px, size_px, 3]."""
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (n, 6, 6, 3), dtype=np.uint8)
    return np.stack(
        [np.asarray(Image.fromarray(one).resize((size_px, size_px), Image.Resampling.BICUBIC)) for one in colours]
    )


@torch.inference_mode()
def make_sae(backbone: Backbone, tokens: ImageTokens, options: argparse.Namespace) -> SparseAutoencoder:
    """Return directions of tokens that occur, with noise, so that a latent fires on patches that look alike.

    Gates fire on about k of d_sae.
    """
    _, read = next(tokens.iterate(np.arange(min(32, len(tokens))), 32))
    patches = read.patches.flatten(0, 1).cpu()
    settings = {"topk": {"k": options.k}, "relu": {}, "jumprelu": {"d_sae": options.latents}}[options.activation]
    activation = make_activation(options.activation, settings)
    mean = patches.mean(0)
    scale = backbone.d_in**0.5 / (patches - mean).norm(dim=1).mean().item()
    sae = SparseAutoencoder(backbone.d_in, options.latents, activation, mean, scale).requires_grad_(False).eval()
    chosen = torch.randint(len(patches), (options.latents,), generator=torch.Generator().manual_seed(0))
    sae.W_enc.T.copy_(F.normalize(F.normalize(patches[chosen] - mean) + 0.5 * sae.W_dec))
    if options.activation != "topk":
        share = torch.tensor(1 - options.k / options.latents)
        sae.b_enc.sub_(torch.stack([sae.pre_acts(some).quantile(share) for some in patches[:512].split(64)]).mean())
    sae.uses_tf32 = options.precision == "bfloat16"  # as stages have it by trainer.precision
    return sae.to(options.device)


def leave_pairs(ranking: Ranking, n_pairs: int) -> Ranking:
    """Let only so many of the latents rank images that there are about so many pairs for each image."""
    n_latents = max(1, ranking.n_images * n_pairs // ranking.k_max)
    chosen = np.random.default_rng(0).permutation(ranking.d_sae) < n_latents
    return replace(ranking, top_images=np.where(chosen[:, None], ranking.top_images, -1))


def score_plainly(
    backbone: Backbone, sae: SparseAutoencoder, images: Pictures, ranking: Ranking, config: ScopeConfig, n_readers: int
) -> Scores:
    """Score as it was done before: dense codes of one crop after the other, 32 images at a time.

    Returns:
        The scores of the latents that rank images.
    """
    grid, shift, ranking_latents = backbone.grid, config.shift_patches, (ranking.top_images >= 0).any(axis=1)
    wanted = WantedMaps(sae, np.flatnonzero(ranking_latents), ranking.top_images[ranking_latents])
    size_px = crops.scc_size_px(grid, backbone.patch_px, shift)
    maps = np.zeros((*wanted.top_images.shape, 2, grid, grid), np.float32)
    n_at_once = max(1, MAX_PRE_ACTS // (grid**2 * sae.d_sae))
    for part in np.array_split(list_images(ranking), range(PART_IMAGES, len(images), PART_IMAGES)):
        for batch in iterate_images(images, size_px, 32, part, n_workers=n_readers):
            for side, crop in enumerate(crops.shifted_crops(batch.images, backbone.patch_px, grid, shift)):
                patches = backbone.tokens(crop, LAYER).patches
                for first in range(0, len(patches), n_at_once):
                    with torch.inference_mode():
                        dense = sae.encode(patches[first : first + n_at_once])
                    for image, acts in zip(batch.index[first : first + n_at_once].numpy(), dense, strict=True):
                        rows, ranks = wanted.find_pairs(np.array([image]))
                        of_pairs = acts[:, torch.from_numpy(wanted.latents[rows]).to(acts.device)]
                        maps[rows, ranks, side] = of_pairs.T.float().cpu().numpy().reshape(-1, grid, grid)
    return compute_scores(maps, wanted.top_images >= 0, config)


def list_images(ranking: Ranking) -> np.ndarray:
    """Return every image that a latent ranks."""
    images = np.unique(ranking.top_images)
    return images[images >= 0]


@torch.inference_mode()
def encode_alone(backbone: Backbone, sae: SparseAutoencoder, crop: torch.Tensor, n_crops: int) -> None:
    """Put a batch of crops that lies on the device through the model and the encoder's product, again and again."""
    for first in range(0, n_crops, len(crop)):
        patches = backbone.tokens(crop[: n_crops - first], LAYER).patches.flatten(0, 1)
        for some in patches.split(max(1, MAX_PRE_ACTS // sae.d_sae)):
            sae.pre_acts(some)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Time all sides in turns, and compare what they find."""
    random = {"arch": options.model, "pretrained": "random"}
    config = ModelConfig(options.model, precision=options.precision, **random if options.model != "scenes_clip" else {})
    backbone = load_backbone(config).to(options.device)
    scope = ScopeConfig(k_cds=options.ranks, k_max=options.ranks)
    size_px = crops.scc_size_px(backbone.grid, backbone.patch_px, scope.shift_patches)
    images = Pictures(make_pictures(options.images, size_px))
    tokens = ImageTokens(backbone, images, LAYER)
    sae = make_sae(backbone, tokens, options)
    ranking = leave_pairs(measure_one(tokens, measure_ranking(sae, options.ranks)).compute(), options.pairs)
    n_images, n_at_once = len(list_images(ranking)), scope.choose_batch(options.device)
    crop = torch.randint(0, 256, (2 * n_at_once, 3, backbone.image_px, backbone.image_px), dtype=torch.uint8)
    crop = crop.to(options.device)
    found: dict[str, Scores] = {}

    with TemporaryDirectory() as scratch:
        folder = Path(scratch)

        def score() -> None:
            progress = folder / "progress"
            progress.mkdir()
            how: dict[str, Any] = {"check_origin": False, "n_readers": options.workers, "progress_folder": progress}
            found["ours"] = score_latents(backbone, sae, images, ranking, scope, layer=LAYER, **how)
            found["ours"].save(folder)
            rmtree(progress)

        def score_as_before() -> None:
            found["plain"] = score_plainly(backbone, sae, images, ranking, scope, options.workers)

        sides: dict[str, Callable[[], object]] = {
            "ours": score,
            "plain": score_as_before,
            "EMD": lambda: compute_scores(found["ours"].maps, ranking.top_images >= 0, scope),
            "limit": lambda: encode_alone(backbone, sae, crop, 2 * n_images),
        }
        if not options.plain:
            del sides["plain"]
        seconds = take_turns(sides, options.repeats)
        with recording() as profile:
            score()
        n_bytes = sum(file.stat().st_size for file in folder.glob("maps_*"))
    rows, is_ranked, ours = make_rows(seconds, n_images, "images"), ranking.top_images >= 0, found["ours"]
    median_s = {row["side"]: row["median_s"] for row in rows}
    maps = ours.maps[is_ranked]
    difference = ours.emd[is_ranked.any(axis=1)] - found["plain"].emd if options.plain else None
    distances = np.isfinite(ours.emd).sum() + np.isfinite(ours.chance_emd).sum()
    return {
        "rows": rows,
        "ours_of_limit": median_s["ours"] / median_s["limit"],
        "emd_share": median_s["EMD"] / median_s["ours"],
        "n_images": n_images,
        "n_pairs": len(maps),
        "n_distances": int(distances),
        "active_share": float((maps > 0).mean()),
        "maps_bytes": n_bytes,
        "dense_bytes": ranking.top_images.size * maps[0].nbytes,
        "largest_emd_difference": None if difference is None else float(np.nanmax(np.abs(difference), initial=0)),
        "seconds_by_kind": {kind.value: round(s, 3) for kind, s in profile.seconds.items() if s > 0},
    }


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--model", default="scenes_clip", help="scenes_clip, or an architecture for random weights")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--latents", type=int, default=1024)
    parser.add_argument("--activation", choices=["topk", "relu", "jumprelu"], default="topk")
    parser.add_argument("--k", type=int, default=32, help="active latents per token; of gates about")
    parser.add_argument("--ranks", type=int, default=16, help="images per latent")
    parser.add_argument(
        "--pairs", type=int, default=21, help="of an image, about: 65,536 latents with 16 of 50,000 images have 21"
    )
    parser.add_argument("--no-plain", dest="plain", action="store_false", help="leave out the plain loop")
    parser.add_argument("--workers", type=int, default=0, help="processes that read images ahead")
    parser.add_argument("--threads", type=int, default=2, help="of torch, for all sides")
    options = parser.parse_args()
    if options.tiny:
        vars(options).update(images=6, latents=48, k=4, ranks=3, repeats=1)
    torch.set_num_threads(options.threads)
    result = measure(options)
    print_rows(result["rows"], f"{options.model}, {options.latents} latents ({options.activation}), {options.device}")
    print(
        f"{result['n_images']} images, {result['n_pairs']} pairs, {result['active_share']:.1%} of their patches active:"
        f" {result['maps_bytes'] / 1e6:.1f} MB of maps, dense {result['dense_bytes'] / 1e6:.1f}"
    )
    print(
        f"ours takes {result['ours_of_limit']:.2f} of the limit, {result['n_distances']} distances alone"
        f" {result['emd_share']:.0%} of ours"
    )
    if options.plain:
        print(f"largest difference of a distance from plain: {result['largest_emd_difference']:.1e}")
    total = sum(result["seconds_by_kind"].values())
    print("; ".join(f"{kind} {s / total:.0%}" for kind, s in result["seconds_by_kind"].items()))
    if options.save:
        save(f"scoring-{options.model}-{options.latents}-{options.activation}", options, **result)


if __name__ == "__main__":
    main()

"""Whether attributions find the latents on which a prediction rests: orders of latents held against each other.

Some images are predicted again latent by latent, the SAE's error kept: an order is held against the exact loss of the
cosine without each latent alone, and against other orders by what is left of the prediction while the first latents
are removed, or all but these.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int64
from scipy.stats import rankdata
from torch import Tensor

from infoscope.analyses.image_attribution import AttributionInputs, attribute, differentiate, project
from infoscope.predictions.config import PredictConfig
from infoscope.predictions.inputs import PredictInputs, put_tokens, take_tokens
from infoscope.predictions.zero_shot import ZeroShotHead
from infoscope.runtime.parts import Part, compute_parts, cut
from infoscope.runtime.profile import Kind, spent_on
from infoscope.sae.edit import EditMode, GroupEditor
from infoscope.sae.model import SparseAutoencoder
from infoscope.scope.ablations import Progress
from infoscope.vision.backbone import Backbone, Tokens
from infoscope.vision.tokens.source import BATCH_IMAGES

GRADIENT, INTEGRATED, ABLATION, RANDOM = "gradient", "integrated", "ablation", "random"
METHODS = {
    GRADIENT: "gradient x activation",
    INTEGRATED: "integrated gradients",
    ABLATION: "exact ablation",
    "mass_lens": "activation x logit lens",
    "lens": "logit lens",
    "mass": "activation",
    RANDOM: "random order",
}
"""By what the latents that fire in an image are put in order, in words. Activations are sums over the tokens, times the
norm of the decoder row. Integrated gradients (Sundararajan et al., 2017): activation times the mean gradient on the
way from tokens without any latent, so that attributions sum to what all latents together do. random: the image's own
gradient attributions, shuffled."""
PLACES = {name: place for place, name in enumerate(METHODS)}
"""Of the methods in the arrays of an `AttributionResult`."""
N_INTEGRATED = 10
"""Places on that way, the middles of as many equal parts."""
PROB, COSINE = range(2)
"""What is measured of the class while latents are removed: its probability, 0..1, and its cosine, -1..1."""
DELETION, INSERTION = range(2)
"""Whether the first latents of an order are removed, or all but these."""
_PART_TESTED = 16
_ROWS_AT_ONCE = 1024


@torch.no_grad()
def embed_rows(backbone: Backbone, sae: SparseAutoencoder) -> Float[Tensor, "d_sae embed_dim"]:
    """Return each decoder row as the tower would embed it, were it the whole of an image: the logit lens' left side.

    Of a CLIP that pools by CLS that is the row through the final norm, which takes its length, and the projection, then
    scaled to unit norm, as Attributing CLIP's code has it. The blocks after the hooked one are left out.
    """
    rows = sae.W_dec.split(_ROWS_AT_ONCE)
    return F.normalize(torch.cat([backbone.embed_patches(some[:, None])[:, 0] for some in rows]).float(), dim=-1)


def measure_orders(
    wanted: AttributionInputs, config: PredictConfig, rows: np.ndarray, progress: Progress, folder: Path | None
) -> dict[str, np.ndarray]:
    """Return what orders of latents are worth on some images: fields of an `AttributionResult` by name.

    Args:
        rows: of the tokens. config: how many images at a time.
        folder: see `compute_parts`.
    """
    parts = cut(len(rows), _PART_TESTED)
    lens = embed_rows(wanted.inputs.backbone, wanted.inputs.sae)

    def test_part(number: int) -> Part:
        found = []
        for place in range(len(rows))[parts[number]]:
            found.append(_test_image(wanted, lens, int(rows[place]), config.batch_images))
            progress("testing", place + 1, len(rows))
        joined = {name: torch.stack([one[name] for one in found], dim=-1) for name in found[0]}
        return joined | {"integrated": joined["integrated"].sum(-1, keepdim=True)}

    joined = list(compute_parts(len(parts), test_part, folder, "attribution-tests"))
    whole = {name: torch.cat([part[name] for part in joined], dim=-1).numpy() for name in joined[0]}
    integrated = whole["integrated"].sum(axis=1, dtype=np.float64)
    return {**whole, "curves": whole["curves"].swapaxes(-1, -2), "integrated": integrated}


def _test_image(wanted: AttributionInputs, lens: Float[Tensor, "d_sae embed_dim"], row: int, n_at_once: int) -> Part:
    """Return the agreement of each order with exact ablation in one image, and its curves."""
    inputs, sae = wanted.inputs, wanted.inputs.sae
    tokens = inputs.load(np.array([row]))
    index = np.asarray(inputs.tokens.image_index)[[row]]
    one = attribute(inputs, wanted.head, tokens, wanted.classes_of(index), wanted.n_groups)
    latents, own = one.n_on[0].nonzero()[:, 0], int(one.classes[0])
    image = EditedImage(inputs, wanted.head, tokens, own, n_at_once)
    gradient, mass, integrated = one.attribution[0, latents], one.mass[0, latents], image.integrate()
    seen = lens[latents] @ wanted.head.weights[own].to(lens)
    shuffled = torch.from_numpy(np.random.default_rng([wanted.seed, int(index[0])]).permutation(len(latents)))
    scores = {
        GRADIENT: gradient,
        INTEGRATED: integrated[latents],
        ABLATION: image.measure_loss(latents),
        "mass_lens": mass * seen,
        "lens": seen,
        "mass": mass,
        RANDOM: gradient[shuffled.to(gradient.device)],
    }
    ordered = torch.stack([scores[name] for name in METHODS])
    agreement = correlate_ranks(ordered.cpu().numpy(), scores[ABLATION].cpu().numpy())
    # a latent's place in each order, and that of those that do not fire behind all
    places = torch.full((len(ordered), sae.d_sae), len(latents), device=ordered.device)
    places[:, latents] = ordered.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return {
        "n_ranked": torch.tensor(len(latents)),
        "agreement": torch.from_numpy(agreement),
        "integrated": integrated.abs(),
        "curves": image.draw_curves(places, len(latents), wanted.n_steps),
    }


class EditedImage:
    """One image, as predicted without some of its latents; the SAE's error stays.

    Args:
        tokens: of this image alone. own: position of the class that is looked at. n_at_once: versions of the image.
    """

    def __init__(
        self, inputs: PredictInputs, head: ZeroShotHead, tokens: Tokens, own: int, n_at_once: int = BATCH_IMAGES
    ) -> None:
        self.inputs, self.head = inputs, head
        self.tokens, self.own, self.n_at_once = tokens, own, n_at_once
        self.editor = GroupEditor(inputs.sae, take_tokens(tokens, inputs.reads))

    def predict(self, edited: list[Float[Tensor, "n_read d_in"]]) -> Float[Tensor, "n 2"]:
        """Return probability and cosine of the class for versions of the tokens that the SAE reads."""
        found = []
        for embeddings in self._embed(edited):
            probs = self.head.log_probabilities(embeddings)[:, self.own].exp()
            found.append(torch.stack([probs, embeddings @ self.head.weights[self.own].to(embeddings)], dim=1))
        return torch.cat(found)

    def classify(self, edited: list[Float[Tensor, "n_read d_in"]]) -> Float[Tensor, "n n_classes"]:
        """Return the probability of every class for versions of the tokens that the SAE reads."""
        return torch.cat([self.head.log_probabilities(embeddings).exp() for embeddings in self._embed(edited)])

    def _embed(self, edited: list[Float[Tensor, "n_read d_in"]]) -> Iterator[Float[Tensor, "batch embed_dim"]]:
        inputs = self.inputs
        for start in range(0, len(edited), self.n_at_once):
            read = torch.stack(edited[start : start + self.n_at_once])
            whole = Tokens(*(part.expand(len(read), -1, -1) for part in self.tokens))
            with spent_on(Kind.forward):
                yield inputs.backbone.embed_tokens(put_tokens(whole, read, inputs.reads), inputs.layer).float()

    def integrate(self) -> Float[Tensor, " d_sae"]:
        """Return the integrated gradients of all latents, from none of them to all at their activations."""
        sae, x, gradient = self.inputs.sae, self.editor.x, torch.zeros_like(self.editor.x[0])
        everything = self.editor.contribution(torch.ones(sae.d_sae, dtype=torch.bool, device=x.device))
        shares = (torch.arange(N_INTEGRATED, device=x.device) + 0.5) / N_INTEGRATED
        for some in shares.split(self.n_at_once):
            read = x - (1 - some)[:, None, None] * everything
            whole = Tokens(*(part.expand(len(some), -1, -1) for part in self.tokens))
            classes = torch.full((len(some),), self.own, device=x.device)
            gradient += differentiate(self.inputs, self.head, whole, read, classes)[2].sum(0) / N_INTEGRATED
        written, indices = self.editor.written
        along = project(gradient, indices, sae.W_dec) / sae.scale
        new = torch.zeros(sae.d_sae, device=x.device)
        return new.index_add_(0, indices.flatten(), (written * along).flatten())

    def measure_loss(self, latents: Int64[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Return by how much the cosine falls without each latent alone: exact ablation."""
        if not len(latents):
            return torch.zeros(0, device=latents.device)
        found = [self.predict(edited)[:, COSINE] for edited in self.remove_each(latents)]
        return self.predict([self.editor.x[0]])[0, COSINE] - torch.cat(found)

    def remove_each(self, latents: Int64[Tensor, " n"]) -> Iterator[list[Float[Tensor, "n_read d_in"]]]:
        """Yield the tokens without each latent alone, `n_at_once` versions at a time."""
        sae, x = self.inputs.sae, self.editor.x[0]
        written, indices = self.editor.written
        dense = torch.zeros(len(x), sae.d_sae, dtype=written.dtype, device=x.device).scatter_add_(1, indices, written)
        for some in latents.split(self.n_at_once):
            removed = dense[:, some].T[:, :, None] * (sae.W_dec[some] / sae.scale)[:, None]
            yield list(x - removed)

    def draw_curves(
        self, places: Int64[Tensor, "n_methods d_sae"], n_latents: int, n_steps: int
    ) -> Float[Tensor, "2 n_methods n_steps_plus_1 2"]:
        """Return what is left of the class while the first latents of each order are removed, and all but these.

        Args:
            places: of the latents in each order; those that do not fire are behind `n_latents`.
        """
        counts = [round(n_latents * step / n_steps) for step in range(n_steps + 1)]
        never, always = torch.zeros_like(places[0], dtype=torch.bool), torch.ones_like(places[0], dtype=torch.bool)
        removed = [never, always]
        removed += [way for order in places for n in counts[1:-1] for way in (order < n, order >= n)]
        found = self.predict([self.editor.edit(of, EditMode.error_preserving)[0] for of in removed])
        between = found[2:].view(len(places), n_steps - 1, 2, 2).permute(2, 0, 1, 3)
        nothing, everything = (found[i].expand(len(places), 1, -1) for i in range(2))
        deletion = torch.cat([nothing, between[DELETION], everything], dim=1)
        insertion = torch.cat([everything, between[INSERTION], nothing], dim=1)
        return torch.stack([deletion, insertion])


def correlate_ranks(
    scores: Float[np.ndarray, "n_methods n"], target: Float[np.ndarray, " n"]
) -> Float32[np.ndarray, " n_methods"]:
    """Return Spearman's correlation of rows of scores with a target; NaN of fewer than two, or of equal ones."""
    if len(target) < 2:
        return np.full(len(scores), np.nan, dtype=np.float32)
    ranks = rankdata(np.vstack([scores, target]), axis=1)
    ranks -= ranks.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(ranks, axis=1)
    products, both = ranks[:-1] @ ranks[-1], lengths[:-1] * lengths[-1]
    return np.divide(products, both, out=np.full(len(scores), np.nan), where=both > 0).astype(np.float32)

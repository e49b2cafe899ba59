"""What MSAE measures of an SAE beside fidelity: CKNNA, orthogonal rows, progressive k, a probe on reconstructions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Float64, Int, Int64
from scipy.sparse import csr_array
from torch import Tensor

from infoscope.analyses.cknna import compute_cknna, scale_rows
from infoscope.analyses.config import QualityConfig
from infoscope.analyses.progressive import has_own_k, measure_progressive
from infoscope.predictions.inputs import take_tokens
from infoscope.probes.heads import LinearMaps
from infoscope.runtime.arrays import load_result, save_result
from infoscope.runtime.profile import Kind, counted
from infoscope.runtime.progress import Advance, ignore
from infoscope.sae.config import TokenChoice
from infoscope.sae.edit import GroupEditor
from infoscope.sae.model import SparseAutoencoder
from infoscope.sae.origin import check_edits, check_tokens
from infoscope.scope.ablations import choose_rows
from infoscope.vision.tokens.source import TokenSource

MAX_COMPARED = 16_384
"""Latents above which the nearest other decoder row of each is not looked for: time grows with their square."""
MAX_COSINES = 2**24
"""Cosines of decoder rows that are held at a time (64 MiB)."""


class ProbedReconstructions(NamedTuple):
    """What a linear head, trained on the images' original vectors, reads of the originals and of reconstructions.

    An image's vector is the mean of the tokens that the SAE reads, as it is; MSAE's code scales it to unit norm.

    n_images, n_classes: that were read, and that the head chooses from; 0: there is no head.
    accuracy, accuracy_reconstructed: share of images whose class is predicted.
    agreement: share of images of which both predictions are the same.
    kl_nats: mean of KL(p of the original || p of the reconstruction).
    """

    n_images: int = 0
    n_classes: int = 0
    accuracy: float = np.nan
    accuracy_reconstructed: float = np.nan
    agreement: float = np.nan
    kl_nats: float = np.nan


class DecoderGeometry(NamedTuple):
    """How far the rows of a decoder point in different directions; rows of zeros count nowhere.

    orthogonality: mean of the squared cosine of two rows, 0..1, small is orthogonal (MSAE; its code counts each row and
        itself as 0, which is (n - 1) / n of this). Rows at random have 1 / d_in.
    least: what n rows have at least, (n - d_in) / (d_in (n - 1)) or 0 (Welch).
    n_zero_rows: how many are all zeros.
    """

    orthogonality: float
    least: float
    n_zero_rows: int


@dataclass(frozen=True)
class QualityResult:
    """What is known of an SAE beside `FidelityResult`, on test tokens.

    n_tokens: drawn, on which CKNNA and the curve over k are measured.
    cknna: of the tokens, less the SAE's `centre` (ours: MSAE's evaluation leaves the mean in), and of their latent
        activations times the norms of the decoder rows. cknna_unit: of the same rows scaled to unit norm (Huh et al.),
        to which no token of large norm is the nearest of all.
    orthogonality, least_orthogonality, n_zero_rows: see `DecoderGeometry`.
    has_own_k: whether the curve goes on beyond the SAE's own code, see `progressive`.
    ks: [n_ks] largest activations of a token that are kept, ascending; fvu, ..., l0: [n_ks] what follows, as in
        `FidelityResult`.
    nearest_row: [d_sae] largest cosine of a latent's decoder row with another's; NaN of rows of zeros, and where there
        are more latents than `MAX_COMPARED`.
    n_images, ..., kl_nats: see `ProbedReconstructions`.
    """

    n_tokens: int
    cknna: float
    cknna_unit: float
    orthogonality: float
    least_orthogonality: float
    n_zero_rows: int
    has_own_k: bool
    ks: Int64[np.ndarray, " n_ks"]
    fvu: Float64[np.ndarray, " n_ks"]
    fvu_per_token: Float64[np.ndarray, " n_ks"]
    cosine_raw: Float64[np.ndarray, " n_ks"]
    cosine_centred: Float64[np.ndarray, " n_ks"]
    l0: Float64[np.ndarray, " n_ks"]
    nearest_row: Float32[np.ndarray, " d_sae"]
    n_images: int = 0
    n_classes: int = 0
    accuracy: float = np.nan
    accuracy_reconstructed: float = np.nan
    agreement: float = np.nan
    kl_nats: float = np.nan

    def save(self, folder: Path) -> None:
        """Write `quality.npz` and `quality.json` into a folder."""
        save_result(folder, "quality", vars(self))

    @classmethod
    def load(cls, folder: Path) -> QualityResult:
        """Return what `save` wrote."""
        arrays, facts = load_result(folder, "quality")
        return cls(**arrays, **facts)


@dataclass(frozen=True)
class ImageHead:
    """A linear head that reads the mean of an image's original tokens.

    weight: [d_in, n_classes]; bias: [n_classes].
    strength: of its L2 penalty, chosen on training images held out. n_images: that it was trained on.
    """

    weight: Float32[np.ndarray, "d_in n_classes"]
    bias: Float32[np.ndarray, " n_classes"]
    strength: float
    n_images: int

    def save(self, folder: Path) -> None:
        """Write `image_head.npz` and `image_head.json` into a folder."""
        save_result(folder, "image_head", vars(self))

    @classmethod
    def load(cls, folder: Path) -> ImageHead:
        """Return what `save` wrote."""
        arrays, facts = load_result(folder, "image_head")
        return cls(**arrays, **facts)


class HeadTest(NamedTuple):
    """head: asked about every image; labels: of every row of the tokens, 0..n_classes - 1."""

    head: ImageHead
    labels: Int[np.ndarray, " n_rows"]


@torch.no_grad()
def measure_quality(
    sae: SparseAutoencoder,
    tokens: TokenSource,
    config: QualityConfig,
    reads: TokenChoice = TokenChoice.patch,
    probe: HeadTest | None = None,
    batch_images: int = 32,
    progress: Advance = ignore,
) -> QualityResult:
    """Return what is known of an SAE beside its fidelity, in one reading of the tokens of a split.

    Args:
        reads: which tokens the SAE was trained on.
        probe: None: no head is asked.
        batch_images: read at a time: changes nothing beyond rounding.
        progress: called with (images done, of so many).

    Raises:
        InputError: an SAE of other tokens, or as `find_neighbours`.
    """
    check_tokens(sae, tokens)
    check_edits(sae, reads is not TokenChoice.cls, reads is not TokenChoice.patch)
    x, means, means_hat = _read(sae, tokens, config, reads, probe is not None, batch_images, progress)
    z, deviations = _encode_rows(sae, x), x - sae.centre
    ks, geometry = config.choose_ks(sae.d_sae), measure_geometry(sae.W_dec)
    probed = ProbedReconstructions()
    if probe is not None:
        maps = LinearMaps(torch.from_numpy(probe.head.weight)[None], torch.from_numpy(probe.head.bias)[None])
        probed = compare_predictions(maps, means, means_hat, torch.from_numpy(np.asarray(probe.labels)))
    return QualityResult(
        n_tokens=len(x),
        cknna=compute_cknna(deviations, z, config.n_neighbours),
        cknna_unit=compute_cknna(scale_rows(deviations), scale_rows(z), config.n_neighbours),
        orthogonality=geometry.orthogonality,
        least_orthogonality=geometry.least,
        n_zero_rows=geometry.n_zero_rows,
        has_own_k=has_own_k(sae.activation),
        ks=np.array(ks, dtype=np.int64),
        **measure_progressive(sae, x, ks),
        nearest_row=find_nearest_rows(sae.W_dec),
        **probed._asdict(),
    )


def _read(
    sae: SparseAutoencoder,
    tokens: TokenSource,
    config: QualityConfig,
    reads: TokenChoice,
    with_means: bool,
    batch_images: int,
    progress: Advance,
) -> tuple[Float[Tensor, "n d_in"], Float[Tensor, "n_images d_in"], Float[Tensor, "n_images d_in"]]:
    """Return tokens drawn at random, on the SAE's device, and the mean of each image's tokens and of their
    reconstructions, on the CPU; without `with_means` these are empty and images without a drawn token are not read."""
    n_read = reads.count_read(tokens.grid**2, tokens.meta["n_prefix"])
    chosen = choose_rows(len(tokens) * n_read, config.n_tokens, config.seed)
    rows = np.arange(len(tokens)) if with_means else np.unique(chosen // n_read)
    of_image = np.searchsorted(chosen, np.arange(len(tokens) + 1) * n_read)
    drawn, means, means_hat, n_done = [], [], [], 0
    for batch, found in counted(Kind.reading, tokens.iterate(rows, batch_images)):
        x = take_tokens(found, reads).to(sae.W_dec.device, sae.mean.dtype)
        for image, row in zip(x, batch.tolist(), strict=True):
            places = chosen[of_image[row] : of_image[row + 1]] - row * n_read
            drawn.append(image[torch.from_numpy(places).to(x.device)])
        if with_means:
            means.append(x.mean(1).cpu())
            means_hat.append(GroupEditor(sae, x).x_hat.mean(1).cpu())
        progress(n_done := n_done + len(batch), len(rows))
    empty = [torch.zeros(0, sae.d_in)]
    return torch.cat(drawn), torch.cat(means or empty), torch.cat(means_hat or empty)


def _encode_rows(sae: SparseAutoencoder, x: Float[Tensor, "n d_in"]) -> csr_array:
    """Return the latent activations of tokens times the norms of the decoder rows, as sparse rows."""
    tokens, latents, values = (part.cpu() for part in sae.encode_entries(x))
    values = values * sae.W_dec.norm(dim=1).cpu()[latents]
    starts = np.searchsorted(tokens.numpy(), np.arange(len(x) + 1))
    return csr_array((values.numpy(), latents.numpy(), starts), shape=(len(x), sae.d_sae))


def mean_of_images(
    tokens: TokenSource, rows: Int[np.ndarray, " n"], reads: TokenChoice, batch_images: int, progress: Advance = ignore
) -> Float[Tensor, "n d_in"]:
    """Return the mean of the tokens that an SAE reads, of each of some images."""
    means, n_done = [], 0
    for batch, found in counted(Kind.reading, tokens.iterate(rows, batch_images)):
        means.append(take_tokens(found, reads).float().mean(1).cpu())
        progress(n_done := n_done + len(batch), len(rows))
    return torch.cat(means)


def compare_predictions(
    maps: LinearMaps,
    x: Float[Tensor, "n_images d_in"],
    x_hat: Float[Tensor, "n_images d_in"],
    labels: Int[Tensor, " n_images"],
) -> ProbedReconstructions:
    """Return what one head reads of vectors and of their reconstructions.

    Args:
        maps: of one head.
    """
    log_p, log_q = (F.log_softmax(maps(vectors[None])[0].double(), dim=-1) for vectors in (x, x_hat))
    original, reconstructed = log_p.argmax(-1), log_q.argmax(-1)
    means = [
        (original == labels).double().mean(),
        (reconstructed == labels).double().mean(),
        (original == reconstructed).double().mean(),
        (log_p.exp() * (log_p - log_q)).sum(-1).mean(),
    ]
    return ProbedReconstructions(len(x), log_p.shape[-1], *(mean.item() for mean in means))


@torch.no_grad()
def measure_geometry(W_dec: Float[Tensor, "d_sae d_in"]) -> DecoderGeometry:
    """Return how far the rows of a decoder point in different directions; time is linear in the latents.

    The sum over pairs of squared cosines is |D^T D|^2 of the unit rows D, less the rows themselves.
    """
    norms = W_dec.norm(dim=1)
    n, d_in = int((norms > 0).sum()), W_dec.shape[1]
    square = torch.zeros(d_in, d_in, dtype=torch.float64, device=W_dec.device)
    for rows in W_dec[norms > 0].split(max(1, MAX_COSINES // d_in)):
        unit = F.normalize(rows.double(), dim=1)
        square += unit.T @ unit
    n_pairs = n * (n - 1)
    mean = (square.square().sum().item() - n) / n_pairs if n_pairs else np.nan
    least = max(0.0, (n - d_in) / (d_in * (n - 1))) if n_pairs else np.nan
    return DecoderGeometry(max(mean, 0.0) if n_pairs else np.nan, least, len(W_dec) - n)


@torch.no_grad()
def find_nearest_rows(W_dec: Float[Tensor, "d_sae d_in"]) -> Float32[np.ndarray, " d_sae"]:
    """Return the largest cosine of each decoder row with another one, see `QualityResult.nearest_row`."""
    n, norms = len(W_dec), W_dec.norm(dim=1)
    nearest = np.full(n, np.nan, dtype=np.float32)
    known = (norms > 0).nonzero()[:, 0]
    if n > MAX_COMPARED or len(known) < 2:
        return nearest
    unit = F.normalize(W_dec[known].float(), dim=1)
    found = []
    for start in range(0, len(unit), size := max(1, MAX_COSINES // len(unit))):
        cosines = unit[start : start + size] @ unit.T
        own = torch.arange(len(cosines), device=unit.device)
        cosines[own, start + own] = -torch.inf
        found.append(cosines.amax(1))
    nearest[known.cpu().numpy()] = torch.cat(found).cpu().numpy()
    return nearest

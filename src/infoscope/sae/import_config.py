"""Where an SAE that exists lies, and what its file does not say. Plain Python, as `sae/config.py`."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Annotated, Any

from omegaconf import MISSING

from infoscope.runtime.bounds import Bounds, Count, FilePath, Positive, check
from infoscope.runtime.errors import InputError
from infoscope.sae.config import SAEConfig, TokenChoice, TokenNorm

IMPORT = "import"


class Statistics(Enum):
    """Where mean and scale of the training tokens come from: the file of the SAE, or the tokens of this run."""

    file = "file"
    estimate = "estimate"


@dataclass
class MatrixNames:
    """What a file calls the matrices of an SAE; a name that ends in .T is read transposed: W_enc: encoder.weight.T."""

    W_enc: str | None = None
    W_dec: str | None = None
    b_enc: str | None = None
    b_dec: str | None = None
    mean: str | None = None
    threshold: str | None = None

    def given(self) -> dict[str, str]:
        """Return those that are named, by our names."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass
class ImportedConfig(SAEConfig):
    """An SAE that exists already, in a file of ours or of another toolkit.

    What the file does not say is given here; what it says need not be. Settings that a file's reader has no use for are
    refused by name.
    """

    kind: str = IMPORT
    """What the SAE is, where its file does not say (relu, topk, ...); "import": as its file says."""
    path: FilePath = MISSING
    """The file or its folder, or hf:owner/name/folder@revision on the Hugging Face hub or in its cache."""
    format: str | None = None
    """Whose format it is in; null: by the names and shapes in it. "plain": any matrices, see `keys`."""
    keys: MatrixNames = field(default_factory=MatrixNames)
    """With format=plain: what the file calls the matrices."""
    k: Count | None = None
    """Active latents per token."""
    threshold: Annotated[float, Bounds(-1e30, 1e30)] | None = None
    """What activations must exceed; those of overcomplete, and of batchtopk of visaebench, may meet it."""
    soft_cap: Positive | None = None
    """The bound c of activations c tanh(z / c)."""
    token_norm: TokenNorm | None = None
    """With format=plain, or where a file of msae or prisma does not say it: how each token is normalised."""
    subtract_b_dec: bool | None = None
    """With format=plain: whether b_dec is subtracted before encoding; null: it is."""
    mean_file: FilePath | None = None
    """A file of the training tokens' mean [d_in] (.pt, .npy or .safetensors), where the SAE's own does not hold it."""
    scale: Positive | None = None
    """What tokens are multiplied by once the mean is subtracted: sqrt(d_in) over their mean distance from it."""
    statistics: Statistics = Statistics.file
    """estimate: mean and scale are those of the training tokens of this run, which stands in the report."""
    tokens: TokenChoice | None = None
    """Which tokens it was trained on, where its file does not say; null: as its file says, or patches."""
    ignore_origin: bool = False
    """Use it on another backbone, layer, site or choice of tokens than it was trained on; stands in the report."""

    def __post_init__(self) -> None:
        check(self, "sae")
        if not isinstance(self.subtract_b_dec, bool | None):
            raise InputError(f"Expected sae.subtract_b_dec to be true, false or null, got {self.subtract_b_dec!r}.")

    @property
    def unread(self) -> dict[str, str]:
        """The settings that are not read, and in words what would read them."""
        words = "by sae.format=plain alone: drop it, or give that"
        return {} if self.format == "plain" else dict.fromkeys(("keys", "subtract_b_dec"), words)

    @property
    def words(self) -> str:
        return f"{self.kind} {self.path}"

    def given(self) -> dict[str, Any]:
        """Return the settings that say something."""
        return {name: value for name, value in vars(self).items() if value is not None and value != MatrixNames()}

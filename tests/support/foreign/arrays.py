"""Random weights as other toolkits store them, and what an SAE makes of tokens, in float64 numpy."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from infoscope.sae.model import SparseAutoencoder
from infoscope.sae.source import Source

D_IN, D_SAE, K = 8, 24, 4

Array = NDArray[np.float64]
Norm = Callable[[Array], tuple[Array, Callable[[Array], Array]]]


class Reference(NamedTuple):
    """z [n, d_sae] and x_hat [n, d_in], float64."""

    z: Array
    x_hat: Array


class Weights(dict[str, NDArray[np.float32]]):
    """W_enc [d_in, d_sae], b_enc, W_dec [d_sae, d_in], b_dec, float32."""

    def double(self, name: str) -> Array:
        return self[name].astype(np.float64)

    def tensor(self, name: str, transpose: bool = False) -> torch.Tensor:
        """Return one in memory of its own, transposed as torch's linear layers have it."""
        return torch.from_numpy(np.array(self[name].T if transpose else self[name], order="C"))

    def as_dtype(self, dtype: torch.dtype) -> Weights:
        """Return them rounded to what a file of this type holds."""
        return Weights({name: torch.from_numpy(value).to(dtype).float().numpy() for name, value in self.items()})


def draw_weights(seed: int, unit_rows: bool = True, d_in: int = D_IN, d_sae: int = D_SAE) -> Weights:
    """Return random weights; without unit rows, decoder rows of norms between 0.3 and 3."""
    rng = np.random.default_rng(seed)
    W_dec = rng.normal(size=(d_sae, d_in))
    W_dec /= np.linalg.norm(W_dec, axis=1, keepdims=True)
    W_dec *= 1 if unit_rows else rng.uniform(0.3, 3, size=(d_sae, 1))
    W_enc = W_dec.T + 0.2 * rng.normal(size=(d_in, d_sae))
    arrays = {"W_enc": W_enc, "b_enc": 0.3 * rng.normal(size=d_sae), "W_dec": W_dec, "b_dec": rng.normal(size=d_in)}
    return Weights({name: value.astype(np.float32) for name, value in arrays.items()})


def draw_vector(seed: int, low: float = -1.0, high: float = 1.0, n: int = D_SAE) -> NDArray[np.float32]:
    """Return n float32 values between two bounds."""
    return np.random.default_rng(seed).uniform(low, high, size=n).astype(np.float32)


def draw_tokens(n: int = 40, d_in: int = D_IN, seed: int = 5) -> NDArray[np.float32]:
    """Return tokens [n, d_in], off centre, some far longer than others."""
    rng = np.random.default_rng(seed)
    tokens = rng.normal(size=(n, d_in)) * np.exp(0.7 * rng.normal(size=(n, 1))) + 0.8 * rng.normal(size=d_in)
    return tokens.astype(np.float32)


def relu(a: Array) -> Array:
    return np.maximum(a, 0)


def topk(a: Array, k: int = K) -> Array:
    """Keep the k largest of each row as they are, negative ones too."""
    order = np.argsort(-a, axis=1, kind="stable")[:, :k]
    kept = np.zeros_like(a)
    np.put_along_axis(kept, order, np.take_along_axis(a, order, 1), 1)
    return kept


def no_norm(x: Array) -> tuple[Array, Callable[[Array], Array]]:
    return x, lambda y: y


def layer_norm(x: Array) -> tuple[Array, Callable[[Array], Array]]:
    """Return tokens of mean 0 over their deviation + 1e-5, and what brings them back: without the 1e-5."""
    mean, std = x.mean(1, keepdims=True), x.std(1, ddof=1, keepdims=True)
    return (x - mean) / (std + 1e-5), lambda y: y * std + mean


def constant_norm(x: Array) -> tuple[Array, Callable[[Array], Array]]:
    """Return tokens of norm sqrt(d_in), and what brings them back."""
    factor = np.sqrt(x.shape[1]) / np.linalg.norm(x, axis=1, keepdims=True)
    return x * factor, lambda y: y / factor


def compute(w: Weights, act: Callable[[Array], Array] = relu, subtract: bool = True, norm: Norm = no_norm) -> Reference:
    """Return z = act((N(x) - [b_dec]) W_enc + b_enc) and N^-1(z W_dec + b_dec) of `draw_tokens`."""
    x_n, back = norm(draw_tokens(d_in=len(w["b_dec"])).astype(np.float64))
    inputs = x_n - w.double("b_dec") if subtract else x_n
    z = act(inputs @ w.double("W_enc") + w.double("b_enc"))
    return Reference(z, back(z @ w.double("W_dec") + w.double("b_dec")))


def measure_deviation(sae: SparseAutoencoder, reference: Reference) -> float:
    """Return the largest deviation of z and x_hat on `draw_tokens`, over the largest value of each."""
    x = torch.from_numpy(draw_tokens(d_in=sae.d_in))
    with torch.no_grad():
        found = sae.encode(x), sae(x).x_hat
    return max(
        float(np.abs(ours.double().numpy() - theirs).max() / np.abs(theirs).max())
        for ours, theirs in zip(found, reference, strict=True)
    )


def get_source(sae: SparseAutoencoder) -> Source:
    """Return what is known of the file that an SAE was read from."""
    assert sae.origin.source is not None
    return sae.origin.source

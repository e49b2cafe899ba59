"""Mean and scale of the tokens that an SAE was trained on, where they do not lie in its own file."""

from __future__ import annotations

from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from infoscope.runtime.errors import InputError
from infoscope.runtime.untrusted import read_checkpoint
from infoscope.runtime.untrusted.numpy_files import read_npy
from infoscope.sae.formats.base import Options, check_float, get_tensors


def settle_mean(options: Options, d_in: int) -> Float[Tensor, " d_in"] | None:
    """Return the mean in the file that the settings name; None where they name none.

    Raises:
        InputError: as `read_mean`.
    """
    path = options.get("mean_file")
    return None if path is None else read_mean(Path(path).expanduser(), d_in)


def read_mean(path: Path, d_in: int) -> Float[Tensor, " d_in"]:
    """Return the one vector of this length in a file (.pt, .npy, .safetensors).

    Raises:
        InputError: it cannot be read, or holds no such vector, or several.
    """
    if not path.is_file():
        raise InputError(f"expected sae.mean_file to be a file of the tokens' mean, and there is no {path}.")
    content = read_npy(path) if path.suffix == ".npy" else read_checkpoint(path).content
    tensors = [content] if isinstance(content, Tensor) else list(get_tensors(content).values())
    fitting = [tensor for tensor in tensors if tensor.numel() == d_in == tensor.shape[-1]]
    if len(fitting) != 1:
        got = ", ".join(str(list(tensor.shape)) for tensor in tensors) or "no tensor"
        raise InputError(f"expected one mean [{d_in}] in {path}, got {got}.")
    check_float(fitting[0], path.name)
    return fitting[0].reshape(d_in).float()

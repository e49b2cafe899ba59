"""What a file holds that no reader knows: refused where it may change what the SAE computes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from infoscope.runtime.errors import InputError
from infoscope.runtime.untrusted import list_keys
from infoscope.sae.formats.values import show

_MAX_NAME = 100
"""Letters of a setting's name: patterns of names take the square of their length."""
_COUNTS = {
    *("sparsity", "feature_counts", "act_freq_scores", "latents_activation_frequency", "activation_frequency"),
    *("n_forward_passes_since_fired", "num_batches_since_fired", "num_tokens_since_fired", "steps_since_fired"),
    *("stats_last_nonzero", "num_batches_tracked", "num_updates", "n_updates", "num_steps", "n_steps", "step", "steps"),
    *("total_samples", "num_samples", "n_samples"),
}
"""Names of what a training has counted, which no code depends on."""


def refuse_tensors(state: Mapping[str, Tensor], *known: str) -> None:
    """Refuse a state dict that holds more than a reader knows, counts aside: what it is for may change the code.

    Raises:
        InputError: so it is.
    """
    if unknown := sorted(name for name in state.keys() - set(known) if name not in _COUNTS):
        names = ", ".join(list_keys({name: state[name] for name in unknown}))
        raise InputError(f"it holds {names}, and what is done with that is not known.")


_TELLING = re.compile(
    r"\w*(norm|scal(e|ing)|cent(er|re|ring)|whiten|bias|threshold|top_?k|clamp|soft_?cap|skip|transcod|subtract|relu)\w*|"
    r"k|standardi[sz]\w*|((use|is|has|with)_)?(clip|residual|unit|l2|gated)|hidden_act|"
    r"(\w+_)?(mean|std|transform|multiplier|gain|temperature|cap)(_\w+)?|(sae_)?architecture|sae_(type|kind)|"
    r"(\w+_)?activation(_fn|_function|_fn_str|_fn_kwargs|_kwargs|_type)?|nonlinearity|apply_\w+|tied?(_\w+)?|signed|abs\w*"
)
"""Names of settings that change what is computed."""
_OF_TRAINING = re.compile(
    r"(\w+_)?(re)?(init(ial)?|initiali[sz]ation|loss|lr|learning|penalty|coeff|coefficient|grad|gradient|dead|feature_reinit)(_\w+)?|"
    r"(\w+_)?(ghost|noise|aux|auxk|warmup|resample|resampling|estimate|estimation)(_\w+)?|lp_norm|set_decoder_norm\w*|multi_top_?k|jumprelu_(tanh_scale|bandwidth)|"
    r"(set_|reset_)?norm(ali[sz]e)?_(sae_)?(w_)?dec(oder)?(_\w+)?"
)
"""Names of those among them that change a training alone: noise_scale, normalize_w_dec."""


_BIAS = re.compile(
    r"((apply|subtract|add|remove|use|with|has|no|tied?|pre|post|input|enc|encoder|dec|decoder|latent)_?)*"
    r"(bias(es)?|b_?(dec|pre|enc))(_(to|from)_\w+)?|pre_b"
)
"""Names that speak of a bias, of which false says as much as true."""
_RELU = re.compile(
    r"(?!(\w+_)?(no|without|disable|skip|jump\w*|leaky\w*|tanh\w*|soft|top_?k|log|store|cached?|save|load|clip|clamp|"
    r"\w*norm\w*|\w*scal\w+|cent\w+|whiten\w*|standardi\w+)_)"
    r"(\w+_)?(relu|activation(_fn|_function)?(_str|_type|_name)?|hidden_act|nonlinearity)"
    r"(_(on|to|of|in|after|before)_\w+)?"
)
"""Names that speak of the activation, of which false and "none" say that there is none; of jump_relu they do not."""
_SUBTRACTION = re.compile(
    r"(apply|subtract)_(b_dec|b_pre|((pre|dec|decoder)_)?bias)(_(to|from)_inputs?)?|((use|with|has)_)?pre_?bias"
)
"""Those that say whether b_dec is subtracted before encoding."""


def refuse_settings(config: Mapping[str, Any], *known: str, subtracts_b_dec: bool | None = None) -> None:
    """Refuse a configuration that sets what a reader does not know, and that by its name changes what is computed.

    Args:
        known: settings that the reader knows.
        subtracts_b_dec: what the reader does; a setting that says the same is none of those refused.

    Raises:
        InputError: with the first such setting.
    """
    for name, value in config.items():
        if not isinstance(name, str) or name in known:
            continue
        if len(name) > _MAX_NAME:
            raise InputError(f"its configuration has a name of {len(name):,} letters, {show(name)}: no toolkit's has.")
        is_bias = _BIAS.fullmatch(name.lower())
        is_same = isinstance(value, bool) and value is subtracts_b_dec and _SUBTRACTION.fullmatch(name.lower())
        is_off = not isinstance(value, Tensor) and value in (None, False, 0, "", "none", "None", "null", [], {})
        is_off &= not (_RELU.fullmatch(name.lower()) and (value is False or value in ("none", "None")))
        if not is_same and (is_bias or (_tells(name.lower()) and not is_off)):
            raise InputError(f"its configuration says {name}: {show(value)}, and what is done with that is not known.")


def _tells(name: str) -> bool:
    return bool(_TELLING.fullmatch(name)) and not _OF_TRAINING.fullmatch(name)

"""Which tokens an SAE was trained on, and whether it is used on the same: features of other tokens are no features."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any

from infoscope.runtime.bounds import Bounds, Pixels, check_settings
from infoscope.runtime.calls import convert
from infoscope.runtime.errors import InputError
from infoscope.sae.config import TokenChoice
from infoscope.sae.source import Source, check_source, check_text, check_types
from infoscope.vision.backbone import Backbone
from infoscope.vision.hooks import AT_END, POOLED, PROJECTED, RESID_POST
from infoscope.vision.names import BackboneName, find_backbone_name, name_fingerprint

if TYPE_CHECKING:
    from infoscope.sae.model import SparseAutoencoder

_HARMLESS = {"precision"}
"""Parts of a fingerprint that move tokens by rounding alone."""
_OF_WEIGHTS = {"weights", "model_cfg", "mean", "std"}
"""Parts of a fingerprint that go with the weights: the architecture's settings such as quick_gelu are among them."""
_LABELS = {"arch": "architecture", "kind": "family"}


@dataclass(frozen=True)
class Origin:
    """Which tokens an SAE was trained on; what is unknown compares with everything.

    layer: the block whose output it reads, as infoscope writes it counted from 0; None: unknown, or `POOLED`.
    backbone: fingerprint of the backbone; empty: unknown.
    image_px: side of the images that the backbone read; None: unknown.
    tokens: patches, every token, or CLS alone; None: unknown, or `POOLED`.
    site: where in the block: "resid_post", "mlp_out", ..., or behind the tower, as `POOLED`: one vector of an image or
        a text, which has no place in the picture; None: unknown, see `known_site`.
    source: of what another toolkit has trained; None: infoscope did.

    Raises:
        InputError: a layer or size that no model is run with (`ModelConfig`).
    """

    layer: Annotated[int, Bounds(-4096, 4096)] | None = None
    backbone: dict[str, Any] = field(default_factory=dict)
    image_px: Pixels | None = None
    tokens: TokenChoice | None = None
    site: str | None = None
    source: Source | None = None

    def __post_init__(self) -> None:
        check_settings(type(self), vars(self), "")
        if self.site == POOLED:  # an embedding is of no block, and no patch or CLS
            object.__setattr__(self, "layer", None)
            object.__setattr__(self, "tokens", None)

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON values, for `from_json`."""
        return {**asdict(self), "tokens": self.tokens and self.tokens.name}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Origin:
        """Return what `to_json` gave.

        Raises:
            AttributeError, KeyError, RecursionError, TypeError, ValueError: if it is something else, or holds text
                that is not printable.
        """
        check_text(values)
        tokens, source = values.get("tokens"), values.get("source")
        made = source and Source(**source)
        if made and isinstance(made.warnings, list):
            made = replace(made, warnings=tuple(made.warnings))
        origin = cls(**{**values, "tokens": tokens and TokenChoice[tokens], "source": made})
        check_types(origin)
        if made:
            check_source(made)
        return origin

    @classmethod
    def of(cls, backbone: Backbone, layer: int, tokens: TokenChoice | None = None) -> Origin:
        """Return the origin of an SAE that is trained on this backbone's tokens after a block.

        Raises:
            InputError: if the block does not exist.
        """
        return cls(backbone.check_layer(layer), backbone.fingerprint, backbone.image_px, tokens, backbone.site)

    @classmethod
    def of_tokens(cls, facts: object, tokens: TokenChoice | None = None) -> Origin:
        """Return the origin of an SAE that is trained on some tokens, as far as these know their own.

        Args:
            facts: a `TokenSource`; those of one's own name nothing, caches of an earlier infoscope no backbone.
        """
        meta: dict[str, Any] = getattr(facts, "meta", {})
        image_px = meta["grid"] * meta["patch_px"] if {"grid", "patch_px"} <= meta.keys() else None
        return cls(meta.get("layer"), meta.get("backbone", {}), image_px, tokens, meta.get("site"))

    @property
    def known_site(self) -> str | None:
        """Where in the block; of what infoscope trained, the residual stream unless another is noted."""
        is_ours = self.source is None and self.layer is not None
        return RESID_POST if self.site is None and is_ours else self.site


def choose_layer(
    sae: SparseAutoencoder, backbone: Backbone, layer: int | None = None, check_origin: bool = True
) -> int:
    """Return the block after which an SAE is to read a backbone's tokens, counted from 0.

    Precision is no mismatch: bfloat16 moves tokens by rounding alone.

    Args:
        layer: negative from the end; None: the one that the SAE was trained on.
        check_origin: False insists: any layer, and any backbone whose tokens have the width that the SAE reads.

    Raises:
        InputError: if the layer does not exist or is not known, or the SAE was trained on another width, layer or
            backbone than those given.
    """
    if backbone.d_in != sae.d_in:
        raise InputError(
            f"This SAE reads tokens of width {sae.d_in}, and this backbone gives tokens of width {backbone.d_in}: load"
            " the backbone that the SAE was trained on."
        )
    origin = sae.origin
    if check_origin and origin.site == POOLED and backbone.site not in AT_END:
        raise InputError(
            "This SAE reads pooled embeddings, and this backbone gives the tokens of a block: read it at"
            ' model.site=pooled (from Python backbone.read_at("pooled")).'
        )
    asked = -1 if layer is None and backbone.site in AT_END else origin.layer if layer is None else layer
    if asked is None:
        raise InputError(
            "This SAE does not know which block it reads, for its file does not say: give layer=, 0-based or"
            " negative from the end."
        )
    chosen = backbone.check_layer(convert("layer", asked, int))
    if not check_origin:
        return chosen
    given = Origin.of(backbone, chosen)
    names = _find_other_name(origin, name_fingerprint(backbone.fingerprint))
    different = "; ".join([*_find_differences(origin, given), *names, *_find_other_site(origin, given)])
    is_resized = origin.image_px not in (None, given.image_px)
    if different:
        raise InputError(
            f"This SAE was trained on another backbone than the one given: {different}. Load the one it was trained on"
            f"{f' (image_px={origin.image_px})' if is_resized else ''}, or insist with check_origin=False."
        )
    if origin.layer is not None and origin.layer not in (chosen, chosen - backbone.n_layers):
        raise InputError(
            f"This SAE was trained on the tokens after block {origin.layer}, and layer={layer} is block {chosen} of"
            f" {backbone.n_layers}: leave out layer=, or insist with check_origin=False."
        )
    return chosen


def find_mismatches(origin: Origin, given: Origin, n_layers: int | None, name: BackboneName | None) -> list[str]:
    """Return in what the tokens of a run are other ones than an SAE was trained on, in words, as far as both are known.

    Args:
        given: the run's; its layer may be negative.
        n_layers: blocks of the run's backbone; None: not known, and both layers count from the same end.
        name: of the run's backbone; None: it has none.
    """
    found = [*_find_other_name(origin, name), *_find_differences(origin, given), *_find_other_site(origin, given)]
    if None not in (origin.tokens, given.tokens) and origin.tokens is not given.tokens:
        found.append(f"{origin.tokens.name} tokens, given {given.tokens.name}")  # pyright: ignore[reportOptionalMemberAccess]
    return found + list(_find_other_layer(origin.layer, given.layer, n_layers))


def _find_other_layer(trained: int | None, given: int | None, n_layers: int | None) -> Iterator[str]:
    if trained is None or given is None:
        return
    if n_layers is not None and not -n_layers <= trained < n_layers:
        yield f"block {trained}, which a model of {n_layers} blocks does not have"
    elif (trained % n_layers != given % n_layers) if n_layers else (trained != given):
        yield f"block {trained}, given block {given} (model.layer={trained} is its own)"


def _find_other_site(trained: Origin, given: Origin) -> Iterator[str]:
    sites = trained.known_site, given.known_site
    if None not in sites and sites[0] != sites[1] and sites != (POOLED, PROJECTED):
        yield f"tokens at {sites[0]}, given those at {sites[1]}"


def _find_other_name(trained: Origin, name: BackboneName | None) -> Iterator[str]:
    """Yield both backbones where an SAE's file names one that is known to be another than the run's."""
    said = trained.source and trained.source.backbone
    known = find_backbone_name(said) if said else None
    if known is None or name is None:
        return
    is_same = known[:2] == name[:2] and (known.tag == name.tag or not known.tag or not name.tag)
    if not is_same:
        yield f"backbone {said}, given {name}"


def check_tokens(sae: SparseAutoencoder, *sources: object, other_weights: bool = False) -> None:
    """Refuse tokens of another layer or backbone than the SAE was trained on, as far as both are known.

    Args:
        other_weights: tokens of other weights are meant, with the activation, mean and std that go with them.

    Raises:
        InputError: if there are such tokens.
    """
    for given in map(Origin.of_tokens, sources):
        layers = [layer for layer in (sae.origin.layer, given.layer) if layer is not None and layer >= 0]
        different = [f"block {layers[0]}, given block {layers[1]}"] if len(set(layers)) > 1 else []
        different += _find_differences(sae.origin, given, _OF_WEIGHTS if other_weights else set())
        if different:
            raise InputError(
                f"This SAE was trained on other tokens than those given: {'; '.join(different)}. Give those of its"
                " layer and backbone."
            )


def check_has_maps(origin: Origin, site: str | None = None) -> None:
    """Refuse an SAE whose features have no place in the picture.

    Args:
        site: where the tokens are read that it is given; None: where those were that it was trained on. Those of
            `PROJECTED` patches are the bridge of pooled ones.

    Raises:
        InputError: one that is given CLS tokens alone, or pooled embeddings.
    """
    if POOLED in (site, origin.site) and site != PROJECTED:
        raise InputError(
            "This SAE reads pooled embeddings, one vector for each image or text, so its features have no place in the"
            " picture, which scores and all that rests on them need: read patch tokens, or ask for stage=describe,"
            " quality, name, steer, attribute or latents, which do without. Applied to each patch as the model would"
            " embed it, it has scores (ours: stage=score sae=import sae.path=... model.site=projected), but no"
            " predictions go on from there; from Python, sae.encode(embeddings) works."
        )
    check_reads_patches(origin)


def check_reads_patches(origin: Origin) -> None:
    """Refuse an SAE of CLS tokens alone: what is measured on all images reads patches, or pooled embeddings.

    Raises:
        InputError: such an SAE.
    """
    if origin.tokens is TokenChoice.cls:
        instead = "use one of sae.tokens=patch or all" if origin.source is None else "use an SAE of patch tokens"
        raise InputError(
            f"An SAE of CLS tokens has no activation maps to score: {instead}; from Python, sae.encode(cls_tokens) and"
            " sae.decode work."
        )


def lacks_statistics(origin: Origin) -> bool:
    """Whether an SAE wants tokens of mean 0 and another scale, whose mean and scale nobody has given."""
    return origin.source is not None and bool(origin.source.facts.get("needs_statistics"))


def check_statistics(origin: Origin) -> None:
    """Refuse an SAE that `lacks_statistics`.

    Raises:
        InputError: such an SAE.
    """
    if lacks_statistics(origin):
        raise InputError(
            "This SAE was trained on tokens from which a mean was subtracted and that were scaled, and its file holds"
            " neither: give sae.mean_file= and sae.scale=, or on the command line sae.statistics=estimate to take those"
            " of the run's training tokens."
        )


def check_edits(sae: SparseAutoencoder, edits_patches: bool, edits_prefix: bool) -> None:
    """Refuse to edit other tokens than the SAE was trained on.

    Raises:
        InputError: if patches or prefix are to be edited and it was not trained on them, or the reverse.
    """
    tokens = sae.origin.tokens
    expected = tokens is not TokenChoice.cls, tokens is not TokenChoice.patch
    if tokens is not None and expected != (edits_patches, edits_prefix):
        raise InputError(
            f"This SAE was trained with sae.tokens={tokens.name}: expected edits_patches={expected[0]} and"
            f" edits_prefix={expected[1]}, got {edits_patches} and {edits_prefix}."
        )


def _find_differences(trained: Origin, given: Origin, but: Collection[str] = ()) -> Iterator[str]:
    """Yield what of a backbone, its layer and some parts of its fingerprint aside, is not as an SAE was trained on."""
    is_known = None not in (trained.image_px, given.image_px)
    if is_known and trained.image_px != given.image_px:
        yield f"images of {trained.image_px} px, given {given.image_px} px"
    then, now = (json.loads(json.dumps(origin.backbone)) for origin in (trained, given))  # tuples become lists
    if not then or not now:
        return
    names = [name for name in {**then, **now} if then.get(name) != now.get(name) and name not in {*_HARMLESS, *but}]
    if "kind" in names:
        names = ["kind"]  # families share no other part
    for name in names:
        if name == "model_cfg":  # a hash, which says nothing to people
            if trained.image_px == given.image_px:
                yield "other settings of the architecture such as quick_gelu"
            elif not is_known:
                yield "other architecture, image size or quick_gelu"
        elif name != "image_px" or not is_known:
            hint = " (hashes of files: the same weights in another format are another file)" * (name == "weights")
            yield f"{_LABELS.get(name, name)} {_shorten(then.get(name))}, given {_shorten(now.get(name))}{hint}"


def _shorten(value: Any) -> str:
    """Return a part of a fingerprint for display: of a hash its beginning."""
    text = "none" if value is None else str(value)
    return f"{text[:19]}..." if text.startswith("sha256:") else text

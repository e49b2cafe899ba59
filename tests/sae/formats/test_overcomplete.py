"""SAEs of overcomplete: whole modules, which say what they are, and state dicts, which do not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from infoscope.runtime.errors import InputError
from infoscope.sae.loading import load_sae
from tests.support.foreign.arrays import (
    D_IN,
    D_SAE,
    K,
    Reference,
    Weights,
    draw_tokens,
    draw_vector,
    draw_weights,
    measure_deviation,
    relu,
    topk,
)
from tests.support.foreign.pickled import Package, package

W = draw_weights(4, unit_rows=False)
LOGS = draw_vector(4, -1.5, 0.5)
N_POINTS = 12


def make_encoder(made: Package, final=nn.ReLU, layers=(), blocks=0, name="MLPEncoder"):
    encoder, linear = made.make_class(f"overcomplete.sae.modules.{name}")(), nn.Linear(D_IN, D_SAE)
    linear.weight.data, linear.bias.data = W.tensor("W_enc", transpose=True), W.tensor("b_enc")
    encoder.mlp_blocks = nn.ModuleList([nn.Linear(D_IN, D_IN) for _ in range(blocks)])
    encoder.final_block = nn.Sequential(linear, *(layers or [nn.Identity()]))
    encoder.final_activation = final()
    encoder.norm_layer, encoder.output_activation = nn.Identity, final
    return encoder


def make_dictionary(made: Package, normalize="normalize_l2", multiplier=0.3, name="dictionary.DictionaryLayer"):
    layer = made.make_class(f"overcomplete.sae.{name}")()
    layer._weights = nn.Parameter(W.tensor("W_dec"))
    layer.register_buffer("multiplier", torch.tensor(multiplier))
    layer.in_dimensions, layer.nb_concepts, layer.device, layer._fused_dictionary = D_IN, D_SAE, "cpu", None
    module = "dictionary" if normalize.startswith("normalize_") else "custom"
    layer.normalization = made.make_function(f"overcomplete.sae.{module}.{normalize}")
    return layer


def draw_archetypes() -> Weights:
    rng = np.random.default_rng(6)
    relax = rng.normal(size=(D_SAE, D_IN)) * rng.choice([0, 0.05, 1], size=(D_SAE, 1))
    arrays = {"W": rng.normal(size=(D_SAE, N_POINTS)), "C": rng.normal(size=(N_POINTS, D_IN)), "Relax": relax}
    return Weights({name: value.astype(np.float32) for name, value in arrays.items()})


def make_archetypes(made: Package, delta=0.5, multiplier=0.3):
    layer = made.make_class("overcomplete.sae.archetypal_dictionary.RelaxedArchetypalDictionary")()
    for name in ("W", "Relax"):
        setattr(layer, name, nn.Parameter(draw_archetypes().tensor(name)))
    layer.register_buffer("C", draw_archetypes().tensor("C"))
    layer.multiplier = nn.Parameter(torch.tensor(multiplier))
    layer.delta, layer._fused_dictionary = delta, None
    return layer


def mix(delta, multiplier=0.3):
    A = draw_archetypes()
    shares = relu(A.double("W"))
    norms = np.linalg.norm(A.double("Relax"), axis=1, keepdims=True)
    factors = np.minimum(1, np.divide(delta, norms, out=np.ones_like(norms), where=norms > 0))
    D = (shares / (shares.sum(1, keepdims=True) + 1e-8)) @ A.double("C") + A.double("Relax") * factors
    return D * np.exp(multiplier)


def normalise(kind):
    D = W.double("W_dec")
    l1, l2 = np.abs(D).sum(1, keepdims=True), np.linalg.norm(D, axis=1, keepdims=True)
    by = {"l2": l2, "l1": l1, "max_l2": l2.max(), "max_l1": l1.max(), "identity": 1.0}
    return D / by[kind]


def refer(act, D) -> Reference:
    z = act(relu(draw_tokens().astype(np.float64) @ W.double("W_enc") + W.double("b_enc")))
    return Reference(z, z @ D)


def save(
    path,
    made: Package,
    name="topk_sae.TopKSAE",
    encoder=None,
    dictionary=None,
    package_name="overcomplete.sae",
    **attrs,
):
    model = made.make_class(f"{package_name}.{name}")()
    model.nb_concepts, model.device, model.fitted = D_SAE, "cpu", True
    model.encoder = encoder or make_encoder(made)
    model.dictionary = dictionary or make_dictionary(made)
    for key, value in attrs.items():
        setattr(model, key, value)
    torch.save(model, path / "sae.pth")
    return model


def at_least(threshold):
    return lambda z: z * (z >= threshold)


CASES = {
    "SAE": ("base.SAE", {}, lambda z: z, "relu"),
    "TopKSAE": ("topk_sae.TopKSAE", {"top_k": K}, topk, "topk"),
    "BatchTopKSAE": (
        "batchtopk_sae.BatchTopKSAE",
        {"top_k": 512 * K, "running_threshold": torch.tensor(0.75), "threshold_momentum": 0.9},
        at_least(0.75),
        "batchtopk",
    ),
    "untracked 0": (
        "batchtopk_sae.BatchTopKSAE",
        {"top_k": 8, "running_threshold": torch.tensor(0.0)},
        lambda z: z,
        "batchtopk",
    ),
    "JumpSAE": (
        "jump_sae.JumpSAE",
        {"thresholds": nn.Parameter(torch.from_numpy(LOGS)), "bandwidth": torch.tensor(1e-3)},
        at_least(np.exp(LOGS.astype(np.float64))),
        "jumprelu",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_whole_module_is_what_its_class_says(tmp_path, case):
    name, attributes, act, kind = CASES[case]
    with package() as made:
        if kind == "jumprelu":
            attributes = {**attributes, "kernel_fn": made.make_function("overcomplete.sae.kernels.silverman_kernel")}
        save(tmp_path, made, name, **attributes)
    sae = load_sae(tmp_path)
    assert measure_deviation(sae, refer(act, normalise("l2") * np.exp(0.3))) < 1e-5
    source = sae.origin.source
    assert source is not None
    assert (source.format, source.kind, source.warnings) == ("overcomplete", kind, ())
    assert source.facts.get("k") == (K if kind == "topk" else None)
    assert source.facts.get("threshold") == (float(attributes["running_threshold"]) if kind == "batchtopk" else None)


def test_a_threshold_is_met_and_need_not_be_exceeded(tmp_path):
    z = refer(lambda z: z, normalise("l2")).z.astype(np.float32)
    sorted_z = np.sort(z[z > 0])
    threshold = torch.tensor(float(sorted_z[len(sorted_z) // 2]))
    with package() as made:
        save(tmp_path, made, "batchtopk_sae.BatchTopKSAE", running_threshold=threshold, top_k=K)
    activation = load_sae(tmp_path).activation
    values = torch.stack([threshold, torch.nextafter(threshold, torch.tensor(0.0)), threshold * 2])[None]
    assert (activation.dense(values) > 0).tolist() == [[True, False, True]]


@pytest.mark.parametrize("kind", ["l2", "l1", "max_l2", "max_l1", "identity"])
def test_rows_are_normalised_as_the_dictionary_does(tmp_path, kind):
    with package() as made:
        save(tmp_path, made, dictionary=make_dictionary(made, f"normalize_{kind}", multiplier=-0.4), top_k=K)
    assert measure_deviation(load_sae(tmp_path), refer(topk, normalise(kind) * np.exp(-0.4))) < 1e-5


def test_a_fused_dictionary_is_used_as_it_is_in_eval_mode_alone(tmp_path):
    fused = torch.from_numpy(normalise("l2").astype(np.float32) * 2)
    for training, D in ((False, normalise("l2") * 2), (True, normalise("l2") * np.exp(0.3))):
        with package() as made:
            dictionary = make_dictionary(made)
            dictionary._fused_dictionary, dictionary.training = fused, training
            save(tmp_path, made, dictionary=dictionary, top_k=K)
        assert measure_deviation(load_sae(tmp_path), refer(topk, D)) < 1e-5


@pytest.mark.parametrize("name", ["rasae.RATopKSAE", "rasae.RAJumpSAE", "topk_sae.TopKSAE"])
def test_archetypes_are_mixed(tmp_path, name):
    thresholds = {"thresholds": nn.Parameter(torch.from_numpy(LOGS))} if "Jump" in name else {"top_k": K}
    with package() as made:
        save(tmp_path, made, name, dictionary=make_archetypes(made), **thresholds)
    act = at_least(np.exp(LOGS.astype(np.float64))) if "Jump" in name else topk
    assert measure_deviation(load_sae(tmp_path), refer(act, mix(delta=0.5))) < 1e-5


@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize("has_bias", [True, False])
def test_an_encoder_may_be_tied_to_the_dictionary(tmp_path, is_tied, has_bias):
    with package() as made:
        encoder, dictionary = made.make_class("overcomplete.sae.modules.TieableEncoder")(), make_dictionary(made)
        encoder.tied_to = dictionary if is_tied else None
        encoder.weight = None if is_tied else nn.Parameter(W.tensor("W_enc", transpose=True))
        encoder.bias = nn.Parameter(W.tensor("b_enc")) if has_bias else None
        for part in ("weight", "bias"):
            if getattr(encoder, part) is None:
                delattr(encoder, part)
                encoder.register_parameter(part, None)
        model = save(tmp_path, made, encoder=encoder, dictionary=dictionary, top_k=K)
    D = normalise("l2") * np.exp(0.3)
    W_enc, b_enc = D.T if is_tied else W.double("W_enc"), W.double("b_enc") * has_bias
    z = topk(relu(draw_tokens().astype(np.float64) @ W_enc + b_enc))
    assert measure_deviation(load_sae(tmp_path), Reference(z, z @ D)) < 1e-5
    torch.save(model.state_dict(), tmp_path / "state.pth")
    assert measure_deviation(load_sae(tmp_path / "state.pth", k=K), Reference(z, z @ D)) < 1e-5


@pytest.mark.parametrize("name", ["qsae.QSAE", "mp_sae.MpSAE", "omp_sae.OMPSAE"])
def test_other_classes_are_refused_by_name(tmp_path, name):
    with package() as made:
        save(tmp_path, made, name, top_k=K)
    with pytest.raises(InputError, match=rf"overcomplete\.sae\.{name}"):
        load_sae(tmp_path)


def test_other_things_of_the_package_are_refused_by_name(tmp_path):
    with package() as made:
        save(tmp_path, made, "nmf.NMF", package_name="overcomplete.optimization")
    with pytest.raises(InputError, match=r"overcomplete\.optimization\.nmf\.NMF"):
        load_sae(tmp_path)


@pytest.mark.parametrize(
    ("change", "say"),
    [
        ({"layers": [nn.BatchNorm1d(D_SAE)]}, "BatchNorm"),
        ({"layers": [nn.LayerNorm(D_SAE)]}, r"final_block\.1"),
        ({"layers": [nn.LayerNorm(D_SAE, elementwise_affine=False)]}, "LayerNorm"),
        ({"layers": [nn.Identity(), nn.Tanh()]}, "Tanh"),
        ({"blocks": 1}, "mlp_blocks"),
        ({"final": nn.GELU}, "GELU"),
        ({"name": "ResNetEncoder"}, "ResNetEncoder"),
    ],
)
def test_other_encoders_are_refused(tmp_path, change, say):
    with package() as made:
        save(tmp_path, made, encoder=make_encoder(made, **change), top_k=K)
    with pytest.raises(InputError, match=say):
        load_sae(tmp_path)


@pytest.mark.parametrize(
    ("change", "say"),
    [
        ({"normalize": "normalize_softmax"}, "normalize_softmax"),
        ({"normalize": "mine"}, "mine"),
        ({"name": "dictionary.OtherLayer"}, "OtherLayer"),
    ],
)
def test_other_dictionaries_are_refused(tmp_path, change, say):
    with package() as made:
        save(tmp_path, made, dictionary=make_dictionary(made, **change), top_k=K)
    with pytest.raises(InputError, match=say):
        load_sae(tmp_path)


def test_a_module_that_never_trained_needs_its_threshold(tmp_path):
    with package() as made:
        save(tmp_path, made, "batchtopk_sae.BatchTopKSAE", top_k=K, running_threshold=None)
    with pytest.raises(InputError, match="running_threshold"):
        load_sae(tmp_path)
    D = normalise("l2") * np.exp(0.3)
    assert measure_deviation(load_sae(tmp_path, threshold=0.5), refer(at_least(0.5), D)) < 1e-5


# ---- state dicts


def save_state(path, name="topk_sae.TopKSAE", dictionary=None, wrap=None, prefix="", **attributes):
    with package() as made:
        state = save(path, made, name, dictionary=dictionary and dictionary(made), **attributes).state_dict()
    (path / "sae.pth").unlink()
    state = {f"{prefix}{key}": value for key, value in state.items()}
    torch.save(wrap(state) if wrap else state, path / "state.pth")
    return path


@pytest.mark.parametrize(
    ("options", "act", "kind"),
    [
        ({"k": K}, topk, "topk"),
        ({"k": K, "kind": "topk"}, topk, "topk"),
        ({"threshold": 0.75}, at_least(0.75), "batchtopk"),
        ({"threshold": 0.75, "kind": "batchtopk"}, at_least(0.75), "batchtopk"),
        ({"kind": "relu"}, lambda z: z, "relu"),
    ],
)
def test_of_a_state_dict_the_class_is_given(tmp_path, options, act, kind):
    sae = load_sae(save_state(tmp_path, top_k=K), **options)
    assert measure_deviation(sae, refer(act, normalise("l2") * np.exp(0.3))) < 1e-5
    assert sae.origin.source is not None
    assert sae.origin.source.kind == kind
    assert "far from unit" in sae.origin.source.warnings[0]


@pytest.mark.parametrize("options", [{}, {"k": K, "threshold": 0.5}, {"kind": "jumprelu"}])
def test_a_state_dict_does_not_say_its_class(tmp_path, options):
    with pytest.raises(InputError, match="BatchTopKSAE"):
        load_sae(save_state(tmp_path), **options)


@pytest.mark.parametrize("options", [{"kind": "topk"}, {"kind": "batchtopk"}, {"kind": "relu", "k": K}])
def test_half_an_answer_is_refused(tmp_path, options):
    with pytest.raises(InputError, match=r"k=|threshold="):
        load_sae(save_state(tmp_path), **options)


def test_thresholds_in_a_state_dict_say_its_class(tmp_path):
    path = save_state(tmp_path, "jump_sae.JumpSAE", thresholds=nn.Parameter(torch.from_numpy(LOGS)))
    reference = refer(at_least(np.exp(LOGS.astype(np.float64))), normalise("l2") * np.exp(0.3))
    assert measure_deviation(load_sae(path), reference) < 1e-5
    with pytest.raises(InputError, match="JumpSAE"):
        load_sae(path, kind="relu")


@pytest.mark.parametrize("prefix", ["module.", "sae.", "_orig_mod.module."])
def test_a_state_dict_may_lie_in_a_checkpoint_of_a_wrapped_model(tmp_path, prefix):
    def wrap(state):
        return {"epoch": 3, "model_state_dict": state, "optimizer_state_dict": {"state": {}}, "lr": 0.1}

    path = save_state(tmp_path, prefix=prefix, wrap=wrap)
    assert measure_deviation(load_sae(path, k=K), refer(topk, normalise("l2") * np.exp(0.3))) < 1e-5


def test_beside_something_unknown_a_state_dict_is_not_taken_out(tmp_path):
    path = save_state(tmp_path, wrap=lambda state: {"state_dict": state, "input_scale": 3.0})
    with pytest.raises(InputError, match="no known format"):
        load_sae(path, k=K)


def test_a_state_dict_of_archetypes_is_of_the_default_delta(tmp_path):
    relaxed = {"dictionary": lambda made: make_archetypes(made, delta=1.0)}
    with pytest.raises(InputError, match="delta"):
        load_sae(save_state(tmp_path, **relaxed), k=K)  # rows beyond 1 were cut by another delta

    def shorten(state):
        lengths = state["dictionary.Relax"].norm(dim=1, keepdim=True)
        return {**state, "dictionary.Relax": state["dictionary.Relax"] / lengths.clamp_min(1)}

    sae = load_sae(save_state(tmp_path, wrap=shorten, **relaxed), k=K)
    assert measure_deviation(sae, refer(topk, mix(delta=1.0))) < 1e-5
    assert sae.origin.source is not None
    assert "delta" in sae.origin.source.warnings[0]


@pytest.mark.parametrize(
    ("extra", "say"),
    [
        ({"Q": torch.linspace(0, 1, 4)}, "QSAE"),
        ({"encoder.final_block.1.running_mean": torch.zeros(D_SAE)}, "UniversalSAE"),
        ({"encoder.mlp_blocks.0.0.weight": torch.zeros(D_IN, D_IN)}, "mlp_blocks"),
        ({"pre_bias": torch.zeros(D_IN)}, "pre_bias"),
    ],
)
def test_state_dicts_of_other_models_are_refused(tmp_path, extra, say):
    with pytest.raises(InputError, match=say):
        load_sae(save_state(tmp_path, wrap=lambda state: state | extra), **({} if say == "UniversalSAE" else {"k": K}))


def test_a_matching_pursuit_has_no_encoder(tmp_path):
    torch.save(
        {"dictionary._weights": W.tensor("W_dec"), "dictionary.multiplier": torch.tensor(0.0)}, tmp_path / "s.pt"
    )
    with pytest.raises(InputError, match="matching pursuit"):
        load_sae(tmp_path)

"""Uni-Mol2's forward pass in plain formulas over a checkpoint's own tensor names, one molecule at a time.

Slow on purpose: every formula of the paper stands as it is written, the outer product in full. It imports nothing of
this package, so agreement of the two shows that the conversion maps every tensor to its place.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

HEAD_DIM = 16


class _Weights:
    """Checkpoint tensors with the handful of operations that read them."""

    def __init__(self, tensors: Mapping[str, Tensor], prefix: str = "") -> None:
        self.tensors, self.prefix = tensors, prefix

    def under(self, prefix: str) -> "_Weights":
        return _Weights(self.tensors, f"{self.prefix}{prefix}.")

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[self.prefix + name]

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self[f"{name}.weight"], self.tensors.get(f"{self.prefix}{name}.bias"))

    def norm(self, name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self[f"{name}.weight"], self[f"{name}.bias"], 1e-5)

    def mlp(self, name: str, x: Tensor) -> Tensor:
        return self.linear(f"{name}.linear_2", F.gelu(self.linear(f"{name}.linear_1", x)))


@torch.no_grad()
def reference_forward(
    weights: Mapping[str, Tensor], head: Mapping[str, Tensor], batch: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Outputs of one unpadded molecule: atoms (n+1, D), pairs (n+1, n+1, P), and each head that has weights.

    Args:
        weights: encoder and pretraining heads under the reference's names, float32.
        head: the task head's `dense` and `out_proj`, or empty.
        batch: the feature extractor's output for one molecule.
    """
    w = _Weights(weights)
    inputs = {name: value[0] for name, value in batch.items()}
    x, p = _embed(w, inputs)
    x, p = w.norm("encoder.layer_norm", x), w.norm("encoder.pair_layer_norm", p)
    layers = {name.split(".")[2] for name in weights if name.startswith("encoder.layers.")}
    for layer in range(len(layers)):
        x, p = _layer(w.under(f"encoder.layers.{layer}"), x, p)
    outputs = {"atoms": x, "pairs": p}
    if "lm_head.weight" in weights:
        hidden = F.gelu(w.linear("lm_head.dense", w.norm("lm_head.layer_norm", x[1:])))
        outputs["token_logits"] = w.linear("lm_head", hidden)
    if "movement_pred_head.q_proj.weight" in weights:
        outputs["coordinates"] = _move(w.under("movement_pred_head"), x[1:], p[1:, 1:], inputs["coordinates"])
        outputs["distances"] = torch.cdist(outputs["coordinates"], outputs["coordinates"])
    if head:
        outputs["head"] = _task_head(_Weights(head), x[0])
    return outputs


def _embed(w: _Weights, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    atoms = w["embed_tokens.weight"][inputs["input_ids"]]
    atoms = atoms + w["atom_feature.atom_encoder.weight"][inputs["atom_features"].long()].sum(-2)
    atoms = atoms + w["atom_feature.degree_encoder.weight"][inputs["degrees"].long()]
    x = torch.cat((w["atom_feature.vnode_encoder.weight"], atoms))
    pairs = w["edge_feature.shorest_path_encoder.weight"][inputs["shortest_paths"].long()]
    pairs = pairs + w["edge_feature.edge_encoder.weight"][inputs["edge_features"].long()].mean(-2)
    pairs = pairs + _distance_term(w.under("se3_invariant_kernel"), inputs)
    length = len(x)
    p = w["edge_feature.vnode_virtual_distance.weight"].expand(length, length, -1).clone()
    p[1:, 1:] = pairs
    return x, p


def _distance_term(w: _Weights, inputs: Mapping[str, Tensor]) -> Tensor:
    r, types = inputs["coordinates"], inputs["pair_types"].long()
    distances = (r[:, None] - r[None]).square().sum(-1).sqrt()
    scale = w["gaussian.mul.weight"][types, 0].abs().sum(-1)
    shift = w["gaussian.bias.weight"][types, 0].sum(-1)
    means = w["gaussian.mean"]
    width = means[1] - means[0]
    u = (scale * distances + shift).unsqueeze(-1)
    basis = torch.exp(-0.5 * ((u - means) / width) ** 2) / (math.sqrt(2 * 3.14159) * width)
    return w.linear("out_proj.layer2", F.gelu(w.linear("out_proj.layer1", basis)))


def _layer(w: _Weights, x: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    x = x + _attention(w.under("self_attn"), w.norm("self_attn_layer_norm", x), p)
    x = x + w.mlp("ffn", w.norm("final_layer_norm", x))
    p = p + _outer_product(w.under("opm"), w.norm("x_layer_norm_opm", x))
    p = p + _triangle(w.under("pair_tri_mul"), w.norm("pair_layer_norm_trimul", p))
    return x, p + w.mlp("pair_ffn", w.norm("pair_layer_norm_ffn", p))


def _heads(x: Tensor) -> Tensor:
    return x.view(len(x), -1, HEAD_DIM).transpose(0, 1)


def _attention(w: _Weights, x: Tensor, p: Tensor) -> Tensor:
    q, k, v = (_heads(w.linear(f"linear_{part}", x)) for part in "qkv")
    logits = (q * HEAD_DIM**-0.5) @ k.transpose(1, 2) + w.linear("linear_bias", p).permute(2, 0, 1)
    return w.linear("linear_o", (logits.softmax(-1) @ v).transpose(0, 1).reshape(x.shape))


def _outer_product(w: _Weights, x: Tensor) -> Tensor:
    a, b = w.linear("linear_in", x).chunk(2, dim=-1)
    length = len(x)
    outer = (a[:, None, :, None] * b[None, :, None, :]).flatten(2)
    return w.linear("linear_out", outer / length) / (1e-3 + 1 / length)


def _triangle(w: _Weights, q: Tensor) -> Tensor:
    u = w.linear("linear_ab_p", q) * len(q) ** -0.5 * w.linear("linear_ab_g", q).sigmoid()
    a, b = u.chunk(2, dim=-1)
    s = torch.einsum("ikc,jkc->ijc", a, b) + torch.einsum("kic,kjc->ijc", a, b)
    return w.linear("linear_g", q) * w.linear("linear_z", w.norm("layer_norm_out", s))


def _move(w: _Weights, x: Tensor, p: Tensor, r: Tensor) -> Tensor:
    normed = w.norm("layer_norm", x)
    q, k, v = (_heads(w.linear(f"{part}_proj", normed)) for part in "qkv")
    logits = (q * HEAD_DIM**-0.5) @ k.transpose(1, 2) + w.linear("linear_bias", w.norm("pair_layer_norm", p)).permute(
        2, 0, 1
    )
    differences = r[None, :] - r[:, None]
    per_axis = torch.einsum("hij,ija,hjc->iahc", logits.softmax(-1), differences, v).flatten(2)
    return r + w.linear("force_proj1", per_axis).squeeze(-1)


def _task_head(w: _Weights, cls: Tensor) -> Tensor:
    if "dense.weight" in w.tensors:
        cls = torch.tanh(w.linear("dense", cls))
    return w.linear("out_proj", cls)

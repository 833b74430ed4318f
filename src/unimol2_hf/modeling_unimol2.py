"""Uni-Mol2: a two-track transformer over atoms and atom pairs with 3D coordinates (arXiv 2406.14969).

Shapes: B molecules, N atoms after padding, S = N + 1 positions with the CLS at 0, D the atom width, P the pair width,
H heads, d the inner width of the outer product and the triangle update.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import ModelOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple
from transformers.utils.output_capturing import OutputRecorder, capture_outputs
from transformers.utils.versions import require_version

from .configuration_unimol2 import BINARY, KERNEL, MULTICLASS, REGRESSION, UniMol2Config
from .ops_unimol2 import dropout_add, mean_of_atoms, normal_quantile, outer_product, pairwise_distances, triangle_sums
from .settings_unimol2 import IGNORE_INDEX

# Whoever loads this file from the Hub has no installer that compares versions.
require_version("transformers>=5.14", "Before, its attention leaves out the pair bias: all numbers would be wrong.")

ReadOut = Literal["pairs", "atoms", "layers", "cls"]

NUM_FEATURE_ROWS = 512
NUM_DEGREE_ROWS = 128
NUM_BOND_ROWS = 64
NUM_PATH_ROWS = 512
NUM_PAIR_TYPE_ROWS = 512

# The reference writes pi as 3.14159; its published weights were trained with that.
GAUSSIAN_NORM = math.sqrt(2 * 3.14159)
OUTER_PRODUCT_EPS = 1e-3
SMALL_PAIR_WIDTH = 64

# Of descriptors and kernel heads, in the training molecules' standard deviations.
LARGEST_FEATURE = 5.0
NUM_QUANTILES = 200
SMALLEST_RANK = 1e-3  # 3.1 standard deviations of a normal distribution


@dataclass
class UniMol2ModelOutput(ModelOutput):
    """Output of `UniMol2Model`.

    Args:
        last_hidden_state: (B, S, D), the CLS first.
        pooler_output: (B, D), the CLS.
        pair_hidden_state: (B, S, S, P).
        hidden_states: on request, num_hidden_layers + 1 tensors (B, S, D), the layers' input first.
        pair_hidden_states: on request, num_hidden_layers + 1 tensors (B, S, S, P), the layers' input first.
        attentions: on request (eager attention only), num_hidden_layers tensors (B, H, S, S).
        mean_hidden_state: (B, S, D), the mean over the layers' input and all layers; for `read_out="layers"` only.
    """

    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    pair_hidden_state: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    pair_hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    mean_hidden_state: Tensor | None = None


@dataclass
class UniMol2PreTrainingOutput(ModelOutput):
    """Output of `UniMol2ForPreTraining`.

    Args:
        loss: sum of the losses, where targets were given.
        token_loss: cross entropy over masked atoms, nats.
        coordinate_loss: L1 of the coordinates, angstrom (arXiv 2406.14969, section 3).
        distance_loss: L1 of the distances, angstrom.
        graph_losses: (blocks of graph targets,), smooth L1 of standardised targets.
        token_logits: (B, N, vocab_size).
        predicted_coordinates: (B, N, 3), angstrom, float32.
        predicted_distances: (B, N, N), angstrom, float32.
        predicted_graph_targets: (2, B, T) float32, standardised: read from the CLS, and from the mean of the atoms.
        hidden_states, pair_hidden_states, attentions: see `UniMol2ModelOutput`.
    """

    loss: Tensor | None = None
    token_loss: Tensor | None = None
    coordinate_loss: Tensor | None = None
    distance_loss: Tensor | None = None
    graph_losses: Tensor | None = None
    token_logits: Tensor | None = None
    predicted_coordinates: Tensor | None = None
    predicted_distances: Tensor | None = None
    predicted_graph_targets: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    pair_hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class UniMol2PropertyOutput(ModelOutput):
    """Output of `UniMol2ForPropertyPrediction`.

    Args:
        loss: mean over the labels that are present: of regression targets on standardised labels, of binary ones binary
            cross entropy, of multiclass ones cross entropy, each times its weights.
        logits: (B, num_labels) float32, outputs in the order of `config.output_names`: of a regression target the value
            in its own units, of a binary one the logit of the positive class, of a multiclass one a logit a class.
        hidden_states, pair_hidden_states, attentions: see `UniMol2ModelOutput`.
        member_logits: (B, members, num_labels) float32, of which `logits` is the mean; where a kernel head has members.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    pair_hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    member_logits: Tensor | None = None


class UniMol2AtomEmbeddings(nn.Module):
    """Element, graph features and degree of each atom, summed; the CLS in front."""

    def __init__(self, config: UniMol2Config) -> None:
        super().__init__()
        width, padding = config.hidden_size, config.pad_token_id
        self.atom_embeddings = nn.Embedding(config.vocab_size, width, padding_idx=padding)
        self.feature_embeddings = nn.Embedding(NUM_FEATURE_ROWS, width, padding_idx=padding)
        self.degree_embeddings = nn.Embedding(NUM_DEGREE_ROWS, width, padding_idx=padding)
        self.cls_embedding = nn.Parameter(torch.empty(1, width))

    def forward(self, input_ids: Tensor, atom_features: Tensor, degrees: Tensor) -> Tensor:
        atoms = self.feature_embeddings(atom_features.long()).sum(-2)
        atoms = atoms + self.degree_embeddings(degrees.long()) + self.atom_embeddings(input_ids.long())
        cls = self.cls_embedding.to(atoms.dtype).expand(atoms.shape[0], 1, -1)
        return torch.cat((cls, atoms), dim=1)


class UniMol2Float32Linear(nn.Linear):
    """A linear map in float32, also in a half-precision model and under autocast."""

    def forward(self, input: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.float()
        return F.linear(input.float(), self.weight.float(), bias)


class UniMol2DistanceEmbedding(nn.Module):
    """Gaussian basis of interatomic distances with a learned affine map for each pair type; float32 throughout."""

    def __init__(self, config: UniMol2Config) -> None:
        super().__init__()
        self.num_gaussians = config.num_gaussians
        self.gaussian_max = float(config.gaussian_max_angstrom)
        self.scale_embeddings = nn.Embedding(NUM_PAIR_TYPE_ROWS, 1, padding_idx=0)
        self.shift_embeddings = nn.Embedding(NUM_PAIR_TYPE_ROWS, 1, padding_idx=0)
        self.linear_1 = UniMol2Float32Linear(config.num_gaussians, config.num_gaussians)
        self.linear_2 = UniMol2Float32Linear(config.num_gaussians, config.pair_hidden_size)

    def forward(self, coordinates: Tensor, pair_types: Tensor) -> Tensor:
        # Also under autocast: half precision cannot resolve a bond length.
        with torch.autocast(coordinates.device.type, enabled=False):
            basis = self._basis(coordinates.detach().float(), pair_types.long())
            return self.linear_2(F.gelu(self.linear_1(basis)))

    def _basis(self, coordinates: Tensor, pair_types: Tensor) -> Tensor:
        distances = pairwise_distances(coordinates)
        scale = self.scale_embeddings(pair_types).float().abs().sum((-2, -1))
        shift = self.shift_embeddings(pair_types).float().sum((-2, -1))
        means = torch.linspace(0.0, self.gaussian_max, self.num_gaussians, device=coordinates.device)
        width = self.gaussian_max / (self.num_gaussians - 1)
        deviations = ((scale * distances + shift).unsqueeze(-1) - means) / width
        return torch.exp(-0.5 * deviations * deviations) / (GAUSSIAN_NORM * width)


class UniMol2PairEmbeddings(nn.Module):
    """Shortest path, bond and distance of each atom pair, summed; the CLS row and column in front."""

    def __init__(self, config: UniMol2Config) -> None:
        super().__init__()
        width, padding = config.pair_hidden_size, config.pad_token_id
        self.shortest_path_embeddings = nn.Embedding(NUM_PATH_ROWS, width, padding_idx=padding)
        self.bond_embeddings = nn.Embedding(NUM_BOND_ROWS, width, padding_idx=padding)
        self.distance_embedding = UniMol2DistanceEmbedding(config)
        self.cls_embedding = nn.Parameter(torch.empty(1, width))

    def forward(self, edge_features: Tensor, shortest_paths: Tensor, pair_types: Tensor, coordinates: Tensor) -> Tensor:
        pairs = self.shortest_path_embeddings(shortest_paths.long())
        # One column at a time: a (B, N, N, 3, P) tensor is never built.
        columns = [self.bond_embeddings(column) for column in edge_features.long().unbind(-1)]
        pairs = pairs + (columns[0] + columns[1] + columns[2]) / 3
        pairs = pairs + self.distance_embedding(coordinates, pair_types).to(pairs.dtype)
        return self._with_cls(pairs)

    def _with_cls(self, pairs: Tensor) -> Tensor:
        batch, atoms, _, width = pairs.shape
        cls = self.cls_embedding.to(pairs.dtype).view(1, 1, 1, width)
        pairs = torch.cat((cls.expand(batch, atoms, 1, width), pairs), dim=2)
        return torch.cat((cls.expand(batch, 1, atoms + 1, width), pairs), dim=1)


def eager_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    position_bias: Tensor | None = None,
    **kwargs: Unpack[TransformersKwargs],
) -> tuple[Tensor, Tensor]:
    scores = torch.matmul(query * scaling, key.transpose(-1, -2))
    if position_bias is not None:
        scores = scores + position_bias
    if attention_mask is not None:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    weights = F.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = F.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


class UniMol2Attention(nn.Module):
    """Multi-head attention of the atom track, biased by the (unnormalised) pair track."""

    def __init__(self, config: UniMol2Config) -> None:
        super().__init__()
        self.config = config
        self.head_dim = config.head_dim
        self.scaling = self.head_dim**-0.5
        self.dropout = float(config.attention_probs_dropout_prob)
        self.is_causal = False
        self.qkv_proj = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.pair_bias_proj = nn.Linear(config.pair_hidden_size, config.num_attention_heads)

    def forward(
        self,
        hidden_states: Tensor,
        pair_states: Tensor,
        attention_mask: Tensor,
        cls_only: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[Tensor, Tensor | None]:
        """Attend from every position, or from the CLS alone."""
        batch, length, width = hidden_states.shape
        heads = self.qkv_proj(hidden_states).view(batch, length, 3, -1, self.head_dim)
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        if cls_only:
            query, pair_states = query[:, :, :1], pair_states[:, :1]
        interface: Callable[..., tuple[Tensor, Tensor | None]] = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        output, weights = interface(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.dropout if self.training else 0.0,
            scaling=self.scaling,
            position_bias=self.pair_bias_proj(pair_states).permute(0, 3, 1, 2),
            **kwargs,
        )
        return self.o_proj(output.reshape(batch, -1, width)), weights


class UniMol2FeedForward(nn.Module):
    """Two linear maps with the activation between; used by both tracks."""

    def __init__(self, config: UniMol2Config, width: int, inner_width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, inner_width)
        self.activation = ACT2FN[config.hidden_act]
        self.dropout = nn.Dropout(config.activation_dropout_prob)
        self.fc2 = nn.Linear(inner_width, width)

    def forward(self, states: Tensor) -> Tensor:
        return self.fc2(self.dropout(self.activation(self.fc1(states))))


class UniMol2OuterProductProjection(nn.Module):
    """W vec(a_i (x) b_j) for all pairs.

    No `nn.Linear`, whose input is one tensor: what wraps all of those (LoRA, quantisation) must leave it alone.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features))

    def forward(self, left: Tensor, right: Tensor, bias_scale: Tensor, residual: Tensor | None = None) -> Tensor:
        """Pairs (B, S, S, P) from left and right (B, S, d), added to the residual if one is given.

        The bias is multiplied by bias_scale (B, 1, 1, 1).
        """
        return outer_product(left, right, self.weight, self.bias * bias_scale, residual)


class UniMol2OuterProduct(nn.Module):
    """Atom track to pair track: z_ij = (W vec(a_i (x) b_j) / M + bias) / (1e-3 + 1/M)."""

    def __init__(self, config: UniMol2Config) -> None:
        super().__init__()
        self.in_proj = nn.Linear(config.hidden_size, 2 * config.pair_inner_size)
        self.out_proj = UniMol2OuterProductProjection(config.pair_inner_size**2, config.pair_hidden_size)

    def forward(
        self, hidden_states: Tensor, token_mask: Tensor, lengths: Tensor, residual: Tensor | None = None
    ) -> Tensor:
        left, right = (self.in_proj(hidden_states) * token_mask).chunk(2, dim=-1)
        left = left / (1 + OUTER_PRODUCT_EPS * lengths).to(left.dtype).view(-1, 1, 1)
        bias_scale = (1 / (OUTER_PRODUCT_EPS + 1 / lengths)).to(left.dtype).view(-1, 1, 1, 1)
        return self.out_proj(left, right, bias_scale, residual)


class UniMol2TriangleUpdate(nn.Module):
    """Pair track over triangles of atoms: s_ij = sum_k a_ik b_jk + sum_k a_ki b_kj, both directions summed.

    The output gate is linear, without the usual sigmoid; so are the published weights.
    """

    def __init__(self, config: UniMol2Config) -> None:
        super().__init__()
        inner, width = config.pair_inner_size, config.pair_hidden_size
        self.split_sizes = (2 * inner, 2 * inner, width)
        self.in_proj = nn.Linear(width, sum(self.split_sizes))
        self.norm = nn.LayerNorm(inner, eps=config.layer_norm_eps)
        self.out_proj = nn.Linear(inner, width)

    def forward(
        self,
        pair_states: Tensor,
        token_mask: Tensor,
        lengths: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """The gate and the update (B, S, S, P) that it multiplies."""
        edges, edge_gates, output_gate = self.in_proj(pair_states).split(self.split_sizes, dim=-1)
        # Channels first, so that each is one matrix product.
        left, right = (edges * edge_gates.sigmoid()).permute(3, 0, 1, 2).chunk(2)
        # Both sums run over a of a padded atom, so masking a is enough; and one factor carries both M^-1/2.
        scale = token_mask / lengths.to(token_mask.dtype).view(-1, 1, 1)
        left = (left * (scale * token_mask.transpose(1, 2))).flatten(0, 1)
        sums = triangle_sums(left, right.flatten(0, 1))
        sums = sums.unflatten(0, (-1, pair_states.shape[0])).permute(1, 2, 3, 0)
        return output_gate, self.out_proj(self.norm(sums))


class UniMol2ResidualDropout(nn.Dropout):
    """residual + dropout(update)."""

    def forward(self, residual: Tensor, update: Tensor) -> Tensor:  # type: ignore[override]
        return dropout_add(residual, update, self.p if self.training else 0.0)


class UniMol2Layer(GradientCheckpointingLayer):
    """One two-track layer: attention, feed-forward, outer product, triangle update, pair feed-forward."""

    def __init__(self, config: UniMol2Config) -> None:
        super().__init__()
        width, pair_width, eps = config.hidden_size, config.pair_hidden_size, float(config.layer_norm_eps)
        self.attention_norm = nn.LayerNorm(width, eps=eps)
        self.attention = UniMol2Attention(config)
        self.mlp_norm = nn.LayerNorm(width, eps=eps)
        self.mlp = UniMol2FeedForward(config, width, config.intermediate_size or width)
        self.outer_product_norm = nn.LayerNorm(width, eps=eps)
        self.outer_product = UniMol2OuterProduct(config)
        self.triangle_norm = nn.LayerNorm(pair_width, eps=eps)
        self.triangle = UniMol2TriangleUpdate(config)
        self.pair_mlp_norm = nn.LayerNorm(pair_width, eps=eps)
        self.pair_mlp = UniMol2FeedForward(config, pair_width, pair_width)
        self.add_with_dropout = UniMol2ResidualDropout(config.hidden_dropout_prob)
        self.pair_dropout = nn.Dropout(config.pair_dropout_prob)

    def forward(
        self,
        hidden_states: Tensor,
        pair_states: Tensor,
        attention_mask: Tensor,
        token_mask: Tensor,
        lengths: Tensor,
        read_out: ReadOut = "pairs",
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[Tensor, Tensor]:
        """Both tracks after the layer, no more of them than is read later."""
        cls_only = read_out == "cls"
        normed = self.attention_norm(hidden_states)
        attended, _ = self.attention(normed, pair_states, attention_mask, cls_only=cls_only, **kwargs)
        hidden_states = self.add_with_dropout(hidden_states[:, :1] if cls_only else hidden_states, attended)
        hidden_states = self.add_with_dropout(hidden_states, self.mlp(self.mlp_norm(hidden_states)))
        if read_out != "pairs":
            return hidden_states + self._no_pair_update(), pair_states
        return hidden_states, self._update_pairs(hidden_states, pair_states, token_mask, lengths)

    def _no_pair_update(self) -> Tensor | float:
        """Zero, of zero gradient for each weight of the pair update that nobody reads.

        A parameter without any gradient stops DistributedDataParallel, adapters (LoRA) on these weights too.
        """
        if not torch.is_grad_enabled():
            return 0.0
        parts = (
            self.outer_product_norm, self.outer_product, self.triangle_norm, self.triangle, self.pair_mlp_norm,
            self.pair_mlp,
        )  # fmt: skip
        trained = [each for part in parts for each in part.parameters() if each.requires_grad]
        return sum((each.flatten()[0] * 0.0 for each in trained), start=0.0)

    def _update_pairs(self, hidden_states: Tensor, pair_states: Tensor, token_mask: Tensor, lengths: Tensor) -> Tensor:
        atoms = self.outer_product_norm(hidden_states)
        if self.training and self.add_with_dropout.p > 0:
            pair_states = self.add_with_dropout(pair_states, self.outer_product(atoms, token_mask, lengths))
        else:
            pair_states = self.outer_product(atoms, token_mask, lengths, residual=pair_states)
        if self._recomputes_triangles():
            # Of a layer's parts it keeps the most memory for what it costs to run again.
            pair_states = checkpoint(
                self._add_triangles,
                pair_states,
                token_mask,
                lengths,
                use_reentrant=False,
                preserve_rng_state=self.pair_dropout.p > 0,
            )
        else:
            pair_states = self._add_triangles(pair_states, token_mask, lengths)
        update = self.pair_mlp(self.pair_mlp_norm(pair_states))
        if (self.training and self.add_with_dropout.p > 0) or update.dtype != pair_states.dtype:
            return self.add_with_dropout(pair_states, update)
        # Added onto the fresh tensor: the pair track is too large to allocate once more.
        return update.add_(pair_states)

    def _add_triangles(self, pair_states: Tensor, token_mask: Tensor, lengths: Tensor) -> Tensor:
        gate, triangles = self.triangle(self.triangle_norm(pair_states), token_mask, lengths)
        triangles = self._dropout_shared_by_rows(triangles).to(pair_states.dtype)
        return torch.addcmul(pair_states, gate.to(pair_states.dtype), triangles)

    def _recomputes_triangles(self) -> bool:
        """Whether the backward pass makes the triangle block again; a checkpointed layer does so as a whole.

        Small models have the memory, and save a tenth of a step.
        """
        wanted = self.training and torch.is_grad_enabled() and not torch.compiler.is_compiling()
        return wanted and not self.gradient_checkpointing and self.triangle.out_proj.out_features > SMALL_PAIR_WIDTH

    def _dropout_shared_by_rows(self, pair_states: Tensor) -> Tensor:
        if not self.training:
            return pair_states
        return pair_states.mul_(self.pair_dropout(torch.ones_like(pair_states[:, :1])))


class UniMol2PreTrainedModel(PreTrainedModel):
    """Weight initialisation, and what every Uni-Mol2 model tells Transformers about itself."""

    config_class = UniMol2Config
    config: UniMol2Config
    base_model_prefix = "unimol2"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False
    _no_split_modules: ClassVar[list[str]] = ["UniMol2Layer", "UniMol2AtomEmbeddings", "UniMol2PairEmbeddings"]
    _supports_sdpa = True
    _can_compile_fullgraph = True
    # Heads of another task come with many checkpoints.
    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [
        r"^(token_head|coordinate_head|graph_target_head|classifier)\."
    ]
    _keep_in_fp32_modules_strict: ClassVar[list[str]] = ["distance_embedding", "descriptor_scale", "kernel"]
    _can_record_outputs: ClassVar[dict[str, Any]] = {
        "hidden_states": UniMol2Layer,
        "pair_hidden_states": [
            OutputRecorder(nn.LayerNorm, layer_name="pair_layer_norm"),
            OutputRecorder(UniMol2Layer, index=1),
        ],
        "attentions": UniMol2Attention,
    }

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, UniMol2AtomEmbeddings | UniMol2PairEmbeddings):
            init.normal_(module.cls_embedding, mean=0.0, std=self.config.initializer_range)
        elif isinstance(module, UniMol2OuterProductProjection | UniMol2ForceProjection):
            init.normal_(module.weight, mean=0.0, std=self.config.initializer_range)
            if isinstance(module, UniMol2OuterProductProjection):
                init.zeros_(module.bias)
        elif isinstance(module, UniMol2KernelHead):
            for parameter in (module.centers, module.weights):
                init.normal_(parameter, mean=0.0, std=1.0)
            for parameter in (module.mean, module.bias):
                init.zeros_(parameter)
            init.ones_(module.std)
            init.constant_(module.widths, float(module.centers.shape[-1]))
        elif isinstance(module, UniMol2DescriptorScale):
            steps = torch.special.ndtri(torch.linspace(0, 1, NUM_QUANTILES).clamp(SMALLEST_RANK, 1 - SMALLEST_RANK))
            init.copy_(module.quantiles, steps.expand_as(module.quantiles))


class UniMol2Model(UniMol2PreTrainedModel):
    """The two-track encoder without a head.

    All integer inputs may be of any integer type; see `UniMol2FeatureExtractor` for how they are made.
    """

    def __init__(self, config: UniMol2Config) -> None:
        super().__init__(config)
        self.embeddings = UniMol2AtomEmbeddings(config)
        self.pair_embeddings = UniMol2PairEmbeddings(config)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.pair_layer_norm = nn.LayerNorm(config.pair_hidden_size, eps=config.layer_norm_eps)
        self.layers = nn.ModuleList(UniMol2Layer(config) for _ in range(config.num_hidden_layers))
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embeddings.atom_embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.embeddings.atom_embeddings = value

    # fmt: off
    @capture_outputs
    def forward(
        self, input_ids: Tensor, atom_features: Tensor, degrees: Tensor, edge_features: Tensor, shortest_paths: Tensor,
        pair_types: Tensor, coordinates: Tensor, attention_mask: Tensor | None = None,
        read_out: ReadOut = "pairs", **kwargs: Unpack[TransformersKwargs],
    ) -> UniMol2ModelOutput:
        # fmt: on
        """Encode a padded batch.

        Args:
            input_ids: (B, N) atomic numbers; 0 pads, 127 masks.
            atom_features: (B, N, 8).
            degrees: (B, N).
            edge_features: (B, N, N, 3).
            shortest_paths: (B, N, N).
            pair_types: (B, N, N, 2).
            coordinates: (B, N, 3), angstrom. No gradient flows back through the distances.
            attention_mask: (B, N), 1 for atoms; by default the atoms whose token is not padding.
            read_out: what the caller will read, so that the last layer computes no more: "pairs" is everything;
                "atoms" leaves `pair_hidden_state` None; "layers" moreover gives `mean_hidden_state`; "cls" leaves
                `last_hidden_state` (B, 1, D), the CLS alone. Recording any states computes everything.
            **kwargs: `output_hidden_states`, `output_pair_hidden_states`, `output_attentions`, `return_dict`.
        """
        if read_out not in get_args(ReadOut):
            raise ValueError(f"read_out is {read_out!r}; use one of {', '.join(get_args(ReadOut))}")
        if not torch.compiler.is_compiling():
            _check_shapes(input_ids, atom_features, degrees, edge_features, shortest_paths, pair_types, coordinates)
        if attention_mask is None:
            attention_mask = input_ids.ne(self.config.pad_token_id)
        # The CLS in front is always there.
        mask = F.pad(attention_mask.bool(), (1, 0), value=True)
        hidden_states = self.layer_norm(self.embeddings(input_ids, atom_features, degrees))
        pair_states = self.pair_layer_norm(self.pair_embeddings(edge_features, shortest_paths, pair_types, coordinates))
        token_mask = mask.unsqueeze(-1).to(hidden_states.dtype)
        lengths = self._normalizing_lengths(mask)
        key_mask = mask[:, None, None, :]
        of_last = "pairs" if self._records_states(kwargs) else read_out
        summed = hidden_states
        for layer in self.layers:
            needed = of_last if layer is self.layers[-1] else "pairs"
            hidden_states, pair_states = layer(
                hidden_states, pair_states, key_mask, token_mask, lengths, needed, **kwargs
            )
            if read_out == "layers":
                summed = summed + hidden_states
        return UniMol2ModelOutput(
            last_hidden_state=hidden_states,
            pooler_output=hidden_states[:, 0],
            pair_hidden_state=pair_states if of_last == "pairs" else None,
            mean_hidden_state=summed / (1 + len(self.layers)) if read_out == "layers" else None,
        )

    def _records_states(self, kwargs: Mapping[str, Any]) -> bool:
        flags = (f"output_{name}" for name in self._can_record_outputs)
        return any(kwargs.get(flag, getattr(self.config, flag, False)) for flag in flags)

    def _normalizing_lengths(self, mask: Tensor) -> Tensor:
        """M of every molecule (B,), float32: its own length with the CLS, or the padded one on request."""
        lengths = mask.sum(-1, dtype=torch.float32)
        if self.config.length_normalizer == "padded":
            lengths = torch.full_like(lengths, mask.shape[-1])
        return lengths


# Trailing dimensions of each input after (B, N), in the order of `UniMol2Model.forward`.
_TRAILING = ((), (8,), (), ("N", 3), ("N",), ("N", 2), (3,))


def _check_shapes(input_ids: Tensor, *others: Tensor) -> None:
    """Raise `ValueError` for inputs that PyTorch would broadcast or cut into an answer of no meaning."""
    names = ("input_ids", "atom_features", "degrees", "edge_features", "shortest_paths", "pair_types", "coordinates")
    for name, tensor, trailing in zip(names, (input_ids, *others), _TRAILING, strict=True):
        sizes = tuple(input_ids.shape[-1] if size == "N" else size for size in trailing)
        if input_ids.ndim != 2 or tensor.shape != (*input_ids.shape, *sizes):
            raise ValueError(f"{name} is of shape {tuple(tensor.shape)}, not {(*input_ids.shape, *sizes)}")


class UniMol2PredictionHead(nn.Module):
    """What is predicted from a vector: of an atom its element, of a molecule its standardised graph targets."""

    def __init__(self, config: UniMol2Config, inner_width: int, num_outputs: int) -> None:
        super().__init__()
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dense = nn.Linear(config.hidden_size, inner_width)
        self.activation = ACT2FN[config.hidden_act]
        self.decoder = nn.Linear(inner_width, num_outputs)

    def forward(self, vectors: Tensor) -> Tensor:
        return self.decoder(self.activation(self.dense(self.layer_norm(vectors))))


class UniMol2ForceProjection(nn.Module):
    """A map of concatenated attention heads to one number, kept apart for each head; no `nn.Linear` either."""

    def __init__(self, in_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1, in_features))

    def forward(self, value: Tensor) -> Tensor:
        """Contributions (B, H, N) of values (B, H, N, head_dim); their sum over heads is the linear map."""
        return (value * self.weight.view(1, value.shape[1], 1, value.shape[-1])).sum(-1)


class UniMol2CoordinateHead(nn.Module):
    """Rotation-equivariant shift of each atom: attention-weighted differences to the other atoms."""

    def __init__(self, config: UniMol2Config) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.pair_norm = nn.LayerNorm(config.pair_hidden_size, eps=config.layer_norm_eps)
        self.qkv_proj = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.pair_bias_proj = nn.Linear(config.pair_hidden_size, config.num_attention_heads)
        self.force_proj = UniMol2ForceProjection(config.hidden_size)
        self.dropout = nn.Dropout(config.attention_probs_dropout_prob)

    def forward(self, atoms: Tensor, pairs: Tensor, coordinates: Tensor, attention_mask: Tensor) -> Tensor:
        """Predicted coordinates (B, N, 3) float32 from atoms (B, N, D), pairs (B, N, N, P) and a mask (B, N)."""
        batch, length, _ = atoms.shape
        heads = self.qkv_proj(self.layer_norm(atoms)).view(batch, length, 3, -1, self.head_dim)
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        weights = self._attention_weights(query, key, pairs, attention_mask)
        # The projection is linear, so each value shrinks to one number before it meets the coordinates.
        pulls = (weights * self.force_proj(value).float().unsqueeze(-2)).sum(1)
        coordinates = coordinates.float()
        differences = coordinates.unsqueeze(1) - coordinates.unsqueeze(2)
        return coordinates + (pulls.unsqueeze(-1) * differences).sum(2)

    def _attention_weights(self, query: Tensor, key: Tensor, pairs: Tensor, attention_mask: Tensor) -> Tensor:
        scores = torch.matmul(query * self.head_dim**-0.5, key.transpose(-1, -2))
        scores = scores + self.pair_bias_proj(self.pair_norm(pairs)).permute(0, 3, 1, 2)
        scores = scores.float().masked_fill(~attention_mask.bool()[:, None, None, :], torch.finfo(torch.float32).min)
        return self.dropout(F.softmax(scores, dim=-1))


class UniMol2GraphTargetHead(nn.Module):
    """Graph targets from the CLS and, by weights of its own, from the mean of the atoms: both learn to describe all."""

    def __init__(self, config: UniMol2Config) -> None:
        super().__init__()
        self.cls = UniMol2PredictionHead(config, config.graph_head_size, config.num_graph_targets)
        self.mean = UniMol2PredictionHead(config, config.graph_head_size, config.num_graph_targets)

    def forward(self, states: Tensor, attention_mask: Tensor) -> Tensor:
        """(2, B, T) float32 from states (B, S, D), the CLS first, and a mask of the atoms (B, N)."""
        predicted = (self.cls(states[:, 0]), self.mean(mean_of_atoms(states, attention_mask)))
        return torch.stack(predicted).float()


class UniMol2ForPreTraining(UniMol2PreTrainedModel):
    """Masked atoms and noised conformers: the pretraining task (arXiv 2406.14969, section 3).

    With `config.graph_targets` moreover properties of the whole molecule, which the paper's task does not ask for.
    """

    def __init__(self, config: UniMol2Config) -> None:
        super().__init__(config)
        self.unimol2 = UniMol2Model(config)
        self.token_head = UniMol2PredictionHead(config, config.hidden_size, config.vocab_size)
        self.coordinate_head = UniMol2CoordinateHead(config)
        self.graph_target_head = UniMol2GraphTargetHead(config) if config.graph_targets else None
        self.post_init()

    # fmt: off
    @can_return_tuple
    def forward(
        self, input_ids: Tensor, atom_features: Tensor, degrees: Tensor, edge_features: Tensor, shortest_paths: Tensor,
        pair_types: Tensor, coordinates: Tensor, attention_mask: Tensor | None = None,
        labels: Tensor | None = None, target_coordinates: Tensor | None = None, graph_targets: Tensor | None = None,
        predict_coordinates: bool = True, **kwargs: Unpack[TransformersKwargs],
    ) -> UniMol2PreTrainingOutput:
        # fmt: on
        """Predict masked elements and clean coordinates.

        Args:
            labels: (B, N) atomic numbers of masked atoms, -100 elsewhere.
            target_coordinates: (B, N, 3), clean and aligned, angstrom.
            graph_targets: (B, T), standardised as `config.graph_targets` says; NaN where missing.
            predict_coordinates: off where only elements are asked for; coordinates, distances and what leads to them
                alone are then not computed.
            (others): see `UniMol2Model.forward`.
        """
        if attention_mask is None:
            attention_mask = input_ids.ne(self.config.pad_token_id)
        inputs = (input_ids, atom_features, degrees, edge_features, shortest_paths, pair_types, coordinates)
        read_out: ReadOut = "pairs" if predict_coordinates else "atoms"
        encoded = self.unimol2(*inputs, attention_mask, read_out=read_out, **kwargs)
        atoms = encoded.last_hidden_state[:, 1:]
        output = UniMol2PreTrainingOutput(
            token_logits=self.token_head(atoms),
            hidden_states=encoded.hidden_states,
            pair_hidden_states=encoded.pair_hidden_states,
            attentions=encoded.attentions,
        )
        if predict_coordinates:
            pairs = encoded.pair_hidden_state[:, 1:, 1:]
            output.predicted_coordinates = self.coordinate_head(atoms, pairs, coordinates, attention_mask)
            output.predicted_distances = pairwise_distances(output.predicted_coordinates)
        if self.graph_target_head is not None:
            output.predicted_graph_targets = self.graph_target_head(encoded.last_hidden_state, attention_mask)
        if graph_targets is not None:
            output.graph_losses = self._graph_losses(output.predicted_graph_targets, graph_targets)
        return _with_pretraining_losses(output, attention_mask, labels, target_coordinates)

    def _graph_losses(self, predicted: Tensor | None, graph_targets: Tensor) -> Tensor:
        count = self.config.num_graph_targets
        if predicted is None or graph_targets.shape != predicted.shape[1:]:
            raise ValueError(
                f"graph_targets {tuple(graph_targets.shape)} do not fit the {count} of config.graph_targets; make the "
                "model with a config that lists them"
            )
        return graph_target_losses(predicted, graph_targets, self.config.graph_target_sizes)


def _with_pretraining_losses(
    output: UniMol2PreTrainingOutput,
    attention_mask: Tensor,
    labels: Tensor | None,
    target_coordinates: Tensor | None,
) -> UniMol2PreTrainingOutput:
    losses = []
    if labels is not None and output.token_logits is not None:
        output.token_loss = masked_token_loss(output.token_logits, labels)
        losses.append(output.token_loss)
    predicted, distances = output.predicted_coordinates, output.predicted_distances
    if target_coordinates is not None and predicted is not None and distances is not None:
        targets = target_coordinates.float()
        mask = attention_mask.float()
        output.coordinate_loss = coordinate_l1_loss(predicted, targets, mask)
        output.distance_loss = distance_l1_loss(distances, pairwise_distances(targets), mask)
        losses += [output.coordinate_loss, output.distance_loss]
    if output.graph_losses is not None:
        losses.append(output.graph_losses.sum())
    if losses:
        output.loss = torch.stack(losses).sum()
    return output


def masked_token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy of logits (B, N, V) over the atoms whose label (B, N) is not -100; 0 if there are none."""
    total = F.cross_entropy(
        logits.float().flatten(0, 1), labels.long().flatten(), ignore_index=IGNORE_INDEX, reduction="sum"
    )
    return total / (labels != IGNORE_INDEX).sum().clamp(min=1)


def coordinate_l1_loss(predicted: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Sum of |dx| over atoms and axes / n for each molecule, averaged over molecules; mask (B, N) float."""
    per_molecule = ((predicted - target).abs() * mask.unsqueeze(-1)).sum((1, 2)) / mask.sum(-1)
    return per_molecule.mean()


def distance_l1_loss(predicted: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Sum of |dd| over the n x n pairs / n^2 for each molecule, averaged over molecules; mask (B, N) float."""
    pair_mask = mask.unsqueeze(1) * mask.unsqueeze(2)
    per_molecule = ((predicted - target).abs() * pair_mask).sum((1, 2)) / mask.sum(-1).square()
    return per_molecule.mean()


def graph_target_losses(predicted: Tensor, targets: Tensor, sizes: Sequence[int]) -> Tensor:
    """Smooth L1 of each block of targets (blocks,): of both read-outs (2, B, T), over the targets (B, T) not NaN."""
    both = targets.float().expand_as(predicted).split(list(sizes), dim=-1)
    losses = [
        regression_loss(block, wanted, "smooth_l1")
        for block, wanted in zip(predicted.split(list(sizes), dim=-1), both, strict=True)
    ]
    return torch.stack(losses)


class UniMol2DescriptorScale(nn.Module):
    """Descriptors as scores of a normal distribution: by their rank among the training molecules', 0 where undefined.

    `quantiles` (T, Q) are the training molecules' at equal steps of probability.
    """

    def __init__(self, num_descriptors: int) -> None:
        super().__init__()
        self.quantiles = nn.Parameter(torch.empty(num_descriptors, NUM_QUANTILES))

    def forward(self, descriptors: Tensor) -> Tensor:
        """(B, T) float32 from (B, T)."""
        values, quantiles = descriptors.float().nan_to_num().T.contiguous(), self.quantiles.float()
        # Where many molecules share a value, as with counts, its rank is the middle of theirs.
        ranks = (self._ranks(values, quantiles, right=False) + self._ranks(values, quantiles, right=True)) / 2
        scores = normal_quantile(ranks.clamp(SMALLEST_RANK, 1 - SMALLEST_RANK))
        return scores.T.masked_fill(descriptors.isnan(), 0.0)

    @staticmethod
    def _ranks(values: Tensor, quantiles: Tensor, right: bool) -> Tensor:
        """Between two quantiles in proportion; of equal ones the first (or, `right`, the last) counts."""
        index = torch.searchsorted(quantiles.detach(), values.detach(), right=right).clamp(1, NUM_QUANTILES - 1)
        before, at = quantiles.gather(1, index - 1), quantiles.gather(1, index)
        passed = values >= before if right else values > before
        share = (values - before) / (at - before).where(at > before, 1.0)
        share = share.where(at > before, passed.to(share.dtype)).clamp(0, 1)
        return (index - 1 + share) / (NUM_QUANTILES - 1)


class UniMol2KernelHead(nn.Module):
    """Kernel ridge regression: Gaussian kernels around training molecules, weighted; float32 throughout.

    f_m(x) = bias_m + sum_c weights_mc exp(-|x - c|^2 / width_m) for each member m of an ensemble. It is fitted in
    closed form (`finetuning.kernel_heads`); as any head it can be trained on.
    """

    def __init__(self, width: int, num_centers: int, num_members: int, num_outputs: int) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.empty(width))
        self.std = nn.Parameter(torch.empty(width))
        self.centers = nn.Parameter(torch.empty(num_centers, width))
        self.widths = nn.Parameter(torch.empty(num_members))
        self.weights = nn.Parameter(torch.empty(num_members, num_centers, num_outputs))
        self.bias = nn.Parameter(torch.empty(num_members, num_outputs))

    def forward(self, features: Tensor) -> Tensor:
        """Outputs (B, members, outputs) from features (B, F)."""
        with torch.autocast(features.device.type, enabled=False):
            scaled = self.standardized(features)
            centers = self.centers.float()
            # No square of all centres, which molecule after molecule would leave holes in the heap.
            lengths = [torch.linalg.vector_norm(each, dim=-1).square() for each in (scaled, centers)]
            squares = lengths[0].unsqueeze(-1) + lengths[1] - 2 * scaled @ centers.T
            # (members, B, C)
            kernels = torch.exp(-squares.clamp(min=0) / self.widths.float()[:, None, None])
            outputs = torch.bmm(kernels, self.weights.float()) + self.bias.float().unsqueeze(1)
            return outputs.transpose(0, 1)

    def standardized(self, features: Tensor) -> Tensor:
        """Features (B, F) in the scale of the centres, outliers cut off."""
        return ((features.float() - self.mean.float()) / self.std.float()).clamp(-LARGEST_FEATURE, LARGEST_FEATURE)


class UniMol2PropertyHead(nn.Module):
    """Outputs from a pooled vector; `dense` and `out_proj` are the reference's `classification_heads.<name>`.

    Behind the pooled vector stand extra features (B, F), standardised, and descriptors (B, T), scaled by their ranks.
    """

    def __init__(self, config: UniMol2Config) -> None:
        super().__init__()
        self.extra_features = list(config.extra_features or ())
        self.num_descriptors = config.num_descriptors
        width = config.pooled_size + len(self.extra_features) + self.num_descriptors
        self.dropout = nn.Dropout(config.pooler_dropout_prob)
        # Of these a head has those that its type needs.
        self.descriptor_scale: Any = UniMol2DescriptorScale(self.num_descriptors) if self.num_descriptors else None
        self.kernel: Any = None
        self.dense: Any = None
        self.out_proj: Any = None
        if config.head_type == KERNEL:
            self.kernel = UniMol2KernelHead(width, config.num_centers, config.num_members, config.num_labels)
            return
        if config.head_type == "mlp":
            self.dense = nn.Linear(width, config.hidden_size)
        self.out_proj = nn.Linear(width if self.dense is None else config.hidden_size, config.num_labels)

    def forward(
        self, pooled: Tensor, extra_features: Tensor | None = None, descriptors: Tensor | None = None
    ) -> Tensor:
        """Outputs (B, members, num_labels); of a head that is no kernel head there is one member."""
        features = self.features(pooled, extra_features, descriptors)
        if self.kernel is not None:
            return self.kernel(features)
        features = self.dropout(features.to(self.out_proj.weight.dtype))
        if self.dense is not None:
            features = self.dropout(torch.tanh(self.dense(features)))
        return self.out_proj(features).unsqueeze(1)

    def features(self, pooled: Tensor, extra_features: Tensor | None, descriptors: Tensor | None) -> Tensor:
        """What the head reads, (B, pooled + F + T)."""
        parts = [pooled]
        names = [each["name"] for each in self.extra_features]
        if names or extra_features is not None:
            given = _with_columns(extra_features, "extra_features", pooled, len(names), ", ".join(names))
            mean, std = (pooled.new_tensor([each[key] for each in self.extra_features]) for key in ("mean", "std"))
            parts.append(((given - mean) / std).to(pooled.dtype))
        if self.num_descriptors or descriptors is not None:
            given = _with_columns(descriptors, "descriptors", pooled, self.num_descriptors, "of RDKit")
            parts.append(self.descriptor_scale(given).to(pooled.dtype))
        return torch.cat(parts, dim=-1) if len(parts) > 1 else pooled

    @property
    def is_new(self) -> bool:
        """Whether it was never trained: of a new head the bias is exactly zero, of a new kernel head the mean.

        One step of training, and a bias is not; a kernel head's may be, since labels are standardised.
        """
        told = self.kernel.mean if self.out_proj is None else self.out_proj.bias
        return not bool(told.any())


def _with_columns(given: Tensor | None, what: str, pooled: Tensor, columns: int, told: str) -> Tensor:
    wanted = (pooled.shape[0], columns)  # `len` would be a constant of the exported graph
    if given is None or given.shape != wanted:
        shape = "none" if given is None else tuple(given.shape)
        raise ValueError(f"the head reads {what} of shape {wanted} ({told}), given are {shape}")
    return given


def encoder_options(pooling: str) -> dict[str, ReadOut]:
    """What to ask of the encoder for a pooling."""
    asked: dict[str, ReadOut] = {"cls": "cls", "layers_mean": "layers"}
    return {"read_out": asked.get(pooling, "atoms")}


def pooled_states(encoded: UniMol2ModelOutput, attention_mask: Tensor, pooling: str) -> Tensor:
    """One vector (B, D), or (B, 2 D) of "cls_mean" and "layers_mean", for each molecule; float32.

    "layers_mean" is what the mean over layers of CLS and mean of atoms would be (arXiv 2506.06443: intermediate layers
    are better frozen vectors than the last).
    """
    found = encoded.mean_hidden_state if pooling == "layers_mean" else encoded.last_hidden_state
    states = cast(Tensor, found)
    if pooling == "cls":
        return states[:, 0].float()
    mean = mean_of_atoms(states.float(), attention_mask)
    return mean if pooling == "mean" else torch.cat((states[:, 0].float(), mean), dim=-1)


class UniMol2ForPropertyPrediction(UniMol2PreTrainedModel):
    """Molecular properties, any number of targets of any kind (`config.targets`), missing labels allowed.

    They are read from the CLS, as in the reference, or from another pooling (`config.classifier_pooling`). Pretraining
    gives the atoms losses of their own, the CLS none: on few molecules the mean may be the better start.

    The head works on standardised labels; mean and standard deviation of a regression target bring predictions into
    the labels' own units. `classifier` is the name that PEFT looks for.

    Raises:
        ValueError: the config's targets are not complete.
    """

    def __init__(self, config: UniMol2Config) -> None:
        super().__init__(config)
        # `from_pretrained(base, num_labels=...)` edits a finished config, which may hold another task's targets.
        config.forget_other_task()
        config.validate()
        self.num_labels = config.num_labels
        self.unimol2 = UniMol2Model(config)
        self.classifier = UniMol2PropertyHead(config)
        self.post_init()

    def _scale(self, like: Tensor, sizes: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each target, as often as told; no buffers, which a dtype would round."""
        targets = [target for target, size in zip(self.config.task, sizes, strict=True) for _ in range(size)]
        mean, std = [each.get("mean") or 0.0 for each in targets], [each.get("std") or 1.0 for each in targets]
        return like.new_tensor(mean, dtype=torch.float32), like.new_tensor(std, dtype=torch.float32)

    def in_units(self, outputs: Tensor) -> Tensor:
        """Outputs (..., num_labels) of the head, those of regression targets in their labels' units."""
        mean, std = self._scale(outputs, self.config.target_sizes)
        return outputs * std + mean

    def _shaped_labels(self, labels: Tensor, rows: int) -> Tensor:
        """(B, targets) float32, NaN where missing; Transformers' -100 is no class either."""
        if labels.ndim == 1:
            labels = labels.unsqueeze(-1)
        count = len(self.config.task)
        if labels.shape != (rows, count):
            raise ValueError(f"labels {tuple(labels.shape)} do not fit {count} targets of {rows} molecules")
        of_classes = torch.tensor([target["kind"] != REGRESSION for target in self.config.task], device=labels.device)
        return labels.float().masked_fill((labels == IGNORE_INDEX) & of_classes, torch.nan)

    # fmt: off
    @can_return_tuple
    def forward(
        self, input_ids: Tensor, atom_features: Tensor, degrees: Tensor, edge_features: Tensor, shortest_paths: Tensor,
        pair_types: Tensor, coordinates: Tensor, attention_mask: Tensor | None = None,
        labels: Tensor | None = None, extra_features: Tensor | None = None, row_weights: Tensor | None = None,
        descriptors: Tensor | None = None, **kwargs: Unpack[TransformersKwargs],
    ) -> UniMol2PropertyOutput:
        # fmt: on
        """Predict properties.

        Args:
            labels: (B, targets), or (B,) for a single target: values in their own units, 0 or 1, or the index of a
                class; NaN (of classes also -100) where missing.
            extra_features: (B, F), the numbers of `config.extra_features`, in their own units.
            row_weights: (B,), multiply the losses of a molecule.
            descriptors: (B, `config.num_descriptors`), as they are; NaN where one is not defined.
            (others): see `UniMol2Model.forward`.
        """
        if attention_mask is None:
            attention_mask = input_ids.ne(self.config.pad_token_id)
        pooling = self.config.classifier_pooling
        inputs = (input_ids, atom_features, degrees, edge_features, shortest_paths, pair_types, coordinates)
        encoded = self.unimol2(*inputs, attention_mask, **encoder_options(pooling), **kwargs)
        pooled = pooled_states(encoded, attention_mask, pooling)
        members = self.classifier(pooled, extra_features, descriptors).float()
        outputs = members.mean(1)
        loss = None
        if labels is not None:
            mean, std = self._scale(outputs, [1] * len(self.config.task))
            targets = (self._shaped_labels(labels, len(outputs)) - mean) / std
            loss = property_loss(outputs, targets, self.config, row_weights)
        return UniMol2PropertyOutput(
            loss=loss,
            logits=self.in_units(outputs),
            hidden_states=encoded.hidden_states,
            pair_hidden_states=encoded.pair_hidden_states,
            attentions=encoded.attentions,
            member_logits=self.in_units(members) if members.shape[1] > 1 else None,
        )


class UniMol2ForPropertyRegression(UniMol2ForPropertyPrediction):
    """`UniMol2ForPropertyPrediction` under the name of what most use it for."""


class UniMol2ForPropertyClassification(UniMol2ForPropertyPrediction):
    """`UniMol2ForPropertyPrediction` under the name of its other use."""


_ELEMENT_LOSSES: dict[str, Callable[..., Tensor]] = {"smooth_l1": F.smooth_l1_loss, "l1": F.l1_loss, "mse": F.mse_loss}


def regression_loss(predictions: Tensor, targets: Tensor, kind: str) -> Tensor:
    """Mean element loss over the targets that are not NaN; 0, with a gradient of 0, if all are missing."""
    present = ~targets.isnan()
    # The missing ones are replaced before the difference is taken: NaN times zero is NaN, in gradients too.
    losses = _ELEMENT_LOSSES[kind](predictions, targets.where(present, predictions.detach()), reduction="none")
    return losses.masked_fill(~present, 0.0).sum() / present.sum().clamp(min=1)


def property_loss(outputs: Tensor, labels: Tensor, config: UniMol2Config, row_weights: Tensor | None = None) -> Tensor:
    """Mean over the labels (B, targets) that are not NaN of each one's loss times its weights; 0 if all are missing.

    Args:
        outputs: (B, num_labels).
        labels: standardised values, 0 or 1, or the index of a class.
        row_weights: (B,); weights of classes are the targets' own.
    """
    present = ~labels.isnan()
    losses = _element_losses(outputs, labels.masked_fill(~present, 0.0), config).masked_fill(~present, 0.0)
    if row_weights is not None:
        losses = losses * row_weights.unsqueeze(-1)
    return losses.sum() / present.sum().clamp(min=1)


def _element_losses(outputs: Tensor, labels: Tensor, config: UniMol2Config) -> Tensor:
    """(B, targets), all targets of one number at once: there may be hundreds."""
    task, sizes = config.task, config.target_sizes
    starts = [sum(sizes[:index]) for index in range(len(sizes))] if MULTICLASS in _kinds(task) else range(len(sizes))
    losses = torch.zeros_like(labels)
    for kind in _kinds(task):
        chosen = [index for index, target in enumerate(task) if target["kind"] == kind]
        own, columns = labels[:, chosen], [starts[index] for index in chosen]
        if kind == REGRESSION:
            found = _ELEMENT_LOSSES[config.loss_function](outputs[:, columns], own, reduction="none")
        elif kind == BINARY:
            found = F.binary_cross_entropy_with_logits(outputs[:, columns], own, reduction="none")
        else:
            blocks = [outputs[:, start : start + sizes[index]] for index, start in zip(chosen, columns, strict=True)]
            found = torch.stack(list(map(_cross_entropy, blocks, own.unbind(-1))), dim=-1)
        losses[:, chosen] = found * _class_weights([task[index] for index in chosen], own)
    return losses


def _kinds(task: Sequence[dict[str, Any]]) -> list[str]:
    return sorted({str(target["kind"]) for target in task})


def _cross_entropy(logits: Tensor, classes: Tensor) -> Tensor:
    return F.cross_entropy(logits, classes.long(), reduction="none")


def _class_weights(task: Sequence[dict[str, Any]], labels: Tensor) -> Tensor | float:
    """Of each label (B, targets) its class's weight."""
    if not any(target.get("class_weights") for target in task):
        return 1.0
    widest = max(len(target.get("class_weights") or ()) for target in task)
    table = [[*(target.get("class_weights") or ()), *[1.0] * widest][:widest] for target in task]
    return labels.new_tensor(table).T.gather(0, labels.long())


__all__ = [
    "UniMol2ForPreTraining",
    "UniMol2ForPropertyClassification",
    "UniMol2ForPropertyPrediction",
    "UniMol2ForPropertyRegression",
    "UniMol2Model",
    "UniMol2ModelOutput",
    "UniMol2PreTrainedModel",
    "UniMol2PreTrainingOutput",
    "UniMol2PropertyOutput",
]

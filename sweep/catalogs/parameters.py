"""What a parameter count is made of: matrices, groups of equal layers, vision towers, totals."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Linear:
    """One weight matrix of a layer (or `copies` equal ones), as the Hugging Face module is named.

    `role` is attention, mlp, shared_expert, expert, router, vision or projector. `module` says what
    holds the weight: "linear" (nn.Linear), "conv1d" (GPT-2's transposed linear) or "parameter" (a
    bare tensor, as Transformers 5 keeps routed experts and most routers).
    """

    name: str
    in_features: int
    out_features: int
    role: str
    copies: int = 1
    bias: bool = False
    module: str = "linear"

    @property
    def is_linear_module(self) -> bool:
        """Whether 4-bit loading and PEFT's all-linear see it, as they do not see bare tensors."""
        return self.module != "parameter"

    @property
    def weight_elements(self) -> int:
        """Elements of all copies' matrices, biases left out."""
        return self.copies * self.in_features * self.out_features

    @property
    def params(self) -> int:
        """Elements of all copies, biases counted."""
        return self.weight_elements + (self.copies * self.out_features if self.bias else 0)


@dataclass(frozen=True)
class LayerGroup:
    """`count` equal decoder layers, the first of them at `first_layer`.

    `kind` is dense, moe, sliding, global or cross_attention. `window` bounds attention to so many
    tokens. `experts_per_token` is None where the layer routes nothing.
    """

    kind: str
    first_layer: int
    count: int
    linears: tuple[Linear, ...]
    norm_params: int
    other_params: int
    window: int | None = None
    experts_per_token: int | None = None

    @property
    def linear_params(self) -> int:
        """Elements of one layer's matrices and their biases, every expert counted."""
        return sum(linear.params for linear in self.linears)

    @property
    def expert_params(self) -> int:
        """Elements of one layer's routed experts."""
        return sum(linear.params for linear in self.linears if linear.role == "expert")

    @property
    def params(self) -> int:
        """Elements of one layer."""
        return self.linear_params + self.norm_params + self.other_params

    @property
    def active_params(self) -> int:
        """Elements of one layer that a token meets: of the routed experts only its own."""
        routed = 0
        for linear in self.linears:
            if linear.role == "expert":
                routed += linear.params // linear.copies * (self.experts_per_token or 0)
        return self.params - self.expert_params + routed


@dataclass(frozen=True)
class VisionCounts:
    """A vision tower: `depth` equal blocks, what joins it to the decoder, and the rest.

    total = depth x per_block_params + merger_params + other_params. `projector` holds the matrices
    outside the blocks, `merger_params` counts them and their norms. `merge` patches become one
    decoder token; `patch` is the patch edge in pixels.
    """

    total: int
    block: tuple[Linear, ...]
    depth: int
    per_block_params: int
    projector: tuple[Linear, ...]
    merger_params: int
    other_params: int
    merge: int
    patch: int


@dataclass(frozen=True)
class ParameterCounts:
    """Parameters of a model by where they live; every figure in elements.

    `lm_head` is 0 where the head is the embedding; its bias, where there is one, is counted.
    `root_other` holds learned positions, the embedding's norm and its projections (`root_linears`).
    `experts_adapted` says whether PEFT's all-linear reaches the routed experts. Groups with
    `interleaved` alternate through the depth instead of following one another. `active_per_token`
    counts what a text token is multiplied with: layers with its own experts only, final norm, the
    head's matrix (tied or not, without its bias); no look-ups, no vision tower.
    """

    total: int
    embedding: int
    lm_head: int
    final_norm: int
    root_other: int
    root_linears: tuple[Linear, ...]
    layers: tuple[LayerGroup, ...]
    interleaved: bool
    vision: VisionCounts | None
    active_per_token: int
    experts_adapted: bool

    @property
    def num_layers(self) -> int:
        """Decoder layers over all groups."""
        return sum(group.count for group in self.layers)

    @property
    def layers_total(self) -> int:
        """Elements of all decoder layers."""
        return sum(group.count * group.params for group in self.layers)

    @property
    def root(self) -> int:
        """Elements outside decoder layers and vision tower: embedding, head, final norm, rest."""
        return self.embedding + self.lm_head + self.final_norm + self.root_other

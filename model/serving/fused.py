"""The model as a GPU serves it: the same weights and state, fused kernels between the matrix products, nothing asked of the host.

`model.families.infinitevl` is the reference. Every call here is a fixed sequence of launches for given shapes, fit for a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from model.config import InfiniteVLConfig
from model.families.infinitevl import InfiniteVL
from model.layers.attention import Attention
from model.layers.decoder import DecoderLayer
from model.layers.delta_net import GatedDeltaNet
from model.layers.mixer import Mixer
from model.ops import retrieval as plain
from model.ops.kernels.activation import Activation
from model.ops.kernels.attention import HeadNorms, attend, place
from model.ops.kernels.convolution import mix
from model.ops.kernels.delta_rule import delta_rule
from model.ops.kernels.norm import add_norm, gated_norm, open_gate
from model.ops.kernels.paging import by_phase, settle
from model.ops.kernels.retrieval import retrieve
from model.ops.kernels.retrieval_token import Past, retrieve_token
from model.pages import Held, OneToken, Paged
from model.policy import RetrievalPolicy
from model.serving.cursor_kernels import Span, frame_span, step_span, text_span
from model.serving.fused_vision import FastMLP, fast_tower
from model.serving.quantize import Matrix, Precision, share_no_sums
from model.state import StreamState


class FastMixer(Protocol):
    """A `Mixer` as kernels, which take the state where it stands."""

    inward: Matrix
    outward: Matrix

    def __call__(self, x: Activation, span: Span, state: StreamState, outputs: bool) -> Tensor | None:
        """Takes `x` [batch * n, hidden], the tokens of `span`, as `inward` wants it; without `outputs` it may return None."""
        ...


class FastAttention:
    """`Attention`."""

    def __init__(self, layer: Attention, config: InfiniteVLConfig, precision: Precision) -> None:
        assert layer.inward.weight is not None
        self.layer, self.config, self.gated = layer.layer, config, layer.gated
        self.norms: HeadNorms | None = None
        if layer.normed:
            self.norms = HeadNorms(layer.q_norm.weight, layer.k_norm.weight, layer.k_norm.eps)
        weight, bias, sizes = layer.inward.weight, layer.inward.bias, layer.inward.sizes
        self.inward = Matrix(weight, bias, precision)
        kept = slice(sizes[0], sum(sizes[:3]))
        self.keeping = Matrix(weight[kept], None if bias is None else bias[kept], precision)
        """Of `inward`, what a last layer needs whose output nobody reads: keys and values."""
        self.outward = Matrix(layer.o_proj.weight, None, precision)

    def __call__(self, x: Activation, span: Span, state: StreamState, outputs: bool) -> Tensor | None:
        """See `FastMixer`."""
        batch, decoder = len(span.slots), self.config.decoder
        heads, policy = decoder.num_attention_heads, self.config.policy
        keys, values = state.of(self.layer, "keys"), state.of(self.layer, "values")
        where = span.turn, span.sink_turn, span.slots, span.starts, span.counts
        if not outputs:
            place(self.keeping(x).unflatten(0, (batch, -1)), *where, keys, values, 0, policy, self.norms)
            return None
        rows = self.inward(x)
        joint = rows.unflatten(0, (batch, -1))
        mixed = attend(joint, *where, keys, values, heads, policy, norms=self.norms).flatten(0, 1)
        if not self.gated:
            return self.outward(mixed)
        first = (heads + 2 * decoder.num_key_value_heads) * decoder.head_dim
        return self.outward(open_gate(mixed, rows[:, first:], self.outward.fp8))


class FastDeltaNet:
    """`GatedDeltaNet`."""

    def __init__(self, layer: GatedDeltaNet, config: InfiniteVLConfig, precision: Precision) -> None:
        assert layer.inward.weight is not None and layer.filters is not None
        self.layer = layer.layer
        self.heads, self.key, self.value = layer.heads, layer.key, layer.value
        self.filters, self.a_log, self.dt_bias = layer.filters, layer.A_log, layer.dt_bias
        self.norm, self.eps = layer.o_norm.weight, layer.o_norm.eps
        self.inward = Matrix(layer.inward.weight, None, precision)
        self.outward = Matrix(layer.o_proj.weight, None, precision)

    def __call__(self, x: Activation, span: Span, state: StreamState, outputs: bool) -> Tensor | None:
        """See `FastMixer`."""
        batch, values = len(span.slots), self.heads * self.value
        joint = self.inward(x)
        mixed, decay, beta = mix(
            joint.unflatten(0, (batch, -1)), state.of(self.layer, "inputs"), self.filters, self.a_log, self.dt_bias,
            span.slots, span.counts, self.key, values,
        )  # fmt: skip
        out = delta_rule(mixed, decay, beta, span.slots, state.of(self.layer, "delta"), self.heads, self.value)
        if not outputs:
            return None
        channels = self.filters.shape[0]
        gate = joint[:, channels : channels + values]
        return self.outward(gated_norm(out.flatten(0, 1), gate, self.norm, self.eps, self.outward.fp8))


class FastRetrieval(FastAttention):
    """`Attention` that retrieves, of one slot, whose pages the call in hand extends."""

    def __call__(self, x: Activation, span: Span, state: StreamState, outputs: bool) -> Tensor | None:
        """See `FastMixer`."""
        pages, decoder = state.pages, self.config.decoder
        assert pages is not None and pages.call is not None and not self.gated and self.norms is None
        call, policy = pages.call, pages.policy
        width = (decoder.num_attention_heads + 2 * decoder.num_key_value_heads) * decoder.head_dim
        kept = pages.keys[self.layer], pages.values[self.layer], pages.pooled[self.layer]
        q = settle(
            self.inward(x)[:, :width],
            span.turn,
            span.starts,
            span.counts,
            (call.numbers, call.frames),
            kept,
            policy,
            pages.size,
        )
        if not outputs:
            return None
        if isinstance(call, OneToken):
            past = Past(*kept, call.frames, call.numbers, span.starts, call.blocks, pages.size)
            noted = (pages.noted, span.slots, span.counts) if call.noted else None
            mixed = retrieve_token(q, past, policy, noted)
            return self.outward(mixed.flatten(1))
        history = Paged(call, self.layer)
        if call.away:  # the kernels read the pool alone
            mixed = plain.retrieve(q, call.first, history, policy)
        else:
            pooled = by_phase(kept[2], call.numbers, call.spans, q.dtype, policy, pages.size)
            mixed = retrieve(q, call.first, Held(kept[0], kept[1], call.table, pooled), policy)
        if call.slot in pages.attention:
            pages.note(call.slot, plain.attended(q[-1:], call.first + call.n - 1, history, policy))
        return self.outward(mixed.flatten(1))


FAST: dict[type[Mixer], Callable[..., FastMixer]] = {Attention: FastAttention, GatedDeltaNet: FastDeltaNet}
"""What serves each kind of layer on a GPU."""


class FastLayer:
    """`DecoderLayer`."""

    def __init__(self, layer: DecoderLayer, config: InfiniteVLConfig, precision: Precision) -> None:
        self.norms = layer.input_layernorm.weight, layer.post_attention_layernorm.weight
        kind = type(layer.self_attn)
        retrieves = kind is Attention and isinstance(config.policy, RetrievalPolicy)
        make: Callable[..., FastMixer] = FastRetrieval if retrieves else FAST[kind]
        self.mixer = make(layer.self_attn, config, precision)
        self.mlp = FastMLP(layer.mlp, precision)


class FastInfiniteVL:
    """Frames and text into a pool of slots, with `InfiniteVL`'s weights (fused beforehand; shared, but for padded and fp8 ones)."""

    def __init__(self, model: InfiniteVL, precision: Precision = "model") -> None:
        share_no_sums()
        self.model, self.config = model, model.config
        layers = [layer for layer in model.model.layers if isinstance(layer, DecoderLayer)]
        self.layers = [FastLayer(layer, model.config, precision) for layer in layers]
        self.tower = fast_tower(model.visual, precision)
        tied = model.config.decoder.tie_word_embeddings
        self.head = Matrix(model.model.embed_tokens.weight if tied else model.lm_head.weight, None, precision)

    def see(
        self,
        patches: Tensor,
        grid: tuple[int, int],
        seconds: Tensor,
        state: StreamState,
        slots: Tensor,
        text: Tensor | None = None,
    ) -> None:
        """As `InfiniteVL.see`."""
        self.ingest(self.encode(patches, grid), grid, seconds, state, slots, text)

    def ingest(
        self,
        x: Tensor,
        grid: tuple[int, int],
        seconds: Tensor,
        state: StreamState,
        slots: Tensor,
        text: Tensor | None = None,
    ) -> None:
        """As `InfiniteVL.ingest`."""
        merge = self.config.vision.spatial_merge_size
        height, width = grid[0] // merge, grid[1] // merge
        if text is None:
            positions = state.frame_positions(slots, seconds, height, width)
            counts = torch.full_like(slots, x.shape[1])
            span, rows = frame_span(positions, state, slots, counts), x.flatten(0, 1)
        else:
            span, rows = step_span(text, x, (height, width), self.model.model.embed_tokens.weight, state, slots)
        self.advance(rows, span, state, outputs=False)

    def ingest_steps(self, x: Tensor, grid: tuple[int, int], seconds: Tensor, state: StreamState, slot: Tensor) -> None:
        """As `ingest`, of several steps of one slot (int64 [1]), one after the other: `x` [steps, tokens, hidden], `seconds` [steps]."""
        merge = self.config.vision.spatial_merge_size
        size = grid[0] // merge, grid[1] // merge
        positions = torch.cat([state.frame_positions(slot, moment, *size) for moment in seconds.split(1)], -1)
        rows = x.flatten(0, 1)
        self.advance(rows, frame_span(positions, state, slot, torch.full_like(slot, len(rows))), state, outputs=False)

    def read(self, tokens: Tensor, state: StreamState, slots: Tensor, counts: Tensor) -> Tensor:
        """As `InfiniteVL.read`, for at most `config.step_tokens` tokens, padded on the right to one length; each count may be 0."""
        batch, n = tokens.shape
        span, x = text_span(tokens, self.model.model.embed_tokens.weight, state, slots, counts)
        hidden = self.advance(x, span, state, outputs=True)
        assert hidden is not None
        if n > 1:
            hidden = hidden[torch.arange(batch, device=slots.device) * n + (counts - 1).clamp(min=0)]
        return self.head(hidden).float()

    def encode(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        """`patches` [batch, patches, patch_dim] through the vision tower to [batch, tokens, hidden]."""
        return self.tower(patches, grid)

    def advance(self, residual: Tensor, span: Span, state: StreamState, outputs: bool) -> Tensor | None:
        """Takes embeddings `residual` [batch * n, hidden], contiguous, into the slots of `span`, whose cursors stand after it.

        `residual` is overwritten. Returns the last hidden states [batch * n, hidden], or None without `outputs`.
        """
        eps, final = self.config.decoder.rms_norm_eps, len(self.layers) - 1
        mixed: Tensor | None = None
        for i, layer in enumerate(self.layers):
            normed = add_norm(mixed, residual, layer.norms[0], eps, layer.mixer.inward.fp8)
            mixed = layer.mixer(normed, span, state, outputs or i < final)
            if i == final and not outputs:
                break
            mixed = layer.mlp(add_norm(mixed, residual, layer.norms[1], eps, layer.mlp.inward.fp8))
        if not outputs:
            return None
        normed = add_norm(mixed, residual, self.model.model.norm.weight, eps)
        assert isinstance(normed, Tensor)
        return normed

"""The hybrid decoder: layers of several kinds over one residual stream."""

from __future__ import annotations

from torch import Tensor, nn

from model.cache import Cache
from model.config import DecoderConfig
from model.layers import attention, delta_net  # noqa: F401  # the kinds there are
from model.layers.mixer import Mixer
from model.layers.vision import MLP, RMSNorm
from model.ops.rope import rotation


class DecoderLayer(nn.Module):
    """Pre-norm mixer (of the kind that `layer_types` names) and SwiGLU."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn: Mixer = Mixer.kinds[config.layer_types[layer]](config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config.hidden_size, config.intermediate_size, bias=False)


class Decoder(nn.Module):
    """Embeddings, layers and final norm."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, positions: Tensor, cache: Cache, outputs: bool = True) -> Tensor | None:
        """`x` [batch, n, hidden] at `positions` int64 [3, batch, n]; extends `cache`. In training the residual stream is float32.

        Returns the normed last hidden states [batch, n, hidden]; without `outputs` None: what only they need is left out.
        """
        config = self.config
        turn = rotation(positions, config.rotary_dim, config.rope_theta, config.mrope_section, config.mrope_interleaved)
        final = config.num_hidden_layers - 1
        if self.training:
            x = x.float()
        for i, layer in enumerate(self.layers):
            assert isinstance(layer, DecoderLayer)
            inner = layer.input_layernorm(x)
            mixed = layer.self_attn(inner, turn, cache, outputs or i < final)
            if i == final and not outputs:
                return None
            x = x + mixed
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        return self.norm(x)  # type: ignore[no-any-return]

"""transformers' Qwen2.5-VL at the sizes of one of our configurations whose every layer is full attention."""

from dataclasses import asdict

from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from model.config import InfiniteVLConfig
from model.families.infinitevl import InfiniteVL


def qwen_config(config: InfiniteVLConfig) -> Qwen2_5_VLConfig:
    decoder = config.decoder
    vision = {key: value for key, value in asdict(config.vision).items() if key != "position_table"}
    text = {
        "vocab_size": decoder.vocab_size, "hidden_size": decoder.hidden_size,
        "intermediate_size": decoder.intermediate_size, "num_hidden_layers": decoder.num_hidden_layers,
        "num_attention_heads": decoder.num_attention_heads, "num_key_value_heads": decoder.num_key_value_heads,
        "rms_norm_eps": decoder.rms_norm_eps, "bos_token_id": None, "eos_token_id": config.eos_token_id,
        "rope_parameters": {
            "rope_type": "default", "rope_theta": decoder.rope_theta, "mrope_section": list(decoder.mrope_section)
        },
    }  # fmt: skip
    return Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision | {"tokens_per_second": config.tokens_per_second},
        image_token_id=config.image_token_id,
        video_token_id=config.video_token_id,
        vision_start_token_id=config.vision_start_token_id,
        vision_end_token_id=config.vision_end_token_id,
        tie_word_embeddings=decoder.tie_word_embeddings,
    )


def qwen(model: InfiniteVL) -> Qwen2_5_VLForConditionalGeneration:
    """transformers' model with the same weights."""
    config = qwen_config(model.config)
    config._attn_implementation = "eager"
    twin = Qwen2_5_VLForConditionalGeneration(config).eval()
    weights = {}
    for name, value in model.state_dict().items():
        prefix = "model." if name.startswith("visual.") else "model.language_model."
        weights[name if name.startswith("lm_head.") else prefix + name.removeprefix("model.")] = value
    missing, unexpected = twin.load_state_dict(weights, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}
    twin.tie_weights()
    return twin

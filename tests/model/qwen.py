"""transformers' Qwen2.5-VL at the sizes of one of our configurations whose every layer is full attention."""

from transformers import Qwen2_5_VLForConditionalGeneration

from model.evaluation.reference import qwen25
from model.families.infinitevl import InfiniteVL


def qwen(model: InfiniteVL) -> Qwen2_5_VLForConditionalGeneration:
    """transformers' model with the same weights."""
    twin = Qwen2_5_VLForConditionalGeneration(qwen25(model.config)).eval()
    weights = {}
    for name, value in model.state_dict().items():
        prefix = "model." if name.startswith("visual.") else "model.language_model."
        weights[name if name.startswith("lm_head.") else prefix + name.removeprefix("model.")] = value
    missing, unexpected = twin.load_state_dict(weights, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}
    twin.tie_weights()
    return twin

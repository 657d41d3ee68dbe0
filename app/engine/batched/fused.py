"""The pass of models built as Llama is, their linear layers as they are and all between them in few kernels.

Knows Llama, Mistral and Qwen2 of transformers; others take the model's own forward.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from transformers import PreTrainedModel

from app.engine.batched.attention import Step, seen

_KNOWN = {"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM"}


def is_known(model: PreTrainedModel) -> bool:
    """Whether the fused step computes what this model's own modules do."""
    config: Any = model.config.get_text_config()
    is_plain = getattr(config, "hidden_act", "") == "silu" and not getattr(config, "use_sliding_window", False)
    window = getattr(config, "sliding_window", None) if type(model).__name__ == "MistralForCausalLM" else None
    return type(model).__name__ in _KNOWN and is_plain and window is None


def fused_hidden(
    model: PreTrainedModel,
    ids: torch.Tensor,
    places: torch.Tensor,
    step: Step,
    quicker: Mapping[torch.nn.Module, Callable[[torch.Tensor], torch.Tensor]],
    joined: Mapping[torch.nn.Module, Callable[[torch.Tensor], tuple[torch.Tensor, ...]]],
    on_layer: Callable[[], None],
) -> torch.Tensor:
    """The normed hidden states of a pass: ids and places (tokens,), the result (tokens, hidden).

    `quicker` has what is called instead of a linear layer, where there is something; `joined` what gives q, k and v of
    an attention, or gate and up of an mlp, at once. `on_layer` is called before each.
    """
    from app.engine.batched.kernels import add_norm, rotate_and_write, silu_mul

    def by(layer: torch.nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
        return quicker.get(layer, layer)

    base: Any = model.base_model
    hidden = base.embed_tokens(ids)
    cosines, sines = (angle[:, 0].contiguous() for angle in base.rotary_emb(hidden[:, None], places[:, None]))
    layers = base.layers
    width = step.cache.keys[0].shape[-1]
    normed = add_norm(hidden, None, layers[0].input_layernorm.weight, layers[0].input_layernorm.variance_epsilon)
    for number, layer in enumerate(layers):
        on_layer()
        attention, mlp = layer.self_attn, layer.mlp
        keys, values = step.cache.keys[number], step.cache.values[number]
        query, key, value = (
            joined[attention](normed)
            if attention in joined
            else (by(part)(normed) for part in (attention.q_proj, attention.k_proj, attention.v_proj))
        )
        query = query.view(len(ids), -1, width)
        rotate_and_write(query, key, value, cosines, sines, step.slots, keys, values)
        gathered = seen(query, keys, values, step, attention.scaling)
        norm = layer.post_attention_layernorm
        normed = add_norm(hidden, by(attention.o_proj)(gathered.flatten(1)), norm.weight, norm.variance_epsilon)
        gate, up = joined[mlp](normed) if mlp in joined else (by(mlp.gate_proj)(normed), by(mlp.up_proj)(normed))
        inner = by(mlp.down_proj)(silu_mul(gate, up))
        norm = layers[number + 1].input_layernorm if number + 1 < len(layers) else base.norm
        normed = add_norm(hidden, inner, norm.weight, norm.variance_epsilon)
    return normed

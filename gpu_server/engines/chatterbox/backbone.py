"""Walk through T3's transformer, layer by layer, with attention left to the caller. Knows nothing of slots or sampling.

Upstream's (transformers') own modules do all but attention: theirs keeps one length for a whole batch, and a batch of
many requests needs one a row.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

from torch import Tensor
from torch.nn import functional

Attend: TypeAlias = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""Of a layer's queries, keys and values, each [rows, heads, length, size], what is attended to, of the same shape."""


def layers_heads_size(t3: Any) -> tuple[int, int, int]:
    """Layers, heads a layer, and size of a head."""
    config = t3.cfg
    return config.num_hidden_layers, config.num_attention_heads, config.hidden_size // config.num_attention_heads


def walk(t3: Any, x: Tensor, positions: Tensor, attend: Attend) -> Tensor:
    """Hidden states after the last norm, [rows, length, width].

    x: embeddings [rows, length, width]; positions: of each in its own row, [rows, length].
    """
    return _gpt2(t3.tfmr, x, positions, attend) if t3.is_gpt else _llama(t3.tfmr, x, positions, attend)


def _gpt2(transformer: Any, x: Tensor, positions: Tensor, attend: Attend) -> Tensor:
    x = x + transformer.wpe(positions)
    heads = transformer.config.num_attention_heads
    for number, block in enumerate(transformer.h):
        q, k, v = block.attn.c_attn(block.ln_1(x)).chunk(3, -1)
        attended = attend(number, _split(q, heads), _split(k, heads), _split(v, heads))
        x = x + block.attn.c_proj(_join(attended))
        # The model's "gelu_new", which transformers computes in eight operations.
        x = x + block.mlp.c_proj(functional.gelu(block.mlp.c_fc(block.ln_2(x)), approximate="tanh"))
    hidden: Tensor = transformer.ln_f(x)
    return hidden


def _llama(transformer: Any, x: Tensor, positions: Tensor, attend: Attend) -> Tensor:
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    heads = transformer.config.num_attention_heads
    cosine, sine = transformer.rotary_emb(x, positions)
    for number, layer in enumerate(transformer.layers):
        normed, attention = layer.input_layernorm(x), layer.self_attn
        q, k, v = attention.q_proj(normed), attention.k_proj(normed), attention.v_proj(normed)
        turned_q, turned_k = apply_rotary_pos_emb(_split(q, heads), _split(k, heads), cosine, sine)
        x = x + attention.o_proj(_join(attend(number, turned_q, turned_k, _split(v, heads))))
        x = x + layer.mlp(layer.post_attention_layernorm(x))
    hidden: Tensor = transformer.norm(x)
    return hidden


def _split(x: Tensor, heads: int) -> Tensor:
    rows, length, width = x.shape
    return x.view(rows, length, heads, width // heads).transpose(1, 2)


def _join(x: Tensor) -> Tensor:
    rows, heads, length, size = x.shape
    return x.transpose(1, 2).reshape(rows, length, heads * size)

"""Configurations of tiny random-weight models, one tokenizer for all of them, and the text they read."""

import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

TEMPLATE = ("{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
            "{% if add_generation_prompt %}<|assistant|>{% endif %}")

# Weights of this spread make attention peaky; nearly uniform attention would hide mistakes.
_BASE = dict(vocab_size=264, hidden_size=48, intermediate_size=64, num_hidden_layers=3, num_attention_heads=6,
             max_position_embeddings=2048, initializer_range=0.25, bos_token_id=None, eos_token_id=256, pad_token_id=256)


def _grouped(**more):
    return _BASE | dict(num_key_value_heads=2, head_dim=16) | more


def config(kind: str):
    t = transformers
    if kind == "llama":
        return t.LlamaConfig(**_grouped())
    if kind == "llama_yarn":
        rope = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0, "original_max_position_embeddings": 512}
        return t.LlamaConfig(**_grouped(rope_parameters=rope))
    if kind == "multi_query":
        return t.LlamaConfig(**_grouped(num_key_value_heads=1))
    if kind == "qwen3":
        return t.Qwen3Config(**_grouped())
    if kind == "gemma3":
        return t.Gemma3TextConfig(**_grouped(query_pre_attn_scalar=40, sliding_window=7, rms_norm_eps=1e-6,
                                             layer_types=["sliding_attention", "full_attention", "sliding_attention"]))
    if kind == "gemma2":
        return t.Gemma2Config(**_grouped(query_pre_attn_scalar=24, sliding_window=9, attn_logit_softcapping=5.0,
                                         layer_types=["sliding_attention", "full_attention", "sliding_attention"]))
    if kind == "glm":
        return t.GlmConfig(**_grouped(rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}))
    if kind == "neox":
        return t.GPTNeoXConfig(**_BASE | dict(num_attention_heads=6, hidden_size=96))
    if kind == "smollm3":
        return t.SmolLM3Config(**_grouped(no_rope_layers=[1, 0, 1]))
    if kind == "bigcode":
        return t.GPTBigCodeConfig(vocab_size=264, n_positions=2048, n_embd=48, n_layer=3, n_head=6, multi_query=True,
                                  initializer_range=0.25, bos_token_id=256, eos_token_id=256)
    raise ValueError(kind)


def byte_tokenizer():
    """One token per byte of UTF-8, then `<|end|>` (ends a text) and the template's role marks."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", chat_template=TEMPLATE)
    fast.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|assistant|>", "<|system|>"]})
    return fast


TEXT = ("The ferry leaves at nine. Nobody knew why the clock had stopped.\n\n"
        "A key lay under the green stone, and the door stood open all night. Où est la clé?\n\nWhere was the key?")

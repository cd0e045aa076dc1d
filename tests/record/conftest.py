"""Tiny random-weight models of several architectures, saved as folders, and a way to record with them."""

import signal

import pytest

torch = pytest.importorskip("torch", reason="the recorder's packages are not installed: ./check --record")
transformers = pytest.importorskip("transformers", reason="the recorder's packages are not installed: ./check --record")
pytest.importorskip("h5py")
pytest.importorskip("kvsim_record", reason="the recorder is not installed: pip install -e traces/record")

from tokenizers import Tokenizer, decoders, models, pre_tokenizers  # noqa: E402
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast  # noqa: E402

from kvsim_record import cli  # noqa: E402

torch.set_num_threads(1)  # tiny models gain nothing from more, and lose much on a busy machine

TEMPLATE = ("{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
            "{% if add_generation_prompt %}<|assistant|>{% endif %}")

# Weights of this spread make attention peaky; nearly uniform attention would hide mistakes.
_BASE = dict(vocab_size=264, hidden_size=48, intermediate_size=64, num_hidden_layers=3, num_attention_heads=6,
             max_position_embeddings=2048, initializer_range=0.25, bos_token_id=None, eos_token_id=256, pad_token_id=256)


def _grouped(**more):
    return _BASE | dict(num_key_value_heads=2, head_dim=16) | more


def _config(kind: str):
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


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """Function: kind -> folder of a tiny float32 model with a byte tokenizer."""
    made = {}

    def make(kind: str):
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            torch.manual_seed(7)
            model = AutoModelForCausalLM.from_config(_config(kind)).float()
            for name, weight in model.named_parameters():
                if "q_norm" in name or "k_norm" in name:
                    weight.data += 2.0  # normalised queries and keys are short: make their attention peaky too
            model.save_pretrained(folder)
            byte_tokenizer().save_pretrained(folder)
            made[kind] = folder
        return made[kind]

    return make


TEXT = ("The ferry leaves at nine. Nobody knew why the clock had stopped.\n\n"
        "A key lay under the green stone, and the door stood open all night. Où est la clé?\n\nWhere was the key?")


def _record(folder, directory, options, text, decode, name):
    prompt = directory / "prompt.txt"
    prompt.write_text(text, encoding="utf-8")
    source = [] if "--chat" in options else ["--prompt", str(prompt)]
    length = [] if decode is None else ["--decode", str(decode)]
    end = [] if {"--continue", "--respect-eos"} & set(options) else ["--ignore-eos"]
    options = [option for option in options if option != "--respect-eos"]
    path = directory / name
    kept = [(number, signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    try:
        return cli.main(["--model", str(folder), "--device", "cpu", "-o", str(path), *source, *length, *end, *options]), path
    finally:
        for number, handler in kept:
            signal.signal(number, handler)


@pytest.fixture
def run(tmp_path, model_folder):
    """Function: (kind, *options, text=...) -> (exit code, path of the trace); runs the command in this process."""

    def call(kind, *options, text=TEXT, decode=12, name="t.h5"):
        return _record(model_folder(kind), tmp_path, options, text, decode, name)

    return call


@pytest.fixture(scope="session")
def recorded(model_folder, tmp_path_factory):
    """Function: kind -> path of a full recording of TEXT with 12 decoded tokens, made once."""
    made = {}

    def get(kind):
        if kind not in made:
            code, made[kind] = _record(model_folder(kind), tmp_path_factory.mktemp("full"), (), TEXT, 12, f"{kind}.h5")
            assert code == 0
        return made[kind]

    return get

"""The model that recites, as a Hugging Face folder: the table of successors of the GGUF one, for vLLM to load."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

from worker_adapters.embedded import DEFAULT_CHAT_TEMPLATE
from worker_adapters.embedded.recite import make_vocabulary, split_units, successor_logits

_SPECIAL = ["<unk>", "<s>", "</s>"]
_HEAD = 64
_RMS_EPSILON = 1e-5


def pieces_of(text: str) -> list[str]:
    """What the model says token by token; a character that it says byte by byte is one piece."""
    return [piece for piece, _ in split_units(text, byte_fallback=True)]


def write_recite_hf(
    folder: Path, text: str, *, weight: float = 8.0, ballast_mib: float = 0.0, context: int = 512
) -> Path:
    """Write the folder of a model that says ``text`` and ends, or under ``ignore_eos`` says it over and over.

    Attention and feed-forward weights are zero, embeddings are one-hot, and the output matrix says what comes next.

    :param weight: logit of the right successor; all others have 0. vLLM samples at temperature 1 unless told otherwise:
        8 wanders at that, 20 does not.
    :param ballast_mib: MiB of zero weights that every token reads: about 0.1 ms a MiB on a small machine.
    """
    pieces, chain, again = make_vocabulary(split_units(text, byte_fallback=True))
    vocabulary = [*_SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    width = -(-len(vocabulary) // _HEAD) * _HEAD
    feed_forward = max(_HEAD, math.ceil(ballast_mib * 2**20 / (3 * 4 * width) / _HEAD) * _HEAD)
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "config.json", _config(len(vocabulary), width, feed_forward, context))
    _write(folder / "tokenizer.json", _tokenizer(vocabulary))
    _write(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "unk_token": "<unk>",
            "bos_token": "<s>",
            "eos_token": "</s>",
            "clean_up_tokenization_spaces": False,
            "chat_template": DEFAULT_CHAT_TEMPLATE,
        },
    )
    table = successor_logits(len(vocabulary), chain, again, weight, cyclic=False)
    _write_weights(folder / "model.safetensors", len(vocabulary), width, feed_forward, list(table))
    return folder


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def _config(n_vocab: int, width: int, feed_forward: int, context: int) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": feed_forward,
        "num_hidden_layers": 1,
        # One narrow head, whatever the width: attention adds nothing and is to cost next to nothing.
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "head_dim": _HEAD,
        "vocab_size": n_vocab,
        "max_position_embeddings": context,
        "rms_norm_eps": _RMS_EPSILON,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "float32",
    }


def _tokenizer(vocabulary: list[str]) -> dict[str, Any]:
    """Byte-level fallback without merges: a prompt is its bytes, so that no word of it is a word of the recital."""
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": at, "content": token, "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False, "special": True}
            for at, token in enumerate(_SPECIAL)
        ],
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "fuse_unk": False,
            "byte_fallback": True,
            "vocab": {token: at for at, token in enumerate(vocabulary)},
            "merges": [],
        },
    }  # fmt: skip


def _write_weights(
    path: Path, n_vocab: int, width: int, feed_forward: int, table: list[tuple[int, int, float]]
) -> None:
    """A safetensors file whose zeros are holes: ballast takes neither time nor disk."""
    layer = "model.layers.0"
    shapes = {
        "model.embed_tokens.weight": (n_vocab, width),
        f"{layer}.input_layernorm.weight": (width,),
        f"{layer}.post_attention_layernorm.weight": (width,),
        f"{layer}.self_attn.q_proj.weight": (_HEAD, width),
        f"{layer}.self_attn.k_proj.weight": (_HEAD, width),
        f"{layer}.self_attn.v_proj.weight": (_HEAD, width),
        f"{layer}.self_attn.o_proj.weight": (width, _HEAD),
        f"{layer}.mlp.gate_proj.weight": (feed_forward, width),
        f"{layer}.mlp.up_proj.weight": (feed_forward, width),
        f"{layer}.mlp.down_proj.weight": (width, feed_forward),
        "model.norm.weight": (width,),
        "lm_head.weight": (n_vocab, width),
    }
    starts: dict[str, int] = {}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    size = 0
    for name, shape in shapes.items():
        starts[name] = size
        size += math.prod(shape) * 4
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [starts[name], size]}
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        file.truncate(8 + len(head) + size)

        def put(name: str, index: int, *values: float) -> None:
            file.seek(8 + len(head) + starts[name] + 4 * index)
            file.write(struct.pack(f"<{len(values)}f", *values))

        for token in range(n_vocab):
            put("model.embed_tokens.weight", token * width + token, 1.0)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            put(f"{layer}.{norm}.weight", 0, *[1.0] * width)
        # RMSNorm blows a one-hot vector up to sqrt(width); this brings the one back to 1, whatever the width.
        put("model.norm.weight", 0, *[math.sqrt(1 / width + _RMS_EPSILON)] * width)
        for token, after, logit in table:
            put("lm_head.weight", after * width + token, logit)

"""Write a GGUF model that recites a text: a real engine loads it, nothing is downloaded, no GPU is needed.

The model has the llama architecture. All attention and feed-forward weights are zero, so each residual stream is the
one-hot embedding of the current token alone, and the output matrix is a table of successors: greedy decoding says the
text piece by piece and then emits end-of-sequence. Whatever the prompt, the recital starts at the beginning, because
every token that is no part of it is followed by its first piece.

The file is written with the standard library only. Zero weights are left as holes, so a model of some hundred MiB that
is slow on purpose costs neither time nor disk space on file systems with sparse files.
"""

from __future__ import annotations

import math
import os
import re
import struct
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

__all__ = [
    "DEFAULT_CHAT_TEMPLATE",
    "DEFAULT_WORDS",
    "REASONING_TEXT",
    "THINK_AND_TOOLS_CHAT_TEMPLATE",
    "TOOL_CALL_TEXT",
    "recital",
    "write_reasoning_gguf",
    "write_recite_gguf",
    "write_tool_call_gguf",
]

_DEFAULT_TEXT = (
    "Welcome! This engine runs entirely on your own machine: no graphics card, no download, no waiting. Its tiny model "
    "recites one paragraph, word by word, exactly as larger servers stream their answers, so you can watch tokens "
    "arrive, cancel halfway, or let everything finish at the café down the street."
)
DEFAULT_WORDS: tuple[str, ...] = tuple(_DEFAULT_TEXT.split())

DEFAULT_CHAT_TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"

# Qwen 3 in short: llama.cpp reads off the template itself how a model marks reasoning and tool calls.
THINK_AND_TOOLS_CHAT_TEMPLATE = r"""
{%- if tools %}
{{- '<|im_start|>system\n# Tools\n<tools>' }}
{%- for tool in tools %}{{- '\n' }}{{- tool | tojson }}{%- endfor %}
{{- '\n</tools>\nAnswer a call as <tool_call>\n{"name": <name>, "arguments": <object>}\n</tool_call><|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
{%- if message.role == 'assistant' %}
{{- '<|im_start|>assistant\n' }}
{%- if message.reasoning_content %}{{- '<think>\n' + message.reasoning_content + '\n</think>\n\n' }}{%- endif %}
{{- message.content or '' }}
{%- for call in message.tool_calls or [] %}
{%- if call.function %}{%- set call = call.function %}{%- endif %}
{{- '\n<tool_call>\n{"name": "' + call.name + '", "arguments": ' }}
{%- if call.arguments is string %}{{- call.arguments }}{%- else %}{{- call.arguments | tojson }}{%- endif %}
{{- '}\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\n' }}
{%- elif message.role == 'tool' %}
{{- '<|im_start|>user\n<tool_response>\n' + message.content + '\n</tool_response><|im_end|>\n' }}
{%- else %}
{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}
{%- endif %}
""".strip()

REASONING_TEXT = "<think>\nThe user greets me, so a short reply will do.\n</think>\n\nHello! Forty two is the answer."

TOOL_CALL_TEXT = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>'

_SPACE = "\u2581"  # SentencePiece writes a space as this block
_UNKNOWN, _BOS, _EOS, _FIRST_BYTE, _FIRST_PIECE = 0, 1, 2, 3, 259
_RMS_EPSILON = 1e-5
_ALIGNMENT = 32
_HEAD = 32
_MIN_PIECE = 3  # characters; see split_units

# GGUF version 3, value types
_U32, _I32, _F32, _BOOL, _STR, _ARRAY = 4, 5, 6, 7, 8, 9
_TYPE_NORMAL, _TYPE_UNKNOWN, _TYPE_CONTROL, _TYPE_BYTE = 1, 2, 3, 6


def recital(words: str | Sequence[str] = DEFAULT_WORDS) -> str:
    """The exact text that a model written with these ``words`` says: a string as it is, a sequence joined by spaces."""
    return words if isinstance(words, str) else " ".join(words)


def write_recite_gguf(
    path: str | os.PathLike[str],
    *,
    words: str | Sequence[str] = DEFAULT_WORDS,
    cyclic: bool = False,
    width: int | None = None,
    blocks: int = 1,
    ballast_mib: float = 0.0,
    byte_fallback: bool = True,
    context_length: int = 32768,
    chat_template: str = DEFAULT_CHAT_TEMPLATE,
    weight: float = 8.0,
    name: str = "recite",
) -> Path:
    """Write the model and return its path (an existing file is replaced).

    :param words: the text to recite, a string or words to be joined by spaces; see :func:`recital`. Each token is a
        word with the white space before it; a word that came before already, or one too short to be told from the
        letters of a prompt, is joined with the word after it into one token.
    :param cyclic: start again after the last word, with a space between, and never emit end-of-sequence. Without it
        the same happens only under ``ignore_eos``.
    :param width: embedding size, a multiple of 32 and at least the vocabulary (259 plus one for each token of the
        text, plus one); default the smallest.
    :param blocks: transformer blocks, all zero, which share the ballast. For prompt tokens the engine leaves out the
        feed-forward part of the last block: one block has slow tokens after fast prompts, two or more make the
        prompt slow as well.
    :param ballast_mib: MiB of zero weights added to the feed-forward parts, the knob that makes the model slow on
        purpose. Generating a token reads all of them, so it takes ``ballast_mib`` / memory bandwidth, about 0.1 ms a
        MiB on a small machine (one thread: 50 gave 5 ms a token, 250 gave 24 ms). With ``blocks=2`` a prompt
        token costs about 0.011 ms a MiB (64 gave 0.7 ms, so 1.4 s for 2,000 tokens; 256 gave 2.7 ms). The file has
        this size in holes; the running engine uses it as page cache.
    :param byte_fallback: recite each character outside ASCII as its UTF-8 bytes, one token a byte, as models do with
        characters that they have no token for. Each byte value can stand once in a text; a character that needs one
        again is an ordinary token.
    :param context_length: the training context in tokens that the model claims.
    :param chat_template: Jinja source, stored in the model.
    :param weight: logit of the right successor, above 0; all others have 0. With llama.cpp's default ``min_p`` of
        0.05 the recital is exact below a temperature of ``weight`` / 3; above, or with ``min_p`` 0, it wanders.
    :param name: ``general.name`` of the model.
    :raises ValueError: no text, or a size that does not fit; the message names the argument.
    :raises OSError: the file cannot be written.

    A prompt that ends in a character recited by its bytes is continued after that character.
    """
    text = recital(words)
    _check(text, blocks, ballast_mib, context_length, weight)
    pieces, chain, again = make_vocabulary(split_units(text, byte_fallback))
    n_vocab = _FIRST_PIECE + len(pieces)
    least = -(-n_vocab // _HEAD) * _HEAD
    d = least if width is None else width
    if d < least or d % _HEAD:
        raise ValueError(f"width must be a multiple of {_HEAD} and at least {least} for this text, got {width}")
    feed_forward = max(_HEAD, math.ceil(ballast_mib * 2**20 / (3 * 4 * d * blocks) / _HEAD) * _HEAD)

    metadata = _metadata(
        pieces,
        {
            "general.file_type": 0,  # all F32
            "llama.context_length": context_length,
            "llama.embedding_length": d,
            "llama.block_count": blocks,
            "llama.feed_forward_length": feed_forward,
            "llama.vocab_size": n_vocab,
        },
        {"general.architecture": "llama", "general.name": name, "tokenizer.chat_template": chat_template},
    )
    shapes = _shapes(d, n_vocab, blocks, feed_forward)
    infos, offsets, size = _layout(shapes)
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(shapes), len(metadata)) + b"".join(metadata) + infos
    start = -(-len(head) // _ALIGNMENT) * _ALIGNMENT

    target = Path(path)
    with target.open("wb") as file:
        file.write(head)
        file.truncate(start + size)  # the zeros between are holes

        def put(tensor: str, row: int, column: int, value: float) -> None:
            _put(file, start + offsets[tensor] + (row * shapes[tensor][0] + column) * 4, [value])

        for token in range(n_vocab):
            put("token_embd.weight", token, token, 1.0)
        # RMSNorm blows a one-hot vector up to sqrt(d); this brings the one back to 1, whatever the width.
        _put(file, start + offsets["output_norm.weight"], [math.sqrt(1 / d + _RMS_EPSILON)] * d)
        for block in range(blocks):
            for norm in ("attn_norm", "ffn_norm"):
                _put(file, start + offsets[f"blk.{block}.{norm}.weight"], [1.0] * d)

        for token, after, logit in successor_logits(n_vocab, chain, again, weight, cyclic):
            put("output.weight", after, token, logit)
    return target


def write_reasoning_gguf(path: str | os.PathLike[str], *, text: str = REASONING_TEXT) -> Path:
    """Write a model whose answer starts with ``<think>`` reasoning; its chat template tells llama.cpp that it thinks.

    Chat streams then hold ``reasoning_content`` deltas before the content. Errors as :func:`write_recite_gguf`.
    """
    return write_recite_gguf(path, words=text, chat_template=THINK_AND_TOOLS_CHAT_TEMPLATE, name="recite-reasoning")


def write_tool_call_gguf(path: str | os.PathLike[str], *, text: str = TOOL_CALL_TEXT) -> Path:
    """Write a model that answers with one tool call, ``get_weather`` with the argument ``city``.

    A chat request must declare that function in ``tools``, else the call comes as plain text. Errors as
    :func:`write_recite_gguf`.
    """
    return write_recite_gguf(path, words=text, chat_template=THINK_AND_TOOLS_CHAT_TEMPLATE, name="recite-tool-call")


def _check(text: str, blocks: int, ballast_mib: float, context_length: int, weight: float) -> None:
    """Refuse by name what cannot be written."""
    if len(text.strip()) < _MIN_PIECE:
        raise ValueError(f"words: a recital needs at least {_MIN_PIECE} characters, got {text!r}")
    if blocks < 1:
        raise ValueError(f"blocks must be at least 1, got {blocks}")
    if not ballast_mib >= 0:
        raise ValueError(f"ballast_mib must not be negative, got {ballast_mib}")
    if context_length < 1:
        raise ValueError(f"context_length must be at least 1, got {context_length}")
    if not weight > 0:
        raise ValueError(f"weight must be above 0, got {weight}")


def split_units(text: str, byte_fallback: bool) -> list[tuple[str, bool]]:
    """Cut a text into recited units: (text, recited by its bytes). Joined they are the text.

    Every unit is a state of the recital, so none may come twice. And none that is no byte may be shorter than
    ``_MIN_PIECE`` characters: the SentencePiece tokenizer builds tokens by merging neighbours that are a token
    together, so with no token of one or two characters it never builds a longer one, and prompts stay bytes that
    all lead to the first word.
    """
    units: list[tuple[str, bool]] = []
    used: set[str] = set()
    used_bytes: set[int] = set()
    pending = ""

    def flush(last: bool = False) -> bool:
        nonlocal pending
        while pending:
            if len(pending) >= _MIN_PIECE and pending not in used:
                used.add(pending)
                units.append((pending, False))
                pending = ""
            elif last and units:
                before, _ = units.pop()  # too short or said before, and nothing follows: join it to what came before
                used.discard(before)
                pending = before + pending
            else:
                return False
        return True

    for piece in re.findall(r"\s*\S+|\s+", text):
        parts = re.findall(r"[\x00-\x7f]+|[^\x00-\x7f]", piece) if byte_fallback else [piece]
        for part in parts:
            encoded = part.encode()
            spells = len(part) == 1 and len(encoded) > 1 and len(set(encoded)) == len(encoded)
            if spells and byte_fallback and used_bytes.isdisjoint(encoded) and flush():
                used_bytes.update(encoded)
                units.append((part, True))
            else:
                pending += part
        flush()
    flush(last=True)
    return units


def make_vocabulary(units: list[tuple[str, bool]]) -> tuple[list[str], list[int], int]:
    """The added pieces, the chain of token ids that recites the units, and the token that starts a further round."""
    pieces: list[str] = []
    chain: list[int] = []
    for unit, by_bytes in units:
        if by_bytes:
            chain += [_FIRST_BYTE + byte for byte in unit.encode()]
        else:
            chain.append(_FIRST_PIECE + len(pieces))
            pieces.append(unit.replace(" ", _SPACE))
    first, by_bytes = units[0]
    spaced = _SPACE + first.replace(" ", _SPACE)
    if by_bytes or spaced in pieces:
        return pieces, chain, chain[0]
    return [*pieces, spaced], chain, _FIRST_PIECE + len(pieces)


def successor_logits(
    n_vocab: int, chain: list[int], again: int, weight: float, cyclic: bool
) -> Iterator[tuple[int, int, float]]:
    """The entries of the output matrix: after this token that one, with this logit."""
    after = dict.fromkeys(range(n_vocab), chain[0])
    after.update(pairwise(chain))
    if len(chain) > 1:
        after[again] = chain[1]
    # `again` says the first piece with a space before it, so where that is the whole recital it is a last piece, too.
    last = {chain[-1]} if len(chain) > 1 else {chain[0], again}
    for token in range(n_vocab):
        if token not in last:
            yield token, after[token], weight
        elif cyclic:
            yield token, again, weight
        else:
            yield token, _EOS, weight
            yield token, again, weight / 2  # said as soon as ignore_eos bans the end


def _shapes(d: int, n_vocab: int, blocks: int, feed_forward: int) -> dict[str, tuple[int, ...]]:
    """Name -> shape of each F32 tensor in GGUF order, the contiguous dimension first."""
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (d, n_vocab)}
    for block in range(blocks):
        shapes |= {
            f"blk.{block}.attn_norm.weight": (d,),
            f"blk.{block}.attn_q.weight": (d, _HEAD),
            f"blk.{block}.attn_k.weight": (d, _HEAD),
            f"blk.{block}.attn_v.weight": (d, _HEAD),
            f"blk.{block}.attn_output.weight": (_HEAD, d),
            f"blk.{block}.ffn_norm.weight": (d,),
            f"blk.{block}.ffn_gate.weight": (d, feed_forward),
            f"blk.{block}.ffn_up.weight": (d, feed_forward),
            f"blk.{block}.ffn_down.weight": (feed_forward, d),
        }
    return shapes | {"output_norm.weight": (d,), "output.weight": (d, n_vocab)}


def _layout(shapes: dict[str, tuple[int, ...]]) -> tuple[bytes, dict[str, int], int]:
    """What a GGUF file's head says of its tensors, where each one begins in its data, and the size of that."""
    offsets: dict[str, int] = {}
    size = 0
    infos = bytearray()
    for tensor, shape in shapes.items():
        offsets[tensor] = size
        infos += _string(tensor) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, 0, size)
        size += -(-math.prod(shape) * 4 // _ALIGNMENT) * _ALIGNMENT
    return bytes(infos), offsets, size


def _metadata(pieces: list[str], numbers: dict[str, int], texts: dict[str, str]) -> list[bytes]:
    """The encoded key-value pairs of the file."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    types = [_TYPE_UNKNOWN, _TYPE_CONTROL, _TYPE_CONTROL] + [_TYPE_BYTE] * 256 + [_TYPE_NORMAL] * len(pieces)
    scores = [0.0] * 3 + [-1000.0] * 256 + [-1.0 - index for index in range(len(pieces))]
    n = len(tokens)

    def array(key: str, item_type: int, items: bytes) -> bytes:
        return _string(key) + struct.pack("<IIQ", _ARRAY, item_type, n) + items

    numbers = numbers | {
        # One narrow head, whatever the width: attention adds nothing and is to cost next to nothing.
        "llama.attention.head_count": 1,
        "llama.attention.head_count_kv": 1,
        "llama.attention.key_length": _HEAD,
        "llama.attention.value_length": _HEAD,
        "llama.rope.dimension_count": _HEAD,
        "tokenizer.ggml.unknown_token_id": _UNKNOWN,
        "tokenizer.ggml.bos_token_id": _BOS,
        "tokenizer.ggml.eos_token_id": _EOS,
    }
    return [
        *(_string(key) + struct.pack("<I", _STR) + _string(value) for key, value in texts.items()),
        _string("tokenizer.ggml.model") + struct.pack("<I", _STR) + _string("llama"),
        *(_string(key) + struct.pack("<II", _U32, value) for key, value in numbers.items()),
        _string("llama.attention.layer_norm_rms_epsilon") + struct.pack("<If", _F32, _RMS_EPSILON),
        array("tokenizer.ggml.tokens", _STR, b"".join(map(_string, tokens))),
        array("tokenizer.ggml.scores", _F32, struct.pack(f"<{n}f", *scores)),
        array("tokenizer.ggml.token_type", _I32, struct.pack(f"<{n}i", *types)),
        _string("tokenizer.ggml.add_bos_token") + struct.pack("<I?", _BOOL, True),
        _string("tokenizer.ggml.add_space_prefix") + struct.pack("<I?", _BOOL, False),
    ]


def _string(value: str) -> bytes:
    encoded = value.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def _put(file: BinaryIO, offset: int, values: Sequence[float]) -> None:
    file.seek(offset)
    file.write(struct.pack(f"<{len(values)}f", *values))

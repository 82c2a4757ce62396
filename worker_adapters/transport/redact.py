"""Keeps secrets and prompts out of everything a person or a log may see."""

from __future__ import annotations

import re
from collections.abc import Iterable

SHOWN = 500
MASK = "***"
#: The shortest run of a prompt that counts as quoting it.
QUOTED = 8

_SHAPES = (
    # Keys by the shapes their issuers give them, wherever they stand.
    (re.compile(r"\b(?:sk|pk|rk|hf|gsk|xai|nvapi|ghp|gho|github_pat|glpat|AKIA|AIza)[-_A-Za-z0-9]{12,}"), MASK),
    (re.compile(r"\beyJ[-_A-Za-z0-9]{8,}\.[-_A-Za-z0-9.]+"), MASK),
    (re.compile(r"(?i)\b(bearer|basic)\s+[^\s,;\"']+"), rf"\1 {MASK}"),
    # A header with a scheme of its own before the secret: all of its value.
    (
        re.compile(r"(?i)\b((?:proxy-)?authorization[\"']?\s*[:=]\s*[\"']?)(?!bearer |basic )[^\"'&,;\r\n]+"),
        rf"\1{MASK}",
    ),
    # Anything that is introduced as a secret: headers, JSON, URL queries, variables.
    (
        re.compile(r"(?i)((?:api[-_]?key|token|secret|password|signature)[\"']?\s*[:=]\s*[\"']?)[^\s\"'&,;]+"),
        rf"\1{MASK}",
    ),
    # What stands before the @ of a URL; the last one, since a password may hold another.
    (re.compile(r"(?i)\b([a-z][a-z0-9+.-]{0,20}://)[^/\s]+@"), rf"\1{MASK}@"),
)  # fmt: skip

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


def clean(text: str, secrets: Iterable[str] = (), prompts: Iterable[str] = ()) -> str:
    """One short line fit for a message: no known secret, nothing shaped like one, no quotation of a prompt.

    :param secrets: values to mask wherever they stand.
    :param prompts: texts of which no run of 8 characters may stand in the result, nor the whole if it is shorter.
    """
    for secret in secrets:
        if secret:
            text = text.replace(secret, MASK)
    text = _cut(text, 4 * SHOWN)
    for shape, mask in _SHAPES:  # before the prompts: a quotation cut out of a key would hide its shape
        text = shape.sub(mask, text)
    for prompt in prompts:
        text = _without_quotes(text, prompt)
    text = _CONTROL.sub(" ", text).strip()
    return text if len(text) <= SHOWN else text[:SHOWN] + "..."


def _cut(text: str, size: int) -> str:
    """At most ``size`` characters, and no half of a word: half a key no longer looks like one."""
    if len(text) <= size:
        return text
    words = text[: size + 1].rsplit(maxsplit=1)
    return words[0] if len(words) > 1 else ""


def _without_quotes(text: str, prompt: str) -> str:
    """Every run of ``text`` that stands in ``prompt`` too, replaced by ``[...]``; in time linear in both."""
    if len(prompt) < QUOTED:
        return text.replace(prompt, "[...]") if len(prompt) >= 4 else text
    places = range(len(text) - QUOTED + 1)
    runs = {text[at : at + QUOTED] for at in places}
    if len(runs) < 200:  # a usual message: each run is looked for, at C speed
        quoted = {run for run in runs if run in prompt}
    else:  # a long one, where that would take seconds with a long prompt
        quoted = {run for at in range(len(prompt) - QUOTED + 1) if (run := prompt[at : at + QUOTED]) in runs}
    kept, shown_from = [], 0
    for at in places:
        if text[at : at + QUOTED] not in quoted:
            continue
        if at > shown_from:
            kept.append(text[shown_from:at])
        if at >= shown_from:
            kept.append("[...]")
        shown_from = at + QUOTED
    return "".join(kept) + text[shown_from:]

"""The prompts of the fidelity study: twelve texts of four kinds, half to tune predictors on, half to report on.

Of 950 to 1,800 tokens each: passages of an essay, news to summarise, a needle among lines of noise (RULER), worked problems before one to
solve (GSM8K). Halves share no text.
"""

import json
import os
from dataclasses import dataclass

from .errors import UserError

_LENGTH = 4300  # characters, about 1,000 tokens
_LINES, _EXAMPLES = 15, 8


@dataclass(frozen=True)
class Prompt:
    """`half` is "tuning" or "reporting"; `place` says which passage, article, line or group of problems of the file."""

    kind: str
    file: str
    place: int
    half: str

    @property
    def name(self):
        stem = self.file.removesuffix(".txt") if self.kind == "essay" else self.kind
        return f"{stem}-{self.place}"


# In the order in which they run: whatever is finished has all kinds and both halves in nearly equal numbers.
PROMPTS = (
    Prompt("essay", "essay-useful.txt", 0, "tuning"),
    Prompt("news", "longbench-multi-news.jsonl", 3, "reporting"),
    Prompt("needle", "ruler-niah-multikey-4k.jsonl", 0, "tuning"),
    Prompt("arithmetic", "gsm8k.jsonl", 3, "reporting"),
    Prompt("essay", "essay-hubs.txt", 1, "reporting"),
    Prompt("news", "longbench-multi-news.jsonl", 0, "tuning"),
    Prompt("needle", "ruler-niah-multikey-4k.jsonl", 3, "reporting"),
    Prompt("arithmetic", "gsm8k.jsonl", 0, "tuning"),
    Prompt("essay", "essay-avg.txt", 1, "reporting"),
    Prompt("news", "longbench-multi-news.jsonl", 1, "tuning"),
    Prompt("needle", "ruler-niah-multikey-4k.jsonl", 4, "reporting"),
    Prompt("arithmetic", "gsm8k.jsonl", 1, "tuning"),
)


def text_of(prompt, data):
    """The prompt's text, from the files in `data`. Raises UserError for a file that is missing or too short."""
    path = os.path.join(data, prompt.file)
    try:
        return _MAKERS[prompt.kind](path, prompt.place)
    except OSError as error:
        raise UserError(
            f"cannot read {path}: {error.strerror or error}; --data names the folder with the prompts"
        ) from None
    except (ValueError, KeyError, IndexError, StopIteration):
        raise UserError(f"{path} is not what the study knows, or too short for its number {prompt.place}") from None


def _rows(path):
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.strip()]


def _sentences(text, start, length):
    """About `length` characters from `start` on, whole sentences."""
    if start:
        start = text.index(". ", start) + 2
    cut = text[start : start + length]
    return cut[: cut.rindex(". ") + 1].strip()


def _essay(path, place):
    with open(path, encoding="utf-8") as file:
        return _sentences(file.read(), place * _LENGTH, _LENGTH)


def _news(path, place):
    passages = _rows(path)[place]["context"].replace("NEWLINE_CHAR", "\n")
    return (
        "You are given several news passages. Write a summary of all news.\n\n"
        + _sentences(passages, 0, _LENGTH)
        + "\n---\nNow write a one-page summary of all the news above."
    )


def _needle(path, place):
    """The needle stands at another line of the excerpt for every place."""
    row = _rows(path)[place]
    head, *body, question = row["input"].split("\n")
    at = next(i for i, line in enumerate(body) if row["outputs"][0] in line)
    first = max(0, min(at - (4 + 3 * place) % (_LINES - 1), len(body) - _LINES))
    return "\n".join([head, *body[first : first + _LINES], question])


def _arithmetic(path, place):
    problems = _rows(path)[_EXAMPLES * place : _EXAMPLES * (place + 1)]
    worked = [f"Question: {p['question']}\nAnswer: {p['answer']}\n\n" for p in problems[: _EXAMPLES - 1]]
    return "".join(worked) + f"Question: {problems[_EXAMPLES - 1]['question']}\nAnswer:"


_MAKERS = {"essay": _essay, "news": _news, "needle": _needle, "arithmetic": _arithmetic}

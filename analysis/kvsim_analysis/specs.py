"""Parses policy specs and finds the shortest labels that still tell variants apart."""

from collections import defaultdict
from dataclasses import dataclass
from typing import Dict, List, Union

from .errors import UserError


@dataclass(frozen=True)
class Spec:
    """A policy with its parameters: `name(key=value,...)`; values are text, lists or policies."""

    name: str
    values: Dict[str, "Value"]


Value = Union[str, List["Value"], Spec]


# Parameters that hold a policy (or a predictor) even where it is written as a bare word.
_WRAPPED = ("score", "base", "predictor", "first", "second")


class _Parser:
    def __init__(self, text):
        self.text, self.at = text, 0

    def fail(self, what):
        raise UserError(f"cannot read the spec '{self.text}': {what} at character {self.at + 1}")

    def peek(self):
        while self.at < len(self.text) and self.text[self.at].isspace():
            self.at += 1
        return self.text[self.at] if self.at < len(self.text) else ""

    def take(self, char):
        if self.peek() != char:
            self.fail(f"expected '{char}'")
        self.at += 1

    def word(self):
        self.peek()
        start = self.at
        while self.at < len(self.text) and self.text[self.at] not in '()[]{},="' and not self.text[self.at].isspace():
            self.at += 1
        if start == self.at:
            self.fail("expected a word")
        return self.text[start : self.at]

    def quoted(self):
        start = self.at
        self.at += 1
        while self.at < len(self.text) and self.text[self.at] != '"':
            self.at += 2 if self.text[self.at] == "\\" else 1
        if self.at >= len(self.text):
            self.fail("a quote is not closed")
        self.at += 1
        return self.text[start : self.at]

    def value(self):
        char = self.peek()
        if char == '"':
            return self.quoted()
        if char == "[":
            self.take("[")
            items = []
            while self.peek() != "]":
                items.append(self.value())
                if self.peek() == ",":
                    self.take(",")
            self.take("]")
            return items
        word = self.word()
        return self.arguments(word) if self.peek() == "(" else word

    def arguments(self, name):
        self.take("(")
        values = {}
        while self.peek() != ")":
            mark = self.at
            key = self.word() if self.peek() not in ('"', "[") else None
            if key is not None and self.peek() == "=":
                self.take("=")
                value = self.value()
                values[key] = Spec(value, {}) if key in _WRAPPED and isinstance(value, str) else value
            else:  # a positional value
                self.at = mark
                values[f"#{len(values)}"] = self.value()
            if self.peek() == ",":
                self.take(",")
            elif self.peek() != ")":
                self.fail("expected ',' or ')'")
        self.take(")")
        return Spec(name, values)


def parse(text):
    """The Spec of `name` or `name(key=value,...)`; raises UserError with the place of the fault."""
    parser = _Parser(text)
    spec = parser.value()
    if parser.peek():
        parser.fail("unexpected text")
    return Spec(spec, {}) if isinstance(spec, str) else spec


def matches(pattern, spec):
    """True if `spec` is the policy of `pattern` and agrees with every parameter that pattern names."""
    if isinstance(pattern, str) and isinstance(spec, Spec):
        return pattern == spec.name
    if not isinstance(pattern, Spec) or not isinstance(spec, Spec):
        return _same(pattern, spec)
    if pattern.name != spec.name:
        return False
    keys = list(spec.values)
    for key, value in pattern.values.items():
        name = keys[0] if key == "#0" and keys else key
        if name not in spec.values or not matches(value, spec.values[name]):
            return False
    return True


def _same(a, b):
    try:
        return float(a) == float(b)
    except (TypeError, ValueError):
        return a == b


def _text(value, whole_paths=False):
    """A short text of a value; lists keep their brackets, paths lose their folder unless asked not to."""
    if isinstance(value, list):
        return "[" + ",".join(_text(v, whole_paths) for v in value) + "]"
    if isinstance(value, Spec):
        return value.name
    if value.startswith('"'):
        return value[1:-1] if whole_paths else value[1:-1].rsplit("/", 1)[-1]
    return value


def _flatten(spec, path=()):
    """Parameters as {path: text}; a path names the policies it passes, so only like is compared with like."""
    flat = {}
    for key, value in spec.values.items():
        here = path + ((spec.name, key),)
        if isinstance(value, Spec):
            flat.update(_flatten(value, here))
        else:
            flat[here] = _text(value, whole_paths=True)
    return flat


def _render(spec, shown, whole_paths=False, path=()):
    """The policy's name, the policies inside it, and those parameters whose path is in `shown`."""
    inside, after = [], []
    for key, value in spec.values.items():
        here = path + ((spec.name, key),)
        if isinstance(value, Spec):
            inside.append(_render(value, shown, whole_paths, here))
        elif here in shown:
            after.append(("" if key.startswith("#") else f"{key}=") + _text(value, whole_paths))
    name = spec.name + (f"({', '.join(inside)})" if inside else "")
    return " ".join([name, *after])


def short_labels(texts):
    """Labels for canonical specs, in order: the policy and only the parameters in which its variants differ.

    `snapkv(window=16,kernel=5)` and `snapkv(window=32,kernel=5)` become `snapkv window=16` and
    `snapkv window=32`; a policy with one variant is just its name; wrappers always show what they wrap.
    Two different specs never get the same label: where shortening collides, the full spec stands.
    """
    texts = [str(t) for t in texts]
    parsed = {}
    for text in dict.fromkeys(texts):
        try:
            parsed[text] = parse(text)
        except UserError:
            parsed[text] = None  # unreadable specs label themselves
    families = defaultdict(list)
    for text, spec in parsed.items():
        if spec is not None:
            families[spec.name].append(text)
    labels = {text: text for text in parsed}
    for members in families.values():
        flats = [_flatten(parsed[m]) for m in members]
        paths = {p for flat in flats for p in flat}
        shown = {p for p in paths if len({flat[p] for flat in flats if p in flat}) > 1}
        short = [_render(parsed[m], shown) for m in members]
        if len(set(short)) < len(short):
            short = [_render(parsed[m], shown, whole_paths=True) for m in members]
        labels.update(zip(members, short))
    count = defaultdict(int)
    for label in labels.values():
        count[label] += 1
    return [labels[t] if count[labels[t]] == 1 else t for t in texts]

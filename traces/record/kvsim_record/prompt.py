"""From text or a conversation to tokens: the rendered prompt, its segments and turns, evidence, and token texts."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

from .errors import RecordError

_RULE = re.compile(r"^[ \t]*-{3,}[ \t]*$", re.MULTILINE)
_PARAGRAPH = re.compile(r"\n[ \t]*\n")
_ROLE_KINDS = {"system": "system", "user": "question", "assistant": "answer"}
_LOOK_BACK = 8  # tokens of context that settle how a token reads


@dataclass
class Part:
    """A stretch of the conversation that becomes a segment."""

    kind: str
    text: str
    turn: int = 0


@dataclass
class Segment:
    begin: int
    end: int
    kind: str
    turn: int


@dataclass
class Prompt:
    """Token ids and text of the prompt; `offsets` are the tokens' character ranges in `text`."""

    ids: list[int]
    text: str
    offsets: list[tuple[int, int]]
    segments: list[Segment] = field(default_factory=list)
    turn: int = 0  # the turn that the decoded tokens answer
    templated: bool = False

    @property
    def prefix(self) -> int:
        """Tokens of a chat template (and of a system message) before the first text."""
        texts = [segment.begin for segment in self.segments if segment.kind != "system"]
        return min(texts) if self.templated and texts else 0


def read_text(path: str) -> str:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecordError(f"{path}: cannot be read as text ({error})") from error
    if not text.strip():
        raise RecordError(f"{path}: is empty")
    return text


def split_parts(text: str, kinds: list[str]) -> list[Part]:
    """Cuts the text at lines of dashes, or, for two kinds without such lines, before the last paragraph."""
    pieces = [piece.strip() for piece in _RULE.split(text)]
    if len(pieces) == 1 and len(kinds) == 2:
        breaks = list(_PARAGRAPH.finditer(text.strip()))
        if breaks:
            cut = breaks[-1]
            pieces = [text.strip()[: cut.start()].strip(), text.strip()[cut.end() :].strip()]
    if len(pieces) != len(kinds) or not all(pieces):
        raise RecordError(f"--split {':'.join(kinds)}: the prompt has {len(pieces)} part(s), not {len(kinds)}; "
                          "put a line of three dashes between the parts")
    return [Part(kind, piece) for kind, piece in zip(kinds, pieces)]


def plain(tokenizer, parts: list[Part], instruct: bool) -> Prompt:
    """A prompt of parts joined by empty lines, as it stands or as a user's message in the model's chat template."""
    text = "\n\n".join(part.text for part in parts) if len(parts) > 1 else parts[0].text
    if instruct:
        text = render(tokenizer, [{"role": "user", "content": text}])
    return _tokenise(tokenizer, text, parts, templated=instruct)


def render(tokenizer, messages: list[dict]) -> str:
    if getattr(tokenizer, "chat_template", None) is None:
        raise RecordError("the model's tokenizer has no chat template; record without --instruct and --chat")
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def read_chat(path: str) -> tuple[list[dict], str | None]:
    """Messages (role, content) and the shared context of a JSON file; see the help for its two forms."""
    try:
        data = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise RecordError(f"{path}: not JSON ({error})") from error
    if isinstance(data, list):
        return [_message(path, item) for item in data], None
    if not isinstance(data, dict) or not isinstance(data.get("turns"), list) or not data["turns"]:
        raise RecordError(f"{path}: expected a list of messages, or an object with `turns` (and `context`, `system`)")
    messages = [{"role": "system", "content": data["system"]}] if data.get("system") else []
    context = data.get("context")
    for number, turn in enumerate(data["turns"]):
        turn = {"question": turn} if isinstance(turn, str) else turn
        if not isinstance(turn, dict) or not isinstance(turn.get("question"), str):
            raise RecordError(f"{path}: turn {number} needs a `question`")
        content = f"{context}\n\n{turn['question']}" if number == 0 and context else turn["question"]
        messages.append({"role": "user", "content": content})
        if turn.get("answer"):
            messages.append({"role": "assistant", "content": turn["answer"]})
    return messages, context


def _message(path: str, item) -> dict:
    if not isinstance(item, dict) or not isinstance(item.get("role"), str) or not isinstance(item.get("content"), str):
        raise RecordError(f"{path}: every message needs `role` and `content`")
    return {"role": item["role"], "content": item["content"]}


def conversation(tokenizer, messages: list[dict], context: str | None, answer) -> Prompt:
    """Renders a conversation whose last message is the user's; `answer(prompt)` supplies replies that are missing in between."""
    while messages and messages[-1]["role"] == "assistant":
        raise RecordError("--chat: the last message must be a question, its answer is what is recorded (or give it with --continue)")
    complete: list[dict] = []
    for message in messages:
        if message["role"] == "user" and complete and complete[-1]["role"] == "user":
            reply = answer(_from_messages(tokenizer, complete, context))
            complete.append({"role": "assistant", "content": reply})
        complete.append(message)
    if not any(message["role"] == "user" for message in complete):
        raise RecordError("--chat: there is no user's message")
    return _from_messages(tokenizer, complete, context)


def _from_messages(tokenizer, messages: list[dict], context: str | None) -> Prompt:
    parts, turn = [], -1
    for message in messages:
        content = message["content"]
        if message["role"] == "user":
            turn += 1
            if turn == 0 and context and content.startswith(context):
                parts.append(Part("context", context.strip()))
                content = content[len(context) :]
        parts.append(Part(_ROLE_KINDS.get(message["role"], message["role"]), content.strip(), max(turn, 0)))
    prompt = _tokenise(tokenizer, render(tokenizer, messages), parts, templated=True)
    prompt.turn = max(turn, 0)
    prompt.segments += _turns(prompt)
    return prompt


def _turns(prompt: Prompt) -> list[Segment]:
    """One segment of kind `turn` from each question (the first: its context) to the next one."""
    starts = {}
    for segment in prompt.segments:
        if segment.kind in ("context", "question"):
            starts.setdefault(segment.turn, segment.begin)
    order = sorted(starts)
    ends = [starts[turn] for turn in order[1:]] + [len(prompt.ids)]
    return [Segment(starts[turn], end, "turn", turn) for turn, end in zip(order, ends)]


def _tokenise(tokenizer, text: str, parts: list[Part], templated: bool) -> Prompt:
    if not getattr(tokenizer, "is_fast", False):
        ids = tokenizer(text, add_special_tokens=not templated)["input_ids"]
        return Prompt(list(ids), text, [], templated=templated)
    encoded = tokenizer(text, add_special_tokens=not templated, return_offsets_mapping=True)
    prompt = Prompt(list(encoded["input_ids"]), text, [tuple(pair) for pair in encoded["offset_mapping"]],
                    templated=templated)
    place = 0
    for part in parts:
        at = text.find(part.text, place)
        if at < 0:
            raise RecordError(f"the chat template changes the {part.kind} so that it cannot be found in the prompt")
        prompt.segments.append(_segment(prompt, at, at + len(part.text), part.kind, part.turn))
        place = at + len(part.text)
    first = prompt.segments[0] if prompt.segments else None
    if templated and first and first.begin > 0 and first.kind != "system":
        prompt.segments.insert(0, Segment(0, first.begin, "system", 0))
    return prompt


def _segment(prompt: Prompt, begin: int, end: int, kind: str, turn: int) -> Segment:
    inside = [i for i, (first, last) in enumerate(prompt.offsets) if last > begin and first < end and last > first]
    if not inside:
        raise RecordError(f"the {kind} has no token of its own")
    return Segment(inside[0], inside[-1] + 1, kind, turn)


def mark_evidence(prompt: Prompt, text: str) -> None:
    """Adds a segment `evidence` for every place where the text stands (line breaks and spaces count alike)."""
    if not prompt.offsets:
        raise RecordError("--evidence: this tokenizer does not tell where its tokens stand in the text")
    words = [re.escape(word) for word in text.split()]
    places = list(re.finditer(r"\s+".join(words), prompt.text)) if words else []
    if not places:
        shown = text if len(text) <= 60 else text[:57] + "..."
        raise RecordError(f"--evidence '{shown}': not found in the prompt")
    for place in places:
        segment = _segment(prompt, place.start(), place.end(), "evidence", 0)
        around = [s.turn for s in prompt.segments if s.kind == "turn" and s.begin <= segment.begin < s.end]
        segment.turn = around[0] if around else 0
        prompt.segments.append(segment)


def token_texts(tokenizer, ids: list[int]) -> list[str]:
    """Each token's text; joined they are the decoded sequence. Half characters count to the token that completes them."""
    texts, settled = [], 0

    def decoded(begin: int, end: int) -> str:
        return tokenizer.decode(ids[begin:end], skip_special_tokens=False, clean_up_tokenization_spaces=False)

    for i in range(len(ids)):
        begin = max(0, settled - _LOOK_BACK)
        whole = decoded(begin, i + 1)
        if whole.endswith("\ufffd") and i + 1 - settled < 4 and i + 1 < len(ids):
            texts.append("")
            continue
        texts.append(whole[len(decoded(begin, settled)) :] if settled > begin else whole)
        settled = i + 1
    return texts

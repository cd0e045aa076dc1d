"""Segments, turns, evidence and token texts: every mark lies exactly on its text."""

import json

import pytest
from tiny_models import TEXT
from record_reference import Trace

CONTEXT, QUESTION = TEXT.rsplit("\n\n", 1)


def marked(trace, kind):
    return [(trace.text(b, e), t) for b, e, t in trace.segments(kind)]


def test_token_texts_join_to_the_prompt_even_where_a_character_takes_several_tokens(recorded):
    trace = Trace(recorded("llama"))
    assert "é" in TEXT and len(TEXT.encode()) > len(TEXT)
    assert trace.text(0, trace.prompt) == TEXT
    assert len(trace.texts) == len(trace.ids) == trace.prompt + trace.decode


def test_without_a_split_the_prompt_is_context_and_the_rest_answer(recorded):
    trace = Trace(recorded("llama"))
    assert trace.segments("context") == [(0, trace.prompt, 0)]
    assert trace.segments("answer") == [(trace.prompt, trace.prompt + 12, 0)]


def test_split_takes_the_last_paragraph_as_the_question(run):
    trace = Trace(run("llama", "--split", "context:question")[1])
    assert marked(trace, "context") == [(CONTEXT, 0)] and marked(trace, "question") == [(QUESTION, 0)]


def test_split_cuts_at_lines_of_dashes(run):
    trace = Trace(run("llama", "--split", "system:context:question", text="Be brief.\n---\nOne.\n\nTwo.\n-----\nWhich?")[1])
    assert [marked(trace, kind) for kind in ("system", "context", "question")] == [[("Be brief.", 0)], [("One.\n\nTwo.", 0)], [("Which?", 0)]]
    assert trace.text(0, trace.prompt) == "Be brief.\n\nOne.\n\nTwo.\n\nWhich?"


def test_instruct_wraps_the_prompt_in_the_chat_template(run):
    trace = Trace(run("llama", "--instruct", "--split", "context:question")[1])
    assert trace.text(0, trace.prompt) == f"<|user|>{TEXT}<|end|><|assistant|>"
    assert marked(trace, "context") == [(CONTEXT, 0)] and marked(trace, "question") == [(QUESTION, 0)]
    assert marked(trace, "system") == [("<|user|>", 0)]


def test_evidence_is_marked_wherever_it_stands_and_spaces_do_not_matter(run):
    trace = Trace(run("llama", "--evidence", "the  green\nstone", "--evidence", "The ferry", text="The ferry. the green stone; the green stone?")[1])
    assert marked(trace, "evidence") == [("The ferry", 0), ("the green stone", 0), ("the green stone", 0)]


def test_evidence_that_is_not_there_is_an_error(run, capsys):
    code, path = run("llama", "--evidence", "the red stone")
    assert code == 2 and not path.exists()
    assert "--evidence 'the red stone': not found in the prompt" in capsys.readouterr().err


def chat_file(tmp_path, data):
    path = tmp_path / "turns.json"
    path.write_text(json.dumps(data))
    return str(path)


def test_a_chat_with_given_answers_marks_segments_and_turns(run, tmp_path):
    turns = {"system": "Be kind.", "context": "The key is green.", "turns": [{"question": "Which colour?", "answer": "Green."}, "Sure?"]}
    trace = Trace(run("llama", "--chat", chat_file(tmp_path, turns), "--evidence", "key is green")[1])
    rendered = ("<|system|>Be kind.<|end|><|user|>The key is green.\n\nWhich colour?<|end|><|assistant|>Green.<|end|>"
                "<|user|>Sure?<|end|><|assistant|>")
    assert trace.text(0, trace.prompt) == rendered
    assert marked(trace, "system") == [("Be kind.", 0)] and marked(trace, "context") == [("The key is green.", 0)]
    assert marked(trace, "question") == [("Which colour?", 0), ("Sure?", 1)]
    (first, turn), (_, last_turn) = marked(trace, "answer")
    assert (first, turn, last_turn) == ("Green.", 0, 1)
    (begin, middle, zero), (after, end, one) = trace.segments("turn")
    assert (zero, one) == (0, 1) and middle == after and end == trace.prompt + trace.decode
    assert trace.text(begin, begin + 3) == "The" and trace.text(after, after + 5) == "Sure?"
    assert marked(trace, "evidence") == [("key is green", 0)]


def test_missing_answers_between_turns_are_the_models_own(run, tmp_path):
    messages = [{"role": "user", "content": "One?"}, {"role": "user", "content": "Two?"}]
    trace = Trace(run("llama", "--chat", chat_file(tmp_path, messages), decode=6)[1])
    text = trace.text(0, trace.prompt)
    assert text.startswith("<|user|>One?<|end|><|assistant|>") and text.endswith("<|end|><|user|>Two?<|end|><|assistant|>")
    assert len(trace.segments("answer")) == 2 and [t for _, _, t in trace.segments("answer")] == [0, 1]


@pytest.mark.parametrize("data,message", [
    ({"turns": []}, "expected a list of messages"),
    ([{"role": "user"}], "every message needs `role` and `content`"),
    ([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "the last message must be a question"),
])
def test_a_chat_of_another_form_is_refused(data, message, run, tmp_path, capsys):
    assert run("llama", "--chat", chat_file(tmp_path, data))[0] == 2
    assert message in capsys.readouterr().err

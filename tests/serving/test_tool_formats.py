"""Each family's calls are found in its text however it is cut, and made by its grammar whatever the model prefers."""

import json
import random
from collections.abc import Sequence
from typing import Any

import jsonschema
import pytest
from fake_engine import tiny_tokenizer
from llguidance import LLMatcher, LLTokenizer
from tokenizers import AddedToken, Tokenizer

from penstock.serving.text.pieces import CallBegin, CallFinish, CallPart, ReasoningPiece, TextPiece
from penstock.serving.text.reasoning import ThinkMarkers
from penstock.serving.text.token_table import TokenTable
from penstock.serving.text.tool_formats.apriel import APRIEL
from penstock.serving.text.tool_formats.deepseek import DeepSeekFormat
from penstock.serving.text.tool_formats.detect import detect_tool_format
from penstock.serving.text.tool_formats.format import ToolFormat
from penstock.serving.text.tool_formats.granite import GRANITE
from penstock.serving.text.tool_formats.harmony import HARMONY
from penstock.serving.text.tool_formats.hermes import HERMES
from penstock.serving.text.tool_formats.llama import LLAMA
from penstock.serving.text.tool_formats.mistral import MistralFormat
from penstock.serving.text.tool_formats.nemotron import NEMOTRON
from penstock.serving.text.tool_formats.phi import phi_format
from penstock.serving.text.tool_formats.plain_json import PLAIN_JSON
from penstock.serving.text.tool_formats.prompted import PROMPTED
from penstock.serving.text.tool_formats.qwen_coder import QwenCoderFormat
from penstock.serving.text.tool_formats.tokens import ControlTokens
from penstock.serving.text.tools import CustomFormat, Tool
from penstock.serving.text.turn_grammar import (
    Frame,
    calls_in_text_grammar,
    demanded_calls_grammar,
    harmony_frame,
    think_frame,
)

CITY = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 6}}, "required": ["city"]}
NUMBERS = {
    "type": "object",
    "properties": {
        "n": {"type": "integer", "minimum": 0, "maximum": 99},
        "unit": {"enum": ["cm", "in"], "type": "string"},
        "deep": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
    },
    "required": ["n", "unit"],
    "additionalProperties": False,
}
TOOLS = {
    "weather": Tool(name="weather", parameters=CITY, strict=True),
    "ruler": Tool(name="ruler", parameters=NUMBERS),
    "patch": Tool(name="patch", custom=True, format=CustomFormat("regex", "[a-c]{2,4}")),
}
FUNCTIONS = {name: tool for name, tool in TOOLS.items() if not tool.custom}
NO_TOKENS = ControlTokens({})
D = {name: f"<\uff5ctool\u2581{name}\uff5c>" for name in ("calls\u2581begin", "calls\u2581end", "call\u2581begin")}
BEGINS, ENDS, BEGIN = D.values()
END, SEP = "<\uff5ctool\u2581call\u2581end\uff5c>", "<\uff5ctool\u2581sep\uff5c>"

FORMATS: dict[str, ToolFormat] = {
    "hermes": HERMES,
    "granite": GRANITE,
    "phi": phi_format(reads_tools=False),
    "nemotron": NEMOTRON,
    "apriel": APRIEL,
    "mistral": MistralFormat(names_first=False),
    "mistral names": MistralFormat(names_first=True),
    "deepseek": DeepSeekFormat(fenced=True, reads_tools=False),
    "deepseek 3.1": DeepSeekFormat(fenced=False, reads_tools=True),
    "llama": LLAMA,
    "plain": PLAIN_JSON,
    "prompted": PROMPTED,
    "qwen coder": QwenCoderFormat(),
    "harmony": HARMONY,
}


def parse(
    format_: ToolFormat, pieces: Sequence[str], *, complete: bool = True, tokens: ControlTokens = NO_TOKENS
) -> tuple[str, list[tuple[str, str, bool]]]:
    """The text for the client, and the calls: name, arguments, whether they ended."""
    parser = format_.parser(TOOLS, tokens)
    raw = text = ""
    calls: list[tuple[str, str, bool]] = []
    found = []
    for piece in pieces:
        found += parser.feed(piece, len(raw)) if piece else []
        raw += piece
    for piece in [*found, *parser.finish(complete=complete)]:
        match piece:
            case TextPiece(text=said, start=start):
                assert raw[start : start + len(said)] == said
                text += said
            case CallBegin(name=name):
                assert all(ended for _, _, ended in calls)
                calls.append((name, "", False))
            case CallPart(text=part):
                name, arguments, _ = calls[-1]
                calls[-1] = (name, arguments + part, False)
            case CallFinish():
                calls[-1] = (*calls[-1][:2], True)
    return text, calls


ROME = '{"city": "Ro\\"me"}'
WEATHER = ("weather", ROME, True)
RULER = ("ruler", '{"n": 1, "unit": "cm"}', True)
SAMPLES: list[tuple[str, str, str, list[tuple[str, str, bool]]]] = [
    ("hermes", f'<tool_call>\n{{"name": "weather", "arguments": {ROME}}}\n</tool_call>', "", [WEATHER]),
    (
        "hermes",
        f'Let me see.\n\n<tool_call>\n{{"name": "weather", "arguments": {ROME}}}\n</tool_call>\n'
        f'<tool_call>{{"arguments": {RULER[1]}, "name": "ruler"}}</tool_call>\nDone.',
        "Let me see.Done.",
        [WEATHER, RULER],
    ),
    ("hermes", f'<tool_call>{{"name": "weather", "arguments": {json.dumps(ROME)}}}</tool_call>', "", [WEATHER]),
    ("hermes", f'<tool_call>{{"name": "weather", "arguments": {ROME}}}', "", [WEATHER]),
    ("hermes", '<tool_call>{"name": "weather"}</tool_call>', "", [("weather", "{}", True)]),
    (
        "hermes",
        '<tool_call>{"name": "weather", "arguments": {"city": Rome}}</tool_call> so',
        "so",
        [("weather", '{"city": Rome}}', True)],
    ),
    ("hermes", '<tool_call>{"name": "weather", "arguments": null}</tool_call>', "", [("weather", "{}", True)]),
    ("hermes", '<tool_call>{"name": "weather", "arguments": "x"}</tool_call>', "", [("weather", '"x"', True)]),
    ("mistral", "[TOOL_CALLS]weather{]so", "]so", [("weather", "{", True)]),
    ("deepseek 3.1", f"{BEGINS}{BEGIN}weather{SEP}{{]{END}{ENDS}", "", [("weather", "{]", True)]),
    ("hermes", f'<tool_call>{{"name": "weather", "arguments": {ROME},}}</tool_call>so', "so", [WEATHER]),
    ("hermes", 'a <tool_call>{"name": "who", "arguments": {}}</tool_call> b', "all", []),
    ("hermes", "the <tool_call> tag begins a call ", "all", []),
    ("hermes", "<tool_call>{'name': 1}</tool_call>", "all", []),
    ("hermes", '<tool_call>{"name": {"a": 1}}</tool_call>', "all", []),
    ("hermes", '<tool_call>{"arguments": {}}</tool_call>', "all", []),
    ("hermes", "no call at all\n", "all", []),
    ("hermes", 'ok <custom_tool_call name="patch">\nab\n"c\n</custom_tool_call>\n', "ok", [("patch", 'ab\n"c', True)]),
    ("hermes", '<tool_call>{"name": "patch", "arguments": {"input": "ab"}}</tool_call>', "", [("patch", "ab", True)]),
    ("granite", f'<|tool_call|>[{{"name": "weather", "arguments": {ROME}}}]', "", [WEATHER]),
    (
        "phi",
        f'<|tool_call|>[{{"name": "weather", "arguments": {ROME}}}, {{"name": "ruler", "parameters": {RULER[1]}}}]'
        "<|/tool_call|>",
        "",
        [WEATHER, RULER],
    ),
    ("nemotron", f'<TOOLCALL>[{{"name": "weather", "arguments": {ROME}}}]</TOOLCALL>', "", [WEATHER]),
    ("apriel", f'so\n<tool_calls>[{{"name": "weather", "arguments": {ROME}}}]</tool_calls>', "so", [WEATHER]),
    (
        "mistral",
        f'[TOOL_CALLS] [{{"name": "weather", "arguments": {ROME}, "id": "abcdefghi"}},\n'
        f' {{"name": "ruler", "arguments": {RULER[1]}}}]',
        "",
        [WEATHER, RULER],
    ),
    (
        "mistral",
        f"[TOOL_CALLS]weather[ARGS]{ROME}[TOOL_CALLS]ruler[CALL_ID]123456789[ARGS]{RULER[1]}",
        "",
        [WEATHER, RULER],
    ),
    ("mistral names", f"well[TOOL_CALLS]weather{ROME}", "well", [WEATHER]),
    ("mistral", "[TOOL_CALLS]who[ARGS]{}", "all", []),
    (
        "deepseek",
        f"{BEGINS}{BEGIN}function{SEP}weather\n```json\n{ROME}\n```{END}\n{BEGIN}function{SEP}ruler\n```json\n"
        f"{RULER[1]}\n```{END}{ENDS}",
        "",
        [WEATHER, RULER],
    ),
    (
        "deepseek 3.1",
        f"so{BEGINS}{BEGIN}weather{SEP}{ROME}{END}{BEGIN}ruler{SEP}{RULER[1]}{END}{ENDS}",
        "so",
        [WEATHER, RULER],
    ),
    ("deepseek", f"{BEGINS}{BEGIN}function{SEP}who\n```json\n{{}}\n```{END}{ENDS}", "all", []),
    ("llama", f'{{"name": "weather", "parameters": {ROME}}}', "", [WEATHER]),
    ("llama", f'<|python_tag|>{{"type": "function", "name": "weather", "parameters": {ROME}}}', "", [WEATHER]),
    ("llama", '{"temperature": 3, "name": "weather"}', "all", []),
    ("llama", "{{ braces }}", "all", []),
    ("plain", f'\n{{"name": "weather", "arguments": {ROME}}}\n', "", [WEATHER]),
    ("prompted", f'<tool_call>\n{{"name": "weather", "arguments": {ROME}}}\n</tool_call>', "", [WEATHER]),
    (
        "qwen coder",
        "I look.\n<tool_call>\n<function=ruler>\n<parameter=n>\n1\n</parameter>\n<parameter=unit>\ncm\n</parameter>\n"
        '</function>\n</tool_call>\n<tool_call>\n<function=weather>\n<parameter=city>\nRo"me\n</parameter>\n</function>\n'
        "</tool_call>",
        "I look.",
        [RULER, WEATHER],
    ),
    (
        "qwen coder",
        "<function=weather><parameter=city>Rome</parameter></function> so",
        "so",
        [("weather", '{"city": "Rome"}', True)],
    ),
    ("qwen coder", "<tool_call>\n<function=weather>\n</function>\n</tool_call>", "", [("weather", "{}", True)]),
    ("qwen coder", "<tool_call>\n<function=who>\n</function>\n</tool_call>", "all", []),
    (
        "harmony",
        "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>commentary<|message|>wait<|end|>"
        f"<|start|>assistant<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{ROME}<|call|>",
        "wait",
        [WEATHER],
    ),
    ("harmony", f"<|channel|>commentary to=functions.weather<|message|>{ROME}", "", [WEATHER]),
    ("harmony", "<|channel|>final<|message|>yes <|return|>", "yes ", []),
    ("harmony", "<|channel|>commentary to=functions.patch<|message|>ab<|call|>", "", [("patch", "ab", True)]),
    ("harmony", "<|channel|>commentary to=functions.who<|message|>ab", "ab", []),
    ("harmony", "without a header", "without a header", []),
]  # fmt: skip


@pytest.mark.parametrize(("name", "raw", "text", "calls"), SAMPLES)
def test_samples(name: str, raw: str, text: str, calls: list[tuple[str, str, bool]]) -> None:
    expected = (raw if text == "all" else text, calls)
    assert parse(FORMATS[name], [raw]) == expected
    assert parse(FORMATS[name], list(raw)) == expected
    generator = random.Random(0)
    for _ in range(20):
        cuts = sorted(generator.choices(range(len(raw) + 1), k=6))
        pieces = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
        assert parse(FORMATS[name], pieces) == expected


@pytest.mark.parametrize("name", FORMATS)
def test_a_call_that_is_cut_off_is_text_or_begun(name: str) -> None:
    for raw in (raw for sample, raw, _, calls in SAMPLES if sample == name and calls):
        for end in range(len(raw)):
            text, calls = parse(FORMATS[name], [raw[:end]], complete=False)
            if name != "harmony" and not calls:
                assert text == raw[:end]
            assert parse(FORMATS[name], list(raw[:end]), complete=False) == (text, calls)


def test_an_end_tag_that_is_cut_is_no_input_of_a_custom_tool() -> None:
    begun, end = '<custom_tool_call name="patch">\nab', "\n</custom_tool_call>"
    for length in range(len(end)):
        assert parse(FORMATS["hermes"], [begun + end[:length]], complete=False) == ("", [("patch", "ab", False)])
    assert parse(FORMATS["hermes"], [f"{begun}\n</"]) == ("", [("patch", "ab\n</", True)])


def test_control_tokens_never_reach_the_client() -> None:
    tokens = ControlTokens({"[TOOL_CALLS]": 1, "[ARGS]": 2})
    raw = "ab[TOOL_CALLS]who[ARGS]{} c"
    assert parse(FORMATS["mistral"], [raw], tokens=tokens) == ("abwho{} c", [])
    assert parse(FORMATS["mistral"], list(raw), tokens=tokens) == ("abwho{} c", [])


def test_thinking_of_harmony_is_told_apart() -> None:
    parser = HARMONY.parser(TOOLS, NO_TOKENS)
    first = parser.feed("<|channel|>analysis<|message|>hm", 0)
    assert first == [ReasoningPiece("hm")] and parser.is_reasoning
    parser.feed("<|end|>", 32)
    assert not parser.is_reasoning


# ------------------------------------------------------------------------------------------------------------ grammars

MARKERS = (
    *("<tool_call>", "</tool_call>", "<|tool_call|>", "<|/tool_call|>", "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"),
    *(BEGINS, ENDS, BEGIN, END, SEP, "<|python_tag|>", "<|start|>", "<|channel|>", "<|message|>", "<|end|>"),
    *("<|constrain|>", "<|call|>", "<|return|>", "<think>", "</think>"),
)


def tokenizer_with_markers() -> Tokenizer:
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens([AddedToken(marker, special=True) for marker in MARKERS])
    return tokenizer


class Walk:
    """A model without preferences: it writes any token that the grammar allows."""

    def __init__(self, *, with_markers: bool) -> None:
        self.tokenizer = tokenizer_with_markers() if with_markers else tiny_tokenizer()
        self.table = TokenTable(self.tokenizer)
        self.tokens = ControlTokens(self.table.control_ids)
        self.end = self.tokenizer.token_to_id("<|im_end|>")
        self.size = self.tokenizer.get_vocab_size()
        self._compiler = LLTokenizer(self.tokenizer.to_str(), n_vocab=self.size, eos_token=[self.end])

    def matcher(self, grammar: str) -> LLMatcher:
        matcher = LLMatcher(self._compiler, grammar)
        assert not matcher.is_error(), matcher.get_error() + grammar
        return matcher

    def write(self, grammar: str, seed: int, limit: int = 400) -> tuple[str, bool]:
        """Text with its control tokens, and whether it came to an end; it ends as soon as it may."""
        matcher, generator = self.matcher(grammar), random.Random(seed)
        raw = b""
        for _ in range(limit):
            mask = matcher.compute_bitmask()
            allowed = [i for i in range(self.size) if mask[i // 8] >> (i % 8) & 1]
            if not allowed or self.end in allowed and matcher.is_accepting():
                return raw.decode("utf-8", "replace"), True
            # Quotes and brackets more often than chance has it, lest strings go on for ever.
            closing = [i for i in allowed if self.table.name(i) in ('"', "}", "]", "\n", "<", "/", ">")]
            token_id = generator.choice(closing if closing and generator.random() < 0.5 else allowed)
            assert matcher.consume_token(token_id), matcher.get_error()
            raw += (
                self.table.name(token_id).encode()
                if token_id in self.table.control_ids.values()
                else (self.table.text_bytes(token_id))
            )
        return raw.decode("utf-8", "replace"), False

    def accepts(self, grammar: str, text: str) -> bool:
        matcher = self.matcher(grammar)
        ids = self.tokenizer.encode(text, add_special_tokens=False).ids
        return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()


WALKS = {with_markers: Walk(with_markers=with_markers) for with_markers in (False, True)}


def frame_of(name: str, tokens: ControlTokens) -> Frame:
    return harmony_frame(tokens) if name == "harmony" else Frame()


def check(calls: list[tuple[str, str, bool]]) -> None:
    for name, arguments, ended in calls:
        assert ended
        if name == "patch":
            assert 2 <= len(arguments) <= 4 and set(arguments) <= set("abc")
        else:
            jsonschema.validate(json.loads(arguments), TOOLS[name].parameters)


@pytest.mark.parametrize("with_markers", [False, True])
@pytest.mark.parametrize("name", FORMATS)
def test_demanded_calls_are_valid_whatever_the_model_prefers(name: str, with_markers: bool) -> None:
    walk, format_ = WALKS[with_markers], FORMATS[name]
    num_ended = 0
    for many in (False, True):
        for tools in (list(TOOLS.values()), [TOOLS["patch"]], [TOOLS["ruler"]]):
            calls = format_.grammar(tools, walk.tokens, many=many)
            grammar = demanded_calls_grammar(calls, frame_of(name, walk.tokens), walk.tokens)
            for seed in range(4):
                raw, ended = walk.write(grammar, seed)
                if not ended:
                    continue
                num_ended += 1
                text, found = parse(format_, list(raw), tokens=walk.tokens)
                assert found and (many or len(found) == 1), (raw, grammar)
                assert name == "harmony" or text.strip() == "", raw
                check(found)
    assert num_ended >= 6


@pytest.mark.parametrize(("name", "raw", "text", "calls"), SAMPLES)
def test_text_with_calls_is_held_to_their_form_only(
    name: str, raw: str, text: str, calls: list[tuple[str, str, bool]]
) -> None:
    walk, format_ = WALKS[True], FORMATS[name]
    grammar = calls_in_text_grammar(
        format_.grammar(list(TOOLS.values()), walk.tokens, many=True), frame_of(name, walk.tokens), walk.tokens
    )
    if name == "harmony":
        assert walk.accepts(grammar, "<|channel|>final<|message|>hello <b>world</b>")
    else:
        assert walk.accepts(grammar, "hello <b>world</b>") and walk.accepts(grammar, "")
    if '"who"' in raw or "who[" in raw or "=who" in raw:
        assert not walk.accepts(grammar, raw)


@pytest.mark.parametrize("with_markers", [False, True])
def test_thinking_comes_before_a_demanded_call(with_markers: bool) -> None:
    walk = WALKS[with_markers]
    calls = HERMES.grammar([TOOLS["weather"]], walk.tokens, many=False)
    call = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
    markers = ThinkMarkers("<think>", "</think>")
    inside = demanded_calls_grammar(calls, think_frame(markers, "inside", walk.tokens), walk.tokens)
    assert walk.accepts(inside, f"so {{}} it is</think>\n\n{call}") and not walk.accepts(inside, call)
    free = demanded_calls_grammar(calls, think_frame(markers, "free", walk.tokens), walk.tokens)
    assert walk.accepts(free, f"<think>hm</think>{call}") and walk.accepts(free, call)
    done = demanded_calls_grammar(calls, think_frame(markers, "done", walk.tokens), walk.tokens)
    assert walk.accepts(done, call) and not walk.accepts(done, f"<think>hm</think>{call}")


# ----------------------------------------------------------------------------------------------------------- templates


@pytest.mark.parametrize(
    ("template", "reads_tools", "expected"),
    [
        ("{{ tools }}<tool_call>", True, HERMES),
        ("{{ tools }}<tool_call><function=f><parameter=x>", True, QwenCoderFormat),
        ("{{ tools }}[TOOL_CALLS]", True, MistralFormat(names_first=False)),
        ("{{ tools }}[TOOL_CALLS]f[ARGS]", True, MistralFormat(names_first=True)),
        (f"{BEGIN}```json", False, DeepSeekFormat(fenced=True, reads_tools=False)),
        (f"{{{{ tools }}}}{BEGIN}", True, DeepSeekFormat(fenced=False, reads_tools=True)),
        ('{{ tools }}<|python_tag|>{"parameters"', True, LLAMA),
        ("{{ tools }}<|tool_call|>", True, GRANITE),
        ("<|tool|>{{ message.tools }}<|/tool|>", False, phi_format(reads_tools=False)),
        ("<|tool|>{{ tools }}<|/tool|>", True, phi_format(reads_tools=True)),
        ("{{ tools }}<TOOLCALL>", True, NEMOTRON),
        ("{{ tools }}<tool_calls>", True, APRIEL),
        ("{{ tools }}<|channel|><|message|>", True, HARMONY),
        ("{{ tools }}", True, PLAIN_JSON),
        ("{{ messages }}", False, PROMPTED),
    ],
)
def test_formats_are_found_by_the_template(template: str, reads_tools: bool, expected: Any) -> None:
    found = detect_tool_format(template, reads_tools=reads_tools)
    assert isinstance(found, expected) if isinstance(expected, type) else found == expected


def test_calls_of_one_message_are_split_for_models_that_make_one_at_a_time() -> None:
    calls = [{"id": i, "type": "function", "function": {"name": "weather", "arguments": "{}"}} for i in "ab"]
    results = [{"role": "tool", "tool_call_id": i, "content": i} for i in "ab"]
    adapted = LLAMA.adapt([{"role": "assistant", "content": "so", "tool_calls": calls}, *results], [])
    assert [m.get("tool_call_id") or m["tool_calls"][0]["id"] for m in adapted] == ["a", "a", "b", "b"]
    assert [m["content"] for m in adapted] == ["so", "a", "", "b"]


def test_ids_are_short_for_mistral() -> None:
    calls = [{"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}]
    said = [{"role": "assistant", "content": "", "tool_calls": calls}, {"role": "tool", "tool_call_id": "call_1"}]
    call, result = FORMATS["mistral"].adapt(said, [])
    assert call["tool_calls"][0]["id"] == result["tool_call_id"]
    assert len(result["tool_call_id"]) == 9 and result["tool_call_id"].isalnum()


def test_tools_stand_in_the_system_message_of_phi() -> None:
    adapted = FORMATS["phi"].adapt([{"role": "user", "content": "hi"}], list(FUNCTIONS.values()))
    assert [tool["name"] for tool in json.loads(adapted[0]["tools"])] == ["weather", "ruler"]


def test_models_without_tools_are_told_of_them() -> None:
    call = {"id": "1", "type": "custom", "custom": {"name": "patch", "input": "ab"}}
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "so", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "one"},
        {"role": "tool", "tool_call_id": "2", "content": "two"},
        {"role": "user", "content": "go on"},
    ]
    system, *rest = PROMPTED.adapt(messages, list(TOOLS.values()))
    assert system["role"] == "system" and all(f'"name": "{name}"' in system["content"] for name in TOOLS)
    assert rest == [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": 'so\n<custom_tool_call name="patch">\nab\n</custom_tool_call>'},
        {"role": "user", "content": "<tool_response>\none\n</tool_response>"},
        {"role": "user", "content": "<tool_response>\ntwo\n</tool_response>"},
        {"role": "user", "content": "go on"},
    ]
    (kept, *_) = PROMPTED.adapt([{"role": "system", "content": "be nice"}], list(TOOLS.values()))
    assert kept["content"].startswith("be nice\n\n")


def test_deepseek_is_told_of_tools_in_its_own_form() -> None:
    (system, _) = FORMATS["deepseek"].adapt([{"role": "user", "content": "hi"}], list(TOOLS.values()))
    assert system["role"] == "system" and '"name": "ruler"' in system["content"] and SEP in system["content"]
    (only,) = FORMATS["deepseek 3.1"].adapt([{"role": "user", "content": "hi"}], list(TOOLS.values()))
    assert only["content"] == "hi"

"""The fate of the request fields that no model executes: what clients and OpenAI's spec send, field by field."""

from .body import Refused, Tolerated

_IDENTITY = Tolerated("It names the caller, and nothing here depends on that.")
_CACHE_HINT = Tolerated("Prefix caching is always on and needs no hint.")
_LIFETIME = Tolerated("Models stay loaded.")
_SPEED = Tolerated("It only promises speed; the answer is the same.")
_BACKEND = Tolerated("There is one grammar compiler.")
_WHITESPACE = "JSON is written with a space or a new line and its indentation, or none."
_NO_STORE = "Nothing is stored."
_ONLY_TEXT = "Only text is generated."

COMMON: dict[str, Tolerated | Refused] = {
    "client_metadata": _IDENTITY,
    "keep_alive": _LIFETIME,
    "metadata": Tolerated("It labels stored answers, and nothing is stored."),
    "prompt_cache_key": _CACHE_HINT,
    "prompt_cache_options": _CACHE_HINT,
    "prompt_cache_retention": _CACHE_HINT,
    "request_id": Tolerated("The x-request-id header does that."),
    "safety_identifier": _IDENTITY,
    "service_tier": Tolerated("There is one service tier.", only=("auto", "default")),
    "ttl": _LIFETIME,
    "user": _IDENTITY,
}
"""For every endpoint."""

GENERATION: dict[str, Tolerated | Refused] = COMMON | {
    "cache_prompt": _CACHE_HINT,
    "detokenize": Tolerated("Answers are text.", only=(True,)),
    "draft_model": _SPEED,
    "guided_decoding_backend": _BACKEND,
    "guided_whitespace_pattern": Refused(_WHITESPACE),
    "include_stop_str_in_output": Tolerated("Stop strings are no part of the text.", only=(False,)),
    "kv_transfer_params": Refused("The KV cache stays on this machine."),
    "length_penalty": Tolerated("There is no beam search.", only=(1.0, 1)),
    "logits_processors": Refused("It would run the client's code."),
    "moderation": Refused("No moderation model is asked."),
    "prompt_logprobs": Refused("Log probabilities are computed for generated tokens only."),
    "return_token_ids": Tolerated("Answers are text.", only=(False,)),
    "return_tokens_as_token_ids": Tolerated("Answers are text.", only=(False,)),
    "skip_special_tokens": Tolerated("Special tokens are no part of the text.", only=(True,)),
    "spaces_between_special_tokens": Tolerated("Special tokens are no part of the text."),
    "truncate_prompt_tokens": Refused("Prompts are never cut.", "Shorten the prompt."),
    "use_beam_search": Tolerated("There is no beam search.", only=(False,)),
}

CHAT: dict[str, Tolerated | Refused] = GENERATION | {
    "add_special_tokens": Tolerated("The chat template writes the special tokens.", only=(False,)),
    "audio": Refused(_ONLY_TEXT),
    "best_of": Tolerated("Every choice is returned.", only=(1,)),
    "chat_template": Refused("It would run the client's code.", "The model's own template is used."),
    "documents": Tolerated("Documents are not retrieved from.", only=([],)),
    "echo": Tolerated("Chats are not echoed.", only=(False,)),
    "modalities": Tolerated(_ONLY_TEXT, only=(["text"],)),
    "prediction": Refused("No output is predicted: every token is computed."),
    "web_search_options": Refused("The web is not searched."),
}

COMPLETION: dict[str, Tolerated | Refused] = GENERATION | {
    "store": Tolerated(_NO_STORE, only=(False,)),
}

RERANK: dict[str, Tolerated | Refused] = COMMON | {
    "activation": Tolerated("Scores are what the model's own function makes of them.", only=(True,)),
    "max_chunks_per_doc": Refused("Documents are not divided into chunks."),
    "normalize": Tolerated("Scores are what the model's own function makes of them.", only=(True,)),
    "rank_fields": Tolerated("Only the text of a document is read.", only=(["text"],)),
    "raw_scores": Tolerated("Scores are what the model's own function makes of them.", only=(False,)),
    "softmax": Tolerated("Scores are what the model's own function makes of them.", only=(False,)),
    "use_activation": Tolerated("Scores are what the model's own function makes of them.", only=(True,)),
}

TOKENIZE = COMMON

EMBEDDING: dict[str, Tolerated | Refused] = COMMON | {
    "add_special_tokens": Tolerated("Texts get the model's special tokens.", only=(True,)),
    "embed_dtype": Tolerated("Vectors are float32.", only=("float32",)),
    "messages": Refused("Chats are not embedded.", "Send the text as 'input'."),
    "normalize": Tolerated("Vectors are normalised as the model says.", only=(True,)),
    "store": Tolerated(_NO_STORE, only=(False,)),
}

MESSAGE: dict[str, Tolerated | Refused] = {
    "annotations": Tolerated("They describe an earlier answer."),
    "audio": Refused("Audio is not understood."),
    "cache_control": _CACHE_HINT,
    "id": Tolerated("It names an earlier answer."),
    "phase": Tolerated("It describes an earlier answer."),
    "provider_specific_fields": Tolerated("Other providers wrote them."),
    "status": Tolerated("It describes an earlier answer."),
    "thinking_blocks": Tolerated("Other providers wrote them; reasoning_content is read."),
}
"""For one message of a chat."""

CALL: dict[str, Tolerated | Refused] = {
    "index": Tolerated("Calls stand in their order."),
    "extra_content": Tolerated("Other providers wrote it."),
    "provider_specific_fields": Tolerated("Other providers wrote them."),
}
"""For one earlier tool call."""

TOOL: dict[str, Tolerated | Refused] = {
    "cache_control": _CACHE_HINT,
}
"""For one tool."""

PART: dict[str, Tolerated | Refused] = {
    "annotations": Tolerated("They describe an earlier answer."),
    "cache_control": _CACHE_HINT,
    "prompt_cache_breakpoint": _CACHE_HINT,
}
"""For one content part."""

STREAM_OPTIONS: dict[str, Tolerated | Refused] = {
    "include_obfuscation": Tolerated("Obfuscation is padding that clients skip."),
}

RESPONSE_FORMAT: dict[str, Tolerated | Refused] = {
    "grammar": Refused("It is another field here.", "Send the grammar as the request's 'grammar'."),
}
"""For `response_format`."""

STRUCTURED_OUTPUTS: dict[str, Tolerated | Refused] = {
    "_backend": _BACKEND,
    "_backend_was_auto": _BACKEND,
    "disable_additional_properties": Tolerated("The schema says what may be added.", only=(False,)),
    "disable_any_whitespace": Refused(_WHITESPACE),
    "disable_fallback": Tolerated("There is one grammar compiler, and nothing to fall back to."),
    "structural_tag": Refused("Tags are not understood.", "Send a grammar."),
    "whitespace_pattern": Refused(_WHITESPACE),
}
"""For `structured_outputs`."""

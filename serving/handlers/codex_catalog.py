"""What Codex wants to know of a model: the entries of `models` in GET /v1/models and of its `model_catalog_json`."""

from ..engine_client import EngineClient
from ..shelf.card import ModelCard

_INSTRUCTIONS = """\
You are a coding agent in the user's terminal. You work in a folder of theirs and change files by calling tools.

- Look before you change: read the files that matter with shell commands such as `rg`, `ls` and `sed`.
- Make the smallest change that does all that was asked, in the style of the code around it.
- Edit files with `apply_patch`. Run the project's tests or the changed program if that is possible.
- Never undo changes that you did not make, and never delete what you were not asked to delete.
- When you are done, say in a few sentences what you changed and what you could not check.
"""
_REASONING_LEVELS = {
    "low": "Short thinking, fast answers",
    "medium": "Thinking as the task needs it",
    "high": "Long thinking for hard tasks",
}
_TOOL_OUTPUT_TOKENS = 10_000


def codex_model(name: str, card: ModelCard, engine: EngineClient) -> dict[str, object]:
    """The ModelInfo of one chat model.

    Args:
        name: its id, or an alias.
        card: the model.
        engine: knows the context length of a resident model.
    """
    ready = engine.models.get(card.name)
    context = ready.max_model_len if ready else card.max_context_length
    entry: dict[str, object] = {
        "slug": name,
        "display_name": name,
        "description": f"{card.architecture or 'local'} model served by Penstock",
        "supported_reasoning_levels": [
            {"effort": effort, "description": text} for effort, text in _REASONING_LEVELS.items() if card.reasoning
        ],
        "shell_type": "default",
        "visibility": "list",
        "supported_in_api": True,
        "priority": 0 if ready else 1,
        "upgrade": None,
        "base_instructions": _INSTRUCTIONS,
        "supports_reasoning_summaries": False,
        "support_verbosity": False,
        "default_verbosity": None,
        "apply_patch_tool_type": "freeform",
        # A tool's output may not fill the whole context of a small model.
        "truncation_policy": {"mode": "tokens", "limit": min(_TOOL_OUTPUT_TOKENS, max(context // 4, 256))},
        "supports_parallel_tool_calls": card.trained_for_tool_use,
        "effective_context_window_percent": 90,
        "experimental_supported_tools": [],
        "input_modalities": ["text", "image"] if card.vision else ["text"],
    }
    if context:
        entry["context_window"] = context
    if card.reasoning:
        entry["default_reasoning_level"] = "medium"
    return entry

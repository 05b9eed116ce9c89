"""Everything about text on the API side: tokenizers, chat templates, detokenising, stop strings; no torch."""

"""What the API does between a validated body and an answer: text to tokens, jobs to the engine, tokens to text."""

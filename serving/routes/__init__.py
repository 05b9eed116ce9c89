"""The HTTP routes: each reads and validates a body, hands it to a handler, and frames what comes back."""

"""POST /v1/responses: items become a turn's messages, and the turn's events an ordered stream of numbered events.

`accept` checks a body and gathers the items before it; its `ResponseRun` is the answer while it comes into being, an
event source that knows no HTTP connection, so that background and resumed streams use it as well.
"""

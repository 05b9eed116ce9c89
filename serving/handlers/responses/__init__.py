"""The Responses endpoints: items become a turn's messages, and the turn's events an ordered stream of numbered events.

`ResponsesHandler.accept` checks a body and gathers the items before it. What it returns, a `LiveResponse`, is the
answer while it comes into being: an event source that knows no connection, so that background responses and resumed
streams use it as well.
"""

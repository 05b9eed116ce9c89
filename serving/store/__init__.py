"""What outlives a request: stored responses, conversations and chat completions, in one SQLite file.

`Store` joins three views of one `Database`. Everything belongs to a principal, and nothing of one principal can be
seen, listed, used or deleted by another: to them it does not exist.
"""

"""The commands beside `serve` and `bench`: thin clients of a running server, or of the models on disk.

Each module is one command: `run(arguments)` returns its exit status, 1 if it failed and 2 for wrong usage.
"""

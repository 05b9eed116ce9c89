"""The engine's room: a job comes in as token ids, is scheduled, run and sampled, and leaves as token ids.

The flow of one step: `worker` receives `messages` and feeds `engine`; `scheduler` deals the step's tokens out
(`policy`, `kv_cache`, `plan`); the runners (`runner`, `embedding`) run the models; `engine` turns what they
sampled into outputs that `worker` sends back. Nothing in this room knows text, HTTP or pydantic.
"""

"""The engine's errors.

    PenstockError
    ├── RequestError          this request cannot be served; every other request goes on
    │   ├── ContextLengthError    prompt and output cannot fit the model's context or the KV cache
    │   ├── QueueFullError        too much waits already; it may come again
    │   └── UnknownModelError     no resident model has that name
    ├── ModelLoadError        a model cannot be loaded; the worker goes on without it
    │   ├── UnsupportedModelError its architecture would give wrong answers here
    │   └── ModelMemoryError      it would fit if other models were unloaded
    ├── DeviceFailedError     the device computes nothing any more; the worker has to end and start anew
    └── EngineDeadError       the device worker is gone; nothing can be served until it is back

Messages say the value, the limit and the remedy, since they reach the client unchanged.
"""


class PenstockError(Exception):
    """Root of every error that the engine raises on purpose."""


class RequestError(PenstockError):
    """One request cannot be served.

    Attributes:
        message: what is wrong, with the value, the limit and the remedy.
        code: OpenAI's machine-readable code, for example `context_length_exceeded`.
        param: the request field at fault, if there is one.
        status: the HTTP status that fits.
        retry_after: seconds after which it may be served; None: never, unless it is changed.
    """

    status = 400
    retry_after: float | None = None

    def __init__(self, message: str, *, code: str = "invalid_value", param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.param = param


class ContextLengthError(RequestError):
    """Prompt plus output cannot fit the model's context or the whole KV cache."""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message, code="context_length_exceeded", param=param)


class QueueFullError(RequestError):
    """So much waits already that this would wait too long."""

    status = 429

    def __init__(self, message: str, *, retry_after: float) -> None:
        super().__init__(message, code="rate_limit_exceeded")
        self.retry_after = retry_after


class UnknownModelError(RequestError):
    """No resident model has the requested name."""

    status = 404

    def __init__(self, message: str) -> None:
        super().__init__(message, code="model_not_found", param="model")


class ModelLoadError(PenstockError):
    """A model cannot be loaded; the message says why."""


class UnsupportedModelError(ModelLoadError):
    """The architecture would silently give wrong answers in a packed, paged batch."""


class ModelMemoryError(ModelLoadError):
    """A model does not fit into the memory that is free, but would if other models were unloaded."""


class DeviceFailedError(PenstockError):
    """The device, or this process's use of it, is lost: whatever it is asked to do fails from now on."""


class EngineDeadError(PenstockError):
    """The device worker has died; requests in flight are lost with it."""

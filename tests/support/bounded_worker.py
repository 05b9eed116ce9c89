"""A device worker on a machine as small as a test wants it: `python bounded_worker.py CONFIG_JSON NUM_BYTES`."""

import sys

from penstock.scheduler import device, worker

NUM_BYTES = int(sys.argv[2])
device._CPU_MEMORY_SHARE = 0.9  # as on a GPU: the KV memory takes nearly everything


class BoundedWorker(worker.Worker):
    """Counts what its models take: weights and KV memory."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        device.total_memory = lambda name: NUM_BYTES
        device.available_memory = lambda name: NUM_BYTES - self.num_bytes

    @property
    def num_bytes(self) -> int:
        engine = self.engine
        storage = engine._kv_memory._storage
        weights = sum(4 * engine.describe(name).num_parameters for name in (*engine._generation, *engine._embedding))
        return weights + (0 if storage is None else storage.numel())


worker.Worker = BoundedWorker  # type: ignore[misc]
worker.main()

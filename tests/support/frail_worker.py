"""A device worker that certain prompts harm: `python frail_worker.py CONFIG_JSON`.

A step that computes `DEADLY` ends the process, as a fault in a kernel would; one that computes `ENDLESS` never ends.
"""

import os
from typing import Any

from penstock.scheduler import worker
from penstock.scheduler.plan import GenerationBatch
from penstock.scheduler.runner import GenerationRunner

DEADLY, ENDLESS = [7, 7, 7, 7], [8, 8, 8, 8]
_launch = GenerationRunner.launch


def launch(self: GenerationRunner, batch: GenerationBatch) -> Any:
    computed = [row.request.token_ids[row.start : row.end][:4] for row in batch.rows]
    if DEADLY in computed:
        os.abort()
    while ENDLESS in computed:
        pass
    return _launch(self, batch)


if __name__ == "__main__":
    GenerationRunner.launch = launch  # type: ignore[method-assign]
    worker.main()

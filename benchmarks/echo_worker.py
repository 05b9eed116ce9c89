"""A device worker without a device: every job gets its prompt's tokens back, one a step, at a set pace.

    python benchmarks/echo_worker.py CONFIG_JSON

It speaks the worker's side of the wire, so that the API process in front of it is all that costs anything. The
environment variable ECHO_STEP_MS is the time between two steps, in milliseconds.
"""

import os
import sys
import time
from collections import defaultdict
from dataclasses import dataclass
from itertools import cycle

import zmq

from penstock.scheduler.launch import load_config
from penstock.scheduler.messages import (
    Cancel,
    Hello,
    JobTimings,
    ModelReady,
    ModelStats,
    RequestOutput,
    StepOutputs,
    Submit,
    WorkerReady,
    decode,
    encode,
)

MAX_MODEL_LEN = 8192
FIRST_TEXT_ID = 300
"""In the usual tokenizers the ids below are control tokens and single bytes."""
TIMINGS = JobTimings(0.0, 0.0, 0.0, 0)


@dataclass(slots=True)
class EchoJob:
    """One job: whose it is, what it says, and how many tokens are left."""

    client: bytes
    tokens: "cycle[int]"
    num_left: int


def ready(name: str) -> ModelReady:
    """What a worker says of a small model."""
    return ModelReady(
        name=name,
        kind="generate",
        architecture="EchoForCausalLM",
        device="none",
        dtype="float32",
        max_model_len=MAX_MODEL_LEN,
        vocab_size=49152,
        num_kv_blocks=2**20,
        block_size=16,
        max_num_seqs=8192,
        embedding_dim=0,
        num_parameters=1,
        weight_bytes=4,
        kv_block_bytes=1,
    )


class EchoWorker:
    """Joins the jobs to the socket of the API processes."""

    def __init__(self, address: str, models: list[str], step_seconds: float) -> None:
        self._models = models
        self._step_seconds = step_seconds
        self._jobs: dict[str, EchoJob] = {}
        self._clients: set[bytes] = set()
        self._socket = zmq.Context.instance().socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.bind(address)
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(sys.stdin.fileno(), zmq.POLLIN)

    def run(self) -> None:
        """Serve until the starter is gone."""
        next_step = time.monotonic()
        while True:
            now = time.monotonic()
            if self._jobs and now >= next_step:
                self._step()
                next_step = max(next_step + self._step_seconds, now)
            wait = max(0.0, next_step - time.monotonic()) * 1000 if self._jobs else None
            if sys.stdin.fileno() in dict(self._poller.poll(wait)):
                return
            self._receive()

    def _receive(self) -> None:
        while self._socket.getsockopt(zmq.EVENTS) & zmq.POLLIN:
            client, *frames = self._socket.recv_multipart()
            match decode(frames):
                case Hello():
                    self._clients.add(client)
                    for name in self._models:
                        self._send(client, ready(name))
                    self._send(client, WorkerReady())
                case Submit(request_id=request_id, prompt_token_ids=ids, sampling=sampling):
                    text_ids = [i for i in ids if i >= FIRST_TEXT_ID] or ids
                    self._jobs[request_id] = EchoJob(client, cycle(text_ids), sampling.max_tokens)
                case Cancel(request_ids=ids):
                    for request_id in ids:
                        self._jobs.pop(request_id, None)

    def _step(self) -> None:
        outputs: dict[bytes, list[RequestOutput]] = defaultdict(list)
        num_jobs = len(self._jobs)
        for request_id, job in list(self._jobs.items()):
            job.num_left -= 1
            output = RequestOutput(request_id, [next(job.tokens)])
            if not job.num_left:
                output = RequestOutput(request_id, output.token_ids, finish_reason="length", timings=TIMINGS)
                del self._jobs[request_id]
            outputs[job.client].append(output)
        stats = dict.fromkeys(self._models, ModelStats(num_jobs, 0, 2**20, num_jobs, 0, 0, 0, 0, 0))
        for client in self._clients:
            self._send(client, StepOutputs(outputs[client], [], stats, self._step_seconds, num_jobs))

    def _send(self, client: bytes, message: ModelReady | WorkerReady | StepOutputs) -> None:
        self._socket.send_multipart([client, *encode(message)])


def main() -> None:
    config = load_config(sys.argv[1])
    step_seconds = float(os.environ["ECHO_STEP_MS"]) / 1000
    EchoWorker(config.address, [spec.name for spec in config.models], step_seconds).run()
    os._exit(0)


if __name__ == "__main__":
    main()

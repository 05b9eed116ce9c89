"""A device worker without models: `python stub_worker.py CONFIG_JSON` speaks the worker's side of the wire.

What each model does follows from its name: "fails" cannot be loaded, "slow" is ready only after a second, and
"late" lets a second pass before the worker answers anything, and with "once" only the first worker begins. A job gets
the tokens 1 and 2, the second a good while after the first if the prompt is long, and never if it is very long. A job
that has had the first only gets the second.
"""

import os
import sys
import time

import zmq

from penstock.scheduler.launch import load_config
from penstock.scheduler.messages import (
    Hello,
    ModelFailed,
    ModelLoading,
    ModelReady,
    RequestOutput,
    StepOutputs,
    Submit,
    WorkerReady,
    decode,
    encode,
)

SLOW_PROMPT_TOKENS = 20
ENDLESS_PROMPT_TOKENS = 40
PAUSE_SECONDS = 1.0


def main() -> None:
    config = load_config(sys.argv[1])
    if any(spec.name == "crashes" for spec in config.models):
        sys.exit(7)
    if any(spec.name == "once" for spec in config.models) and not config.address.endswith("-0.sock"):
        sys.exit(8)
    socket = zmq.Context.instance().socket(zmq.ROUTER)
    socket.bind(config.address)
    poller = zmq.Poller()
    poller.register(socket, zmq.POLLIN)
    poller.register(sys.stdin.fileno(), zmq.POLLIN)
    while sys.stdin.fileno() not in dict(poller.poll()):
        client, *frames = socket.recv_multipart()
        message = decode(frames)
        if isinstance(message, Hello):
            if any(spec.name == "late" for spec in config.models):
                time.sleep(PAUSE_SECONDS)
            for spec in config.models:
                socket.send_multipart([client, *encode(ModelLoading(spec.name, "reading weights", 0.5))])
                if spec.name == "slow":
                    time.sleep(PAUSE_SECONDS)
                state = (
                    ModelFailed(spec.name, "no such architecture")
                    if spec.name == "fails"
                    else ModelReady(
                        name=spec.name,
                        kind=spec.kind,
                        architecture="StubForCausalLM",
                        device="cpu",
                        dtype="float32",
                        max_model_len=64,
                        vocab_size=8,
                        num_kv_blocks=100,
                        block_size=config.engine.block_size,
                        max_num_seqs=config.engine.max_num_seqs,
                        embedding_dim=0,
                        num_parameters=1_500_000_000,
                        weight_bytes=6_000_000_000,
                        kv_block_bytes=0,
                    )
                )
                socket.send_multipart([client, *encode(state)])
            socket.send_multipart([client, *encode(WorkerReady())])
        elif isinstance(message, Submit):
            for token_id, reason in ((1, None), (2, "length"))[len(message.output_token_ids) :]:
                output = RequestOutput(message.request_id, [token_id], finish_reason=reason)
                socket.send_multipart([client, *encode(StepOutputs([output], [], {}, 0.01, 1))])
                if len(message.prompt_token_ids) >= ENDLESS_PROMPT_TOKENS:
                    break
                if len(message.prompt_token_ids) >= SLOW_PROMPT_TOKENS:
                    time.sleep(PAUSE_SECONDS)
    os._exit(0)


if __name__ == "__main__":
    main()

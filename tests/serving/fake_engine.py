"""A scripted engine, a tiny tokenizer and clients for the tests of the HTTP front."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
from conformance import Conformance
from fastapi import FastAPI
from openai import AsyncOpenAI
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from penstock.scheduler.config import ModelSpec
from penstock.scheduler.messages import (
    Cancel,
    Embed,
    EmbeddingOutput,
    JobError,
    JobTimings,
    Load,
    ModelFailed,
    ModelLoading,
    ModelReady,
    ModelStats,
    ModelUnloaded,
    RequestOutput,
    StepOutputs,
    Submit,
    TokenLogprobs,
    Unload,
    UpMessage,
    decode,
    encode,
)
from penstock.serving.app import create_app
from penstock.serving.engine_client import EngineClient
from penstock.serving.handlers.background import ResponseRuns
from penstock.serving.limits.ledger import Ledger
from penstock.serving.limits.meter import Meter
from penstock.serving.metrics import Metrics
from penstock.serving.shelf.card import ModelCard
from penstock.serving.shelf.downloads import Downloads
from penstock.serving.shelf.lifecycle import Lifecycle
from penstock.serving.shelf.registry import Registry
from penstock.serving.shelf.residency import LoadingPolicy
from penstock.serving.store.database import Database
from penstock.serving.store.store import open_store
from penstock.serving.text.chat_template import ChatTemplate
from penstock.serving.text.served_model import EmbeddingInputRules, ServedModel
from penstock.serving.text.tokenizer import TextTokenizer
from penstock.serving.worker_news import WorkerStarted

CHAT = "tiny-chat"
EMBED = "tiny-embed"
BARE = "tiny-bare"
MAX_MODEL_LEN = 256
DIM = 8
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def tiny_tokenizer() -> Tokenizer:
    """A byte-level BPE of about 300 tokens: every text has its tokens, an emoji takes four."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[AddedToken(token, special=True) for token in SPECIAL_TOKENS],
        show_progress=False,
    )
    tokenizer.train_from_iterator(["hello world, the quick brown fox says hello to the world"] * 3, trainer)
    return tokenizer


def tiny_embedding_tokenizer() -> Tokenizer:
    """The same with <|endoftext|> at both ends, and with a truncation that the server must switch off."""
    tokenizer = tiny_tokenizer()
    end = ("<|endoftext|>", tokenizer.token_to_id("<|endoftext|>"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A <|endoftext|>", special_tokens=[end]
    )
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding()
    return tokenizer


def tiny_shelf() -> dict[str, ServedModel]:
    """A chat model, the same without a chat template, and an embedding model."""
    template = ChatTemplate(TEMPLATE, {"eos_token": "<|im_end|>"})
    tokenizer = TextTokenizer(tiny_tokenizer())
    return {
        CHAT: ServedModel(CHAT, "generate", 1_700_000_000, tokenizer, template),
        BARE: ServedModel(BARE, "generate", 1_700_000_000, tokenizer),
        EMBED: ServedModel(
            EMBED,
            "embed",
            1_700_000_000,
            TextTokenizer(tiny_embedding_tokenizer()),
            input_rules=EmbeddingInputRules(max_tokens=32),
        ),
    }


def tiny_card(served: ServedModel) -> ModelCard:
    """What a tiny model's folder would say."""
    return ModelCard(
        name=served.name,
        kind=served.kind,
        folder=Path("nowhere") / served.name,
        publisher="local",
        architecture="tiny",
        quantization="F32",
        bits_per_weight=32.0,
        size_bytes=4000,
        num_parameters=1000,
        max_context_length=MAX_MODEL_LEN,
        created=served.created,
    )


def tiny_spec(card: ModelCard) -> ModelSpec:
    """What the worker is told of a tiny model."""
    return ModelSpec(card.name, str(card.folder), card.kind)


def model_ready(name: str, **changes: Any) -> ModelReady:
    """What the worker says of a tiny model."""
    embeds = name == EMBED
    values: dict[str, Any] = {
        "name": name,
        "kind": "embed" if embeds else "generate",
        "architecture": "Tiny",
        "device": "cpu",
        "dtype": "float32",
        "max_model_len": 64 if embeds else MAX_MODEL_LEN,
        "vocab_size": 320,
        "num_kv_blocks": 0 if embeds else 1000,
        "block_size": 16,
        "max_num_seqs": 8,
        "embedding_dim": DIM if embeds else 0,
        "num_parameters": 1000,
        "weight_bytes": 4000,
        "kv_block_bytes": 0 if embeds else 500,
    }
    return ModelReady(**(values | changes))


Script = list[RequestOutput | float]
"""Outputs to deliver, one step each; a number is a pause in seconds."""


class FakeEngine(EngineClient):
    """An EngineClient whose worker is a script in the same event loop.

    Attributes:
        script: what a generation job answers; the default says `text`.
        text: the default answer.
        tokens_per_step: of the default answer.
        timings: of every job.
        jobs: every job submitted.
        cancelled: every job id cancelled.
        loads: the name of every model that was to be loaded.
        load_answers: what the worker says when a model is loaded; the default loads it.
        unloads: the name of every model that was to be unloaded.
    """

    def __init__(self, tokenizer: TextTokenizer) -> None:
        super().__init__(WorkerStarted(0, "inproc://nobody"))
        self.models = {name: model_ready(name) for name in (CHAT, BARE, EMBED)}
        self.ready.set()
        self.tokenizer = tokenizer
        self.text = "hello world"
        self.tokens_per_step = 1
        self.timings = JobTimings(0.25, 0.5, 2.0, 0)
        self.script: Callable[[Submit], Script] = self.say
        self.embed_error: JobError | None = None
        self.jobs: list[Submit | Embed] = []
        self.cancelled: list[str] = []
        self.loads: list[str] = []
        self.load_answers: Callable[[ModelSpec], list[ModelLoading | ModelReady | ModelFailed]] = self.admit
        self.unloads: list[str] = []
        self._plays: dict[str, asyncio.Task[None]] = {}

    @property
    def end_token_id(self) -> int:
        (token_id,) = self.encode("<|im_end|>")
        return token_id

    @property
    def job(self) -> Submit:
        """The only job, which generates."""
        (job,) = self.jobs
        assert isinstance(job, Submit)
        return job

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, 10**9, add_special_tokens=False)

    def say(self, job: Submit) -> Script:
        """`text` and the end token, cut at max_tokens."""
        ids = self.encode(self.text)
        if len(ids) >= job.sampling.max_tokens:
            return self.outputs(job, ids[: job.sampling.max_tokens], "length")
        return self.outputs(job, [*ids, self.end_token_id], "stop")

    def outputs(self, job: Submit, ids: Sequence[int], reason: str | None) -> Script:
        """`ids` in steps; log probabilities if the job wants them: -0.5 for the token, -1, -2, … for others."""
        outputs: Script = []
        prompt_logprobs = job.sampling.prompt_logprobs
        for first in range(0, len(ids), self.tokens_per_step):
            new = list(ids[first : first + self.tokens_per_step])
            last = first + self.tokens_per_step >= len(ids)
            outputs.append(
                RequestOutput(
                    request_id=job.request_id,
                    token_ids=new,
                    num_cached_tokens=min(4, len(job.prompt_token_ids) - 1),
                    finish_reason=reason if last else None,
                    stop_token_id=new[-1] if last and reason == "stop" else None,
                    logprobs=self._logprobs(job.sampling.logprobs, new),
                    prompt_logprobs=None if first else self._logprobs(prompt_logprobs, job.prompt_token_ids[1:]),
                    timings=self.timings if last else None,
                )
            )
        return outputs

    def _logprobs(self, n: int | None, ids: list[int]) -> list[TokenLogprobs] | None:
        if n is None:
            return None
        return [
            TokenLogprobs(-0.5, [i, *range(10, 9 + n)][:n], [-0.5, *(-float(k) for k in range(1, n))][:n]) for i in ids
        ]

    def admit(self, spec: ModelSpec) -> list[ModelLoading | ModelReady | ModelFailed]:
        """Two pieces of progress and success."""
        progress = [ModelLoading(spec.name, "reading weights", fraction) for fraction in (0.0, 0.5)]
        return [*progress, model_ready(spec.name)]

    def _send(self, message: UpMessage) -> None:
        message = decode(encode(message))  # type: ignore[assignment]  # what cannot cross the wire fails here too
        match message:
            case Submit() | Embed():
                self.jobs.append(message)
                play = self._play(message) if isinstance(message, Submit) else self._embed(message)
                self._plays[message.request_id] = asyncio.create_task(play)
            case Cancel(request_ids=ids):
                self.cancelled += ids
                for request_id in ids:
                    self._plays[request_id].cancel()
            case Load(spec=spec):
                self.loads.append(spec.name)
                self._plays[f"load {spec.name}"] = asyncio.create_task(self._load(spec))
            case Unload(name=name):
                self.unloads.append(name)
                asyncio.get_running_loop().call_soon(self._deliver, ModelUnloaded(name))

    async def _play(self, job: Submit) -> None:
        for output in self.script(job):
            if isinstance(output, float):
                await asyncio.sleep(output)
            else:
                self._deliver(step(outputs=[output]))
                await asyncio.sleep(0)

    async def _load(self, spec: ModelSpec) -> None:
        for answer in self.load_answers(spec):
            await asyncio.sleep(0)
            self._deliver(answer)

    async def _embed(self, job: Embed) -> None:
        await asyncio.sleep(0)
        data = b"".join(fake_vector(ids).tobytes() for ids in job.inputs)
        output = EmbeddingOutput(job.request_id, DIM, b"" if self.embed_error else data, self.embed_error)
        self._deliver(step(embeddings=[output]))


def fake_vector(ids: list[int]) -> "np.ndarray[Any, np.dtype[np.float32]]":
    """A unit vector that depends on the ids."""
    vector = np.random.default_rng(ids).normal(size=DIM).astype("<f4")
    normalised: np.ndarray[Any, np.dtype[np.float32]] = vector / np.linalg.norm(vector)
    return normalised


def step(
    outputs: list[RequestOutput] | None = None,
    embeddings: list[EmbeddingOutput] | None = None,
    num_batched_tokens: int = 12,
) -> StepOutputs:
    """One engine step's message."""
    stats = ModelStats(1, 2, 100, 25, 40, 10, 3, 30, 7, 20, 15, 50, {"tokens": 4})
    return StepOutputs(outputs or [], embeddings or [], {CHAT: stats}, 0.01, num_batched_tokens)


class Front:
    """The application over a fake engine, and a client that calls it in the same event loop.

    Attributes:
        shelf: the models' text sides, for tests to change before they are used.
    """

    conformance: Conformance | None = None

    def __init__(self, *, database: Database | None = None, ledger: Ledger | None = None, **app_options: Any) -> None:
        self.shelf = tiny_shelf()
        self.engine = FakeEngine(self.shelf[CHAT].tokenizer)
        self.registry = Registry(map(tiny_card, self.shelf.values()), texts=self.shelf)
        self.lifecycle = Lifecycle(self.engine, self.registry, tiny_spec, LoadingPolicy())
        self.store = open_store(database or Database(None))
        self.runs = ResponseRuns(self.store)
        self.meter = Meter(Ledger(None) if ledger is None else ledger)
        self.app = create_app(
            self.engine,
            self.registry,
            self.lifecycle,
            runs=self.runs,
            downloads=Downloads(Path("nowhere")),
            meter=self.meter,
            **app_options,
        )
        self.http = httpx2.AsyncClient(
            transport=httpx2.ASGITransport(self.app, raise_app_exceptions=False),
            base_url="http://front",
            event_hooks={"response": [self._check]},
        )

    def put(self, served: ServedModel) -> None:
        """Put a model of any kind on the shelf."""
        self.shelf[served.name] = served
        self.registry._cards[served.name] = tiny_card(served)

    async def _check(self, response: httpx2.Response) -> None:
        """Hold an exchange against /openapi.json, which is made once: that takes a second."""
        if Front.conformance is None:
            transport = httpx2.ASGITransport(Front().app)  # this one may want a key
            async with httpx2.AsyncClient(transport=transport, base_url="http://front") as http:
                Front.conformance = Conformance((await http.get("/openapi.json")).json())
        await Front.conformance.check(response)

    @property
    def openai(self) -> AsyncOpenAI:
        """The official client, which checks every answer against OpenAI's types."""
        return AsyncOpenAI(
            api_key="none",
            base_url="http://front/v1",
            http_client=self.http,
            max_retries=0,
            _strict_response_validation=True,
        )

    def app_metrics(self) -> str:
        """What /metrics says."""
        envelope, *_ = self.app.user_middleware
        metrics: Metrics = envelope.kwargs["metrics"]  # type: ignore[assignment]
        return metrics.exposition().decode()

    async def post(self, path: str, body: object) -> httpx2.Response:
        return await self.http.post(path, json=body)

    async def chat(self, **fields: Any) -> httpx2.Response:
        body = {"model": CHAT, "messages": [{"role": "user", "content": "hi"}]} | fields
        return await self.post("/v1/chat/completions", body)

    async def complete(self, **fields: Any) -> httpx2.Response:
        return await self.post("/v1/completions", {"model": CHAT, "prompt": "hello"} | fields)

    async def embed(self, **fields: Any) -> httpx2.Response:
        return await self.post("/v1/embeddings", {"model": EMBED, "input": "hello"} | fields)


def use_template(front: Front, source: str) -> None:
    """Give the chat model another chat template."""
    front.shelf[CHAT] = replace(front.shelf[CHAT], chat_template=ChatTemplate(source, {"eos_token": "<|im_end|>"}))


@asynccontextmanager
async def open_front(**app_options: Any) -> AsyncIterator[Front]:
    """A front that has left nothing behind in its engine when it closes."""
    front = Front(**app_options)
    try:
        yield front
        assert front.engine.num_jobs == 0
    finally:
        await front.runs.close()
        await front.meter.close()
        await front.store.database.close()
        await front.http.aclose()


def events(response: httpx2.Response) -> list[Any]:
    """The JSON values of a streamed answer; its last event must be the end mark."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    *framed, done, rest = response.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    return [json.loads(event.removeprefix("data: ")) for event in framed]


def error(response: httpx2.Response, status: int, code: str | None, param: str | None) -> str:
    """The message of an error answer, after a check of all the rest."""
    assert response.status_code == status, response.text
    assert response.headers["x-request-id"]
    body = response.json()
    assert set(body) == {"error"} and set(body["error"]) == {"message", "type", "param", "code"}
    assert (body["error"]["code"], body["error"]["param"]) == (code, param), body
    kinds = {"requests", "tokens"} if status == 429 else {"server_error" if status >= 500 else "invalid_request_error"}
    assert body["error"]["type"] in kinds
    message: str = body["error"]["message"]
    return message


class Exchange:
    """One HTTP exchange at the ASGI border, where the test says when the client goes away."""

    def __init__(self, app: FastAPI, path: str, body: object) -> None:
        self.sent: list[dict[str, Any]] = []
        self._incoming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._incoming.put_nowait({"type": "http.request", "body": json.dumps(body).encode(), "more_body": False})
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": b"",
            "headers": [],
            "client": ("127.0.0.1", 1),
            "server": ("front", 80),
        }
        self.task = asyncio.create_task(app(scope, self._incoming.get, self._send))  # type: ignore[arg-type]

    async def _send(self, message: dict[str, Any]) -> None:
        self.sent.append(message)

    def disconnect(self) -> None:
        self._incoming.put_nowait({"type": "http.disconnect"})

    @property
    def status(self) -> int | None:
        return self.sent[0]["status"] if self.sent else None

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)


async def until(condition: Callable[[], bool]) -> None:
    """Let the event loop run until the condition holds."""
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)

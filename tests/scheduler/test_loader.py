"""The loader's thread: what it tells, what it refuses, and that nothing a model does ends it."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from tiny_models import make_tiny

from penstock.scheduler import device, loader
from penstock.scheduler.config import EngineConfig, ModelSpec
from penstock.scheduler.engine import Engine
from penstock.scheduler.errors import ModelLoadError, ModelMemoryError
from penstock.scheduler.loader import ModelLoader, News, check_memory
from penstock.scheduler.messages import ModelFailed, ModelLoading
from penstock.scheduler.models.weights import loaded_bytes
from penstock.scheduler.runner import GenerationRunner

CONFIG = EngineConfig(device="cpu", num_threads=1)
Progress = Callable[[str, float], None]


class Listener:
    """Waits for the loader's news as the worker does."""

    def __init__(self) -> None:
        self.woken = threading.Semaphore(0)
        self.loader = ModelLoader(CONFIG, self.woken.release)
        self._ends: dict[str, News] = {}

    def ask(self, *names: str, path: str = "") -> None:
        for name in names:
            assert self.loader.load(ModelSpec(name, path, "generate", "float32"), num_threads=1)

    def end_of(self, name: str) -> News:
        """The model's runner or failure."""
        while name not in self._ends:  # another one's end may come together with it
            assert self.woken.acquire(timeout=60)
            self._ends |= {news.name: news for news in self.loader.take_news() if not isinstance(news, ModelLoading)}
        return self._ends.pop(name)


@pytest.fixture
def listener() -> Listener:
    return Listener()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny("llama", tmp_path_factory.mktemp("llama"), dtype=torch.bfloat16)


class Script:
    """Stands in for loading: lets a test hold it up and choose how it ends."""

    def __init__(self) -> None:
        self.started = threading.Semaphore(0)
        self.go_on = threading.Semaphore(0)
        self.error: BaseException | None = None
        self.loaded: list[str] = []

    def load(self, spec: ModelSpec, config: EngineConfig, progress: Progress) -> None:
        self.started.release()
        assert self.go_on.acquire(timeout=60)
        for percent in range(101):
            progress("reading weights", percent / 100)
        self.loaded.append(spec.name)
        raise self.error or ModelLoadError("scripted")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[Script]:
    script = Script()
    monkeypatch.setattr(loader, "load_runner", script.load)
    yield script
    for _ in range(10):
        script.go_on.release()


def test_a_runner_comes_out(listener: Listener, folder: Path) -> None:
    listener.ask("m", path=str(folder))
    assert isinstance(listener.end_of("m"), GenerationRunner)
    assert not listener.loader.is_loading("m")


def test_one_after_the_other_each_once_and_only_the_newest_progress(listener: Listener, script: Script) -> None:
    listener.ask("a", "b")
    assert not listener.loader.load(ModelSpec("b", "", "generate"), num_threads=1)
    script.started.acquire()
    assert not script.started.acquire(blocking=False)
    script.go_on.release()
    script.started.acquire()  # the first has ended
    news = listener.loader.take_news()
    assert news == [ModelFailed("a", "scripted"), ModelLoading("b", "reading weights", 0.0)]
    assert listener.loader.is_loading("b")
    script.go_on.release()
    assert listener.end_of("b") == ModelFailed("b", "scripted")
    assert script.loaded == ["a", "b"]


@pytest.mark.parametrize("error", [SystemExit(3), RuntimeError("broken"), RecursionError("deep")])
def test_nothing_that_a_model_does_ends_the_thread(listener: Listener, script: Script, error: BaseException) -> None:
    script.error = error
    script.go_on.release()
    listener.ask("a")
    failed = listener.end_of("a")
    assert isinstance(failed, ModelFailed)
    assert type(error).__name__ in failed.message
    script.go_on.release()
    listener.ask("a")
    assert isinstance(listener.end_of("a"), ModelFailed)


def test_its_thread_ends_with_its_work_and_begins_again(listener: Listener, script: Script) -> None:
    for _ in range(2):
        script.go_on.release()
        listener.ask("a")
        threads = [thread for thread in threading.enumerate() if thread.name == "model-loader"]
        assert isinstance(listener.end_of("a"), ModelFailed)
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()


def test_a_cancelled_model_stops_at_its_next_progress_and_is_silent(listener: Listener, script: Script) -> None:
    listener.ask("a", "b")
    script.started.acquire()
    listener.loader.cancel("a")
    assert not listener.loader.is_loading("a")
    listener.ask("a")  # again, from the beginning
    for _ in range(3):
        script.go_on.release()
    assert listener.end_of("b") == ModelFailed("b", "scripted")
    assert listener.end_of("a") == ModelFailed("a", "scripted")
    assert script.loaded == ["b", "a"]


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("no room")])
def test_running_out_of_memory_has_its_own_code(listener: Listener, script: Script, error: BaseException) -> None:
    script.error = error
    script.go_on.release()
    listener.ask("a")
    failed = listener.end_of("a")
    assert isinstance(failed, ModelFailed)
    assert failed.code == "out_of_memory"
    assert failed.message


def test_the_room_that_is_kept_is_the_room_that_is_needed(
    listener: Listener, script: Script, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = ModelSpec("a", str(folder), "generate", "float32")
    listener.ask("a", path=str(folder))
    assert script.started.acquire(timeout=60)  # or it would load the model itself, during the next test
    wanted = listener.loader.wanted_bytes
    monkeypatch.setattr(device, "available_memory", lambda name: wanted)
    assert listener.loader.missing_bytes(spec) == 0
    check_memory("a", loaded_bytes(spec, "cpu"), "cpu")
    monkeypatch.setattr(device, "available_memory", lambda name: wanted - 10)
    assert listener.loader.missing_bytes(spec) == 10
    monkeypatch.setattr(device, "available_memory", lambda name: -10)
    assert listener.loader.missing_bytes(ModelSpec("b", str(folder / "nothing"), "generate", "float32")) == 0
    script.go_on.release()


def test_what_does_not_fit_is_not_read(listener: Listener, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "available_memory", lambda name: 1000)
    listener.ask("m", path=str(folder))
    failed = listener.end_of("m")
    assert isinstance(failed, ModelFailed)
    assert failed.code == "out_of_memory"
    assert "unload another model" in failed.message


def test_memory_is_compared_with_what_is_free_and_with_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "available_memory", lambda name: 50 << 30)
    monkeypatch.setattr(device, "total_memory", lambda name: 100 << 30)
    check_memory("m", 40 << 30, "cpu")
    with pytest.raises(ModelMemoryError, match=r"m needs 66.0 GiB, but only 50.0 GiB"):
        check_memory("m", 60 << 30, "cpu")
    with pytest.raises(ModelLoadError, match=r"m needs 110.0 GiB, but the device has 100.0 GiB"):
        check_memory("m", 100 << 30, "cpu")


def test_the_loaded_bytes_are_those_of_the_parameters(folder: Path) -> None:
    runner = GenerationRunner.load(ModelSpec("m", str(folder), "generate", "float32"), CONFIG, lambda *news: None)
    for dtype, size in (("float32", 4), ("bfloat16", 2)):
        spec = ModelSpec("m", str(folder), "generate", dtype)  # type: ignore[arg-type]
        assert loaded_bytes(spec, "cpu") == runner.num_parameters * size
    assert loaded_bytes(ModelSpec("m", str(folder), "generate"), "cuda") == runner.num_parameters * 2  # as stored
    assert loaded_bytes(ModelSpec("m", str(folder), "embed"), "cpu") == runner.num_parameters * 4


def test_the_engines_thread_keeps_its_number_of_threads(listener: Listener, folder: Path) -> None:
    usual = torch.get_num_threads()
    seen: list[int] = []

    def serve() -> None:
        Engine(EngineConfig(device="cpu", num_threads=usual + 1))
        listener.ask("m", path=str(folder))
        listener.end_of("m")
        seen.append(torch.get_num_threads())

    thread = threading.Thread(target=serve)  # a fresh one, which has not run any operation
    thread.start()
    thread.join()
    torch.set_num_threads(usual)
    assert seen == [usual + 1]


def _weights(header: bytes, length: int | None = None) -> bytes:
    return (len(header) if length is None else length).to_bytes(8, "little") + header + bytes(64)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"short",
        _weights(b"{}", 2**63),
        _weights(b"{}", 99_000_000),
        _weights(b"[" * 500_000),
        _weights(b'{"a":' * 100_000),
        _weights(b"[]"),
        _weights(b'{"a": 5}'),
        _weights(b'{"a": {"dtype": "F32", "shape": "abc", "data_offsets": [0, 8]}}'),
        _weights(b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": ["x", "y"]}}'),
        _weights(b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 1152921504606846976]}}'),
        _weights(
            b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, '
            b'"b": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}'
        ),
    ],
)
def test_hostile_weights_fail_alone(listener: Listener, folder: Path, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    (tmp_path / "model.safetensors").write_bytes(content)
    spec = ModelSpec("hostile", str(tmp_path), "generate", "float32")
    assert listener.loader.missing_bytes(spec) >= 0, "the engine's thread asks this"
    listener.ask("hostile", path=str(tmp_path))
    failure = listener.end_of("hostile")
    assert isinstance(failure, ModelFailed) and failure.code == "load_failed"

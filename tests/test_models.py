"""name -> Checkpoint: every kind of name, every way it can be wrong, against a hub of our own where one is needed."""

from __future__ import annotations

import hashlib
import json
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from inferplan import _hub
from inferplan.artifacts import artifacts
from inferplan.errors import ModelError, UnknownNameError
from inferplan.models import SHIPPED, resolve
from test_weights import tiny_model, write_tokenizer

SHA = "a" * 40


def quiet(_: str) -> None:
    """Hears nothing."""


def safetensors(shape: tuple[int, ...] = (2, 3), dtype: str = "F32", name: str = "w") -> bytes:
    """A whole safetensors file with one tensor of zeros."""
    size = 4 * shape[0] * shape[1]
    header = json.dumps({name: {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(size)


@pytest.fixture(autouse=True)
def _isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    from huggingface_hub import constants

    monkeypatch.setenv("INFERPLAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    _hub.forget()
    yield
    _hub.forget()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    path.mkdir()
    write_tokenizer(path)
    (path / "config.json").write_text(json.dumps({"model_type": "gpt2", "n_positions": 128}))
    (path / "model.safetensors").write_bytes(safetensors())
    return path


def test_importing_models_loads_nothing_heavy() -> None:
    heavy = ["torch", "transformers", "huggingface_hub", "numpy"]
    code = f"import sys, inferplan.models, inferplan.tokens; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_a_local_directory_is_described_by_its_headers(model: Path) -> None:
    checkpoint = resolve(str(model), notify=quiet)
    assert (checkpoint.provenance, checkpoint.weights) == ("local", "float32")
    assert (checkpoint.parameters, checkpoint.context, checkpoint.name) == (6, 128, str(model))
    assert not checkpoint.synthetic


def test_the_content_hash_follows_the_weights(model: Path) -> None:
    before = resolve(str(model), notify=quiet).content_hash
    assert resolve(str(model), notify=quiet).content_hash == before
    (model / "model.safetensors").write_bytes(safetensors()[:-1] + b"\1")
    assert resolve(str(model), notify=quiet).content_hash != before


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-1], lambda b: b[:20], lambda b: b"\xff" * 40, lambda b: b[:8] + b"]" * 99]
)
def test_a_corrupt_safetensors_file_is_named(model: Path, damage: object) -> None:
    assert callable(damage)
    (model / "model.safetensors").write_bytes(damage(safetensors()))
    with pytest.raises(ModelError, match=r"model\.safetensors.*download it again"):
        resolve(str(model), notify=quiet)


def test_a_missing_shard_is_named(model: Path) -> None:
    index = {"weight_map": {"w": "model-00001-of-00002.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="model-00001-of-00002"):
        resolve(str(model), notify=quiet)


@pytest.mark.parametrize("content", [b"", b"GGUX" + bytes(40), b"GGUF" + struct.pack("<IQQ", 9, 1, 1)])
def test_a_corrupt_gguf_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.gguf").write_bytes(content)
    with pytest.raises(ModelError, match=r"x\.gguf"):
        resolve(str(tmp_path / "x.gguf"), notify=quiet)


def test_a_truncated_gguf_file_is_found_when_it_is_converted(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 5, 5) + bytes(30))
    with pytest.raises(ModelError, match=r"x\.gguf is a corrupt or truncated"):
        resolve(str(tmp_path / "x.gguf"), notify=quiet)


def write_gguf(file: Path, weights: int) -> None:
    """A whole GGUF file with one tensor, and of no architecture that anybody knows."""
    import numpy as np
    from gguf import GGUFWriter

    writer = GGUFWriter(file, "made-up")
    writer.add_tensor("w", np.zeros((weights // 32, 32), dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file_that_does_not_fit_at_float32_is_not_dequantized(tmp_path: Path) -> None:
    write_gguf(tmp_path / "x.gguf", weights=2**19)
    said: list[str] = []
    with pytest.raises(ModelError, match=r"not started: .*x\.gguf.* needs 2 MiB .* 1 MiB are granted .*smaller"):
        resolve(str(tmp_path / "x.gguf"), notify=said.append, memory_bytes=2**21 - 1)
    assert said == []
    assert artifacts() == ()


@pytest.mark.slow
def test_synthetic_weights_that_do_not_fit_at_float32_are_not_made(tmp_path: Path) -> None:
    path, said = tiny_model(tmp_path / "tiny"), list[str]()
    with pytest.raises(ModelError, match=r"not started: .*tiny, at float32, needs 13 MiB .* 12 MiB are granted"):
        resolve(str(path), weights="synthetic", notify=said.append, memory_bytes=12 * 2**20)
    assert not any("making" in line for line in said)
    assert artifacts() == ()


def test_pickles_are_refused_with_a_remedy(model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    with pytest.raises(ModelError, match="Convert it to safetensors"):
        resolve(str(model), notify=quiet)


def test_code_of_a_model_needs_the_flag_which_warns(model: Path) -> None:
    (model / "config.json").write_text(json.dumps({"model_type": "x", "auto_map": {"AutoConfig": "x.X"}}))
    with pytest.raises(ModelError, match="--trust-remote-code"):
        resolve(str(model), notify=quiet)
    said: list[str] = []
    assert resolve(str(model), trust_remote_code=True, notify=said.append).provenance == "local"
    assert "warning" in said[0]


def test_a_directory_without_tokenizer_or_config_says_which_files(model: Path) -> None:
    for name in ("vocab.json", "config.json"):
        (model / name).unlink()
        with pytest.raises(ModelError, match=name):
            resolve(str(model), notify=quiet)


def test_unknown_names_bring_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"Did you mean .*distilgpt2"):
        resolve("distilgpt", notify=quiet)
    with pytest.raises(ModelError, match="does not exist"):
        resolve("./no/such/path", notify=quiet)
    with pytest.raises(UnknownNameError, match="choice of weights"):
        resolve("gpt2", weights="none", notify=quiet)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_config_without_weights_gives_synthetic_ones(tmp_path: Path) -> None:
    path = tiny_model(tmp_path / "tiny")
    said: list[str] = []
    checkpoint = resolve(str(path), notify=said.append)
    assert checkpoint.synthetic
    assert checkpoint.weights == "synthetic weights, seed 0"
    assert checkpoint.context == 256
    assert any("synthetic" in line for line in said)
    again = resolve(str(path), notify=lambda line: pytest.fail(line) if "making" in line else None)
    assert again == checkpoint
    with pytest.raises(ModelError, match="--weights hub"):
        resolve(str(path), weights="hub", notify=quiet)


def test_a_hub_that_is_not_there_is_said_once_and_refused_when_it_must_be_there() -> None:
    said: list[str] = []
    for _ in range(2):
        with pytest.raises(ModelError, match="not in the local hub cache"):
            resolve("some/model", notify=said.append)
        with pytest.raises(ModelError, match="--weights hub"):
            resolve("distilgpt2", weights="hub", notify=said.append)
    assert len([line for line in said if "not reached" in line]) == 1


def test_an_offline_wish_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE is set"):
        resolve("some/model", notify=quiet)


@pytest.mark.slow
def test_a_shipped_name_without_a_hub_is_synthetic() -> None:
    said: list[str] = []
    checkpoint = resolve("distilgpt2", notify=said.append)
    assert checkpoint.synthetic
    assert (checkpoint.parameters, checkpoint.context) == (81_912_576, 1024)
    assert len([line for line in said if "not reached" in line]) == 1


def test_shipped_configs_have_the_published_sizes() -> None:
    sizes = {n: json.loads((s.config / "config.json").read_text()) for n, s in SHIPPED.items()}
    assert {n: c["n_layer"] for n, c in sizes.items() if "n_layer" in c} == {
        "distilgpt2": 6,
        "gpt2": 12,
        "gpt2-medium": 24,
        "gpt2-large": 36,
    }


class FakeHub(BaseHTTPRequestHandler):
    """Answers as the hub does for the calls that a download makes."""

    files: dict[str, bytes] = {}  # noqa: RUF012
    failure: tuple[int, str] | None = None
    asked: list[str] = []  # noqa: RUF012

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self._answer(body=True)

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""

    def _answer(self, body: bool) -> None:
        path, headers, data = self.path.split("?")[0], {"X-Repo-Commit": SHA}, b"{}"
        status = 200
        if path.startswith("/api/models/") and self.failure:
            status, headers["X-Error-Code"] = self.failure
        elif "/tree/" in path:
            data = json.dumps(
                [{"type": "file", "path": n, "size": len(b), "oid": "0" * 40} for n, b in self.files.items()]
            ).encode()
        elif path.startswith("/api/models/"):
            files = [{"rfilename": n, "size": len(b)} for n, b in self.files.items()]
            data = json.dumps({"id": "some/model", "sha": SHA, "siblings": files}).encode()
        elif "/resolve/" in path:
            data = self.files[path.rsplit("/", 1)[1]]
            headers["ETag"] = f'"{hashlib.sha256(data).hexdigest()}"'
        self.send_response(status)
        for key, value in (headers | {"Content-Length": str(len(data))}).items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(data)


@pytest.fixture
def hub(model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[FakeHub]]:
    FakeHub.files = {p.name: p.read_bytes() for p in model.iterdir()} | {"pytorch_model.bin": b"pickle"}
    FakeHub.failure = None
    FakeHub.asked = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), FakeHub)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield FakeHub
    server.shutdown()
    server.server_close()


def test_a_hub_model_is_downloaded_without_pickles_and_then_cached(hub: type[FakeHub]) -> None:
    said: list[str] = []
    checkpoint = resolve("some/model", notify=said.append)
    assert (checkpoint.provenance, checkpoint.revision, checkpoint.parameters) == ("hub", SHA, 6)
    assert any(line.startswith("downloading some/model: 5 files") for line in said)
    assert not any("pytorch_model.bin" in path for path in hub.asked)
    hub.asked.clear()
    assert resolve("some/model", notify=quiet) == checkpoint
    assert hub.asked == []


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        ((404, "RepoNotFound"), "check the name, or set HF_TOKEN"),
        ((403, "GatedRepo"), "gated: accept its terms"),
        ((404, "RevisionNotFound"), "no revision"),
        ((403, "Forbidden"), "forbids"),
    ],
)
def test_what_the_hub_refuses_has_a_remedy(hub: type[FakeHub], failure: tuple[int, str], message: str) -> None:
    hub.failure = failure
    with pytest.raises(ModelError, match=message):
        resolve("some/model@v9", notify=quiet)


def test_a_hub_model_with_pickles_only_is_refused(hub: type[FakeHub]) -> None:
    del hub.files["model.safetensors"]
    with pytest.raises(ModelError, match=r"no safetensors on the hub \(it has pytorch_model.bin\)"):
        resolve("some/model", notify=quiet)

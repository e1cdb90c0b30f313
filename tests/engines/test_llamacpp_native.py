"""llama.cpp built for this CPU: the contract in its own environment, and that it is the build and not the wheel."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from inferplan import environments, measure
from inferplan._remote_engine import open_engine
from inferplan.engines.llamacpp import MODEL_NAME
from inferplan.engines.llamacpp_native import NAME, LlamaCppNativeEngine
from inferplan.plan import Plan
from inferplan.testing import EngineContract, Reference
from tiny_models import PROMPT, library_model, reference_of

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

OURS = environments.directory()  # before the tests are given an empty cache of their own
installed = pytest.mark.skipif(
    environments.installed(NAME) is None,
    reason="llama.cpp built for this CPU is not installed: inferplan engines install llamacpp --native",
)


@pytest.fixture(scope="module", autouse=True)
def _users_environments() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(environments.VARIABLE, str(OURS))
        yield


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("tiny")
    library_model("llama-gqa-tied").save_pretrained(made)
    return made


@installed
@pytest.mark.slow
class TestLlamaCppNativeContract(EngineContract):
    engine = NAME

    @pytest.fixture
    def checkpoint(self, tiny: Path) -> Path:
        return tiny

    @pytest.fixture
    def reference(self) -> Reference:
        return reference_of("llama-gqa-tied")


@installed
def test_it_is_built_with_what_this_cpu_has(tiny: Path, tmp_path: Path) -> None:
    info = measure.describe(NAME)
    assert info.libraries == {f"xllamacpp of {NAME}": info.version}
    plan = Plan("tiny", NAME, "int8")
    assert measure.convert(plan, tiny, tmp_path) == ("ok", "")
    engine = open_engine(NAME, measure.worker_environment(plan, info))
    kernel = engine.load(plan, tmp_path).kernel
    engine.close()
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text().split() if cpuinfo.is_file() else []
    assert ("AVX512" in kernel.split()) == ("avx512f" in flags)
    assert ("AVX512_VNNI" in kernel.split()) == ("avx512_vnni" in flags)
    assert "AMX_INT8" not in kernel.split(), "what GCC makes of these kernels dies of SIGILL"


@installed
@pytest.mark.slow
def test_the_recipe_runs_the_build_and_gives_the_same_tokens(tiny: Path, tmp_path: Path) -> None:
    info, plan = measure.describe(NAME), Plan("tiny", NAME, "int8")
    assert measure.convert(plan, tiny, tmp_path) == ("ok", "")
    (tmp_path / "recipe.py").write_text(LlamaCppNativeEngine().native_recipe(plan, "some/model"))
    asked = ["recipe.py", MODEL_NAME, "--ids", ",".join(map(str, PROMPT)), "--tokens", "16"]
    command = [*environments.interpreter(NAME), *asked]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    engine = open_engine(NAME, measure.worker_environment(plan, info))
    engine.load(plan, tmp_path)
    assert json.loads(done.stdout.splitlines()[-1]) == list(engine.generate(PROMPT, 16))
    engine.close()


def test_another_python_than_that_of_the_build_is_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(environments.VARIABLE, str(tmp_path))
    assert "engines install llamacpp --native" in measure.describe(NAME).lacks["engine"]
    assert "engines install llamacpp --native" in (LlamaCppNativeEngine().unsupported(Plan("m", NAME)) or "")


def test_the_recipe_says_how_the_build_is_made() -> None:
    text = LlamaCppNativeEngine().native_recipe(Plan("m", NAME), "some/model")
    compile(text, "recipe.py", "exec")
    assert "-DGGML_NATIVE=ON" in text.splitlines()[0]
    assert "--no-binary xllamacpp" in text.splitlines()[0]

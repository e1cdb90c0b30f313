"""The model hub: is it there, what does it hold, bring it here.

Owns every call to huggingface_hub, which is imported only when one is made.
Leaves what to do without the hub to `models`.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ._files import INDEX_FILE, TOKENIZER_FILES
from .errors import ModelError

CONNECT_LIMIT_S = 5.0  # for all attempts together: without a network a user should not wait longer (issue 2)
_SMALL_FILES = ("config.json", "generation_config.json", INDEX_FILE, *TOKENIZER_FILES)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True, slots=True)
class HubId:
    """A model on the hub: `org/name`, and a branch, tag or commit (empty: the main branch)."""

    repo: str
    revision: str = ""

    @classmethod
    def parse(cls, text: str) -> HubId | None:
        """The hub id that `text` is, `org/name[@revision]`; None when it is none."""
        repo, at, revision = text.partition("@")
        return cls(repo, revision) if _HUB_ID.fullmatch(repo) and (not at or revision) else None

    def __str__(self) -> str:
        return f"{self.repo}@{self.revision}" if self.revision else self.repo


class UnreachableError(Exception):
    """The hub did not answer, or must not be asked. Never leaves `models`."""


_reached: bool | None = None  # of this process; None: not asked yet
_why_not = ""


def endpoint() -> str:
    """The hub's address: HF_ENDPOINT, or the public one."""
    from huggingface_hub import constants

    return (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")


def forget() -> None:
    """Ask for the hub anew at the next call; for tests and long-running processes."""
    global _reached, _why_not
    _reached, _why_not = None, ""


def require(notify: Callable[[str], None]) -> None:
    """See, once a process, that the hub answers within CONNECT_LIMIT_S; say so once when it does not.

    Raises:
        UnreachableError: it does not, or HF_HUB_OFFLINE is set.
    """
    global _reached, _why_not
    if _reached is None:
        _why_not = _probe()
        _reached = not _why_not
        if not _reached:
            notify(_why_not)
    if not _reached:
        raise UnreachableError(_why_not)


def _probe() -> str:
    """Why the hub cannot be used; empty when it can."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return "HF_HUB_OFFLINE is set: the hub is not asked"
    answer: list[str] = []

    def ask() -> None:
        from huggingface_hub import get_session

        try:
            get_session().head(endpoint(), timeout=CONNECT_LIMIT_S)  # any answer will do, even an error
        except Exception as err:  # by version of huggingface_hub the errors of httpx2, httpx or requests
            answer.append(f"{endpoint()} is not reached ({_line(err)})")
        else:
            answer.append("")

    # A thread, because looking up a name can take longer than any limit that the client knows.
    thread = threading.Thread(target=ask, daemon=True, name="inferplan-hub-probe")
    thread.start()
    thread.join(CONNECT_LIMIT_S)
    return answer[0] if answer else f"{endpoint()} is not reached (no answer in {CONNECT_LIMIT_S:.0f} s)"


def cached(model: HubId, *, code: bool = False) -> Path | None:
    """The snapshot of `model` in the local hub cache, whole or not; None when there is none."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    for patterns in (_patterns(code), ["config.json"]):  # the second finds one that is not whole
        try:
            found = snapshot_download(
                model.repo,
                revision=model.revision or None,
                cache_dir=_cache(),
                allow_patterns=patterns,
                local_files_only=True,
            )
        except LocalEntryNotFoundError:
            continue
        except HFValidationError as err:
            raise ModelError(f"{model} is not a hub id: {_line(err)}") from None
        return Path(found)
    return None


def download(model: HubId, notify: Callable[[str], None], *, code: bool = False) -> Path:
    """Bring config, tokenizer and safetensors of `model` into the hub cache; says size and progress.

    Raises:
        ModelError: no such model or revision, no access, no safetensors, no space, or the transfer broke.
    """
    from huggingface_hub import HfApi, snapshot_download

    with_errors = _Errors(model)
    with with_errors:
        info = HfApi(endpoint=endpoint()).model_info(model.repo, revision=model.revision or None, files_metadata=True)
    sizes = {s.rfilename: s.size or 0 for s in info.siblings or ()}
    wanted = _choose(model, sizes, code)
    total = sum(sizes[name] for name in wanted)
    notify(f"downloading {model}: {len(wanted)} files, {total / 2**20:.0f} MiB, from {endpoint()}")
    with with_errors:
        found = snapshot_download(
            model.repo,
            revision=model.revision or None,
            cache_dir=_cache(),
            endpoint=endpoint(),
            allow_patterns=wanted,
            tqdm_class=_progress_bar(notify, total),
        )
    return Path(found)


def _choose(model: HubId, names: Iterable[str], code: bool) -> list[str]:
    """The files to bring: never a pickle, never a second copy of the weights."""
    top = sorted(name for name in names if "/" not in name)
    weights = [name for name in top if name.endswith(".safetensors")]
    if INDEX_FILE in top:
        shards = [name for name in weights if re.fullmatch(r"model-\d+-of-\d+\.safetensors", name)]
        weights = shards or weights
    elif "model.safetensors" in weights:
        weights = ["model.safetensors"]
    if not weights:
        held = sorted(name for name in top if name.endswith((".bin", ".pt", ".pth", ".gguf", ".msgpack", ".h5")))
        others = f" (it has {', '.join(held[:3])})" if held else ""
        raise ModelError(
            f"{model} has no safetensors on the hub{others}; pickles are not loaded. Take a revision or a copy "
            "that has safetensors, or download a .gguf file and give its path."
        )
    return [name for name in top if name in _SMALL_FILES or (code and name.endswith(".py"))] + weights


def _patterns(code: bool) -> list[str]:
    return [*_SMALL_FILES, "model.safetensors", "model-*.safetensors", *(["*.py"] if code else [])]


def _cache() -> Path:
    from huggingface_hub import constants

    return Path(os.environ.get("HF_HUB_CACHE") or constants.HF_HUB_CACHE)


class _Errors:
    """Turns what huggingface_hub raises for one model into ModelErrors with a remedy."""

    def __init__(self, model: HubId) -> None:
        self.model = model

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, err: BaseException | None, trace: object) -> None:
        if not isinstance(err, Exception):  # nothing, or an interrupt
            return
        from huggingface_hub import errors

        page = f"{endpoint()}/{self.model.repo}"
        status = getattr(getattr(err, "response", None), "status_code", None)
        if isinstance(err, errors.GatedRepoError):
            text = f"{self.model} is gated: accept its terms on {page}, then set HF_TOKEN to a token of that account"
        elif isinstance(err, errors.RevisionNotFoundError):
            text = (
                f"{self.model.repo} has no revision {self.model.revision!r}: see {page}/commits/main for those it has"
            )
        elif isinstance(err, errors.RepositoryNotFoundError) or status in (401, 404):
            text = f"{self.model} is not on {endpoint()}, or is private: check the name, or set HF_TOKEN to see it"
        elif status == 403:
            text = f"{endpoint()} forbids {self.model}: check that the token in HF_TOKEN may read it ({page})"
        elif isinstance(err, OSError) and err.errno is not None and err.filename:
            text = f"{self.model} cannot be saved: {err.strerror} ({err.filename}). Set HF_HOME to a disk with space"
        else:
            text = f"{self.model} could not be brought from {endpoint()}: {_line(err)}. What came is kept: try again"
        raise ModelError(text + ".") from err


def _progress_bar(notify: Callable[[str], None], total_bytes: int) -> Any:
    """A tqdm class that says every tenth of the bytes, at most once a second, and draws nothing."""
    from tqdm import tqdm

    lock, state = threading.Lock(), {"bytes": 0.0, "said": 0.0, "at": time.monotonic()}

    class Bar(tqdm):  # type: ignore
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.pop("name", None)
            kwargs["disable"] = True
            self._in_bytes = kwargs.get("unit") == "B"
            super().__init__(*args, **kwargs)

        def update(self, n: float | None = 1) -> bool | None:
            if self._in_bytes and n and total_bytes:
                with lock:
                    state["bytes"] += n
                    share, now = min(state["bytes"] / total_bytes, 1.0), time.monotonic()
                    if share - state["said"] >= 0.1 and (now - state["at"] >= 1 or share == 1.0):
                        state.update(said=share, at=now)
                        notify(f"downloaded {share:.0%} of {total_bytes / 2**20:.0f} MiB")
            return bool(super().update(n))

    return Bar


def _line(err: BaseException) -> str:
    return (str(err).strip().split("\n")[0] or type(err).__name__)[:200]

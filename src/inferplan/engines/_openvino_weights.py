"""The data of a converted model in a mapping of our own, given back while the library makes its own copy of it.

Owns those pages and nothing else. Leaves the copy, which the CPU device orders for its kernels, to the library.

Why: the device never reads the file again after it has ordered the weights, but its pages stay in the process. Given
back, SmolLM2-135M in FP32 peaked at 783 MiB instead of 1295, and in INT8 at 309 instead of 435 (issue 4). They stay
in the page cache of the system; tokens that are looked up in the embedding bring their rows back.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_EVERY_S = 0.005  # in which the library reads some 10 MB


class Weights:
    """A file mapped for reading. The object must live as long as a model that was made with its `tensor`."""

    def __init__(self, path: Path) -> None:
        import numpy as np
        import openvino

        with path.open("rb") as file:
            # Copied on write: the library takes writable memory only. Nothing is written, or it would be lost below.
            self._pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        self._array: Any = np.frombuffer(self._pages, dtype=np.uint8)
        self.tensor: Any = openvino.Tensor(self._array, shared_memory=True)

    def drop(self) -> None:
        """Give back all pages; reading one again maps it again."""
        if hasattr(self._pages, "madvise"):  # Windows has no such call
            self._pages.madvise(mmap.MADV_DONTNEED)

    @contextmanager
    def dropping(self) -> Iterator[None]:
        """Give pages back again and again while the library reads them, and what it has freed at the end."""
        done = threading.Event()

        def run() -> None:
            while not done.wait(_EVERY_S):
                self.drop()

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            self.drop()
            trim()


def trim() -> None:
    """Give back to the system what the C library has free, where it can be told to."""
    if sys.platform != "linux":
        return
    give_back: Any = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's alone
    if give_back is not None:
        give_back(0)

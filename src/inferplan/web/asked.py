"""Asked: what a page asks for, as the command line that asks for the same.

Owns the flags; the page shows them and the study is made from them, so the two
cannot differ. Leaves their meaning to `cli` and `terms`.
"""

from __future__ import annotations

import re
import shlex
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .. import cli, terms
from ..cost import Prices
from ..engines.base import EngineInfo
from ..errors import InputError, UnknownNameError
from ..models import SHIPPED
from ..plan import OptionValue, option_text
from ..selection import parse_sla
from ..store import Store
from ..study import RACES, Study, save_header
from ..workload import Prompt, parse_prompts, to_jsonl
from . import jobs

PRICES = "prices.toml"
"""The name of the file that the command line reads prices from."""

MOST_PROMPT_BYTES = 1 << 20
"""Of a pasted text or an uploaded file: thousands of prompts, more than a study could ever time."""

# ORG/NAME[@REVISION] as the hub writes them; nothing that could name a place on this disk.
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")


@dataclass(frozen=True, slots=True)
class Prompts:
    """Prompts that were pasted or uploaded: a prompt a line, or an object a line."""

    text: str
    jsonl: bool = False

    @property
    def name(self) -> str:
        """The name of the file that the command line reads them from."""
        return "prompts.jsonl" if self.jsonl else "prompts.txt"

    @property
    def parsed(self) -> tuple[Prompt, ...]:
        """The prompts themselves.

        Raises:
            WorkloadError: the text holds none, or a line of it cannot be read.
        """
        return parse_prompts(self.text, jsonl=self.jsonl, source=self.name)


@dataclass(frozen=True, slots=True)
class Asked:
    """A study as a page asks for it; each field is a flag of `inferplan optimize`.

    Attributes:
        sla: constraints as text, `p50<=1500ms`.
        kv_cache: `on`, `off` or both.
        options: engines' own axes by name, with the values to try.
        prompts: None: the shipped ones.
        prompt_tokens: lengths, `32,512`; empty: prompts are texts.
    """

    models: tuple[str, ...]
    sla: tuple[str, ...]
    engines: tuple[str, ...] = ("transformers",)
    precisions: tuple[str, ...] = ("fp32", "int8")
    threads: tuple[int, ...] = (1, 2, 4)
    kv_cache: tuple[str, ...] = ("on", "off")
    options: tuple[tuple[str, tuple[OptionValue, ...]], ...] = ()
    max_new_tokens: int = 64
    prompts: Prompts | None = None
    prompt_tokens: str = ""
    minimize: str = "latency"
    prices: Prices | None = None
    strategy: str = "exhaustive"
    rounds: int = terms.ROUNDS
    all_rounds: bool = False
    early_stop: bool = False
    private: bool = False
    no_watch: bool = False
    weights: str = "auto"

    def flags(self, folder: str = "") -> list[str]:
        """The flags that differ from what `inferplan optimize` does by itself.

        Args:
            folder: where the files of prompts and prices lie, ending in a slash; empty: here.
        """
        every = [part for text in self.sla for part in ("--sla", text)]
        every += ["--models", *self.models]
        for flag, values, default in (
            ("--engines", self.engines, ("transformers",)),
            ("--precisions", self.precisions, ("fp32", "int8")),
            ("--threads", tuple(map(str, self.threads)), ("1", "2", "4")),
            ("--kv-cache", self.kv_cache, ("on", "off")),
        ):
            every += [flag, *values] if values != default else []
        for name, choices in self.options:
            every += ["--option", _option(name, choices)]
        every += ["--max_new_tokens", str(self.max_new_tokens)] if self.max_new_tokens != 64 else []
        every += ["--prompts", folder + self.prompts.name] if self.prompts else []
        every += ["--prompt-tokens", self.prompt_tokens] if self.prompt_tokens else []
        every += ["--minimize", self.minimize] if self.minimize != "latency" else []
        every += ["--prices", folder + PRICES] if self.prices else []
        every += ["--strategy", self.strategy] if self.strategy != "racing" else []
        every += ["--rounds", str(self.rounds)] if self._in_rounds and self.rounds != terms.ROUNDS else []
        every += ["--weights", self.weights] if self.weights != "auto" else []
        for flag, given in (
            ("--all-rounds", self.all_rounds and self._in_rounds),
            ("--early-stop", self.early_stop),
            ("--private", self.private),
            ("--no-watch", self.no_watch),
        ):
            every += [flag] if given else []
        return every

    @property
    def _in_rounds(self) -> bool:
        """Whether the strategy goes by rounds; a race does not."""
        return self.strategy not in RACES

    @property
    def command(self) -> str:
        """The command line that does the same; files that it reads are beside it."""
        return shlex.join(["inferplan", "optimize", *self.flags()])

    @property
    def files(self) -> dict[str, str]:
        """Name and text of each file that the command line reads."""
        found = {self.prompts.name: self.prompts.text} if self.prompts else {}
        return found | ({PRICES: prices_file(self.prices)} if self.prices else {})


def _option(name: str, values: tuple[OptionValue, ...]) -> str:
    shown = [option_text(value) for value in values]
    return f"{name}={','.join(shown)}"


def check(asked: Asked) -> None:
    """Find what is wrong before anything is started.

    Raises:
        InputError: says what, with its value, and what to do.
    """
    for what, values in (
        ("model", asked.models),
        ("engine", asked.engines),
        ("precision", asked.precisions),
        ("thread count", asked.threads),
        ("setting of the KV cache", asked.kv_cache),
    ):
        if not values:
            raise InputError(f"choose at least one {what}")
    parse_sla(asked.sla)
    if asked.prompts is not None:
        if (size := len(asked.prompts.text.encode())) > MOST_PROMPT_BYTES:
            raise InputError(f"the prompts are {size / 1024:.0f} KiB; a page takes {MOST_PROMPT_BYTES // 1024} KiB")
        _ = asked.prompts.parsed


def begun(asked: Asked, infos: Mapping[str, EngineInfo]) -> Study:
    """The study that the flags ask for, not saved and not started.

    Args:
        infos: what each engine says of itself here, those asked for among them.

    Raises:
        InputError: as the command line would, with the same words.
    """
    check(asked)
    with tempfile.TemporaryDirectory() as folder:
        for name, text in asked.files.items():
            (Path(folder) / name).write_text(text, encoding="utf-8")
        arguments = cli.parse(["optimize", *asked.flags(folder + "/")])
        space = terms.space_of(arguments)
        if unknown := [name for name in space.engines if name not in infos]:
            raise UnknownNameError("engine", unknown[0], infos)
        used = {name: infos[name] for name in space.engines}
        return terms.begun(arguments, parse_sla(asked.sla), space, used)


def start(asked: Asked, infos: Mapping[str, EngineInfo], store: Path) -> Study:
    """Save the study and run it in a process of its own; it waits while another study holds the machine.

    Raises:
        InputError: it cannot be begun, saved or started.
    """
    study = begun(asked, infos)
    with Store(store) as opened:
        save_header(opened, study)
    flags: list[str] = []
    prompts = ""
    if study.settings.private:  # the store keeps hashes only, so the process is given the prompts themselves
        prompts = to_jsonl(asked.prompts.parsed) if asked.prompts else ""
        flags = ["--max_new_tokens", str(asked.max_new_tokens)]
        flags += ["--prompt-tokens", asked.prompt_tokens] if asked.prompt_tokens else []
    jobs.start(store, study.id, flags, prompts=prompts)
    return study


def prices_file(prices: Prices) -> str:
    """Prices as the TOML that `--prices` reads."""
    source = prices.source.replace("\\", "\\\\").replace('"', '\\"')
    return (
        f"usd_per_vcpu_hour = {prices.usd_per_vcpu_hour!r}\nusd_per_gb_hour = {prices.usd_per_gb_hour!r}\n"
        f'source = "{source}"\n'
    )


def hub_ids(text: str) -> tuple[str, ...]:
    """Model ids of the hub, separated by commas or spaces.

    Raises:
        InputError: one is not ORG/NAME[@REVISION]; a page opens no path of the server.
    """
    found = tuple(part for part in re.split(r"[\s,]+", text.strip()) if part)
    for id in found:
        if not _HUB_ID.fullmatch(id) or ".." in id:
            raise InputError(f"{id!r} is not a model id of the hub: write ORG/NAME or ORG/NAME@REVISION")
    return found


def local_models(folder: Path | None) -> dict[str, str]:
    """What `--models-dir` offers: the name below it, and the path to give; directories with a config, GGUF files."""
    if folder is None or not folder.is_dir():
        return {}
    inside = folder.resolve()
    found = [path.parent for pattern in ("*/config.json", "*/*/config.json") for path in inside.glob(pattern)]
    found += [*inside.glob("*.gguf"), *inside.glob("*/*.gguf")]
    kept = [path for path in found if path.resolve().is_relative_to(inside)]  # no link leads out of it
    return {path.relative_to(inside).as_posix(): str(path) for path in sorted(set(kept))}


def shipped_models() -> tuple[str, ...]:
    """The names that we ship, in our order."""
    return tuple(SHIPPED)

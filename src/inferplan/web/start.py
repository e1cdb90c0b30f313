"""The page that starts a study: what to measure, under which SLA, with which requests.

Owns the form. Every choice on it comes from what the package declares: shipped
models, engines and their axes, metrics; what is asked for is a command line.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files

import streamlit as st

from .. import machine
from ..cost import Prices
from ..engines import DEFAULT
from ..engines.base import EngineInfo
from ..errors import InferplanError, InputError, WorkloadError
from ..forecast import Forecast, forecast
from ..plan import PRECISIONS, OptionValue, option_text
from ..progress import duration
from ..selection import Objective, parse_sla
from ..study import RACES, STRATEGIES, Study
from ..terms import ROUNDS
from ..workload import Prompt, parse_prompts
from . import asked as asking
from . import controls, reading
from .asked import MOST_PROMPT_BYTES, Asked, Prompts
from .parts import Place, complaints, engines, noted, safe

_THREADS = (1, 2, 4, 8)
_SHOWN_PROMPTS = 5
_SHOWN_REJECTED = 20
_SEARCHES = ("exhaustive", "racing", "random")
_RACED = "A race takes a small part of the time of measuring every plan, and confirms its choice in six processes."
_WEIGHTS = {
    "auto": "the hub; without it packaged, else synthetic weights",
    "hub": "the hub only",
    "synthetic": "synthetic weights only: true timings, no meaning",
}


def page(place: Place, open_study: st.Page) -> None:
    """Draw the form; its button starts the study and goes to its page."""
    st.title("New study", anchor=False)
    infos = engines()
    with complaints():
        wrong: list[InferplanError] = []
        wanted = _form(place, infos, wrong)
        for err in wrong:
            st.error(safe(err), icon=":material/error:")
        if not wrong:
            _summary(place, wanted, infos, open_study)


def _form(place: Place, infos: Mapping[str, EngineInfo], wrong: list[InferplanError]) -> Asked:
    """What is asked for; what is wrong with it goes to `wrong`, and every control is drawn in any case."""
    prices = Prices()
    with st.container(border=True):
        st.header("What to measure")
        models = _models(place, wrong)
        usual = [name for name in DEFAULT if name in infos]
        chosen = st.multiselect("engines", list(infos), default=usual, key="engines")
        precisions, kv_cache, options = _axes({name: infos[name] for name in chosen}, wrong)
        threads = _threads()
    with st.container(border=True):
        st.header("SLA")
        sla = controls.sla("new", parse_sla(["p50<=1500ms"]))
        objective = controls.objective("new", Objective())
    with st.container(border=True):
        st.header("Requests")
        st.caption("One request at a time; every engine gives exactly so many tokens, decoded greedily.")
        prompts, lengths = _prompts(wrong)
        tokens = int(st.number_input("max_new_tokens", min_value=1, value=64, step=1, key="tokens"))
    with st.expander("How it is run, and prices"):
        strategy = st.selectbox(
            "search", _SEARCHES, format_func=lambda name: f"{name}: {STRATEGIES[name]}", key="strategy"
        )
        raced = strategy in RACES
        rounds = int(
            st.number_input(
                "rounds", min_value=1, max_value=50, value=ROUNDS, step=1, key="rounds", disabled=raced,
                help="fresh processes a plan: the first for all, further ones for those that could still be chosen; "
                "a race measures a plan as often as its verdict needs",
            )
        )  # fmt: skip
        all_rounds = st.checkbox("give every round to every plan", key="all-rounds", disabled=raced)
        early_stop = st.checkbox("end a request that has already taken longer than the SLA allows", key="early-stop")
        private = st.checkbox("keep prompts and outputs only as hashes and lengths", key="private")
        no_watch = st.checkbox("do not mark samples that other processes disturbed", key="no-watch")
        weights = st.selectbox("weights", list(_WEIGHTS), format_func=_WEIGHTS.__getitem__, key="weights")
        with noted(wrong):
            prices = controls.prices("new", Prices())
    return Asked(
        models=models,
        sla=sla,
        engines=tuple(chosen),
        precisions=precisions,
        threads=threads,
        kv_cache=kv_cache,
        options=options,
        max_new_tokens=tokens,
        prompts=prompts,
        prompt_tokens=lengths,
        minimize=objective.metric,
        prices=None if prices == Prices() else prices,
        strategy=strategy,
        rounds=rounds,
        all_rounds=all_rounds,
        early_stop=early_stop,
        private=private,
        no_watch=no_watch,
        weights=weights,
    )


def _models(place: Place, wrong: list[InferplanError]) -> tuple[str, ...]:
    local = asking.local_models(place.models)
    names = [*asking.shipped_models(), *local]
    chosen = st.multiselect(
        "models", names, default=names[:1], key="models", help="shipped names, and what lies in --models-dir"
    )
    typed = st.text_input(
        "model ids of the hub", key="hub", placeholder="ORG/NAME, ORG/NAME@REVISION", help="separated by commas"
    )
    models = tuple(local.get(name, name) for name in chosen)
    with noted(wrong):
        models += asking.hub_ids(typed)
    return models


Options = tuple[tuple[str, tuple[OptionValue, ...]], ...]


def _axes(
    infos: Mapping[str, EngineInfo], wrong: list[InferplanError]
) -> tuple[tuple[str, ...], tuple[str, ...], Options]:
    """Precisions, cache settings, and each further axis that one of the engines has."""
    known = {p for info in infos.values() for p in (*info.precisions, *info.lacks) if p != "engine"}
    precisions = sorted(known, key=lambda p: (PRECISIONS.index(p) if p in PRECISIONS else len(PRECISIONS), p))
    usual = [p for p in ("fp32", "int8") if p in precisions]
    left, right = st.columns(2)
    chosen = left.pills("precisions", precisions, selection_mode="multi", default=usual, key="precisions")
    cache = right.pills("KV cache", ["on", "off"], selection_mode="multi", default=["on", "off"], key="kv")
    options: list[tuple[str, tuple[OptionValue, ...]]] = []
    for name, info in infos.items():
        for axis in info.axes:
            values = st.pills(
                f"{axis.name} ({name})",
                list(axis.values),
                selection_mode="multi",
                default=[axis.default],
                format_func=option_text,
                help=axis.help,
                key=f"axis-{name}-{axis.name}",
            )
            if not values:
                wrong.append(InputError(f"choose at least one value of {axis.name}"))
            elif tuple(values) != (axis.default,):
                options.append((axis.name if len(infos) == 1 else f"{name}.{axis.name}", tuple(values)))
    return tuple(chosen), tuple(cache), tuple(options)


def _threads() -> tuple[int, ...]:
    cores = machine.detect().cores_granted
    chosen = st.pills(
        "threads",
        _THREADS,
        selection_mode="multi",
        default=[n for n in _THREADS if n <= max(cores, 1)],
        format_func=lambda n: str(n) if n <= cores else f"{n} (more than the {cores:g} cores here)",
        key="threads",
    )
    return tuple(chosen)


def _prompts(wrong: list[InferplanError]) -> tuple[Prompts | None, str]:
    """The prompts, or lengths to cut from the shipped text; with a look at what they are."""
    kind = st.segmented_control(
        "prompts", ["shipped", "paste", "upload", "by length"], default="shipped", required=True, key="prompts-kind"
    )
    if kind == "by length":
        lengths = st.text_input("lengths in tokens", value="32,512", key="lengths").replace(" ", "")
        if not lengths:
            wrong.append(WorkloadError("give at least one length, such as 32,512"))
        return None, lengths
    if kind == "shipped":
        shipped = (files("inferplan") / "data" / "prompts.txt").read_text(encoding="utf-8")
        _preview(parse_prompts(shipped, jsonl=False))
        return None, ""
    with noted(wrong):
        given = _pasted() if kind == "paste" else _uploaded()
        _preview(given.parsed)
        return given, ""
    return None, ""


def _pasted() -> Prompts:
    text = st.text_area("a prompt a line", key="pasted", max_chars=MOST_PROMPT_BYTES)
    if not text.strip():
        raise WorkloadError("no prompt is pasted yet: write at least one line")
    return Prompts(text)


def _uploaded() -> Prompts:
    file = st.file_uploader(
        "a .txt file (a prompt a line) or a .jsonl file (`prompt` or `messages`)",
        type=["txt", "jsonl"],
        max_upload_size=max(MOST_PROMPT_BYTES >> 20, 1),
        key="uploaded",
    )
    if file is None:
        raise WorkloadError("no file of prompts is uploaded yet")
    try:
        text = file.getvalue().decode("utf-8-sig")
    except UnicodeDecodeError as err:
        raise WorkloadError(f"{file.name!r} is not UTF-8 text ({err.reason} at byte {err.start})") from None
    return Prompts(text, jsonl=file.name.lower().endswith(".jsonl"))


def _preview(prompts: Sequence[Prompt]) -> None:
    few = "" if len(prompts) >= 5 else ": too few to speak for others"
    with st.expander(f"{len(prompts)} prompts{few}"):
        for prompt in prompts[:_SHOWN_PROMPTS]:
            text = prompt.text or " / ".join(f"{role}: {content}" for role, content in prompt.messages or ())
            st.text(text if len(text) <= 300 else f"{text[:300]} ... ({len(text)} characters)")
        if len(prompts) > _SHOWN_PROMPTS:
            st.caption(f"and {len(prompts) - _SHOWN_PROMPTS} more")


def _summary(place: Place, wanted: Asked, infos: Mapping[str, EngineInfo], open_study: st.Page) -> None:
    """How many plans, how long, what cannot run, the command line, and the button."""
    study = asking.begun(wanted, infos)
    raced = wanted.strategy in RACES
    expected = forecast(study.plans, study.workload, reading.costs(place.store), wanted.rounds)
    with st.container(border=True):
        count = len(study.plans)
        st.header(f"{count} plan{'' if count == 1 else 's'}", anchor=False)
        st.markdown(_how_long(expected) if not raced else _RACED)
        _rejected(study)
        st.caption("The same from a terminal:")
        st.code(wanted.command, language="bash", wrap_lines=True)
        for name, text in wanted.files.items():
            st.download_button(f"{name}, which it reads", text, file_name=name, key=f"file-{name}")
        if st.button("Start the study", type="primary", key="start"):
            with complaints():
                started = asking.start(wanted, infos, place.store)
                st.switch_page(open_study, query_params={"study": started.id})


def _how_long(expected: Forecast) -> str:
    if expected.once_s is None or expected.at_most_s is None:
        return "How long it takes is not known: nothing like it was measured here yet."
    span = f"About {duration(expected.once_s)}"
    if expected.at_most_s > expected.once_s:
        span += f", at most {duration(expected.at_most_s)} if every plan stays in the race"
    return f"{span}; from past runs of {expected.known} of the {expected.plans} plans."


def _rejected(study: Study) -> None:
    if not study.rejected:
        return
    reasons: dict[str, list[str]] = {}
    for plan, why in study.rejected:
        reasons.setdefault(why, []).append(plan.id)
    st.markdown(f"{len(study.rejected)} combinations cannot run here:")
    for why, plans in reasons.items():
        st.markdown(f"- {safe(why)}: {_some(map(safe, plans))}")


def _some(names: Iterable[str]) -> str:
    every = list(names)
    more = len(every) - _SHOWN_REJECTED
    return ", ".join(every[:_SHOWN_REJECTED]) + (f" and {more} more" if more > 0 else "")

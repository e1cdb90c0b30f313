"""The pages, run as Streamlit runs them but without a browser: what they say, and what they do when it moves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest
from streamlit.testing.v1.element_tree import Element

import fake_studies
from inferplan.store import Store
from inferplan.study import Study
from web.keeping import keep

PAGES = ("start", "study", "history", "compare", "machine")


def draw(page: str, store: str, models: str = "") -> None:
    """One page, in a script of its own: Streamlit's tester does not navigate."""
    from pathlib import Path

    import streamlit as st

    from inferplan.web import compared, history, machine_page, start, study_page
    from inferplan.web.parts import Place

    place = Place(Path(store), Path(models) if models else None)
    here = st.Page(lambda: None, title="elsewhere", url_path="elsewhere")
    st.navigation([st.Page(lambda: None, title="here", url_path="here", default=True), here], position="hidden")
    pages = {
        "start": lambda: start.page(place, here),
        "study": lambda: study_page.page(place, here),
        "history": lambda: history.page(place, here, here),
        "compare": lambda: compared.page(place),
        "machine": lambda: machine_page.page(place),
    }
    pages[page]()


def opened(page: str, store: Path, **query: str) -> AppTest:
    app = AppTest.from_function(draw, kwargs={"page": page, "store": str(store)}, default_timeout=60)
    for name, value in query.items():
        app.query_params[name] = value
    return app.run()


def kept(path: Path, *studies: Study) -> Path:
    with Store(path) as store:
        for study in studies:
            keep(store, study)
    return path


def words(app: AppTest) -> str:
    """Everything that the page says."""
    kinds = ("title", "header", "markdown", "caption", "info", "warning", "error", "success", "code")
    return "\n".join(values(app, *kinds))


def values(app: AppTest, *kinds: str) -> list[str]:
    """The text of every element of these kinds."""
    return [str(element.value) for kind in kinds for element in app.get(kind) if isinstance(element, Element)]


@pytest.mark.parametrize("page", PAGES)
def test_every_page_draws_on_an_empty_store(page: str, tmp_path: Path) -> None:
    app = opened(page, tmp_path / "none.db")
    assert not app.exception
    assert app.title


@pytest.mark.parametrize("name", list(fake_studies.STUDIES))
def test_every_outcome_has_a_page(name: str, tmp_path: Path) -> None:
    study = fake_studies.STUDIES[name]()
    app = opened("study", kept(tmp_path / "s.db", study), study=study.id)
    assert not app.exception
    said = words(app)
    selection = study.select()
    if selection.winner is not None:
        assert "Chosen plan" in said
    else:
        assert "Chosen plan" not in said
    if study.synthetic:
        assert "Synthetic weights" in said


def test_no_plan_meets_is_said_with_the_nearest_and_the_smallest_sla(tmp_path: Path) -> None:
    app = opened("study", kept(tmp_path / "s.db", fake_studies.none_meets()))
    said = words(app).replace("\\", "")
    assert "No plan meets p50<=10ms" in said
    assert "comes nearest" in said
    assert "smallest SLA it could meet" in said


def test_moving_the_sla_selects_again_until_none_is_left(tmp_path: Path) -> None:
    study = fake_studies.chosen()
    app = opened("study", kept(tmp_path / "s.db", study))
    winner = study.select().winner
    assert winner is not None
    assert winner.plan.id in words(app).replace("\\", "")
    app.number_input(key=f"if-{study.id}-0-exact-0").set_value(1.0).run()
    said = words(app).replace("\\", "")
    assert "No plan meets p50<=1ms" in said
    assert "What if: p50<=1ms" in said
    app.number_input(key=f"if-{study.id}-0-exact-0").set_value(1500.0).run()
    assert "What if: p50" not in words(app).replace("\\", "")
    assert winner.plan.id in words(app).replace("\\", "")


def test_the_slider_and_the_exact_entry_follow_each_other(tmp_path: Path) -> None:
    study = fake_studies.chosen()
    app = opened("study", kept(tmp_path / "s.db", study))
    app.slider(key=f"if-{study.id}-0-slider-0").set_value(700).run()
    assert app.number_input(key=f"if-{study.id}-0-exact-1").value == 700
    app.number_input(key=f"if-{study.id}-0-exact-1").set_value(9000.0).run()
    assert app.slider(key=f"if-{study.id}-0-slider-1").value == 5000
    assert "p50<=9000ms" in words(app).replace("\\", "")


def test_another_objective_chooses_another_plan(tmp_path: Path) -> None:
    study = fake_studies.chosen()
    app = opened("study", kept(tmp_path / "s.db", study))
    from inferplan.selection import Objective

    thrifty = study.select(objective=Objective("memory")).winner
    fast = study.select().winner
    assert thrifty is not None
    assert fast is not None
    assert thrifty.plan != fast.plan
    app.button_group(key=f"if-{study.id}-0-objective").set_value("memory").run()
    assert not app.exception
    assert values(app, "header")[0].replace("\\", "") == thrifty.plan.id


def test_names_and_prompts_are_shown_as_text(tmp_path: Path) -> None:
    study = fake_studies.hostile()
    for page in ("study", "history", "compare"):
        app = opened(page, kept(tmp_path / f"{page}.db", study, replace(study, id="20260101-130000-beef")))
        assert not app.exception
        for text in values(app, "markdown", "caption", "title", "header", "info", "warning", "error"):
            assert "<script>" not in text.replace("\\<", "&lt;")


def test_an_unknown_study_is_an_error_that_names_the_known(tmp_path: Path) -> None:
    app = opened("study", kept(tmp_path / "s.db", fake_studies.chosen()), study="nonsense")
    assert not app.exception
    assert "unknown study" in app.error[0].value
    assert "20260101" in app.error[0].value


def test_a_store_of_another_program_is_an_error_on_every_page(tmp_path: Path) -> None:
    path = tmp_path / "notes.db"
    path.write_text("not a store, some notes")
    for page in ("study", "history", "compare"):
        app = opened(page, path)
        assert not app.exception
        assert "not an inferplan store" in app.error[0].value.replace("\\", "")
    assert path.read_text() == "not a store, some notes"


def test_the_start_page_counts_plans_and_shows_the_command(tmp_path: Path) -> None:
    app = opened("start", tmp_path / "s.db")
    assert not app.exception
    assert not app.error
    command = app.code[0].value
    assert command.startswith("inferplan optimize --sla 'p50<=1500ms' --models distilgpt2")
    app.number_input(key="new-exact-0").set_value(800.0).run()
    app.multiselect(key="models").set_value(["distilgpt2", "gpt2"]).run()
    assert "p50<=800ms" in app.code[0].value
    assert "distilgpt2 gpt2" in app.code[0].value


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("hub", "../../etc/passwd", "not a model id"),
        ("hub", "/etc/passwd", "not a model id"),
    ],
)
def test_bad_text_is_refused_and_nothing_can_be_started(key: str, value: str, said: str, tmp_path: Path) -> None:
    app = opened("start", tmp_path / "s.db")
    app.text_input(key=key).set_value(value).run()
    assert not app.exception
    assert said in app.error[0].value
    assert not [button for button in app.button if button.key == "start"]


def test_a_study_needs_a_model(tmp_path: Path) -> None:
    app = opened("start", tmp_path / "s.db")
    app.multiselect(key="models").set_value([]).run()
    assert "at least one model" in app.error[0].value
    assert not [button for button in app.button if button.key == "start"]


def test_pasted_prompts_must_hold_a_line(tmp_path: Path) -> None:
    app = opened("start", tmp_path / "s.db")
    app.button_group(key="prompts-kind").set_value("paste").run()
    assert "at least one line" in app.error[0].value
    app.text_area(key="pasted").set_value("one prompt").run()
    assert not app.error
    assert "--prompts prompts.txt" in app.code[0].value


def test_history_lists_every_study_newest_first_and_asks_before_it_deletes(tmp_path: Path) -> None:
    first = fake_studies.chosen()
    second = replace(fake_studies.none_meets(), id="20260102-120000-beef", created_at=first.created_at + 1)
    path = kept(tmp_path / "s.db", first, second)
    app = opened("history", path)
    assert not app.exception
    assert list(app.dataframe[0].value["study"]) == [second.id, first.id]
    app.button(key="delete").click().run()
    assert not app.exception
    assert app.button(key="delete-yes")
    with Store(path) as store:
        assert len(store.study_ids()) == 2


def test_two_studies_side_by_side_say_where_nothing_differs(tmp_path: Path) -> None:
    first = fake_studies.chosen()
    path = kept(tmp_path / "s.db", first, replace(first, id="20260102-120000-beef", created_at=first.created_at + 1))
    app = opened("compare", path)
    assert not app.exception
    table = app.dataframe[0].value
    assert len(table) == len(first.space.plans)
    assert "tie within 3%" in set(table["says"])

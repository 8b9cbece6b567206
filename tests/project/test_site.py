"""The site: every public name has a place on it, every page is in its navigation, and it builds without a warning."""

import importlib
import importlib.util
import os
import pathlib
import re
import subprocess
import sys

import pytest
import site_pages

import kopt

ROOT = pathlib.Path(__file__).parents[2]
PUBLIC = {f"{module.__name__}.{name}" for module in site_pages.MODULES for name in site_pages.names_of(module)}


def test_the_facades_are_the_public_names():
    assert set(site_pages.names_of(kopt)) | {m.__name__.partition(".")[2] for m in site_pages.MODULES[1:]} == set(
        kopt.__all__
    )
    assert len(PUBLIC) > 200


def test_every_public_name_is_on_a_page():
    documented = set(site_pages.catalogued())
    for module in site_pages.MODULES:
        documented |= set(re.findall(r"^::: (\S+)$", site_pages.api_page(module), re.MULTILINE))
    assert documented >= PUBLIC, sorted(PUBLIC - documented)


@pytest.mark.parametrize("name", ["adamw", "lookahead", "muon", "lbfgs"])
def test_the_page_of_a_rule_has_what_the_docstring_and_the_tables_have(name):
    cls = type(kopt.get(name))
    page = site_pages.page("optimizer", cls)
    assert f"# {cls.__name__} {{ #kopt.{cls.__name__} }}" in page
    for field in cls.fields:
        assert f"`{field}`" in page or field == "name", field
    assert f"{site_pages.costs()[cls.__name__]} × that of `Adam`" in page
    assert "float64 reference" in page and "**Reference:**" in page


def test_pages_show_what_a_class_says_of_inherited_arguments_and_errors():
    lazy = site_pages.page("optimizer", kopt.LazyAdam)
    assert "**Raises** `NotImplementedError`, the backend" in lazy and "| `sparse` |" in lazy
    cyclical = site_pages.page("schedule", kopt.schedules.Cyclical)
    assert "updates of one way up" in cyclical and "| `peak_learning_rate` |" not in cyclical


@pytest.mark.parametrize(
    ("text", "source", "expected"),
    [
        ("[a](docs/peft.md#x)", "README.md", "[a](peft.md#x)"),
        ("![a](docs/tensorboard-scalars.png)", "README.md", "![a](tensorboard-scalars.png)"),
        ("[a](docs/nowhere.md)", "README.md", "a"),
        ("[a](../../recipes/README.md)", "docs/decisions/0001.md", "[a](../recipes.md)"),
        ("[`a`](../kopt/peft/adapter.py)", "docs/peft.md", "`a`"),
        ("[a](names/)", "docs/peft.md", "a"),
        ("[a](https://keras.io) [b](#c)", "README.md", "[a](https://keras.io) [b](#c)"),
    ],
)
def test_links_of_the_repository_are_those_of_the_site(text, source, expected):
    pytest.importorskip("mkdocs")
    site_hook = importlib.import_module("site_hook")
    path = site_hook.PLACES.get(source, source.removeprefix("docs/"))
    assert site_hook.LINK.sub(lambda link: site_hook.moved(link, source, path), text) == expected


@pytest.mark.slow
def test_the_site_builds(tmp_path):
    if not all(map(importlib.util.find_spec, ("mkdocs", "material", "mkdocstrings"))):
        pytest.skip('needs pip install -e ".[docs]"')
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "DISABLE_MKDOCS_2_WARNING": "true"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    pages = {page: page.read_text(encoding="utf-8") for page in (tmp_path / "site").rglob("*.html")}
    ids = {name for text in pages.values() for name in re.findall(r'id="(kopt[\w.]*)"', text)}
    assert ids >= PUBLIC, sorted(PUBLIC - ids)
    for page, text in pages.items():
        loaded = re.findall(r'<(?:script|img|link)[^>]* (?:src|href)="(https?://[^"]+)"', text)
        assert not loaded, f"{page.name} loads {loaded} from another host."

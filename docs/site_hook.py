"""What MkDocs calls while it builds the site: adds the pages that are made, and mends links for the site.

Pages that live elsewhere in the repository are pages of the site too (`ELSEWHERE`). Links between files are written for
the repository; here they become links between pages, and those to files that the site does not have become plain text.
"""

import pathlib
import posixpath
import re
import sys
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import site_pages
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = site_pages.ROOT
ELSEWHERE = {
    "index.md": "README.md",
    "recipes.md": "recipes/README.md",
    "benchmarks.md": "benchmarks/README.md",
    "language-model.md": "benchmarks/language-model.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "security.md": "SECURITY.md",
}
"""Pages of the site that are files outside of docs/, by their path in the site."""
PLACES = {source: page for page, source in ELSEWHERE.items()}
FENCED = re.compile(r"(^```.*?^```$)", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\((?!https?://|#|mailto:)([^)\s]+)\)")
TABLES = ("optimizers.md", "adapters.md", "schedules.md", "parity.md")
"""Pages whose tables name optimizers and adapters: there the names are links."""
NAMED = re.compile(r"(?<=[| ])`(\w+)`(?=,| \|)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Puts the pages that are made, and the decisions, into the navigation."""
    config.nav = _filled(config.nav)
    return config


def _filled(part: Any) -> Any:
    if isinstance(part, list):
        filled = [_filled(entry) for entry in part]
        return [entry for entries in filled for entry in (entries if isinstance(entries, list) else [entries])]
    if isinstance(part, dict):
        return {title: _filled(entry) for title, entry in part.items()}
    return _entries(part[1:]) if part.startswith("@") else part


def _entries(kind: str) -> list[dict[str, Any]]:
    """Returns what stands in the navigation for `@kind`."""
    if kind == "api":
        return [{module.__name__: f"api/{module.__name__}.md"} for module in site_pages.MODULES]
    if kind == "decisions":
        pages = sorted((ROOT / "docs" / "decisions").glob("*.md"))
        titles = {page: page.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ") for page in pages}
        return [{"Decisions": [{title: f"decisions/{page.name}"} for page, title in titles.items()]}]
    pages = sorted((p for p in site_pages.catalogued().values() if p.startswith(f"{kind}/")), key=str.lower)
    return [{"One by one": [{pathlib.PurePath(page).stem: page} for page in pages]}]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are made, and those of `ELSEWHERE`."""
    made: dict[str, str | bytes] = dict(site_pages.made())
    made |= {page: (ROOT / source).read_text(encoding="utf-8") for page, source in ELSEWHERE.items()}
    for path, content in made.items():
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Returns a page without the marks of generated parts, and with links as the site needs them."""
    path = page.file.src_uri
    if path == "index.md":
        page.meta["hide"] = ["navigation", "toc"]
    if page.file.generated_by and path not in ELSEWHERE:
        return markdown
    source = ELSEWHERE.get(path, f"docs/{path}")
    parts = FENCED.split(re.sub(r"^<!-- .*? -->$", "", markdown, flags=re.MULTILINE))
    mended = (p if p.startswith("```") else LINK.sub(lambda m: moved(m, source, path), p) for p in parts)
    return "".join(mended) if path not in TABLES else NAMED.sub(linked, "".join(mended))


def linked(name: re.Match[str]) -> str:
    """Returns the name of an optimizer, an adapter or a schedule in a table, with a link to its page."""
    pages = {known.rpartition(".")[2]: page for known, page in site_pages.catalogued().items()}
    return f"[{name[0]}]({pages[name[1]]})" if name[1] in pages else name[0]


def moved(link: re.Match[str], source: str, path: str) -> str:
    """Returns a link of the repository as one of the site, or its text where the site has no such page."""
    target, _, heading = link[3].partition("#")
    place = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
    known = place.startswith("docs/") and not place.endswith(".py") and (ROOT / place).is_file()
    there = PLACES.get(place, place.removeprefix("docs/") if known else "")
    if not there:
        return link[2]
    there = posixpath.relpath(there, posixpath.dirname(path) or ".")
    return f"{link[1]}[{link[2]}]({there}{'#' + heading if heading else ''})"

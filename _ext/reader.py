"""What a page says beyond its text: reading time and cost, the map of chapters, link previews, a 404 page."""

from __future__ import annotations

import html
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from docutils import nodes
from sphinx import addnodes
from sphinx.util.docutils import SphinxDirective

from kdutils.pages import plots

WORDS_A_MINUTE = 200  # of prose with formulas; code is counted as prose
# What a student is asked to match: the arm that is known by its colour, and words for the key.
SIGNALS = {
    "labels": ("labels", "labels"),
    "output": ("one-shot", "the final teacher’s output"),
    "checkpoint": ("progressive", "a checkpoint’s output"),
    "hidden": ("extraction", "a hidden layer"),
    "untrained": ("untrained", "an untrained network, as a control"),
}
LOST = """<section><h1>This page is not here</h1>
<p>It may have moved, or its address may have been cut. The book itself is whole:</p>
<ul><li><a href="book/index.html">the front page, with a map of the chapters</a></li>
<li><a href="search.html">search</a></li></ul></section>"""
# A 404 page is shown at any depth of any site that holds this one: a project's page, a fork's, a domain's root, a
# preview below /pr/12/. So it looks for the folder above it that holds our style sheet, before any link is followed.
# Without scripts, its links start from where GitHub Pages shows the repository; opened as a file, from where it lies.
BASE = """<base href="{root}">
<script>
(() => {{
  const base = document.querySelector("base");
  if (location.protocol === "file:") return void (base.href = "./");
  for (let folder = location.pathname; folder; folder = folder.slice(0, -1)) {{
    folder = folder.slice(0, folder.lastIndexOf("/") + 1);
    const request = new XMLHttpRequest();
    try {{
      request.open("GET", folder + "_static/palette.css", false);
      request.send();
      if (request.status === 200 && request.responseText.startsWith(".kd-")) return void (base.href = folder);
    }} catch {{}}
  }}
}})();
</script>"""


def site_url(repository: str) -> str:
    """Where GitHub Pages shows a repository: the host's root for OWNER.github.io, a folder of it for others.

    Raises:
        ValueError: for anything but an address of a repository.

    >>> site_url("https://github.com/someone/a-book")
    'https://someone.github.io/a-book/'
    >>> site_url("https://github.com/someone/someone.github.io.git/")
    'https://someone.github.io/'
    """
    parts = urlsplit(re.sub(r"(?:/|\.git)+$", "", repository)).path.strip("/").split("/")
    if len(parts) != 2 or not all(parts):
        raise ValueError(f"repository.url in _config.yml must be https://github.com/OWNER/NAME, not {repository!r}")
    host = f"{parts[0].lower()}.github.io"
    return f"https://{host}/" if parts[1].lower() == host else f"https://{host}/{parts[1]}/"


def _strip(signals: str) -> str:
    parts = "".join(f'<span class="kd-{SIGNALS[s][0]}"></span>' for s in signals.split())
    return f'<span class="kd-strip" aria-hidden="true">{parts}</span>'


class ChapterMap(SphinxDirective):
    """The chapters as cards: lines `NN_name | signals of the stages | question`.

    A line whose chapter is not in the table of contents is left out, so it may stand here first.
    """

    has_content = True

    def run(self) -> list[nodes.Node]:
        cards, used = [], set()
        for line in self.content:
            name, signals, question = (part.strip() for part in line.split("|"))
            if f"book/{name}" in self.env.found_docs:
                source = Path(self.env.srcdir, "book", f"{name}.ipynb").read_text(encoding="utf-8")
                title = json.loads(source)["cells"][0]["source"]
                used |= set(signals.split())
                title = "".join(title).splitlines()[0].removeprefix("# ")
                cards.append(
                    f'<li><a href="{name}.html">{_strip(signals)}<b>{int(name[:2])} · {html.escape(title)}</b>'
                    f"<span>{html.escape(question)}</span></a></li>"
                )
        key = "".join(f"<li>{_strip(name)} {text}</li>" for name, (_, text) in SIGNALS.items() if name in used)
        return [nodes.raw("", f'<ul class="kd-map">{"".join(cards)}</ul><ul class="kd-key">{key}</ul>', format="html")]


def facts(words: int, record: dict[str, Any] | None) -> str:
    """One line on a chapter: how long it takes to read and to run, and with what it ran last.

    >>> facts(1900, None)
    '10 min to read'
    """
    parts = [f"{max(1, round(words / WORDS_A_MINUTE))} min to read"]
    if record:
        cost, versions, profile = record["cost"], record["versions"], record["settings"]["profile"]
        device = cost["device"].replace(", 1 threads", ", 1 thread")
        parts.append(f"{cost['seconds'] / 60:.1f} min to train ({device}, profile {profile})")
        parts.append(f"last executed with Python {versions['python']}, torch {versions['torch'].split('+')[0]}")
    return " · ".join(parts)


def _add_facts(app: Any, doctree: nodes.document) -> None:
    name = Path(app.env.docname).name
    if not re.match(r"\d\d_", name):
        return
    title = next(doctree.findall(nodes.title))
    path = Path(app.srcdir, "book", "results", f"{name}.json")
    record = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    prose = (n.astext() for n in doctree.findall(lambda n: isinstance(n, nodes.paragraph | nodes.title)))
    code = (n.astext() for n in doctree.findall(nodes.literal_block) if "output" not in n.parent.get("classes", []))
    line = facts(sum(len(text.split()) for text in (*prose, *code)), record)
    title.parent.insert(title.parent.index(title) + 1, nodes.paragraph("", line, classes=["kd-facts"]))


def _name_cells(app: Any, doctree: nodes.document) -> None:
    """In a table of three columns or more each cell carries its column's name, which a phone shows (book.css)."""
    for group in doctree.findall(nodes.tgroup):
        head, body = next(group.findall(nodes.thead), None), next(group.findall(nodes.tbody))
        names = [entry.astext() for entry in head.findall(nodes.entry)] if head is not None else []
        for row in body.findall(nodes.row) if len(names) > 2 else ():
            for name, entry in zip(names, row.children, strict=True):
                if entry.children:
                    entry[0].insert(0, nodes.inline("", f"{name}: ", classes=["kd-head"]))


def _leave_out_checks(app: Any, doctree: nodes.document) -> None:
    """The verdicts that nbval compares stand in the table above them; a page need not say them twice."""
    for cell in list(doctree.findall(nodes.container)):
        if "tag_nbval-check-output" in cell.get("classes", []):
            cell.parent.remove(cell)


def _settings_of_the_playground(app: Any, doctree: nodes.document) -> None:
    """`[text](playground.md#d=20&k=5)` names a setting, which is no anchor of that page: the link is left as it is."""
    for link in list(doctree.findall(addnodes.pending_xref)):
        setting = link.get("reftargetid") or ""
        if link.get("reftarget") == "book/playground" and "=" in setting:
            link.replace_self(
                nodes.reference("", "", *link.children, internal=True, refuri=f"playground.html#{setting}")
            )


def _words_before_numbers(app: Any, doctree: nodes.document) -> None:
    """`[the loss](#eq-kd)` would become its number alone: its words stay, and the number follows them."""
    for link in list(doctree.findall(addnodes.pending_xref)):
        if link.get("refexplicit") and link.get("reftarget", "").startswith("eq-"):
            words = [child.deepcopy() for child in link.children]
            link.parent[link.parent.index(link) : link.parent.index(link)] = [*words, nodes.Text(" ")]


def _describe(app: Any, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None) -> None:
    repository = app.config.html_theme_options["repository_url"]
    root = f"{app.config.html_baseurl.rstrip('/')}/" if app.config.html_baseurl else site_url(repository)
    if page == "404":
        context["metatags"] = BASE.format(root=urlsplit(root).path) + context.get("metatags", "")
        return
    if doctree is None:
        return
    texts = (p.astext() for p in doctree.findall(nodes.paragraph) if "kd-facts" not in p.get("classes", []))
    said = re.sub(r"\s+", " ", next(texts, ""))
    tags = {
        "og:type": "article" if page != app.config.root_doc else "book",
        "og:site_name": app.config.html_title or app.config.project,
        "og:title": re.sub(r"<.+?>", "", context["title"]),
        "og:description": said,
        "og:url": f"{root}{page}.html",
        "twitter:card": "summary_large_image",
    }
    if (Path(app.srcdir) / "book" / "headline.png").exists():
        tags["og:image"] = f"{root}_images/headline.png"
        tags["og:image:alt"] = "Share of students that have solved the task against training samples, five curricula."
    tags = "".join(f'<meta property="{k}" content="{html.escape(v)}">\n' for k, v in tags.items())
    tags += f'<link rel="alternate" type="text/markdown" href="{Path(page).name}.md" title="this page as plain text">\n'
    context["metatags"] = (
        context.get("metatags", "") + f'<meta name="description" content="{html.escape(said)}">\n{tags}'
    )


def _not_found(app: Any) -> Iterator[tuple[str, dict[str, Any], str]]:
    yield "404", {"title": "Not found", "body": LOST}, "page.html"


def _shared(app: Any) -> None:
    """The figures' colours, for the style sheet and for scripts; and the explorers' drawing kit, for the playground."""
    rules = "".join(f".kd-{name} {{ background: {colour}; }}\n" for name, colour in plots.COLOURS.items())
    names = "".join(f" --kd-{name}: {colour};" for name, colour in plots.COLOURS.items())
    folder = Path(app.outdir, "_static")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "palette.css").write_text(f"{rules}:root {{{names} }}\n", encoding="utf-8")
    for name in ("drawing.js", "explorers.css"):
        shutil.copy(Path(plots.__file__).with_name(name), folder)


def setup(app: Any) -> dict[str, Any]:
    """Sphinx's entry point."""
    app.add_directive("chapter-map", ChapterMap)
    app.add_css_file("palette.css")
    app.connect("builder-inited", _shared)
    app.connect("doctree-read", _add_facts)
    app.connect("doctree-read", _name_cells)
    app.connect("doctree-read", _leave_out_checks)
    app.connect("doctree-read", _settings_of_the_playground)
    app.connect("doctree-read", _words_before_numbers)
    app.connect("html-page-context", _describe)
    app.connect("html-collect-pages", _not_found)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}

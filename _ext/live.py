"""What moves on the site without a kernel: the front page's film, the guesses before figures, and folds on paper.

The first two draw with the kit of all pages that move, `drawing.js`. Its text and those of `film.js`, `predict.js` and
`paper.js` go into one plain script, because a page that is opened as a file may not load modules, nor fetch data: the
film's data is a script as well, on its page alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kdutils.pages import plots

HERE, ROOM = Path(__file__).parent, Path(plots.__file__).parent
START = """
const begin = () => (showFilm(), askAll(), unfold(), loadRest());
if (document.readyState === "complete") begin();
else addEventListener("DOMContentLoaded", begin); // all deferred scripts have run by then
"""


def script() -> str:
    """The kit, the film, the guesses and the folds as one plain script that names nothing outside itself."""
    files = [ROOM / "drawing.js", HERE / "film.js", HERE / "predict.js", HERE / "paper.js"]
    parts = ['(() => {\n"use strict";', *(file.read_text(encoding="utf-8") for file in files), START, "})();\n"]
    return "\n".join(parts)


def styles() -> str:
    """The explorers' rules for `.kd-live`, and those of film and guesses."""
    rules = (ROOM / "explorers.css").read_text(encoding="utf-8")
    return rules.replace(".kd-explorer", ".kd-live") + (HERE / "live.css").read_text(encoding="utf-8")


def _write(app: Any) -> None:
    folder = Path(app.outdir, "_static")
    folder.mkdir(parents=True, exist_ok=True)
    film = Path(app.confdir, "_static", "film.json").read_text(encoding="utf-8")
    files = {"live.js": script(), "live.css": styles(), "film-data.js": f"globalThis.kdFilm = {film.strip()};\n"}
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")


def _add_film(app: Any, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    if page == app.config.root_doc:
        app.add_js_file("film-data.js", loading_method="defer")


def setup(app: Any) -> dict[str, Any]:
    """Sphinx's entry point."""
    app.add_js_file("live.js", loading_method="defer")
    app.add_css_file("live.css")
    app.connect("builder-inited", _write)
    app.connect("html-page-context", _add_film)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}

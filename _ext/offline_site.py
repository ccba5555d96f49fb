"""Keep the site self-contained and light, and its console clean.

No script comes twice, and none where it is not needed: no Thebe; not Font Awesome's script, whose icons the theme's
style sheet draws too; no widget manager. Explorers draw themselves (`site_assets/draw-explorers.js`), and in place of a
widget that needs a kernel the page says so. Images are loaded when they are about to be seen, and state their size, so
that nothing jumps; lines break where a reader would break them. Where MathJax was not fetched
(`tools/fetch_site_assets.py`), it comes from the network.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import imagesize
from sphinx.ext.mathjax import MATHJAX_URL
from sphinx.util import logging

logger = logging.getLogger(__name__)
# The theme marks the section in view by a list that it calls by a name it no longer has. It then looks at every link of
# the page, and stumbles over one to a setting (playground.html#d=20), which is no place in a page.
SPY = """addEventListener("DOMContentLoaded", () => {
  if (document.getElementById("pst-page-toc-nav")) document.body.dataset.bsTarget = "#pst-page-toc-nav";
  else document.body.removeAttribute("data-bs-spy");
});"""


def _need_vendor(app: Any, config: Any) -> None:
    if (Path(app.confdir) / "site_assets" / "vendor" / "STAMP").is_file():
        return
    config.mathjax_path = MATHJAX_URL
    logger.warning("site_assets/vendor is missing, so the site needs a network: run tools/fetch_site_assets.py first")


STATE = "application/vnd.jupyter.widget-state+json"
VIEW = re.compile(r'<script type="application/vnd\.jupyter\.widget-view\+json">(.+?)</script>', re.DOTALL)
NEEDS_KERNEL = '<p class="kd-note">These controls need a running kernel: open this page with the rocket above.</p>'


def only_explorers(body: str, states: list[str]) -> str:
    """A page's HTML with a note in place of each widget that is not drawn by its own code.

    >>> view = '<script type="application/vnd.jupyter.widget-view+json">{"model_id": "a"}</script>'
    >>> only_explorers(view, ['{"state": {"a": {"model_module": "anywidget"}}}']) == view
    True
    >>> only_explorers(view, ['{"state": {"a": {"model_module": "@jupyter-widgets/controls"}}}']) == NEEDS_KERNEL
    True
    """
    models = {name: model for state in states for name, model in json.loads(state)["state"].items()}

    def mend(match: re.Match[str]) -> str:
        module = models[json.loads(match[1])["model_id"]]["model_module"]
        return match[0] if module == "anywidget" else NEEDS_KERNEL

    return VIEW.sub(mend, body)


def lazy(app: Any, body: str) -> str:
    """A page's HTML with images that wait until they are near, and that know their size."""
    files = {name: source for source, (_, name) in app.env.images.items()}

    def mend(match: re.Match[str]) -> str:
        source = files.get(Path(match[1]).name)
        width, height = imagesize.get(Path(app.srcdir, source)) if source else (-1, -1)
        size = f' width="{width:.0f}" height="{height:.0f}"' if width > 0 else ""
        return f'<img loading="lazy" decoding="async"{size} {match[0].removeprefix("<img ")}'

    return re.sub(r'<img [^>]*?src="([^"]+)"[^>]*>', mend, body)


# Code, scripts and tags; between them lies what is read.
UNREAD = re.compile(r"(<(pre|code|script|style|svg)\b.*?</\2>|<[^>]*>)", re.DOTALL)
FORMULA = re.compile(r'(<span class="math[^"]*">(?:(?!</span>).)*</span>)([,.;:!?)\]’”]+)', re.DOTALL)


def unbroken(body: str) -> str:
    """A page's HTML whose lines do not end within "95 %" or "1e-12", nor before what ends a formula.

    >>> unbroken('95 % of <code>95 %</code> in 1e-12, 9 of 10')
    '95\\xa0% of <code>95 %</code> in <span class="kd-one">1e-12</span>, 9 of 10'
    >>> unbroken('<span class="math">k</span>, and')
    '<span class="kd-one"><span class="math">k</span>,</span> and'
    """
    parts = UNREAD.split(body)  # what is read, then twice what is not
    spaced = [re.sub(r"(?<=\d) (?=%)", "\u00a0", text) for text in parts[::3]]
    whole = [re.sub(r"\d[\d.]*e-\d+", r'<span class="kd-one">\g<0></span>', text) for text in spaced]
    body = "".join(text + other for text, other in zip(whole, [*parts[1::3], ""], strict=True))
    return FORMULA.sub(r'<span class="kd-one">\1\2</span>', body)


def _clean(app: Any, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    states = [s.attributes["body"] for s in context.get("script_files", []) if s.attributes.get("type") == STATE]
    if "body" in context:
        context["body"] = only_explorers(lazy(app, unbroken(context["body"])), states)
    if VIEW.search(context.get("body", "")):
        app.add_js_file("../draw-explorers.js", loading_method="defer")
    seen, kept = set(), []
    for script in context.get("script_files", []):
        attributes = getattr(script, "attributes", {})
        name = str(getattr(script, "filename", script))
        if "THEBE_JS_URL" in (attributes.get("body") or "") or "sphinx-thebe.js" in name:
            continue
        key = name, tuple(sorted((k, str(v)) for k, v in attributes.items()))
        if key not in seen:
            seen.add(key)
            kept.append(script)
    context["script_files"] = kept


LATER = r"""<script>addEventListener("DOMContentLoaded", () =>
  document.head.append(Object.assign(document.createElement("script"), { async: true, src: "\1" })));</script>"""
INLINE = re.compile(r"^[ \t]*<script>((?:(?!</script>).)*)</script>\n?", re.DOTALL | re.MULTILINE)


def quick(html: str) -> str:
    """A page that can be scrolled and read before its scripts and styles are there.

    A script that is a file stops the page until it has come, and one written in the page until all styles before it
    have. So files wait until the page is read (they keep their order), and what is written stands before the styles.
    MathJax is the largest: it is asked for when all this is done, and only where there is something to set.

    >>> quick('<link rel="stylesheet" href="a.css">\\n<script>let a;</script>\\n<script src="b.js"></script></head>')
    '<script>let a;</script>\\n<link rel="stylesheet" href="a.css">\\n<script defer src="b.js"></script></head>'
    """
    head, end, body = html.partition("</head>")
    head = head.replace("<script>DOCUMENTATION_OPTIONS", '<script type="module">DOCUMENTATION_OPTIONS')
    first = re.search(r'<link [^>]*rel="stylesheet"', head)
    before, styles = (head[: first.start()], head[first.start() :]) if first else (head, "")
    mathjax = r'<script defer="defer" src="([^"]*mathjax[^"]*)"></script>'
    styles = re.sub(mathjax, LATER if 'class="math' in body else "", styles)
    early = dict.fromkeys(match[0].lstrip() for match in INLINE.finditer(styles))
    styles = re.sub(r"<script (?![^>]*\b(?:defer|async)\b)(?=[^>]*\bsrc=)", "<script defer ", INLINE.sub("", styles))
    thebe = r'\s*<script(?: type="text/x-thebe-config">|>kernelName = ).*?</script>'
    body = re.sub(thebe, "", body, flags=re.DOTALL)
    return f"{before}{''.join(early)}{styles}{end}{body}"


CONTENTS = re.compile(r'<nav id="pst-page-toc-nav".*?</nav>', re.DOTALL)


def mended(html: str) -> str:
    """A page without the script for icons, with names for the side bar's arrows, and places where long names break.

    >>> mended('<script src="_static/fontawesome.js?digest=1"></script><summary><span class="toctree-toggle">')
    '<summary aria-label="show or hide the pages below"><span class="toctree-toggle">'
    >>> mended('<nav id="pst-page-toc-nav"><a href="#a.b_c">a.b_c()</a></nav> a.b_c')
    '<nav id="pst-page-toc-nav"><a href="#a.b_c">a.<wbr>b_<wbr>c()</a></nav> a.b_c'
    """
    html = re.sub(r"<script[^>]*/fontawesome\.js[^>]*></script>\n?", "", html)
    named = '<summary aria-label="show or hide the pages below">'
    html = html.replace('<summary><span class="toctree-toggle"', f'{named}<span class="toctree-toggle"')
    return CONTENTS.sub(lambda nav: re.sub(r"(?<=\w)([._])(?=\w[^<>]*<)", r"\1<wbr>", nav[0]), html)


def _mend(app: Any, error: Exception | None) -> None:
    for page in Path(app.outdir).rglob("*.html") if error is None else ():
        html = mended(page.read_text(encoding="utf-8"))
        searches = page.name == "search.html"  # its scripts run where they stand
        page.write_text(html if searches else quick(html), encoding="utf-8")
    for file in Path(app.outdir, "_static", "scripts").glob("fontawesome.js*"):
        file.unlink()


def setup(app: Any) -> dict[str, Any]:
    """Sphinx's entry point."""
    app.add_js_file(None, body=SPY)
    app.connect("config-inited", _need_vendor, priority=100)
    app.connect("html-page-context", _clean, priority=900)
    app.connect("build-finished", _mend)
    return {"version": "5", "parallel_read_safe": True, "parallel_write_safe": True}

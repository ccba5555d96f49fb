"""Keep the site self-contained and its console clean: no script twice, and no Thebe where it is not offered.

Where the fetched browser files are missing (`tools/fetch_site_assets.py`), math and widgets come from the network.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from myst_nb.core.config import ipywidgets_js_factory
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
    config.mathjax_path, config.nb_ipywidgets_js = MATHJAX_URL, ipywidgets_js_factory()
    logger.warning("site_assets/vendor is missing, so the site needs a network: run tools/fetch_site_assets.py first")


def _clean(app: Any, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
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


def setup(app: Any) -> dict[str, Any]:
    """Sphinx's entry point."""
    app.add_js_file(None, body=SPY)
    app.connect("config-inited", _need_vendor, priority=100)
    app.connect("html-page-context", _clean, priority=900)
    return {"version": "2", "parallel_read_safe": True, "parallel_write_safe": True}

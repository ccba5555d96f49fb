"""Keep the site self-contained and its console clean: no script twice, and no Thebe where it is not offered."""

from __future__ import annotations

from typing import Any


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
    app.connect("html-page-context", _clean, priority=900)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}

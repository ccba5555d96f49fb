// Draw the explorers of a page from what the page holds: their code, their style and their numbers lie in its widget
// state. The widget manager, which would do the same, is larger than all else together.
document.addEventListener("DOMContentLoaded", async () => {
  const read = (kind) => [...document.querySelectorAll(`script[type="application/vnd.jupyter.widget-${kind}+json"]`)];
  const states = Object.assign({}, ...read("state").map((script) => JSON.parse(script.textContent).state));
  const styled = new Set(), loaded = new Map();
  for (const view of read("view")) {
    const { _esm: code, _css: style, ...values } = states[JSON.parse(view.textContent).model_id].state;
    if (style && !styled.has(style)) {
      styled.add(style);
      document.head.append(Object.assign(document.createElement("style"), { textContent: style }));
    }
    if (!loaded.has(code)) loaded.set(code, import(URL.createObjectURL(new Blob([code], { type: "text/javascript" }))));
    const host = document.createElement("div");
    view.after(host);
    const widget = (await loaded.get(code)).default;
    widget.render({ model: { get: (name) => values[name] }, el: host });
  }
});

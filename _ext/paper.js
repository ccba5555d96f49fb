// Paper: what is folded or not yet loaded has to be there when a page is printed.

/** Folds of prose (those of code have a class, and stay off paper) are open while the page is printed. */
function unfold() {
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("main details:not([class], [open])")];
    for (const fold of opened) fold.open = true;
  });
  addEventListener("afterprint", () => {
    for (const fold of opened) fold.open = false;
  });
}

/** Images wait until they are near (offline_site.py); those that nobody scrolled to come when nothing else is to be done. */
function loadRest() {
  const all = () => document.querySelectorAll("img[loading=lazy]").forEach((image) => (image.loading = "eager"));
  const idle = globalThis.requestIdleCallback ?? ((act) => setTimeout(act, 2000));
  addEventListener("beforeprint", all);
  if (navigator.connection?.saveData) return;
  if (document.readyState === "complete") idle(all);
  else addEventListener("load", () => idle(all));
}

// Tell RequireJS where the widget manager and custom widgets lie, relative to this file, so that they load offline.
(function () {
  const here = document.currentScript.src.replace(/[^/]*$/, "") + "vendor/widgets/";
  const manager = here + "embed-amd";
  requirejs.config({
    paths: {
      anywidget: here + "anywidget",
      "@jupyter-widgets/base": manager,
      "@jupyter-widgets/controls": manager,
      "@jupyter-widgets/output": manager,
      "@jupyter-widgets/html-manager": manager,
      "@jupyter-widgets/html-manager/dist/libembed-amd": manager,
    },
  });
})();

// The widget manager speaks MathJax 2; the pages load MathJax 3, which typesets on its own.
document.addEventListener("DOMContentLoaded", function () {
  if (window.MathJax && !window.MathJax.Hub) window.MathJax.Hub = { Queue: function () {} };
});

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

// Every module of the widget manager by its full name, so that its icon fonts resolve to this site as well.
(() => {
  const base = new URL("vendor/", document.currentScript.src).href;
  const manager = base + "html-manager/embed-amd";
  requirejs.config({
    paths: {
      "@jupyter-widgets/html-manager/dist": base + "html-manager",
      "@jupyter-widgets/html-manager": manager,
      "@jupyter-widgets/base": manager,
      "@jupyter-widgets/controls": manager,
      "@jupyter-widgets/output": manager,
    },
  });
})();

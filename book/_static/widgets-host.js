// Runs the page's widgets. Browser widgets (anywidgets: their script is in the page) are mounted right here,
// without RequireJS and without the widget manager, 0.9 MB. Any other widget would be dead without a kernel.
(() => {
  const find = (kind) => [...document.querySelectorAll(`script[type="application/vnd.jupyter.widget-${kind}+json"]`)];

  // The part of a widget's model that anywidget promises to a script: values and events, but no kernel.
  function makeModel(values) {
    const listeners = new Map();
    const tell = (event, ...detail) => [...(listeners.get(event) ?? [])].forEach((call) => call(...detail));
    const model = {
      get: (name) => values[name],
      set(name, value) {
        if (Object.is(values[name], value)) return;
        values[name] = value;
        tell(`change:${name}`, model, value);
        tell("change", model);
      },
      save_changes() {},
      send() {},
      on: (event, call) => listeners.set(event, (listeners.get(event) ?? new Set()).add(call)),
      off(event, call) {
        if (call) listeners.get(event)?.delete(call);
        else listeners.delete(event);
      },
    };
    return model;
  }

  async function start(state) {
    const url = URL.createObjectURL(new Blob([state._esm], { type: "text/javascript" }));
    const script = (await import(url)).default;
    URL.revokeObjectURL(url);
    const widget = typeof script === "function" ? await script() : script;
    const model = makeModel({ ...state });
    await widget.initialize?.({ model });
    return { model, widget };
  }

  async function mount(place, running) {
    const { model, widget } = await running;
    const el = document.createElement("div");
    place.replaceWith(el);
    await widget.render({ model, el });
  }

  function run() {
    const models = Object.assign({}, ...find("state").map((e) => JSON.parse(e.textContent).state));
    const running = {}; // one model for all views of a widget
    for (const place of find("view")) {
      const id = JSON.parse(place.textContent).model_id;
      if (models[id]?.model_module !== "anywidget") {
        place.replaceWith("This widget needs a kernel: open the chapter on Colab or in JupyterLab.");
        continue;
      }
      running[id] ??= start(models[id].state);
      mount(place, running[id]).catch((error) => console.error("a widget did not start:", error));
    }
  }

  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", run);
  else run();
})();

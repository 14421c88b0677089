// Shared by the views of Explorer and BlindTest. State lives in the kernel's traitlets: a view shows it and sends clicks.
// Text from a person becomes a text node, never markup.

function h(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name in node && name !== "list" && name !== "form") node[name] = value;
    else if (value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

// Rebuild nodes only when their state changed: a node that is replaced under the pointer loses its click.
function whenNew(state, show) {
  let before = null;
  return () => {
    const now = JSON.stringify(state());
    if (now !== before) show();
    before = now;
  };
}

// Each widget loads this module by itself, so a counter would give two widgets the same ids.
const fresh = (word) => `mnb-${word}-${Math.random().toString(36).slice(2)}`;

// Keep keys from JupyterLab's shortcuts: "d d" would delete the cell. Those with Ctrl or Cmd, such as saving, go through.
const keepKeys = (el) => el.addEventListener("keydown", (e) => e.ctrlKey || e.metaKey || e.stopPropagation());

// Show PNG bytes as an image; its URL is revoked once it has loaded.
function image(png, alt) {
  const url = URL.createObjectURL(new Blob([png], { type: "image/png" }));
  const img = h("img", { src: url, alt, draggable: false });
  img.addEventListener("load", () => URL.revokeObjectURL(url), { once: true });
  return img;
}

// Return a function that calls a method of the widget in the kernel.
const caller = (model) => (method, ...values) => model.send({ do: method, with: values });

// Call each function when its trait changes; return a function that stops it.
function follow(model, views) {
  for (const [name, show] of Object.entries(views)) model.on(`change:${name}`, show);
  return () => {
    for (const [name, show] of Object.entries(views)) model.off(`change:${name}`, show);
  };
}

function statusLine(model) {
  const bar = h("progress", { max: 1, value: 0, "aria-label": "Progress" });
  const left = h("span", { className: "mnb-left" });
  const text = h("span", { className: "mnb-message", role: "status", "aria-live": "polite" });
  const update = () => {
    const { done = 0, total = 1, left: seconds } = model.get("progress");
    bar.hidden = model.get("status") === "idle";
    bar.max = total;
    bar.value = done;
    left.textContent = bar.hidden || seconds === null || seconds === undefined ? "" : `step ${done} of ${total}, ${seconds.toFixed(0)} s left`;
    text.textContent = model.get("message");
  };
  for (const name of ["progress", "status", "message"]) model.on(`change:${name}`, update);
  update();
  return h("div", { className: "mnb-status" }, bar, left, text);
}

// The view of Explorer.

// A tree of the model's layers to search, with a box to leave each dense. `excluded` returns the names that are ticked.
function layerTree(layers, excluded, leave, take) {
  const find = h("input", { type: "search", placeholder: "search layers", "aria-label": "Search layers", "data-field": "find", oninput: () => show() });
  const tree = h("div", { className: "mnb-tree" });
  const root = {};
  for (const [name, kind, mib] of layers) {
    let node = root;
    const path = name.split(".");
    path.forEach((part, i) => {
      node.children ??= {};
      node.children[part] ??= { name: path.slice(0, i + 1).join("."), mib: 0 };
      node = node.children[part];
      node.mib += mib;
    });
    node.kind = kind;
  }
  const opened = new Set();
  function branch(node, wanted, dense, inside) {
    const items = Object.entries(node.children ?? {}).map(([part, child]) => {
      const below = child.children ? branch(child, wanted, dense, inside || dense.has(child.name)) : null;
      const fits = child.name.toLowerCase().includes(wanted) || (child.kind ?? "").includes(wanted);
      if (!fits && !below?.childElementCount) return null;
      const box = h("input", {
        type: "checkbox", checked: inside || dense.has(child.name), disabled: inside, "data-layer": child.name,
        onchange: (e) => (e.target.checked ? leave(child.name) : take(child.name)),
      });
      const line = h("label", {}, box, `${part} `, h("small", {}, `${child.kind ?? ""} ${child.mib.toFixed(2)} MiB`));
      if (!below) return h("li", {}, line);
      const open = wanted !== "" || opened.has(child.name);
      const ontoggle = (e) => (e.target.open ? opened.add(child.name) : opened.delete(child.name));
      return h("li", {}, h("details", { open, ontoggle }, h("summary", {}, line), below));
    });
    return h("ul", {}, ...items);
  }
  function show() {
    const focused = document.activeElement?.dataset?.layer;
    tree.replaceChildren(branch(root, find.value.trim().toLowerCase(), new Set(excluded()), false));
    if (focused) [...tree.querySelectorAll("input")].find((box) => box.dataset.layer === focused)?.focus();
  }
  return { find, tree, show };
}

// The images: side by side, dense below a divider, or the difference from dense; all move and zoom together.
function imageView(model) {
  const view = { mode: "side", divider: 50, gain: 5, zoom: 1, x: 0, y: 0 };
  const tiles = h("div", { className: "mnb-tiles" });
  const stale = h("p", { className: "mnb-note", hidden: true }, "These images are from the run before.");
  const modes = fresh("mode");
  const mode = (value, label) => h("label", {}, h("input", { type: "radio", name: modes, value, checked: value === "side", onchange: () => look({ mode: value }) }), label);
  const divider = h("input", { type: "range", min: 0, max: 100, value: 50, "aria-label": "Divider: dense on its left, in percent", "data-field": "divider", oninput: (e) => look({ divider: Number(e.target.value) }) });
  const gain = h("input", { type: "range", min: 1, max: 20, value: 5, "aria-label": "Difference, amplified", "data-field": "gain", oninput: (e) => look({ gain: Number(e.target.value) }) });
  const zoomText = h("output", {});
  const zoomBy = (factor) => look({ zoom: Math.min(16, Math.max(1, view.zoom * factor)) });
  const tools = h("div", { className: "mnb-tools", role: "toolbar", "aria-label": "View" },
    mode("side", "Side by side"), mode("divider", "Divider"), mode("difference", "Difference"),
    h("label", { "data-for": "divider" }, "dense up to", divider), h("label", { "data-for": "difference" }, "amplified", gain),
    h("span", { className: "mnb-zoom" },
      h("button", { type: "button", "aria-label": "Zoom out", onclick: () => zoomBy(1 / 1.5) }, "−"), zoomText,
      h("button", { type: "button", "aria-label": "Zoom in", onclick: () => zoomBy(1.5) }, "+"),
      h("button", { type: "button", onclick: () => look({ zoom: 1, x: 0, y: 0 }) }, "Fit")),
  );
  function look(changes = {}) {
    Object.assign(view, changes);
    const most = 50 * (1 - 1 / view.zoom); // the most that an image can be moved by, in percent
    view.x = Math.min(most, Math.max(-most, view.x));
    view.y = Math.min(most, Math.max(-most, view.y));
    tiles.dataset.mode = view.mode;
    tiles.style.setProperty("--divider", `${view.divider}%`);
    tiles.style.setProperty("--gain", view.gain);
    tiles.style.setProperty("--place", `scale(${view.zoom}) translate(${view.x}%, ${view.y}%)`);
    tiles.classList.toggle("mnb-near", view.zoom > 2);
    tools.dataset.mode = view.mode;
    divider.value = view.divider;
    zoomText.textContent = `${view.zoom.toFixed(1)}×`;
  }
  function grabbed(frame) {
    let from = null;
    const moved = (e) => {
      const box = frame.getBoundingClientRect();
      if (view.mode === "divider") look({ divider: Math.min(100, Math.max(0, (100 * (e.clientX - box.left)) / box.width)) });
      else if (from) {
        look({ x: view.x + (100 * (e.clientX - from[0])) / box.width / view.zoom, y: view.y + (100 * (e.clientY - from[1])) / box.height / view.zoom });
        from = [e.clientX, e.clientY];
      }
    };
    frame.addEventListener("pointerdown", (e) => {
      from = [e.clientX, e.clientY];
      frame.setPointerCapture(e.pointerId);
      frame.addEventListener("pointermove", moved);
      moved(e);
    });
    frame.addEventListener("pointerup", () => frame.removeEventListener("pointermove", moved));
    frame.addEventListener("wheel", (e) => {
      if (!e.ctrlKey && !e.metaKey) return; // the page scrolls
      e.preventDefault();
      zoomBy(e.deltaY < 0 ? 1.2 : 1 / 1.2);
    }, { passive: false });
    frame.addEventListener("keydown", (e) => {
      const by = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[e.key];
      if (e.key === "+" || e.key === "=") zoomBy(1.5);
      else if (e.key === "-") zoomBy(1 / 1.5);
      else if (e.key === "0") look({ zoom: 1, x: 0, y: 0 });
      else if (by && view.mode === "divider") look({ divider: Math.min(100, Math.max(0, view.divider + 5 * by[0])) });
      else if (by && view.zoom > 1) look({ x: view.x - 5 * by[0], y: view.y - 5 * by[1] });
      else return;
      e.preventDefault();
      e.stopPropagation(); // JupyterLab uses the arrows itself
    });
  }
  function show() {
    const [dense, ...others] = model.get("pictures");
    stale.hidden = Boolean(dense) || !tiles.children.length; // the old images stay until the first new one is there
    tiles.classList.toggle("mnb-stale", !dense);
    if (!dense) return;
    const { prompt } = model.get("request");
    tiles.replaceChildren(
      ...[dense, ...others].map((tile) => {
        const own = image(tile.png, `${prompt}, ${tile.name}`);
        const stack = [h("div", { className: "mnb-layer" }, own)];
        if (tile !== dense) {
          stack.push(h("div", { className: "mnb-layer mnb-over", "aria-hidden": "true" }, image(dense.png, "")), h("div", { className: "mnb-line", "aria-hidden": "true" }));
        }
        const frame = h("div", { className: "mnb-frame", tabIndex: 0, role: "group", "aria-label": `${tile.name}: plus and minus zoom, arrows move` }, ...stack);
        grabbed(frame);
        const share = tile.share ?? 0;
        const bar = h("div", { className: "mnb-bar", role: "img", "aria-label": `${(100 * share).toFixed(0)} percent of the bytes of dense` }, h("span", { style: `width: ${Math.min(100, 100 * share)}%` }));
        const numbers = tile.captions.length ? tile.captions.flatMap(([name, text]) => [h("dt", {}, name), h("dd", {}, text)]) : [h("dd", {}, "measuring …")];
        return h("figure", { "data-variant": tile.name }, frame, h("figcaption", {}, h("strong", {}, tile.name), bar, h("dl", {}, ...numbers)));
      }),
    );
    look();
  }
  look();
  return { tools, tiles, stale, show };
}

// The table of all runs, sorted by a click on a column's name.
function historyTable(model, restore) {
  const history = h("table", { className: "mnb-history" });
  let sorted = { column: 0, up: false };
  function show() {
    const columns = model.get("columns");
    const rows = [...model.get("history")];
    const at = (row) => row.cells[sorted.column][1];
    rows.sort((a, b) => {
      const [x, y] = [at(a), at(b)];
      const order = x === null || y === null ? (x === null) - (y === null) : x < y ? -1 : x > y ? 1 : 0;
      return sorted.up ? order : -order;
    });
    const focused = history.contains(document.activeElement) ? document.activeElement.dataset.key : null;
    history.replaceChildren(
      h("caption", {}, rows.length ? "All generated images. Click the number of a run to show it again." : "No images yet."),
      h("thead", {}, h("tr", {}, ...columns.map((name, i) => h("th", { scope: "col", "aria-sort": i === sorted.column ? (sorted.up ? "ascending" : "descending") : "none" },
        h("button", { type: "button", "data-key": `sort ${i}`, onclick: () => ((sorted = { column: i, up: i === sorted.column ? !sorted.up : true }), show()) }, `${name}${i === sorted.column ? (sorted.up ? " ▲" : " ▼") : ""}`))))),
      h("tbody", {}, ...rows.map((row) => h("tr", {}, ...row.cells.map(([text], i) => (i ? h("td", {}, text) : h("td", {},
        h("button", { type: "button", "data-run": `${row.run}`, "data-key": `run ${row.run} ${row.cells[columns.indexOf("variant")][0]}`, "aria-label": `Restore run ${row.run}`, onclick: () => restore(row.run) }, text))))))),
    );
    if (focused) [...history.querySelectorAll("button")].find((b) => b.dataset.key === focused)?.focus();
    setStatus();
  }
  function setStatus() {
    for (const button of history.querySelectorAll("button[data-run]")) button.disabled = model.get("status") !== "idle";
  }
  return { history, show, setStatus };
}

function render({ model, el }) {
  const call = caller(model);
  const request = () => model.get("request");
  const ask = (changes) => {
    model.set("request", { ...request(), ...changes });
    model.save_changes();
  };
  const selected = () => request().variants[request().selected];
  const change = (changes) => {
    const variants = request().variants.map((v, i) => (i === request().selected ? { ...v, ...changes } : v));
    ask({ variants });
  };

  // the fields: a label, an input and its error
  const fields = {};
  const explained = (name, input, label) => {
    const id = fresh(name);
    const wrong = h("span", { className: "mnb-wrong", id: `${id}-wrong`, role: "alert", "data-error": name });
    input.id = id;
    input.setAttribute("aria-describedby", wrong.id);
    fields[name] = { input, wrong };
    return h("div", { className: `mnb-field mnb-field-${name}` }, h("label", { htmlFor: id }, label), input, wrong);
  };
  const asNumber = (text) => (text.trim() !== "" && Number.isFinite(Number(text)) ? Number(text) : text);
  let edit = null; // the last text typed: a request of the kernel that was sent before it does not undo it
  const typed = (name, attributes, read) => h("input", { type: "text", "data-field": name, ...attributes, oninput: (e) => {
    edit = { name, value: read(e.target.value), until: Date.now() + 2000 };
    ask({ [name]: edit.value });
  } });
  const numeric = { inputMode: "decimal", size: 6, autocomplete: "off" };

  const run = h("button", { type: "submit", className: "mnb-run", "data-do": "run" }, "Run");
  const stop = h("button", { type: "button", "data-do": "stop", onclick: () => call("stop") }, "Stop");
  const form = h(
    "form",
    { className: "mnb-request", noValidate: true, onsubmit: (e) => (e.preventDefault(), call("run")) },
    explained("prompt", typed("prompt", { autocomplete: "off" }, (text) => text), "Prompt"),
    explained("seed", typed("seed", numeric, asNumber), "Seed"),
    explained("steps", typed("steps", numeric, asNumber), "Steps"),
    explained("guidance", typed("guidance", numeric, asNumber), "Guidance"),
    h("div", { className: "mnb-buttons" }, run, stop),
  );

  // the variants, and the editor of the selected one
  const chips = h("ul", { className: "mnb-chips", "aria-label": "Variants" });
  const variantsWrong = h("span", { className: "mnb-wrong", role: "alert", "data-error": "variants" });
  fields.variants = { input: chips, wrong: variantsWrong };
  const add = h("button", { type: "button", "data-do": "add", onclick: () => call("add") }, "Add a variant");
  const editor = h("div", { className: "mnb-editor" });
  const legends = { scheme: "Weights", block: "Block size", activations: "Activations", scale: "Scale of activations", algorithm: "Algorithm" };
  const groups = {};
  for (const [name, legend] of Object.entries(legends)) {
    const wrong = h("span", { className: "mnb-wrong", role: "alert", "data-error": name });
    const choices = h("div", { className: "mnb-choices" });
    const reasons = h("small", { className: "mnb-note mnb-reasons", "aria-hidden": "true" }); // labels carry them, too
    groups[name] = { choices, reasons, wrong, radio: fresh(name) };
    editor.append(h("fieldset", { "data-group": name }, h("legend", {}, legend), choices, reasons, wrong));
  }
  const pointwise = h("input", { type: "checkbox", "data-field": "pointwise", onchange: (e) => change({ pointwise: e.target.checked }) });
  editor.append(h("label", { className: "mnb-check" }, pointwise, "pack 1x1 convolutions as linear layers"));

  // layers that are left dense: a tree to search, or a pattern
  const excludedWrong = h("span", { className: "mnb-wrong", role: "alert", "data-error": "excluded" });
  const pattern = h("input", { type: "text", placeholder: "name or pattern, such as *to_q", "aria-label": "Pattern of layers to leave dense", "data-field": "pattern" });
  const leave = (name) => name.trim() && !selected().excluded.includes(name) && change({ excluded: [...selected().excluded, name] });
  const take = (name) => change({ excluded: selected().excluded.filter((n) => n !== name) });
  const layers = layerTree(model.get("layers"), () => selected()?.excluded ?? [], leave, take);
  const addPattern = h("button", { type: "button", "data-do": "leave", onclick: () => (leave(pattern.value), (pattern.value = "")) }, "Leave dense");
  const left = h("ul", { className: "mnb-left-dense", "aria-label": "Left dense" });
  editor.append(h("details", { className: "mnb-layers" }, h("summary", {}, "Layers to leave dense"), h("div", {}, pattern, addPattern, excludedWrong), left, layers.find, layers.tree));

  const showVariants = whenNew(() => [request().variants, request().selected, model.get("names"), model.get("errors")], () => {
    const { variants, selected: index } = request();
    const names = model.get("names");
    const errors = model.get("errors");
    const focused = document.activeElement?.dataset?.chip;
    chips.replaceChildren(
      ...variants.map((_, i) => {
        const bad = Object.keys(errors).some((key) => key.startsWith(`${i}.`));
        const name = names[i] ?? "?";
        return h("li", {},
          h("button", { type: "button", "aria-pressed": String(i === index), "data-chip": `${i}`, className: bad ? "mnb-bad" : "", onclick: () => ask({ selected: i }) }, bad ? `${name} (cannot work)` : name),
          h("button", { type: "button", "aria-label": `Remove ${name}`, "data-chip": `remove ${i}`, onclick: () => call("remove", i) }, "×"),
        );
      }),
    );
    if (focused) [...chips.querySelectorAll("button")].find((b) => b.dataset.chip === focused)?.focus();
    const variant = selected();
    editor.hidden = !variant;
    if (!variant) return;
    pointwise.checked = variant.pointwise;
    left.replaceChildren(...variant.excluded.map((name) => h("li", {}, name, h("button", { type: "button", "aria-label": `Quantize ${name}`, onclick: () => take(name) }, "×"))));
    layers.show();
    showOptions();
  });

  const showOptions = whenNew(() => [selected(), model.get("options")], () => {
    const options = model.get("options");
    const active = document.activeElement;
    const focused = active && editor.contains(active) && active.type === "radio" ? [active.name, active.dataset.value] : null;
    for (const [name, { choices, reasons, radio }] of Object.entries(groups)) {
      const barred = {};
      for (const [, label, reason] of options[name] ?? []) if (reason) (barred[reason] ??= []).push(label);
      reasons.textContent = Object.entries(barred).map(([reason, labels]) => `${labels.join(", ")}: ${reason}`).join("; ");
      const now = JSON.stringify(selected()?.[name] ?? null);
      choices.replaceChildren(
        ...(options[name] ?? []).map(([value, label, reason]) => {
          const text = JSON.stringify(value ?? null);
          const disabled = reason !== "" && text !== now;
          const input = h("input", { type: "radio", name: radio, checked: text === now, disabled, "data-value": text, onchange: () => change({ [name]: value }) });
          return h("label", { title: reason, className: disabled ? "mnb-cannot" : "" }, input, label, reason ? h("span", { className: "mnb-hidden" }, ` (${reason})`) : null);
        }),
      );
    }
    if (focused) [...editor.querySelectorAll("input[type=radio]")].find((r) => r.name === focused[0] && r.dataset.value === focused[1])?.focus();
  });

  function showErrors() {
    const errors = model.get("errors");
    for (const [name, { input, wrong }] of Object.entries(fields)) {
      wrong.textContent = errors[name] ?? "";
      input.setAttribute("aria-invalid", String(name in errors));
    }
    const index = request().selected;
    for (const [name, { wrong }] of Object.entries(groups)) wrong.textContent = errors[`${index}.${name}`] ?? "";
    excludedWrong.textContent = errors[`${index}.excluded`] ?? "";
  }

  function showRequest() {
    if (edit && Date.now() < edit.until && request()[edit.name] !== edit.value) return ask({ [edit.name]: edit.value });
    for (const name of ["prompt", "seed", "steps", "guidance"]) {
      const { input } = fields[name];
      const value = request()[name];
      const same = name === "prompt" ? input.value === value : asNumber(input.value) === value;
      if (!same) input.value = value ?? "";
    }
    fields.guidance.input.disabled = request().guidance === null;
    showVariants();
    showErrors();
  }

  function showStatus() {
    const status = model.get("status");
    run.disabled = status !== "idle";
    stop.disabled = status !== "running";
    stop.textContent = status === "stopping" ? "Stopping" : "Stop";
    el.classList.toggle("mnb-running", status !== "idle");
    past.setStatus();
  }

  const images = imageView(model);
  const past = historyTable(model, (run) => ((edit = null), call("restore", run)));
  const showHistory = () => {
    past.show();
    for (const button of exports) button.disabled = !model.get("history").length;
  };
  const exports = ["csv", "png"].map((kind) => h("button", { type: "button", "data-export": kind, onclick: () => call("export", kind) }, kind === "csv" ? "Save the table (CSV)" : "Save the images (PNG)"));

  const code = h("code", {});
  const copy = h("button", { type: "button", onclick: () => navigator.clipboard?.writeText(code.textContent) }, "Copy");
  const listing = h("div", { className: "mnb-code", hidden: true }, copy, h("pre", { tabIndex: 0 }, code));
  const showCode = () => {
    code.textContent = model.get("code_shown");
    listing.hidden = !code.textContent;
  };
  const codeButton = h("button", { type: "button", "data-do": "code", onclick: () => call("show_code") }, "Show code");

  const received = (message, buffers) => {
    if (!message.save) return;
    const url = URL.createObjectURL(new Blob([buffers[0]], { type: message.type }));
    h("a", { href: url, download: message.save }).click();
    setTimeout(() => URL.revokeObjectURL(url), 1000);
  };
  model.on("msg:custom", received);

  keepKeys(el);
  el.classList.add("mnb", "mnb-explorer");
  el.append(
    form, statusLine(model),
    h("section", { "aria-label": "Variants" }, h("div", { className: "mnb-row" }, chips, add, codeButton, variantsWrong), editor, listing),
    h("section", { "aria-label": "Images" }, images.tools, images.stale, images.tiles),
    h("section", { "aria-label": "History", className: "mnb-past" }, h("div", { className: "mnb-row" }, ...exports), h("div", { className: "mnb-scroll" }, past.history)),
    h("p", { className: "mnb-about" }, model.get("about")),
  );
  const unfollow = follow(model, {
    request: showRequest, errors: () => (showErrors(), showVariants()), names: showVariants, options: showOptions,
    status: showStatus, pictures: images.show, history: showHistory, code_shown: showCode,
  });
  showRequest();
  images.show();
  showHistory();
  showStatus();
  showCode();
  return () => {
    unfollow();
    model.off("msg:custom", received);
  };
}

export default { render };

// Wheel and keys over the planes, sent to the kernel: one message at a time, what comes meanwhile is added up.
const KEYS = {
  ArrowUp: ["slice", -1], ArrowDown: ["slice", 1], PageUp: ["slice", -10], PageDown: ["slice", 10],
  Home: ["slice", -100000], End: ["slice", 100000], ArrowLeft: ["step", -1], ArrowRight: ["step", 1],
};
const NOTCH = 100; // pixels of a mouse wheel's notch; touch pads send many small ones
const OWN_KEYS = "input, select, textarea, button, [role=slider], [contenteditable=true]";

function render({ model, el }) {
  el.textContent = model.get("help");
  const asked = [];
  let busy = false, axis = "x", turned = 0, home = null;

  function flush() {
    if (busy || !asked.length) return;
    busy = true;
    model.send(asked.shift());
  }
  function ask(kind, steps) {
    const last = asked[asked.length - 1];
    if (last && last.kind === kind && last.axis === axis) last.steps += steps;
    else asked.push({ kind, axis, steps });
    flush();
  }
  function panel(event) {
    const over = event.target.closest && event.target.closest("[data-subplot]");
    if (over) axis = over.dataset.subplot.split("y")[0];
    return over;
  }
  function wheel(event) {
    if (!panel(event) || event.ctrlKey) return;
    event.preventDefault();
    event.stopPropagation();
    turned += event.deltaMode ? event.deltaY * NOTCH / 3 : event.deltaY;
    const steps = Math.trunc(turned / NOTCH);
    turned -= steps * NOTCH;
    if (steps) ask("slice", steps);
  }
  function key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest(OWN_KEYS)) return;
    const known = KEYS[event.key] || (/^[1-9]$/.test(event.key) && ["window", Number(event.key)]);
    if (!known) return;
    event.preventDefault();
    event.stopPropagation();
    ask(...known);
  }
  function press(event) {
    if (panel(event)) setTimeout(() => home.focus({ preventScroll: true }));
  }
  const listeners = [["wheel", wheel, { passive: false, capture: true }], ["keydown", key, false],
    ["pointerdown", press, true], ["pointermove", panel, { passive: true }]];

  function attach() {
    home = el.closest(".mg3d-planes");
    if (!home) return requestAnimationFrame(attach); // not in the page yet
    home.tabIndex = 0;
    home.style.outlineOffset = "2px";
    home.dataset.lmSuppressShortcuts = "true"; // JupyterLab would move to another cell
    for (const one of listeners) home.addEventListener(...one);
  }
  const done = () => { busy = false; flush(); };
  model.on("msg:custom", done);
  const wait = requestAnimationFrame(attach);
  return () => {
    cancelAnimationFrame(wait);
    model.off("msg:custom", done);
    if (home) for (const one of listeners) home.removeEventListener(...one);
  };
}

export default { render };

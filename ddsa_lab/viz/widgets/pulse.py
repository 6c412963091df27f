"""Notices that the kernel no longer answers, which only the page can: a closed kernel says nothing."""

from typing import Any

import anywidget
import traitlets

SCRIPT = """
function render({ model, el }) {
  const message = document.createElement("div");
  message.setAttribute("role", "alert");
  message.style.cssText = "display: none; color: #8a1c1c; background: #fdeceb; padding: 2px 6px; border-left: 4px solid #8a1c1c";
  el.append(message);
  let timer = null;
  function silent() {
    message.textContent = model.get("sentence");
    message.style.display = "block";
  }
  function heard() {
    clearTimeout(timer);
    timer = null;
    message.style.display = "none";
  }
  function ask(event) {
    const explorer = el.closest(".ddsa-explorer");
    if (timer !== null || !explorer || !explorer.contains(event.target)) return;
    timer = setTimeout(() => { silent(); timer = null; }, 1000 * model.get("seconds"));
    try {
      Promise.resolve(model.send({ ping: true })).catch(silent);
    } catch (error) {
      silent();
    }
  }
  const events = ["pointerup", "keyup", "change"];
  for (const name of events) document.addEventListener(name, ask, true);
  model.on("msg:custom", heard);
  return () => {
    for (const name of events) document.removeEventListener(name, ask, true);
    model.off("msg:custom", heard);
    clearTimeout(timer);
  };
}
export default { render };
"""


class Pulse(anywidget.AnyWidget):
    """Asks the kernel for a sign of life whenever the user does something, never in between."""

    _esm = SCRIPT
    seconds = traitlets.Float(8.0).tag(sync=True)
    sentence = traitlets.Unicode(
        "The kernel does not answer: it is busy, or was closed. If it was closed, run this cell (or load this page) again."
    ).tag(sync=True)

    def __init__(self, **traits: Any):
        super().__init__(**traits)
        self.on_msg(
            lambda _widget, content, _buffers: self.send({"pong": True}) if "ping" in content else None
        )

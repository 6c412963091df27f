"""A picture that can be clicked; whatever a click does must also be reachable by keyboard elsewhere."""

import anywidget
import traitlets

SCRIPT = """
function render({ model, el }) {
  const image = document.createElement("img");
  image.style.maxWidth = "100%";
  image.style.height = "auto";
  image.style.cursor = "crosshair";
  image.alt = model.get("alt");
  let address = "";
  function show() {
    if (address) URL.revokeObjectURL(address);
    address = URL.createObjectURL(new Blob([model.get("value")], { type: "image/png" }));
    image.src = address;
  }
  image.addEventListener("click", (event) => {
    const box = image.getBoundingClientRect();
    const place = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
    model.set("click", [...place, Date.now()]);
    model.save_changes();
  });
  model.on("change:value", show);
  show();
  el.append(image);
  return () => { model.off("change:value", show); URL.revokeObjectURL(address); };
}
export default { render };
"""


class ClickPicture(anywidget.AnyWidget):
    """A PNG; `click` becomes (share from the left, share from the top, time) of the last click."""

    _esm = SCRIPT
    value = traitlets.Bytes().tag(sync=True)
    alt = traitlets.Unicode().tag(sync=True)
    click = traitlets.List().tag(sync=True)

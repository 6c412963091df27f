"""A button that uploads one photo, and never more than the connection takes.

Jupyter's servers drop the connection at a message of 10 MB, and with it every explorer on the page. So a large photo is
shrunk by the browser before it is sent, and a large file that the browser cannot read is refused there.
"""

import anywidget
import traitlets

from ddsa_lab.viz.widgets.scene import UPLOAD_MB, UPLOAD_SIDE

SCRIPT = """
async function shrunk(file, side) {
  const bitmap = await createImageBitmap(file);
  const scale = Math.min(1, side / Math.max(bitmap.width, bitmap.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  const note = `${bitmap.width} x ${bitmap.height}`;
  const blob = await new Promise((done) => canvas.toBlob(done, "image/png"));
  if (!blob) throw new Error("the browser could not shrink it");
  return [blob, note];
}

function render({ model, el }) {
  const label = document.createElement("label");
  label.textContent = "upload a photo: ";
  const input = document.createElement("input");
  input.type = "file";
  input.accept = "image/*";
  input.style.maxWidth = "100%";
  const message = document.createElement("div");
  message.setAttribute("role", "status");
  message.style.color = "#8a1c1c";
  label.append(input);
  el.append(label, message);
  input.addEventListener("change", async () => {
    const file = input.files[0];
    if (!file) return;
    message.textContent = "";
    let blob = file, note = "";
    if (file.size > model.get("megabytes") * 1e6) {
      try {
        [blob, note] = await shrunk(file, 2 * model.get("side"));
      } catch (error) {
        const size = (file.size / 1e6).toFixed(0);
        message.textContent = `${file.name} has ${size} MB and is no photo that your browser can read: ` +
          `choose a JPEG or PNG, or a file below ${model.get("megabytes")} MB.`;
        return;
      }
    }
    const bytes = new DataView(await blob.arrayBuffer());
    model.set("photo", { name: file.name, note: note, bytes: bytes, number: Date.now() });
    model.save_changes();
    input.value = "";  // so that the same file can be chosen again
  });
}
export default { render };
"""


class PhotoUpload(anywidget.AnyWidget):
    """Lets the user choose a file; `photo` changes when one has arrived."""

    _esm = SCRIPT
    megabytes = traitlets.Float(UPLOAD_MB).tag(sync=True)
    side = traitlets.Int(UPLOAD_SIDE).tag(sync=True)
    photo = traitlets.Dict().tag(sync=True)

    def file(self) -> tuple[str, bytes]:
        """Name and bytes of what was chosen; the name says if the browser has shrunk it."""
        note = self.photo.get("note")
        name = self.photo["name"]
        return (f"{name} ({note} pixels in the file)" if note else name), bytes(self.photo["bytes"])

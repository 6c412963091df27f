"""Helpers of the browser tests: servers on 127.0.0.1 with a token, and a page in the system's Chromium."""

import contextlib
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
SHOTS = Path(__file__).resolve().parents[1] / "runs" / "browser"
# Servers try to reach the network for news and extensions' sources; that they cannot is no fault of a notebook.
# anywidget says that a model failed where it took longer than 2 s, on a busy machine; what it does is tested itself.
HARMLESS = (
    "favicon", "ERR_INTERNET_DISCONNECTED", "ERR_NAME_NOT_RESOLVED", "pypi.org", "[anywidget] Failed to initialize model",
)  # fmt: skip


def chromium() -> str | None:
    """Path of a Chromium on this machine."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def free_port() -> int:
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return place.getsockname()[1]


def _kernel_environment() -> dict[str, str]:
    env = dict(os.environ)
    env.pop("MPLBACKEND", None)  # of this process; a kernel chooses its own
    env["DDSA_LAB_FAST"] = "1"  # small budgets in notebooks
    return env


@contextlib.contextmanager
def serving(
    command: list[str], url: str, log: Path, env: dict[str, str], seconds: float = 300
) -> Iterator[None]:
    """Run a server until the block ends; enter when `url` answers."""
    with open(log, "w") as out:
        server = subprocess.Popen(command, env=env, stdout=out, stderr=subprocess.STDOUT)
    try:
        end = time.monotonic() + seconds
        while True:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(url, timeout=10)
                break
            if server.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"no server: {log.read_text()[-2000:]}")
            time.sleep(0.2)
        yield
    finally:
        server.terminate()
        try:
            server.wait(15)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


class Lab:
    """A JupyterLab over a folder."""

    def __init__(self, root: Path):
        self.root, self.token, self.port = root, secrets.token_hex(16), free_port()
        self.base = f"http://127.0.0.1:{self.port}"

    @contextlib.contextmanager
    def running(self) -> Iterator["Lab"]:
        home = {name: str(self.root / f".{name.lower()}") for name in (
            "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR",
        )}  # fmt: skip
        quiet = Path(home["JUPYTERLAB_SETTINGS_DIR"]) / "@jupyterlab" / "apputils-extension"
        quiet.mkdir(parents=True)
        settings = {"fetchNews": "false", "checkForUpdates": False, "doNotDisturbMode": True}
        (quiet / "notification.jupyterlab-settings").write_text(json.dumps(settings))
        command = [
            sys.executable, "-m", "jupyter", "lab", "--no-browser", "--allow-root", "--ServerApp.ip=127.0.0.1",
            f"--ServerApp.port={self.port}", f"--IdentityProvider.token={self.token}", f"--ServerApp.root_dir={self.root}",
            "--LabApp.news_url=", "--ServerApp.port_retries=0",
        ]  # fmt: skip
        url = f"{self.base}/api/status?token={self.token}"
        with serving(command, url, self.root / "lab.log", {**_kernel_environment(), **home}):
            yield self

    def address(self, notebook: str) -> str:
        # ?reset forgets the workspace of an earlier page.
        return f"{self.base}/lab/tree/{notebook}?reset&token={self.token}"

    def _kernels(self) -> list[dict[str, Any]]:
        """What the server says of its kernels."""
        url, end = f"{self.base}/api/kernels?token={self.token}", time.monotonic() + 10
        while True:
            try:
                return json.load(urllib.request.urlopen(url, timeout=60))
            except urllib.error.HTTPError as error:
                # Jupyter Server lists a kernel before it has a state, and then fails to describe it for a moment.
                if error.code != 500 or time.monotonic() > end:
                    raise
            time.sleep(0.2)

    def wait_for_kernel(self, seconds: float = 120) -> None:
        """Wait until a kernel is idle and a page is connected to it.

        The page itself says "Idle" before that, and Run All then does nothing.
        """
        end, kernels = time.monotonic() + seconds, None
        while time.monotonic() < end:
            kernels = self._kernels()
            if any(kernel["execution_state"] == "idle" and kernel["connections"] for kernel in kernels):
                return
            time.sleep(0.1)
        raise RuntimeError(f"no idle, connected kernel: {kernels}")

    def wait_until_idle(self, seconds: float, calm: float = 1.5) -> None:
        """Wait until the kernel has been idle for a while: between two cells it is so for a moment."""
        end, since = time.monotonic() + seconds, None
        while time.monotonic() < end:
            kernels = self._kernels()
            if any(kernel["execution_state"] == "busy" for kernel in kernels):
                since = None
            elif since is None:
                since = time.monotonic()
            elif time.monotonic() - since > calm:
                return
            time.sleep(0.1)
        raise RuntimeError("the kernel is still busy")

    def close_kernels(self) -> None:
        for kernel in self._kernels():
            request = urllib.request.Request(
                f"{self.base}/api/kernels/{kernel['id']}?token={self.token}", method="DELETE"
            )
            urllib.request.urlopen(request, timeout=30)


@contextlib.contextmanager
def voila(root: Path) -> Iterator[str]:
    """`ddsa-lab explore`; yields the page's address."""
    port, token = free_port(), secrets.token_hex(16)
    command = [
        sys.executable,
        "-m",
        "ddsa_lab.cli",
        "explore",
        "--no-browser",
        f"--port={port}",
        f"--token={token}",
    ]
    address = f"http://127.0.0.1:{port}/?token={token}"
    with serving(command, address, root / "voila.log", _kernel_environment()):
        yield address


class Watch:
    """Collects what a page's console complains of."""

    def __init__(self, page: Any):
        self.errors: list[str] = []
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on(
            "console",
            lambda message: (
                message.type == "error"
                and self.errors.append(f"{message.text} ({message.location.get('url', '')})")
            ),
        )

    def found(self) -> list[str]:
        return [error for error in self.errors if not any(harmless in error for harmless in HARMLESS)]


# Decoding fails where a newer picture arrives meanwhile.
PIXELS = """async (image) => {
  for (let tries = 0; ; tries++) {
    try { await image.decode(); break; } catch (error) {
      if (tries == 100) throw error;
      await new Promise((done) => setTimeout(done, 50));
    }
  }
  const canvas = document.createElement("canvas");
  canvas.width = image.naturalWidth; canvas.height = image.naturalHeight;
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0);
  let sum = 0;
  const data = context.getImageData(0, 0, canvas.width, canvas.height).data;
  for (let i = 0; i < data.length; i++) sum = (sum * 31 + data[i]) % 1000000007;
  return `${canvas.width}x${canvas.height}:${sum}`;
}"""


def pixels(image: Any) -> str:
    """Size and checksum of the pixels that an <img> shows."""
    return image.evaluate(PIXELS)


def slider(scope: Any, label: str) -> Any:
    """The slider with exactly this label, within a part of the page."""
    name = scope.page.locator(".widget-label", has_text=re.compile(f"^{re.escape(label)}$"))
    return scope.locator(".widget-slider").filter(has=name).first


def shot(page: Any, name: str) -> None:
    """Keep a screenshot."""
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SHOTS / f"{name}.png")

"""The explorers as a page without code: `ddsa-lab explore` serves it with voila, on this machine only unless told otherwise."""

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
import webbrowser
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ddsa_lab.errors import LabError

if TYPE_CHECKING:
    import ipywidgets

PAGE = Path(__file__).with_name("explore.ipynb")
PORT = 8866
LOCAL = ("127.0.0.1", "localhost", "::1")
EXPLORERS = {
    "Top-k microscope": "topk_microscope",
    "Side by side": "side_by_side",
    "Rain studio": "rain_studio",
    "Sweep": "sweep_explorer",
    "Channels": "channel_viewer",
    "Training theatre": "training_theatre",
}


def page() -> "ipywidgets.Tab":
    """All explorers, one a tab; each is built when its tab is first opened."""
    import ipywidgets

    from ddsa_lab.viz import widgets

    tabs = ipywidgets.Tab(children=[ipywidgets.VBox() for _ in EXPLORERS], titles=tuple(EXPLORERS))

    def fill(_change: object = None) -> None:
        room = tabs.children[tabs.selected_index or 0]
        if not room.children:
            name = list(EXPLORERS.values())[tabs.selected_index or 0]
            room.children = (getattr(widgets, name)(),)

    tabs.selected_index = 0
    fill()
    tabs.observe(fill, "selected_index")
    return tabs


def explore(
    host: str = "127.0.0.1", port: int | None = None, token: str | None = None, browser: bool = True
) -> int:
    """Serve the page until interrupted; returns voila's exit code if it ends by itself.

    Args:
        host: address to listen on; the default is reachable from this machine only.
        port: to listen on; by default 8866, or a free one where that is taken.
        token: what the address must end with; None: a random one, "": none at all.
        browser: open the page in the user's browser.

    Raises:
        LabError: the port is taken, no token on an address that others can reach, or voila cannot be started.
    """
    if token == "" and host not in LOCAL:
        raise LabError(f"without a token anyone who reaches {host} could run code here: leave out --no-token")
    token = secrets.token_urlsafe(16) if token is None else token
    port = _free_port(host, port)
    address = f"http://{host}:{port}/" + (f"?token={token}" if token else "")
    with _server(voila_command(host, port, token)) as server:
        _wait(server, address)
        print(f"The explorers are at {address}\nPress Ctrl-C to stop.", flush=True)
        if browser:
            webbrowser.open(address)
        return server.wait()


def voila_command(host: str, port: int, token: str) -> list[str]:
    """The command line that serves the page."""
    options = {
        "Voila.ip": host,
        "Voila.port": port,
        "Voila.port_retries": 0,
        "Voila.open_browser": False,
        "Voila.log_level": "ERROR",
        "Voila.token": token,
        "VoilaConfiguration.theme": "light",
        # It asks for a part of JupyterLab that voila does not offer, and complains in the browser's console.
        "VoilaConfiguration.extension_denylist": "jupyterlab-jupytext",
        # A kernel that has drawn the page already waits for the next visitor.
        "VoilaConfiguration.preheat_kernel": True,
        "VoilaKernelManager.default_pool_size": 1,
    }
    return [
        sys.executable,
        "-m",
        "voila",
        str(PAGE),
        *(f"--{name}={value}" for name, value in options.items()),
    ]


def lab(folder: str | Path | None = None, port: int | None = None, browser: bool = True) -> int:
    """Run JupyterLab in the notebooks' folder until it ends; returns its exit code.

    Args:
        folder: where to start; by default `notebooks` here or beside the package, else the present folder.
        port: to listen on.
        browser: open the page in the user's browser.

    Raises:
        LabError: no such folder.
    """
    here = Path.cwd()
    places = [here / "notebooks", Path(__file__).resolve().parents[2] / "notebooks", here]
    found = Path(folder) if folder is not None else next(place for place in places if place.is_dir())
    if not found.is_dir():
        raise LabError(f"{found} is no folder: name the one that holds the notebooks")
    command = [
        sys.executable,
        "-m",
        "jupyter",
        "lab",
        "--ServerApp.ip=127.0.0.1",
        f"--ServerApp.root_dir={found}",
        "--LabApp.news_url=",  # nothing is asked of the network
    ]
    # In a container there is often no other user; the server listens on this machine only.
    command += ["--allow-root"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    command += [f"--ServerApp.port={port}"] if port else []
    with _server(command + ([] if browser else ["--no-browser"])) as server:
        return server.wait()


@contextlib.contextmanager
def _server(command: Sequence[str]) -> Iterator[subprocess.Popen]:
    """Run a server inside the block, and end it with the block."""
    env = dict(os.environ)
    env.pop("MPLBACKEND", None)  # a backend that a kernel cannot use would follow into it
    # Ended from outside, the server must not stay behind.
    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143)) if main else None
    with subprocess.Popen(command, env=env) as server:
        try:
            yield server
        finally:
            if main:
                signal.signal(signal.SIGTERM, before)
            if server.poll() is None:
                server.terminate()
                try:
                    server.wait(10)
                except subprocess.TimeoutExpired:
                    server.kill()


def _wait(server: subprocess.Popen, address: str, seconds: float = 300) -> None:
    """Return when something answers at an address."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if server.poll() is not None:
            raise LabError(
                f"voila could not be started (exit code {server.returncode}): see its message above"
            )
        with contextlib.suppress(OSError):
            host, port = address.split("/")[2].rsplit(":", 1)
            socket.create_connection((host.strip("[]"), int(port)), timeout=1).close()
            return
        time.sleep(0.2)
    raise LabError(
        f"voila did not answer within {seconds:g} s: run the command again, or choose another --port"
    )


def _free_port(host: str, wanted: int | None) -> int:
    """The wanted port, or without a wish 8866 or any free one.

    Raises:
        LabError: the wanted port is taken, or the address is not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for port in [wanted] if wanted else [PORT, 0]:
        with socket.socket(family) as place, contextlib.suppress(OSError):
            place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            place.bind((host, port))
            return place.getsockname()[1]
    raise LabError(
        f"nothing can listen on {host}, port {wanted or 'any'}: it is taken, or no address of this machine"
    )

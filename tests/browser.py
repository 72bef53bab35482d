"""A page in headless Chromium, by its DevTools protocol over a pipe."""

import json
import os
import shlex
import subprocess
import time
from pathlib import Path


class Browser:
    """One page; remembers each request for anything but `data:`, and what its console said."""

    def __init__(self, chromium: str, profile: Path):
        to_child, self._to = os.pipe()
        self._from, from_child = os.pipe()
        options = (
            "--headless --no-sandbox --disable-gpu --no-first-run --remote-debugging-pipe"
            f" --user-data-dir={shlex.quote(str(profile))} about:blank"
        )
        # The protocol wants its pipes at 3 and 4.
        self._process = subprocess.Popen(
            ["bash", "-c", f"exec {chromium} {options} 3<&{to_child} 4>&{from_child}"],
            pass_fds=(to_child, from_child),
            stderr=subprocess.DEVNULL,
        )
        os.close(to_child)
        os.close(from_child)
        self._rest, self._number, self._session = b"", 0, None
        self.requests, self.console = [], []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters) -> dict:
        """Returns the result of a command."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while (reply := self._next()).get("id") != self._number:
            pass
        if "error" in reply:
            raise RuntimeError(f"{method}: {reply['error']}")
        return reply["result"]

    def open(self, page: Path | str) -> None:
        """Opens a file or a URL and waits until it is loaded."""
        url = page if isinstance(page, str) else page.absolute().as_uri()
        self.call("Page.navigate", url=url)
        while self._next().get("method") != "Page.loadEventFired":
            pass

    def value(self, expression: str):
        """Returns what a script expression in the page gives."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        return found["result"]["value"]

    def wait_for(self, expression: str, timeout_s: float = 60) -> None:
        """Returns when a script expression in the page gives true."""
        end = time.monotonic() + timeout_s
        while not self.value(f"Boolean({expression})"):
            if time.monotonic() > end:
                raise TimeoutError(f"The page never came to {expression}.")
            time.sleep(0.05)

    def choose_file(self, selector: str, path: Path) -> None:
        """Gives a file to a file field, as its dialogue would."""
        self.call("DOM.enable")
        root = self.call("DOM.getDocument", depth=0)["root"]["nodeId"]
        field = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=field, files=[str(path)])

    def close(self) -> None:
        """Ends the browser."""
        self._process.kill()
        self._process.wait()
        os.close(self._from)
        os.close(self._to)

    def _next(self) -> dict:
        while b"\0" not in self._rest:
            piece = os.read(self._from, 1 << 20)
            if not piece:
                raise RuntimeError("Chromium ended.")
            self._rest += piece
        message, _, self._rest = self._rest.partition(b"\0")
        event = json.loads(message)
        parameters = event.get("params", {})
        match event.get("method"):
            case "Network.requestWillBeSent":
                url = parameters["request"]["url"]
                if not url.startswith("data:"):
                    self.requests.append(url)
            case "Log.entryAdded":
                self.console.append(parameters["entry"]["text"])
            case "Runtime.consoleAPICalled" | "Runtime.exceptionThrown":
                self.console.append(json.dumps(parameters))
        return event

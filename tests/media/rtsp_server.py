"""A camera: `python -m tests.media.rtsp_server PORT WIDTH HEIGHT [garbage | noise]`: H.264, 10 pictures a second.

With `garbage`, of ten units of the stream two are damaged and one is lost; with `noise` no picture is whole.
"""

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from subprocess import DEVNULL, PIPE, Popen
from typing import Any

import numpy as np

__all__ = ["RtspCamera", "free_port"]


class RtspCamera:
    """One that can be killed, stopped and started again at its port."""

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"rtsp://127.0.0.1:{self.port}/live"

    @contextmanager
    def on(self, width: int = 320, height: int = 240, *more: str) -> Iterator["Popen[str]"]:
        """Served until the end of the block, where it is killed."""
        command = [sys.executable, "-m", "tests.media.rtsp_server", str(self.port), str(width), str(height), *more]
        child = Popen(command, stdout=PIPE, stderr=DEVNULL, text=True)
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
            yield child
        finally:
            child.kill()
            child.communicate()


def free_port() -> int:
    """A port of the loopback that nobody listens to."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _serve(port: int, width: int, height: int, fault: str) -> None:
    import rtsp
    from rtsp.source import _RTSPServer

    if fault:
        whole, chance = _RTSPServer.broadcast, random.Random(0)

        def broadcast(server: Any, nal: bytes, ts: int, last: bool) -> None:
            dice = chance.randrange(10)
            if fault == "noise" and len(nal) > 100:  # not what says how to decode
                nal = nal[:5] + chance.randbytes(len(nal) - 5)
            elif dice < 2 and len(nal) > 20:
                at = chance.randrange(5, len(nal) - 8)
                nal = nal[:at] + chance.randbytes(8) + nal[at + 8 :]
            if dice != 2 or fault == "noise":
                whole(server, nal, ts, last)

        _RTSPServer.broadcast = broadcast
    scene = np.random.default_rng(0).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    source = rtsp.Source(f"rtsp://127.0.0.1:{port}/live", fps=10, size=(width, height))
    for i in range(10):
        source.put(np.roll(np.kron(scene, np.ones((8, 8, 1), np.uint8)), 8 * i, 1))
    source.wait_ready()
    source.wait_encoding_started()
    print("ready", flush=True)
    source.serve_forever()


if __name__ == "__main__":
    port, width, height = map(int, sys.argv[1:4])
    _serve(port, width, height, "".join(sys.argv[4:]))

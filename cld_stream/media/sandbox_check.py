"""What the workers of this machine are able to do: asked of a real one."""

import json
import socket
import tempfile
from pathlib import Path

from cld_stream.config import IngestSettings
from cld_stream.errors import MediaError
from cld_stream.media.answers import receive
from cld_stream.media.job import Done, Job
from cld_stream.media.pool import Worker
from cld_stream.media.sandbox_probe import Abilities

__all__ = ["worker_abilities"]


def worker_abilities(camera: str = "") -> Abilities:
    """Start a worker, let it try what it should not be able to, and end it.

    Args:
        camera: as for `Worker`.

    Raises:
        MediaError: it did not answer.
    """
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as listener:
        worker = Worker(IngestSettings(), camera)
        try:
            worker.take(Job(key=0, kind="probe", path=Path(folder), url=str(listener.getsockname()[1])))
            while worker.pipe.poll(60):
                event, _ = receive(worker.pipe)
                if isinstance(event, Done):
                    return Abilities(**json.loads(event.reason))
        except (EOFError, OSError, ValueError, TypeError) as error:
            raise MediaError(f"a worker could not say what it may do: {error}") from error
        finally:
            worker.kill()
    raise MediaError("a worker did not say within 60 s what it may do")

"""What comes back from a worker is believed no more than the file that it read.

A decoder that a file has taken over may send anything. It is unpickled with the classes of an answer and no others,
and looked through, so that what reaches the ledger has the types and ranges that `job` and `frames` promise.
"""

import io
import math
import pickle  # nosec B403
from multiprocessing.connection import Connection
from typing import Any, get_args

from cld_stream.errors import MediaError
from cld_stream.media.frames import MediaFrame, moment
from cld_stream.media.job import Chunk, Done, Event, Outcome, Started

__all__ = ["receive"]

_MOST_BYTES = 512 * 2**20  # in one message
_MOST_TEXT = 4096
_NO_ANSWER = "the decoder sent what is no answer"
_CLASSES = {(c.__module__, c.__name__): c for c in (Started, Chunk, Done, MediaFrame)}
_OUTCOMES = get_args(Outcome)


def receive(pipe: Connection) -> tuple[Event | None, bool]:
    """The next (event, spent); an event None is a sign of life.

    Raises:
        EOFError, OSError: the worker has gone.
        MediaError: it sent what is no answer.
    """
    data = pipe.recv_bytes(_MOST_BYTES)
    try:
        event, spent = _Answer(io.BytesIO(data)).load()
        sound = event is None or _is_sound(event)
    except Exception as error:
        raise MediaError(f"{_NO_ANSWER}; the file may be an attack") from error
    if not sound:
        raise MediaError(f"{_NO_ANSWER} (impossible values); the file may be an attack")
    return event, bool(spent)


class _Answer(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _CLASSES:
            raise pickle.UnpicklingError(f"{module}.{name} is no part of an answer")
        return _CLASSES[module, name]


def _is_sound(event: object) -> bool:
    match event:
        case Started(reader=str(reader), note=str(note)):
            return len(reader) + len(note) <= _MOST_TEXT
        case Done(outcome=str(outcome), reason=str(reason), reader=str(reader)):
            return outcome in _OUTCOMES and len(reason) + len(reader) <= _MOST_TEXT
        case Chunk(frames=list(frames), cursor=str()):
            return len(frames) > 0 and all(map(_is_frame, frames))
    return False


def _is_frame(frame: object) -> bool:
    match frame:
        case MediaFrame(jpeg=bytes(jpeg), time_s=float(time_s), wall_utc=wall, shot=int(shot), aspect=float(aspect)):
            known = wall is None or (isinstance(wall, float) and moment(wall) is not None)
            return jpeg[:2] == b"\xff\xd8" and math.isfinite(time_s) and known and shot >= 0 and 0 < aspect < math.inf
    return False

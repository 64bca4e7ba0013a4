"""What comes back from a worker is believed no more than the file that it read.

A decoder that a file has taken over may send anything. It is unpickled with the classes of an answer and no others,
and looked through, so that what reaches the ledger has the types and ranges that `job` and `frames` promise, and fits
the columns of the store.
"""

import io
import os
import pickle  # nosec B403
from multiprocessing.connection import Connection
from typing import Any, get_args

from cld_stream.errors import MediaError
from cld_stream.media.frames import MediaFrame, moment
from cld_stream.media.job import Chunk, Done, Event, Outcome, Started

__all__ = ["receive"]

_MOST_BYTES = 512 * 2**20  # in one message
_MOST_TEXT = 4096
_MOST_CURSOR = 2**16
_MOST_SHOTS = 2**31
_MOST_S = 2.0**63  # no clock of a container counts further
_LONGEST = 2.0**20  # times as wide as high, or as high as wide
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
            return _is_text(reader, note)
        case Done(outcome=str(outcome), reason=str(reason), reader=str(reader)):
            return outcome in _OUTCOMES and _is_text(reader, reason)
        case Chunk(frames=list(frames), cursor=str(cursor)):
            return len(cursor) <= _MOST_CURSOR and cursor.isascii() and len(frames) > 0 and all(map(_is_frame, frames))
    return False


def _is_text(reader: str, words: str) -> bool:
    """Whether this can be stored; the words may hold a file name, whatever its bytes.

    Raises:
        UnicodeEncodeError: it cannot.
    """
    return len(os.fsencode(words)) + len(reader) <= _MOST_TEXT and reader.isascii()


def _is_frame(frame: object) -> bool:
    match frame:
        case MediaFrame(jpeg=bytes(jpeg), time_s=float(time_s), wall_utc=wall, shot=int(shot), aspect=float(aspect)):
            known = wall is None or (isinstance(wall, float) and moment(wall) is not None)
            return (
                jpeg[:2] == b"\xff\xd8"
                and abs(time_s) <= _MOST_S
                and known
                and 0 <= shot < _MOST_SHOTS
                and 1 / _LONGEST <= aspect <= _LONGEST
            )
    return False

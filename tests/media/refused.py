"""What a worker may do where system calls are refused, as a service manager does it. Run as a program: see `main`."""

import ctypes
import json
import struct
import sys
from dataclasses import asdict

from cld_stream.media.sandbox_check import worker_abilities

__all__ = ["EPERM", "KILL"]

KILL, EPERM = 0x80000000, 0x00050001
_ALLOW, _LOAD, _EQUALS, _RETURN = 0x7FFF0000, 0x20, 0x15, 0x06


def _refuse(action: int, numbers: list[int]) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    steps = [(_LOAD, 0, 0)]
    for number in numbers:
        steps += [(_EQUALS, 1, number), (_RETURN, 0, action)]
    steps.append((_RETURN, 0, _ALLOW))
    code = b"".join(struct.pack("=HBBI", what, 0, skip, value) for what, skip, value in steps)
    buffer = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("@HP", len(steps), ctypes.addressof(buffer))
    assert libc.prctl(38, 1, 0, 0, 0) == 0
    assert libc.prctl(22, 2, ctypes.c_char_p(program), 0, 0) == 0


def main(camera: str, action: str, *numbers: str) -> None:
    """Refuse system calls in this process and all that it starts; print what a worker then may do, as JSON."""
    _refuse(int(action), [int(number) for number in numbers])
    sys.stdout.write(json.dumps(asdict(worker_abilities(camera))))


if __name__ == "__main__":
    main(*sys.argv[1:])

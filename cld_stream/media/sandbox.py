"""What a decoding worker gives up before it reads its first untrusted byte; none of it can be taken back.

Each as far as the system has it: resource limits (any Unix), root's capabilities (Linux), Landlock (Linux 5.13 and
newer: files, other processes), and a seccomp filter (Linux on x86-64 and ARM64: network, new processes).
Why they are called here and not through a library: docs/decisions/080-sandbox.md.
"""

import ctypes
import errno
import os
import platform
import re
import resource
import struct
import sys
from collections.abc import Mapping
from contextlib import suppress

__all__ = ["confine", "scrubbed"]

MOST_FILES = 64  # file descriptors; a decoder needs a handful
_KEPT = re.compile(
    "PATH|HOME|LANG|LC_[A-Z]+|TZ|LD_LIBRARY_PATH|LD_PRELOAD|PYTHON(PATH|HOME|USERBASE|NOUSERSITE|SAFEPATH|UTF8|HASHSEED)"
)

_CAPABILITIES_V3, _READ_ALL = 0x20080522, 0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 22, 38
# linux/landlock.h; the same numbers on every architecture
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_WRITE_FILE, _REFER, _TRUNCATE, _IOCTL_DEV = 1 << 1, 1 << 13, 1 << 14, 1 << 15
_EXECUTE = 1 << 0
_CHANGES = sum(1 << n for n in range(4, 13))  # remove and make: files, folders, devices, sockets, pipes, links
_TCP = 0b11  # bind, connect
_OTHERS = 0b11  # abstract sockets and signals of processes outside


def scrubbed(environment: Mapping[str, str]) -> dict[str, str]:
    """What a worker needs of an environment: where Python lies, the language, the time zone."""
    return {k: v for k, v in environment.items() if _KEPT.fullmatch(k)}


def confine(*, network: bool, device: str = "") -> None:
    """Give up what is not needed, in this thread and all that it starts. What the system lacks is left out.

    Args:
        network: whether sockets may be made: a camera is called, a file is not.
        device: a camera's device, which may be opened for writing.
    """
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_FSIZE, 0)
    _limit(resource.RLIMIT_NOFILE, MOST_FILES)
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    _drop_capabilities(libc)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return
    with suppress(OSError):
        _landlock(libc, network=network, device=device)
    _seccomp(libc, network=network)


def _limit(what: int, most: int) -> None:
    hard = resource.getrlimit(what)[1]
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    with suppress(OSError, ValueError):
        resource.setrlimit(what, (most, most))


def _drop_capabilities(libc: ctypes.CDLL) -> None:
    """Of what root may do, only reading everybody's files stays; Landlock denies the writing."""
    header = struct.pack("=Ii", _CAPABILITIES_V3, 0)
    now = ctypes.create_string_buffer(24)
    if libc.capget(header, now) == 0:
        effective, permitted, *_ = struct.unpack("=6I", now.raw)
        libc.capset(header, struct.pack("=6I", effective & _READ_ALL, permitted & _READ_ALL, 0, 0, 0, 0))


def _landlock(libc: ctypes.CDLL, *, network: bool, device: str) -> None:
    """Deny every change of files and every program; as far as the kernel can, also what is outside the process."""
    abi = libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), 1)
    if abi < 1:
        return
    changes = _EXECUTE | _WRITE_FILE | _CHANGES
    changes |= (_REFER if abi >= 2 else 0) | (_TRUNCATE if abi >= 3 else 0) | (_IOCTL_DEV if abi >= 5 else 0)
    tcp = _TCP if abi >= 4 and not network else 0
    others = _OTHERS if abi >= 6 else 0
    rules = struct.pack("=QQQ", changes, tcp, others)[: 8 if abi < 4 else 16 if abi < 6 else 24]
    ruleset = libc.syscall(_CREATE_RULESET, rules, ctypes.c_size_t(len(rules)), 0)
    if ruleset < 0:
        return
    try:
        if device:
            with suppress(OSError):
                _allow(libc, ruleset, _WRITE_FILE | (changes & _IOCTL_DEV), device)
        libc.syscall(_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def _allow(libc: ctypes.CDLL, ruleset: int, allowed: int, path: str) -> None:
    parent = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        libc.syscall(_ADD_RULE, ruleset, 1, struct.pack("=Qi", allowed, parent), 0)
    finally:
        os.close(parent)


# (socket, io_uring_setup, execve, execveat, fork, vfork, clone, clone3), -1 = there is none; AUDIT_ARCH_...
_CALLS = {
    "x86_64": (0xC000003E, (41, 425, 59, 322, 57, 58, 56, 435)),
    "aarch64": (0xC00000B7, (198, 425, 221, 281, -1, -1, 220, 435)),
}
_CLONE_THREAD = 0x00010000
_X32 = 0x40000000
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_LOAD, _EQUALS, _AT_LEAST, _HAS_BITS, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # classic BPF
_NUMBER_AT, _ARCH_AT, _FLAGS_AT = 0, 4, 16  # in struct seccomp_data


def _seccomp(libc: ctypes.CDLL, *, network: bool) -> None:
    """No sockets (unless `network`), no other program, no other process. Threads may be started."""
    if platform.machine() not in _CALLS or sys.maxsize < 2**32:
        return
    code = _filter(*_CALLS[platform.machine()], network=network)
    buffer = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("@HP", len(code) // 8, ctypes.addressof(buffer))
    libc.prctl(_PR_SET_SECCOMP, 2, ctypes.c_char_p(program), 0, 0)


def _filter(arch: int, calls: tuple[int, ...], *, network: bool) -> bytes:
    def step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
        return struct.pack("=HBBI", code, if_true, if_false, value)

    sockets, uring, execve, execveat, fork, vfork, clone, clone3 = calls
    refused = [*([] if network else [sockets]), uring, execve, execveat, *(n for n in (fork, vfork) if n >= 0)]
    program = [step(_LOAD, _ARCH_AT), step(_EQUALS, arch, if_true=1), step(_RETURN, _KILL), step(_LOAD, _NUMBER_AT)]
    program += [step(_AT_LEAST, _X32, if_false=1), step(_RETURN, _KILL)]  # the same calls under other numbers
    for number in refused:
        program += [step(_EQUALS, number, if_false=1), step(_RETURN, _ERRNO | errno.EACCES)]
    program += [step(_EQUALS, clone3, if_false=1), step(_RETURN, _ERRNO | errno.ENOSYS)]  # libc then calls clone
    program += [step(_EQUALS, clone, if_false=3), step(_LOAD, _FLAGS_AT), step(_HAS_BITS, _CLONE_THREAD, if_true=1)]
    return b"".join([*program, step(_RETURN, _ERRNO | errno.EACCES), step(_RETURN, _ALLOW)])

"""`.cldignore` files: gitignore syntax, one in any folder, the deepest one decides.

They lie among footage, so whoever made it wrote them. A regular expression with several `*` may try for ages where it
does not match; here what is found after a `*` is never given back, which matches the same names in a time that grows at
most with the product of their length and the pattern's.
"""

import errno
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

__all__ = ["IgnoreRules"]

_NAME = ".cldignore"
_MOST_BYTES = 2**16
_TOKEN = re.compile(
    r"(?P<star>\*+)|(?P<one>\?)|\[(?P<neg>[!^]?+)(?P<set>\]?+(?:\\.|[^\]\\])*)\]|(?P<char>\\.|[^\\[])", re.S
)
_IN_SET = re.compile(r"\\?(.)(?:-\\?(.))?", re.S)

_Pattern: TypeAlias = tuple[re.Pattern[str] | None, ...]  # a name each; None = any number of folders


@dataclass(frozen=True)
class _Rule:
    """A line: what it names, from the folder of its file on or (`anywhere`) a last name alone."""

    pattern: _Pattern
    anywhere: bool
    only_dirs: bool
    ignores: bool

    def names(self, parts: list[str], *, is_dir: bool) -> bool:
        if self.only_dirs and not is_dir:
            return False
        return _fits(self.pattern, parts[-1:] if self.anywhere else parts)


@dataclass(frozen=True)
class IgnoreRules:
    """What the `.cldignore` files from the root down to a folder say. Immutable; children derive their own."""

    layers: tuple[tuple[str, tuple[_Rule, ...]], ...] = field(default=())

    def entered(self, folder: Path) -> "IgnoreRules":
        """The rules inside `folder`, whose own file (if any) comes on top.

        Raises:
            OSError: that file cannot be read, or is too large to be one; what it would leave out is not known.
        """
        file = folder / _NAME
        try:
            if not file.is_file():
                return self
        except OSError:  # nothing in this folder can be reached
            return self
        try:
            with file.open("rb") as content:
                text = content.read(_MOST_BYTES + 1)
        except FileNotFoundError:
            return self
        except OSError as error:
            raise OSError(error.errno, f"its {_NAME} cannot be read ({error.strerror})", str(file)) from None
        if len(text) > _MOST_BYTES:
            raise OSError(errno.EFBIG, f"its {_NAME} is larger than {_MOST_BYTES // 1024} kB", str(file))
        lines = text.decode("utf-8", "surrogateescape").splitlines()
        rules = tuple(rule for line in reversed(lines) if (rule := _rule(line)) is not None)
        return IgnoreRules((*self.layers, (f"{folder}/", rules)))

    def ignores(self, path: Path, *, is_dir: bool) -> bool:
        """Whether `path`, which lies below the entered folders, is ignored; the last line that names it decides."""
        for base, rules in reversed(self.layers):
            parts = str(path).removeprefix(base).split("/")
            for rule in rules:
                if rule.names(parts, is_dir=is_dir):
                    return rule.ignores
        return False


def _rule(line: str) -> _Rule | None:
    """A line as a rule; None for a comment, and for what git would not understand."""
    text = line.rstrip(" ")
    if text.endswith("\\") and text != line:
        text += " "  # an escaped one
    if not text or text.startswith("#"):
        return None
    ignores = not text.startswith("!")
    text = text if ignores else text[1:]
    only_dirs = text.endswith("/")
    text = text.removesuffix("/")
    anywhere = "/" not in text
    parts = text.removeprefix("/").split("/")
    if parts[-1] == "**":
        parts[-1:] = ["*"] if anywhere else ["**", "*"]  # everything inside, not the folder itself
    try:
        pattern = tuple(None if part == "**" else _name(part) for part in parts)
    except ValueError:
        return None
    return _Rule(pattern, anywhere, only_dirs, ignores)


def _name(glob: str) -> re.Pattern[str]:
    """Matches the whole names that a glob without `/` means.

    Raises:
        ValueError: it means none.
    """
    between = [""]  # the stars
    at = 0
    while at < len(glob):
        token = _TOKEN.match(glob, at)
        if token is None:
            raise ValueError(f"{glob}: it ends inside [ or after \\")
        at = token.end()
        if token["star"]:
            between.append("")
        elif token["one"]:
            between[-1] += "."
        elif token["char"]:
            between[-1] += re.escape(token["char"][-1])
        else:
            ends = ((low, high if high >= low else low) for low, high in _IN_SET.findall(token["set"]))
            inside = "".join(f"{re.escape(low)}-{re.escape(high)}" for low, high in ends)
            between[-1] += f"[{'^' if token['neg'] else ''}{inside}]"
    if not glob:
        raise ValueError("a name has characters")
    first, *rest = between
    found = "".join(f"(?>.*?{fixed})" for fixed in rest[:-1])
    return re.compile(first + found + (f".*{rest[-1]}" if rest else ""), re.S)


def _fits(pattern: _Pattern, parts: list[str]) -> bool:
    """Whether the parts of a path are those of a pattern; what comes after `**` is never given back either."""
    at = here = 0
    retry = retry_here = -1
    while here < len(parts):
        name = pattern[at] if at < len(pattern) else None
        if at < len(pattern) and name is None:
            at += 1
            retry, retry_here = at, here
        elif name is not None and name.fullmatch(parts[here]):
            at, here = at + 1, here + 1
        elif retry >= 0:
            retry_here += 1
            at, here = retry, retry_here
        else:
            return False
    return all(name is None for name in pattern[at:])

"""`.cldignore` files: gitignore syntax, one in any folder, the deepest one decides."""

from dataclasses import dataclass, field
from pathlib import Path

from pathspec import GitIgnoreSpec

__all__ = ["IgnoreRules"]

_NAME = ".cldignore"


@dataclass(frozen=True)
class IgnoreRules:
    """What the `.cldignore` files from the root down to a folder say. Immutable; children derive their own."""

    layers: tuple[tuple[str, GitIgnoreSpec], ...] = field(default=())

    def entered(self, folder: Path) -> "IgnoreRules":
        """The rules inside `folder`, whose own file (if any) comes on top."""
        try:
            text = (folder / _NAME).read_text(encoding="utf-8", errors="surrogateescape")
        except OSError:
            return self
        spec = GitIgnoreSpec.from_lines(text.splitlines())
        return IgnoreRules((*self.layers, (f"{folder}/", spec)))

    def ignores(self, path: Path, *, is_dir: bool) -> bool:
        """Whether `path`, which lies below the entered folders, is ignored."""
        for base, spec in reversed(self.layers):
            relative = str(path).removeprefix(base) + ("/" if is_dir else "")
            verdict = spec.check_file(relative).include
            if verdict is not None:
                return verdict
        return False

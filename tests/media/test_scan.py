"""A look tells what is not as known, and nothing else."""

import os
import shutil
from pathlib import Path

import pytest

from cld_stream.media.scan import Scan, rules_above, sign_of


def sign(path: Path) -> int:
    status = path.stat()
    return sign_of(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def look(top: Path, known: dict[str, dict[str, int]], skipped: str = "") -> tuple[Scan, set[str], set[str]]:
    """(the scan, changed paths, gone paths), after taking note of what changed."""
    scan, changed, gone = Scan(str(top), known, skipped), set[str](), set[str]()
    for seen in scan:
        assert all(s == sign(Path(seen.folder, name)) for name, s in seen.changed.items())
        changed |= {os.path.relpath(f"{seen.folder}/{name}", top) for name in seen.changed}
        gone |= {os.path.relpath(f"{seen.folder}/{name}", top) for name in seen.gone}
        known.setdefault(seen.folder, {}).update(seen.changed)
        for name in seen.gone:
            del known[seen.folder][name]
    return scan, changed, gone


def test_new_changed_renamed_and_deleted_files_are_told_once(tmp_path: Path) -> None:
    known: dict[str, dict[str, int]] = {}
    for name in ("a", "b", "deep/c", "deep/d", ".hidden", "e\nodd \udcff"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(name.encode("utf-8", "replace").decode())
    scan, changed, gone = look(tmp_path, known)
    assert (changed, gone, scan.files) == ({"a", "b", "deep/c", "deep/d", "e\nodd \udcff"}, set(), 5)
    assert look(tmp_path, known)[1:] == (set(), set())
    (tmp_path / "a").write_text("longer than before")
    (tmp_path / "b").rename(tmp_path / "deep" / "b")
    (tmp_path / "deep" / "c").unlink()
    assert look(tmp_path, known)[1:] == ({"a", "deep/b"}, {"b", "deep/c"})
    shutil.rmtree(tmp_path / "deep")
    scan, changed, gone = look(tmp_path, known)
    assert (changed, gone, set(scan.devices)) == (set(), set(), {str(tmp_path)})


def test_links_are_followed_once_and_loops_end(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a").write_text("a")
    (tmp_path / "again").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "loop").symlink_to(tmp_path)
    (tmp_path / "nowhere").symlink_to(tmp_path / "not there")
    assert look(tmp_path, {})[1] == {"real/a"}


def test_ignored_folders_and_the_one_to_skip_are_left_out(tmp_path: Path) -> None:
    for name in ("keep/a.png", "keep/b.tmp", "cache/c.png", "store/d.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / ".cldignore").write_text("cache/\n")
    (tmp_path / "keep" / ".cldignore").write_text("*.tmp\n")
    scan, changed, _ = look(tmp_path, {}, str(tmp_path / "store"))
    assert changed == {"keep/a.png"}
    assert scan.ruled == {str(tmp_path), str(tmp_path / "keep")}
    rules = rules_above(str(tmp_path), str(tmp_path / "keep"))
    assert rules.ignores(tmp_path / "keep" / "cache", is_dir=True)
    assert not rules.ignores(tmp_path / "keep" / "b.tmp", is_dir=False)  # its own rules are not above it


def test_a_folder_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    assert look(tmp_path / "absent", {})[0].unread == {str(tmp_path / "absent"): "No such file or directory"}
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    (tmp_path / "closed").mkdir(mode=0)
    assert look(tmp_path, {})[0].unread == {str(tmp_path / "closed"): "Permission denied"}

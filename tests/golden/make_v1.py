"""Makes the golden store of format 1. Run once, when the format was new; `v1/` is never edited.

python -m tests.golden.make_v1 FOLDER
"""

import json
import sys
from pathlib import Path

from cld_stream.config import StoreSettings
from cld_stream.storage.schema import Outcome
from cld_stream.storage.store import Store
from tests.storage.pictures import new_source, picture


def make(folder: Path) -> None:
    with Store.create(folder / "store", StoreSettings(size=16, shard_frames=4)) as store:
        with store.writer("golden") as writer:
            for path, frames in (("/films/a.mp4", 3), ("/films/b.mp4", 6), ("/photos/c.jpg", 1)):
                source = new_source(writer, path)
                writer.append(source, [picture(source, i) for i in range(frames)], str(frames))
                writer.finish(source, Outcome.ADDED, reader="pyav")
            copy = new_source(writer, "/photos/copy of c.jpg", "photo", same_as=3)
            writer.finish(copy, Outcome.ALREADY_PRESENT, "same content as /photos/c.jpg")
            broken = new_source(writer, "/films/broken.mp4")
            writer.finish(broken, Outcome.BROKEN, "no frame could be decoded")
            writer.commit()
            writer.forget(1)
        rows = store.catalog.rows()
        with store.reader() as reader:
            pixels, present = reader.read(range(store.catalog.next_id()))
        expected = {
            "ids": rows.ids.tolist(),
            "source": rows.source.tolist(),
            "time_s": rows.time_s.tolist(),
            "paths": [source.path for source in store.catalog.sources()],
            "present": present.tolist(),
            "mean": pixels.mean((1, 2, 3)).round(3).tolist(),
        }
    (folder / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")
    (folder / "store" / "writer.lock").unlink()


if __name__ == "__main__":
    make(Path(sys.argv[1]))

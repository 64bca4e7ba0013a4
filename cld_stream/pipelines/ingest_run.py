"""One run over what was found: decide and decode in one thread, in stream order; commit in another.

A run that is killed at any instant leaves a store from which the next run goes on as if nothing had happened: the
cursor of a source is committed in the same transaction as the frames before it.
"""

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace

from cld_stream.config import Settings
from cld_stream.media.discover import Discovery, Item
from cld_stream.media.job import Chunk, Done, Event, Job
from cld_stream.media.paths import changed_ns
from cld_stream.media.pool import DecodePool
from cld_stream.media.probe import probe
from cld_stream.media.reasons import LACKS, VANISHED, unreadable_reason
from cld_stream.pipelines.cpu import CpuMeter
from cld_stream.pipelines.ledger import Entry, Ledger, previous_outcome
from cld_stream.pipelines.life import Life, Numbers
from cld_stream.pipelines.pump import Pump
from cld_stream.pipelines.report import FileReport, IngestProgress, IngestReport
from cld_stream.pipelines.retention import Retention
from cld_stream.storage.schema import NewFrame, Outcome
from cld_stream.storage.store import Store
from cld_stream.storage.writer import Writer

__all__ = ["Run", "in_stream_order"]

_TICK_S = 0.2
_Step = tuple[Entry, Event | None]


def in_stream_order(found: Discovery, ledger: Ledger, order: str) -> list[Item]:
    """The items in the order in which their frames are to stand.

    First what an earlier run was interrupted in. Then, by `time`, what has a capture time, in that order; then the
    rest as it was found: in natural path order, and tables as they are.
    """
    unknown = float("inf")
    items = [one for item in found.items for one in ledger.singly(item)]

    def key(place: int) -> tuple[bool, float, int]:
        item = items[place]
        if ledger.is_interrupted(item):
            return False, 0.0, place
        if order == "path" or item.kind == "sequence" or ledger.is_settled(item):
            return True, unknown, place
        taken = _taken_utc(item)
        return True, unknown if taken is None else taken, place

    return [items[place] for place in sorted(range(len(items)), key=key)]


@dataclass
class Run:
    """One run over what was found: decides in the pump's thread, commits in the caller's.

    Attributes:
        life: shown this run's numbers; None = the caller shows its own.
        tick: called several times a second, in the caller's thread.
        patiently: does what is to be done on disk; a watch waits there for space.
        unreadable: paths that the system did not let us read, and when their inode had last changed (None: they may be
            tried again at once).
        spent: time spent waiting for what sequences and growing files gave [s], by path.
    """

    store: Store
    writer: Writer
    ledger: Ledger
    settings: Settings
    retention: Retention
    life: Life | None = None
    on_progress: Callable[[IngestProgress], None] | None = None
    tick: Callable[[], None] = lambda: None
    patiently: Callable[[Callable[[], object]], object] = lambda work: work()
    report: IngestReport = field(init=False)

    def __post_init__(self) -> None:
        self.report = IngestReport(str(self.store.path))
        self.started = time.monotonic()
        self.told = 0.0
        self.total = 0
        self.ids: dict[Entry, int] = {}
        self.results: dict[Entry, tuple[Outcome | None, str]] = {}
        self.added: dict[Entry, int] = {}
        self.counts: Counter[Outcome | None] = Counter()
        self.cpu = CpuMeter()
        self.unreadable: dict[str, int | None] = {}
        self.spent: dict[str, float] = {}

    def over(self, found: Discovery, pool: DecodePool, stop: Callable[[], bool]) -> IngestReport:
        """Take everything that was found, unless asked to stop; once for each run."""
        self.total = self.report.files_total = len(found.items) + len(found.skipped)
        for path, reason in found.skipped:
            self._tell(FileReport(str(path), "other", Outcome.SKIPPED, reason, action="skip"))
        self._progress("", pool)
        pump = Pump(lambda: self._steps(found, pool))
        try:
            self.report.stopped = not self._drain(pump, pool, stop)
        finally:
            pump.stop(2.0)
        if not self.report.stopped:
            self._mark_missing(found)
        self.patiently(self.writer.commit)
        self.patiently(self.retention.enforce)
        self.report.dropped = self.retention.dropped
        if self.retention.note:
            self.report.notes.append(self.retention.note)
        if self.life is not None:
            self.life.beat("done", lambda: self._numbers("", pool.pids), now=True)
        self.report.seconds = time.monotonic() - self.started
        self.report.cpu_share = self.cpu.share(pool.pids)
        return self.report

    def _steps(self, found: Discovery, pool: DecodePool) -> Iterator[_Step]:
        """Every entry in stream order, with its events if it is read. Runs in the pump's thread."""
        waiting: deque[Entry] = deque()
        order = self.settings.ingest.order

        def jobs() -> Iterator[Job]:
            for key, item in enumerate(in_stream_order(found, self.ledger, order)):
                entry = self._decide(item)
                waiting.append(entry)
                if entry.action in ("read", "continue"):
                    yield self._job(key, entry, item)

        def until_read() -> Iterator[_Step]:
            while waiting and waiting[0].action not in ("read", "continue"):
                yield waiting.popleft(), None

        for _, event in pool.run(jobs()):
            yield from until_read()
            yield waiting[0], event
            if isinstance(event, Done):
                waiting.popleft()
        yield from until_read()

    def _decide(self, item: Item) -> Entry:
        try:
            return self.ledger.decide(item)
        except OSError as error:
            path = str(item.path)
            self.unreadable[path] = None if error.errno in LACKS else changed_ns(path)
            return self.ledger.unreadable(item, unreadable_reason(error))

    def _job(self, key: int, entry: Entry, item: Item) -> Job:
        header, chosen = self.store.header, self.settings.ingest
        return Job(
            key=key,
            kind="photo" if entry.kind == "other" or entry.kind == "camera" else entry.kind,
            path=item.path,
            members=item.members,
            cursor=entry.cursor,
            start_utc=None if item.kind == "sequence" else _taken_utc(item),
            size=header.size,
            fit=header.fit,
            quality=header.jpeg_quality,
            fps=chosen.fps,
            reader=chosen.reader,
            max_pixels=chosen.max_pixels,
            growing=item.growing,
        )

    def _drain(self, pump: Pump[_Step], pool: DecodePool, stop: Callable[[], bool]) -> bool:
        """Take every step; False if asked to stop before the last."""
        current, waited_s = "", 0.0
        while not stop():
            asked = time.monotonic()
            try:
                step = pump.get(_TICK_S)
            except StopIteration:
                return True
            waited_s += time.monotonic() - asked
            if step is not None:
                current = str(step[0].path)
                if (item := step[0].item) is not None and (item.growing or item.kind == "sequence"):
                    self.spent[current] = self.spent.get(current, 0.0) + waited_s
                waited_s = 0.0
                self._take(*step)
            if self.patiently(lambda: self.writer.commit_if_due(self.settings.ingest.commit_s)):
                self.patiently(self.retention.enforce)
            self._progress(current, pool)
            self.tick()
        return False

    def _take(self, entry: Entry, event: Event | None) -> None:
        id_ = self._open(entry)
        if isinstance(event, Chunk):
            frames = [NewFrame(f.jpeg, f.time_s, f.wall_utc, f.shot, f.aspect) for f in event.frames]
            self.writer.append(id_, frames, event.cursor)
            self.added[entry] = self.added.get(entry, 0) + len(frames)
            self.report.frames += len(frames)
        elif isinstance(event, Done):
            self._finish(entry, Outcome(event.outcome), event.reason, event.reader)
        elif event is None:
            self._settle(entry)

    def _open(self, entry: Entry) -> int:
        """Its row, made or brought up to date at its turn."""
        if entry in self.ids:
            return self.ids[entry]
        if entry.displaced is not None:
            self.leave(entry.displaced, "changed in place; its new content is another source")
        if entry.row is None:
            item = entry.item
            self.ids[entry] = self.writer.add_source(
                kind="photo" if entry.kind == "other" else entry.kind,
                path=str(entry.path),
                **entry.stat.columns(),
                fingerprint=entry.fingerprint,
                label=item.label if item else None,
                split=item.split if item else None,
            )
        else:
            self.ids[entry] = entry.row.id
            if entry.update:
                self.writer.update_source(entry.row.id, **entry.update)
        return self.ids[entry]

    def _settle(self, entry: Entry) -> None:
        """An entry of which nothing is to be read."""
        if entry.action == "skip":
            self._finish(entry, Outcome.SKIPPED, entry.reason, "")
        elif entry.action == "broken":
            self._finish(entry, Outcome.BROKEN, entry.reason, "")
        elif entry.action == "twin" and entry.twin is not None:
            self._settle_twin(entry, entry.twin)
        elif entry.row is not None:
            now = {"outcome": entry.row.outcome, "reason": entry.row.reason} | entry.update
            self.results[entry] = now["outcome"], now["reason"]
            self._tell_entry(entry, entry.row.reader)

    def _settle_twin(self, entry: Entry, original: Entry) -> None:
        outcome, reason = self.results.get(original, (None, ""))
        if outcome is None and original.row is not None:
            outcome, reason = original.row.outcome, original.row.reason
        if outcome is Outcome.MISSING and self._frames_of(original) == 0:
            self._finish(entry, Outcome.BROKEN, f"not read: its twin {original.path} vanished meanwhile", "")
            return
        if outcome in (Outcome.BROKEN, Outcome.SKIPPED):  # the same bytes, the same fate
            self._finish(entry, outcome, reason, "")
            return
        id_ = self.ids.get(original, original.row.id if original.row else None)
        self.writer.update_source(self.ids[entry], same_as=id_)
        self._finish(entry, Outcome.ALREADY_PRESENT, f"same content as {original.path}", "")

    def _finish(self, entry: Entry, outcome: Outcome, reason: str, reader: str) -> None:
        if entry.item is not None and entry.item.growing:
            self._finish_growing(entry, reader)
            return
        if outcome is Outcome.BROKEN and reason == VANISHED:
            outcome, reason = Outcome.MISSING, f"{reason} (was UNFINISHED)"  # read once it returns
        elif outcome is Outcome.BROKEN and self._frames_of(entry) > 0:
            outcome = Outcome.PARTIAL  # what came before the break stays
        self.writer.finish(self.ids[entry], outcome, reason, reader)
        self.results[entry] = outcome, reason
        self._tell_entry(entry, reader)

    def _finish_growing(self, entry: Entry, reader: str) -> None:
        """What is wrong with it is not known before it is complete."""
        frames = self._frames_of(entry)
        outcome = Outcome.PARTIAL if frames else None
        reason = "still being written" + ("" if frames else "; nothing in it can be read yet")
        self.writer.update_source(self.ids[entry], outcome=outcome, reason=reason, reader=reader)
        self.results[entry] = outcome, reason
        self._tell_entry(entry, reader)

    def _frames_of(self, entry: Entry) -> int:
        before = entry.row.frames if entry.row is not None else 0
        return before + self.added.get(entry, 0)

    def leave(self, entry: Entry, reason: str) -> None:
        """Its file is no more; its frames stay."""
        if entry.row is None or entry.row.outcome is Outcome.MISSING:
            return
        reason = f"{reason} {previous_outcome(entry.row)}"
        self.writer.finish(entry.row.id, Outcome.MISSING, reason, entry.row.reader)
        entry.row = replace(entry.row, outcome=Outcome.MISSING, reason=reason)  # it is not left twice
        path, kind = str(entry.path), entry.kind
        self._tell(FileReport(path, kind, Outcome.MISSING, reason, action="missing", changed=True))

    def _mark_missing(self, found: Discovery) -> None:
        met = {str(item.path) for item in found.items}
        present = [f for f in found.folders if any(p.startswith(f"{f}/") or p == str(f) for p in met)]
        for folder in set(found.folders) - set(present):
            if self.ledger.vanished([folder]):
                self.report.notes.append(
                    f"{folder} is empty, though the store has files from it; they are left as they are"
                )
        for entry in self.ledger.vanished(present):
            self.leave(entry, "the file is gone")

    def _tell_entry(self, entry: Entry, reader: str) -> None:
        outcome, reason = self.results[entry]
        before = entry.row.outcome if entry.row is not None else None
        self._tell(
            FileReport(
                str(entry.path),
                entry.kind,
                outcome,
                reason,
                reader=reader,
                action=entry.action,
                frames=self.added.get(entry, 0),
                changed=outcome is not before,
            )
        )

    def _tell(self, told: FileReport) -> None:
        self.report.files.append(told)
        self.counts[told.outcome] += 1

    def _progress(self, current: str, pool: DecodePool) -> None:
        if self.life is not None:
            self.life.beat("reading", lambda: self._numbers(current, pool.pids))
        now = time.monotonic()
        if self.on_progress is not None and now - self.told >= _TICK_S:
            self.told = now
            self.on_progress(self._now(current, pool.pids))

    def _now(self, current: str, pids: Iterable[int]) -> IngestProgress:
        return IngestProgress(
            files_total=self.total,
            files_done=len(self.report.files),
            frames=self.report.frames,
            skipped=self.counts[Outcome.SKIPPED],
            broken=self.counts[Outcome.BROKEN],
            seconds=time.monotonic() - self.started,
            cpu_share=self.cpu.share(pids),
            current=current,
        )

    def _numbers(self, current: str, pids: Iterable[int]) -> Numbers:
        """What a beat says."""
        return asdict(self._now(current, pids)) | {"dropped": self.retention.dropped} | self.retention.limits


def _taken_utc(item: Item) -> float | None:
    try:
        return probe(item.path).taken_utc
    except OSError:
        return None

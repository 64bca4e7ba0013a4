"""`/healthz`, `/readyz` and `/metrics` of a running ingest or train, from a thread of their own."""

import errno
import json
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, ProcessCollector, make_wsgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from cld_stream.config import OpsSettings
from cld_stream.errors import CldError, PortTakenError, UsageError
from cld_stream.pipelines.status import Status, status_of

if TYPE_CHECKING:
    from cld_stream.pipelines.life import Life

__all__ = ["INGEST", "STORE", "TRAIN", "Shown", "families", "serve"]

_SLOW_CLIENT_S = 10


@dataclass(frozen=True)
class Shown:
    """A number that `/metrics` shows as `cld_stream_<name>` (a counter: with `_total` at the end).

    Attributes:
        key: its name among the numbers of a beat, or of `Status`.
    """

    name: str
    key: str
    doc: str
    counter: bool = False


TRAIN = (
    Shown("train_steps", "step", "Steps tried.", counter=True),
    Shown("train_updates", "updates", "Steps taken.", counter=True),
    Shown("train_frames_fed", "fed", "Frames fed in stream order.", counter=True),
    Shown("train_frames_thinned", "thinned", "Frames passed over because the backlog was too long.", counter=True),
    Shown("train_rescues", "rescues", "Times that an old state was restored.", counter=True),
    Shown("train_guard_warnings", "guard_warnings", "Times that the guard warned.", counter=True),
    Shown("train_guard_holds", "guard_holds", "Times that the guard began to hold publishing.", counter=True),
    Shown("train_guard_rollbacks", "guard_rollbacks", "Times that the guard took the good state back.", counter=True),
    Shown("train_guard_kept", "guard_kept", "Spread, rank, group entropy as a share of the best so far; the least."),
    Shown("train_guard_agreement", "guard_agreement", "Neighbours shared with the snapshot; 0 = as by chance."),
    Shown("train_lag_frames", "lag", "Committed frames that are not fed yet."),
    Shown("train_frames_per_second", "frames_s", "Fresh and replayed frames a second."),
    Shown("train_data_wait_ratio", "data_wait", "Share of the time spent waiting for pixels."),
    Shown("train_buffer_frames", "buffered", "Frames in the replay buffer."),
    Shown("train_buffer_capacity_frames", "capacity", "Frames that the replay buffer can hold."),
    Shown("train_loss", "loss", "Loss of the last step [nats]."),
    Shown("train_loss_instance", "instance", "Its instance term [nats]."),
    Shown("train_loss_cross_level", "cld", "Its cross-level term [nats]."),
    Shown("train_learning_rate", "lr", "Learning rate."),
    Shown("train_frames_at_once", "frames_at_once", "Frames that go through the encoder at a time."),
    Shown("train_groups", "groups", "Local groups of the last measured batch that hold a frame."),
    Shown("train_feature_std", "feature_std", "Standard deviation of its features; near 0 when collapsed."),
    Shown("train_effective_rank", "effective_rank", "Effective rank of its features; near 1 when collapsed."),
)
INGEST = (
    Shown("ingest_frames_added", "frames", "Frames added by this run.", counter=True),
    Shown("ingest_frames_dropped", "dropped", "Oldest frames dropped by this run to stay within limits.", counter=True),
    Shown("ingest_files", "files_total", "Files that this run has to look at."),
    Shown("ingest_files_done", "files_done", "Of those, finished."),
    Shown("ingest_files_broken", "broken", "Files found broken by this run."),
    Shown("ingest_frames_per_second", "frames_s", "Frames committed a second."),
    Shown("ingest_cpu_ratio", "cpu_share", "CPU time of ingest and its workers, as a share of all cores."),
)
STORE = (
    Shown("store_frames", "frames", "Frames in the store."),
    Shown("store_bytes", "bytes", "What they take on disk."),
    Shown("store_covered_frames", "covered", "Frames that have features in the newest snapshot."),
    Shown("store_disk_free_bytes", "disk_free", "What is left where the store lies."),
    Shown("store_full_seconds", "full_in_s", "Until the disk is full, at the rate of the last hour."),
    Shown("store_snapshots", "snapshots", "Published encoders."),
    Shown("store_snapshot_timestamp_seconds", "snapshot_utc", "When the newest one was published."),
)


class _Numbers(Collector):
    """Reads what the process last said of itself, and the store, whenever it is asked."""

    def __init__(self, life: "Life") -> None:
        self._life = life

    def collect(self) -> Iterator[Metric]:
        """See `Collector`."""
        life = self._life
        yield GaugeMetricFamily("cld_stream_healthy", "1 while the loop makes progress.", 0.0 if life.stalled else 1.0)
        yield GaugeMetricFamily("cld_stream_silent_seconds", "Since the loop came round last.", life.silent_s)
        state = GaugeMetricFamily("cld_stream_state", "1 for what it is doing.", labels=["verb", "state"])
        state.add_metric([life.kind, life.state], 1.0)
        yield state
        yield from families(TRAIN if life.kind == "train" else INGEST, life.numbers)
        try:
            now = status_of(life.store)
        except (CldError, OSError):  # the drive of the store is away: what the process says of itself still counts
            return
        yield from families(STORE, vars(now))
        yield _sources(now)


def families(shown: Iterable[Shown], numbers: dict[str, Any]) -> Iterator[Metric]:
    """As metrics; what is not known is none."""
    for one in shown:
        value = numbers.get(one.key)
        if value is not None:
            family = CounterMetricFamily if one.counter else GaugeMetricFamily
            yield family(f"cld_stream_{one.name}", one.doc, float(value))


def _sources(now: Status) -> Metric:
    sources = GaugeMetricFamily("cld_stream_store_sources", "Sources by outcome.", labels=["outcome"])
    for outcome, count in now.outcomes.items():
        sources.add_metric([outcome or "in progress"], count)
    return sources


def serve(life: "Life", settings: OpsSettings) -> Callable[[], None]:
    """Answer on the port from now on; gives the way to stop.

    Raises:
        PortTakenError: something else listens there.
        UsageError: the port or the address cannot be had.
    """
    registry = CollectorRegistry()
    registry.register(_Numbers(life))
    ProcessCollector(registry=registry)
    try:
        server = make_server(
            settings.address, settings.port, _app(life, make_wsgi_app(registry)), _Server, handler_class=_Handler
        )
    except OSError as e:
        where = f"ops.port {settings.port} on {settings.address}"
        if e.errno == errno.EADDRINUSE:
            raise PortTakenError(
                f"{where}: something else listens there; `ss -ltnp 'sport = :{settings.port}'` says what. "
                "Stop it, or choose another --port."
            ) from None
        raise UsageError(f"{where}: cannot listen there: {e.strerror}. Choose another --port.") from None
    threading.Thread(target=server.serve_forever, name="probes", daemon=True).start()

    def stop() -> None:
        server.shutdown()
        server.server_close()

    return stop


def _app(life: "Life", metrics: Any) -> Any:
    """Health: the loop is not stuck. Readiness: it has also come round once."""

    def answer(environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path == "/metrics":
            found: Iterable[bytes] = metrics(environ, start)
            return found
        good = {"/healthz": not life.stalled, "/readyz": life.ready and not life.stalled}
        if path not in good:
            start("404 Not Found", [("Content-Type", "text/plain")])
            return [b"There is /healthz, /readyz and /metrics.\n"]
        start("200 OK" if good[path] else "503 Service Unavailable", [("Content-Type", "application/json")])
        said = {"ok": good[path], "verb": life.kind, "state": life.state, "silent_s": round(life.silent_s, 1)}
        return [json.dumps(said).encode() + b"\n"]

    return answer


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up, or never asks, is not worth a line: probes of a TCP port alone come like that."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Handler(WSGIRequestHandler):
    timeout = _SLOW_CLIENT_S

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Probes come every few seconds; they are not worth a line."""

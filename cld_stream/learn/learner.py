"""The learner: one step of the algorithm, and everything that the next step depends on.

Randomness is a function of (seed, salt, clock): nothing else has to be saved to go on bit for bit.
"""

import logging
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from cld_stream.config import EncoderSettings, Settings
from cld_stream.errors import DeviceFullError
from cld_stream.learn.alignment import Alignment
from cld_stream.learn.augment import RandomViews, central_view
from cld_stream.learn.average import WeightAverage, estimate_batch_norm
from cld_stream.learn.bank import MemoryBank
from cld_stream.learn.branches import Batch, make_branch
from cld_stream.learn.buffer import EMPTY, Admission, Ids, Origin, ReplayBuffer
from cld_stream.learn.cross_level import CrossLevel
from cld_stream.learn.descent import Descent
from cld_stream.learn.encoder import Encoder, build_encoder
from cld_stream.learn.looks import Looks
from cld_stream.learn.near import NearRepeats
from cld_stream.learn.pieces import Pieces, foreseen_lack
from cld_stream.learn.plan import StepPlan, StepReport
from cld_stream.learn.undo import Undo

__all__ = ["Learner", "StepPlan", "StepReport"]

log = logging.getLogger("cld_stream.train")

Array = NDArray[Any]


class Learner:
    """An instance branch + CLD over a replay buffer (Wang, Liu, Yu 2021, section 3, made for a stream).

    Attributes:
        clock: steps tried; never goes back, not even when an old state is restored.
        updates: steps taken: the age of the encoder.
        salt: changed after a rescue, so that the choices that led there are not made again.
        rate: factor on the learning rate, lowered by a rescue.
        cbp: cumulative backward passes: views x frames.
        pieces: how many frames a pass may hold.
    """

    def __init__(
        self, settings: Settings, device: torch.device | str = "cpu", weights: Mapping[str, Tensor] | None = None
    ) -> None:
        self.settings, self.device = settings, torch.device(device)
        self.clock = self.updates = self.salt = self.cbp = 0
        self.rate, self.pieces, self._told_unseen = 1.0, Pieces(), False
        optim, rows = settings.optim, settings.buffer.capacity
        with torch.random.fork_rng(devices=[]):  # the same start on every device
            torch.manual_seed(optim.seed)
            encoder = build_encoder(settings.encoder, weights)
            branch = make_branch(settings, encoder)
            alignment = None if settings.loss.align == "none" else Alignment(settings, encoder)
        self.encoder: Encoder = encoder.to(self.device)
        self.branch = branch.to(self.device)
        trained = dict(self.encoder.named_parameters())
        trained |= {f"branch.{name}": p for name, p in self.branch.named_parameters()}
        self.alignment = alignment and alignment.to(self.device)
        trained |= {f"alignment.{name}": p for name, p in alignment.named_parameters()} if alignment else {}
        self.descent = Descent(trained, optim)
        self.average = WeightAverage(self.encoder, optim.average_decay)
        self.buffer = ReplayBuffer(rows, settings.buffer.policy, settings.buffer)
        self.near = NearRepeats(settings.loss, rows)
        self.bank = MemoryBank(rows, settings.encoder.feature_dim, settings.loss.bank_momentum, self.device)
        self.views = RandomViews(settings.augment, settings.encoder.crop, self.branch.views)
        self.cross_level = CrossLevel(settings.loss, rows, settings.encoder.feature_dim, self.device)
        self.looks: Looks | None = None
        if self.buffer.policy.looks:
            self.looks = Looks(rows, settings.encoder.feature_dim, settings.encoder.crop, self.device)

    def plan(self, fresh: Iterable[int] = (), origin: Origin | None = None) -> StepPlan:
        """Decide a batch, changing nothing: admit the fresh frames first, then draw replays among those that stay.

        Args:
            fresh: ids of the fresh frames.
            origin: where they come from; None = not known.
        """
        rng = np.random.default_rng(self._entropy(0))
        admission = self.buffer.propose(_ids(fresh), rng, origin)
        taken = admission.slots[admission.slots != EMPTY]
        replays = max(0, self.settings.optim.batch - len(admission.ids))
        replayed = self.buffer.sample(replays, rng, taken, max_replays=self.settings.buffer.max_replays)
        ids = np.concatenate([admission.ids, self.buffer.ids[replayed]])
        slots, origin = np.concatenate([admission.slots, replayed]), admission.origin + self.buffer.origin(replayed)
        partner = self.near.partners(self.buffer, slots, origin, taken, rng)
        paired = partner != EMPTY
        if not paired.any():
            return StepPlan(ids, slots, admission, origin)
        second = np.where(paired, len(ids) + paired.cumsum() - 1, np.arange(len(ids)))
        partners = partner[paired]
        return StepPlan(ids, slots, admission, origin, partners, self.buffer.ids[partners], second)

    def step(self, plan: StepPlan, pixels: Tensor, aspect: Tensor) -> StepReport:
        """One step of the algorithm. When the loss or a gradient is not finite, it changes no state but the clock.

        Where memory does not hold it, it changes nothing, and is done again with fewer frames at a time.

        Args:
            plan: what `plan` gave since the last step.
            pixels: (N + P x S x S x 3) uint8 on the device, as stored, in the order of `plan.wanted`.
            aspect: (N + P) width / height as shown.

        Raises:
            ValueError: fewer than two frames, or not as many as planned.
            DeviceFullError: memory does not hold the least number of frames at a time.
        """
        if not 2 <= len(pixels) == len(aspect) == len(plan.wanted):
            raise ValueError(f"the plan has {len(plan.wanted)} frames, at least 2 are needed; got {len(pixels)}")
        slots = torch.from_numpy(plan.slots).to(self.device)
        newborn = self._newborn(plan, slots)
        undo = Undo(self.encoder, self.bank, slots[newborn])
        n, what = len(plan.ids), f"step {self.clock}, a batch of {len(plan.ids)} frames on {self.device}"
        return self.pieces.attempt(lambda: self._step(plan, pixels, aspect, slots, newborn, undo), n, what, undo)

    def _step(
        self, plan: StepPlan, pixels: Tensor, aspect: Tensor, slots: Tensor, newborn: Tensor, undo: Undo
    ) -> StepReport:
        s, lr, generator, born = self.settings.loss, self._rate(), self._generator(1), slots[newborn]
        views = self._views(plan, pixels, aspect, generator)
        (f1, f2), (g1, g2) = self._features(views[:2])
        f = F.normalize((f1 + f2).detach())
        self.bank.fill(born, f[newborn], self.clock)  # before their first gradient
        near, segments = self.near.look(self.buffer, plan.slots, plan.origin, plan.admission, f[: plan.fresh])
        ids = torch.from_numpy(plan.ids).to(self.device)
        hidden = None if s.near_negatives else near
        batch = Batch(ids, slots, newborn, views, f1, f2, self.bank, generator, self.clock, hidden, self.pieces)
        with self._autocast():
            instance = self.branch(batch)
            alignment = self.alignment(batch) if self.alignment else instance.new_zeros(())
        cld = instance.new_zeros(())
        if s.cld_weight > 0:
            order = torch.randperm(len(g1), generator=self._generator(4), device=self.device)
            cld = self.cross_level(g1, g2, slots, newborn, order, near)
        loss = instance + s.cld_weight * cld + s.align_weight * alignment

        ok = self.descent.gradients(loss)  # unless something is not finite
        if ok:
            undo.possible = False
            self.descent.step(lr)
            old = ~newborn & (slots >= 0)
            self.bank.update(slots[old], f1.detach()[old], f2.detach()[old], self.clock)
            self.branch.follow(self.encoder)
            if self.alignment:
                self.alignment.follow(self.encoder)
            self.near.follow(plan.admission, segments)
            self.cross_level.follow(g1, g2, slots, newborn, self.clock, self._generator(3))
            self.average.follow(self.encoder)
            self.buffer.apply(plan.admission, self.clock)
            self.buffer.touch(plan.slots[plan.fresh :])
            self._look(plan, pixels, aspect)
            self.updates += 1
            self.cbp += 2 * len(plan.ids)
        else:
            undo()
        self.clock += 1
        return StepReport(ok, loss.item(), instance.item(), cld.item(), lr, f1.detach(), g1.detach())

    def remember(
        self,
        fresh: Iterable[int],
        origin: Origin | None = None,
        pixels: Tensor | None = None,
        aspect: Tensor | None = None,
    ) -> Admission:
        """Admit frames without a step. Their bank rows are born when they are first replayed.

        Args:
            fresh, origin: as `plan` takes them.
            pixels, aspect: as `step` takes them, on any device, for a policy that wants to know what frames look
                like; None = it learns that when they are replayed.
        """
        ids = _ids(fresh)
        rng = np.random.default_rng(self._entropy(5, *ids[:1].tolist()))  # several times between two steps
        admission = self.buffer.propose(ids, rng, origin)
        taken = admission.slots[admission.slots != EMPTY]
        self._bury(taken)  # the rows of those who were evicted
        self.buffer.apply(admission, self.clock)
        if pixels is not None and aspect is not None and len(taken):
            self._look_at(admission.slots, np.flatnonzero(admission.slots != EMPTY), pixels, aspect)
        return admission

    def forget(self, ids: Iterable[int]) -> Ids:
        """Remove frames from buffer, bank and branch; ids that are not there are ignored. Returns the freed slots."""
        gone = _ids(ids)
        slots = self.buffer.drop(gone)
        self._bury(slots)
        self.branch.forget(torch.from_numpy(gone).to(self.device))
        return slots

    def draw(self, n: int) -> Ids:
        """At most n occupied slots to look at; leaves no trace in the training."""
        return self.buffer.sample(n, np.random.default_rng(self._entropy(2)))

    def averaged(self, batches: Iterable[tuple[Tensor, Tensor]] = ()) -> Encoder:
        """The encoder with averaged weights, in eval mode.

        Args:
            batches: (pixels, aspect) as `step` takes them; batch-norm statistics are estimated anew on
                their central views. One of a single frame has none, and is passed over; without any the present
                encoder's statistics stay.

        Raises:
            DeviceFullError: memory does not hold it.
        """
        crop = self.settings.encoder.crop
        with foreseen_lack(f"averaged weights on {self.device}"):
            encoder = self.average.module(self.encoder)
            parts = ((p[piece], a[piece]) for p, a in batches if len(p) > 1 for piece in self.pieces.of(len(p)))
            estimate_batch_norm(encoder, (self._layout(central_view(p, a, crop)) for p, a in parts))
        return encoder.eval()

    def publishable(self, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[EncoderSettings, dict[str, Array]]:
        """What a snapshot needs: the encoder's settings and its averaged weights by name."""
        weights = self.averaged(batches).state_dict()
        return self.settings.encoder, {name: _numpy(t) for name, t in weights.items()}

    def state_dict(self) -> tuple[dict[str, Array], dict[str, Any]]:
        """Everything that the next step depends on: arrays by name, and plain numbers as JSON holds them."""
        tensors = {
            "encoder": self.encoder.state_dict(),
            "branch": self.branch.state_dict(),
            "cross_level": self.cross_level.state_dict(),
            "alignment": self.alignment.state_dict() if self.alignment else {},
            "average": self.average.state_dict(),
            "bank": self.bank.state_dict(),
            "looks": self.looks.state_dict() if self.looks is not None else {},
            "momentum": self.descent.state_dict(),
        }
        arrays = {f"{part}.{n}": _numpy(t) for part, state in tensors.items() for n, t in state.items()}
        for part, owner in (("buffer", self.buffer), ("near", self.near)):
            arrays |= {f"{part}.{n}": a for n, a in owner.state_dict().items()}
        numbers = {name: getattr(self, name) for name in _NUMBERS}
        return arrays, numbers | {"averaged": self.average.updates}

    def load_state_dict(self, arrays: Mapping[str, Array], numbers: Mapping[str, Any]) -> None:
        """Go on from a saved state, on whatever device this learner is.

        Raises:
            KeyError, ValueError, RuntimeError: it does not fit these settings.
        """
        parts: dict[str, dict[str, Any]] = {}
        for key, array in arrays.items():
            part, _, name = key.partition(".")
            parts.setdefault(part, {})[name] = array if part in _ON_HOST else torch.from_numpy(np.array(array))
        self.encoder.load_state_dict(parts["encoder"])
        self.branch.load_state_dict(parts.get("branch", {}))
        self.cross_level.load_state_dict(parts.get("cross_level", {}))
        if self.alignment:
            self.alignment.load_state_dict(parts.get("alignment", self.alignment.state_dict()))
        self.near.load_state_dict(parts.get("near", {}))
        self.average.load_state_dict(parts["average"], numbers["averaged"])
        self.bank.load_state_dict(parts["bank"])
        self.buffer.load_state_dict(parts["buffer"])
        if self.looks is not None:
            self.looks.load_state_dict(parts.get("looks", {}))
        self.descent.load_state_dict(parts.get("momentum", {}))
        for name in _NUMBERS:
            setattr(self, name, numbers[name])

    def _views(self, plan: StepPlan, pixels: Tensor, aspect: Tensor, generator: torch.Generator) -> Tensor:
        """(views, N, 3, C, C); the second view of a frame with a partner shows the partner."""
        second = torch.from_numpy(plan.second).to(self.device) if len(plan.partners) else None
        return self.views(pixels, aspect, generator, second, self.pieces.frames)

    def _features(self, views: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Instance and group features of each view, in float32, from one pass over all of them, or over each piece.

        So batch norm sees both views as one batch. MoCo and BYOL pass each view alone.
        """
        self.encoder.train()
        f, g = self.pieces.through(self._pass, views)
        return f.unbind(), g.unbind()

    def _pass(self, x: Tensor) -> tuple[Tensor, Tensor]:
        # dropout and stochastic depth know torch's global generator alone
        with torch.random.fork_rng(devices=[]), self._autocast():
            torch.manual_seed(self._seed(6))
            out = self.encoder(self._layout(x))
        return out.instance_Nd.float(), out.group_Nd.float()

    def _autocast(self) -> torch.autocast:
        amp = self.settings.optim.amp in ("always", self.device.type.replace("cuda", "gpu"))
        return torch.autocast(self.device.type, torch.bfloat16, enabled=amp)

    def _bury(self, slots: Ids) -> None:
        """The frames of these slots are gone: so are their rows."""
        at = torch.from_numpy(slots).to(self.device)
        self.bank.kill(at)
        self.cross_level.forget(at)
        self.near.forget(slots)
        if self.looks is not None:
            self.looks.forget(at)

    def _look(self, plan: StepPlan, pixels: Tensor, aspect: Tensor) -> None:
        """Show the buffer's policy what frames of the batch look like, if it wants to know."""
        if self.looks is not None:
            born = plan.admission.slots[plan.admission.slots != EMPTY]
            self.looks.forget(torch.from_numpy(born).to(self.device))  # what was seen there is gone
            self._look_at(plan.slots, self.looks.choose(plan.slots, plan.fresh), pixels, aspect)

    def _look_at(self, slots: Ids, at: Ids, pixels: Tensor, aspect: Tensor) -> None:
        """The frames `at` these places of slots and pixels. What memory does not hold is left to a later replay."""
        if (looks := self.looks) is None:
            return
        slots = slots[at]

        def look() -> None:
            for piece in self.pieces.of(len(at)):
                rows = torch.from_numpy(at[piece])
                seen = pixels[rows].to(self.device), aspect[rows].to(self.device)
                with self._autocast():
                    looks.look(self.average, self.encoder, slots[piece], *seen, self.clock)

        try:
            self.pieces.attempt(look, len(at), f"looking at {len(at)} frames on {self.device}")
        except DeviceFullError as error:
            if not self._told_unseen:
                log.warning("training goes on, and buffer.policy sees frames later, in a replay (said once): %s", error)
            self._told_unseen = True
        self.buffer.follow(looks.bank.rows_MD, looks.bank.live_M, slots)

    def _newborn(self, plan: StepPlan, slots: Tensor) -> Tensor:
        """Frames with a slot whose bank row is not theirs yet: fresh ones, and those only remembered so far."""
        fresh = torch.arange(len(slots), device=self.device) < plan.fresh
        return (slots >= 0) & (fresh | ~self.bank.live_M[slots.clamp(min=0)])

    def _rate(self) -> float:
        return self.descent.lr(self.updates) * self.rate

    def _entropy(self, *purpose: int) -> np.random.SeedSequence:
        return np.random.SeedSequence([self.settings.optim.seed, self.salt, self.clock, *purpose])

    def _generator(self, purpose: int) -> torch.Generator:
        """Of this step; 1: its views and drawn noise, 3: its persistent groups, 4: where local ones start."""
        return torch.Generator(self.device).manual_seed(self._seed(purpose))

    def _seed(self, purpose: int) -> int:
        """Of this step; 6: what the encoder itself leaves to chance, for others see `_generator`."""
        return int(self._entropy(purpose).generate_state(1, np.uint64)[0] >> np.uint64(1))

    @staticmethod
    def _layout(x: Tensor) -> Tensor:
        """Channels last: 1.6 times faster convolutions on a CPU, and what tensor cores want."""
        return x.contiguous(memory_format=torch.channels_last)


_ON_HOST = ("buffer", "near")
_NUMBERS = ("clock", "updates", "salt", "rate", "cbp")


def _ids(ids: Iterable[int]) -> Ids:
    return np.fromiter(ids, np.int64)


def _numpy(tensor: Tensor) -> Array:
    """A copy in row-major order on the host."""
    return np.array(tensor.detach().cpu().numpy(), order="C")

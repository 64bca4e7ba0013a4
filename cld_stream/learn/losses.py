"""The loss: one function per equation. L = instance term + lambda x cross-level term, each the mean of two views.

Paper: Wang, Liu, Yu 2021 (https://arxiv.org/abs/2008.03813).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from cld_stream.learn.groups import Grouping
from cld_stream.learn.precision import fast_float32
from cld_stream.learn.softmax import Hide, log_sum_exp

__all__ = [
    "bank_level_loss", "byol_loss", "cross_level_loss", "info_nce", "nce_loss", "nce_normaliser", "npid_loss",
    "nt_xent",
]  # fmt: skip

# Shape suffixes: N frames of the batch, M rows of the bank, m drawn rows, D features, K groups or queued keys.


def npid_loss(
    f_ND: Tensor,
    bank_MD: Tensor,
    own_N: Tensor,
    temperature: float,
    *,
    live_M: Tensor | None = None,
    other_ND: Tensor | None = None,
    newborn_N: Tensor | None = None,
    weight_M: Tensor | None = None,
    near_2P: Tensor | None = None,
) -> Tensor:
    """Each frame must find its own row among all live rows of the bank: C(f_I(x_i), v_i, v_{j != i}; T_I).

    Wu et al. 2018, eq. 2 (https://arxiv.org/abs/1805.01978), without the noise-contrastive
    shortcut. Departures, because the frames of a stream come and go: dead rows do not stand in the
    softmax; a frame whose row was filled in this very step (`newborn_N`), or that has no row
    (`own_N` = -1), takes the other view as its positive. A newborn row is still a negative of the
    other frames.

    Args:
        f_ND: unit instance features of one view.
        bank_MD: unit rows; never receives a gradient.
        own_N: row of each frame, -1 = none. A frame's own row must be live.
        temperature: T_I > 0.
        live_M: which rows take part; None = all.
        other_ND: unit features of the other view; never receives a gradient. Needed by newborn
            frames and by those without a row.
        newborn_N: whose row was born in this step; None = nobody's.
        weight_M: logarithm of how much each row counts as a negative; None = each counts once.
        near_2P: pairs of a frame and a row that is no negative of it.

    Returns:
        Mean over the batch, in nats; log(live rows) means "knows nothing".

    Raises:
        ValueError: a frame needs the other view, but it is not given.
    """
    if other_ND is None and (newborn_N is not None or bool((own_N < 0).any())):
        raise ValueError("frames without a filled row need the other view as their positive")
    has_row_N, row_N = own_N >= 0, own_N.clamp(min=0)
    positive_ND = bank_MD[row_N].float()
    if other_ND is not None:
        by_row_N = has_row_N if newborn_N is None else has_row_N & ~newborn_N
        positive_ND = torch.where(by_row_N[:, None], positive_ND, other_ND.float())
    if live_M is not None:
        weight_M = torch.zeros_like(live_M, dtype=torch.float32) if weight_M is None else weight_M.float()
        weight_M = weight_M.masked_fill(~live_M, -math.inf)

    def hide(logits_NC: Tensor, piece: slice) -> None:
        """The dead, each frame's own row, and near-repeats."""
        if weight_M is not None:
            logits_NC += weight_M[piece]
        if near_2P is not None:
            frame_P, row_P = near_2P[:, (near_2P[1] >= piece.start) & (near_2P[1] < piece.stop)]
            logits_NC[frame_P, row_P - piece.start] = -math.inf
        column_N1 = (own_N - piece.start)[:, None]
        here_N1 = (column_N1 >= 0) & (column_N1 < logits_NC.shape[1])
        column_N1 = column_N1.clamp(0, logits_NC.shape[1] - 1)
        logits_NC.scatter_(1, column_N1, logits_NC.gather(1, column_N1).masked_fill_(here_N1, -math.inf))

    return _discrimination(f_ND, positive_ND, bank_MD, temperature, hide)


def nce_loss(
    f_ND: Tensor,
    positive_ND: Tensor,
    noise_mD: Tensor,
    temperature: float,
    log_z: Tensor,
    weight_Nm: Tensor | None = None,
) -> Tensor:
    """Each frame must tell its own row from m rows of noise: -log h(v_i) - sum over noise of log(1 - h(v_j)).

    Wu et al. 2018, eq. 7 and 8 (https://arxiv.org/abs/1805.01978): h = P / (P + m P_n), P = exp(v.f/T) / Z, noise
    P_n = 1 / M uniform over the rows. With Z = z M the number of rows cancels, h = sigmoid(v.f/T - log(m z)), so
    that rows may come and go. Departure: the public implementations add 1e-7 to denominators, which need none here.

    Args:
        f_ND: unit instance features of one view.
        positive_ND: unit row (or other view) of each frame; never receives a gradient.
        noise_mD: m rows drawn uniformly from the live ones; never receive a gradient.
        temperature: T_I > 0.
        log_z: scalar, log of the mean exponential over the rows; see `nce_normaliser`.
        weight_Nm: how much each row counts as noise of each frame, in [0, 1]; None = each counts once.

    Returns:
        Mean over the batch, in nats.
    """
    positive_N, noise_Nm = _logits(f_ND, positive_ND, noise_mD, temperature)
    # m = 0: there is no noise, and nothing to tell it from
    line = math.log(max(1, len(noise_mD))) + log_z
    noise_Nm = F.softplus(noise_Nm - line)
    noise_N = (noise_Nm if weight_Nm is None else noise_Nm * weight_Nm).sum(1)
    return (F.softplus(line - positive_N) + noise_N).mean()


@torch.no_grad()
def nce_normaliser(f_ND: Tensor, positive_ND: Tensor, noise_mD: Tensor, temperature: float) -> Tensor:
    """log z, with z the mean of exp(v.f/T) over a batch's positives and noise: the estimate of Z / M for `nce_loss`."""
    positive_N, noise_Nm = _logits(f_ND, positive_ND, noise_mD, temperature)
    logits = torch.cat([positive_N[:, None], noise_Nm], 1)
    return logits.logsumexp((0, 1)) - math.log(logits.numel())


def info_nce(
    q_ND: Tensor, k_ND: Tensor, queue_KD: Tensor, temperature: float, others_NK: Tensor | None = None
) -> Tensor:
    """Each query must find its own key among the keys of the queue: C(q_i, k_i, queue; T_I).

    He et al. 2020, eq. 1 (https://arxiv.org/abs/1911.05722).

    Args:
        q_ND, k_ND: unit features of two views of the same frames; k never receives a gradient.
        queue_KD: unit features of other frames; never receive a gradient.
        temperature: T_I > 0.
        others_NK: which keys are negatives of which query; None = all.

    Returns:
        Mean over the batch, in nats; log(1 + K) means "knows nothing".
    """

    def hide(logits_NC: Tensor, piece: slice) -> None:
        if others_NK is not None:
            logits_NC.masked_fill_(~others_NK[:, piece], -math.inf)

    return _discrimination(q_ND, k_ND, queue_KD, temperature, hide)


def byol_loss(p_ND: Tensor, z_ND: Tensor) -> Tensor:
    """Each prediction must point where the target does: |norm(p) - norm(z)|^2 = 2 - 2 cos(p, z).

    Grill et al. 2020, eq. 2 (https://arxiv.org/abs/2006.07733).

    Args:
        p_ND: predictions from one view, of any length.
        z_ND: the target's features of the other view; never receive a gradient.

    Returns:
        Mean over the batch, in [0, 4]; 2 means "knows nothing".
    """
    p_ND, z_ND = F.normalize(p_ND.float()), F.normalize(z_ND.detach().float())
    return (2 - 2 * (p_ND * z_ND).sum(1)).mean()


def nt_xent(f1_ND: Tensor, f2_ND: Tensor, temperature: float, near_NN: Tensor | None = None) -> Tensor:
    """Each of the 2N views must find the other view of its frame among the 2N - 1 others.

    Chen et al. 2020, eq. 1 (https://arxiv.org/abs/2002.05709).

    Args:
        f1_ND, f2_ND: unit features of the two views of the same frames; both receive gradients.
        temperature: T_I > 0.
        near_NN: which frames are no negatives of each other; None = all are.

    Returns:
        Mean over all views, in nats; log(2N - 1) means "knows nothing".
    """
    with fast_float32(f1_ND.device):
        n, f_VD = len(f1_ND), torch.cat([f1_ND, f2_ND]).float()
        other_V = torch.arange(2 * n, device=f_VD.device).roll(n)
        hidden_VV = torch.eye(2 * n, dtype=torch.bool, device=f_VD.device)
        if near_NN is not None:
            hidden_VV |= near_NN.repeat(2, 2).scatter(1, other_V[:, None], value=False)
        logits_VV = (f_VD @ f_VD.T / temperature).masked_fill(hidden_VV, -math.inf)
        return F.cross_entropy(logits_VV, other_V)


def cross_level_loss(g1_ND: Tensor, g2_ND: Tensor, grouping: Grouping, temperature: float) -> Tensor:
    """Each view must find its frame's group among the groups of the other view.

    1/2 [C(f_G(x_i), M'_{Gamma'(i)}, M'_other; T_G) + C(f_G(x'_i), M_{Gamma(i)}, M_other; T_G)].
    The gradient flows through the centroids; the zero centroids of empty groups stand in the
    softmax with logit 0, as in the authors' code.

    Args:
        g1_ND, g2_ND: unit group features of the two views of the same frames, in the same order.
        grouping: labels_N and centroids_KD of the rows of one view, such as `local_kmeans` with its k and iters.
        temperature: T_G > 0.

    Returns:
        In nats; log(K) means "knows nothing".
    """
    labels1_N, centroids1_KD = grouping(g1_ND)
    labels2_N, centroids2_KD = grouping(g2_ND)
    with fast_float32(g1_ND.device):
        first = F.cross_entropy(g1_ND.float() @ centroids2_KD.T / temperature, labels2_N)
        second = F.cross_entropy(g2_ND.float() @ centroids1_KD.T / temperature, labels1_N)
    return (first + second) / 2


def bank_level_loss(
    g1_ND: Tensor, g2_ND: Tensor, labels1_N: Tensor, labels2_N: Tensor, centroids_KD: Tensor, temperature: float
) -> Tensor:
    """Each view must find its frame's group among the persistent groups of the whole bank.

    1/2 [C(f_G(x_i), B_{Gamma(i)}, B_other; T_G) + C(f_G(x'_i), B_{Gamma(i)}, B_other; T_G)], with B the centroids and
    Gamma the labels of `IncrementalKMeans`. Not in the paper: its groups see one mini-batch and are forgotten. The
    centroids stay out of the gradient, as they are made of other frames and of earlier encoders. Unlike local
    centroids they have length one, so that the same temperature is sharper here.

    Args:
        g1_ND, g2_ND: unit group features of the two views of the same frames, in the same order.
        labels1_N, labels2_N: group that each view must find, 0..K-1: that of the frame's own row; for a frame without
            a row the one nearest to its *other* view.
        centroids_KD: unit rows, K >= 1; never receive a gradient.
        temperature: T_G > 0.

    Returns:
        Mean over the batch, in nats; log(K) means "knows nothing".
    """
    with fast_float32(g1_ND.device):
        centroids_DK = centroids_KD.detach().float().T / temperature
        first = F.cross_entropy(g1_ND.float() @ centroids_DK, labels1_N)
        second = F.cross_entropy(g2_ND.float() @ centroids_DK, labels2_N)
    return (first + second) / 2


def _logits(q_ND: Tensor, positive_ND: Tensor, other_KD: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """(N) with one's own positive and (N x K) with all others, in float32; only the queries receive a gradient."""
    with fast_float32(q_ND.device):
        q_ND = q_ND.float() / temperature
        return (q_ND * positive_ND.detach().float()).sum(1), q_ND @ other_KD.detach().float().T


def _discrimination(
    q_ND: Tensor, positive_ND: Tensor, other_MD: Tensor, temperature: float, hide: Hide | None = None
) -> Tensor:
    """Mean of C(q, pos, neg; T) = -log[exp(q.pos/T) / (exp(q.pos/T) + sum over negatives of exp(q.neg/T))], in nats.

    Only the queries receive a gradient. All in float32.
    """
    q_ND, positive_ND = q_ND.float() / temperature, positive_ND.detach().float()
    positive_N = (q_ND * positive_ND).sum(1)
    negative_N = log_sum_exp(q_ND, other_MD.detach().float(), hide)
    return (torch.logaddexp(positive_N, negative_N) - positive_N).mean()

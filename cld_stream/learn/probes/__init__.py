"""What features are worth: with labels, and without any. Protocols are stated where they stand."""

from cld_stream.learn.probes.fine_tuning import Classifier, choose_labelled, fine_tune
from cld_stream.learn.probes.grouping import group_coherence, nmi, purity
from cld_stream.learn.probes.health import group_entropy, neighbour_agreement
from cld_stream.learn.probes.linear import PENALTIES, LinearProbe, linear_probe
from cld_stream.learn.probes.neighbours import Retrieval, knn_classify, retrieval, target_ranks
from cld_stream.learn.probes.spread import alignment, effective_rank, feature_std, uniformity

__all__ = [
    "PENALTIES", "Classifier", "LinearProbe", "Retrieval", "alignment", "choose_labelled", "effective_rank",
    "feature_std", "fine_tune", "group_coherence", "group_entropy", "knn_classify", "linear_probe",
    "neighbour_agreement", "nmi", "purity", "retrieval", "target_ranks", "uniformity",
]  # fmt: skip

"""Embedding frames by whatever number they come."""

import numpy as np
import torch
from torch import Tensor, nn

from cld_stream.config import AugmentSettings
from cld_stream.pipelines.embed import Embedder
from tests.pipelines.published import ENCODER, scene, weights

PIXELS = np.stack([scene(i, 0) for i in range(21)])
ASPECT = np.full(21, 1.5, np.float32)


def test_features_do_not_depend_on_the_number_that_are_embedded_at_a_time() -> None:
    whole = Embedder(ENCODER, weights(), "stretch").embed(PIXELS, ASPECT)
    for batch in (1, 5, 16):
        pieces = Embedder(ENCODER, weights(), "stretch", batch=batch).embed(PIXELS, ASPECT)
        for space, values in whole.items():
            assert pieces[space].shape == values.shape
            np.testing.assert_allclose(pieces[space].astype(np.float32), values.astype(np.float32), atol=2e-3)


def test_the_encoder_meets_few_sizes_of_batch() -> None:
    """For each the libraries keep code and memory: a daemon's would grow for hours."""
    embedder, met = Embedder(ENCODER, weights(), "stretch", batch=16), set[int]()

    def meet(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        met.add(len(given[0]))

    embedder.encoder.register_forward_pre_hook(meet)
    for n in range(len(PIXELS) + 1):
        assert len(embedder.embed(PIXELS[:n], ASPECT[:n])["instance"]) == n
        first, second = embedder.embed_two_views(PIXELS[:n], ASPECT[:n], AugmentSettings(), seed=n)
        assert len(first["group"]) == len(second["group"]) == n
    assert met == {1, 2, 4, 8, 16}
    assert torch.is_grad_enabled()

"""Encoders that load nothing: edges of pictures, hashed words of texts; fixed functions, no extra package."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from diva_ray.config import EncoderConfig
from diva_ray.data.encoders.encoder import IMAGE, TEXT, Encoder
from diva_ray.data.encoders.network import finish, form_of

DIRECTIONS = 8
GRIDS = (8, 4)  # cells along a side
COLOURS = 8  # likewise
LUMA = (0.299, 0.587, 0.114)


def edges(pictures: Sequence[np.ndarray]) -> Tensor:
    """Return (n, 832) features of pictures: edges by direction on two grids, and mean colours on an 8 x 8 grid.

    How much brightness rises in each of 8 directions within the cells of a grid, against the cells around (as in
    histograms of oriented gradients, Dalal and Triggs 2005); square roots are taken.
    """
    x = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float().div_(255)
    grey = (x * torch.tensor(LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)
    grey = functional.pad(grey, (1, 1, 1, 1), mode="replicate")
    across = grey[:, :, 1:-1, 2:] - grey[:, :, 1:-1, :-2]
    down = grey[:, :, 2:, 1:-1] - grey[:, :, :-2, 1:-1]
    angles = [2 * math.pi * k / DIRECTIONS for k in range(DIRECTIONS)]
    rising = torch.cat([(across * math.cos(a) + down * math.sin(a)).relu_() for a in angles], 1)
    found = []
    for grid in GRIDS:
        cells = functional.adaptive_avg_pool2d(rising, grid)
        energy = functional.pad(cells.square().sum(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
        around = functional.avg_pool2d(energy, 3, 1)
        found.append((cells / (around + 1e-4).sqrt()).sqrt().flatten(1))
    found.append(functional.adaptive_avg_pool2d(x, COLOURS).flatten(1))
    return torch.cat(found, 1)


def edge_encoder(config: EncoderConfig, device: str, precision: str) -> Encoder:
    """Return the default encoder of pictures; it runs on the CPU."""
    form = form_of(config, 64, filter="bilinear")

    @torch.inference_mode()
    def run(pictures: Sequence[np.ndarray]) -> Tensor:
        return finish(edges(pictures), config.normalize)

    return Encoder(IMAGE, form, run, None, "cpu", 64, "edges-1")


BUCKETS = 1 << 18
GRAMS = (3, 5)  # letters
WORD_WIDTH = 2048


def word_encoder(config: EncoderConfig, device: str, precision: str) -> Encoder:
    """Return the default encoder of texts, (n, 2048): which n-grams of 3 to 5 letters within words occur.

    They are hashed (Weinberger et al. 2009), scaled to unit length, and go through a sparse random projection (Li,
    Hastie, Church 2006) that is the same in every run. Rows do not depend on each other.
    """
    from scipy import sparse
    from sklearn.feature_extraction.text import HashingVectorizer

    vectorizer: Any = HashingVectorizer(
        analyzer="char_wb", ngram_range=GRAMS, n_features=BUCKETS, alternate_sign=False, norm="l2", binary=True,
        dtype=np.float32,  # type: ignore[arg-type]  # the stub knows its default only
    )  # fmt: skip
    generator = np.random.Generator(np.random.PCG64(0))
    place = generator.integers(0, WORD_WIDTH, BUCKETS)
    sign = generator.integers(0, 2, BUCKETS).astype(np.float32) * 2 - 1
    projection = sparse.csr_matrix((sign, place, np.arange(BUCKETS + 1)), (BUCKETS, WORD_WIDTH))

    def run(texts: Sequence[str]) -> Tensor:
        return finish(torch.from_numpy((vectorizer.transform(texts) @ projection).toarray()), config.normalize)

    return Encoder(TEXT, None, run, None, "cpu", 256, "words-1")

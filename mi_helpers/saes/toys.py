"""A toy with known features, on which a sparse autoencoder can be marked right or wrong.

More features than dimensions, each a fixed direction, few on at a time: superposition (Elhage et
al. 2022, Toy Models of Superposition). An SAE that works finds the directions again. Data, training
and the score's matching are sae-lens's own.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
from sae_lens.synthetic import ActivationGenerator, FeatureDictionary
from sae_lens.synthetic.training import train_toy_sae
from torch import Tensor

from .train import progress


@dataclass(frozen=True, eq=False)
class Toy:
    """Features with the directions `directions`, each on with the same probability."""

    vectors: FeatureDictionary
    firing: ActivationGenerator
    on: float  # features on at a time, on average

    @property
    def directions(self) -> Float[Tensor, "feature d"]:
        """Unit vectors."""
        return self.vectors.feature_vectors.detach()

    @torch.no_grad()
    def draw(self, n: int) -> Float[Tensor, "n d"]:
        """`n` activations: sums of the directions of the features that are on."""
        return self.vectors(self.firing.sample(n))


def toy(features: int = 64, width: int = 24, on: float = 2.0, seed: int = 0) -> Toy:
    """`features` random directions in `width` dimensions, `on` of them on at a time on average,
    with sizes of 1 ± 0.3."""
    if not 0 < on <= features:
        raise ValueError(f"between 0 and {features} features can be on on average, got {on}")
    torch.manual_seed(seed)
    vectors = FeatureDictionary(features, width, bias=False, initializer=None)
    firing = ActivationGenerator(features, on / features, std_firing_magnitudes=0.3)
    return Toy(vectors, firing, on)


def train(of: Toy, samples: int = 400_000, seed: int = 0) -> BatchTopKTrainingSAE:
    """A BatchTopK autoencoder with as many features as the toy has, trained on draws from it."""
    torch.manual_seed(seed)
    features, width = of.directions.shape
    sae = BatchTopKTrainingSAE(
        BatchTopKTrainingSAEConfig(d_in=width, d_sae=features, k=of.on, decoder_init_norm=1.0)
    )
    batch = 256
    decay = samples // (3 * batch)
    with progress(False):
        train_toy_sae(sae, of.vectors, of.firing, samples, batch, lr=3e-3, lr_decay_steps=decay)
    return sae


def recovery(
    found: Float[Tensor, "k d"], true: Float[Tensor, "feature d"]
) -> Float[Tensor, "feature"]:
    """For each true direction, the largest cosine with one that was found, sign left aside."""
    cosines = (
        torch.nn.functional.normalize(true, dim=-1)
        @ torch.nn.functional.normalize(found.detach().to(true), dim=-1).T
    )
    return cosines.abs().amax(-1)


def principal(x: Float[Tensor, "n d"]) -> Float[Tensor, "d d"]:
    """Principal directions of activations, the largest variance first: what to compare with."""
    return torch.linalg.eigh(x.T.cov())[1].T.flip(0)

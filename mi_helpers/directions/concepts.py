"""Concepts as directions between the unembeddings of word pairs.

`concept_pairs` turns the shipped word tables into pairs of single tokens of a model; `whiten` gives
the coordinates in which the causal inner product is the ordinary one; `direction` and `left_out`
are a concept's direction and how far each pair goes along the direction of the others; `alignment`
compares all concepts with each other, on different rows of their tables.

Source: Park, Choe & Veitch 2024, arXiv 2311.03658.
"""

from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import torch
from einops import reduce
from jaxtyping import Float, Int
from torch import Tensor

from ..tasks.tokens import word_token

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

WORDS = Path(__file__).parents[1] / "data" / "concepts" / "words.txt"


@dataclass(frozen=True)
class Concept:
    """Pairs of tokens that differ in one concept, and the table and rows that they come from."""

    name: str
    table: str
    rows: Int[Tensor, "pair"]
    pairs: Int[Tensor, "pair base_target=2"]

    def __len__(self) -> int:
        return len(self.pairs)


def concept_pairs(model: "TransformerBridge", words: Path = WORDS) -> list[Concept]:
    """The concepts of a file of word tables, with those pairs whose words are one token each.

    A word is taken with a space before it, as it stands inside a sentence; a pair of equal words
    is left out. A concept may have no pairs at all in a small vocabulary.

    Raises ValueError for a heading without concepts and for a row with another number of words.
    """
    found = []
    for section in words.read_text(encoding="utf-8").split("\n= ")[1:]:
        heading, *lines = section.splitlines()
        table, _, names = heading.partition(" : ")
        columns, concepts = table.split(), names.split()
        rows = [row.split() for line in lines for row in line.split(";") if row.strip()]
        if not concepts:
            raise ValueError(f"the heading {heading!r} of {words.name} names no concepts")
        if wrong := [row for row in rows if len(row) != len(columns)]:
            raise ValueError(f"{words.name}, {table}: {wrong[0]} does not fill {columns}")
        tokens = [[word_token(model, word) for word in row] for row in rows]
        for name in concepts:
            base, target = (columns.index(column) for column in name.split("→"))
            kept = {
                (row[base], row[target]): i
                for i, row in enumerate(tokens)
                if None not in (row[base], row[target]) and row[base] != row[target]
            }
            pairs = torch.tensor(list(kept), dtype=torch.long).reshape(-1, 2)
            found.append(Concept(name, table, torch.tensor(list(kept.values())), pairs))
    return found


def whiten(
    unembedding: Float[Tensor, "token d_model"],
) -> tuple[Float[Tensor, "d_model d_model"], Float[Tensor, "d_model d_model"]]:
    """Cov^(-1/2) and Cov^(1/2) of the rows of an unembedding.

    ⟨γ, γ'⟩ = γᵀ Cov⁻¹ γ' is the ordinary inner product of the rows times the first. Multiplied by
    the second, final residuals λ keep their logits: (γ Cov^(-1/2)) · (λ Cov^(1/2)) = γ · λ.

    Raises ValueError where the rows do not span the space, so that Cov has no inverse.

    Source: section 3, equation 3.3.
    """
    centred = (unembedding - reduce(unembedding, "token d -> d", "mean")).double()
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(centred))
    if values[0] <= 1e-10 * values[-1]:
        raise ValueError(
            f"{len(centred)} unembeddings do not span their {len(values)} dimensions: "
            "their covariance has no inverse"
        )
    root = values.sqrt()
    return (vectors / root) @ vectors.T, (vectors * root) @ vectors.T


def steps(
    vectors: Float[Tensor, "token d"], pairs: Int[Tensor, "pair 2"]
) -> Float[Tensor, "pair d"]:
    """From the first token of each pair to the second."""
    return vectors[pairs[:, 1]] - vectors[pairs[:, 0]]


def direction(
    vectors: Float[Tensor, "token d"], pairs: Int[Tensor, "pair 2"]
) -> Float[Tensor, "d"]:
    """The mean step, at length 1. Source: section 4 and appendix B."""
    return torch.nn.functional.normalize(steps(vectors, pairs).mean(0), dim=0)


def left_out(
    vectors: Float[Tensor, "token d"], pairs: Int[Tensor, "pair 2"]
) -> Float[Tensor, "pair"]:
    """How far each pair steps along the direction of the others. Source: section 4, figure 2.

    The others are the pairs without a token of its own: a word that stands in several pairs would
    bring a part of its step into the direction.

    Raises ValueError where no such pair is left.
    """
    shared = (pairs[:, None, :, None] == pairs[None, :, None, :]).flatten(2).any(-1)
    if shared.all(1).any():
        raise ValueError(f"each of the {len(pairs)} pairs needs another one of other tokens")
    step = steps(vectors, pairs)
    others = torch.nn.functional.normalize((~shared).to(step.dtype) @ step, dim=1)
    return (others * step).sum(1)


def alignment(vectors: Float[Tensor, "token d"], concepts: list[Concept]) -> pd.DataFrame:
    """|cos| of every two concepts' directions: columns first, second, cos, related, shares.

    Concepts are related that come from one table, such as the forms of verbs. Such concepts share
    words, and what shares words is aligned in any space. So each cosine is of directions from
    different rows: the even rows of one and the odd rows of the other, and the other way round.
    Rows of different tables have nothing to do with each other; `shares` says whether the two
    concepts have a token in common.
    """
    halves = [
        [direction(vectors, concept.pairs[concept.rows % 2 == half]) for half in (0, 1)]
        for concept in concepts
    ]
    table = []
    for i, j in combinations(range(len(concepts)), 2):
        cos = [abs(float(halves[i][half] @ halves[j][1 - half])) for half in (0, 1)]
        first, second = concepts[i], concepts[j]
        related = first.table == second.table
        shares = bool(torch.isin(first.pairs, second.pairs).any())
        table.append((first.name, second.name, sum(cos) / 2, related, shares))
    return pd.DataFrame(table, columns=["first", "second", "cos", "related", "shares"])

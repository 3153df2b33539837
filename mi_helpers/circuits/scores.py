"""What can be made of a table of edge scores: scores of nodes, and of edges that stay with new
prompts."""

import numpy as np
import pandas as pd


def bootstrapped(
    scores: pd.DataFrame, level: float = 0.95, draws: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """Means over prompts of `attribute(..., per_prompt=True)`, and how stable their signs are.

    Prompts are drawn with replacement `draws` times. `same_sign` is the share of draws in which the
    mean has the sign that it has over all prompts; edges below `level` get a score of 0, so that
    circuits made of the table take them last. Returns edge, sender, receiver, score, mean,
    same_sign. Source: Nikankin et al. 2025, arXiv 2510.25786 (bootstrap of edge scores).

    Raises ValueError for scores that are not by prompt.
    """
    if "prompt" not in scores:
        raise ValueError("the bootstrap needs attribute(..., per_prompt=True)")
    edges = scores.loc[scores["prompt"] == scores["prompt"].iloc[0]]
    each = scores["score"].to_numpy().reshape(-1, len(edges))  # [prompt, edge]
    rng, n = np.random.default_rng(seed), len(each)
    mean, same = each.mean(0), np.zeros(len(edges))
    for _ in range(draws):
        drawn = rng.multinomial(n, np.full(n, 1 / n)) @ each  # n times the mean of a draw
        same += np.sign(drawn) == np.sign(mean)
    found = edges[["edge", "sender", "receiver"]].reset_index(drop=True)
    found = found.assign(mean=mean, same_sign=same / draws)
    return found.assign(score=found["mean"].where(found["same_sign"] >= level, 0.0))


def head_importance(scores: pd.DataFrame) -> pd.DataFrame:
    """Scores of whole nodes from the scores of their edges: sender, layer, score, importance.

    `score` is the sum over a node's edges. With "eap" it is exactly the gradient at the node times
    its change, since a node's gradient is the sum of its readers'. `importance` is its absolute
    value over the root of the sum of squares in its layer (the embedding is a layer by itself).
    Source: Michel, Levy & Neubig 2019, arXiv 1905.10650; as in Conmy et al. 2023, appendix D.2.
    """
    table = scores.groupby("sender", sort=False, as_index=False)["score"].sum()
    layer = table["sender"].str.extract(r"[AM](\d+)")[0].astype(float).fillna(-1).astype(int)
    table.insert(1, "layer", layer)
    norm = table["score"].pow(2).groupby(layer).transform("sum").pow(0.5)
    return table.assign(importance=table["score"].abs() / norm.where(norm > 0, 1.0))

"""Circuits on prompts of several lengths: each result is that of the prompt by itself."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from mi_helpers import circuits
from mi_helpers.circuits.evaluation import Ablation
from mi_helpers.circuits.graph import Circuit
from mi_helpers.circuits.runs import record
from mi_helpers.tasks import PromptPairs
from tests import tiny
from tests.patching.test_own_prompts import table

FAMILIES = ("gpt2", "mistral", "qwen3")  # absolute positions; a window of 8; norms of heads
ABLATIONS = (
    Ablation(),
    Ablation(granularity="head", set="circuit"),
    Ablation(positions=("subject", "END"), direction="restore"),
)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_mixed_set_is_each_prompt_alone(family: str) -> None:
    model, found = tiny.bridge(family), table()
    runs = record(model, PromptPairs.from_table(model, found))
    alone = [record(model, PromptPairs.from_table(model, found.iloc[[i]])) for i in range(3)]
    edges = runs.graph.edges
    circuit = Circuit.of(runs.graph, edges[:: len(edges) // 40])
    for ablation in ABLATIONS:
        values = circuits.evaluate(runs, circuit, ablation)
        own = pd.concat([circuits.evaluate(one, circuit, ablation) for one in alone])
        for column in ("value", "full", "empty"):
            np.testing.assert_allclose(values[column], own[column], atol=2e-5)
        assert (values["value"] - values["full"]).abs().max() > 1e-3
    several: list[dict[str, Any]] = [
        {"method": "eap"},
        {"method": "eap-ig", "steps": 2, "metric": "kl"},
        {"method": "exact", "edges": edges[:: len(edges) // 6]},
    ]
    for options in several:
        scores = circuits.attribute(runs, **options)["score"]
        own = [circuits.attribute(one, **options)["score"] for one in alone]
        np.testing.assert_allclose(scores, np.mean(own, axis=0), atol=2e-5)
        assert scores.abs().max() > 1e-3


def test_the_mean_leaves_padding_out_and_tables_say_what_is_scored() -> None:
    model = tiny.bridge("gpt2")
    pairs = PromptPairs.from_table(model, table("several"), scored="first")
    runs = record(model, pairs)
    mean = runs.ablated("mean")("z", 1)[0]
    z = runs.corrupted.activation("z", 1)
    np.testing.assert_allclose(mean[6], z[:, 6].mean(0), atol=1e-6)  # all have seven
    np.testing.assert_allclose(mean[7], z[1:, 7].mean(0), atol=1e-6)
    np.testing.assert_allclose(mean[12], z[1, 12], atol=1e-6)
    assert set(circuits.attribute(runs)["scored"]) == {"first"}
    with pytest.raises(ValueError, match="circuits are scored by one token"):
        record(model, PromptPairs.from_table(model, table("several"), scored="all"))

"""Compile the two tracr programs of the ACDC paper and store their weights.

``pip install tracr-pypi safetensors`` in an environment of its own (only this script needs tracr),
then ``python tests/circuits/tracr/make.py --out tests/circuits/tracr``

`reverse` writes a sequence of 1, 2, 3 backwards; `proportion` says which share of the letters w, x,
y, z up to here are x. Sequences have up to five tokens behind the BOS token. The compiled
transformers have one head a layer, no norms, and biases that are all zero.
Source: Lindner et al. 2023, arXiv 2301.05062 (tracr); Conmy et al. 2023, arXiv
2304.14997, appendix.
"""

from __future__ import annotations

import argparse
import json
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

BOS, LONGEST = "BOS", 5


def programs() -> dict[str, tuple[Any, set]]:
    """Each program in tracr's language, and its letters."""
    lib, rasp = import_module("tracr.compiler.lib"), import_module("tracr.rasp.rasp")
    is_x = rasp.numerical(rasp.tokens == "x")
    return {
        "reverse": (lib.make_reverse(rasp.tokens), {1, 2, 3}),
        "proportion": (lib.make_frac_prevs(is_x), {"w", "x", "y", "z"}),
    }


def arrays(model: Any, output: str) -> dict[str, np.ndarray]:
    """The weights, with a first axis for the layers; x @ w is the layout. `output` begins the names
    of the stream's coordinates that are the output."""
    params = {key: {k: np.asarray(v) for k, v in of.items()} for key, of in model.params.items()}
    if any(of["b"].any() for of in params.values() if "b" in of):
        raise ValueError("this program has biases, and the format has no place for them")
    layers = range(model.model_config.num_layers)
    names = {"query": "attn/query", "key": "attn/key", "value": "attn/value"}
    names |= {"output": "attn/linear", "mlp_in": "mlp/linear_1", "mlp_out": "mlp/linear_2"}
    found = {
        name: np.stack([params[f"transformer/layer_{layer}/{path}"]["w"] for layer in layers])
        for name, path in names.items()
    }
    found["tokens"] = params["token_embed"]["embeddings"]
    found["positions"] = params["pos_embed"]["embeddings"]
    chosen = [label.startswith(output) for label in model.residual_labels]
    found["unembed"] = np.eye(len(chosen))[:, chosen]
    return {name: np.ascontiguousarray(x, dtype=np.float32) for name, x in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="Compile the two tracr programs.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the weights")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    compiling = import_module("tracr.compiler.compiling")
    for name, (program, letters) in programs().items():
        model = compiling.compile_rasp_to_model(program, letters, LONGEST, compiler_bos=BOS)
        codes = model.input_encoder.encoding_map
        about = {
            "vocabulary": json.dumps([str(x) for x in sorted(codes, key=codes.__getitem__)]),
            "stream": json.dumps(model.residual_labels),
            "made_by": f"tracr-pypi {version('tracr-pypi')}",
        }
        found = arrays(model, program.name)
        save_file(found, args.out / f"{name}.safetensors", metadata=about)
        print(name, about["vocabulary"], {k: x.shape for k, x in found.items()})


if __name__ == "__main__":
    main()

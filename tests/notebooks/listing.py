"""Every notebook, with the parameters that its tests change. Add a line when you add a notebook."""

from dataclasses import dataclass, field
from pathlib import Path

from mi_helpers.models import DEFAULT

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"


@dataclass(frozen=True)
class Listed:
    """One notebook and how papermill tests it.

    Attributes:
        name: the file's name without `.ipynb`.
        changed: parameters as on the command line of `mi run -p`; another seed, and sizes small
            enough for half a minute.
        families: the architectures whose tiny random models it must get through; none for a
            notebook without a language model, which then runs once.
        model: the model that its stored outputs and the reference scorecard are of.
        model_free: ids of the claims that hold or fail without a trained language model; all
            others must come out as not applicable on a random one.
        draft: why the notebook is being rewritten, and is not executed until that is done.
    """

    name: str
    changed: dict[str, str] = field(default_factory=lambda: {"SEED": "1"})
    families: tuple[str, ...] = ("gpt2",)
    model: str = DEFAULT
    model_free: frozenset[str] = frozenset()
    draft: str = ""

    @property
    def path(self) -> Path:
        return FOLDER / f"{self.name}.ipynb"


NOTEBOOKS: tuple[Listed, ...] = (
    Listed(
        "00_tour",
        changed={"SEED": "1", "N_PROMPTS": "4"},
        families=("gpt2", "gpt_neox", "llama", "qwen2", "gemma2"),
        model_free=frozenset({"00.all-positions", "00.by-hand", "00.task", "00.position-zero"}),
    ),
    Listed(
        "01_activation_patching",
        changed={"SEED": "1", "N_PROMPTS": "4"},
        families=("gpt2", "gpt_neox", "llama", "qwen2", "gemma2"),
        model_free=frozenset(
            {
                "01.by-hand",
                "01.path-by-hand",
                "01.and-gate",
                "01.or-gate",
                "01.chain-cross-section",
                "01.two-chains",
                "01.edges-split-a-node",
            }
        ),
    ),
    Listed(
        "02_patching_pitfalls",
        changed={"SEED": "1", "N_PROMPTS": "4", "N_TEST": "4", "STEPS": "2", "DRAWS": "5"},
        families=("gpt2", "gpt_neox", "llama", "qwen2", "gemma2"),
        model_free=frozenset(
            {"02.logit-diff-is-blind", "02.fact-needs-both-paths", "02.subspace-illusion"}
        ),
    ),
    Listed(
        "03_stable_regions",
        changed={
            "SEED": "1",
            "N_PAIRS": "30",
            "STEPS": "12",
            "N_CONTROL": "12",
            "N_SUITE": "8",
            "N_PROMPTS": "48",
            "MAP_SIZE": "7",
        },
        families=("gpt2", "gemma2"),
        model_free=frozenset({"03.training", "03.training-each-size", "03.size"}),
    ),
    Listed(
        "04_sensitive_directions",
        changed={"SEED": "1", "N_TEXTS": "6", "CONTEXT": "24", "N_POSITIONS": "2", "N_STEPS": "8"},
        families=("gpt2", "gemma2"),
        model_free=frozenset({"04.directions-have-the-covariance"}),
    ),
    Listed(
        "05_sparse_autoencoders",
        changed={
            "SEED": "1",
            "N_TEXTS": "12",
            "CONTEXT": "48",
            "N_LOSS": "4",
            "TOY_SEEDS": "2",
            "TOY_STEPS": "60",
            "STEPS": "20",
            "N_PASSAGES": "6",
            "N_FEATURES": "6",
        },
        families=("gpt2", "gemma2"),
        model_free=frozenset({"05.toy-recovered", "05.toy-needs-sparsity"}),
    ),
    Listed(
        "06_interaction_basis",
        changed={
            "SEED": "1",
            "NETWORKS": "(0, 1)",
            "N_BLOCKS": "2",
            "N_BASIS": "100",
            "N_TEST": "200",
            "N_NULL": "50",
            "N_DIGITS": "2",
            "N_TEXTS": "6",
            "N_EDGE_TEXTS": "2",
            "N_FEATURES": "4",
            "SOURCES": "4",
        },
        families=("gpt2", "gemma2"),
        model_free=frozenset(
            {
                "06.by-hand",
                "06.linear-diagonal",
                "06.blocks-recovered",
                "06.more-than-whitening",
                "06.correlation-mixes",
                "06.covariance-exact",
                "06.effects-exact",
                "06.projector-exact",
                "06.waves-against-rotation",
                "06.waves-against-pca",
                "06.fewer-edges-attention",
                "06.fewer-edges-mlp",
                "06.fewer-edges-unembedding",
                "06.node-ablation-tied",
                "06.modules-beyond-rewiring",
                "06.digits-first-layer",
                "06.digits-second-layer",
                "06.digits-third-layer",
            }
        ),
    ),
    Listed(
        "07_degeneracy",
        changed={
            "SEED": "1",
            "SEEDS": "2",
            "NETWORKS": "(0, 1)",
            "N_SAMPLES": "128",
            "N_PAIRS": "60",
            "N_STATES": "15",
            "N_BLOCKS": "2",
            "STEPS": "20",
        },
        families=(),
        model="toys",
        model_free=frozenset(
            {
                "07.modular-exactly-beyond-sparse",
                "07.modular-nearly-beyond-sparse",
                "07.by-hand",
                "07.clean-counts",
                "07.activations-free-half",
                "07.gradients-free-half",
                "07.synchronised-free-half",
                "07.moves-leave-output",
                "07.moves-leave-features",
                "07.sampler-known",
                "07.volume-counts-rank",
                "07.synchronised-volume",
                "07.modular-exactly-free",
                "07.modular-nearly-free",
                "07.trained-fewer-directions",
                "07.training-synchronises-beyond-rates",
                "07.trained-synchronised",
                "07.modularity-invariant",
                "07.modules-match-blocks",
            }
        ),
    ),
    Listed(
        "08_circuit_discovery",
        changed={
            "SEED": "1",
            "N_PROMPTS": "4",
            "N_SMALL": "3",
            "STEPS": "2",
            "N_EXACT": "4",
            "SHARE": "0.2",
        },
        families=("gpt2", "llama"),
        model_free=frozenset(
            {
                "08.edge-counts",
                "08.or-gate-acdc",
                "08.or-gate-saturated",
                "08.eap-ranks",
                "08.eap-ig-ranks",
                "08.eap-beyond-noise",
                "08.kl-zero-gradient",
                "08.acdc-keeps-output",
                "08.exact-over-eap",
                "08.ig-over-eap-small",
                "08.acdc-over-eap",
            }
        ),
    ),
    Listed(
        "09_circuit_evaluation",
        changed={
            "SEED": "1",
            "N_PROMPTS": "4",
            "N_SMALL": "2",
            "STEPS": "1",
            "SHARES": "[0.05, 0.2, 1.0]",
            "N_RANDOM": "4",
            "THRESHOLD": "0.3",
        },
        families=("gpt2", "qwen2"),
        model_free=frozenset(
            {
                "09.step-cpr",
                "09.docstring-mean",
                "09.docstring-positions",
                "09.rivals-equal",
                "09.minimal",
                "09.incomplete-beyond",
                "09.order-differs",
            }
        ),
    ),
    Listed(
        "10_features_across_layers",
        changed={
            "SEED": "1",
            "N_TEXTS": "60",
            "N_HELD_OUT": "12",
            "LENGTH": "32",
            "MIN_TOGETHER": "5",
            "N_PAIRS": "2",
            "N_SHOWN": "12",
        },
        families=("gpt2", "gemma2"),
    ),
    Listed(
        "11_ioi_circuit",
        changed={
            "SEED": "1",
            "N_PROMPTS": "4",
            "N_MIRRORED": "8",
            "N_AGAIN": "4",
            "N_DRAWS": "2",
        },
        families=("gpt2",),
        model_free=frozenset({"11.by-hand", "11.class-by-hand"}),
    ),
    Listed(
        "12_sparse_feature_circuits",
        changed={
            "SEED": "1",
            "N_PROMPTS": "4",
            "STEPS": "1",
            "N_CHECKED": "6",
            "SIZES": "(2, 20)",
            "N_RANDOM": "2",
            "N_BIOS": "2",
            "N_HALVES": "2",
        },
        families=("gpt2", "gemma2"),
    ),
    Listed(
        "13_features_at_work",
        changed={
            "SEED": "1",
            "N_TEXTS": "300",
            "N_HELD_OUT": "200",
            "WIDTH": "128",
            "STEPS": "60",
            "N_QUERIES": "10",
            "N_STEERED": "4",
            "N_EACH": "3",
            "DRAWS": "1",
            "N_SENTENCES": "120",
            "N_PASSAGES": "5",
        },
        families=("gpt2",),
        model_free=frozenset(
            {
                "13.sae-over-pca",
                "13.search-kept",
                "13.names-hold",
                "13.families",
                "13.steering",
                "13.steering-over-writing",
            }
        ),
    ),
    Listed(
        "14_circuit_benchmark",
        changed={
            "SEED": "1",
            "N_KNOWN": "4",
            "N_SETS": "1",
            "N_NEW": "8",
            "THRESHOLDS": "[0.01, 1.0]",
            "PENALTIES": "[0.5, 8.0]",
            "STEPS": "5",
            "N_PROMPTS": "4",
            "SHARES": "[0.1, 0.5, 1.0]",
            "N_DRAWS": "4",
        },
        families=("gpt2", "llama"),
        model_free=frozenset(
            {
                "14.story",
                "14.strict",
                "14.acdc-area",
                "14.eap-ig-area",
                "14.eap-below-chance",
                "14.ig-over-edge-sp",
                "14.edge-over-node-sp",
                "14.node-sp-over-eap",
                "14.ig-over-eap",
                "14.eap-over-acdc",
                "14.acdc-over-hisp",
                "14.acdc-resample-over-zero",
                "14.ig-more-faithful",
                "14.overlap-not-faithful",
            }
        ),
    ),
    Listed(
        "15_circuit_reuse",
        changed={
            "SEED": "1",
            "N_PROMPTS": "4",
            "N_TEST": "2",
            "N_RANDOM": "2",
            "N_TEXTS": "10",
        },
        families=("gpt2", "qwen2"),
        model_free=frozenset(
            {
                "15.strings-faithful",
                "15.copy-small",
                "15.copy-nested",
                "15.strings-overlap-tells",
                "15.union-echo",
                "15.union-shift",
                "15.union-beyond-size",
            }
        ),
    ),
    Listed(
        "16_linear_representations",
        changed={"SEED": "1", "N_RANDOM": "200"},
        families=("gpt2", "qwen2"),
        model_free=frozenset({"16.causal-is-invariant", "16.same-for-all-prompts"}),
    ),
    Listed(
        "17_causal_abstraction",
        changed={
            "SEED": "1",
            "N_PAIRS": "300",
            "STEPS": "20",
            "N_INPUTS": "40",
            "N_PROMPTS": "8",
        },
        families=("gpt2", "llama"),
        model_free=frozenset(
            {
                "17.known",
                "17.first-layer-both",
                "17.second-layer",
                "17.beyond-units",
                "17.boundless-keeps",
                "17.boundless-small",
                "17.combined-two-states",
                "17.combined-sums-alone",
                "17.states-told-unseen",
                "17.stopped-early",
                "17.illusion",
            }
        ),
    ),
    Listed(
        "18_compact_proofs",
        changed={"SEED": "1", "N_NETS": "5", "N_EXACT": "1", "STEPS": "300"},
        families=(),
        model="toys",
        model_free=frozenset(
            {
                "18.cubic-certifies-most",
                "18.sound",
                "18.cheaper-is-looser",
                "18.scores-rank-one",
                "18.faithful-by-rows",
                "18.errors-compound",
            }
        ),
    ),
    Listed(
        "19_gradient_routing",
        changed={"SEED": "1", "N_SEEDS": "2", "STEPS": "20", "TOPIC_STEPS": "20"},
        families=(),
        model="toys",
        model_free=frozenset(
            {
                "19.own-beyond-other",
                "19.other-half",
                "19.penalties",
                "19.filtering-leaves-more",
                "19.absorption",
                "19.rest-kept",
            }
        ),
    ),
    Listed(
        "20_sparse_weights",
        changed={"SEED": "1", "N_NETS": "2", "STEPS": "60", "N_PROMPTS": "60"},
        families=(),
        model="toys",
        model_free=frozenset(
            {
                "20.sparsity-costs",
                "20.fewer-edges",
                "20.fewer-edges-bracket",
                "20.fewer-edges-early",
                "20.fewer-edges-cut",
                "20.these-nodes-needed",
                "20.ablated-pass-is-free",
                "20.ablation-localises",
                "20.less-sparse",
                "20.specialised",
                "20.soft-gates-tell",
                "20.hard-gates-tell-less",
                "20.soft-leaks",
            }
        ),
    ),
    Listed(
        "21_identifiability",
        changed={
            "SEED": "1",
            "N_SEEDS": "2",
            "N_WORLDS": "2",
            "N_CAUSAL": "2",
            "STEPS": "20",
            "CAUSAL_STEPS": "20",
        },
        families=(),
        model="toys",
        model_free=frozenset(
            {
                "21.sparse-over-vae",
                "21.sparse-over-vae-free",
                "21.support",
                "21.affine",
                "21.affine-over-plain",
                "21.extrapolates",
                "21.needs-condition",
                "21.near-oracle",
                "21.right-guess",
                "21.right-latents-free",
                "21.right-latents-over-wrong",
            }
        ),
    ),
    Listed(
        "22_patterning",
        changed={"SEED": "1", "N_NETS": "2", "CHAINS": "2", "DRAWS": "20", "STEPS": "30"},
        families=(),
        model="toys",
        model_free=frozenset(
            {
                "22.sampler-known",
                "22.chi-known",
                "22.sums",
                "22.expressed",
                "22.speeds-alone",
                "22.speeds-random",
                "22.delays-alone",
                "22.delays-random",
                "22.signs",
                "22.by-source",
                "22.beyond-guess",
                "22.random-signs",
                "22.held-alone",
                "22.beyond-repeats",
            }
        ),
    ),
    Listed(
        "23_same_computation",
        changed={"SEED": "1", "N_NETS": "4", "N_INPUTS": "20000"},
        families=(),
        model="toys",
        model_free=frozenset(
            {
                "23.closed-form",
                "23.invariant",
                "23.sees-mixing",
                "23.far-when-fitted",
                "23.tracks-function",
                "23.beyond-weights",
                "23.same-function",
                "23.exact-parts",
                "23.commutes",
                "23.few-parts",
            }
        ),
    ),
)

FINISHED = tuple(listed for listed in NOTEBOOKS if not listed.draft)

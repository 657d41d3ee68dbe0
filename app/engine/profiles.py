"""The models Ponder knows by name, and what each one needs.

Knows no torch: what only a loaded tokenizer or configuration can tell is filled in by `loading`.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from app.engine.base import Effort, ReasoningFormat, Sampling

_TIME_IS_UP = (
    "Considering the limited time by the user, I have to give the solution based on the thinking directly now."
)
_QWQ_SAMPLING = Sampling(temperature=0.6, top_p=0.95, top_k=40, min_p=0.0, repetition_penalty=1.0)
_QWQ_BUDGETS: dict[Effort, int] = {"quick": 0, "normal": 8192, "deep": 24576}

CLOSE_TOKEN = ReasoningFormat(
    kind="close_token",
    skipping="Okay, I think I have finished thinking.\n</think>\n\n",
    closing=f"\n\n{_TIME_IS_UP}\n</think>\n\n",
    closing_words=_TIME_IS_UP,
)
HEADINGS = ReasoningFormat(
    kind="headings",
    skipping="**Final Answer**\n\n",
    closing=f"\n\n{_TIME_IS_UP}\n\n**Final Answer**\n\n",
    closing_words=_TIME_IS_UP,
)
TAGS = ReasoningFormat(
    kind="tags",
    skipping="<think>\n\n</think>\n\n",
    closing=f"\n\n{_TIME_IS_UP}\n</think>\n\n",
    closing_words=_TIME_IS_UP,
)
NOTES = ReasoningFormat(
    kind="two_phase",
    opening="Let me work this out step by step.\n1.",
    closing="\n\nFinal answer:",
    closing_words="Final answer:",
)


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model before it is loaded. `source` is a Hub id or a folder; `reasoning` None is found out from its template.

    `is_four_bit` quantizes to NF4 with double quantization while loading, `least_gpu_gib` is the free GPU memory that
    needs.
    """

    name: str
    source: str
    title: str
    about: str
    reasoning: ReasoningFormat | None = None
    sampling: Sampling = _QWQ_SAMPLING
    answer_sampling: Sampling = _QWQ_SAMPLING
    budgets: tuple[tuple[Effort, int], ...] = tuple(_QWQ_BUDGETS.items())
    answer_reserve: int = 2048
    system_prompt: str = ""
    longest_answer: int = 0
    is_demo: bool = False
    is_four_bit: bool = False
    least_gpu_gib: float = 0.0


# Sampling and history advice: model card of QwQ-32B, "Usage Guidelines"
QWQ = ModelSpec(
    name="qwq-32b",
    source="Qwen/QwQ-32B",
    title="QwQ-32B",
    about="Qwen's reasoning model with 32 billion parameters, in 4 bits.",
    reasoning=CLOSE_TOKEN,
    is_four_bit=True,
    least_gpu_gib=21.0,
)
QWQ_PREVIEW = ModelSpec(
    name="qwq-32b-preview",
    source="Qwen/QwQ-32B-Preview",
    title="QwQ-32B-Preview",
    about="The first QwQ, in 4 bits. It does not mark its reasoning; the answer begins at its last heading.",
    reasoning=HEADINGS,
    system_prompt=(
        "You are a helpful and harmless assistant. You are Qwen developed by Alibaba. You should think step-by-step."
    ),
    is_four_bit=True,
    least_gpu_gib=21.0,
)
DEMO = ModelSpec(
    name="demo",
    source="HuggingFaceTB/SmolLM2-135M-Instruct",
    title="SmolLM2-135M (demo)",
    about=(
        "A small stand-in that runs on any computer. It was never trained to reason: Ponder asks it for notes and then "
        "for an answer, and both are often wrong."
    ),
    reasoning=NOTES,
    # A repetition penalty is right for a model this small, and wrong for QwQ
    sampling=Sampling(temperature=0.6, top_p=0.95, top_k=40, repetition_penalty=1.1),
    answer_sampling=Sampling(temperature=0.3, top_p=0.95, top_k=40, repetition_penalty=1.1),
    budgets=(("quick", 0), ("normal", 96), ("deep", 256)),
    answer_reserve=256,
    system_prompt="You are a helpful assistant. First think in short numbered notes, then give the final answer.",
    longest_answer=512,
    is_demo=True,
)
KNOWN = {spec.name: spec for spec in (DEMO, QWQ, QWQ_PREVIEW)}


def spec_for(setting: str, free_gpu_gib: float) -> ModelSpec:
    """The model a setting means: a known name, "auto", a Hub id or a folder.

    "auto" is QwQ-32B where `free_gpu_gib` has room for it, else the demo model.
    """
    if setting == "auto":
        return QWQ if free_gpu_gib >= QWQ.least_gpu_gib else DEMO
    if setting in KNOWN:
        return KNOWN[setting]
    folder = Path(setting).expanduser()
    is_folder = folder.is_dir()
    name = folder.resolve().name if is_folder else setting
    named = _named_like(name.rsplit("/", 1)[-1].lower())
    like = named or (_built_like(folder) if is_folder else None)
    return ModelSpec(
        name=name,
        source=str(folder) if is_folder else setting,
        title=like.title if like and not named else name,
        about=like.about if like else "A model of the operator's choice.",
        reasoning=like.reasoning if like else None,
        system_prompt=like.system_prompt if like else "",
        is_four_bit=like is not None,
        least_gpu_gib=like.least_gpu_gib if like else 0.0,
    )


def _named_like(name: str) -> ModelSpec | None:
    """The QwQ that a copy's name tells of: "qwq-32b-preview-bnb-4bit", "qwq-32b"."""
    return QWQ_PREVIEW if name.startswith("qwq-32b-preview") else QWQ if name.startswith("qwq-32b") else None


def _built_like(folder: Path) -> ModelSpec | None:
    """The QwQ whose shape and chat template a folder of any name holds, such as a snapshot in the Hub's cache."""
    try:
        config = json.loads((folder / "config.json").read_text())
        shape = tuple(config.get(key) for key in ("model_type", "hidden_size", "num_hidden_layers"))
        in_a_file = folder / "chat_template.jinja"
        settings = folder / "tokenizer_config.json"
        template = in_a_file.read_text() if in_a_file.exists() else json.loads(settings.read_text())["chat_template"]
    except (OSError, ValueError, KeyError, AttributeError):
        return None  # what is wrong with the folder is said when it is loaded
    if shape != ("qwen2", 5120, 64) or not isinstance(template, str):
        return None
    # A template's source writes a line break as two characters
    if "<|im_start|>assistant\\n<think>" in template:
        return QWQ
    return QWQ_PREVIEW if QWQ_PREVIEW.system_prompt in template else None

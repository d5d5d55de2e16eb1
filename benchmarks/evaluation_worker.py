"""Our side of `make bench-evaluation` in a process of its own.

    python evaluation_worker.py llm_forgetting CASE

CASE is the folder that `harness_worker` gets; the rows are read from MMLU's own files, as a user's would be.
"""

import json
import time
from pathlib import Path
from typing import Any

import torch
from landscape_case import MODEL, load_adapter
from serving import serve

from llm_forgetting.config.sections import DataConfig, LoraConfig
from llm_forgetting.experiment.adapter_evaluation import subject_items
from llm_forgetting.forgetting.intervals import proportion
from llm_forgetting.models.language.encoding import encode
from llm_forgetting.models.language.language_model import LanguageModel
from llm_forgetting.models.language.scoring import merged, score
from llm_forgetting.tasks.sources import open_source


class Ours:
    """`llm-forgetting evaluate`, subject by subject."""

    def __init__(self, folder: Path) -> None:
        case = json.loads((folder / "case.json").read_text())
        torch.set_num_threads(case["threads"])
        self.data = DataConfig(source="local", path=case["mmlu"], max_tokens=case["max_length"])
        self.source = open_source(source="local", path=case["mmlu"])
        self.model = (
            load_adapter(Path(case["adapter"]), lambda message: None)
            if case["adapter"]
            else LanguageModel.load(MODEL, LoraConfig(rank=1), seed=0)
        )
        self.adapted = bool(case["adapter"])
        _ = self.model.packs  # tried out once per model, as its weights are loaded once

    def score(self, subject: str, shots: int) -> dict[str, Any]:
        """Accuracy, its stderr, log-likelihoods (n, k) in the order of the rows, and seconds."""
        part = subject_items(self.source, subject, DataConfig(few_shot=shots), None)
        start = time.perf_counter()
        with merged(self.model) if self.adapted else self.model.without_adapter():
            encoded = encode(self.model.tokenizer, part.items, {subject: part.shots}, self.data.max_tokens)
            scored = score(self.model, encoded, None)
        seconds = time.perf_counter() - start
        found = proportion(scored.correct)
        return {
            "accuracy": found.value,
            "stderr": found.stderr,
            "log_likelihoods": scored.log_likelihoods.tolist(),
            "seconds": seconds,
        }


if __name__ == "__main__":
    serve({"llm_forgetting": Ours}, ("torch", "transformers", "peft"))

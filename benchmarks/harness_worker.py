"""lm-evaluation-harness in a process of its own, offline, for `make bench-evaluation`.

    python harness_worker.py lm_eval CASE

It runs in the peers' environment and knows nothing of our package. CASE is a folder with case.json (backbone, adapter or none,
threads, batch size) and, per subject, SUBJECT_dev.jsonl and SUBJECT_test.jsonl in the columns of cais/mmlu. Tasks are the
harness's own `mmlu_SUBJECT`, with nothing changed but where the rows come from.
"""

import json
import time
from pathlib import Path
from typing import Any

import lm_eval
import torch
import yaml
from lm_eval.api.task import ConfigurableTask
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from peft import PeftModel
from serving import serve
from transformers import AutoModelForCausalLM, AutoTokenizer

DEFINITIONS = Path(lm_eval.__file__).parent / "tasks/mmlu/default"


class Harness:
    """The model in the harness's own wrapper."""

    def __init__(self, folder: Path) -> None:
        case = json.loads((folder / "case.json").read_text())
        torch.set_num_threads(case["threads"])
        model: Any = AutoModelForCausalLM.from_pretrained(case["backbone"], dtype=torch.float32)
        if case["adapter"]:
            model = PeftModel.from_pretrained(model, case["adapter"])
        tokenizer = AutoTokenizer.from_pretrained(case["backbone"])
        self.folder = folder
        self.model = HFLM(
            pretrained=model.eval(), tokenizer=tokenizer, batch_size=case["batch_size"], max_length=case["max_length"]
        )

    def task(self, subject: str, shots: int) -> Any:
        """`mmlu_SUBJECT` as the harness defines it, on the local rows."""
        own = yaml.safe_load((DEFINITIONS / f"mmlu_{subject}.yaml").read_text())
        template = yaml.safe_load((DEFINITIONS / own.pop("include")).read_text())
        files = {split: str(self.folder / f"{subject}_{split}.jsonl") for split in ("dev", "test")}
        config = {**template, **own, "dataset_path": "json", "dataset_name": None}
        task = ConfigurableTask(config={**config, "dataset_kwargs": {"data_files": files}, "num_fewshot": shots})
        task.set_fewshot_seed(1234)
        return task

    def score(self, subject: str, shots: int) -> dict[str, Any]:
        """Accuracy, its stderr, log-likelihoods (n, 4) in the order of the rows, and seconds: requests built and scored."""
        task = self.task(subject, shots)
        start = time.perf_counter()
        found: Any = evaluate(self.model, {f"mmlu_{subject}": task}, bootstrap_iters=1, log_samples=True)
        seconds = time.perf_counter() - start
        samples = sorted(found["samples"][f"mmlu_{subject}"], key=lambda sample: sample["doc_id"])
        scores = found["results"][f"mmlu_{subject}"]
        return {
            "accuracy": scores["acc,none"],
            "stderr": scores["acc_stderr,none"],
            "log_likelihoods": [[float(reply[0]) for reply in sample["filtered_resps"]] for sample in samples],
            "prompt": samples[0]["arguments"]["gen_args_0"]["arg_0"]
            if isinstance(samples[0]["arguments"], dict)
            else samples[0]["arguments"][0][0],
            "seconds": seconds,
        }


if __name__ == "__main__":
    serve({"lm_eval": Harness}, ("lm_eval", "torch", "transformers", "peft"))

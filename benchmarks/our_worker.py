"""Our side of `make bench-curvature` in a process of its own, so that its memory can be told.

    python our_worker.py llm_forgetting CASE

CASE is the folder that `peer_worker` gets; products are of the same parameters, in the same coordinates.
"""

import json
from pathlib import Path
from typing import Any

import torch
from landscape_case import load_adapter
from safetensors.torch import save_file
from serving import Metered, direction, serve

from llm_forgetting.landscape.gauge import Factors
from llm_forgetting.models.adapter.adapted_model import target_layers
from llm_forgetting.models.hessian.products import Method, products_at, supports_tangent_pass
from llm_forgetting.models.language.batches import EncodedItem
from llm_forgetting.tasks.task import Item

PREFIX = "base_model.model."


class Ours:
    """`products_at` the adapter as it is written down."""

    def __init__(self, folder: Path) -> None:
        case = json.loads((folder / "case.json").read_text())
        torch.set_num_threads(case["threads"])
        adapter = Path(case["adapter"])
        self.model = load_adapter(adapter, lambda message: None)
        layer = next(iter(target_layers(self.model.peft_model).values()))
        self.scale = float(layer.scaling["default"])
        self.size = case["batch_size"]
        self.items = [
            EncodedItem(Item(f"case/test/{n}", "case", "", ("", ""), 0), tuple(item["prompt"]), (item["answer"],))
            for n, item in enumerate(case["items"])
        ]
        self.tangent = supports_tangent_pass(self.model)

    def product(self, method: Method, seed: int, into: str) -> dict[str, Any]:
        """H v in the coordinates of lora_A and lora_B, of which our B is `scale` times the second.

        Timed and metered: the product, and going to the point and back; differences choose their step before, and say how good
        they think they are.
        """
        factors = self.model.adapter_factors()
        names = {(n, part): f"{PREFIX}{n}.lora_{part}.default.weight" for n in factors for part in "BA"}
        step = {
            name: Factors(
                self.scale * direction(names[name, "B"], pair.B.shape, seed),
                direction(names[name, "A"], pair.A.shape, seed),
            )
            for name, pair in factors.items()
        }
        settings: Any = {"micro_batch": self.size, "method": method}
        told: dict[str, Any] = {}
        if method == "differences":
            with products_at(self.model, self.items, factors, **settings) as at:
                with Metered() as choosing:
                    at.hessian(step)
                told["own_error"] = at.error  # type: ignore[attr-defined]
                with Metered() as metered:
                    found = at.hessian(step)
        else:
            with Metered() as metered, products_at(self.model, self.items, factors, **settings) as at:
                found = at.hessian(step)
        parts = {names[n, "B"]: self.scale * pair.B for n, pair in found.items()}
        parts |= {names[n, "A"]: pair.A for n, pair in found.items()}
        save_file({name: part.contiguous() for name, part in parts.items()}, into)
        if method == "differences":
            metered.figures["peak_bytes"] = choosing.figures["peak_bytes"]
        return {**metered.figures, **told, "tangent_pass": self.tangent}


if __name__ == "__main__":
    serve({"llm_forgetting": Ours}, ("torch", "transformers", "peft", "numpy"))

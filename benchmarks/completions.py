"""The training loss of prompts with completions by TRL 1.16's SFTTrainer and by us: the same numbers.

    make bench-completions

32 items in three sets: prompts with completions as text, the same as conversations, and conversations of which the assistant's
turns are learnt (with a chat template that marks them, and by the turns where it does not). TRL pads; ours are packed
and padded. Compared are the mean loss over all tokens and its gradient in every weight of an adapter. The last line is
`largest difference: X of the loss, Y of the gradient` (of its largest entry). Status 1 above 1e-5 or 1e-4.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from peers import Worker, environment
from safetensors.torch import load_file

from llm_forgetting.config.sections import LoraConfig, ModelConfig
from llm_forgetting.models.language.answer_loss import answer_losses
from llm_forgetting.models.language.backbones import backbone_location
from llm_forgetting.models.language.encoding import encode
from llm_forgetting.models.language.language_model import LanguageModel
from llm_forgetting.tasks.formats import item_of_record
from llm_forgetting.tasks.records import RecordLayout
from llm_forgetting.tasks.skills import SKILLS, skill_item

AGREEMENT, GRADIENT = 1e-5, 1e-4
# ChatML with marks around what the assistant says, its end token included.
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{% else %}"
    "{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def sets() -> dict[str, list[dict[str, Any]]]:
    """Items by name of their set, in TRL's formats."""
    drawn = [skill_item(skill, row, 1, shifted=False) for row in (0, 1) for skill in SKILLS]
    pairs = [(str(item.prompt), str(item.completion)) for item in drawn]

    def asked(prompt: str, completion: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion.strip()}]

    return {
        "completion": [{"prompt": prompt, "completion": completion} for prompt, completion in pairs[:12]],
        "conversation": [{"prompt": asked(*pair)[:1], "completion": asked(*pair)[1:]} for pair in pairs[12:22]],
        "messages": [
            {"messages": [*asked(*first), *asked(*second)]}
            for first, second in zip(pairs[22:], pairs[:10], strict=True)
        ],
    }


def ours(model: LanguageModel, records: list[dict[str, Any]], name: str, *, packed: bool) -> tuple[float, int, Any]:
    """Mean loss over the tokens, their number, and the gradient by PEFT's names."""
    layout = RecordLayout(format="messages" if name == "messages" else "completion")
    items = [item_of_record(record, layout, name, name, f"test/{row}") for row, record in enumerate(records)]
    losses = answer_losses(model, encode(model.tokenizer, items, {}, 4096), packed=packed)
    model.peft_model.zero_grad()
    losses.mean().backward()
    gradient = {n: p.grad for n, p in model.peft_model.named_parameters() if p.grad is not None}
    return float(losses.detach().mean()), len(losses), gradient


def main() -> int:
    """Compute, compare, print."""
    parser = argparse.ArgumentParser(description="Losses of completions, TRL and ours.")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    python = environment(lambda line: print(line, flush=True))
    worst = [0.0, 0.0]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model = LanguageModel.load(ModelConfig(), LoraConfig(), seed=0)
        generator = torch.Generator().manual_seed(0)
        for n, parameter in model.peft_model.named_parameters():
            if "lora_B" in n:
                parameter.data = 0.01 * torch.randn(parameter.shape, generator=generator)
        model.tokenizer.chat_template = TEMPLATE
        (folder / "adapter").mkdir()
        model.save(folder / "adapter")
        backbone = backbone_location("embedded", print)
        case = {"backbone": backbone, "threads": options.threads, "chat_template": TEMPLATE}
        (folder / "case.json").write_text(json.dumps(case))
        for name, records in sets().items():
            (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
        with Worker(python, "trl", folder, "trl_worker.py") as trl:
            print(", ".join(f"{package} {version}" for package, version in trl.versions.items()))
            print(f"{'':26}{'items':>6}{'tokens':>8}{'TRL':>12}{'ours':>12}{'loss':>10}{'gradient':>10}")
            for name, records in sets().items():
                theirs = trl.ask("loss", name=name, assistant_only=name == "messages")
                expected = load_file(folder / f"{name}.safetensors")
                unmarked = TEMPLATE.replace("{% generation %}", "").replace("{% endgeneration %}", "")
                ways = [("packed", TEMPLATE, True), ("padded", TEMPLATE, False), ("no marks", unmarked, True)]
                for how, template, packed in ways if name == "messages" else ways[:2]:
                    model.tokenizer.chat_template = template
                    loss, tokens, gradient = ours(model, records, name, packed=packed)
                    largest = max(float(g.abs().max()) for g in expected.values())
                    differs = max(float((expected[n] - gradient[n]).abs().max()) for n in expected) / largest
                    assert tokens == theirs["tokens"], (tokens, theirs)
                    worst = [max(worst[0], abs(loss - theirs["loss"])), max(worst[1], differs)]
                    print(
                        f"{f'{name}, {how}':26}{len(records):>6}{tokens:>8}{theirs['loss']:>12.6f}{loss:>12.6f}"
                        f"{abs(loss - theirs['loss']):>10.1e}{differs:>10.1e}"
                    )
    print(f"largest difference: {worst[0]:.1e} of the loss, {worst[1]:.1e} of the gradient")
    return int(worst[0] > AGREEMENT or worst[1] > GRADIENT)


if __name__ == "__main__":
    sys.exit(main())

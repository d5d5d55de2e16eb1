"""What was run, in one line: the model as what it is, the data, the adapter, the training."""

from pathlib import Path

from llm_forgetting.results import ModelDescription, Results


def model_name(model: ModelDescription) -> str:
    """Name of the model in a headline: what its weights are, a folder by its last part, one of the hub in full."""
    path = Path(model.weights)
    return path.name if path.is_absolute() else model.weights


def _adapter(results: Results) -> str:
    lora = results.config.lora
    if lora is None:
        return "all weights trained"
    further = [
        *([f"from {lora.init}"] if isinstance(lora.init, str) else []),
        *([f"biases: {lora.bias}"] if lora.bias != "none" else []),
        *([f"and all of {', '.join(lora.modules_to_save)}"] if lora.modules_to_save else []),
    ]
    return ", ".join([f"{'DoRA' if lora.use_dora else 'LoRA'} r = {lora.rank}, alpha = {lora.alpha:g}", *further])


def set_up(results: Results) -> str:
    """One line that stands below every title of a run."""
    training = results.config.training
    steps = " + ".join(str(record.optimizer_steps) for record in results.training)
    batch = f"{training.batch_size}"
    if training.gradient_accumulation_steps > 1:
        batch += f" x {training.gradient_accumulation_steps}"
    splits = results.forgetting.splits
    train, test = (" + ".join(str(cell.n) for cell in split.accuracy.cells[0]) for split in splits)
    return " · ".join(
        (
            model_name(results.model),
            results.source.partition(" (")[0],
            _adapter(results),
            f"learning rate {training.learning_rate:g}, {training.num_epochs} epochs ({steps} steps), batch {batch}",
            f"{train} trained and {test} held-out items",
            f"seed {training.seed}",
        )
    )

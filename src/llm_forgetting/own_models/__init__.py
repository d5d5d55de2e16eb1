"""Loss landscapes of anyone's own model: any torch module or PEFT model, any loss, any batches, without a run of ours."""

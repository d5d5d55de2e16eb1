"""A LoRA adapter on a backbone: the only place that imports peft."""

"""What changes the weights: fine-tuning and interventions."""

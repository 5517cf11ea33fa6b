"""What can be trained: pretraining and fine-tuning as tasks of the training loop."""

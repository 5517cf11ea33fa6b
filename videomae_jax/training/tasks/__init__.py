"""What can be trained: the tasks of the training loop, by `config.task`."""

from videomae_jax.training.tasks.distill import Distillation
from videomae_jax.training.tasks.finetune import Finetuning
from videomae_jax.training.tasks.pretrain import Pretraining

TASKS = {"pretrain": Pretraining, "finetune": Finetuning, "distill": Distillation}

"""Fine-tunes a classifier on your own videos, by default from published weights.

Copy this file and change what differs.

    python -m videomae_jax lists folder --videos=/data/gestures --out=data/gestures
    python main.py --config=configs/custom_finetune.py \
        --config.data.train=data/gestures/train.txt \
        --config.data.validation=data/gestures/val.txt \
        --config.data.test=data/gestures/val.txt

Each line of a list holds a video and its label (0, 1, 2, ...); see docs/data.md. The
number of classes is the highest label plus one. The class names are those of the
folders that contain the videos, unless config.data.labels names a file with one class
name per line. Results are written to `<workdir>/test`: accuracy, predictions, confusion
matrix.

It starts from VideoMAE ViT-B, pretrained on Kinetics-400, which is downloaded from the
Hugging Face Hub on first use (380 MB; its license, CC-BY-NC 4.0, excludes commercial
use). Set config.init.source to your own pretraining run or another model, of any size,
or leave it empty and choose a config.model.variant to train from scratch.

docs/finetuning.md has advice for small data sets, sweeps and early stopping.

Fields that most often need changing:
- config.data.flip = 0.0, if left and right distinguish classes.
- config.data.frame_sampling = "uniform", if a class is a whole short action from start
  to end; "dense" looks at num_frames * stride consecutive frames.
- config.batch_size and config.epochs: with a few thousand videos, 16 to 64 and 50 to
  100. The learning rate scales with the batch size automatically.
- config.loss.class_balance = 0.999, if some classes have far more videos.
- With few videos, first try a probe, which does not train the encoder and is fast:
  --config.freeze=^encoder/ --config.model.head_norm=batch (linear) or
  --config.model.pooling=attentive, with --config.model.drop_path=0 and
  --config.mix.probability=0.
"""

from configs import common


def get_config(arg: str = ""):
    """Returns the config; the option `debug` shrinks it."""
    config = common.finetune()
    config.init.source = "MCG-NJU/videomae-base"
    config.data.train = "data/custom/train.txt"
    config.data.validation = "data/custom/val.txt"
    config.data.test = "data/custom/val.txt"
    config.model.variant = "source"
    config.batch_size = 32
    config.micro_batch_per_device = 16
    config.epochs = 50
    config.optimizer.base_lr = 1e-3
    config.checkpoint.every = 200
    config.evaluation.every = 200
    return common.finish(config, arg)

"""Frame folders and TFDS data sets of frames for tests, written by OpenCV and TFDS."""

import io
from pathlib import Path

import cv2
import numpy as np
import tensorflow_datasets as tfds
from google.protobuf import json_format
from tensorflow_datasets.core.proto import feature_pb2


def encode(image: np.ndarray, extension: str = ".png") -> bytes:
    """Encodes an image, uint8 [H, W, 3] in RGB or [H, W] in grey."""
    if image.ndim == 3:
        image = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    options = [cv2.IMWRITE_JPEG_QUALITY, 95] if extension == ".jpg" else []
    success, content = cv2.imencode(extension, image, options)
    assert success
    return content.tobytes()


def write_frames(
    folder: Path, frames: np.ndarray, name: str = "img_{:05}.jpg", start: int = 1
) -> Path:
    """Writes a frame folder; returns it."""
    folder.mkdir(parents=True)
    for number, image in enumerate(frames, start):
        path = folder / name.format(number)
        path.write_bytes(encode(image, path.suffix))
    return folder


def write_tfds(
    folder: Path,
    videos: list[tuple[np.ndarray | list[bytes], int]],
    classes: list[str],
    *,
    is_video: bool = True,
) -> Path:
    """Writes a TFDS data set with a split train; returns its folder, FOLDER/clips.

    TFDS needs TensorFlow for a feature of kind Video, but writes it like a Sequence of
    Image. Only features.json differs, and is changed here.

    Args:
        folder: parent folder of the data set.
        videos: frames or their encoded images, and label; -1 for none.
        classes: names of the classes.
        is_video: whether the kind of the feature is Video.
    """

    class Clips(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("2.0.0")
        code_path = None  # where TFDS looks for checksums of downloads

        def _info(self):
            image = tfds.features.Image(shape=(None, None, 3), encoding_format="png")
            features = {
                "clip": tfds.features.Sequence(image),
                "kind": tfds.features.ClassLabel(names=classes),
                "about": tfds.features.Text(),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i, (frames, label) in enumerate(videos):
                if isinstance(frames, np.ndarray):
                    frames = [encode(image) for image in frames]
                images = [io.BytesIO(content) for content in frames]
                yield i, {"clip": images, "kind": label, "about": str(i)}

    builder = Clips(data_dir=folder, file_format="array_record")
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(num_shards=min(2, len(videos)))
    )
    if is_video:
        path = Path(builder.data_dir, "features.json")
        features = json_format.Parse(path.read_text(), feature_pb2.Feature())
        clip = features.features_dict.features["clip"]
        clip.python_class_name = "tensorflow_datasets.core.features.video_feature.Video"
        clip.video.CopyFrom(
            feature_pb2.VideoFeature(dtype="uint8", encoding_format="png")
        )
        path.write_text(json_format.MessageToJson(features))
    return folder / "clips"

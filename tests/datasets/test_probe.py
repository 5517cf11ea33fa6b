"""`probe` decodes a video a second way where its codec needs that."""

import pytest

from tests.helpers.videos import change_packets, moving_noise, video_bytes
from videomae_jax.datasets.probe import Job, ProbeResult, probe
from videomae_jax.video.decoder import Video
from videomae_jax.video.record import Record

# Settings of `write_video`. The first two decoders leave out damaged parts, which show
# what the memory held before, without a word.
_FFV1 = {"codec": "ffv1", "container": "matroska", "options": {"level": "1", "g": "1"}}
_VP8 = {
    "codec": "libvpx",
    "container": "webm",
    "options": {"deadline": "realtime", "cpu-used": "8", "g": "15"},
}
_HEVC = {
    "codec": "libx265",
    "options": {"x265-params": "open-gop=1:keyint=9:log-level=none:pools=1"},
}


def _probe(path, content) -> ProbeResult | str:
    path.write_bytes(content)
    return probe(Job(Record(str(path), "a"), decode=True, digest=False))


@pytest.mark.parametrize("settings", [_FFV1, _VP8, _HEVC], ids=lambda x: x["codec"])
def test_a_clean_video_is_the_same_from_each_keyframe(settings, tmp_path):
    result = _probe(tmp_path / "a", video_bytes(moving_noise(24, 96, 128), **settings))
    assert not isinstance(result, str), result
    assert result.indexed and result.decoded_frames == 24


@pytest.mark.parametrize("settings", [_FFV1, _VP8], ids=lambda x: x["codec"])
def test_pixels_that_depend_on_where_decoding_starts(settings, tmp_path):
    content = change_packets(
        video_bytes(moving_noise(24, 96, 128), **settings),
        settings["container"],
        lambda at, data: data[: len(data) * 2 // 3] if at == 17 else data,
    )
    reason = _probe(tmp_path / "a", content)
    assert isinstance(reason, str), reason
    assert reason.startswith(
        f"{tmp_path / 'a'}: frame 17 is damaged: its pixels depend"
    )


def test_other_codecs_are_decoded_once(monkeypatch, tmp_path):
    monkeypatch.delattr(Video, "decode_each")
    result = _probe(tmp_path / "a.mp4", video_bytes(moving_noise(24, 48, 64)))
    assert not isinstance(result, str) and result.decoded_frames == 24

"""MMAction2's names (version 1.2, recognition of VideoMAE and VideoMAE V2)."""

import re

_RENAMED = (
    (r"^", "backbone."),
    (r"\.mlp\.fc1\.", ".mlp.layers.0.0."),
    (r"\.mlp\.fc2\.", ".mlp.layers.1."),
    (r"\.patch_embed\.proj\.", ".patch_embed.projection."),
    (r"^backbone\.head\.", "cls_head.fc_cls."),
)


def pieces(name: str) -> tuple[str, ...]:
    """What MMAction2 calls an official tensor."""
    for pattern, replacement in _RENAMED:
        name = re.sub(pattern, replacement, name)
    return (name,)

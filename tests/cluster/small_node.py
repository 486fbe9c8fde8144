"""mount.dfs with small limits: checkpoints, new segments, new volumes, reclaiming and compaction
happen all the time instead of once in a while.
"""

import dataclasses
import sys

from mountfs.chunks import disk
from mountfs.chunks.config import ChunkConfig
from mountfs.cli import mount_dfs
from mountfs.meta import local
from mountfs.types import KIB, MIB
from mountfs.vfs import embedded

local.CHECKPOINT_ROWS = 400
local.CHECKPOINT_BYTES = 1 * MIB
embedded.LOG_SEGMENT_BYTES = 1 * MIB
embedded.HOUSEKEEPING_S = 0.05
embedded.FLUSH_AFTER_S = 1
small = dataclasses.replace(
    ChunkConfig(),
    volume_bytes=12 * MIB,
    preallocate_bytes=512 * KIB,
    garbage_ratio=0.2,
    pending_needles_max=64,
    pending_needles_min=8,
    heads_max=16,
    open_files_max=4,
)
disk.ChunkConfig = lambda: small  # type: ignore[misc, assignment, attr-defined]

if __name__ == "__main__":
    sys.exit(mount_dfs.main())

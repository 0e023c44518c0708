"""What holds for all tests?"""

from __future__ import annotations

import os

# Before torch is imported, here and in the processes that tests start: with several threads each
# operation waits for the slowest, which on a busy machine takes ten times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")

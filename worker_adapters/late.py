"""Late imports: what is heavy and seldom needed is loaded where it is first needed, under one lock.

Python's own locks on modules do not survive a fork: a child that was forked while another thread imported would wait
for that thread, which it does not have, for ever. So a fork waits until an import under way is done.
"""

from __future__ import annotations

import logging  # noqa: F401 - its fork hook must be there before ours: a fork takes the locks of the last comer first
import os
import threading

#: Held by whoever imports late. An RLock: what is imported may itself import late, or fork.
loading = threading.RLock()

# What is imported may ask for logging's lock, so no fork may hold that one while it waits for ours.
if hasattr(os, "register_at_fork"):  # not on Windows, which cannot fork
    os.register_at_fork(before=loading.acquire, after_in_parent=loading.release, after_in_child=loading.release)

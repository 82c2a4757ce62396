"""The second transport: calls over gRPC, behind the same seam as ``transport`` (steps that wait, and bytes).

It carries messages as bytes and knows no engine. ``grpc`` is loaded by whoever imports a module of this package.
"""

import os

# grpc's epoll engine aborts a child that was forked while a call was running (1.85: "Check failed: g_active_poller");
# its poll engine does not. A choice of the user's stands, and where grpc has been at work before, it is too late.
os.environ.setdefault("GRPC_POLL_STRATEGY", "poll")

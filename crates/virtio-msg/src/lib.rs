//! The virtio-msg transport: wire formats and both protocol state machines, without I/O.

//! The virtio-msg bus over Xen: message ring, areas, bus messages and connection states.

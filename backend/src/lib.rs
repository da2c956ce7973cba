//! The device side of the bus: discovers guests in XenStore and serves virtio devices to them.

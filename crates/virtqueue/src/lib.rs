//! The split virtqueue, device side and driver side, over guest memory.

//! Virtio device models that know neither Xen nor messages.

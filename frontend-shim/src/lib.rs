//! The driver side of the bus in user space: finds its bus in XenStore and drives devices on it.

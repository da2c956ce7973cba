//! Grants and event channels: of a real Xen by raw ioctls, and of the hosted platform.

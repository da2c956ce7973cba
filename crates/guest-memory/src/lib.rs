//! Memory that a hostile peer can write at any time: areas, ranges and leases, never a slice.

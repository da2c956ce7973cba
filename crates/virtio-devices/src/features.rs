//! Feature bits that do not belong to a device type (fact sheet section 3), and what every device
//! here offers of them. Not offered: packed rings, in-order, suspend.

/// A chain may lie in a table of its own.
const INDIRECT_DESC: u128 = 1 << 28;

/// Both sides say from which index on they want to be notified.
const EVENT_IDX: u128 = 1 << 29;

/// No legacy driver.
const VERSION_1: u128 = 1 << 32;

/// Addresses are the bus's: areas and grants, never the driver's own memory as it sees it.
const ACCESS_PLATFORM: u128 = 1 << 33;

/// A queue can be reset alone.
const RING_RESET: u128 = 1 << 40;

/// What every device offers.
pub(crate) const ALWAYS: u128 =
    INDIRECT_DESC | EVENT_IDX | VERSION_1 | ACCESS_PLATFORM | RING_RESET;

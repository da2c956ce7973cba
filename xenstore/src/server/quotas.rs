//! What an unprivileged domain may use up: the defaults of xenstored.

/// Limits of each domain but dom0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quotas {
    /// Nodes that it owns (ENOSPC).
    pub nodes: usize,
    /// Watches of all its connections together (E2BIG).
    pub watches: usize,
    /// Open transactions of all its connections together (ENOSPC).
    pub transactions: usize,
    /// A node stays below this many bytes: [`NODE_HEADER`], [`NODE_PERMISSION`] for each entry, the
    /// value, and the name of each child with one byte more (ENOSPC).
    pub node_size: usize,
    /// Entries in the permissions of a node (ENOSPC).
    pub permissions: usize,
    /// Nodes looked at in one transaction; beyond it the transaction fails (ENOSPC).
    pub transaction_nodes: usize,
}

/// What xenstored counts for a node apart from its contents.
pub const NODE_HEADER: usize = 24;

/// What xenstored counts for an entry of the permissions.
pub const NODE_PERMISSION: usize = 8;

impl Default for Quotas {
    fn default() -> Self {
        Self {
            nodes: 1000,
            watches: 128,
            transactions: 10,
            node_size: 2048,
            permissions: 5,
            transaction_nodes: 1024,
        }
    }
}

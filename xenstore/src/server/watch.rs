//! Watches, and the changes that fire them.

use std::sync::Arc;

use xen_types::DomId;

use super::nodes::{Node, Nodes};
use crate::wire::{NodePath, PathError};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Watch {
    path: NodePath,
    token: Vec<u8>,
    /// Bytes that are cut off the path in events: home and slash, if the watch was relative.
    cut: usize,
}

impl Watch {
    /// A watch as domain `domid` asks for it.
    pub(super) fn new(path: &[u8], token: &[u8], domid: DomId) -> Result<Self, PathError> {
        let relative = !path.starts_with(b"/") && !path.starts_with(b"@");
        let home = NodePath::home(domid).as_str().len().saturating_add(1);
        Ok(Self {
            path: NodePath::resolve(path, domid)?,
            token: token.to_vec(),
            cut: if relative { home } else { 0 },
        })
    }

    /// Whether both name the same path and token, relative or not.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.path == other.path && self.token == other.token
    }

    /// The payload of its event for `change`, if it fires.
    pub(super) fn event_for(&self, change: &Change) -> Option<Vec<u8>> {
        let fires = if change.exact {
            change.path == self.path
        } else {
            change.path.is_at_or_below(&self.path)
        };
        fires.then(|| self.event(&change.path))
    }

    /// The payload of the event that comes with the registration.
    pub(super) fn first_event(&self) -> Vec<u8> {
        self.event(&self.path)
    }

    fn event(&self, path: &NodePath) -> Vec<u8> {
        let shown = path.as_str().get(self.cut..).unwrap_or_default();
        [shown.as_bytes(), b"\0", &self.token, b"\0"].concat()
    }
}

/// Something happened to a node.
#[derive(Debug)]
pub(super) struct Change {
    path: NodePath,
    /// Only watches on the very path fire: it went because a node above it was removed.
    exact: bool,
    /// Who may read one of these may know of the change: the node before and after, its parent.
    visible: Vec<Arc<Node>>,
}

impl Change {
    /// A change of `path`, seen from the tree as it is now, and from the node as it was before.
    pub(super) fn new(
        nodes: &Nodes,
        path: &NodePath,
        exact: bool,
        before: Option<Arc<Node>>,
    ) -> Self {
        let now = nodes.get(path).cloned();
        let parent = match (&now, path.parent()) {
            (Some(_), Some(parent)) => nodes.get(&parent).cloned(),
            _ => None,
        };
        Self {
            path: path.clone(),
            exact,
            visible: before.into_iter().chain(now).chain(parent).collect(),
        }
    }

    pub(super) fn is_visible_to(&self, domid: DomId) -> bool {
        domid == DomId::DOM0
            || self
                .visible
                .iter()
                .any(|node| node.perms.access(domid).may_read())
    }

    /// `@introduceDomain` and the like: identical events are not merged, each one counts.
    pub(super) fn is_special(&self) -> bool {
        self.path.is_special()
    }
}

//! A transaction on the server: what it looked at, what it changed, and whether both still fit.
//!
//! As in xenstored, a node enters the transaction when it is first looked at, and from then on the
//! transaction sees its own copy. At the commit every node it looked at must still be in the
//! generation it was then; a node that was absent must be absent.

use std::collections::HashMap;
use std::sync::Arc;

use xen_types::DomId;

use super::nodes::{Node, Nodes};
use super::quotas::Quotas;
use super::watch::Change;
use crate::wire::{ErrorCode, NodePath};

#[derive(Debug, Default)]
pub(super) struct Transaction {
    accessed: Vec<Accessed>,
    by_path: HashMap<NodePath, usize>,
    /// It looked at more nodes than it may: it cannot be committed.
    overrun: bool,
}

#[derive(Debug)]
struct Accessed {
    path: NodePath,
    original: Option<Arc<Node>>,
    now: Option<Arc<Node>>,
    modified: bool,
    /// A watch event is due; `Some(true)` only for watches on the very path.
    fire: Option<bool>,
}

impl Transaction {
    /// The node as the transaction sees it; the first look fetches it from the tree.
    pub(super) fn get(
        &mut self,
        nodes: &Nodes,
        path: &NodePath,
        limit: Option<usize>,
    ) -> Result<Option<Arc<Node>>, ErrorCode> {
        self.access(nodes, path, limit)
            .map(|entry| entry.now.clone())
    }

    /// Changes or removes a node, in the transaction only.
    pub(super) fn set(
        &mut self,
        nodes: &Nodes,
        path: &NodePath,
        node: Option<Node>,
    ) -> Result<(), ErrorCode> {
        // Whoever changes a node has looked at it before: this adds no node, so no limit.
        let entry = self.access(nodes, path, None)?;
        entry.now = node.map(Arc::new);
        entry.modified = true;
        Ok(())
    }

    /// Notes that a watch event is due. One for everything above replaces one for the path only.
    pub(super) fn note_change(&mut self, nodes: &Nodes, path: &NodePath, exact: bool) {
        if let Ok(entry) = self.access(nodes, path, None) {
            entry.fire = Some(exact && entry.fire.unwrap_or(true));
        }
    }

    /// By how much the number of nodes that `domid` owns changes with the commit.
    pub(super) fn owned_change(&self, domid: DomId) -> isize {
        let owned = |node: &Option<Arc<Node>>| {
            isize::from(node.as_ref().is_some_and(|node| node.perms.owner == domid))
        };
        self.accessed.iter().fold(0isize, |sum, entry| {
            sum.saturating_add(owned(&entry.now).saturating_sub(owned(&entry.original)))
        })
    }

    /// Makes the changes, or none of them.
    pub(super) fn commit(
        self,
        nodes: &mut Nodes,
        domid: DomId,
        quotas: &Quotas,
    ) -> Result<Vec<Change>, ErrorCode> {
        if self.overrun {
            return Err(ErrorCode::NoSpace);
        }
        let grows = self.owned_change(domid);
        let owned = nodes.owned_by(domid).saturating_add_signed(grows);
        if domid != DomId::DOM0 && grows > 0 && owned > quotas.nodes {
            return Err(ErrorCode::NoSpace);
        }
        let generation = |node: Option<&Arc<Node>>| node.map(|node| node.generation);
        let unchanged = |entry: &Accessed| {
            generation(nodes.get(&entry.path)) == generation(entry.original.as_ref())
        };
        if !self.accessed.iter().all(unchanged) {
            return Err(ErrorCode::Again);
        }
        let modified = || self.accessed.iter().filter(|entry| entry.modified);
        for entry in modified() {
            match &entry.now {
                Some(node) => nodes.put(entry.path.clone(), Node::clone(node)),
                None => nodes.remove(&entry.path),
            }
        }
        let fired = modified().filter_map(|entry| {
            let exact = entry.fire?;
            Some(Change::new(
                nodes,
                &entry.path,
                exact,
                entry.original.clone(),
            ))
        });
        Ok(fired.collect())
    }

    fn access(
        &mut self,
        nodes: &Nodes,
        path: &NodePath,
        limit: Option<usize>,
    ) -> Result<&mut Accessed, ErrorCode> {
        let index = match self.by_path.get(path) {
            Some(index) => *index,
            None => {
                if limit.is_some_and(|limit| self.accessed.len() >= limit) {
                    self.overrun = true;
                    return Err(ErrorCode::NoSpace);
                }
                let original = nodes.get(path).cloned();
                self.accessed.push(Accessed {
                    path: path.clone(),
                    now: original.clone(),
                    original,
                    modified: false,
                    fire: None,
                });
                let index = self.accessed.len().saturating_sub(1);
                self.by_path.insert(path.clone(), index);
                index
            }
        };
        // The index was taken from the list just above or when its entry was pushed.
        self.accessed.get_mut(index).ok_or(ErrorCode::Io)
    }
}

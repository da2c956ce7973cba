//! The committed tree: every node by its path, with a generation that tells one state from the next.

use std::collections::HashMap;
use std::sync::Arc;

use xen_types::DomId;

use super::quotas::{NODE_HEADER, NODE_PERMISSION};
use crate::wire::{NodePath, Permissions};

/// One node.
#[derive(Clone, Debug)]
pub(super) struct Node {
    /// Set anew with each change of value, children or permissions; never used twice.
    pub(super) generation: u64,
    pub(super) value: Vec<u8>,
    /// Last parts of the children's paths, oldest first.
    pub(super) children: Vec<String>,
    pub(super) perms: Permissions,
}

impl Node {
    pub(super) fn new(perms: Permissions) -> Self {
        Self {
            generation: 0,
            value: Vec::new(),
            children: Vec::new(),
            perms,
        }
    }

    /// The children as DIRECTORY sends them.
    pub(super) fn child_list(&self) -> Vec<u8> {
        let mut list = Vec::new();
        for child in &self.children {
            list.extend_from_slice(child.as_bytes());
            list.push(0);
        }
        list
    }

    /// As xenstored counts it.
    pub(super) fn size(&self) -> usize {
        let children = self
            .children
            .iter()
            .map(|child| child.len().saturating_add(1));
        let perms = self.perms.entries().saturating_mul(NODE_PERMISSION);
        children
            .chain([perms, self.value.len()])
            .fold(NODE_HEADER, usize::saturating_add)
    }
}

#[derive(Debug)]
pub(super) struct Nodes {
    by_path: HashMap<NodePath, Arc<Node>>,
    owned: HashMap<DomId, usize>,
    generation: u64,
}

impl Nodes {
    /// The tree that xenstored starts with.
    pub(super) fn new() -> Self {
        let mut nodes = Self {
            by_path: HashMap::new(),
            owned: HashMap::new(),
            generation: 0,
        };
        let tool = NodePath::root().child("tool");
        for (path, child) in [
            (tool.child("xenstored"), None),
            (tool, Some("xenstored")),
            (NodePath::root(), Some("tool")),
            (NodePath::introduce_domain(), None),
            (NodePath::release_domain(), None),
        ] {
            let mut node = Node::new(Permissions::private(DomId::DOM0));
            node.children.extend(child.map(str::to_owned));
            nodes.put(path, node);
        }
        nodes
    }

    pub(super) fn get(&self, path: &NodePath) -> Option<&Arc<Node>> {
        self.by_path.get(path)
    }

    /// Adds or replaces a node. Its parent's list of children is the caller's matter.
    pub(super) fn put(&mut self, path: NodePath, mut node: Node) {
        node.generation = self.next_generation();
        self.count(node.perms.owner, 1);
        if let Some(old) = self.by_path.insert(path, Arc::new(node)) {
            self.count(old.perms.owner, -1);
        }
    }

    pub(super) fn remove(&mut self, path: &NodePath) {
        if let Some(old) = self.by_path.remove(path) {
            self.count(old.perms.owner, -1);
        }
    }

    pub(super) fn next_generation(&mut self) -> u64 {
        self.generation = self.generation.wrapping_add(1);
        self.generation
    }

    pub(super) fn owned_by(&self, domid: DomId) -> usize {
        self.owned.get(&domid).copied().unwrap_or(0)
    }

    /// Roots of the subtrees that belong to `domid`: nodes whose parent belongs to another.
    pub(super) fn roots_owned_by(&self, domid: DomId) -> Vec<NodePath> {
        let owned = |path: &NodePath| self.get(path).is_some_and(|node| node.perms.owner == domid);
        let mut roots: Vec<NodePath> = self
            .by_path
            .keys()
            .filter(|path| owned(path) && !path.parent().is_some_and(|parent| owned(&parent)))
            .cloned()
            .collect();
        roots.sort();
        roots
    }

    /// Takes every right from a domain that is gone, so that the next one with its id does not
    /// inherit them. No watch fires, but a transaction that saw such a node must not bring the
    /// right back: it conflicts.
    pub(super) fn forget(&mut self, domid: DomId) {
        for node in self.by_path.values_mut() {
            let perms = &node.perms;
            if perms.owner == domid || perms.domains.iter().any(|(entry, _)| *entry == domid) {
                self.generation = self.generation.wrapping_add(1);
                let node = Arc::make_mut(node);
                node.generation = self.generation;
                let perms = &mut node.perms;
                perms.domains.retain(|(entry, _)| *entry != domid);
                if perms.owner == domid {
                    perms.owner = DomId::DOM0;
                }
            }
        }
        let orphans = self.owned.remove(&domid).unwrap_or(0);
        let dom0 = self.owned.entry(DomId::DOM0).or_insert(0);
        *dom0 = dom0.saturating_add(orphans);
    }

    fn count(&mut self, owner: DomId, change: isize) {
        let count = self.owned.entry(owner).or_insert(0);
        *count = count.saturating_add_signed(change);
        if *count == 0 {
            self.owned.remove(&owner);
        }
    }
}

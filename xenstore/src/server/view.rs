//! The tree as one request sees it: through the rights and quotas of its domain, and through its
//! transaction if it is in one. Here is what each request on nodes means (`xenstore.txt`).

use std::sync::Arc;

use xen_types::DomId;

use super::nodes::{Node, Nodes};
use super::quotas::Quotas;
use super::transaction::Transaction;
use super::watch::Change;
use crate::wire::{ErrorCode, NodePath, PAYLOAD_MAX, Permissions};

#[derive(Debug)]
pub(super) struct View<'a> {
    pub(super) nodes: &'a mut Nodes,
    pub(super) transaction: Option<&'a mut Transaction>,
    pub(super) domid: DomId,
    pub(super) quotas: &'a Quotas,
    /// What fires watches now. In a transaction it is noted there instead.
    pub(super) changes: Vec<Change>,
}

/// What a request needs to do with a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Need {
    Read,
    Write,
    Own,
}

impl View<'_> {
    pub(super) fn read(&mut self, path: &NodePath) -> Result<Vec<u8>, ErrorCode> {
        Ok(self.existing(path, Need::Read)?.value.clone())
    }

    pub(super) fn directory(&mut self, path: &NodePath) -> Result<Vec<u8>, ErrorCode> {
        let list = self.existing(path, Need::Read)?.child_list();
        if list.len() > PAYLOAD_MAX {
            return Err(ErrorCode::TooBig);
        }
        Ok(list)
    }

    /// The node's generation and as many whole names as fit, from byte `offset` of the list on. An
    /// empty name marks the end.
    pub(super) fn directory_part(
        &mut self,
        path: &NodePath,
        offset: usize,
    ) -> Result<Vec<u8>, ErrorCode> {
        let node = self.existing(path, Need::Read)?;
        let list = node.child_list();
        let mut reply = format!("{}\0", node.generation).into_bytes();
        let rest = list.get(offset..).unwrap_or_default();
        let room = PAYLOAD_MAX.saturating_sub(reply.len()).saturating_sub(1);
        let fits = if rest.len() <= room {
            rest.len()
        } else {
            let window = rest.get(..room).unwrap_or_default();
            let last = window.iter().rposition(|byte| *byte == 0);
            last.map_or(0, |last| last.saturating_add(1))
        };
        reply.extend_from_slice(rest.get(..fits).unwrap_or_default());
        if fits == rest.len() {
            reply.push(0);
        }
        Ok(reply)
    }

    pub(super) fn get_perms(&mut self, path: &NodePath) -> Result<Vec<u8>, ErrorCode> {
        Ok(self.existing(path, Need::Read)?.perms.to_payload())
    }

    pub(super) fn set_perms(
        &mut self,
        path: &NodePath,
        perms: Permissions,
    ) -> Result<(), ErrorCode> {
        if self.is_unprivileged() && perms.entries() > self.quotas.permissions {
            return Err(ErrorCode::NoSpace);
        }
        let before = self.existing(path, Need::Own)?;
        if self.is_unprivileged() && perms.owner != before.perms.owner {
            return Err(ErrorCode::NotPermitted);
        }
        let mut node = Node::clone(&before);
        node.perms = perms;
        self.check_size(&node)?;
        self.put(path, node)?;
        self.changed(path, false, Some(before));
        Ok(())
    }

    pub(super) fn write(&mut self, path: &NodePath, value: &[u8]) -> Result<(), ErrorCode> {
        match self.find(path, Need::Write)? {
            Some(before) => {
                let mut node = Node::clone(&before);
                node.value = value.to_vec();
                self.check_size(&node)?;
                self.put(path, node)?;
            }
            None => self.create(path, value)?,
        }
        self.changed(path, false, None);
        Ok(())
    }

    pub(super) fn mkdir(&mut self, path: &NodePath) -> Result<(), ErrorCode> {
        if self.find(path, Need::Write)?.is_none() {
            self.create(path, b"")?;
            self.changed(path, false, None);
        }
        Ok(())
    }

    pub(super) fn rm(&mut self, path: &NodePath) -> Result<(), ErrorCode> {
        let found = self.find(path, Need::Write)?;
        let parent = path.parent().ok_or(ErrorCode::Invalid)?;
        if found.is_some() {
            self.remove_tree(path, &parent)
        } else if self.get(&parent)?.is_some() {
            Ok(())
        } else {
            Err(ErrorCode::NotFound)
        }
    }

    /// Removes a node with everything below it, whoever may write there.
    pub(super) fn remove_tree(
        &mut self,
        path: &NodePath,
        parent: &NodePath,
    ) -> Result<(), ErrorCode> {
        // Everything is looked at before anything changes, so that a transaction which may look
        // at no more nodes stays whole.
        let Some(above) = self.get(parent)? else {
            return Err(ErrorCode::NotFound);
        };
        let mut subtree = Vec::new();
        let mut next = vec![path.clone()];
        while let Some(path) = next.pop() {
            if let Some(node) = self.get(&path)? {
                next.extend(node.children.iter().map(|child| path.child(child)));
                subtree.push((path, node));
            }
        }
        // Children before their parents, the oldest first.
        for (below, node) in subtree.into_iter().rev() {
            self.changed(&below, below != *path, Some(node));
            self.remove(&below)?;
        }
        let mut above = Node::clone(&above);
        above.children.retain(|child| child != path.leaf());
        self.put(parent, above)
    }

    /// Makes a node that is absent, and its parents. Each takes the permissions of its parent; an
    /// unprivileged domain owns what it makes.
    fn create(&mut self, path: &NodePath, value: &[u8]) -> Result<(), ErrorCode> {
        let mut missing = vec![path.clone()];
        let (above_path, above) = loop {
            let child = missing.last().unwrap_or(path);
            let parent = child.parent().ok_or(ErrorCode::Invalid)?;
            match self.get(&parent)? {
                Some(node) => break (parent, node),
                None => missing.push(parent),
            }
        };
        if self.is_unprivileged() && self.owned().saturating_add(missing.len()) > self.quotas.nodes
        {
            return Err(ErrorCode::NoSpace);
        }
        let mut perms = above.perms.clone();
        if self.is_unprivileged() {
            perms.owner = self.domid;
        }
        let mut changed = vec![(above_path, Node::clone(&above))];
        for path in missing.into_iter().rev() {
            if let Some((_, parent)) = changed.last_mut() {
                parent.children.push(path.leaf().to_owned());
            }
            changed.push((path, Node::new(perms.clone())));
        }
        if let Some((_, node)) = changed.last_mut() {
            node.value = value.to_vec();
        }
        changed
            .iter()
            .try_for_each(|(_, node)| self.check_size(node))?;
        changed
            .into_iter()
            .try_for_each(|(path, node)| self.put(&path, node))
    }

    fn existing(&mut self, path: &NodePath, need: Need) -> Result<Arc<Node>, ErrorCode> {
        self.find(path, need)?.ok_or(ErrorCode::NotFound)
    }

    /// A node with which the domain may do what it needs. `None`: it does not exist, and the
    /// domain may know, because it could do as much with the nearest node above.
    fn find(&mut self, path: &NodePath, need: Need) -> Result<Option<Arc<Node>>, ErrorCode> {
        if let Some(node) = self.get(path)? {
            return if self.allows(&node, need) {
                Ok(Some(node))
            } else {
                Err(ErrorCode::Access)
            };
        }
        let mut above = path.parent();
        while let Some(path) = above {
            if let Some(node) = self.get(&path)? {
                // Who may write there may know as much as an owner.
                let need = if need == Need::Own { Need::Write } else { need };
                return if self.allows(&node, need) {
                    Ok(None)
                } else {
                    Err(ErrorCode::Access)
                };
            }
            above = path.parent();
        }
        Err(ErrorCode::Access)
    }

    fn allows(&self, node: &Node, need: Need) -> bool {
        let access = node.perms.access(self.domid);
        match need {
            Need::Read => access.may_read(),
            Need::Write => access.may_write(),
            Need::Own => !self.is_unprivileged() || node.perms.owner == self.domid,
        }
    }

    fn is_unprivileged(&self) -> bool {
        self.domid != DomId::DOM0
    }

    fn owned(&self) -> usize {
        let change = self.transaction.as_ref();
        let change = change.map_or(0, |transaction| transaction.owned_change(self.domid));
        self.nodes
            .owned_by(self.domid)
            .saturating_add_signed(change)
    }

    fn check_size(&self, node: &Node) -> Result<(), ErrorCode> {
        if self.is_unprivileged() && node.size() >= self.quotas.node_size {
            return Err(ErrorCode::NoSpace);
        }
        Ok(())
    }

    fn get(&mut self, path: &NodePath) -> Result<Option<Arc<Node>>, ErrorCode> {
        let limit = self
            .is_unprivileged()
            .then_some(self.quotas.transaction_nodes);
        match &mut self.transaction {
            Some(transaction) => transaction.get(self.nodes, path, limit),
            None => Ok(self.nodes.get(path).cloned()),
        }
    }

    fn put(&mut self, path: &NodePath, mut node: Node) -> Result<(), ErrorCode> {
        match &mut self.transaction {
            Some(transaction) => {
                node.generation = self.nodes.next_generation();
                transaction.set(self.nodes, path, Some(node))
            }
            None => {
                self.nodes.put(path.clone(), node);
                Ok(())
            }
        }
    }

    fn remove(&mut self, path: &NodePath) -> Result<(), ErrorCode> {
        match &mut self.transaction {
            Some(transaction) => transaction.set(self.nodes, path, None),
            None => {
                self.nodes.remove(path);
                Ok(())
            }
        }
    }

    fn changed(&mut self, path: &NodePath, exact: bool, before: Option<Arc<Node>>) {
        match &mut self.transaction {
            Some(transaction) => transaction.note_change(self.nodes, path, exact),
            None => self
                .changes
                .push(Change::new(self.nodes, path, exact, before)),
        }
    }
}

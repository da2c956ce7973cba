//! The broker's own hand in XenStore: what the toolstack of dom0 does when domains come and go.

use xen_types::DomId;
use xenstore::server::{ConnId, Server};
use xenstore::wire::{ErrorCode, Message, MessageType};

use crate::nodes;

#[derive(Debug)]
pub(crate) struct Store {
    pub(crate) server: Server,
    /// A connection of dom0 that has no socket.
    own: ConnId,
}

impl Store {
    pub(crate) fn new() -> Result<Self, ErrorCode> {
        let mut server = Server::default();
        let own = server.connect(DomId::DOM0);
        nodes::make_dom0(&mut server)?;
        Ok(Self { server, own })
    }

    /// The nodes of a new guest, then `@introduceDomain`.
    pub(crate) fn add_guest(
        &mut self,
        domid: DomId,
        name: &str,
        uuid: &str,
    ) -> Result<(), ErrorCode> {
        nodes::make_guest(&mut self.server, domid, name, uuid)?;
        self.server.introduce(domid);
        Ok(())
    }

    /// Removes what libxl removes, and what the guest owned elsewhere, then `@releaseDomain`. What dom0
    /// owns elsewhere for this guest stays: backend directories of an unknown kind, above all.
    pub(crate) fn remove_guest(&mut self, domid: DomId, uuid: &str) {
        for path in [nodes::home(domid), nodes::vm(uuid)] {
            self.remove(&path);
        }
        self.server.release(domid);
    }

    fn remove(&mut self, path: &str) {
        let mut request = Vec::new();
        let message = Message {
            kind: MessageType::RM,
            req_id: 0,
            tx_id: 0,
            payload: [path.as_bytes(), b"\0"].concat(),
        };
        if let Err(error) = message.encode(&mut request) {
            tracing::error!(%error, path, "a path is too long to be removed");
            return;
        }
        self.server.receive(self.own, &request);
        // The answer: there is nothing to learn from it.
        while let len @ 1.. = self.server.output(self.own).len() {
            self.server.sent(self.own, len);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_owns_only_what_libxl_gives_it_and_leaves_nothing() {
        let mut store = Store::new().unwrap();
        let guest = DomId(7);
        store.add_guest(guest, "g", "some-uuid").unwrap();
        assert!(store.server.is_introduced(guest));
        assert_eq!(store.server.nodes_of(guest), 11);
        let before = store.server.nodes_of(DomId::DOM0);
        store.remove_guest(guest, "some-uuid");
        assert!(!store.server.is_introduced(guest));
        assert_eq!(store.server.nodes_of(guest), 0);
        // Home with vm, name, domid and seven directories; device/suspend; vm with uuid and name.
        assert_eq!(before - store.server.nodes_of(DomId::DOM0), 15);
    }
}

//! The daemon's side without input or output: bytes of each connection go in, bytes come out.
//!
//! It behaves as the C xenstored (4.17) does towards its clients: permissions, quotas,
//! transactions that conflict by node, and watches that an unprivileged domain only sees fire for
//! what it may read. Whoever owns the sockets tells it which domain is behind each of them.
//!
//! ```text
//! readable:  server.receive(id, bytes)          unless !server.wants_input(id)
//! after any call:
//!     while let Some(wake) = server.poll_wake() {
//!         Wake::Output(id):    write server.output(id), then server.sent(id, n), until it is empty
//!                              or the socket is full; then go on when the socket is writable
//!         Wake::Input(id):     server.resume(id), then read again
//!         Wake::Gone(id, why): close the socket; the id means nothing any more
//!     }
//! closed by the client: server.disconnect(id)
//! every EVENT_TIMEOUT:  server.tick()
//! ```
//!
//! A guest that causes events faster than others read them waits (XSA-326), and nobody else: its
//! requests are not served while [`EVENTS_PAUSE`] bytes of them wait in another domain's connection.
//! dom0 may leave them unread as long as it likes. Another guest may not: it would keep an innocent
//! one waiting, and is disconnected when [`EVENT_TIMEOUT`] is over.
//!
//! Not as xenstored: SET_TARGET and CONTROL commands are refused; memory is bounded per connection
//! instead of per domain; what is outstanding is counted in bytes of events, not in requests (20),
//! and whoever lets them time out loses its connection, not the event; writes are not slowed down;
//! and a permission may name a domain that does not exist.

mod connection;
mod nodes;
mod quotas;
mod request;
mod transaction;
mod view;
mod watch;

pub use connection::{EVENTS_PAUSE, INPUT_MAX, OUTPUT_MAX, OUTPUT_PAUSE};
pub use quotas::{NODE_HEADER, NODE_PERMISSION, Quotas};

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use xen_types::DomId;

use crate::wire::{ErrorCode, Message, NodePath, Permissions, RequestCounts};
use connection::Connection;
use nodes::Nodes;
use view::View;
use watch::Change;

/// `DOMID_SELF`: the caller.
const DOMID_SELF: DomId = DomId::FIRST_RESERVED;

/// What a guest leaves unread for so long, while another waits for it, is not waited for any longer:
/// xenstored's time for an event.
pub const EVENT_TIMEOUT: Duration = Duration::from_secs(20);

/// Names a connection. Never given twice by one server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId(u64);

/// Something to do for whoever owns the sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// There is output where there was none: write [`Server::output`].
    Output(ConnId),
    /// Requests that waited may go on: [`Server::resume`], and read on.
    Input(ConnId),
    /// The server dropped the connection with everything that belonged to it: close the socket.
    Gone(ConnId, GoneReason),
}

/// Why the server dropped a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GoneReason {
    /// It announced a payload that the protocol does not allow.
    #[error("the client announced a payload beyond the protocol's limit")]
    BadMessage,
    /// It does not read what it is sent.
    #[error("the client leaves more than {OUTPUT_MAX} bytes unread")]
    NeverReads,
    /// It leaves events unread, and another guest waits for that.
    #[error("another domain waits for the client to read its events")]
    HoldsUp,
    /// It sends without reading the answers.
    #[error("the client sent more than {INPUT_MAX} bytes without reading its answers")]
    NeverStops,
}

/// The store and its connections.
#[derive(Debug)]
pub struct Server {
    nodes: Nodes,
    connections: BTreeMap<ConnId, Connection>,
    last_conn: u64,
    introduced: BTreeSet<DomId>,
    quotas: Quotas,
    wakes: VecDeque<Wake>,
    counts: RequestCounts,
}

impl Default for Server {
    fn default() -> Self {
        Self::new(Quotas::default())
    }
}

impl Server {
    /// A store with the few nodes that xenstored starts with.
    #[must_use]
    pub fn new(quotas: Quotas) -> Self {
        Self {
            nodes: Nodes::new(),
            connections: BTreeMap::new(),
            last_conn: 0,
            introduced: BTreeSet::new(),
            quotas,
            wakes: VecDeque::new(),
            counts: RequestCounts::default(),
        }
    }

    /// A client of domain `domid`. A domain may have several; quotas are the domain's. How many
    /// connections a domain may have is for the caller to bound.
    pub fn connect(&mut self, domid: DomId) -> ConnId {
        self.last_conn = self.last_conn.wrapping_add(1);
        let id = ConnId(self.last_conn);
        self.connections.insert(id, Connection::new(domid));
        id
    }

    /// The client is gone: its watches and transactions go too.
    pub fn disconnect(&mut self, id: ConnId) {
        self.remove(id);
    }

    /// Bytes from a client, in any pieces.
    pub fn receive(&mut self, id: ConnId, bytes: &[u8]) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        if connection.take_input(bytes) {
            self.serve(id);
        } else {
            self.drop_connection(id, GoneReason::NeverStops);
        }
    }

    /// Whether more bytes should be read from the client now. Ask again after [`Server::sent`].
    #[must_use]
    pub fn wants_input(&self, id: ConnId) -> bool {
        self.connections
            .get(&id)
            .is_some_and(Connection::wants_input)
    }

    /// Bytes to write to the client next, perhaps not all of them; empty if there are none.
    #[must_use]
    pub fn output(&self, id: ConnId) -> &[u8] {
        self.connections
            .get(&id)
            .map(Connection::output)
            .unwrap_or_default()
    }

    /// `count` bytes of [`Server::output`] were written.
    pub fn sent(&mut self, id: ConnId, count: usize) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        if let Some(guest) = connection.advance(count) {
            self.wake_held(guest);
        }
        self.serve(id);
    }

    /// Serves the requests that a [`Wake::Input`] is about.
    pub fn resume(&mut self, id: ConnId) {
        self.serve(id);
    }

    /// [`EVENT_TIMEOUT`] passed since the last time, or since the start: guests that keep others
    /// waiting longer are disconnected.
    pub fn tick(&mut self) {
        let stuck: Vec<ConnId> = self
            .connections
            .iter_mut()
            .filter_map(|(id, connection)| {
                (connection.tick() && connection.domid != DomId::DOM0).then_some(*id)
            })
            .collect();
        for id in stuck {
            self.drop_connection(id, GoneReason::HoldsUp);
        }
    }

    /// What there is to do, in order. An `Output` is not repeated before all output of the
    /// connection is sent.
    pub fn poll_wake(&mut self) -> Option<Wake> {
        self.wakes.pop_front()
    }

    /// The requests served so far, all connections together.
    #[must_use]
    pub fn requests(&self) -> &RequestCounts {
        &self.counts
    }

    /// Nodes that `domid` owns: what its quota counts.
    #[must_use]
    pub fn nodes_of(&self, domid: DomId) -> usize {
        self.nodes.owned_by(domid)
    }

    /// Whether the domain is connected to the store; dom0 always is.
    #[must_use]
    pub fn is_introduced(&self, domid: DomId) -> bool {
        domid == DomId::DOM0 || domid == DOMID_SELF || self.introduced.contains(&domid)
    }

    /// Makes a node, its parents if they are missing, and sets value and permissions, with the
    /// rights of dom0; watches fire. For what a toolstack does when it makes a domain.
    ///
    /// # Errors
    /// The path is not valid.
    pub fn make_node(
        &mut self,
        path: &str,
        value: &[u8],
        perms: Permissions,
    ) -> Result<(), ErrorCode> {
        let path =
            NodePath::resolve_node(path.as_bytes(), DomId::DOM0).map_err(|_| ErrorCode::Invalid)?;
        self.as_dom0(|view| {
            view.write(&path, value)?;
            view.set_perms(&path, perms)
        })
    }

    /// The domain came: fires `@introduceDomain`, unless it is there already.
    pub fn introduce(&mut self, domid: DomId) {
        if domid != DomId::DOM0 && self.introduced.insert(domid) {
            self.fire_special(NodePath::introduce_domain());
        }
    }

    /// The domain shut down or crashed, but is not destroyed yet: fires `@releaseDomain`.
    pub fn shut_down(&mut self, domid: DomId) {
        if self.introduced.contains(&domid) {
            self.fire_special(NodePath::release_domain());
        }
    }

    /// The domain is destroyed: what [`Server::domain_died`], [`Server::remove_nodes_of`] and the
    /// end of its introduction do, then `@releaseDomain` fires. As xenstored, which removes what a
    /// destroyed domain owned. Its connections stay for the caller to close.
    pub fn release(&mut self, domid: DomId) {
        self.domain_died(domid);
        self.remove_nodes_of(domid);
        self.nodes.forget(domid);
        if self.introduced.remove(&domid) {
            self.fire_special(NodePath::release_domain());
        }
    }

    /// Drops the watches and transactions of all connections of the domain.
    pub fn domain_died(&mut self, domid: DomId) {
        for connection in self.connections.values_mut() {
            if connection.domid == domid {
                connection.watches.clear();
                connection.transactions.clear();
            }
        }
    }

    /// Removes the nodes that the domain owns, with everything below them; watches fire.
    pub fn remove_nodes_of(&mut self, domid: DomId) {
        if domid == DomId::DOM0 {
            return;
        }
        for path in self.nodes.roots_owned_by(domid) {
            // The root and the special nodes stay; `forget` gives them to dom0.
            let Some(parent) = path.parent().filter(|_| !path.is_special()) else {
                continue;
            };
            // A root may be gone with another one above it.
            let removed = self.as_dom0(|view| view.remove_tree(&path, &parent));
            if let Err(code) = removed {
                tracing::debug!(%path, %code, "a node of a dead domain is gone already");
            }
        }
    }

    fn as_dom0<T>(&mut self, work: impl FnOnce(&mut View<'_>) -> T) -> T {
        let mut view = View {
            nodes: &mut self.nodes,
            transaction: None,
            domid: DomId::DOM0,
            quotas: &self.quotas,
            changes: Vec::new(),
        };
        let result = work(&mut view);
        let changes = view.changes;
        self.fire(&changes, DomId::DOM0);
        result
    }

    /// Carries out the requests of a connection as long as it reads its answers, and others read
    /// what it causes.
    fn serve(&mut self, id: ConnId) {
        while let Some(domid) = self.domid_of_input(id) {
            let held = self.is_held(domid);
            let Some(connection) = self.connections.get_mut(&id) else {
                return;
            };
            connection.held = held;
            if held {
                return;
            }
            match connection.next_request() {
                Ok(Some(request)) => self.handle(id, &request),
                Ok(None) => return,
                Err(_) => return self.drop_connection(id, GoneReason::BadMessage),
            }
        }
    }

    /// The domain of a connection with something to serve.
    fn domid_of_input(&self, id: ConnId) -> Option<DomId> {
        let connection = self.connections.get(&id)?;
        connection.has_input().then_some(connection.domid)
    }

    /// Whether another domain has too much to read of what this one caused.
    fn is_held(&self, domid: DomId) -> bool {
        domid != DomId::DOM0
            && self
                .connections
                .values()
                .any(|connection| connection.holds(domid))
    }

    /// A client has read what a guest caused, or never will: the guest's requests may go on.
    fn wake_held(&mut self, guest: DomId) {
        for (id, connection) in &mut self.connections {
            if connection.domid == guest && std::mem::take(&mut connection.held) {
                self.wakes.push_back(Wake::Input(*id));
            }
        }
    }

    fn remove(&mut self, id: ConnId) -> Option<Connection> {
        let connection = self.connections.remove(&id)?;
        for guest in connection.causes() {
            self.wake_held(guest);
        }
        Some(connection)
    }

    fn answer(&mut self, id: ConnId, answer: &Message) {
        if let Some(connection) = self.connections.get_mut(&id) {
            let fits = connection.push_answer(answer);
            self.after_push(id, fits);
        }
    }

    /// The event that comes with the newest watch.
    fn first_event(&mut self, id: ConnId) {
        if let Some(connection) = self.connections.get_mut(&id)
            && let Some(event) = connection.watches.last().map(|watch| watch.first_event())
        {
            let fits = connection.push_event(event, true, connection.domid);
            self.after_push(id, fits);
        }
    }

    fn fire_special(&mut self, path: NodePath) {
        let change = Change::new(&self.nodes, &path, true, None);
        self.fire(&[change], DomId::DOM0);
    }

    /// Queues the events of what domain `cause` changed.
    fn fire(&mut self, changes: &[Change], cause: DomId) {
        let mut pushed = Vec::new();
        for change in changes {
            for (id, connection) in &mut self.connections {
                if !change.is_visible_to(connection.domid) {
                    continue;
                }
                let events: Vec<Vec<u8>> = connection
                    .watches
                    .iter()
                    .filter_map(|watch| watch.event_for(change))
                    .collect();
                for event in events {
                    let merge = !change.is_special();
                    pushed.push((*id, connection.push_event(event, merge, cause)));
                }
            }
        }
        for (id, fits) in pushed {
            self.after_push(id, fits);
        }
    }

    fn after_push(&mut self, id: ConnId, fits: bool) {
        if !fits {
            self.drop_connection(id, GoneReason::NeverReads);
        } else if let Some(connection) = self.connections.get_mut(&id)
            && !connection.announced
        {
            connection.announced = true;
            self.wakes.push_back(Wake::Output(id));
        }
    }

    fn drop_connection(&mut self, id: ConnId, reason: GoneReason) {
        if let Some(connection) = self.remove(id) {
            tracing::warn!(domid = %connection.domid, %reason, "a XenStore client is disconnected");
            self.wakes.push_back(Wake::Gone(id, reason));
        }
    }

    fn reset(&mut self, id: ConnId) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.watches.clear();
            connection.transactions.clear();
        }
    }

    fn count_of(&self, domid: DomId, count: impl Fn(&Connection) -> usize) -> usize {
        self.connections
            .values()
            .filter(|connection| connection.domid == domid)
            .map(count)
            .fold(0, usize::saturating_add)
    }
}

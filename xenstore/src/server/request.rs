//! From a message to its answer: who may send it, what it carries, what it does.

use xen_types::{DomId, parse_decimal};

use super::view::View;
use super::watch::Watch;
use super::{ConnId, Server};
use crate::wire::{ErrorCode, Message, MessageType, NodePath, PAYLOAD_MAX, Permissions};

const OK: &[u8] = b"OK\0";

impl Server {
    /// Carries out one request: its events and its answer are queued.
    pub(super) fn handle(&mut self, id: ConnId, request: &Message) {
        self.counts.count(request.kind);
        let Some(domid) = self.connections.get(&id).map(|connection| connection.domid) else {
            return;
        };
        let result = match self.dispatch(id, domid, request) {
            Ok(payload) if payload.len() > PAYLOAD_MAX => Err(ErrorCode::TooBig),
            result => result,
        };
        let (kind, payload) = match result {
            Ok(payload) => (request.kind, payload),
            Err(code) => (MessageType::ERROR, format!("{code}\0").into_bytes()),
        };
        self.answer(
            id,
            &Message {
                kind,
                req_id: request.req_id,
                tx_id: request.tx_id,
                payload,
            },
        );
        if request.kind == MessageType::WATCH && kind == MessageType::WATCH {
            self.first_event(id);
        }
    }

    fn dispatch(
        &mut self,
        id: ConnId,
        domid: DomId,
        request: &Message,
    ) -> Result<Vec<u8>, ErrorCode> {
        let payload = request.payload.as_slice();
        match request.kind {
            MessageType::WATCH => return self.watch(id, domid, payload),
            MessageType::UNWATCH => return self.unwatch(id, domid, payload),
            kind if !is_known(kind) => return Err(ErrorCode::NotImplemented),
            kind if is_privileged(kind) && domid != DomId::DOM0 => return Err(ErrorCode::Access),
            _ => {}
        }
        if request.tx_id != 0 && !self.has_transaction(id, request.tx_id) {
            return Err(ErrorCode::NotFound);
        }
        match request.kind {
            MessageType::TRANSACTION_START => self.transaction_start(id, domid, request.tx_id),
            MessageType::TRANSACTION_END => self.transaction_end(id, domid, request),
            MessageType::RESET_WATCHES => {
                self.reset(id);
                Ok(OK.to_vec())
            }
            MessageType::GET_DOMAIN_PATH => {
                let home = NodePath::home(domain_arg(payload)?);
                Ok(format!("{home}\0").into_bytes())
            }
            MessageType::IS_DOMAIN_INTRODUCED => {
                let answer = self.is_introduced(domain_arg(payload)?);
                Ok(if answer { b"T\0" } else { b"F\0" }.to_vec())
            }
            MessageType::INTRODUCE => self.introduce_request(payload),
            MessageType::RELEASE | MessageType::RESUME => {
                let domid = domain_arg(payload)?;
                if domid == DomId::DOM0 {
                    return Err(ErrorCode::Invalid);
                }
                if !self.introduced.contains(&domid) {
                    return Err(ErrorCode::NotFound);
                }
                if request.kind == MessageType::RELEASE {
                    self.release(domid);
                }
                Ok(OK.to_vec())
            }
            MessageType::CONTROL => Err(ErrorCode::Invalid),
            _ => self.node_request(id, domid, request),
        }
    }

    /// A request on the tree, in a transaction or not.
    fn node_request(
        &mut self,
        id: ConnId,
        domid: DomId,
        request: &Message,
    ) -> Result<Vec<u8>, ErrorCode> {
        let transaction = self
            .connections
            .get_mut(&id)
            .and_then(|connection| connection.transactions.get_mut(&request.tx_id));
        let mut view = View {
            nodes: &mut self.nodes,
            transaction,
            domid,
            quotas: &self.quotas,
            changes: Vec::new(),
        };
        let result = on_view(&mut view, domid, request.kind, &request.payload);
        let changes = view.changes;
        self.fire(&changes, domid);
        result
    }

    fn watch(&mut self, id: ConnId, domid: DomId, payload: &[u8]) -> Result<Vec<u8>, ErrorCode> {
        let watch = watch_args(payload, domid)?;
        let count = self.count_of(domid, |connection| connection.watches.len());
        let connection = self.connections.get_mut(&id).ok_or(ErrorCode::Io)?;
        if connection.watches.iter().any(|other| other.is_same(&watch)) {
            return Err(ErrorCode::Exists);
        }
        if domid != DomId::DOM0 && count >= self.quotas.watches {
            return Err(ErrorCode::TooBig);
        }
        connection.watches.push(watch);
        Ok(OK.to_vec())
    }

    fn unwatch(&mut self, id: ConnId, domid: DomId, payload: &[u8]) -> Result<Vec<u8>, ErrorCode> {
        let watch = watch_args(payload, domid)?;
        let connection = self.connections.get_mut(&id).ok_or(ErrorCode::Io)?;
        let index = connection
            .watches
            .iter()
            .position(|other| other.is_same(&watch))
            .ok_or(ErrorCode::NotFound)?;
        connection.watches.remove(index);
        Ok(OK.to_vec())
    }

    fn has_transaction(&self, id: ConnId, tx_id: u32) -> bool {
        self.connections
            .get(&id)
            .is_some_and(|connection| connection.transactions.contains_key(&tx_id))
    }

    fn transaction_start(
        &mut self,
        id: ConnId,
        domid: DomId,
        tx_id: u32,
    ) -> Result<Vec<u8>, ErrorCode> {
        if tx_id != 0 {
            return Err(ErrorCode::Busy);
        }
        let open = self.count_of(domid, |connection| connection.transactions.len());
        if domid != DomId::DOM0 && open >= self.quotas.transactions {
            return Err(ErrorCode::NoSpace);
        }
        let connection = self.connections.get_mut(&id).ok_or(ErrorCode::Io)?;
        Ok(format!("{}\0", connection.begin()).into_bytes())
    }

    fn transaction_end(
        &mut self,
        id: ConnId,
        domid: DomId,
        request: &Message,
    ) -> Result<Vec<u8>, ErrorCode> {
        let commit = match one_arg(&request.payload)? {
            b"T" => true,
            b"F" => false,
            _ => return Err(ErrorCode::Invalid),
        };
        let transaction = self
            .connections
            .get_mut(&id)
            .and_then(|connection| connection.transactions.remove(&request.tx_id))
            .ok_or(ErrorCode::NotFound)?;
        if commit {
            let changes = transaction.commit(&mut self.nodes, domid, &self.quotas)?;
            self.fire(&changes, domid);
        }
        Ok(OK.to_vec())
    }

    /// `domid | gfn | port`; the last two mean nothing here but must look right.
    fn introduce_request(&mut self, payload: &[u8]) -> Result<Vec<u8>, ErrorCode> {
        let args = args(payload);
        let [domid, _gfn, port, ..] = args.as_slice() else {
            return Err(ErrorCode::Invalid);
        };
        let domid = domain(domid)?;
        let port = parse_decimal(port).filter(|port| *port != 0);
        if domid == DomId::DOM0 || domid >= DomId::FIRST_RESERVED || port.is_none() {
            return Err(ErrorCode::Invalid);
        }
        self.introduce(domid);
        Ok(OK.to_vec())
    }
}

fn on_view(
    view: &mut View<'_>,
    domid: DomId,
    kind: MessageType,
    payload: &[u8],
) -> Result<Vec<u8>, ErrorCode> {
    let node = |path| NodePath::resolve_node(path, domid).map_err(|_| ErrorCode::Invalid);
    let any = |path| NodePath::resolve(path, domid).map_err(|_| ErrorCode::Invalid);
    match kind {
        MessageType::READ => view.read(&node(one_arg(payload)?)?),
        MessageType::DIRECTORY => view.directory(&node(one_arg(payload)?)?),
        MessageType::DIRECTORY_PART => {
            let args = args(payload);
            let [path, offset] = args.as_slice() else {
                return Err(ErrorCode::Invalid);
            };
            let offset = parse_decimal(offset).ok_or(ErrorCode::Invalid)?;
            let offset = usize::try_from(offset).map_err(|_| ErrorCode::Invalid)?;
            view.directory_part(&node(path)?, offset)
        }
        // Not of a special node either, though they can be set.
        MessageType::GET_PERMS => view.get_perms(&node(one_arg(payload)?)?),
        MessageType::SET_PERMS => {
            let (path, perms) = first_arg(payload)?;
            let perms = Permissions::parse(perms).map_err(|_| ErrorCode::Invalid)?;
            view.set_perms(&any(path)?, perms).map(|()| OK.to_vec())
        }
        MessageType::WRITE => {
            let (path, value) = first_arg(payload)?;
            view.write(&node(path)?, value).map(|()| OK.to_vec())
        }
        MessageType::MKDIR => view.mkdir(&node(one_arg(payload)?)?).map(|()| OK.to_vec()),
        MessageType::RM => view.rm(&node(one_arg(payload)?)?).map(|()| OK.to_vec()),
        _ => Err(ErrorCode::NotImplemented),
    }
}

/// SET_TARGET is left out: it serves device models that emulate for a guest, and here are none.
fn is_known(kind: MessageType) -> bool {
    kind.name().is_some()
        && !matches!(
            kind,
            MessageType::WATCH_EVENT
                | MessageType::ERROR
                | MessageType::RESTRICT
                | MessageType::SET_TARGET
        )
}

fn is_privileged(kind: MessageType) -> bool {
    matches!(
        kind,
        MessageType::CONTROL
            | MessageType::INTRODUCE
            | MessageType::RELEASE
            | MessageType::IS_DOMAIN_INTRODUCED
            | MessageType::RESUME
    )
}

fn watch_args(payload: &[u8], domid: DomId) -> Result<Watch, ErrorCode> {
    match args(payload).as_slice() {
        [path, token] => Watch::new(path, token, domid).map_err(|_| ErrorCode::Invalid),
        _ => Err(ErrorCode::Invalid),
    }
}

/// The strings that end with a nul; what follows the last nul is ignored.
fn args(payload: &[u8]) -> Vec<&[u8]> {
    let mut args: Vec<&[u8]> = payload.split(|byte| *byte == 0).collect();
    args.pop();
    args
}

/// Up to the first nul, and after it.
fn first_arg(payload: &[u8]) -> Result<(&[u8], &[u8]), ErrorCode> {
    let mut parts = payload.splitn(2, |byte| *byte == 0);
    match (parts.next(), parts.next()) {
        (Some(first), Some(rest)) => Ok((first, rest)),
        _ => Err(ErrorCode::Invalid),
    }
}

/// The only string, which ends with the only nul.
fn one_arg(payload: &[u8]) -> Result<&[u8], ErrorCode> {
    match first_arg(payload)? {
        (arg, []) => Ok(arg),
        _ => Err(ErrorCode::Invalid),
    }
}

fn domain_arg(payload: &[u8]) -> Result<DomId, ErrorCode> {
    domain(one_arg(payload)?)
}

fn domain(digits: &[u8]) -> Result<DomId, ErrorCode> {
    parse_decimal(digits)
        .and_then(|number| u16::try_from(number).ok())
        .map(DomId)
        .ok_or(ErrorCode::Invalid)
}

//! A server with clients that are driven by hand, one request after the other.

use std::collections::HashMap;

use xen_types::DomId;
use xenstore::server::{ConnId, Quotas, Server, Wake};
use xenstore::wire::{Decoder, Message};
use xenstore::{Access, ErrorCode, MessageType, Permissions};

/// What a request answers.
pub(crate) type Answer = Result<Vec<u8>, ErrorCode>;

pub(crate) const OK: Answer = Ok(Vec::new());

#[derive(Default)]
pub(crate) struct Bench {
    pub(crate) server: Server,
    decoders: HashMap<ConnId, Decoder>,
    events: HashMap<ConnId, Vec<(String, String)>>,
}

/// A client; `tx` is the transaction it speaks in.
#[derive(Clone, Copy)]
pub(crate) struct Peer {
    pub(crate) id: ConnId,
    pub(crate) tx: u32,
}

impl Bench {
    pub(crate) fn with_quotas(quotas: Quotas) -> Self {
        Self {
            server: Server::new(quotas),
            ..Self::default()
        }
    }

    pub(crate) fn peer(&mut self, domid: u16) -> Peer {
        Peer {
            id: self.server.connect(DomId(domid)),
            tx: 0,
        }
    }

    /// A node with everything above it, as dom0 makes it; `perms` like `n0,r5`.
    pub(crate) fn node(&mut self, path: &str, value: &str, perms: &str) {
        let perms = perms.replace(',', "\0") + "\0";
        let perms = Permissions::parse(perms.as_bytes()).unwrap();
        self.server
            .make_node(path, value.as_bytes(), perms)
            .unwrap();
    }

    /// The home directory of a domain, which may do there what it wants.
    pub(crate) fn home(&mut self, domid: u16) {
        self.node(
            &format!("/local/domain/{domid}"),
            "",
            &Permissions {
                owner: DomId(domid),
                default: Access::None,
                domains: Vec::new(),
            }
            .to_string(),
        );
    }

    /// One request and its answer. "OK" is given as an empty value.
    pub(crate) fn ask(&mut self, peer: Peer, kind: MessageType, payload: &[u8]) -> Answer {
        let mut bytes = Vec::new();
        let request = Message {
            kind,
            req_id: 77,
            tx_id: peer.tx,
            payload: payload.to_vec(),
        };
        request.encode(&mut bytes).unwrap();
        self.server.receive(peer.id, &bytes);
        let mut answers = self.collect(peer);
        assert_eq!(answers.len(), 1, "one answer to one request");
        let answer = answers.remove(0);
        assert_eq!((answer.req_id, answer.tx_id), (77, peer.tx));
        if answer.kind == MessageType::ERROR {
            return Err(ErrorCode::parse(&answer.payload).unwrap());
        }
        assert_eq!(answer.kind, kind);
        Ok(match answer.payload.as_slice() {
            b"OK\0" => Vec::new(),
            other => other.to_vec(),
        })
    }

    /// The events that wait for a client.
    pub(crate) fn events(&mut self, peer: Peer) -> Vec<(String, String)> {
        assert!(self.collect(peer).is_empty());
        self.events.remove(&peer.id).unwrap_or_default()
    }

    /// The paths of these events.
    pub(crate) fn event_paths(&mut self, peer: Peer) -> Vec<String> {
        self.events(peer)
            .into_iter()
            .map(|(path, _)| path)
            .collect()
    }

    /// Likewise of a client whose answers nobody has taken yet.
    pub(crate) fn event_paths_of_silent(&mut self, peer: Peer) -> Vec<String> {
        self.collect(peer);
        self.event_paths(peer)
    }

    fn collect(&mut self, peer: Peer) -> Vec<Message> {
        let decoder = self.decoders.entry(peer.id).or_default();
        let mut answers = Vec::new();
        while !self.server.output(peer.id).is_empty() {
            let bytes = self.server.output(peer.id).to_vec();
            self.server.sent(peer.id, bytes.len());
            let mut input = bytes.as_slice();
            while let Some(message) = decoder.decode(&mut input).unwrap() {
                if message.kind == MessageType::WATCH_EVENT {
                    assert_eq!((message.req_id, message.tx_id), (0, 0));
                    let parts: Vec<String> = message
                        .payload
                        .split(|byte| *byte == 0)
                        .map(|part| String::from_utf8(part.to_vec()).unwrap())
                        .collect();
                    let [path, token, rest] = parts.try_into().unwrap();
                    assert_eq!(rest, "");
                    self.events.entry(peer.id).or_default().push((path, token));
                } else {
                    answers.push(message);
                }
            }
        }
        answers
    }

    pub(crate) fn read(&mut self, peer: Peer, path: &str) -> Answer {
        self.ask(peer, MessageType::READ, format!("{path}\0").as_bytes())
    }

    pub(crate) fn write(&mut self, peer: Peer, path: &str, value: &str) -> Answer {
        let payload = format!("{path}\0{value}");
        self.ask(peer, MessageType::WRITE, payload.as_bytes())
    }

    pub(crate) fn mkdir(&mut self, peer: Peer, path: &str) -> Answer {
        self.ask(peer, MessageType::MKDIR, format!("{path}\0").as_bytes())
    }

    pub(crate) fn rm(&mut self, peer: Peer, path: &str) -> Answer {
        self.ask(peer, MessageType::RM, format!("{path}\0").as_bytes())
    }

    pub(crate) fn list(&mut self, peer: Peer, path: &str) -> Result<Vec<String>, ErrorCode> {
        let payload = format!("{path}\0");
        let list = self.ask(peer, MessageType::DIRECTORY, payload.as_bytes())?;
        let list = String::from_utf8(list).unwrap();
        Ok(list.split_terminator('\0').map(str::to_owned).collect())
    }

    pub(crate) fn get_perms(&mut self, peer: Peer, path: &str) -> Result<String, ErrorCode> {
        let payload = format!("{path}\0");
        self.ask(peer, MessageType::GET_PERMS, payload.as_bytes())
            .map(|perms| Permissions::parse(&perms).unwrap().to_string())
    }

    pub(crate) fn set_perms(&mut self, peer: Peer, path: &str, perms: &str) -> Answer {
        let payload = format!("{path}\0{}\0", perms.replace(',', "\0"));
        self.ask(peer, MessageType::SET_PERMS, payload.as_bytes())
    }

    pub(crate) fn watch(&mut self, peer: Peer, path: &str, token: &str) -> Answer {
        let payload = format!("{path}\0{token}\0");
        self.ask(peer, MessageType::WATCH, payload.as_bytes())
    }

    /// Registers and takes the event that comes at once.
    pub(crate) fn watch_quietly(&mut self, peer: Peer, path: &str) {
        assert_eq!(self.watch(peer, path, "t"), OK);
        assert_eq!(self.events(peer).len(), 1);
    }

    /// The same client, speaking in a new transaction.
    pub(crate) fn begin(&mut self, peer: Peer) -> Result<Peer, ErrorCode> {
        let id = self.ask(peer, MessageType::TRANSACTION_START, b"\0")?;
        let id = id.strip_suffix(&[0]).unwrap();
        let tx = xen_types::parse_decimal(id).unwrap();
        Ok(Peer { tx, ..peer })
    }

    pub(crate) fn commit(&mut self, peer: Peer) -> Answer {
        self.ask(peer, MessageType::TRANSACTION_END, b"T\0")
    }

    pub(crate) fn abort(&mut self, peer: Peer) -> Answer {
        self.ask(peer, MessageType::TRANSACTION_END, b"F\0")
    }

    pub(crate) fn wakes(&mut self) -> Vec<Wake> {
        std::iter::from_fn(|| self.server.poll_wake()).collect()
    }
}

pub(crate) fn value(text: &str) -> Answer {
    Ok(text.as_bytes().to_vec())
}

//! One client of the server: bytes in, bytes out, both bounded; its watches and transactions.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::Arc;

use xen_types::DomId;

use super::transaction::Transaction;
use super::watch::Watch;
use crate::wire::{Decoder, Message, MessageType, WireError};

/// Requests wait while this much output does: a client is answered as fast as it reads. Room for a
/// few of the longest answers, so that pipelined requests are not slowed down.
pub const OUTPUT_PAUSE: usize = 64 << 10;

/// With more output than this a client is disconnected. Above [`OUTPUT_PAUSE`] only watch events
/// add to it, some ten thousand distinct ones.
pub const OUTPUT_MAX: usize = 1 << 20;

/// With more input waiting than this a client is disconnected: it, or the code that reads for it,
/// does not stop when asked to ([`super::Server::wants_input`]).
pub const INPUT_MAX: usize = 256 << 10;

#[derive(Debug)]
pub(super) struct Connection {
    pub(super) domid: DomId,
    pub(super) watches: Vec<Watch>,
    pub(super) transactions: BTreeMap<u32, Transaction>,
    last_transaction: u32,
    decoder: Decoder,
    input: VecDeque<u8>,
    /// Whole messages.
    output: VecDeque<Arc<[u8]>>,
    output_len: usize,
    /// Bytes of the first message that are sent already.
    sent: usize,
    /// Mergeable events in `output` of which nothing was sent yet.
    waiting_events: HashSet<Arc<[u8]>>,
    /// A wake told of this output already.
    pub(super) announced: bool,
}

impl Connection {
    pub(super) fn new(domid: DomId) -> Self {
        Self {
            domid,
            watches: Vec::new(),
            transactions: BTreeMap::new(),
            last_transaction: 0,
            decoder: Decoder::default(),
            input: VecDeque::new(),
            output: VecDeque::new(),
            output_len: 0,
            sent: 0,
            waiting_events: HashSet::new(),
            announced: false,
        }
    }

    /// Starts a transaction; its id.
    pub(super) fn begin(&mut self) -> u32 {
        loop {
            self.last_transaction = self.last_transaction.wrapping_add(1).max(1);
            if !self.transactions.contains_key(&self.last_transaction) {
                self.transactions
                    .insert(self.last_transaction, Transaction::default());
                return self.last_transaction;
            }
        }
    }

    /// False if there is too much.
    pub(super) fn take_input(&mut self, bytes: &[u8]) -> bool {
        self.input.extend(bytes);
        self.input.len() <= INPUT_MAX
    }

    pub(super) fn wants_input(&self) -> bool {
        self.input.is_empty() && self.output_len < OUTPUT_PAUSE
    }

    /// The next request, unless the client has to read first.
    pub(super) fn next_request(&mut self) -> Result<Option<Message>, WireError> {
        while self.output_len < OUTPUT_PAUSE && !self.input.is_empty() {
            let (mut bytes, _) = self.input.as_slices();
            let before = bytes.len();
            let message = self.decoder.decode(&mut bytes)?;
            let used = before.saturating_sub(bytes.len());
            self.input.drain(..used);
            if message.is_some() {
                return Ok(message);
            }
        }
        Ok(None)
    }

    /// Queues an answer. False if the output is too much now.
    pub(super) fn push_answer(&mut self, answer: &Message) -> bool {
        self.push(answer, false)
    }

    /// Queues a watch event, unless the same one waits already. False as above. Events too long
    /// to be sent are dropped, as xenstored does.
    pub(super) fn push_event(&mut self, payload: Vec<u8>, merge: bool) -> bool {
        let event = Message {
            kind: MessageType::WATCH_EVENT,
            req_id: 0,
            tx_id: 0,
            payload,
        };
        self.push(&event, merge)
    }

    fn push(&mut self, message: &Message, merge: bool) -> bool {
        let mut bytes = Vec::new();
        if message.encode(&mut bytes).is_err() {
            return true;
        }
        let bytes: Arc<[u8]> = bytes.into();
        if merge && !self.waiting_events.insert(Arc::clone(&bytes)) {
            return true;
        }
        self.output_len = self.output_len.saturating_add(bytes.len());
        self.output.push_back(bytes);
        self.output_len <= OUTPUT_MAX
    }

    /// The next bytes to send; empty if there are none.
    pub(super) fn output(&self) -> &[u8] {
        self.output
            .front()
            .and_then(|message| message.get(self.sent..))
            .unwrap_or_default()
    }

    /// `count` of the bytes that `output` gave are sent.
    pub(super) fn advance(&mut self, count: usize) {
        let Some(front) = self.output.front() else {
            return;
        };
        let count = count.min(front.len().saturating_sub(self.sent));
        if count > 0 {
            self.waiting_events.remove(front);
        }
        self.sent = self.sent.saturating_add(count);
        self.output_len = self.output_len.saturating_sub(count);
        if self.sent == front.len() {
            self.output.pop_front();
            self.sent = 0;
            self.announced = !self.output.is_empty();
        }
    }
}

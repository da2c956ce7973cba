//! One client of the server: bytes in, bytes out, both bounded; its watches and transactions.
//!
//! What other guests cause is not held against a client: their events are counted apart, for each of
//! them, and a guest waits while there are too many of its own.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::Arc;

use xen_types::DomId;

use super::transaction::Transaction;
use super::watch::Watch;
use crate::wire::{Decoder, Message, MessageType, WireError};

/// Requests wait while this much output does: a client is answered as fast as it reads. Room for a
/// few of the longest answers, so that pipelined requests are not slowed down.
pub const OUTPUT_PAUSE: usize = 64 << 10;

/// With more output than this a client is disconnected, not counting events that other guests
/// caused. Above [`OUTPUT_PAUSE`] only watch events add to it, some ten thousand distinct ones.
pub const OUTPUT_MAX: usize = 1 << 20;

/// Requests of a guest wait while this many bytes of events that it caused wait in the output of a
/// client of another domain: it makes events as fast as they are read. Two of the longest ones, a
/// hundred usual ones: answers to that client stand behind them. One request more may add what one transaction changes.
pub const EVENTS_PAUSE: usize = 8 << 10;

/// They go on below this: some events later, not with each one.
const EVENTS_RESUME: usize = EVENTS_PAUSE / 2;

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
    output: VecDeque<Queued>,
    output_len: usize,
    /// The bytes of it that are events which other guests caused, by guest.
    caused: BTreeMap<DomId, usize>,
    /// Server ticks since the connection was made.
    ticks: u64,
    /// Requests wait until other domains read what this one caused.
    pub(super) held: bool,
    /// Bytes of the first message that are sent already.
    sent: usize,
    /// Mergeable events in `output` of which nothing was sent yet.
    waiting_events: HashSet<Arc<[u8]>>,
    /// A wake told of this output already.
    pub(super) announced: bool,
}

/// A whole message that is not sent yet.
#[derive(Debug)]
struct Queued {
    bytes: Arc<[u8]>,
    /// The guest that is charged for it.
    cause: Option<DomId>,
    /// The connection's `ticks` when it came.
    since: u64,
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
            caused: BTreeMap::new(),
            ticks: 0,
            held: false,
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

    /// Whether anything was received that is not served yet.
    pub(super) fn has_input(&self) -> bool {
        !self.input.is_empty()
    }

    /// Whether events that the guest caused and this client leaves unread are too many.
    pub(super) fn holds(&self, guest: DomId) -> bool {
        self.caused.get(&guest).copied().unwrap_or(0) >= EVENTS_PAUSE
    }

    /// The guests of which events wait here.
    pub(super) fn causes(&self) -> impl Iterator<Item = DomId> {
        self.caused.keys().copied()
    }

    /// A tick of the server: whether a guest has to wait because this client left something unread
    /// for a whole tick.
    pub(super) fn tick(&mut self) -> bool {
        self.ticks = self.ticks.saturating_add(1);
        let oldest = self.output.front().map_or(self.ticks, |first| first.since);
        self.ticks.saturating_sub(oldest) > 1
            && self.caused.values().any(|bytes| *bytes >= EVENTS_PAUSE)
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
        self.push(answer, false, None)
    }

    /// Queues a watch event that domain `cause` caused, unless the same one waits already. False as
    /// above. Events too long to be sent are dropped, as xenstored does.
    pub(super) fn push_event(&mut self, payload: Vec<u8>, merge: bool, cause: DomId) -> bool {
        let event = Message {
            kind: MessageType::WATCH_EVENT,
            req_id: 0,
            tx_id: 0,
            payload,
        };
        let charged = cause != DomId::DOM0 && cause != self.domid;
        self.push(&event, merge, charged.then_some(cause))
    }

    fn push(&mut self, message: &Message, merge: bool, cause: Option<DomId>) -> bool {
        let mut bytes = Vec::new();
        if message.encode(&mut bytes).is_err() {
            return true;
        }
        let bytes: Arc<[u8]> = bytes.into();
        if merge && !self.waiting_events.insert(Arc::clone(&bytes)) {
            return true;
        }
        self.output_len = self.output_len.saturating_add(bytes.len());
        if let Some(cause) = cause {
            let caused = self.caused.entry(cause).or_default();
            *caused = caused.saturating_add(bytes.len());
        }
        self.output.push_back(Queued {
            bytes,
            cause,
            since: self.ticks,
        });
        let by_others = self.caused.values().copied().sum();
        self.output_len.saturating_sub(by_others) <= OUTPUT_MAX
    }

    /// The next bytes to send; empty if there are none.
    pub(super) fn output(&self) -> &[u8] {
        self.output
            .front()
            .and_then(|message| message.bytes.get(self.sent..))
            .unwrap_or_default()
    }

    /// `count` of the bytes that `output` gave are sent. The guest that need not wait for this client
    /// any more, if that ends now.
    pub(super) fn advance(&mut self, count: usize) -> Option<DomId> {
        let front = self.output.front()?;
        let (len, cause) = (front.bytes.len(), front.cause);
        let count = count.min(len.saturating_sub(self.sent));
        if count > 0 {
            self.waiting_events.remove(&front.bytes);
        }
        self.sent = self.sent.saturating_add(count);
        self.output_len = self.output_len.saturating_sub(count);
        if self.sent == len {
            self.output.pop_front();
            self.sent = 0;
            self.announced = !self.output.is_empty();
        }
        cause.filter(|cause| self.discharge(*cause, count))
    }

    /// Whether this takes the guest below [`EVENTS_RESUME`].
    fn discharge(&mut self, cause: DomId, count: usize) -> bool {
        let Some(bytes) = self.caused.get_mut(&cause) else {
            return false;
        };
        let before = *bytes;
        let left = before.saturating_sub(count);
        *bytes = left;
        if left == 0 {
            self.caused.remove(&cause);
        }
        before >= EVENTS_RESUME && left < EVENTS_RESUME
    }
}

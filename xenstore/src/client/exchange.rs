//! One request and its answer, with the watch events that come in between.

use std::time::Instant;

use super::{Client, StoreError};
use crate::wire::{ErrorCode, Message, MessageType};

/// Most messages that one look for events takes in. If none of so many is for a watch of ours, the
/// daemon floods us.
const MAX_DRAIN: usize = 16 << 10;

impl Client {
    /// One request of nul-terminated strings.
    pub(super) fn ask(
        &mut self,
        tx_id: u32,
        kind: MessageType,
        subject: &str,
        strings: &[&[u8]],
    ) -> Result<Vec<u8>, StoreError> {
        let mut payload = strings.join(&0);
        payload.push(0);
        self.request(tx_id, kind, subject, payload)
    }

    /// One request and its answer; `subject` is what an error is about.
    pub(super) fn request(
        &mut self,
        tx_id: u32,
        kind: MessageType,
        subject: &str,
        payload: Vec<u8>,
    ) -> Result<Vec<u8>, StoreError> {
        if self.broken {
            return Err(StoreError::Closed);
        }
        let max = self.link.payload_max();
        if payload.len() > max {
            return Err(StoreError::TooLong {
                path: subject.to_owned(),
                len: payload.len(),
                max,
            });
        }
        self.last_req_id = self.last_req_id.wrapping_add(1).max(1);
        let request = Message {
            kind,
            req_id: self.last_req_id,
            tx_id,
            payload,
        };
        self.counts.count(kind);
        let answer = self.exchange(&request, subject);
        let answer = self.break_on_error(answer)?;
        // What was read along with the answer makes the descriptor readable no more.
        let events = self.take_read();
        self.break_on_error(events)?;
        answer.map_err(|code| StoreError::from_code(code, kind, subject))
    }

    /// The outer error is one of the connection, the inner one is the daemon's answer.
    fn exchange(
        &mut self,
        request: &Message,
        subject: &str,
    ) -> Result<Result<Vec<u8>, ErrorCode>, StoreError> {
        let limit = self.timeout;
        let timeout = || StoreError::Timeout {
            kind: request.kind,
            subject: subject.to_owned(),
            limit,
        };
        let deadline = Instant::now().checked_add(self.timeout);
        if let Some(refused) = self.link.send(request, deadline, timeout)? {
            return Ok(Err(refused));
        }
        while let Some(message) = self.link.receive_before(deadline)? {
            match message.kind {
                MessageType::WATCH_EVENT => self.events.push_payload(&message.payload)?,
                MessageType::ERROR if message.req_id == request.req_id => {
                    // An error unknown to us is EINVAL, as it is in libxenstore.
                    let code = ErrorCode::parse(&message.payload);
                    return Ok(Err(code.unwrap_or(ErrorCode::Invalid)));
                }
                kind if kind == request.kind && is_answer(&message, request) => {
                    return Ok(Ok(message.payload));
                }
                _ => {
                    return Err(StoreError::Protocol {
                        problem: "an answer to nothing that was asked",
                    });
                }
            }
        }
        Err(timeout())
    }

    /// Takes what lies ready; only events can, since no request is under way.
    pub(super) fn drain(&mut self) -> Result<(), StoreError> {
        if self.broken {
            return Err(StoreError::Closed);
        }
        let drained = self.drain_link();
        self.break_on_error(drained)
    }

    fn drain_link(&mut self) -> Result<(), StoreError> {
        for _ in 0..MAX_DRAIN {
            let Some(message) = self.link.receive()? else {
                return Ok(());
            };
            self.take_event(&message)?;
        }
        if self.events.is_empty() {
            return Err(StoreError::Protocol {
                problem: "a flood of events that nobody watches for",
            });
        }
        Ok(())
    }

    /// Queues the events that have been read already.
    fn take_read(&mut self) -> Result<(), StoreError> {
        while let Some(message) = self.link.decode()? {
            self.take_event(&message)?;
        }
        Ok(())
    }

    /// A message while no request is under way.
    fn take_event(&mut self, message: &Message) -> Result<(), StoreError> {
        if message.kind != MessageType::WATCH_EVENT {
            return Err(StoreError::Protocol {
                problem: "an answer to nothing that was asked",
            });
        }
        self.events.push_payload(&message.payload)
    }

    pub(super) fn break_on_error<T>(
        &mut self,
        result: Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.broken |= result.is_err();
        result
    }
}

/// Kernels older than their `xenbus_command_reply` answer WATCH and UNWATCH on the device with
/// request id 0; they do it before `write` returns, so that the type is enough.
fn is_answer(message: &Message, request: &Message) -> bool {
    let by_kernel = matches!(message.kind, MessageType::WATCH | MessageType::UNWATCH);
    message.req_id == request.req_id || (by_kernel && message.req_id == 0)
}

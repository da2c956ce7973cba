//! The tokens of a driver end: who waits for which answer, and how many may (binding section 4).

use super::private::PrivateId;
use crate::driver::RequestId;
use crate::wire::{DevNum, MsgId, Token};
use alloc::collections::BTreeMap;

/// What a token that is taken stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sent {
    Device {
        dev_num: DevNum,
        registration: u64,
        id: RequestId,
    },
    Devices {
        offset: u16,
    },
    Ping,
    Private {
        id: PrivateId,
        msg_id: MsgId,
    },
}

/// Every request that was sent and not answered.
#[derive(Debug)]
pub(super) struct Tokens {
    taken: BTreeMap<Token, Sent>,
    last: Token,
    slots: u16,
}

impl Tokens {
    pub(super) const fn new(slots: u16) -> Self {
        Tokens {
            taken: BTreeMap::new(),
            last: Token::EVENT,
            slots,
        }
    }

    /// Whether another request may be outstanding.
    pub(super) fn has_slot(&self) -> bool {
        self.taken.len() < usize::from(self.slots)
    }

    pub(super) fn len(&self) -> usize {
        self.taken.len()
    }

    /// Takes the next free token; 0 belongs to events. To be called only with a slot, so one of the 65,535 is free.
    pub(super) fn take(&mut self, sent: Sent) -> Token {
        loop {
            self.last = Token(self.last.0.checked_add(1).unwrap_or(1));
            if !self.taken.contains_key(&self.last) {
                self.taken.insert(self.last, sent);
                return self.last;
            }
        }
    }

    pub(super) fn get(&self, token: Token) -> Option<Sent> {
        self.taken.get(&token).copied()
    }

    pub(super) fn free(&mut self, token: Token) {
        self.taken.remove(&token);
    }

    /// The device is gone: nothing more comes from it.
    pub(super) fn free_device(&mut self, gone: DevNum) {
        self.taken
            .retain(|_, sent| !matches!(sent, Sent::Device { dev_num, .. } if *dev_num == gone));
    }

    pub(super) fn has_ping(&self) -> bool {
        self.taken.values().any(|sent| *sent == Sent::Ping)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_wrap_past_0_and_past_what_is_taken() {
        let mut tokens = Tokens::new(3);
        assert_eq!(tokens.take(Sent::Ping), Token(1));
        for number in 2..=65535 {
            let token = tokens.take(Sent::Devices { offset: 0 });
            assert_eq!(token, Token(number));
            tokens.free(token);
        }
        assert_eq!(
            tokens.take(Sent::Devices { offset: 8 }),
            Token(2),
            "0 is the events', 1 is taken"
        );
        assert_eq!(tokens.get(Token(1)), Some(Sent::Ping));
        assert!(tokens.has_slot());
        tokens.take(Sent::Ping);
        assert!(!tokens.has_slot());
    }
}

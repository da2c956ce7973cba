//! A transaction: what is done through it becomes visible at once or not at all.

use super::tree::sealed::Caller;
use super::{Client, StoreError};
use crate::wire::MessageType;

/// Operations on the tree ([`super::Tree`]) that take effect together at [`Transaction::commit`].
///
/// Every node that was looked at, absent ones too, must be the same at the commit, else it fails
/// with [`StoreError::Conflict`]. Dropping a transaction aborts it.
#[derive(Debug)]
pub struct Transaction<'a> {
    client: &'a mut Client,
    id: u32,
    open: bool,
}

impl<'a> Transaction<'a> {
    pub(super) fn new(client: &'a mut Client, id: u32) -> Self {
        Self {
            client,
            id,
            open: true,
        }
    }

    /// Makes everything done in it visible.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] if somebody else changed what it looked at; see [`StoreError`].
    pub fn commit(mut self) -> Result<(), StoreError> {
        self.end(b"T")
    }

    /// Drops everything done in it.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn abort(mut self) -> Result<(), StoreError> {
        self.end(b"F")
    }

    fn end(&mut self, how: &[u8]) -> Result<(), StoreError> {
        self.open = false;
        let subject = "the end of a transaction";
        self.client
            .ask(self.id, MessageType::TRANSACTION_END, subject, &[how])
            .map(drop)
    }
}

impl Drop for Transaction<'_> {
    fn drop(&mut self) {
        if self.open
            && let Err(error) = self.end(b"F")
        {
            tracing::debug!(%error, "a XenStore transaction could not be aborted");
        }
    }
}

impl Caller for Transaction<'_> {
    fn call(
        &mut self,
        kind: MessageType,
        path: &str,
        parts: &[&[u8]],
    ) -> Result<Vec<u8>, StoreError> {
        self.client.request(self.id, kind, path, parts.join(&0))
    }
}

impl Caller for Client {
    fn call(
        &mut self,
        kind: MessageType,
        path: &str,
        parts: &[&[u8]],
    ) -> Result<Vec<u8>, StoreError> {
        self.request(0, kind, path, parts.join(&0))
    }
}

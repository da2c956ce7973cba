//! What can be done to nodes, alike directly and inside a transaction.

use super::{Client, StoreError, Transaction};
use crate::wire::{ErrorCode, MessageType, PathError, Permissions, check_path, strings};

/// How often [`Tree::directory`] starts again because the list changed under its hands.
const DIRECTORY_ATTEMPTS: usize = 16;

/// Operations on nodes. Paths are absolute, or relative to the home of this domain.
///
/// Values are bytes; by convention ASCII without a terminating nul.
pub trait Tree: sealed::Caller {
    /// The value of a node.
    ///
    /// # Errors
    /// See [`StoreError`].
    fn read(&mut self, path: &str) -> Result<Vec<u8>, StoreError> {
        check(path)?;
        self.call(MessageType::READ, path, &[path.as_bytes(), b""])
    }

    /// The value of a node; `None` if it does not exist as far as this domain may know
    /// ([`StoreError::is_absent`]).
    ///
    /// # Errors
    /// See [`StoreError`].
    fn read_opt(&mut self, path: &str) -> Result<Option<Vec<u8>>, StoreError> {
        match self.read(path) {
            Ok(value) => Ok(Some(value)),
            Err(error) if error.is_absent() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sets the value of a node; makes it and its parents if they are missing.
    ///
    /// # Errors
    /// See [`StoreError`]; [`StoreError::TooLong`] if path and value do not fit into a message.
    fn write(&mut self, path: &str, value: impl AsRef<[u8]>) -> Result<(), StoreError> {
        check(path)?;
        self.call(MessageType::WRITE, path, &[path.as_bytes(), value.as_ref()])
            .map(drop)
    }

    /// Makes a node with an empty value, and its parents if they are missing. What exists stays.
    ///
    /// # Errors
    /// See [`StoreError`].
    fn mkdir(&mut self, path: &str) -> Result<(), StoreError> {
        check(path)?;
        self.call(MessageType::MKDIR, path, &[path.as_bytes(), b""])
            .map(drop)
    }

    /// Removes a node with everything below it. It need not exist, but its parent must.
    ///
    /// # Errors
    /// See [`StoreError`].
    fn rm(&mut self, path: &str) -> Result<(), StoreError> {
        check(path)?;
        self.call(MessageType::RM, path, &[path.as_bytes(), b""])
            .map(drop)
    }

    /// The names of a node's children, however many.
    ///
    /// # Errors
    /// See [`StoreError`].
    fn directory(&mut self, path: &str) -> Result<Vec<String>, StoreError> {
        check(path)?;
        match self.call(MessageType::DIRECTORY, path, &[path.as_bytes(), b""]) {
            Ok(list) => names(&list),
            // The list does not fit into a message.
            Err(StoreError::Quota {
                code: ErrorCode::TooBig,
                ..
            }) => long_directory(self, path),
            Err(error) => Err(error),
        }
    }

    /// Who may do what with a node, or with a special name such as `@releaseDomain`.
    ///
    /// # Errors
    /// See [`StoreError`].
    fn get_perms(&mut self, path: &str) -> Result<Permissions, StoreError> {
        check(path)?;
        let list = self.call(MessageType::GET_PERMS, path, &[path.as_bytes(), b""])?;
        Permissions::parse(&list).map_err(|reason| StoreError::Permissions {
            path: path.to_owned(),
            reason,
        })
    }

    /// Sets who may do what with a node. Only its owner and dom0 may, only dom0 can change the
    /// owner.
    ///
    /// # Errors
    /// See [`StoreError`].
    fn set_perms(&mut self, path: &str, perms: &Permissions) -> Result<(), StoreError> {
        check(path)?;
        let list = perms.to_payload();
        self.call(MessageType::SET_PERMS, path, &[path.as_bytes(), &list])
            .map(drop)
    }
}

impl Tree for Client {}
impl Tree for Transaction<'_> {}

pub(super) mod sealed {
    use super::{MessageType, StoreError};

    /// Sends the parts, joined by nuls, and gives the answer.
    pub trait Caller {
        fn call(
            &mut self,
            kind: MessageType,
            path: &str,
            parts: &[&[u8]],
        ) -> Result<Vec<u8>, StoreError>;
    }
}

pub(super) fn check(path: &str) -> Result<(), StoreError> {
    let bad = |reason: PathError| StoreError::BadPath {
        path: path.to_owned(),
        reason,
    };
    check_path(path.as_bytes()).map(drop).map_err(bad)
}

/// Parts of the list, until the end and all of one generation of the node.
fn long_directory<T: Tree + ?Sized>(tree: &mut T, path: &str) -> Result<Vec<String>, StoreError> {
    for _ in 0..DIRECTORY_ATTEMPTS {
        let mut list = Vec::new();
        let mut generation = None;
        loop {
            let offset = list.len().to_string();
            let part = tree.call(
                MessageType::DIRECTORY_PART,
                path,
                &[path.as_bytes(), offset.as_bytes(), b""],
            )?;
            let Some(end) = part.iter().position(|byte| *byte == 0) else {
                return Err(BAD_LIST);
            };
            let (seen, children) = part.split_at(end);
            let children = children.get(1..).unwrap_or_default();
            if generation.get_or_insert_with(|| seen.to_vec()) != seen {
                break;
            }
            // The end is marked by an empty name.
            if let Some(last) = end_of_list(children) {
                list.extend_from_slice(last);
                return names(&list);
            }
            if children.is_empty() {
                return Err(BAD_LIST);
            }
            list.extend_from_slice(children);
            if list.len() > MAX_DIRECTORY {
                return Err(BAD_LIST);
            }
        }
    }
    Err(StoreError::Conflict)
}

/// Most bytes of a list: a thousand guests with names of a thousand bytes are far below.
const MAX_DIRECTORY: usize = 4 << 20;

const BAD_LIST: StoreError = StoreError::Protocol {
    problem: "a list of children that is none",
};

fn end_of_list(children: &[u8]) -> Option<&[u8]> {
    match children {
        [0] => Some(&[]),
        [.., 0, 0] => children.split_last().map(|(_, rest)| rest),
        _ => None,
    }
}

fn names(list: &[u8]) -> Result<Vec<String>, StoreError> {
    strings(list)
        .map(|name| match check_path(name) {
            Ok(name) if !name.contains('/') => Ok(name.to_owned()),
            _ => Err(BAD_LIST),
        })
        .collect()
}

//! Permissions of a node, such as `n0,r5`: owner 0, nobody else but domain 5, which may read.

use core::fmt;

use xen_types::{DomId, parse_decimal};

use super::strings;

/// What a domain may do with a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Access {
    /// `n`
    #[default]
    None,
    /// `r`
    Read,
    /// `w`
    Write,
    /// `b`
    Both,
}

impl Access {
    /// Whether reading is in it.
    #[must_use]
    pub const fn may_read(self) -> bool {
        matches!(self, Access::Read | Access::Both)
    }

    /// Whether writing is in it.
    #[must_use]
    pub const fn may_write(self) -> bool {
        matches!(self, Access::Write | Access::Both)
    }

    const fn letter(self) -> char {
        match self {
            Access::None => 'n',
            Access::Read => 'r',
            Access::Write => 'w',
            Access::Both => 'b',
        }
    }

    const fn from_letter(letter: u8) -> Option<Self> {
        match letter {
            b'n' => Some(Access::None),
            b'r' => Some(Access::Read),
            b'w' => Some(Access::Write),
            b'b' => Some(Access::Both),
            _ => None,
        }
    }
}

/// Not a list of permissions.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{text}\" is no permission: expected n, r, w or b and a domain id, such as r5")]
pub struct PermissionError {
    /// The part that could not be read.
    pub text: String,
}

/// Who may do what with a node.
///
/// On the wire the first entry names the owner, who may do everything, and what everybody may do
/// who is not named; each further entry names one domain. Domain 0 may do everything always.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Permissions {
    /// The owner.
    pub owner: DomId,
    /// What a domain may do that has no entry.
    pub default: Access,
    /// Entries for single domains; the first that names a domain counts.
    pub domains: Vec<(DomId, Access)>,
}

impl Permissions {
    /// The owner alone.
    #[must_use]
    pub const fn private(owner: DomId) -> Self {
        Self {
            owner,
            default: Access::None,
            domains: Vec::new(),
        }
    }

    /// The same with one more entry.
    #[must_use]
    pub fn with(mut self, domid: DomId, access: Access) -> Self {
        self.domains.push((domid, access));
        self
    }

    /// What `domid` may do.
    #[must_use]
    pub fn access(&self, domid: DomId) -> Access {
        if domid == DomId::DOM0 || domid == self.owner {
            return Access::Both;
        }
        self.domains
            .iter()
            .find(|(entry, _)| *entry == domid)
            .map_or(self.default, |(_, access)| *access)
    }

    /// Number of entries on the wire.
    #[must_use]
    pub fn entries(&self) -> usize {
        self.domains.len().saturating_add(1)
    }

    /// Parses `n0`, `r5`, ... each followed by a nul, as GET_PERMS answers and SET_PERMS asks.
    ///
    /// # Errors
    /// An entry is malformed, or there is none.
    pub fn parse(payload: &[u8]) -> Result<Self, PermissionError> {
        let mut entries = strings(payload).map(parse_entry);
        let Some(first) = entries.next() else {
            return Err(PermissionError {
                text: String::new(),
            });
        };
        let (owner, default) = first?;
        Ok(Self {
            owner,
            default,
            domains: entries.collect::<Result<_, _>>()?,
        })
    }

    /// The inverse of [`Permissions::parse`].
    #[must_use]
    pub fn to_payload(&self) -> Vec<u8> {
        let mut payload = Vec::new();
        for (domid, access) in self.iter() {
            payload.extend_from_slice(format!("{}{domid}\0", access.letter()).as_bytes());
        }
        payload
    }

    fn iter(&self) -> impl Iterator<Item = (DomId, Access)> {
        core::iter::once((self.owner, self.default)).chain(self.domains.iter().copied())
    }
}

fn parse_entry(text: &[u8]) -> Result<(DomId, Access), PermissionError> {
    let parsed = text.split_first().and_then(|(letter, digits)| {
        let access = Access::from_letter(*letter)?;
        let domid = u16::try_from(parse_decimal(digits)?).ok()?;
        Some((DomId(domid), access))
    });
    parsed.ok_or_else(|| PermissionError {
        text: String::from_utf8_lossy(text).into_owned(),
    })
}

impl fmt::Display for Permissions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (domid, access)) in self.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{}{domid}", access.letter())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_first_entry_is_the_owner_and_the_default() {
        let perms = Permissions::parse(b"r3\0w5\0n7\0").unwrap();
        assert_eq!(perms.to_string(), "r3,w5,n7");
        assert_eq!(perms.access(DomId(0)), Access::Both);
        assert_eq!(perms.access(DomId(3)), Access::Both);
        assert_eq!(perms.access(DomId(5)), Access::Write);
        assert_eq!(perms.access(DomId(7)), Access::None);
        assert_eq!(perms.access(DomId(8)), Access::Read);
        assert_eq!(perms.entries(), 3);
    }

    #[test]
    fn the_first_entry_that_names_a_domain_counts() {
        let perms = Permissions::private(DomId(0))
            .with(DomId(5), Access::Read)
            .with(DomId(5), Access::Both);
        assert_eq!(perms.access(DomId(5)), Access::Read);
    }

    #[test]
    fn malformed_entries_are_refused() {
        for bad in [
            &b""[..],
            b"\0",
            b"n\0",
            b"x5\0",
            b"n-1\0",
            b"n65536\0",
            b"n05\0",
            b"n0\0r\0",
        ] {
            assert!(Permissions::parse(bad).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_permissions_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            if let Ok(perms) = Permissions::parse(&bytes) {
                prop_assert_eq!(Permissions::parse(&perms.to_payload()), Ok(perms));
            }
        }
    }
}

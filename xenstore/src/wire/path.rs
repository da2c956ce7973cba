//! Paths: which are valid, and what lies below what (`xenstore.txt`, introduction).

use core::fmt;

use xen_types::DomId;

/// Most bytes of an absolute path (`XENSTORE_ABS_PATH_MAX`).
pub const ABS_PATH_MAX: usize = 3072;

/// Most bytes of a relative path, and of what follows `/local/domain/<domid>/` in an absolute one
/// (`XENSTORE_REL_PATH_MAX`).
pub const REL_PATH_MAX: usize = 2048;

/// Why a path is not valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// Nothing there.
    #[error("the path is empty")]
    Empty,
    /// Longer than [`ABS_PATH_MAX`] or [`REL_PATH_MAX`].
    #[error(
        "the path has {len} bytes, at most {ABS_PATH_MAX} (relative to a domain {REL_PATH_MAX}) are allowed"
    )]
    TooLong {
        /// Its length.
        len: usize,
    },
    /// Only ASCII letters, digits and `-/_@` may stand in a path.
    #[error("the path has the byte {byte:#04x}; only letters, digits and -/_@ are allowed")]
    BadByte {
        /// The first offending byte.
        byte: u8,
    },
    /// `//` inside or `/` at the end.
    #[error("the path has an empty part")]
    EmptyPart,
    /// A name such as `@releaseDomain`, where only a node may stand.
    #[error("a special name (@...) where only a node is allowed")]
    Special,
}

/// Checks an absolute path, a path relative to the home of a domain, or a special name (`@...`).
///
/// # Errors
/// It breaks a rule of the protocol.
pub fn check_path(path: &[u8]) -> Result<&str, PathError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-/_@".contains(&byte);
    if let Some(byte) = path.iter().copied().find(|byte| !allowed(*byte)) {
        return Err(PathError::BadByte { byte });
    }
    let text = core::str::from_utf8(path).map_err(|_| PathError::Empty)?;
    if text.is_empty() {
        return Err(PathError::Empty);
    }
    if text.contains("//") || (text.ends_with('/') && text != "/") {
        return Err(PathError::EmptyPart);
    }
    let len = text.len();
    if len > ABS_PATH_MAX || below_home(text).len() > REL_PATH_MAX {
        return Err(PathError::TooLong { len });
    }
    Ok(text)
}

/// What follows `/local/domain/<domid>/`, else the whole path.
fn below_home(path: &str) -> &str {
    path.strip_prefix("/local/domain/")
        .and_then(|rest| rest.split_once('/'))
        .filter(|(domid, _)| !domid.is_empty() && domid.bytes().all(|b| b.is_ascii_digit()))
        .map_or(path, |(_, below)| below)
}

/// The absolute path of a node, or a special name such as `@releaseDomain`. Always valid.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodePath(String);

impl NodePath {
    /// The root.
    #[must_use]
    pub fn root() -> Self {
        Self("/".to_owned())
    }

    /// The name whose watches fire when a domain comes.
    #[must_use]
    pub fn introduce_domain() -> Self {
        Self("@introduceDomain".to_owned())
    }

    /// The name whose watches fire when a domain shuts down or goes.
    #[must_use]
    pub fn release_domain() -> Self {
        Self("@releaseDomain".to_owned())
    }

    /// The home directory of a domain, `/local/domain/<domid>`.
    #[must_use]
    pub fn home(domid: DomId) -> Self {
        Self(format!("/local/domain/{domid}"))
    }

    /// A path as domain `domid` writes it: relative to its home if it does not start with `/` or `@`.
    ///
    /// # Errors
    /// The path is not valid.
    pub fn resolve(path: &[u8], domid: DomId) -> Result<Self, PathError> {
        let text = check_path(path)?;
        if text.starts_with(['/', '@']) {
            return Ok(Self(text.to_owned()));
        }
        let absolute = format!("{}/{text}", Self::home(domid));
        check_path(absolute.as_bytes())?;
        Ok(Self(absolute))
    }

    /// Likewise, but no special name.
    ///
    /// # Errors
    /// The path is not valid, or starts with `@`.
    pub fn resolve_node(path: &[u8], domid: DomId) -> Result<Self, PathError> {
        let path = Self::resolve(path, domid)?;
        if path.is_special() {
            Err(PathError::Special)
        } else {
            Ok(path)
        }
    }

    /// As it is sent.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is a name such as `@introduceDomain`.
    #[must_use]
    pub fn is_special(&self) -> bool {
        self.0.starts_with('@')
    }

    /// The node above; the root for a special name, `None` for the root itself.
    #[must_use]
    pub fn parent(&self) -> Option<Self> {
        match self.0.rsplit_once('/') {
            _ if self.0 == "/" => None,
            Some(("", _)) | None => Some(Self::root()),
            Some((parent, _)) => Some(Self(parent.to_owned())),
        }
    }

    /// The last part; empty for the root.
    #[must_use]
    pub fn leaf(&self) -> &str {
        self.0.rsplit_once('/').map_or(&self.0, |(_, leaf)| leaf)
    }

    /// The child called `leaf`, which is taken from a valid path.
    #[must_use]
    pub(crate) fn child(&self, leaf: &str) -> Self {
        let parent = if self.0 == "/" { "" } else { &self.0 };
        Self(format!("{parent}/{leaf}"))
    }

    /// Whether it is `other` or lies below it.
    #[must_use]
    pub fn is_at_or_below(&self, other: &Self) -> bool {
        other.0 == "/"
            || self
                .0
                .strip_prefix(&other.0)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

impl fmt::Display for NodePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for NodePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn node(path: &str) -> NodePath {
        NodePath::resolve(path.as_bytes(), DomId(3)).unwrap()
    }

    #[test]
    fn the_rules_of_the_protocol_hold() {
        for good in [
            "/",
            "/a",
            "/a/b-_@9",
            "a",
            "device/virtio-msg/0",
            "@releaseDomain",
        ] {
            assert_eq!(check_path(good.as_bytes()), Ok(good));
        }
        assert_eq!(check_path(b""), Err(PathError::Empty));
        for bad in ["//", "/a/", "/a//b", "a/"] {
            assert_eq!(
                check_path(bad.as_bytes()),
                Err(PathError::EmptyPart),
                "{bad}"
            );
        }
        for bad in [&b"/a b"[..], b"/\0", b"/a.b", b"\xff", b"/\xc3\xa9", b"/a~"] {
            assert!(
                matches!(check_path(bad), Err(PathError::BadByte { .. })),
                "{bad:?}"
            );
        }
    }

    #[test]
    fn length_counts_from_the_home_of_a_domain() {
        let fits = "x".repeat(REL_PATH_MAX);
        for prefix in ["", "/local/domain/7/"] {
            assert!(check_path(format!("{prefix}{fits}").as_bytes()).is_ok());
            assert!(matches!(
                check_path(format!("{prefix}{fits}x").as_bytes()),
                Err(PathError::TooLong { .. })
            ));
        }
        assert!(matches!(
            check_path(format!("/local/domain/x/{fits}").as_bytes()),
            Err(PathError::TooLong { .. })
        ));
    }

    #[test]
    fn relative_paths_start_at_the_home_of_the_domain() {
        assert_eq!(node("device/0").as_str(), "/local/domain/3/device/0");
        assert_eq!(node("/device/0").as_str(), "/device/0");
        assert_eq!(node("@x").as_str(), "@x");
        assert_eq!(
            NodePath::resolve_node(b"@x", DomId(3)),
            Err(PathError::Special)
        );
    }

    #[test]
    fn parents_leaves_and_children_fit_together() {
        assert_eq!(node("/a/b").parent(), Some(node("/a")));
        assert_eq!(node("/a").parent(), Some(NodePath::root()));
        assert_eq!(NodePath::root().parent(), None);
        assert_eq!(node("@releaseDomain").parent(), Some(NodePath::root()));
        for path in ["/a", "/a/b", "/a/b/c"] {
            let path = node(path);
            assert_eq!(path.parent().unwrap().child(path.leaf()), path);
        }
    }

    #[test]
    fn below_means_whole_parts() {
        assert!(node("/a/b").is_at_or_below(&node("/a")));
        assert!(node("/a").is_at_or_below(&node("/a")));
        assert!(node("/a").is_at_or_below(&NodePath::root()));
        assert!(!node("/ab").is_at_or_below(&node("/a")));
        assert!(!node("/a").is_at_or_below(&node("/a/b")));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_path_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            if let Ok(path) = NodePath::resolve(&bytes, DomId(1)) {
                prop_assert!(path.as_str().starts_with(['/', '@']));
                prop_assert_eq!(check_path(path.as_str().as_bytes()), Ok(path.as_str()));
            }
        }
    }
}

//! A bus instance: one pair of XenStore directories (binding section 1 and 2).

use std::fmt;

use xen_types::{DomId, parse_decimal};

/// Names one bus instance of this backend: `virtio-msg/<handle>` of domain `frontend`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InstanceId {
    /// The domain of the driver.
    pub frontend: DomId,
    /// Which of that domain's buses.
    pub handle: u32,
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "domain {} bus {}", self.frontend, self.handle)
    }
}

/// The XenStore paths of one instance. All are derived from the backend's own directory:
/// nothing that the guest wrote leads anywhere.
#[derive(Clone, Debug)]
pub(crate) struct Paths {
    /// `/local/domain/<B>/backend/virtio-msg/<F>/<handle>`
    pub(crate) backend: String,
    /// `/local/domain/<F>/device/virtio-msg/<handle>`
    pub(crate) frontend: String,
}

impl Paths {
    /// The paths of `id` as backend domain `own` sees them.
    #[must_use]
    pub(crate) fn new(own: DomId, id: InstanceId) -> Self {
        Self {
            backend: format!("{}/{}/{}", backend_root(own), id.frontend, id.handle),
            frontend: format!(
                "/local/domain/{}/device/virtio-msg/{}",
                id.frontend, id.handle
            ),
        }
    }

    /// A key of the backend directory.
    #[must_use]
    pub(crate) fn own(&self, key: &str) -> String {
        format!("{}/{key}", self.backend)
    }

    /// A key of the frontend directory.
    #[must_use]
    pub(crate) fn peer(&self, key: &str) -> String {
        format!("{}/{key}", self.frontend)
    }

    /// The directory of one device.
    #[must_use]
    pub(crate) fn device(&self, number: u16) -> String {
        format!("{}/device/{number}", self.backend)
    }
}

/// The directory under which the toolstack makes this backend's instances.
#[must_use]
pub(crate) fn backend_root(own: DomId) -> String {
    format!("/local/domain/{own}/backend/virtio-msg")
}

/// What a changed path below [`backend_root`] is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Subject {
    /// The list of frontends.
    Instances,
    /// The instances of one frontend.
    Frontend(DomId),
    /// The whole directory of an instance, made or removed. With a new one come its keys.
    Directory(InstanceId),
    /// Keys of an instance that the toolstack writes.
    Instance(InstanceId),
    /// The devices of an instance.
    Devices(InstanceId),
    /// A key that this backend writes itself, or one that nobody reads.
    Own,
}

/// Sorts a watch event; `path` is absolute.
#[must_use]
pub(crate) fn subject(own: DomId, path: &str) -> Subject {
    let root = backend_root(own);
    let Some(rest) = path.strip_prefix(&root) else {
        return Subject::Own;
    };
    let mut parts = rest.split('/').filter(|part| !part.is_empty());
    let Some(frontend) = parts.next() else {
        return Subject::Instances;
    };
    let Some(handle) = parts.next() else {
        return parse_frontend(frontend).map_or(Subject::Own, Subject::Frontend);
    };
    let Some(id) = parse_instance(frontend, handle) else {
        return Subject::Own;
    };
    match (parts.next(), parts.next(), parts.next()) {
        (None, ..) => Subject::Directory(id),
        (Some("online" | "frontend-id" | "frontend"), None, _) => Subject::Instance(id),
        (Some("device"), _, None | Some("online" | "config")) => Subject::Devices(id),
        _ => Subject::Own,
    }
}

/// Parses the two directory names of an instance; anything odd is nobody's.
#[must_use]
pub(crate) fn parse_instance(frontend: &str, handle: &str) -> Option<InstanceId> {
    Some(InstanceId {
        frontend: parse_frontend(frontend)?,
        handle: parse_decimal(handle.as_bytes())?,
    })
}

/// Parses the name of a frontend's directory.
#[must_use]
pub(crate) fn parse_frontend(name: &str) -> Option<DomId> {
    let domid = u16::try_from(parse_decimal(name.as_bytes())?).ok()?;
    (domid < DomId::FIRST_RESERVED.0).then_some(DomId(domid))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: InstanceId = InstanceId {
        frontend: DomId(5),
        handle: 0,
    };

    #[test]
    fn watch_events_are_sorted_by_what_they_are_about() {
        let about = |rest: &str| subject(DomId::DOM0, &format!("{}{rest}", backend_root(DomId(0))));
        assert_eq!(about(""), Subject::Instances);
        assert_eq!(about("/5"), Subject::Frontend(DomId(5)));
        assert_eq!(about("/5/0"), Subject::Directory(ID));
        assert_eq!(about("/x"), Subject::Own);
        assert_eq!(about("/5/0/online"), Subject::Instance(ID));
        assert_eq!(about("/5/0/state"), Subject::Own);
        assert_eq!(about("/5/0/session"), Subject::Own);
        assert_eq!(about("/5/0/device"), Subject::Devices(ID));
        assert_eq!(about("/5/0/device/3"), Subject::Devices(ID));
        assert_eq!(about("/5/0/device/3/online"), Subject::Devices(ID));
        assert_eq!(about("/5/0/device/3/status"), Subject::Own);
        assert_eq!(about("/x/0/online"), Subject::Own);
        assert_eq!(about("/32752/0/online"), Subject::Own);
        assert_eq!(subject(DomId::DOM0, "/elsewhere"), Subject::Own);
    }
}

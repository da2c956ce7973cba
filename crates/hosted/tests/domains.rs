//! Domains: how they come and go, what XenStore tells of it, and what is left.

mod common;

use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use common::{Host, map, pending, wait_readable};
use guest_memory::Access;
use hosted::{Broker, BrokerError};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags};
use xen_hal::hosted::wire::DomainState;
use xen_hal::hosted::{Hypervisor, layout};
use xen_hal::{OpenError, Platform, PlatformSpec};
use xen_types::DomId;
use xenstore::{Client, StoreError, Tree};

fn errno<T: std::fmt::Debug>(result: std::io::Result<T>) -> Errno {
    Errno::from_raw_os_error(result.unwrap_err().raw_os_error().unwrap())
}

/// Waits for the next event of a special watch.
fn next_event(store: &mut Client) -> String {
    loop {
        if let Some(event) = store.next_event().unwrap() {
            return event.path;
        }
        wait_readable(&*store);
    }
}

/// An event that was on its way came before the answer to a request.
fn no_event(store: &mut Client) {
    store.read("/local/domain/0/name").unwrap();
    assert_eq!(store.next_event().unwrap(), None);
}

#[test]
fn a_domain_has_the_nodes_and_rights_that_libxl_gives() {
    let host = Host::start();
    let guest = host.guest("web");
    let mut dom0 = host.store(DomId::DOM0);
    let mut domu = host.store(guest);
    assert_eq!(dom0.read("/local/domain/0/name").unwrap(), b"Domain-0");
    assert_eq!(domu.read("/local/domain/1/name").unwrap(), b"web");
    assert_eq!(domu.read("domid").unwrap(), b"1");
    let vm = String::from_utf8(domu.read("vm").unwrap()).unwrap();
    let uuid = domu.read(&format!("{vm}/uuid")).unwrap();
    assert_eq!(format!("/vm/{}", String::from_utf8(uuid).unwrap()), vm);
    assert!(dom0.is_domain_introduced(guest).unwrap());

    for denied in [
        "probe",
        "device/probe",
        "control/probe",
        "name",
        "/tool/probe",
        "/local/domain/0/probe",
    ] {
        let error = domu.write(denied, b"x").unwrap_err();
        assert!(
            matches!(error, StoreError::Denied { .. }),
            "{denied}: {error:?}"
        );
    }
    for allowed in [
        "data/x",
        "drivers/x",
        "attr/x",
        "feature/x",
        "error/x",
        "control/shutdown",
    ] {
        domu.write(allowed, b"x").unwrap();
    }
}

#[test]
fn comings_and_goings_fire_the_special_watches_once() {
    let host = Host::start();
    let mut store = host.store(DomId::DOM0);
    for special in ["@introduceDomain", "@releaseDomain"] {
        store.watch(special, "t").unwrap();
        assert_eq!(next_event(&mut store), special);
    }
    let guest = host.guest("g");
    assert_eq!(next_event(&mut store), "@introduceDomain");
    host.hypervisor.destroy_domain(guest).unwrap();
    assert_eq!(next_event(&mut store), "@releaseDomain");
    assert!(!store.is_domain_introduced(guest).unwrap());
    no_event(&mut store);
}

#[test]
fn a_dead_domain_leaves_only_what_dom0_owns_elsewhere() {
    let host = Host::start();
    let guest = host.guest("g");
    let mut store = host.store(DomId::DOM0);
    let vm = String::from_utf8(store.read("/local/domain/1/vm").unwrap()).unwrap();
    let backend = "/local/domain/0/backend/virtio-msg/1/0/state";
    store.write(backend, b"1").unwrap();
    let domu = host.store(guest);
    host.hypervisor.destroy_domain(guest).unwrap();

    for gone in ["/local/domain/1", vm.as_str()] {
        let error = store.directory(gone).unwrap_err();
        assert!(
            matches!(error, StoreError::NotFound { .. }),
            "{gone}: {error:?}"
        );
    }
    assert_eq!(store.read(backend).unwrap(), b"1");
    let domain = host.report(guest).unwrap();
    assert_eq!((domain.state, domain.nodes), (DomainState::Gone, 0));
    // Its XenStore connection and its sockets are gone too.
    wait_readable(&domu);
    assert!({ domu }.read("name").is_err());
    assert!(UnixStream::connect(layout::store_socket(host.dir(), guest)).is_err());
    let error = Hypervisor::connect(host.dir())
        .unwrap()
        .destroy_domain(guest);
    assert_eq!(errno(error), Errno::SRCH);
}

#[test]
fn a_zombie_stays_until_the_last_mapping_goes() {
    let host = Host::start();
    let (guest, other) = (host.guest("g"), host.guest("other"));
    let (dom0, domu) = (host.platform(DomId::DOM0), host.platform(guest));
    let pages = domu.grant_pages(DomId::DOM0, 2, Access::Write).unwrap();
    let guest_end = domu.event_channels().unwrap();
    let port = guest_end.alloc_unbound(DomId::DOM0).unwrap();
    let mut events = dom0.event_channels().unwrap();
    let ours = events.bind_interdomain(guest, port).unwrap();
    pending(&mut events);
    events.unmask(&[ours]).unwrap();
    let refs = pages.refs.clone();
    let first = map(&dom0, guest, &refs[..1], Access::Write).unwrap();
    let second = map(&dom0, guest, &refs[..1], Access::Read).unwrap();

    host.hypervisor.destroy_domain(guest).unwrap();
    assert_eq!(host.state(guest), DomainState::Zombie);
    assert_eq!(
        host.holdings(guest),
        (1, 0, 0),
        "what nobody maps is gone at once"
    );
    // The mapper sees nothing of it: no event, no error, and the memory stays.
    assert_eq!(pending(&mut events), []);
    events.notify(ours).unwrap();
    first
        .range(0, 1, Access::Write)
        .unwrap()
        .write(0, b"x")
        .unwrap();
    let byte = second
        .range(0, 1, Access::Read)
        .unwrap()
        .read_array(0)
        .unwrap();
    assert_eq!(byte, *b"x");
    // Nothing new can be had of it.
    map(&dom0, guest, &refs[..1], Access::Read).unwrap_err();
    events.bind_interdomain(guest, port).unwrap_err();

    first.unmap().unwrap();
    assert_eq!(host.state(guest), DomainState::Zombie);
    second.unmap().unwrap();
    assert_eq!(host.state(guest), DomainState::Gone);
    assert_eq!(host.state(other), DomainState::Alive);
}

#[test]
fn what_a_dead_domain_had_mapped_of_others_is_free() {
    let host = Host::start();
    let (driver, guest) = (host.guest("driver"), host.guest("g"));
    let mapper = host.platform(driver);
    let pages = host
        .platform(guest)
        .grant_pages(driver, 1, Access::Write)
        .unwrap();
    let _area = map(&mapper, guest, &pages.refs, Access::Write).unwrap();
    host.hypervisor.destroy_domain(driver).unwrap();
    assert_eq!(host.state(driver), DomainState::Gone);
    pages.revoke().unwrap();
    assert_eq!(host.holdings(guest), (0, 0, 0), "nothing is kept back");
}

#[test]
fn a_domain_ends_with_its_process() {
    let host = Host::start();
    let guest = host.guest("g");
    let mut store = host.store(DomId::DOM0);
    store.watch("@releaseDomain", "t").unwrap();
    next_event(&mut store);
    // It ends when its input does.
    let mut child = Command::new("cat")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let pid = Pid::from_child(&child);
    let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty()).unwrap();
    host.hypervisor
        .bind_domain_to_process(guest, &pidfd)
        .unwrap();
    assert_eq!(host.state(guest), DomainState::Alive);
    no_event(&mut store);
    drop(child.stdin.take());
    assert_eq!(next_event(&mut store), "@releaseDomain");
    assert_eq!(host.state(guest), DomainState::Gone);
    child.wait().unwrap();

    let again = host.guest("again");
    host.hypervisor
        .bind_domain_to_process(again, &pidfd)
        .unwrap();
    assert_eq!(
        next_event(&mut store),
        "@releaseDomain",
        "a process that is dead already"
    );
}

#[test]
fn only_a_pidfd_stands_for_a_process() {
    let host = Host::start();
    let guest = host.guest("g");
    let (reader, _writer) = rustix::pipe::pipe().unwrap();
    let bound = host.hypervisor.bind_domain_to_process(guest, reader);
    assert_eq!(errno(bound), Errno::BADF);
    assert_eq!(host.state(guest), DomainState::Alive);
}

#[test]
fn only_dom0_makes_and_ends_domains() {
    let host = Host::start();
    let guest = host.guest("g");
    // A guest that speaks to its own socket as if it were dom0's.
    let fake = tempfile::tempdir().unwrap();
    std::fs::create_dir(fake.path().join("dom0")).unwrap();
    let real = layout::hypervisor_socket(host.dir(), guest);
    std::os::unix::fs::symlink(real, layout::hypervisor_socket(fake.path(), DomId::DOM0)).unwrap();
    let guests = Hypervisor::connect(fake.path()).unwrap();
    assert_eq!(errno(guests.create_domain("mine")), Errno::PERM);
    assert_eq!(errno(guests.destroy_domain(guest)), Errno::PERM);
    let domains = guests.domains().unwrap();
    let seen: Vec<DomId> = domains.iter().map(|domain| domain.domid).collect();
    assert_eq!(seen, [guest], "a guest sees itself alone");
}

#[test]
fn names_are_plain_and_used_once() {
    let host = Host::start();
    host.guest("web-1");
    let create = |name: &str| errno(host.hypervisor.create_domain(name));
    assert_eq!(create("web-1"), Errno::EXIST);
    for bad in ["", "a/b", "a b", "a\n", &"a".repeat(65)] {
        assert_eq!(create(bad), Errno::INVAL, "{bad:?}");
    }
    assert_eq!(
        errno(host.hypervisor.destroy_domain(DomId::DOM0)),
        Errno::SRCH
    );
}

#[test]
fn domain_ids_are_not_used_again() {
    let host = Host::start();
    for expected in 1..5 {
        let guest = host.guest("g");
        assert_eq!(guest, DomId(expected));
        host.hypervisor.destroy_domain(guest).unwrap();
    }
}

#[test]
fn a_missing_broker_or_domain_is_an_error_that_says_what_to_do() {
    let host = Host::start();
    let spec = PlatformSpec::Hosted {
        dir: host.dir().to_owned(),
        domid: DomId(9),
    };
    let error = Platform::open(&spec).unwrap_err();
    assert!(matches!(
        error,
        OpenError::NoBroker {
            domid: DomId(9),
            ..
        }
    ));
    assert!(error.to_string().contains("vmsg hosted"), "{error}");
}

#[test]
fn a_broker_that_ends_takes_its_sockets_along_and_a_second_one_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::open(dir.path()).unwrap().spawn().unwrap();
    let second = Broker::open(dir.path());
    assert!(
        matches!(second, Err(BrokerError::Busy { .. })),
        "{second:?}"
    );
    let hypervisor = Hypervisor::connect(dir.path()).unwrap();
    hypervisor.create_domain("g").unwrap();
    broker.stop().unwrap();
    let left: Vec<_> = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(left, ["lock"]);
    assert!(hypervisor.create_domain("h").is_err());
    Broker::open(dir.path()).unwrap();
}

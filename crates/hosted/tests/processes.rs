//! Processes that are really apart: they talk, they are killed at any moment, they send garbage.
//!
//! A child is this test binary again, running [`child`] in the role that the environment names.

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::Ordering;

use common::{Host, map, packet_socket, pending, platform, wait_event, wait_readable};
use guest_memory::{Access, Area};
use xen_hal::hosted::wire::{DomainState, MAX_PACKET, Request};
use xen_hal::hosted::{channel, layout};
use xen_types::{DomId, EvtchnPort, GrantRef};

const ROLE: &str = "VMSG_TEST_ROLE";
const DIR: &str = "VMSG_TEST_DIR";
const DOMID: &str = "VMSG_TEST_DOMID";

/// Round trips of the ping-pong.
const ROUNDS: u32 = 1_000;

/// A child process with pipes both ways; killed when dropped.
struct Role {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Role {
    fn start(host: &Host, role: &str, domid: DomId) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["child", "--exact", "--nocapture", "--test-threads=1"])
            .env(ROLE, role)
            .env(DIR, host.dir())
            .env(DOMID, domid.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = child.stdin.take().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let mut role = Self {
            child,
            input,
            output,
        };
        // The harness writes some lines of its own first.
        while role.line() != "ready" {}
        role
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        let len = self.output.read_line(&mut line).unwrap();
        assert!(len > 0, "the child ended");
        // The harness may have begun the line.
        let line = line.trim_end();
        line.rsplit_once("... ")
            .map_or(line, |(_, own)| own)
            .to_owned()
    }

    fn numbers(&mut self) -> Vec<u32> {
        let line = self.line();
        line.split(' ')
            .map(|number| number.parse().unwrap())
            .collect()
    }

    fn tell(&mut self, line: &str) {
        writeln!(self.input, "{line}").unwrap();
    }

    /// SIGKILL, and until the kernel has closed everything of it.
    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        self.kill();
    }
}

fn say(line: &str) {
    println!("{line}");
    std::io::stdout().flush().unwrap();
}

/// What a child does; nothing when the tests themselves run.
#[test]
fn child() {
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    let dir = std::path::PathBuf::from(std::env::var(DIR).unwrap());
    let domid = DomId(std::env::var(DOMID).unwrap().parse().unwrap());
    say("\nready");
    match role.as_str() {
        "echo" => echo(&dir, domid),
        "busy" => busy(&dir, domid),
        "sender" => sender(&dir, domid),
        other => panic!("no role {other}"),
    }
}

fn counter(area: &Area, at: u64) -> u32 {
    let range = area.range(0, 64, Access::Read).unwrap();
    range.load_u32(at, Ordering::Acquire).unwrap()
}

fn set_counter(area: &Area, at: u64, value: u32) {
    let range = area.range(0, 64, Access::Write).unwrap();
    range.store_u32(at, value, Ordering::Release).unwrap();
}

/// A guest that answers each ping once; ends when its input does.
fn echo(dir: &std::path::Path, domid: DomId) {
    let domain = platform(dir, domid);
    let mut events = domain.event_channels().unwrap();
    let pages = domain.grant_pages(DomId::DOM0, 1, Access::Write).unwrap();
    let port = events.alloc_unbound(DomId::DOM0).unwrap();
    say(&format!("{} {port}", pages.refs[0]));
    for round in 1..=ROUNDS {
        while counter(&pages.area, 0) != round {
            wait_event(&mut events);
        }
        set_counter(&pages.area, 4, round);
        events.notify(port).unwrap();
    }
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
}

#[test]
fn two_processes_play_ping_pong_with_one_send_each_way_per_round() {
    let host = Host::start();
    let guest = host.guest("echo");
    let mut child = Role::start(&host, "echo", guest);
    let [gref, port] = child.numbers()[..] else {
        panic!("two numbers")
    };
    let dom0 = host.platform(DomId::DOM0);
    let area = map(&dom0, guest, &[GrantRef(gref)], Access::Write).unwrap();
    let mut events = dom0.event_channels().unwrap();
    let ours = events.bind_interdomain(guest, EvtchnPort(port)).unwrap();
    for round in 1..=ROUNDS {
        set_counter(&area, 0, round);
        events.notify(ours).unwrap();
        while counter(&area, 4) != round {
            wait_event(&mut events);
        }
    }
    for domid in [guest, DomId::DOM0] {
        let counters = host.report(domid).unwrap().counters;
        assert_eq!(counters.evtchn_send, u64::from(ROUNDS), "domain {domid}");
    }
    let before = host.report(DomId::DOM0).unwrap().counters;
    assert_eq!((before.grant_map_calls, before.grant_map_pages), (1, 1));
    assert_eq!(before.evtchn_bind_interdomain, 1);

    child.kill();
    assert_eq!(
        host.holdings(guest),
        (1, 0, 0),
        "kept back: dom0 has it mapped"
    );
    let counters = host.report(guest).unwrap().counters;
    assert_eq!(
        counters.evtchn_send,
        u64::from(ROUNDS),
        "remembered after the death"
    );
    area.unmap().unwrap();
    assert_eq!(host.holdings(guest), (0, 0, 0));
}

/// Plays a guest and dom0 in one process, and does everything all the time.
fn busy(dir: &std::path::Path, domid: DomId) {
    let (guest, dom0) = (platform(dir, domid), platform(dir, DomId::DOM0));
    let mut store = xenstore::Client::connect_socket(&layout::store_socket(dir, domid)).unwrap();
    let events = [&guest, &dom0].map(|platform| platform.event_channels().unwrap());
    let mut kept = std::collections::VecDeque::new();
    loop {
        let pages = guest.grant_pages(DomId::DOM0, 3, Access::Write).unwrap();
        let area = map(&dom0, domid, &pages.refs, Access::Write).unwrap();
        let port = events[0].alloc_unbound(DomId::DOM0).unwrap();
        let ours = events[1].bind_interdomain(domid, port).unwrap();
        events[0].notify(port).unwrap();
        events[1].notify(ours).unwrap();
        xenstore::Tree::write(&mut store, "data/x", b"y").unwrap();
        kept.push_back((pages, area, port, ours));
        if kept.len() > 4 {
            let (pages, area, port, ours) = kept.pop_front().unwrap();
            pages.revoke().unwrap();
            area.unmap().unwrap();
            events[0].unbind(port).unwrap();
            events[1].unbind(ours).unwrap();
        }
        say(".");
    }
}

#[test]
fn after_a_storm_of_kills_nothing_is_left() {
    let host = Host::start();
    let guest = host.guest("busy");
    // Where in its work the kill falls is up to the scheduler; how far it got first is not.
    for work in 0..20 {
        let mut child = Role::start(&host, "busy", guest);
        for _ in 0..work {
            child.line();
        }
        child.kill();
        assert_eq!(host.holdings(guest), (0, 0, 0), "after {work} rounds");
        assert_eq!(host.holdings(DomId::DOM0), (0, 0, 0), "after {work} rounds");
    }
    host.hypervisor.destroy_domain(guest).unwrap();
    assert_eq!(host.state(guest), DomainState::Gone);
}

/// Sends as fast as it can, until it is killed.
fn sender(dir: &std::path::Path, domid: DomId) {
    let domain = platform(dir, domid);
    let events = domain.event_channels().unwrap();
    let port = events.alloc_unbound(DomId::DOM0).unwrap();
    say(&port.to_string());
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    say("bound");
    loop {
        events.notify(port).unwrap();
    }
}

/// A sender that dies between setting the bit and the signal must not silence the port: whenever the
/// bit is set after its death, the descriptor is readable.
#[test]
fn a_sender_killed_in_the_middle_of_a_send_leaves_no_silent_event() {
    let host = Host::start();
    let guest = host.guest("sender");
    let mut events = host.platform(DomId::DOM0).event_channels().unwrap();
    for _ in 0..20 {
        let mut child = Role::start(&host, "sender", guest);
        let port = EvtchnPort(child.numbers()[0]);
        let ours = events.bind_interdomain(guest, port).unwrap();
        child.tell("go");
        assert_eq!(child.line(), "bound");
        for _ in 0..50 {
            assert_eq!(wait_event(&mut events), [ours]);
        }
        child.kill();
        assert_eq!(host.holdings(guest), (0, 0, 0));
        // After the death: either an event with a signal, or none.
        let readable = common::is_readable(&events);
        let left = pending(&mut events);
        assert!(readable || left.is_empty(), "{left:?} without a signal");
        events.unbind(ours).unwrap();
    }
}

/// The first half of a device's life with the backend killed in between: same port, same pages.
#[test]
fn a_backend_that_is_killed_can_be_replaced() {
    let host = Host::start();
    let guest = host.guest("g");
    let domain = host.platform(guest);
    let mut events = domain.event_channels().unwrap();
    let port = events.alloc_unbound(DomId::DOM0).unwrap();
    let pages = domain.grant_pages(DomId::DOM0, 2, Access::Write).unwrap();
    for round in 0..5_u32 {
        let dom0 = host.platform(DomId::DOM0);
        let area = map(&dom0, guest, &pages.refs, Access::Write).unwrap();
        assert_eq!(counter(&area, 0), round, "same contents");
        let mut backend = dom0.event_channels().unwrap();
        let ours = backend.bind_interdomain(guest, port).unwrap();
        assert_eq!(wait_event(&mut backend), [ours]);
        set_counter(&area, 0, round + 1);
        backend.notify(ours).unwrap();
        assert_eq!(wait_event(&mut events), [port]);
        // As a death does it: the connections go, nothing is said.
        drop(backend);
        drop(area);
        events.notify(port).unwrap();
    }
}

/// Reproducible noise.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        // Knuth's MMIX constants.
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    fn bytes(&mut self, most: u64) -> Vec<u8> {
        let len = 1 + self.next() % most;
        (0..len).map(|_| self.next().to_le_bytes()[0]).collect()
    }
}

#[test]
fn garbage_ends_the_connection_that_sent_it_and_no_other() {
    let host = Host::start();
    let guest = host.guest("g");
    let domain = host.platform(guest);
    let pages = domain.grant_pages(DomId::DOM0, 1, Access::Write).unwrap();
    let mut noise = Noise(1);
    for _ in 0..200 {
        let socket = packet_socket(&host, guest);
        let mut packet = noise.bytes(64);
        // No request has this kind.
        packet[0] |= 0x80;
        channel::send(&socket, &packet, &[std::os::fd::AsFd::as_fd(&socket)]).unwrap();
        assert!(channel::receive(&socket).unwrap().is_none());
    }
    let too_long = packet_socket(&host, guest);
    channel::send(&too_long, &vec![1; MAX_PACKET + 1], &[]).unwrap();
    assert!(channel::receive(&too_long).unwrap().is_none());
    assert_eq!(host.holdings(guest), (1, 0, 0));
    drop(pages);
    assert_eq!(host.holdings(guest), (0, 0, 0));
}

#[test]
fn nonsense_in_the_right_form_is_answered_and_survived() {
    let host = Host::start();
    let guest = host.guest("g");
    let mut noise = Noise(2);
    let mut answered = 0;
    for _ in 0..2_000 {
        let mut packet = noise.bytes(20);
        // Any kind of request, and two that are none, with random fields.
        packet[0] = 1 + u8::try_from(noise.next() % 16).unwrap();
        let socket = packet_socket(&host, guest);
        channel::send(&socket, &packet, &[]).unwrap();
        let answer = channel::receive(&socket).unwrap();
        assert_eq!(
            answer.is_some(),
            Request::parse(&packet).is_ok(),
            "{packet:x?}"
        );
        answered += u32::from(answer.is_some());
    }
    assert!(answered > 50, "{answered} of 2000 had the right form");
    assert_eq!(host.holdings(guest), (0, 0, 0));
    assert_eq!(host.state(guest), DomainState::Alive);
}

#[test]
fn garbage_on_a_xenstore_connection_is_survived() {
    let host = Host::start();
    let guest = host.guest("g");
    let mut noise = Noise(3);
    for _ in 0..200 {
        let mut stream = UnixStream::connect(layout::store_socket(host.dir(), guest)).unwrap();
        // The broker may end it before all is written.
        stream.write_all(&noise.bytes(300)).ok();
    }
    let mut store = host.store(guest);
    assert_eq!(xenstore::Tree::read(&mut store, "name").unwrap(), b"g");
}

#[test]
fn a_client_that_takes_no_answers_is_disconnected() {
    let host = Host::start();
    let guest = host.guest("g");
    let socket = packet_socket(&host, guest);
    rustix::io::ioctl_fionbio(&socket, true).unwrap();
    let request = Request::Domains.emit();
    // Until the broker hangs up: answers fill the socket.
    loop {
        match channel::send(&socket, &request, &[]) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                std::thread::yield_now();
            }
            Err(_) => break,
        }
    }
    wait_readable(&socket);
    assert_eq!(host.state(guest), DomainState::Alive);
}

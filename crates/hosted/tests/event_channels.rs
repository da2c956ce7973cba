//! Event channels as a domain sees them through `xen_hal`, beside what was measured on Xen 4.17.

mod common;

use common::{Host, is_readable, packet_socket, pending};
use rustix::io::Errno;
use xen_hal::hosted::wire::{Reply, Request};
use xen_hal::hosted::{PendingPage, Signal, channel};
use xen_hal::{EventChannels, EvtchnError};
use xen_types::{DomId, EvtchnPort};

/// A guest and dom0 with one event channel between them, nothing pending.
struct Pair {
    host: Host,
    guest: DomId,
    domu: EventChannels,
    dom0: EventChannels,
    port: EvtchnPort,
    ours: EvtchnPort,
}

fn pair() -> Pair {
    let host = Host::start();
    let guest = host.guest("g");
    let domu = host.platform(guest).event_channels().unwrap();
    let mut dom0 = host.platform(DomId::DOM0).event_channels().unwrap();
    let port = domu.alloc_unbound(DomId::DOM0).unwrap();
    let ours = dom0.bind_interdomain(guest, port).unwrap();
    assert_eq!(pending(&mut dom0), [ours]);
    dom0.unmask(&[ours]).unwrap();
    Pair {
        host,
        guest,
        domu,
        dom0,
        port,
        ours,
    }
}

#[track_caller]
fn assert_refused(result: Result<EvtchnPort, EvtchnError>) {
    assert!(
        matches!(result, Err(EvtchnError::Refused { .. })),
        "{result:?}"
    );
}

#[test]
fn events_arrive_once_until_unmasked() {
    let mut pair = pair();
    for _ in 0..3 {
        pair.dom0.notify(pair.ours).unwrap();
    }
    assert!(is_readable(&pair.domu));
    assert_eq!(pending(&mut pair.domu), [pair.port]);
    assert!(!is_readable(&pair.domu));
    assert_eq!(pending(&mut pair.domu), []);

    pair.dom0.notify(pair.ours).unwrap();
    assert!(!is_readable(&pair.domu), "the port is masked");
    assert_eq!(pending(&mut pair.domu), []);
    pair.domu.unmask(&[pair.port]).unwrap();
    assert!(is_readable(&pair.domu));
    assert_eq!(
        pending(&mut pair.domu),
        [pair.port],
        "the event in between is not lost"
    );

    pair.domu.unmask(&[pair.port]).unwrap();
    assert!(!is_readable(&pair.domu), "an unmask alone is no event");
    pair.dom0.notify(pair.ours).unwrap();
    assert_eq!(pending(&mut pair.domu), [pair.port]);
}

#[test]
fn both_directions_work() {
    let mut pair = pair();
    pair.domu.notify(pair.port).unwrap();
    assert_eq!(pending(&mut pair.dom0), [pair.ours]);
    pair.dom0.notify(pair.ours).unwrap();
    assert_eq!(pending(&mut pair.domu), [pair.port]);
}

#[test]
fn one_descriptor_tells_of_every_port() {
    let mut pair = pair();
    let more: Vec<_> = (0..3)
        .map(|_| {
            let port = pair.domu.alloc_unbound(DomId::DOM0).unwrap();
            (port, pair.dom0.bind_interdomain(pair.guest, port).unwrap())
        })
        .collect();
    let mut bound = pending(&mut pair.dom0);
    bound.sort_unstable();
    assert_eq!(
        bound,
        more.iter().map(|(_, ours)| *ours).collect::<Vec<_>>()
    );
    pair.dom0.notify(more[2].1).unwrap();
    pair.dom0.notify(pair.ours).unwrap();
    assert_eq!(pending(&mut pair.domu), [pair.port, more[2].0]);
}

#[test]
fn only_an_unbound_port_meant_for_us_can_be_bound() {
    let pair = pair();
    let other = pair.host.guest("other");
    let stranger = pair.host.platform(other).event_channels().unwrap();
    let waiting = pair.domu.alloc_unbound(DomId::DOM0).unwrap();
    assert_refused(stranger.bind_interdomain(pair.guest, waiting));
    assert_refused(pair.dom0.bind_interdomain(other, waiting));
    assert_refused(pair.dom0.bind_interdomain(pair.guest, EvtchnPort(0)));
    assert_refused(pair.dom0.bind_interdomain(pair.guest, EvtchnPort(u32::MAX)));
    assert_refused(pair.dom0.bind_interdomain(pair.guest, pair.port));
    let nobody = pair.dom0.bind_interdomain(DomId(999), EvtchnPort(1));
    assert!(
        matches!(nobody, Err(EvtchnError::NoDomain { peer: DomId(999) })),
        "{nobody:?}"
    );
    pair.dom0.bind_interdomain(pair.guest, waiting).unwrap();
}

#[test]
fn ports_of_others_cannot_be_sent_to_or_closed() {
    let pair = pair();
    let other = pair.host.platform(DomId::DOM0).event_channels().unwrap();
    for result in [
        other.notify(pair.ours),
        other.unbind(pair.ours),
        other.notify(EvtchnPort(u32::MAX)),
    ] {
        let errno = result.unwrap_err().raw_os_error();
        assert_eq!(errno, Some(Errno::NOTCONN.raw_os_error()));
    }
    other.unmask(&[pair.ours, EvtchnPort(5000)]).unwrap();
}

#[test]
fn sends_into_a_dead_end_are_dropped_and_a_new_end_is_pending() {
    let Pair {
        host,
        guest,
        mut domu,
        dom0,
        port,
        ours,
    } = pair();
    domu.notify(port).unwrap();
    drop(dom0);
    for _ in 0..3 {
        domu.notify(port).unwrap();
    }
    assert!(!is_readable(&domu), "the death is no event");

    let mut again = host.platform(DomId::DOM0).event_channels().unwrap();
    let rebound = again.bind_interdomain(guest, port).unwrap();
    assert_eq!(rebound, ours, "the same number");
    assert!(is_readable(&again));
    assert_eq!(pending(&mut again), [rebound], "so that no event is lost");
    assert!(!is_readable(&domu), "the other side is not woken");
    again.unmask(&[rebound]).unwrap();

    domu.notify(port).unwrap();
    assert_eq!(pending(&mut again), [rebound]);
    again.notify(rebound).unwrap();
    assert_eq!(pending(&mut domu), [port]);
}

#[test]
fn a_closed_port_waits_for_the_same_domain() {
    let mut pair = pair();
    pair.dom0.unbind(pair.ours).unwrap();
    pair.domu.notify(pair.port).unwrap();
    assert_eq!(pending(&mut pair.dom0), []);
    let again = pair.dom0.bind_interdomain(pair.guest, pair.port).unwrap();
    pair.domu.unbind(pair.port).unwrap();
    let back = pair.domu.bind_interdomain(DomId::DOM0, again).unwrap();
    assert_eq!(pending(&mut pair.domu), [back]);
    pair.dom0.notify(again).unwrap();
    pair.domu.unmask(&[back]).unwrap();
    assert_eq!(pending(&mut pair.domu), [back]);
}

#[test]
fn an_event_of_a_closed_port_does_not_reach_its_successor() {
    let mut pair = pair();
    pair.dom0.notify(pair.ours).unwrap();
    pair.domu.unbind(pair.port).unwrap();
    let successor = pair.domu.alloc_unbound(DomId::DOM0).unwrap();
    assert_eq!(successor, pair.port);
    assert_eq!(pending(&mut pair.domu), []);
    pair.dom0.notify(pair.ours).unwrap();
    assert_eq!(pending(&mut pair.domu), [], "nobody is bound to it");
}

#[test]
fn events_are_counted_also_into_a_dead_end_and_after_the_sender_is_gone() {
    let pair = pair();
    let sends = |domid| pair.host.report(domid).unwrap().counters.evtchn_send;
    for _ in 0..5 {
        pair.dom0.notify(pair.ours).unwrap();
    }
    pair.domu.unbind(pair.port).unwrap();
    pair.dom0.notify(pair.ours).unwrap();
    pair.dom0.notify(EvtchnPort(700)).unwrap_err();
    assert_eq!((sends(DomId::DOM0), sends(pair.guest)), (6, 0));
    drop(pair.dom0);
    assert_eq!(sends(DomId::DOM0), 6);
    let counters = pair.host.report(DomId::DOM0).unwrap().counters;
    assert_eq!(counters.evtchn_bind_interdomain, 1);
    let counters = pair.host.report(pair.guest).unwrap().counters;
    assert_eq!(
        (counters.evtchn_alloc_unbound, counters.evtchn_close),
        (1, 1)
    );
}

#[test]
fn ports_are_bounded_for_the_whole_domain() {
    let pair = pair();
    let other = pair.host.platform(pair.guest).event_channels().unwrap();
    for _ in 2..xen_hal::hosted::PORTS {
        other.alloc_unbound(DomId::DOM0).unwrap();
    }
    let more = pair.domu.alloc_unbound(DomId::DOM0);
    assert!(matches!(more, Err(EvtchnError::NoPort { .. })), "{more:?}");
    drop(other);
    pair.domu.alloc_unbound(DomId::DOM0).unwrap();
}

/// A sender that is killed between the bit and the signal must not silence the port for ever.
#[test]
fn an_event_whose_sender_died_before_the_signal_is_signalled() {
    let host = Host::start();
    let guest = host.guest("g");
    let mut dom0 = host.platform(DomId::DOM0).event_channels().unwrap();
    let waiting = dom0.alloc_unbound(guest).unwrap();

    let socket = packet_socket(&host, guest);
    let call = |request: Request| {
        channel::send(&socket, &request.emit(), &[]).unwrap();
        let packet = channel::receive(&socket).unwrap().unwrap();
        (Reply::parse(&packet.bytes).unwrap(), packet.fds)
    };
    call(Request::OpenEvents);
    let peer = DomId::DOM0;
    let (bound, _) = call(Request::BindInterdomain {
        peer,
        remote: waiting,
    });
    let Reply::Port(port) = bound else {
        panic!("{bound:?}")
    };
    let (_, fds) = call(Request::Route { port });
    let page = PendingPage::map(&fds[0]).unwrap();
    assert_eq!(page.send(waiting), Signal::Needed);
    assert!(!is_readable(&dom0));
    // Here it is killed.
    drop(socket);
    assert_eq!(host.holdings(guest), (0, 0, 0));
    assert!(is_readable(&dom0));
    assert_eq!(pending(&mut dom0), [waiting]);
}

/// Two threads that do nothing but send and answer: a lost event stops them.
#[test]
fn no_event_is_lost_at_full_speed() {
    const ROUNDS: u32 = 2_000;
    let Pair {
        host,
        guest,
        mut domu,
        mut dom0,
        port,
        ours,
    } = pair();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..ROUNDS {
                assert_eq!(common::wait_event(&mut domu), [port]);
                domu.notify(port).unwrap();
            }
        });
        for _ in 0..ROUNDS {
            dom0.notify(ours).unwrap();
            assert_eq!(common::wait_event(&mut dom0), [ours]);
        }
    });
    for domid in [guest, DomId::DOM0] {
        let counters = host.report(domid).unwrap().counters;
        assert_eq!(counters.evtchn_send, ROUNDS.into());
    }
}

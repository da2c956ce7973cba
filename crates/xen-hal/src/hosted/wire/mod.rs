//! Messages between a domain and the broker: one request, one reply, in one packet of a
//! SEQPACKET socket each; all fields little-endian; descriptors travel beside them.
//!
//! Parsing is total: every packet gives a message or [`Malformed`], never a panic. What a
//! message means, and who may send it, is the broker's business.

mod reply;
mod request;

pub use guest_memory::Access;
pub use reply::{DomainReport, DomainState, Reply, Run};
pub use request::{CopyData, PageCopy, Request};

/// Bytes of the largest packet: less than the default send buffer of a socket (208 KiB), which bounds it.
pub const MAX_PACKET: usize = 128 * 1024;
/// Descriptors beside one packet (Linux: `SCM_MAX_FD` is 253).
pub const MAX_FDS: usize = 250;
/// References in one map request: the reply names at most as many runs, 12 bytes each.
pub const MAX_REFS: usize = 8192;
/// Bytes of data in one copy request or reply.
pub const MAX_COPY_BYTES: usize = 96 * 1024;
/// Copies in one request: 12 bytes each beside the data.
pub const MAX_COPIES: usize = 1024;

/// A packet that is no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a packet of {0} bytes is no message of the hosted wire")]
pub struct Malformed(pub usize);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hosted::Counters;
    use proptest::prelude::*;
    use xen_types::{DomId, EvtchnPort, GrantRef};

    fn any_access() -> impl Strategy<Value = Access> {
        prop_oneof![Just(Access::Read), Just(Access::Write)]
    }

    fn any_copy() -> impl Strategy<Value = PageCopy> {
        let data = prop_oneof![
            any::<u16>().prop_map(CopyData::Read),
            prop::collection::vec(any::<u8>(), 0..40).prop_map(CopyData::Write),
        ];
        (any::<u32>(), any::<u16>(), data).prop_map(|(gref, offset, data)| PageCopy {
            gref: GrantRef(gref),
            offset,
            data,
        })
    }

    fn any_request() -> impl Strategy<Value = Request> {
        let domid = || any::<u16>().prop_map(DomId);
        let port = || any::<u32>().prop_map(EvtchnPort);
        let refs = prop::collection::vec(any::<u32>().prop_map(GrantRef), 0..20);
        prop_oneof![
            (domid(), any::<u32>(), any_access()).prop_map(|(peer, pages, access)| {
                Request::Grant {
                    peer,
                    pages,
                    access,
                }
            }),
            any::<u64>().prop_map(|grant| Request::Revoke { grant }),
            (domid(), any_access(), refs).prop_map(|(peer, access, refs)| Request::Map {
                peer,
                access,
                refs
            }),
            any::<u64>().prop_map(|mapping| Request::Unmap { mapping }),
            (
                domid(),
                any::<bool>(),
                prop::collection::vec(any_copy(), 0..5)
            )
                .prop_map(|(peer, goes_on, copies)| Request::Copy {
                    peer,
                    goes_on,
                    copies
                }),
            Just(Request::OpenEvents),
            (domid(), port()).prop_map(|(peer, remote)| Request::BindInterdomain { peer, remote }),
            domid().prop_map(|peer| Request::AllocUnbound { peer }),
            port().prop_map(|port| Request::Unbind { port }),
            port().prop_map(|port| Request::Route { port }),
            ".{0,20}".prop_map(|name| Request::CreateDomain { name }),
            domid().prop_map(|domid| Request::DestroyDomain { domid }),
            domid().prop_map(|domid| Request::BindProcess { domid }),
            Just(Request::Domains),
        ]
    }

    fn any_domain() -> impl Strategy<Value = DomainReport> {
        let state = prop_oneof![
            Just(DomainState::Alive),
            Just(DomainState::Zombie),
            Just(DomainState::Gone)
        ];
        (
            any::<u16>(),
            state,
            any::<[u32; 4]>(),
            any::<[u64; Counters::COUNT]>(),
        )
            .prop_map(
                |(domid, state, [granted_pages, mapped_pages, ports, nodes], values)| {
                    DomainReport {
                        domid: DomId(domid),
                        state,
                        granted_pages,
                        mapped_pages,
                        ports,
                        nodes,
                        counters: Counters::from_values(values),
                    }
                },
            )
    }

    fn any_reply() -> impl Strategy<Value = Reply> {
        let refs = prop::collection::vec(any::<u32>().prop_map(GrantRef), 0..20);
        let runs = prop::collection::vec(
            any::<[u32; 3]>().prop_map(|[fd, first, pages]| Run { fd, first, pages }),
            0..20,
        );
        let data = prop::collection::vec(any::<u8>(), 0..40);
        prop_oneof![
            (0..i32::MAX).prop_map(Reply::Refused),
            Just(Reply::Done),
            (any::<u64>(), refs).prop_map(|(grant, refs)| Reply::Granted { grant, refs }),
            (any::<u64>(), runs).prop_map(|(mapping, runs)| Reply::Mapped { mapping, runs }),
            prop::collection::vec(prop::result::maybe_err(data, any::<i16>()), 0..5)
                .prop_map(Reply::Copied),
            Just(Reply::Events),
            any::<u32>().prop_map(|port| Reply::Port(EvtchnPort(port))),
            (any::<u32>(), prop::option::of(1..u32::MAX)).prop_map(|(epoch, peer)| Reply::Route {
                epoch,
                peer: peer.map(EvtchnPort),
            }),
            any::<u16>().prop_map(|domid| Reply::Domain(DomId(domid))),
            prop::collection::vec(any_domain(), 0..4).prop_map(Reply::Domains),
        ]
    }

    proptest! {
        #[test]
        fn requests_go_there_and_back_and_nothing_may_follow(request in any_request()) {
            let mut packet = request.emit();
            prop_assert_eq!(Request::parse(&packet), Ok(request));
            packet.push(0);
            prop_assert!(Request::parse(&packet).is_err());
        }

        #[test]
        fn replies_go_there_and_back_and_nothing_may_follow(reply in any_reply()) {
            let mut packet = reply.emit();
            prop_assert_eq!(Reply::parse(&packet), Ok(reply));
            packet.push(0);
            prop_assert!(Reply::parse(&packet).is_err());
        }

        #[test]
        fn a_cut_request_is_malformed(request in any_request(), cut in 1_usize..64) {
            let packet = request.emit();
            let cut = &packet[..packet.len().saturating_sub(cut)];
            prop_assert_eq!(Request::parse(cut), Err(Malformed(cut.len())));
        }

        #[test]
        fn garbage_is_parsed_without_panic(packet in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(request) = Request::parse(&packet) {
                prop_assert_eq!(request.emit(), packet.clone());
            }
            if let Ok(reply) = Reply::parse(&packet) {
                prop_assert_eq!(Reply::parse(&reply.emit()), Ok(reply));
            }
        }
    }

    #[test]
    fn the_largest_messages_fit_a_packet() {
        let refs = vec![GrantRef(u32::MAX); MAX_REFS];
        let map = Request::Map {
            peer: DomId(1),
            access: Access::Write,
            refs,
        };
        let run = Run {
            fd: 0,
            first: 0,
            pages: 1,
        };
        let mapped = Reply::Mapped {
            mapping: 0,
            runs: vec![run; MAX_REFS],
        };
        let copy = PageCopy {
            gref: GrantRef(0),
            offset: 0,
            data: CopyData::Write(vec![0; MAX_COPY_BYTES / MAX_COPIES]),
        };
        let copy = Request::Copy {
            peer: DomId(1),
            goes_on: false,
            copies: vec![copy; MAX_COPIES],
        };
        for packet in [map.emit(), mapped.emit(), copy.emit()] {
            assert!(packet.len() <= MAX_PACKET, "{}", packet.len());
        }
    }
}

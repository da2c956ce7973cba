//! Areas that the frontend shares: mapped in chunks, a bounded number of pages a turn, in the
//! order of the requests (binding section 6).

use std::collections::VecDeque;

use guest_memory::{Access, Area, UnmapError};
use virtio_msg::wire::{MsgId, Token};
use virtio_msg::{DeviceSideBus, PrivateRequest};
use xen_bus::areas::{AreaLimits, ShareJob, ShareStep, Withdrawal};
use xen_bus::keys::BackendOffer;
use xen_bus::messages::{AreaReply, AreaResult, AreaShare, PrivateMessage};
use xen_hal::{MapError, MappingBuilder};
use xen_types::{DomId, GrantRef, PAGE_SIZE};

use crate::grants::Grants;
use crate::guest_log::{GuestLog, in_full};
use crate::host::Host;
use crate::instance::InstanceId;
use crate::space::GuestSpace;

/// The areas of one connection.
#[derive(Debug)]
pub(crate) struct Sharing {
    space: GuestSpace,
    /// Requests that wait for their turn; no more than the ring has slots.
    waiting: VecDeque<(Token, PrivateMessage)>,
    work: Option<Work>,
}

/// What is under way.
#[derive(Debug)]
enum Work {
    /// An area is being mapped.
    Map(Mapping),
    /// An area that translates no more waits to be unmapped.
    Unmap {
        token: Token,
        withdrawal: Withdrawal,
        area: Area,
    },
}

/// An area that is being mapped.
#[derive(Debug)]
struct Mapping {
    token: Token,
    job: ShareJob,
    builder: MappingBuilder,
}

impl Sharing {
    /// Nothing is shared yet. With `grants`, addresses may name granted pages too.
    pub(crate) fn new(offer: &BackendOffer, grants: Option<Grants>) -> Self {
        let limits = AreaLimits {
            max_areas: offer.max_areas,
            max_area_pages: offer.max_area_pages,
        };
        Self {
            space: GuestSpace::new(limits, grants),
            waiting: VecDeque::new(),
            work: None,
        }
    }

    /// What bus addresses mean now.
    pub(crate) fn space(&self) -> &GuestSpace {
        &self.space
    }

    /// The loop has come round: there is work to spend again.
    pub(crate) fn next_turn(&mut self) {
        self.space.budget.get_mut().next_turn();
    }

    /// Whether this turn has mapped and unmapped enough, areas and rings together.
    pub(crate) fn is_spent(&self) -> bool {
        self.space.budget.borrow().is_spent()
    }

    /// Takes a private request of the bus. One that makes no sense is discarded, as virtio-msg
    /// section 2.5 wants; having no answer, it counts among the guest's outstanding requests to
    /// the end of the session (section 4). That many of them end the session, and nothing else.
    pub(crate) fn request(&mut self, id: InstanceId, request: &PrivateRequest) {
        match PrivateMessage::parse(request.msg_id.0, false, &request.payload) {
            Ok(message) => self.waiting.push_back((request.token, message)),
            Err(error) => tracing::debug!(%id, %error, "private request discarded"),
        }
    }

    /// One turn's work; true: there is more.
    ///
    /// # Errors
    /// Pages that were to be unmapped are still mapped: nothing may be promised any more.
    pub(crate) fn step(
        &mut self,
        host: &Host,
        log: &mut GuestLog,
        bus: &mut DeviceSideBus,
    ) -> Result<bool, UnmapError> {
        if self.work.is_none() && self.waiting.is_empty() {
            return Ok(false);
        }
        loop {
            match self.work.take() {
                Some(Work::Map(mapping)) => {
                    if let Some(unfinished) = self.map_some(host, log, mapping, bus) {
                        self.work = Some(Work::Map(unfinished));
                        return Ok(true);
                    }
                    continue;
                }
                Some(Work::Unmap {
                    token,
                    withdrawal,
                    area,
                }) => {
                    let budget = self.space.budget.get_mut();
                    if !budget.take_whole(withdrawal.pages()) {
                        self.work = Some(Work::Unmap {
                            token,
                            withdrawal,
                            area,
                        });
                        return Ok(true);
                    }
                    area.unmap()?;
                    let reply = self.space.areas.finish_unshare(withdrawal);
                    answer(bus, token, &PrivateMessage::AreaUnshareReply(reply));
                    continue;
                }
                None => {}
            }
            match self.waiting.pop_front() {
                None => return Ok(false),
                Some((token, PrivateMessage::AreaShare(request))) => {
                    self.begin(host, log, token, request, bus);
                }
                Some((token, PrivateMessage::AreaUnshare(request))) => {
                    self.begin_unshare(log, token, request.area_id, bus);
                }
                // Nothing else is a request of the driver side.
                Some(_) => {}
            }
        }
    }

    /// Unmaps every area, at the end of the connection.
    ///
    /// # Errors
    /// The first that could not be unmapped; the others were tried all the same.
    pub(crate) fn unmap_all(self) -> Result<(), UnmapError> {
        // What was still being mapped is unmapped by dropping its builder.
        let withdrawn = match self.work {
            Some(Work::Unmap { area, .. }) => Some(area),
            _ => None,
        };
        let withdrawn = withdrawn.map_or(Ok(()), Area::unmap);
        withdrawn.and(self.space.unmap_all())
    }

    fn begin(
        &mut self,
        host: &Host,
        log: &mut GuestLog,
        token: Token,
        request: AreaShare,
        bus: &mut DeviceSideBus,
    ) {
        let refused = |result| {
            PrivateMessage::AreaShareReply(AreaReply {
                area_id: request.area_id,
                result,
            })
        };
        self.space.areas.set_elsewhere(self.space.ring_pages());
        let job = match self.space.areas.begin_share(request) {
            Ok(job) => job,
            Err(refusal) => {
                refused_area(log, &refusal);
                return answer(bus, token, &refused(refusal.result()));
            }
        };
        let pages = usize::try_from(job.pages()).unwrap_or(usize::MAX);
        match host
            .platform
            .begin_mapping(log.id().frontend, pages, job.access())
        {
            Ok(builder) => {
                self.work = Some(Work::Map(Mapping {
                    token,
                    job,
                    builder,
                }));
            }
            Err(error) => {
                refused_area(log, &error);
                let reply = self.space.areas.abandon_share(job, AreaResult::NO_ROOM);
                answer(bus, token, &PrivateMessage::AreaShareReply(reply));
            }
        }
    }

    /// Maps as much as the turn allows; gives the job back if it is not at its end.
    fn map_some(
        &mut self,
        host: &Host,
        log: &mut GuestLog,
        mapping: Mapping,
        bus: &mut DeviceSideBus,
    ) -> Option<Mapping> {
        let Mapping {
            token,
            mut job,
            mut builder,
        } = mapping;
        let result = loop {
            let done = match job.step(self.space.budget.get_mut()) {
                ShareStep::MapDirectory(gref) => match copy_page(host, log.id().frontend, gref) {
                    Ok(page) => job.directory(&page).map_err(|refusal| {
                        refused_area(log, &refusal);
                        refusal.result()
                    }),
                    Err(error) => Err(refuse(log, &error)),
                },
                ShareStep::MapData(refs) => builder.map(&refs).map_err(|error| refuse(log, &error)),
                ShareStep::NextTurn => {
                    return Some(Mapping {
                        token,
                        job,
                        builder,
                    });
                }
                ShareStep::Mapped => break builder.finish().map_err(|error| refuse(log, &error)),
            };
            if let Err(result) = done {
                break Err(result);
            }
        };
        let reply = match result {
            Ok(area) => self.space.areas.finish_share(job, area),
            Err(result) => self.space.areas.abandon_share(job, result),
        };
        answer(bus, token, &PrivateMessage::AreaShareReply(reply));
        None
    }

    /// Stops translating an area at once, or answers why not.
    fn begin_unshare(
        &mut self,
        log: &GuestLog,
        token: Token,
        area_id: u16,
        bus: &mut DeviceSideBus,
    ) {
        match self.space.areas.begin_unshare(area_id) {
            Ok((withdrawal, area)) => {
                self.work = Some(Work::Unmap {
                    token,
                    withdrawal,
                    area,
                });
            }
            Err(refusal) => {
                tracing::debug!(id = %log.id(), %refusal, "area kept");
                let result = refusal.result();
                let reply = PrivateMessage::AreaUnshareReply(AreaReply { area_id, result });
                answer(bus, token, &reply);
            }
        }
    }
}

/// Copies a page of the guest's once and lets go of it.
fn copy_page(host: &Host, peer: DomId, gref: GrantRef) -> Result<[u8; PAGE_SIZE], MapError> {
    let mut builder = host.platform.begin_mapping(peer, 1, Access::Read)?;
    builder.map(&[gref])?;
    let area = builder.finish()?;
    let mut page = [0; PAGE_SIZE];
    if let Ok(range) = area.range(0, PAGE_SIZE as u64, Access::Read) {
        // The page is exactly as long as the copy.
        let _ = range.read(0, &mut page);
    }
    drop(area);
    Ok(page)
}

fn refuse(log: &mut GuestLog, error: &MapError) -> AreaResult {
    refused_area(log, error);
    AreaResult::REFUSED
}

fn refused_area(log: &mut GuestLog, why: &dyn std::error::Error) {
    if log.admits() {
        tracing::warn!(id = %log.id(), why = %in_full(why), "area refused");
    }
}

fn answer(bus: &mut DeviceSideBus, token: Token, message: &PrivateMessage) {
    bus.answer_private(MsgId(message.msg_id()), token, &message.emit());
}

//! What the bus says of itself, kept until somebody asks (binding sections 6 and 8).
//!
//! Bounded whatever the backend sends: a set of device numbers, one mark for each device in use,
//! and the end of the one enumeration and the one private request that can be under way. What is
//! for the user of a device stays in its driver side.

use std::collections::BTreeSet;

use virtio_msg::{DriverBusAction, DriverSideBus, PrivateId};
use xen_bus::messages::PrivateMessage;

/// How a request of the bus ended: with an answer, or with none in time.
pub(crate) type Ended<T> = Option<T>;

/// What was heard and not asked for yet.
#[derive(Debug, Default)]
pub(crate) struct News {
    present: BTreeSet<u16>,
    leaving: BTreeSet<u16>,
    enumeration: Option<Ended<()>>,
    private: Option<(PrivateId, Ended<Vec<u8>>)>,
}

impl News {
    /// Takes everything that `bus` has to say but for what its devices have.
    pub(crate) fn hear(&mut self, bus: &mut DriverSideBus) {
        while let Some(action) = bus.poll_bus_action() {
            match action {
                DriverBusAction::Added(dev_num) => {
                    self.present.insert(dev_num.0);
                }
                DriverBusAction::Removed(dev_num) => {
                    self.present.remove(&dev_num.0);
                    self.leaving.remove(&dev_num.0);
                }
                DriverBusAction::PrivateEvent { msg_id, payload } => {
                    if let Ok(PrivateMessage::RemoveRequest(request)) =
                        PrivateMessage::parse(msg_id.0, false, &payload)
                        && bus.devices().any(|used| used.0 == request.dev_num)
                    {
                        self.leaving.insert(request.dev_num);
                    }
                }
                DriverBusAction::Enumerated => self.enumeration = Some(Some(())),
                DriverBusAction::EnumerationTimedOut => self.enumeration = Some(None),
                DriverBusAction::PrivateAnswer { id, payload } => {
                    self.private = Some((id, Some(payload)));
                }
                DriverBusAction::PrivateTimedOut(id) => self.private = Some((id, None)),
                DriverBusAction::Pong { .. } | DriverBusAction::Device { .. } => {}
            }
        }
    }

    /// An enumeration begins: what it finds counts, and what appears meanwhile.
    pub(crate) fn begin_enumeration(&mut self) {
        self.present.clear();
        self.enumeration = None;
    }

    /// Whether the enumeration has ended.
    pub(crate) fn enumerated(&mut self) -> Option<Ended<()>> {
        self.enumeration.take()
    }

    /// How the private request ended, if it has.
    pub(crate) fn answered(&mut self, wanted: PrivateId) -> Option<Ended<Vec<u8>>> {
        let (_, ended) = self.private.take_if(|(id, _)| *id == wanted)?;
        Some(ended)
    }

    /// The numbers that were said to be there.
    pub(crate) fn present(&self) -> impl Iterator<Item = u16> + '_ {
        self.present.iter().copied()
    }

    /// Whether the backend asks to be given the device back.
    pub(crate) fn is_leaving(&self, dev_num: u16) -> bool {
        self.leaving.contains(&dev_num)
    }

    /// The device is not used any more.
    pub(crate) fn forget(&mut self, dev_num: u16) {
        self.leaving.remove(&dev_num);
    }
}

//! A bus whose devices are driven by foreign drivers.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Instant;

use frontend_shim::{Block, Frontend, FrontendError};
use guest_memory::{Access, AddressSpace as _};
use virtio_drivers::PAGE_SIZE;

use crate::error::ForeignError;
use crate::memory::Claim;
use crate::transport::BusTransport;

/// Bytes of the shared area for rings and buffers: half of a pool of the usual size.
const MEMORY_BYTES: usize = 1 << 20;
/// The least: the rings of a queue take two pages.
const MIN_MEMORY_BYTES: usize = 64 << 10;

/// A connected frontend, in the hands of this thread's foreign drivers.
#[derive(Debug)]
pub struct ForeignBus {
    shared: Rc<Shared>,
}

/// What the bus and its transports share.
#[derive(Debug)]
pub(crate) struct Shared {
    claim: Claim,
    block: Block,
    /// A device was not reset: it may still use the memory.
    pub(crate) tainted: Cell<bool>,
    pub(crate) frontend: RefCell<Frontend>,
}

impl ForeignBus {
    /// Takes a connected frontend, and a piece of its shared area for this thread.
    ///
    /// # Errors
    /// The thread has another bus, there is no memory, or the connection ended.
    pub fn new(mut frontend: Frontend) -> Result<Self, ForeignError> {
        let wanted = frontend.instance().handle;
        frontend.share_pool()?;
        let Some(pool) = frontend.link()?.pool_mut() else {
            return Err(ForeignError::Frontend(FrontendError::Disconnected {
                handle: wanted,
                why: "no memory is shared".into(),
            }));
        };
        let mut bytes = MEMORY_BYTES;
        let block = loop {
            match pool.take_aligned(bytes, PAGE_SIZE) {
                Ok(block) => break block,
                Err(_) if bytes > MIN_MEMORY_BYTES => bytes /= 2,
                Err(source) => {
                    return Err(ForeignError::NoMemory {
                        bus: wanted,
                        source,
                    });
                }
            }
        };
        let address = pool.address(block, 0);
        let len = u32::try_from(bytes).unwrap_or(u32::MAX);
        let claim = pool
            .translate_leased(address, len, Access::Write)
            .map_err(|error| error.to_string())
            .map(|window| Claim::take(wanted, window, address));
        match claim {
            Ok(Ok(claim)) => Ok(Self {
                shared: Rc::new(Shared {
                    claim,
                    block,
                    tainted: Cell::new(false),
                    frontend: RefCell::new(frontend),
                }),
            }),
            Ok(Err(bus)) => Err(ForeignError::OtherBus { bus, wanted }),
            Err(why) => Err(ForeignError::Frontend(FrontendError::Disconnected {
                handle: wanted,
                why,
            })),
        }
    }

    /// The device numbers on the bus, ascending.
    ///
    /// # Errors
    /// As [`Frontend::devices`].
    pub fn devices(&self) -> Result<Vec<u16>, ForeignError> {
        Ok(self.shared.frontend.borrow_mut().devices()?)
    }

    /// Brings device `dev_num` up with the driver that `new` makes of its transport. What the
    /// library's constructors do not notice, a device that refuses features or a queue, is an error
    /// here.
    ///
    /// # Errors
    /// There is no such device, it does not come up, or the driver refuses it.
    pub fn open<D>(
        &self,
        dev_num: u16,
        new: impl FnOnce(BusTransport) -> virtio_drivers::Result<D>,
    ) -> Result<D, ForeignError> {
        let transport = BusTransport::probe(&self.shared, dev_num)?;
        let fault = transport.fault();
        let made = new(transport);
        if let Some(why) = fault.take() {
            let frontend = self.shared.frontend.borrow();
            return Err(frontend.device_error(dev_num, why).into());
        }
        made.map_err(|source| ForeignError::Driver { dev_num, source })
    }

    /// Sends and receives what is there, and sleeps until there is something new, at most until
    /// `deadline`. False: the deadline has passed. To be called when the driver has nothing used
    /// (`peek_used`), and to be followed by another look.
    ///
    /// # Errors
    /// The connection ended.
    pub fn wait(&self, deadline: Option<Instant>) -> Result<bool, ForeignError> {
        let mut frontend = self.shared.frontend.borrow_mut();
        frontend.link()?;
        let in_time = frontend.wait(deadline)?;
        frontend.pump()?;
        frontend.link()?;
        Ok(in_time)
    }

    /// Gives the frontend back; the bus, if a driver still has a device of it.
    ///
    /// # Errors
    /// A driver was not dropped.
    pub fn close(self) -> Result<Frontend, Self> {
        let shared = Rc::try_unwrap(self.shared).map_err(|shared| Self { shared })?;
        let Shared {
            claim,
            block,
            tainted,
            frontend,
        } = shared;
        let free = !claim.is_used() && !tainted.get();
        drop(claim);
        let mut frontend = frontend.into_inner();
        // The memory of a device that was not reset stays taken until the connection ends.
        if free
            && let Ok(link) = frontend.link()
            && let Some(pool) = link.pool_mut()
        {
            pool.give_back(block);
        }
        Ok(frontend)
    }
}

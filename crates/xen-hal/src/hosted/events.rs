//! Event channels of the hosted platform, as `/dev/xen/evtchn`: the broker binds and
//! unbinds; events go from process to process through the control page and an eventfd.
//!
//! A route (whose page, whose eventfd, which port) is cached per port while the port's epoch word,
//! which the broker changes with every bind, unbind and death, stays what it was.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{Ordering, fence};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;
use xen_types::{DomId, EvtchnPort};

use super::connection::{Connection, unexpected};
use super::control_page::{ControlPage, PendingPage, Signal};
use super::wire::{Reply, Request};

#[derive(Debug)]
pub(crate) struct Events {
    connection: Connection,
    control: ControlPage,
    wake: OwnedFd,
    /// The ports bound here.
    routes: Mutex<HashMap<EvtchnPort, Route>>,
}

/// Where the events of a port go.
#[derive(Debug, Default)]
enum Route {
    /// Not asked yet.
    #[default]
    Unknown,
    /// As the broker said when the port's epoch word was `epoch`; no peer: a dead end.
    Known { epoch: u32, peer: Option<Peer> },
}

#[derive(Debug)]
struct Peer {
    page: PendingPage,
    wake: OwnedFd,
    port: EvtchnPort,
}

impl Events {
    pub(super) fn open(connection: Connection) -> io::Result<Self> {
        let (reply, fds) = connection.call(&Request::OpenEvents)?;
        let [control, wake] = two(reply, fds, |reply| *reply == Reply::Events)?;
        Ok(Self {
            connection,
            control: ControlPage::map(control)?,
            wake,
            routes: Mutex::default(),
        })
    }

    pub(crate) fn bind_interdomain(
        &self,
        peer: DomId,
        remote: EvtchnPort,
    ) -> io::Result<EvtchnPort> {
        self.new_port(&Request::BindInterdomain { peer, remote })
    }

    pub(crate) fn alloc_unbound(&self, peer: DomId) -> io::Result<EvtchnPort> {
        self.new_port(&Request::AllocUnbound { peer })
    }

    fn new_port(&self, request: &Request) -> io::Result<EvtchnPort> {
        match self.connection.call(request)? {
            (Reply::Port(port), _) => {
                self.routes().insert(port, Route::Unknown);
                Ok(port)
            }
            (other, _) => Err(unexpected(&other)),
        }
    }

    pub(crate) fn unbind(&self, port: EvtchnPort) -> io::Result<()> {
        let mut routes = self.routes();
        self.connection.done(&Request::Unbind { port })?;
        routes.remove(&port);
        Ok(())
    }

    pub(crate) fn notify(&self, port: EvtchnPort) -> io::Result<()> {
        let mut routes = self.routes();
        let route = routes.get_mut(&port).ok_or(Errno::NOTCONN)?;
        // What the caller wrote before must be visible before the epoch is read. If the epoch is the
        // old one, the broker's change, and with it a new end that was made pending, come later, and that
        // end sees what was written; if it is the new one, the new route is asked for.
        fence(Ordering::SeqCst);
        let now = self.control.epoch(port).ok_or(Errno::NOTCONN)?;
        if !matches!(route, Route::Known { epoch, .. } if *epoch == now) {
            *route = self.ask(port)?;
        }
        self.control.count_send();
        match route {
            Route::Known {
                peer: Some(peer), ..
            } => match peer.page.send(peer.port) {
                Signal::Needed => signal(&peer.wake),
                Signal::No => Ok(()),
            },
            _ => Ok(()),
        }
    }

    fn ask(&self, port: EvtchnPort) -> io::Result<Route> {
        let (reply, fds) = self.connection.call(&Request::Route { port })?;
        Ok(match reply {
            Reply::Route { epoch, peer: None } => Route::Known { epoch, peer: None },
            Reply::Route {
                epoch,
                peer: Some(port),
            } => {
                let [page, wake] = two(reply, fds, |_| true)?;
                let page = PendingPage::map(page)?;
                Route::Known {
                    epoch,
                    peer: Some(Peer { page, wake, port }),
                }
            }
            other => return Err(unexpected(&other)),
        })
    }

    pub(crate) fn pending(&self, out: &mut Vec<EvtchnPort>) -> io::Result<()> {
        // First the eventfd, then the bits: see the control page.
        match rustix::io::retry_on_intr(|| rustix::io::read(&self.wake, &mut [0; 8])) {
            Ok(_) | Err(Errno::AGAIN) => {}
            Err(error) => return Err(error.into()),
        }
        let mut others = out.len();
        self.control.take(out);
        // A sender that was on its way when the port was closed may have left a bit.
        let routes = self.routes();
        out.retain(|port| {
            let other = others > 0;
            others = others.saturating_sub(1);
            other || routes.contains_key(port)
        });
        Ok(())
    }

    pub(crate) fn unmask(&self, ports: &[EvtchnPort]) -> io::Result<()> {
        let routes = self.routes();
        for port in ports.iter().filter(|port| routes.contains_key(port)) {
            if self.control.unmask(*port) == Signal::Needed {
                signal(&self.wake)?;
            }
        }
        Ok(())
    }

    fn routes(&self) -> MutexGuard<'_, HashMap<EvtchnPort, Route>> {
        self.routes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

/// Makes an eventfd readable; one that is full is readable already.
fn signal(wake: &OwnedFd) -> io::Result<()> {
    match rustix::io::retry_on_intr(|| rustix::io::write(wake, &1_u64.to_ne_bytes())) {
        Ok(_) | Err(Errno::AGAIN) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The two descriptors of a reply that `expected` accepts.
fn two(
    reply: Reply,
    fds: Vec<OwnedFd>,
    expected: impl FnOnce(&Reply) -> bool,
) -> io::Result<[OwnedFd; 2]> {
    <[OwnedFd; 2]>::try_from(fds)
        .ok()
        .filter(|_| expected(&reply))
        .ok_or_else(|| unexpected(&reply))
}

//! The loop of an export: one thread, which waits for clients, the disk and the bus at once.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::os::fd::AsFd as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use frontend_shim::{Disk, Finished, Frontend, FrontendError, Operation, Status, Watched};
use nbd::{Errno, Export, Request, Ticket};
use rustix::event::PollFlags;

use super::client::Client;
use super::schedule::{EraseLimits, Schedule};

/// Clients at a time. Each holds up to 40 MiB, and as much again while an unaligned write is put
/// together.
const MAX_CLIENTS: usize = 8;
/// How long one more waits for a place before it is refused: others may be about to leave.
const PLACE_LIMIT: Duration = Duration::from_secs(2);
/// How long the requests that clients have made may take when the backend wants the device back:
/// somebody waits for it, and a client need not read its answers.
const LEAVE_LIMIT: Duration = Duration::from_secs(10);

/// What is served, and to whom.
pub(super) struct Server<'a> {
    frontend: &'a mut Frontend,
    disk: &'a mut Disk,
    export: Export,
    /// By numbers that are not used again, as answers may come late.
    clients: BTreeMap<u64, Client>,
    next_client: u64,
    /// Somebody waits for a place: until when.
    knocking: Option<Instant>,
    schedule: Schedule<(u64, Ticket)>,
    /// The backend wants the device back: why it all ends, and when at the latest.
    leaving: Option<(FrontendError, Instant)>,
}

/// Who has something to say.
#[derive(Default)]
struct Ready {
    stop: bool,
    connects: bool,
    clients: Vec<u64>,
}

impl<'a> Server<'a> {
    pub(super) fn new(frontend: &'a mut Frontend, disk: &'a mut Disk) -> Self {
        let limits = EraseLimits::of(disk);
        let export = Export {
            // A hostile device may say anything; whole sectors can be served.
            bytes: disk.bytes() & !u64::from(nbd::MIN_BLOCK - 1),
            read_only: disk.is_read_only(),
            flush: disk.can_flush(),
            trim: limits.discard.is_some(),
            zero: limits.zero.is_some(),
        };
        Self {
            frontend,
            disk,
            export,
            clients: BTreeMap::new(),
            next_client: 0,
            knocking: None,
            schedule: Schedule::new(limits),
            leaving: None,
        }
    }

    /// Serves until `stop` has something to read, or until the device goes: what clients have asked
    /// by then is still done.
    pub(super) fn run(&mut self, listener: &UnixListener, stop: &UnixStream) -> anyhow::Result<()> {
        loop {
            self.frontend.pump()?;
            self.take_finished()?;
            // What a client has taken makes room for more of its requests.
            for (number, client) in &mut self.clients {
                client.send();
                while let Some(Request { ticket, command }) = client.next_request() {
                    self.schedule.push((*number, ticket), command);
                }
            }
            let now = Instant::now();
            self.clients
                .values_mut()
                .for_each(|client| client.check(now));
            self.clients.retain(|_, client| !client.is_over());
            if self.has_place() {
                self.knocking = None;
            } else if self.knocking.take_if(|limit| *limit <= now).is_some() {
                self.refuse(listener)?;
            }
            self.submit()?;
            let clients = self.clients.len();
            let over = |&mut (_, limit): &mut _| clients == 0 || limit <= Instant::now();
            if let Some((why, _)) = self.leaving.take_if(over) {
                return Err(why.into());
            }
            let ready = self.wait(listener, stop)?;
            if ready.stop {
                return Ok(());
            }
            if ready.connects && self.has_place() {
                self.accept(listener)?;
            } else if ready.connects {
                self.knocking = Instant::now().checked_add(PLACE_LIMIT);
            }
            for number in ready.clients {
                if let Some(client) = self.clients.get_mut(&number) {
                    client.receive();
                }
            }
        }
    }

    /// Takes what the disk has done.
    fn take_finished(&mut self) -> anyhow::Result<()> {
        while let Some(finished) = self.next_finished()? {
            let result = match finished.status {
                Status::Ok => Ok(()),
                Status::IoError => Err(Errno::Io),
                Status::Unsupported => Err(Errno::NotSup),
            };
            let slot = finished.slot;
            if result.is_ok() {
                let landing = self.schedule.landing(slot);
                self.disk.take(self.frontend, slot, landing)?;
            }
            if let Some(((client, ticket), answer)) = self.schedule.finished(slot, result)
                && let Some(client) = self.clients.get_mut(&client)
            {
                client.reply(ticket, answer);
            }
        }
        Ok(())
    }

    fn next_finished(&mut self) -> Result<Option<Finished>, FrontendError> {
        match self.disk.poll(self.frontend) {
            Err(why @ FrontendError::Leaving { .. }) => {
                if self.leaving.is_none() {
                    eprintln!("vmsg: {why}: the clients are let go");
                    self.leaving = Some((why, Instant::now() + LEAVE_LIMIT));
                    self.clients.values_mut().for_each(Client::end);
                }
                Ok(None)
            }
            other => other,
        }
    }

    /// Gives the disk as much to do as it takes.
    fn submit(&mut self) -> anyhow::Result<()> {
        while let Some(slot) = self.disk.free_slot()
            && let Some((operation, data)) = self.schedule.next(slot)
        {
            if let Operation::Write { .. } = operation {
                self.disk.fill(self.frontend, slot, data)?;
            }
            self.disk.submit(self.frontend, slot, operation)?;
        }
        Ok(())
    }

    fn wait(&mut self, listener: &UnixListener, stop: &UnixStream) -> anyhow::Result<Ready> {
        let connects = if self.knocking.is_none() && self.leaving.is_none() {
            PollFlags::IN
        } else {
            PollFlags::empty()
        };
        let mut watched = vec![
            Watched::new(stop.as_fd(), PollFlags::IN),
            Watched::new(listener.as_fd(), connects),
        ];
        let mut numbers = Vec::new();
        for (number, client) in &self.clients {
            if let Some((fd, interest)) = client.interest() {
                numbers.push(*number);
                watched.push(Watched::new(fd, interest));
            }
        }
        // That the disk's deadline has passed is what it says next.
        let deadline = match &self.leaving {
            Some((_, limit)) => Some(*limit),
            None => self.disk.deadline(),
        };
        let clients = self.clients.values().filter_map(Client::deadline);
        let deadline = clients.chain(deadline).chain(self.knocking).min();
        self.frontend.wait_with(deadline, &mut watched)?;
        let mut ready = watched.iter().map(|watched| !watched.ready.is_empty());
        Ok(Ready {
            stop: ready.next().unwrap_or_default(),
            connects: ready.next().unwrap_or_default(),
            clients: numbers
                .into_iter()
                .zip(ready)
                .filter_map(|(number, ready)| ready.then_some(number))
                .collect(),
        })
    }

    fn has_place(&self) -> bool {
        self.clients.len() < MAX_CLIENTS
    }

    fn accept(&mut self, listener: &UnixListener) -> io::Result<()> {
        if let Some(socket) = next_client(listener)? {
            let client = Client::new(socket, self.export)?;
            self.clients.insert(self.next_client, client);
            self.next_client += 1;
        }
        Ok(())
    }

    /// Turns everybody away who waits for a place.
    fn refuse(&self, listener: &UnixListener) -> io::Result<()> {
        while let Some(_closed) = next_client(listener)? {
            eprintln!("vmsg: a client is refused: {MAX_CLIENTS} are served, the most at a time");
        }
        Ok(())
    }
}

/// Who has connected next; nobody, if that one went away again.
fn next_client(listener: &UnixListener) -> io::Result<Option<UnixStream>> {
    match listener.accept() {
        Ok((socket, _)) => Ok(Some(socket)),
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::WouldBlock | ErrorKind::Interrupted | ErrorKind::ConnectionAborted
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

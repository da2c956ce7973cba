//! Making the device that a line of configuration asks for, and closing it, on threads of their own:
//! a disk or a network file system that does not answer may keep them for ever, and nobody else.

use std::fmt::Display;
use std::io;
use std::mem;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use virtio_devices::blk::{Blk, BlkConfig, BlkError};
use virtio_devices::rng::{Rng, RngError};
use virtio_devices::{DeviceModel, Engine};
use xen_bus::config::{DeviceConfig, Mode};

/// How long the loop waits for devices that have begun to open, once for all that a look at the bus
/// has found. Nearly all are there in less
/// than a millisecond, and a driver that connects then finds all of its devices; on a busy host it
/// takes longer. What is not there by then holds nobody up any more.
pub(crate) const PATIENCE: Duration = Duration::from_secs(1);

/// How long the loop waits for a device to close: whoever takes its image next is to find it free.
const PATIENCE_TO_CLOSE: Duration = Duration::from_millis(100);

/// A device, and its identity.
pub(crate) type Opened = Result<(Box<dyn DeviceModel>, [u8; 16]), Refusal>;

/// A device that is being opened. Dropping it closes what comes of it.
#[derive(Debug)]
pub(crate) struct Opening {
    result: Receiver<Opened>,
    /// Nobody has looked what has become of it.
    is_new: bool,
}

impl Opening {
    /// Begins to open what the line asks for.
    ///
    /// # Errors
    /// The host has no thread left.
    pub(crate) fn begin(line: Vec<u8>, engine: &Engine) -> io::Result<Self> {
        let engine = engine.clone();
        Self::of(move || open_model(&line, &engine))
    }

    fn of(open: impl FnOnce() -> Opened + Send + 'static) -> io::Result<Self> {
        let (tell, result) = channel();
        thread::Builder::new()
            .name("open".to_owned())
            .spawn(move || {
                // An error gives the device back: nobody wants it any more.
                drop(tell.send(open()));
            })?;
        Ok(Self {
            result,
            is_new: true,
        })
    }

    /// Whether nobody has looked what has become of it.
    pub(crate) fn is_new(&self) -> bool {
        self.is_new
    }

    /// What has become of it; `None`: it goes on. Waits until the deadline, the first time.
    pub(crate) fn outcome(&mut self, deadline: Instant) -> Option<Opened> {
        let limit = match mem::take(&mut self.is_new) {
            true => deadline.saturating_duration_since(Instant::now()),
            false => Duration::ZERO,
        };
        match self.result.recv_timeout(limit) {
            Ok(opened) => Some(opened),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => {
                Some(Err("its opening came to no end".to_owned().into()))
            }
        }
    }
}

/// Closes a device; what takes longer goes on by itself.
pub(crate) fn close(model: Box<dyn DeviceModel>) {
    let (tell, closed) = channel();
    let closing = thread::Builder::new()
        .name("close".to_owned())
        .spawn(move || {
            drop(model);
            let _ = tell.send(());
        });
    // Without a thread it was closed here.
    if closing.is_ok() && closed.recv_timeout(PATIENCE_TO_CLOSE).is_err() {
        tracing::warn!("an image does not close yet");
    }
}

/// Why a device cannot be opened.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// Its line or its image, for good: its number is spent. For the node `error`, which only the
    /// toolstack can read.
    Device(String),
    /// This host has no descriptor or no memory for it now.
    Shortage(String),
}

/// Makes the model that a configuration line asks for.
fn open_model(line: &[u8], engine: &Engine) -> Result<(Box<dyn DeviceModel>, [u8; 16]), Refusal> {
    let line = std::str::from_utf8(line).map_err(|_| "config is not text".to_owned())?;
    let config: DeviceConfig = line.parse().map_err(|error| format!("config: {error}"))?;
    match config.device_type.as_str() {
        "blk" => {
            let path = config
                .path
                .ok_or_else(|| "config: type=blk needs path=".to_owned())?;
            let blk = Blk::open(
                &BlkConfig {
                    path: path.into(),
                    read_only: config.mode == Mode::ReadOnly,
                    serial: config.serial.unwrap_or_default(),
                    queues: config.queues,
                    direct: config.direct,
                },
                engine,
            )
            .map_err(|error| match &error {
                BlkError::Open { error: cause, .. } | BlkError::Wake(cause) => {
                    Refusal::by_host(cause, &error)
                }
                _ => Refusal::Device(error.to_string()),
            })?;
            Ok((Box::new(blk), config.uuid.unwrap_or_default().into_bytes()))
        }
        "rng" => {
            if config.path.is_some()
                || config.serial.is_some()
                || config.queues != 1
                || config.direct
            {
                let why = "config: type=rng has no path, no serial, one queue and no direct=1";
                return Err(Refusal::from(why.to_owned()));
            }
            let rng = Rng::open().map_err(|error| match &error {
                RngError::Timer(cause) => Refusal::by_host(cause, &error),
                RngError::Entropy(_) => Refusal::Device(error.to_string()),
            })?;
            Ok((Box::new(rng), config.uuid.unwrap_or_default().into_bytes()))
        }
        other => Err(Refusal::from(format!(
            "config: type={other} is not known; known are: blk, rng"
        ))),
    }
}

impl Refusal {
    /// `error` came of what the kernel answered: it passes if descriptors or memory ran out.
    fn by_host(cause: &io::Error, error: &dyn Display) -> Self {
        let passing = [Errno::MFILE, Errno::NFILE, Errno::NOMEM];
        if Errno::from_io_error(cause).is_some_and(|errno| passing.contains(&errno)) {
            Self::Shortage(error.to_string())
        } else {
            Self::Device(error.to_string())
        }
    }
}

impl From<String> for Refusal {
    fn from(why: String) -> Self {
        Self::Device(why)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(line: &str) -> Result<u32, String> {
        let engine = Engine::new().unwrap();
        match open_model(line.as_bytes(), &engine) {
            Ok((model, _)) => Ok(model.describe().device_id),
            Err(Refusal::Device(why)) => Err(why),
            Err(Refusal::Shortage(why)) => panic!("{why}"),
        }
    }

    #[test]
    fn what_does_not_open_keeps_its_own_thread_and_nobody_else() {
        let (answer, disk) = channel::<Opened>();
        let mut opening = Opening::of(move || disk.recv().unwrap()).unwrap();
        let soon = Instant::now() + Duration::from_millis(1);
        let late = soon + 100 * PATIENCE;
        assert!(opening.outcome(soon).is_none());
        // It was waited for once.
        assert!(opening.outcome(late).is_none());
        answer
            .send(Err("the disk is back".to_owned().into()))
            .unwrap();
        let outcome = loop {
            match opening.outcome(late) {
                Some(outcome) => break outcome,
                None => thread::yield_now(),
            }
        };
        assert!(matches!(outcome, Err(Refusal::Device(why)) if why == "the disk is back"));
    }

    #[test]
    fn an_entropy_device_needs_nothing_and_takes_nothing() {
        assert_eq!(open("type=rng"), Ok(4));
        for more in ["serial=a", "queues=2", "direct=1", "path=/dev/urandom"] {
            let refused = open(&format!("type=rng,{more}")).unwrap_err();
            assert_eq!(
                refused,
                "config: type=rng has no path, no serial, one queue and no direct=1"
            );
        }
    }

    #[test]
    fn errors_name_what_is_wrong_with_the_line() {
        let unknown = "config: type=tape is not known; known are: blk, rng";
        assert_eq!(open("type=tape").unwrap_err(), unknown);
        let no_path = "config: type=blk needs path=";
        assert_eq!(open("type=blk").unwrap_err(), no_path);
        let unwilling = open("type=blk,direct=1,path=/proc/version").unwrap_err();
        assert_eq!(
            unwilling,
            "/proc/version: its file system has no direct I/O: leave out direct=1"
        );
        let absent = open("type=blk,path=/no/such/image").unwrap_err();
        assert_eq!(absent, "/no/such/image: there is no such image");
    }
}

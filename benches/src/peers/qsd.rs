//! QEMU's storage daemon: vhost-user-blk on the same file, driven by the same driver, with
//! notifications by eventfds and memory that both map.

use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail, ensure};
use guest_memory::{Access, AddressSpace, Area, FlatSpace};
use rustix::fs::{MemfdFlags, memfd_create};
use tempfile::TempDir;
use vhost::vhost_user::{Frontend, VhostUserFrontend as _};
use vhost::{VhostBackend as _, VhostUserMemoryRegionInfo, VringConfigData};
use virtqueue::RingFeatures;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use xen_types::PAGE_SIZE;

use crate::blk_queue::{BlkQueue, Disk, Operation, drive};

const PROGRAM: &str = "qemu-storage-daemon";
/// Debian's package.
const PACKAGE: &str = "qemu-utils";
/// How long it may take to make its socket, or to serve a request.
const LIMIT: Duration = Duration::from_secs(10);

const BASE: u64 = 0x4000_0000;
const INDIRECT_DESC: u64 = 1 << 28;
const EVENT_IDX: u64 = 1 << 29;
/// vhost-user: protocol features are spoken of.
const PROTOCOL_FEATURES: u64 = 1 << 30;
const VERSION_1: u64 = 1 << 32;

/// How the daemon does its I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Aio {
    IoUring,
    Threads,
}

impl Aio {
    /// As the daemon and the table have it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::IoUring => "io_uring",
            Self::Threads => "threads",
        }
    }
}

/// The daemon and its one disk; dropping it ends the daemon.
pub(crate) struct QsdDisk {
    queue: BlkQueue,
    space: FlatSpace,
    kick: EventFd,
    call: EventFd,
    /// Says when `call` is readable.
    called: Epoll,
    _frontend: Frontend,
    _daemon: Daemon,
}

struct Daemon {
    child: Child,
    dir: TempDir,
}

impl QsdDisk {
    /// Starts a daemon that exports `image` read-only.
    ///
    /// # Errors
    /// There is none on this machine, which says what to do about it, or it does not serve.
    pub(crate) fn start(
        image: &Path,
        aio: Aio,
        depth: u16,
        request_bytes: u32,
    ) -> anyhow::Result<Self> {
        let mut daemon = Daemon::start(image, aio)?;
        let mut frontend = daemon.connect(LIMIT)?;
        frontend.set_owner()?;
        let wanted = INDIRECT_DESC | EVENT_IDX | PROTOCOL_FEATURES | VERSION_1;
        let features = frontend.get_features()? & wanted;
        ensure!(features & VERSION_1 != 0, "it offers no virtio 1");
        let protocol = frontend.get_protocol_features()?;
        frontend.set_protocol_features(
            protocol & vhost::vhost_user::VhostUserProtocolFeatures::CONFIG,
        )?;
        frontend.set_features(features)?;

        let bytes = BlkQueue::bytes(depth, request_bytes).next_multiple_of(PAGE_SIZE);
        let memory = File::from(memfd_create("guest", MemfdFlags::CLOEXEC)?);
        memory.set_len(bytes as u64)?;
        let area = Area::shared_file(memory.as_fd(), 0, bytes, Access::Write)?;
        let space = FlatSpace::new(BASE, &area);
        // Ring addresses are given as this process maps them, which may be any number.
        let region = VhostUserMemoryRegionInfo {
            guest_phys_addr: BASE,
            memory_size: bytes as u64,
            userspace_addr: BASE,
            mmap_offset: 0,
            mmap_handle: memory.as_raw_fd(),
        };
        frontend.set_mem_table(&[region])?;
        let ring = RingFeatures {
            indirect: features & INDIRECT_DESC != 0,
            event_idx: features & EVENT_IDX != 0,
        };
        let queue = BlkQueue::new(&space, BASE, depth, request_bytes, ring)?;
        let layout = queue.layout();
        frontend.set_vring_num(0, layout.size)?;
        frontend.set_vring_base(0, 0)?;
        let addresses = VringConfigData {
            queue_max_size: layout.size,
            queue_size: layout.size,
            desc_table_addr: layout.desc,
            avail_ring_addr: layout.avail,
            used_ring_addr: layout.used,
            ..VringConfigData::default()
        };
        frontend.set_vring_addr(0, &addresses)?;
        let (kick, call) = (EventFd::new(0)?, EventFd::new(EFD_NONBLOCK)?);
        let called = Epoll::new()?;
        let readable = EpollEvent::new(EventSet::IN, 0);
        called.ctl(ControlOperation::Add, call.as_raw_fd(), readable)?;
        frontend.set_vring_call(0, &call)?;
        frontend.set_vring_kick(0, &kick)?;
        frontend.set_vring_enable(0, true)?;
        let mut disk = Self {
            queue,
            space,
            kick,
            call,
            called,
            _frontend: frontend,
            _daemon: daemon,
        };
        // One that takes no request is found here, and not in the middle of a measurement.
        drive(&mut disk, 1, 1, &mut || Operation::GetId)?;
        Ok(disk)
    }
}

impl Disk for QsdDisk {
    fn parts(&mut self) -> anyhow::Result<(&mut BlkQueue, &dyn AddressSpace)> {
        Ok((&mut self.queue, &self.space))
    }

    fn kick(&mut self) -> anyhow::Result<()> {
        Ok(self.kick.write(1)?)
    }

    fn wait(&mut self) -> anyhow::Result<()> {
        // The daemon makes the descriptor non-blocking, so reading alone would not wait.
        let limit = i32::try_from(LIMIT.as_millis())?;
        let called = || self.called.wait(limit, &mut [EpollEvent::default()]);
        let mut ready = called();
        while ready
            .as_ref()
            .is_err_and(|error| error.kind() == ErrorKind::Interrupted)
        {
            ready = called();
        }
        ensure!(ready? > 0, "{PROGRAM} does not answer a request");
        self.call.read()?;
        Ok(())
    }
}

impl Daemon {
    fn start(image: &Path, aio: Aio) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("vmsg-bench-").tempdir()?;
        let aio = aio.name();
        let file = format!(
            "driver=file,node-name=disk,read-only=on,locking=off,aio={aio},filename={}",
            image.display()
        );
        let export = format!(
            "type=vhost-user-blk,id=export,node-name=disk,writable=off,addr.type=unix,addr.path={}",
            socket(&dir).display()
        );
        let mut command = Command::new(PROGRAM);
        command
            .args(["--blockdev", &file, "--export", &export])
            // Ctrl-C is ours to handle: a daemon that was gone would never answer.
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        match command.spawn() {
            Ok(child) => Ok(Self { child, dir }),
            Err(error) if error.kind() == ErrorKind::NotFound => Err(anyhow!(
                "it is not installed; on Debian: apt install {PACKAGE}"
            )),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits for its socket, as long as it runs.
    fn connect(&mut self, limit: Duration) -> anyhow::Result<Frontend> {
        let deadline = Instant::now() + limit;
        loop {
            match Frontend::connect(socket(&self.dir), 1) {
                Ok(frontend) => return Ok(frontend),
                Err(error) if Instant::now() > deadline => {
                    return Err(error).context("its socket");
                }
                Err(_) => std::thread::park_timeout(Duration::from_millis(5)),
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("it ended at once: {status}");
            }
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Both fail harmlessly if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn socket(dir: &TempDir) -> std::path::PathBuf {
    dir.path().join("vhost.socket")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn daemon(program: &mut Command) -> Daemon {
        Daemon {
            child: program.spawn().unwrap(),
            dir: tempfile::tempdir().unwrap(),
        }
    }

    #[test]
    fn a_daemon_that_ends_is_not_waited_for() {
        let mut ended = daemon(&mut Command::new("false"));
        let error = ended.connect(LIMIT).err().unwrap();
        assert!(error.to_string().contains("exit status: 1"), "{error:#}");
    }

    #[test]
    fn a_daemon_without_a_socket_is_given_up() {
        let mut silent = daemon(Command::new("sleep").arg("60"));
        let error = silent.connect(Duration::from_millis(10)).err().unwrap();
        assert!(error.to_string().contains("its socket"), "{error:#}");
    }
}

//! Reads a block device past the page cache, so many requests in flight, and says how long that took: what
//! `vmsg frontend blk bench` does on a device of ours, for a device of the kernel's. The order of the blocks is the same.
//!
//!     raw-disk DEVICE read|randread BYTES DEPTH REQUESTS
//!
//! One request in flight is a blocking preadv2, more are an io_uring. A tenth of the requests goes before, unmeasured. The
//! answer on standard output: seconds.

#![expect(unsafe_code, reason = "io_uring is told where to read to")]

use std::fs::File;
use std::io::{self, Seek as _, SeekFrom};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use guest_memory::{Area, preadv2};
use io_uring::types::Fd;
use io_uring::{IoUring, opcode};
use rustix::fs::OFlags;
use rustix::io::ReadWriteFlags;

/// That of `vmsg frontend blk bench`.
const RANDOM_STRIDE: u64 = 1_000_003;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let Some(load) = Load::parse(&arguments) else {
        eprintln!("usage: raw-disk DEVICE read|randread BYTES DEPTH REQUESTS");
        return ExitCode::FAILURE;
    };
    match load.run() {
        Ok(took) => {
            println!("{}", took.as_secs_f64());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("raw-disk: {}: {error}", load.device);
            ExitCode::FAILURE
        }
    }
}

struct Load<'a> {
    device: &'a str,
    stride: u64,
    bytes: usize,
    depth: usize,
    requests: u64,
}

impl<'a> Load<'a> {
    fn parse(arguments: &[&'a str]) -> Option<Self> {
        let [device, pattern, bytes, depth, requests] = arguments else {
            return None;
        };
        let stride = match *pattern {
            "read" => 1,
            "randread" => RANDOM_STRIDE,
            _ => return None,
        };
        Some(Self {
            device,
            stride,
            bytes: bytes.parse().ok().filter(|bytes| *bytes > 0)?,
            depth: depth.parse().ok().filter(|depth| *depth > 0)?,
            requests: requests.parse().ok()?,
        })
    }

    fn run(&self) -> io::Result<Duration> {
        let mut options = File::options();
        let direct = OFlags::DIRECT.bits().cast_signed();
        let mut file = options.read(true).custom_flags(direct).open(self.device)?;
        let blocks = file.seek(SeekFrom::End(0))? / self.bytes as u64;
        if blocks == 0 {
            return Err(io::Error::other("smaller than one request"));
        }
        // Never unmapped: what is in flight when something fails ends with the process.
        let memory = Box::leak(Box::new(Area::anonymous(self.bytes * self.depth)?));
        // The first touch is not to be measured.
        let all = memory.len() as u64;
        memory.whole().zero(0, all).map_err(io::Error::other)?;
        let offsets = (0..self.requests / 10 + self.requests)
            .map(|n| n.wrapping_mul(self.stride) % blocks * self.bytes as u64);
        if self.depth == 1 {
            self.one_by_one(&file, memory, offsets)
        } else {
            self.together(&file, memory, offsets)
        }
    }

    fn one_by_one(
        &self,
        file: &File,
        memory: &Area,
        offsets: impl Iterator<Item = u64>,
    ) -> io::Result<Duration> {
        let mut start = Instant::now();
        for (n, offset) in (0..).zip(offsets) {
            if n == self.requests / 10 {
                start = Instant::now();
            }
            let none = ReadWriteFlags::empty();
            let read = preadv2(file.as_fd(), [memory.whole()], offset, none)?;
            self.check(read)?;
        }
        Ok(start.elapsed())
    }

    fn together(
        &self,
        file: &File,
        memory: &'static Area,
        mut offsets: impl Iterator<Item = u64>,
    ) -> io::Result<Duration> {
        let entries = u32::try_from(self.depth).map_err(io::Error::other)?;
        let len = u32::try_from(self.bytes).map_err(io::Error::other)?;
        let mut ring = IoUring::new(entries)?;
        let mut free: Vec<usize> = (0..self.depth).collect();
        let mut ended = 0;
        let mut start = Instant::now();
        loop {
            while let Some(slot) = free.pop() {
                let Some(offset) = offsets.next() else {
                    free.push(slot);
                    break;
                };
                let place = memory.whole().base().as_ptr();
                let place = place.wrapping_add(slot * self.bytes);
                let entry = opcode::Read::new(Fd(file.as_raw_fd()), place, len)
                    .offset(offset)
                    .build()
                    .user_data(slot as u64);
                // SAFETY: the slot's bytes lie in the area, which stays mapped, and no reference to them exists.
                let pushed = unsafe { ring.submission().push(&entry) };
                pushed.map_err(io::Error::other)?;
            }
            if free.len() == self.depth {
                return Ok(start.elapsed());
            }
            ring.submit_and_wait(1)?;
            for entry in ring.completion() {
                let read = usize::try_from(entry.result());
                self.check(read.map_err(|_| io::Error::from_raw_os_error(-entry.result()))?)?;
                free.push(usize::try_from(entry.user_data()).map_err(io::Error::other)?);
                ended += 1;
                if ended == self.requests / 10 {
                    start = Instant::now();
                }
            }
        }
    }

    fn check(&self, read: usize) -> io::Result<()> {
        if read == self.bytes {
            return Ok(());
        }
        let why = format!("a read of {} bytes gave {read}", self.bytes);
        Err(io::Error::other(why))
    }
}

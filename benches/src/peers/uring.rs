//! io_uring on a file, without a guest: registered file and buffers, one system call for a batch.
#![expect(
    unsafe_code,
    reason = "the kernel writes into buffers that only the ring's owner keeps alive"
)]

use std::fs::File;
use std::io::{Error, ErrorKind};
use std::os::fd::AsRawFd as _;

use anyhow::{Context as _, bail};
use io_uring::{IoUring, opcode, types};

use crate::rounds::{Took, Watch};

/// The one registered file.
const FILE: types::Fixed = types::Fixed(0);

/// A ring with a buffer for each request.
pub(crate) struct Uring {
    /// Before the buffers: it is dropped first, and nothing writes into them any more.
    ring: IoUring,
    buffers: Vec<Box<[u8]>>,
    _file: File,
}

impl Uring {
    /// A ring for `depth` requests of `bytes` bytes.
    pub(crate) fn new(file: File, depth: u16, bytes: u32) -> anyhow::Result<Self> {
        let mut builder = IoUring::builder();
        builder.setup_single_issuer().setup_defer_taskrun();
        let ring = builder.build(depth.into()).context("io_uring")?;
        let len = usize::try_from(bytes)?;
        let mut buffers: Vec<Box<[u8]>> = (0..depth).map(|_| vec![0; len].into()).collect();
        let vectors: Vec<_> = buffers
            .iter_mut()
            .map(|buffer| libc::iovec {
                iov_base: buffer.as_mut_ptr().cast(),
                iov_len: buffer.len(),
            })
            .collect();
        ring.submitter().register_files(&[file.as_raw_fd()])?;
        // SAFETY: the buffers live as long as the ring, and are not touched from here on.
        unsafe { ring.submitter().register_buffers(&vectors) }?;
        Ok(Self {
            ring,
            buffers,
            _file: file,
        })
    }

    /// Reads `count` times at the places that `offset` gives, `depth` at a time.
    pub(crate) fn read(
        &mut self,
        depth: u16,
        count: u64,
        offset: &mut dyn FnMut() -> u64,
    ) -> anyhow::Result<Took> {
        let mut free: Vec<u16> = (0..depth).collect();
        let (mut submitted, mut done) = (0, 0);
        let watch = Watch::start();
        while done < count {
            while submitted < count
                && let Some(slot) = free.pop()
            {
                let buffer = self.buffers.get_mut(usize::from(slot)).context("depth")?;
                let (at, len) = (buffer.as_mut_ptr(), u32::try_from(buffer.len())?);
                let read = opcode::ReadFixed::new(FILE, at, len, slot)
                    .offset(offset())
                    .build()
                    .user_data(slot.into());
                // SAFETY: file and buffer are registered, and the buffer is this request's alone.
                unsafe { self.ring.submission().push(&read) }?;
                submitted += 1;
            }
            match self.ring.submit_and_wait(1) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                other => other?,
            };
            for completion in self.ring.completion() {
                if completion.result() < 0 {
                    bail!(
                        "io_uring: {}",
                        Error::from_raw_os_error(-completion.result())
                    );
                }
                free.push(u16::try_from(completion.user_data())?);
                done += 1;
            }
        }
        Ok(watch.took())
    }
}

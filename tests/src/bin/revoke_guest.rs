//! A guest that takes its memory back under load: with I/O in flight it resets its disk, unshares the area, and revokes
//! the grants at once after the answer (binding section 6, the memory contract). Then it shares fresh memory and goes on:
//! without a directory if the grants that the kernel gave are consecutive.
//!
//! A page that is still mapped when it is revoked is what the guest's kernel defers and says so: the caller looks there.
//! `early` revokes before it unshares, so that the caller can see that it looks well.

use std::process::ExitCode;
use std::time::Duration;

use frontend_shim::{Disk, Frontend, FrontendError, MAX_REQUEST, Operation, Pool, open_platform};
use guest_memory::Access;
use tests::Random;
use xen_bus::directory::{directory_pages, write_directory};
use xen_bus::messages::{AreaResult, AreaShare, AreaUnshare, PrivateMessage, ShareFlags};
use xen_hal::{GrantedPages, Platform, PlatformSpec};
use xen_types::{AreaId, GrantRef};

/// The frontend's one area.
const AREA: u16 = 1;
/// Its pages: not the whole of what gntalloc gives.
const PAGES: usize = 256;
/// How long the backend may take to connect or to answer.
const LIMIT: Duration = Duration::from_secs(30);

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let spec: Option<PlatformSpec> = arguments.next().and_then(|text| text.parse().ok());
    let device: Option<u16> = arguments.next().and_then(|text| text.parse().ok());
    let rounds: Option<u64> = arguments.next().and_then(|text| text.parse().ok());
    let early = arguments.next().as_deref() == Some("early");
    let (Some(spec), Some(device), Some(rounds)) = (spec, device, rounds) else {
        eprintln!("usage: revoke-guest PLATFORM DEVICE ROUNDS [early]");
        return ExitCode::FAILURE;
    };
    match revoke(&spec, device, rounds, early) {
        Ok(done) => {
            let Done { requests, listed } = done;
            let consecutive = rounds - listed;
            println!(
                "revoked {rounds} times with {requests} requests in flight; of the areas, {listed} had a directory, {consecutive} none"
            );
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("revoke-guest: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What was done.
#[derive(Default)]
struct Done {
    /// Requests that were in flight when their device was reset.
    requests: usize,
    /// Areas whose references stood in a directory.
    listed: u64,
}

fn revoke(
    spec: &PlatformSpec,
    device: u16,
    rounds: u64,
    early: bool,
) -> Result<Done, FrontendError> {
    let mut random = Random::seeded(5);
    let (platform, store) = open_platform(spec)?;
    drop(store);
    let mut frontend = Frontend::open(spec, 0)?;
    frontend.connect(LIMIT)?;
    frontend.share_pool()?;
    let mut done = Done::default();
    for _ in 0..rounds {
        done.requests += load_and_reset(&mut frontend, device, &mut random)?;
        let taken = take_pool(&mut frontend, &platform)?;
        if early {
            taken.revoke().expect("nobody here uses the pages");
            unshare(&mut frontend)?;
        } else {
            unshare(&mut frontend)?;
            taken.revoke().expect("nobody here uses the pages");
        }
        done.listed += u64::from(share(&mut frontend, &platform)?);
    }
    frontend.leave(LIMIT)?;
    Ok(done)
}

/// Fills the queue, lets some requests finish, and resets the device under the others.
fn load_and_reset(
    frontend: &mut Frontend,
    device: u16,
    random: &mut Random,
) -> Result<usize, FrontendError> {
    let mut disk = Disk::open(frontend, device)?;
    let places = disk.bytes() / MAX_REQUEST as u64;
    let sectors = MAX_REQUEST as u64 / frontend_shim::SECTOR;
    while let Some(slot) = disk.free_slot() {
        let sector = random.below(places) * sectors;
        let len = MAX_REQUEST;
        let operation = match random.below(2) {
            0 => Operation::Read { sector, len },
            _ => Operation::Write { sector, len },
        };
        disk.submit(frontend, slot, operation)?;
    }
    for _ in 0..random.below(disk.slots() as u64) {
        disk.finish(frontend)?;
    }
    let in_flight = disk.in_flight();
    disk.close(frontend)?;
    Ok(in_flight)
}

/// The pages of the area, which the frontend must not use any more; a page that nobody shares stands in for them.
fn take_pool(frontend: &mut Frontend, platform: &Platform) -> Result<GrantedPages, FrontendError> {
    let nothing = grant(frontend, platform, 1, Access::Read);
    Ok(exchange(frontend, nothing)?.into_pages())
}

fn unshare(frontend: &mut Frontend) -> Result<(), FrontendError> {
    let message = PrivateMessage::AreaUnshare(AreaUnshare { area_id: AREA });
    assert_eq!(ask(frontend, message)?, AreaResult::DONE, "AREA_UNSHARE");
    Ok(())
}

/// Whether it took a directory.
fn share(frontend: &mut Frontend, platform: &Platform) -> Result<bool, FrontendError> {
    let data = grant(frontend, platform, PAGES, Access::Write);
    let consecutive = data.refs.windows(2).all(|pair| pair[1].0 == pair[0].0 + 1);
    if consecutive {
        let flags = ShareFlags::DEVICE_WRITE | ShareFlags::CONSECUTIVE;
        ask_to_map(frontend, flags, data.refs[0])?;
    } else {
        let directory = grant(frontend, platform, directory_pages(PAGES), Access::Read);
        let len = directory.area.len() as u64;
        let window = directory.area.range(0, len, Access::Write);
        write_directory(&data.refs, &directory.refs, window.expect("window")).expect("directory");
        ask_to_map(frontend, ShareFlags::DEVICE_WRITE, directory.refs[0])?;
        directory.revoke().expect("the backend has copied it");
    }
    exchange(frontend, data)?;
    Ok(!consecutive)
}

fn ask_to_map(
    frontend: &mut Frontend,
    flags: ShareFlags,
    first: GrantRef,
) -> Result<(), FrontendError> {
    let message = PrivateMessage::AreaShare(AreaShare {
        area_id: AREA,
        flags,
        page_count: u32::try_from(PAGES).expect("few"),
        first,
    });
    assert_eq!(ask(frontend, message)?, AreaResult::DONE, "AREA_SHARE");
    Ok(())
}

fn grant(frontend: &Frontend, platform: &Platform, pages: usize, access: Access) -> GrantedPages {
    let backend = frontend.instance().backend;
    let granted = platform.grant_pages(backend, pages, access);
    granted.expect("pages to grant")
}

/// Puts other pages under the area's id; gives what was there.
fn exchange(frontend: &mut Frontend, pages: GrantedPages) -> Result<Pool, FrontendError> {
    let id = AreaId::new(AREA).expect("an area's id");
    let pool = frontend.link()?.pool_mut().expect("shared before");
    Ok(std::mem::replace(pool, Pool::new(pages, id)))
}

fn ask(frontend: &mut Frontend, message: PrivateMessage) -> Result<AreaResult, FrontendError> {
    match frontend.ask(&message)? {
        PrivateMessage::AreaShareReply(reply) | PrivateMessage::AreaUnshareReply(reply) => {
            Ok(reply.result)
        }
        other => panic!("{other:?} is no answer about an area"),
    }
}

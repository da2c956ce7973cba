//! A guest under load: reads device 0 of its bus 0 over and over, many requests in flight, and
//! compares every byte with what the image was made of. Ends only by being killed.
//!
//! Says `up` once the first round is complete.

use std::process::ExitCode;
use std::time::Duration;

use frontend_shim::{Disk, Frontend, FrontendError, Operation, SECTOR};
use xen_hal::PlatformSpec;

/// Bytes of a request.
const REQUEST: usize = 16 << 10;
/// Requests in flight.
const DEPTH: usize = 4;

fn main() -> ExitCode {
    let spec: PlatformSpec = std::env::args()
        .nth(1)
        .and_then(|text| text.parse().ok())
        .expect("usage: load-guest PLATFORM");
    match load(&spec) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("load-guest: {error}");
            ExitCode::FAILURE
        }
    }
}

fn load(spec: &PlatformSpec) -> Result<(), FrontendError> {
    let mut frontend = Frontend::open(spec, 0)?;
    frontend.connect(Duration::from_secs(20))?;
    let mut disk = Disk::open(&mut frontend, 0)?;
    let requests = disk.bytes() / REQUEST as u64;
    let mut found = vec![0; REQUEST];
    for round in 0_u64.. {
        for next in 0..requests + DEPTH as u64 {
            if next >= DEPTH as u64 {
                let finished = disk.finish(&mut frontend)?;
                disk.take(&mut frontend, finished.slot, &mut found)?;
                let Operation::Read { sector, .. } = finished.operation else {
                    unreachable!("only reads are made")
                };
                assert_eq!(found, tests::pattern(sector, REQUEST), "sector {sector}");
            }
            if next < requests {
                let slot = disk.free_slot().expect("a slot");
                let sector = next * (REQUEST as u64 / SECTOR);
                disk.submit(
                    &mut frontend,
                    slot,
                    Operation::Read {
                        sector,
                        len: REQUEST,
                    },
                )?;
            }
        }
        if round == 0 {
            println!("up");
        }
    }
    Ok(())
}

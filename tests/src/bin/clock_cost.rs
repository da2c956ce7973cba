//! What a look at the clock costs: nanoseconds, on standard output. It is a system call where the kernel does not trust the
//! time-stamp counter, and a trap into Xen besides where that is emulated.

#![forbid(unsafe_code)]

use std::hint::black_box;
use std::time::Instant;

const LOOKS: u32 = 10_000;

fn main() {
    let start = Instant::now();
    for _ in 0..LOOKS {
        black_box(Instant::now());
    }
    println!("{}", (start.elapsed() / LOOKS).as_nanos());
}

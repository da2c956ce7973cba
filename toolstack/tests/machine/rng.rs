//! `vmsg frontend rng`: bytes of an entropy device, as many as asked for and never twice the same.

use crate::rig::{GUEST, Machine};

#[test]
fn an_entropy_device_gives_as_many_bytes_as_wanted_and_others_each_time() {
    let machine = Machine::start(1);
    let _backend = machine.start_backend();
    let disk = machine.disk("disk.img", &[0; 4096]);
    let config = format!("type=blk,path={}", disk.display());
    machine.dom0(&["attach", "1", "type=rng"]).succeeded();
    machine.dom0(&["attach", "1", &config]).succeeded();
    let raw = |bytes: usize| {
        let bytes_wanted = format!("--bytes={bytes}");
        let args = ["frontend", "rng", "read", "0", &bytes_wanted];
        let output = machine.command(GUEST, &args).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        assert_eq!(output.stdout.len(), bytes);
        output.stdout
    };
    // Several requests, and no whole number of them.
    let (one, other) = (raw(10_001), raw(10_001));
    assert!(one != other);
    for part in [&one, &other].map(|bytes| &bytes[10_001 - 64..]) {
        assert!(part.iter().any(|byte| *byte != 0), "the end was not filled");
    }
    assert!(raw(0).is_empty());

    let hex = machine.vmsg(
        GUEST,
        &["frontend", "rng", "read", "0", "--bytes=33", "--hex"],
    );
    let lines: Vec<_> = hex.succeeded().stdout.lines().map(str::len).collect();
    assert_eq!(lines, [64, 2]);
    assert!(
        hex.stdout
            .chars()
            .all(|char| char == '\n' || char.is_ascii_hexdigit())
    );

    let disk = machine.vmsg(GUEST, &["frontend", "rng", "read", "1"]);
    disk.failed(
        1,
        &["is a block device (virtio type 2), not an entropy device (4)"],
    );
    let rng = machine.vmsg(GUEST, &["frontend", "blk", "bench", "0"]);
    rng.failed(
        1,
        &["is an entropy device (virtio type 4), not a block device (2)"],
    );
}

//! A guest that names its buffers by their grants, in a process of its own beside the backend's.

use frontend_shim::{Disk, DiskOptions, Frontend, Operation};
use tests::{Bus, LIMIT, Machine, Toolstack, make_disk, write_pattern};
use xen_types::DomId;

use crate::scene::{Scene, start_backend};

/// Bytes of the disk.
const BYTES: usize = 4 << 20;

#[test]
fn data_of_any_size_arrives_and_nothing_stays_mapped() {
    let machine = Machine::start();
    let mut toolstack = Toolstack::new(machine.store(DomId::DOM0));
    let _backend = start_backend(&machine);
    let bus = Bus::of(machine.create_domain("guest"));
    let image = machine.file("disk.img");
    make_disk(&image, BYTES);
    toolstack.make_bus(bus);
    toolstack.make_device(bus, 0, &format!("type=blk,path={}", image.display()));
    let mut frontend = Frontend::open(&machine.spec(bus.guest), 0).unwrap();
    frontend.name_grants();
    frontend.connect(LIMIT).unwrap();
    let options = DiskOptions {
        requests: 1,
        request_bytes: 512 << 10,
    };
    let mut disk = Disk::open_with(&mut frontend, 0, options).unwrap();
    let mapped = machine.holdings(DomId::DOM0).mapped;
    for (generation, len) in (1..).zip([512, 4096, 5 * 512, 64 << 10, 512 << 10]) {
        let sector = 8 * generation;
        let mut bytes = vec![0; len];
        write_pattern(&mut bytes, sector, generation);
        let slot = disk.free_slot().unwrap();
        disk.fill(&mut frontend, slot, &bytes).unwrap();
        let write = Operation::Write { sector, len };
        disk.submit(&mut frontend, slot, write).unwrap();
        disk.finish(&mut frontend).unwrap();
        let read = Operation::Read { sector, len };
        let finished = disk.run(&mut frontend, read).unwrap();
        let mut found = vec![0; len];
        disk.take(&mut frontend, finished.slot, &mut found).unwrap();
        assert!(found == bytes, "{len} bytes");
        assert_eq!(machine.holdings(DomId::DOM0).mapped, mapped);
    }
    disk.close(&mut frontend).unwrap();
    frontend.leave(LIMIT).unwrap();
    assert_eq!(machine.holdings(DomId::DOM0).mapped, 0);
}

#[test]
fn vmsg_copies_a_disk_page_by_page() {
    let scene = Scene::new();
    scene.attach("disk").succeeded();
    let copy = scene.machine.file("copy.img");
    let args = [
        "frontend",
        "blk",
        "copy",
        "--grants",
        "0",
        copy.to_str().unwrap(),
    ];
    scene.in_guest(&args).succeeded();
    let image = std::fs::read(scene.machine.file("disk")).unwrap();
    assert!(std::fs::read(&copy).unwrap() == image);
    let copied = scene.machine.counters(DomId::DOM0).grant_copy_segments;
    assert!(copied >= image.len() as u64 / 4096, "{copied}");
}

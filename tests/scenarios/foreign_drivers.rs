//! Drivers that nobody here wrote, those of the library `virtio-drivers`, against a backend process:
//! what they write stands in the file, what stands in the file they read, and nothing of them stays.

#![expect(
    unsafe_code,
    reason = "the library's calls that do not block are unsafe: buffers must stay until they end"
)]

use std::collections::BTreeMap;
use std::time::Instant;

use foreign_drivers::{BusTransport, ForeignBus, ForeignError, SharedMemory};
use frontend_shim::{Disk, Frontend};
use tests::{LIMIT, Random, pattern, write_pattern};
use virtio_drivers::Error;
use virtio_drivers::device::blk::{BlkReq, BlkResp, RespStatus, VirtIOBlk};
use virtio_drivers::device::rng::VirtIORng;

use crate::scene::{BYTES, Scene};

type Blk = VirtIOBlk<SharedMemory, BusTransport>;

/// Bytes of a sector.
const SECTOR: usize = 512;
/// Sectors of the disk.
const SECTORS: usize = BYTES / SECTOR;

#[test]
fn a_foreign_driver_writes_and_reads_a_whole_disk() {
    let scene = Scene::new();
    scene.attach("disk").succeeded();
    let bus = bus(&scene, 0);
    let mut disk: Blk = bus.open(0, VirtIOBlk::new).unwrap();
    assert_eq!(disk.capacity(), SECTORS as u64);
    assert!(!disk.readonly());
    let mut serial = [0; 20];
    let len = disk.device_id(&mut serial).unwrap();
    assert_eq!(&serial[..len], b"disk");

    let mut found = vec![0; BYTES];
    disk.read_blocks(0, &mut found).unwrap();
    assert_eq!(found, pattern(0, BYTES));
    let mut written = vec![0; BYTES];
    write_pattern(&mut written, 0, 1);
    for (index, chunk) in written.chunks(16 * SECTOR).enumerate() {
        disk.write_blocks(index * 16, chunk).unwrap();
    }
    disk.flush().unwrap();
    let image = std::fs::read(scene.machine.file("disk")).unwrap();
    assert_eq!(image, written);
    assert_eq!(
        disk.read_blocks(SECTORS, &mut [0; SECTOR]),
        Err(Error::IoError),
        "beyond the end"
    );
}

#[test]
fn a_read_only_disk_is_one_for_a_foreign_driver_too() {
    let scene = Scene::new();
    let line = format!("type=blk,mode=ro,path={}", scene.image("disk").display());
    scene.vmsg(&["attach", "guest", &line]).succeeded();
    let bus = bus(&scene, 0);
    let mut disk: Blk = bus.open(0, VirtIOBlk::new).unwrap();
    assert!(disk.readonly());
    assert_eq!(disk.write_blocks(0, &[1; SECTOR]), Err(Error::IoError));
    let image = std::fs::read(scene.machine.file("disk")).unwrap();
    assert_eq!(image, pattern(0, BYTES));
}

#[test]
fn more_requests_than_an_index_counts_are_served() {
    let scene = Scene::new();
    scene.attach("disk").succeeded();
    let bus = bus(&scene, 0);
    let mut disk: Blk = bus.open(0, VirtIOBlk::new).unwrap();
    let mut flight = Flight::new(&mut disk);
    let mut random = Random::seeded(11);
    let requests = (1 << 16) + 100;
    for _ in 0..requests {
        if !flight.has_room() {
            flight.finish_all(&bus);
        }
        let sector = usize::try_from(random.below(SECTORS as u64)).unwrap();
        flight.read(sector);
    }
    flight.finish_all(&bus);
    assert_eq!(flight.finished, requests);
    assert!(flight.most >= 8, "only {} were in flight", flight.most);
}

#[test]
fn an_entropy_source_gives_bytes_that_differ() {
    let scene = Scene::new();
    scene.vmsg(&["attach", "guest", "type=rng"]).succeeded();
    let bus = bus(&scene, 0);
    let mut source: VirtIORng<SharedMemory, _> = bus.open(0, VirtIORng::new).unwrap();
    let mut seen = Vec::new();
    for _ in 0..4 {
        let mut bytes = [0; 64];
        assert_eq!(source.request_entropy(&mut bytes), Ok(64));
        assert!(!seen.contains(&bytes), "{bytes:?}");
        seen.push(bytes);
    }
}

#[test]
fn a_dropped_driver_leaves_the_device_to_ours_and_no_memory_taken() {
    let mut scene = Scene::new();
    scene.attach("disk").succeeded();
    let mut frontend = scene.frontend();
    frontend.share_pool().unwrap();
    let free = frontend.link().unwrap().pool().unwrap().left();
    for _ in 0..3 {
        let bus = ForeignBus::new(frontend).unwrap();
        let mut disk: Blk = bus.open(0, VirtIOBlk::new).unwrap();
        disk.read_blocks(3, &mut [0; SECTOR]).unwrap();
        let bus = bus.close().unwrap_err();
        drop(disk);
        frontend = bus.close().unwrap();
        assert_eq!(frontend.link().unwrap().pool().unwrap().left(), free);
    }
    let disk = Disk::open(&mut frontend, 0).unwrap();
    assert_eq!(disk.bytes(), BYTES as u64);
    disk.close(&mut frontend).unwrap();
    frontend.leave(LIMIT).unwrap();
    scene.vmsg(&["detach", "guest", "--all"]).succeeded();
    scene.assert_clean();
}

#[test]
fn a_second_bus_is_for_another_thread() {
    let scene = Scene::new();
    for (handle, name) in [("0", "a"), ("1", "b")] {
        let line = format!("type=blk,path={}", scene.image(name).display());
        let args = ["attach", "guest", "--bus", handle, &line];
        scene.vmsg(&args).succeeded();
    }
    let first = bus(&scene, 0);
    let refused = ForeignBus::new(frontend(&scene, 1)).unwrap_err();
    assert!(
        matches!(refused, ForeignError::OtherBus { bus: 0, wanted: 1 }),
        "{refused}"
    );
    let mut here: Blk = first.open(0, VirtIOBlk::new).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let second = bus(&scene, 1);
            let mut there: Blk = second.open(0, VirtIOBlk::new).unwrap();
            there.write_blocks(1, &[7; SECTOR]).unwrap();
        });
    });
    let mut found = [0; SECTOR];
    here.read_blocks(1, &mut found).unwrap();
    assert_eq!(found, *pattern(1, SECTOR));
    let other = std::fs::read(scene.machine.file("b")).unwrap();
    assert_eq!(other[SECTOR..2 * SECTOR], [7; SECTOR]);
}

#[test]
fn a_driver_of_another_kind_and_a_number_without_a_device_are_refused() {
    let scene = Scene::new();
    scene.vmsg(&["attach", "guest", "type=rng"]).succeeded();
    let bus = bus(&scene, 0);
    let refused = bus.open(0, VirtIOBlk::<SharedMemory, _>::new).map(drop);
    assert_eq!(
        refused.unwrap_err().to_string(),
        "device 0: Config space advertised by the device is smaller than expected"
    );
    let refused = bus.open(5, VirtIOBlk::<SharedMemory, _>::new).map(drop);
    assert_eq!(
        refused.unwrap_err().to_string(),
        "bus 0 device 5: is not on this bus; it has [0]"
    );
}

#[test]
fn a_request_to_a_device_that_was_removed_ends() {
    let scene = Scene::new();
    scene.attach("disk").succeeded();
    scene.attach("other").succeeded();
    let bus = bus(&scene, 0);
    let mut disk: Blk = bus.open(0, VirtIOBlk::new).unwrap();
    let mut other: Blk = bus.open(1, VirtIOBlk::new).unwrap();
    disk.read_blocks(0, &mut [0; SECTOR]).unwrap();
    scene.vmsg(&["detach", "guest", "0", "--force"]).succeeded();
    // Nobody spins for a device that is gone: the transport answers for it.
    for _ in 0..3 {
        let gone = disk.read_blocks(0, &mut [0; SECTOR]);
        assert_eq!(gone, Err(Error::NotReady));
    }
    other.read_blocks(0, &mut [0; SECTOR]).unwrap();
}

/// Reads in flight, each with its buffers, checked as they end.
struct Flight<'a> {
    disk: &'a mut Blk,
    requests: BTreeMap<u16, Request>,
    finished: usize,
    most: usize,
}

/// Buffers that do not move while the device has them.
struct Request {
    sector: usize,
    header: Box<BlkReq>,
    data: Box<[u8; SECTOR]>,
    status: Box<BlkResp>,
}

impl<'a> Flight<'a> {
    fn new(disk: &'a mut Blk) -> Self {
        Self {
            disk,
            requests: BTreeMap::new(),
            finished: 0,
            most: 0,
        }
    }

    fn has_room(&self) -> bool {
        self.requests.len() < usize::from(self.disk.virt_queue_size())
    }

    fn read(&mut self, sector: usize) {
        let mut request = Request {
            sector,
            header: Box::default(),
            data: Box::new([0; SECTOR]),
            status: Box::default(),
        };
        // SAFETY: the buffers stay in `requests`, untouched, until the request is completed.
        let token = unsafe {
            self.disk.read_blocks_nb(
                sector,
                &mut request.header,
                &mut *request.data,
                &mut request.status,
            )
        };
        self.requests.insert(token.unwrap(), request);
        self.most = self.most.max(self.requests.len());
    }

    fn finish_all(&mut self, bus: &ForeignBus) {
        while !self.requests.is_empty() {
            self.finish(bus);
        }
    }

    /// Waits for the next to end, and compares what it read.
    fn finish(&mut self, bus: &ForeignBus) {
        let token = loop {
            match self.disk.peek_used() {
                Some(token) => break token,
                None => assert!(bus.wait(Some(Instant::now() + LIMIT)).unwrap()),
            }
        };
        let mut request = self.requests.remove(&token).expect("a request of ours");
        // SAFETY: these are the buffers of the request with this token.
        let done = unsafe {
            self.disk.complete_read_blocks(
                token,
                &request.header,
                &mut *request.data,
                &mut request.status,
            )
        };
        done.unwrap();
        assert_eq!(request.status.status(), RespStatus::OK);
        assert_eq!(
            *request.data,
            *pattern(request.sector as u64, SECTOR),
            "sector {}",
            request.sector
        );
        self.finished += 1;
    }
}

fn bus(scene: &Scene, handle: u32) -> ForeignBus {
    ForeignBus::new(frontend(scene, handle)).unwrap()
}

fn frontend(scene: &Scene, handle: u32) -> Frontend {
    let mut frontend = Frontend::open(&scene.machine.spec(scene.bus.guest), handle).unwrap();
    frontend.connect(LIMIT).unwrap();
    frontend
}

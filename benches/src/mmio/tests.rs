//! The model and its driver against the trace of Linux 6.12 under QEMU.

use std::fs::File;
use std::path::Path;

use virtio_devices::Engine;
use virtio_devices::blk::{Blk, BlkConfig};

use super::registers::*;
use super::vcpu::Trap;
use super::*;
use crate::blk_queue::{Operation, drive};

fn model(path: &Path, queues: u16) -> Box<dyn DeviceModel> {
    File::create(path).unwrap().set_len(1 << 20).unwrap();
    let config = BlkConfig {
        path: path.to_owned(),
        read_only: false,
        serial: String::new(),
        queues,
        direct: false,
    };
    Box::new(Blk::open(&config, &Engine::new().unwrap()).unwrap())
}

fn start(dir: &Path, queues: u16, notify: Notify) -> (Machine, Mmio) {
    let machine = Machine::start().unwrap();
    let mmio = Mmio::start(&machine, model(&dir.join("disk.img"), queues), notify).unwrap();
    (machine, mmio)
}

#[test]
fn bring_up_takes_as_many_traps_as_linux_was_traced_with() {
    for (queues, traps) in [(1, 49), (2, 61), (8, 127)] {
        let dir = tempfile::tempdir().unwrap();
        let (_machine, mut mmio) = start(dir.path(), queues, Notify::Trap);
        assert_eq!(mmio.probe(8, 8, 4096).unwrap().len(), usize::from(queues));
        assert_eq!(mmio.vcpu.counts.traps, traps, "{queues} queues");
        assert_eq!(mmio.vcpu.counts.interrupts, 0);
    }
}

#[test]
fn bring_up_makes_the_accesses_of_linux_by_kind() {
    let dir = tempfile::tempdir().unwrap();
    let (_machine, mut mmio) = start(dir.path(), 1, Notify::Trap);
    mmio.vcpu.log = Some(Vec::new());
    mmio.probe(1, 8, 4096).unwrap();
    let log = mmio.vcpu.log.take().unwrap();
    let count = |wanted: &dyn Fn(&Trap) -> bool| log.iter().filter(|trap| wanted(trap)).count();
    let offset = |trap: &Trap| match trap {
        Trap::Read(offset) | Trap::Write(offset, _) => *offset,
    };
    // The trace's own sums: identity, status, features, queue, configuration, generation.
    assert_eq!(count(&|trap| offset(trap) <= VENDOR_ID), 4);
    assert_eq!(count(&|trap| *trap == Trap::Read(STATUS)), 6);
    assert_eq!(count(&|trap| matches!(trap, Trap::Write(STATUS, _))), 5);
    let features = DEVICE_FEATURES..=DRIVER_FEATURES_SEL;
    assert_eq!(count(&|trap| features.contains(&offset(trap))), 8);
    let queue = QUEUE_SEL..=QUEUE_READY;
    let parts = QUEUE_DESC_LOW..=QUEUE_DEVICE_HIGH;
    let of_queue = |at| queue.contains(&at) || parts.contains(&at);
    assert_eq!(count(&|trap| of_queue(offset(trap))), 11);
    assert_eq!(count(&|trap| offset(trap) >= CONFIG), 13);
    assert_eq!(count(&|trap| offset(trap) == CONFIG_GENERATION), 2);
    assert_eq!(log.len(), 49);

    // The order of its landmarks.
    let landmarks: Vec<Trap> = log
        .into_iter()
        .filter(|trap| matches!(trap, Trap::Write(STATUS | QUEUE_READY | DRIVER_FEATURES, _)))
        .map(|trap| match trap {
            Trap::Write(DRIVER_FEATURES, _) => Trap::Write(DRIVER_FEATURES, 0),
            other => other,
        })
        .collect();
    let expected = [
        (STATUS, 0),
        (STATUS, 1),
        (STATUS, 3),
        (DRIVER_FEATURES, 0),
        (DRIVER_FEATURES, 0),
        (STATUS, 11),
        (QUEUE_READY, 1),
        (STATUS, 15),
    ];
    assert_eq!(
        landmarks,
        expected.map(|(at, value)| Trap::Write(at, value))
    );
}

#[test]
fn a_request_takes_three_traps_and_an_interrupt() {
    for notify in [Notify::Trap, Notify::Ioeventfd] {
        let dir = tempfile::tempdir().unwrap();
        let machine = Machine::start().unwrap();
        let model = model(&dir.path().join("disk.img"), 1);
        let mut disk = MmioDisk::start(&machine, model, notify, 8, 4096).unwrap();
        let before = disk.mmio.vcpu.counts;
        disk.mmio.vcpu.log = Some(Vec::new());
        let read = || Operation::Read {
            sector: 8,
            bytes: 4096,
        };
        drive(&mut disk, 1, 67, &mut { read }).unwrap();
        let counts = disk.mmio.vcpu.counts;
        assert_eq!(counts.traps - before.traps, 3 * 67);
        assert_eq!(counts.interrupts - before.interrupts, 67);
        let each = [
            Trap::Write(QUEUE_NOTIFY, 0),
            Trap::Read(INTERRUPT_STATUS),
            Trap::Write(INTERRUPT_ACK, USED_BUFFER),
        ];
        assert_eq!(disk.mmio.vcpu.log.take().unwrap(), each.repeat(67));
    }
}

#[test]
fn a_device_that_was_reset_comes_up_again() {
    let dir = tempfile::tempdir().unwrap();
    let (_machine, mut mmio) = start(dir.path(), 2, Notify::Trap);
    for _ in 0..3 {
        mmio.probe(2, 8, 4096).unwrap();
        mmio.reset().unwrap();
    }
}

/// As on a Xen guest that gets no interrupts: the driver asks, and is answered when there is something to say.
#[test]
fn without_an_interrupt_the_read_of_its_status_waits_for_the_request() {
    struct Polled {
        vcpu: Vcpu,
        queue: BlkQueue,
        space: FlatSpace,
    }
    impl Disk for Polled {
        fn parts(&mut self) -> anyhow::Result<(&mut BlkQueue, &dyn AddressSpace)> {
            Ok((&mut self.queue, &self.space))
        }
        fn kick(&mut self) -> anyhow::Result<()> {
            self.vcpu.notify(0)
        }
        fn wait(&mut self) -> anyhow::Result<()> {
            linux::interrupt(&mut self.vcpu)
        }
    }

    let dir = tempfile::tempdir().unwrap();
    let machine = Machine::start().unwrap();
    let guest = machine.create_domain().unwrap();
    let open = |domid| Platform::open(&machine.spec(domid)).unwrap();
    let dom0 = open(DomId::DOM0).event_channels().unwrap();
    let channels = open(guest).event_channels().unwrap();
    let ioreq = dom0.alloc_unbound(guest).unwrap();
    let bound = channels.bind_interdomain(DomId::DOM0, ioreq).unwrap();
    let page = Area::anonymous(PAGE_SIZE).unwrap();
    let slot = ioreq::Slot::new(&page).unwrap();
    let space = FlatSpace::new(BASE, &Area::anonymous(RAM).unwrap());
    let ports = server::Ports {
        ioreq,
        interrupt: None,
        notify: None,
    };
    let model = model(&dir.path().join("disk.img"), 1);
    let server = Server::new(model, 0, space.clone(), slot.clone(), dom0, ports);
    let (stop, stopped) = UnixStream::pair().unwrap();
    let server = thread::spawn(move || server.run(&stopped));

    let ports = vcpu::Ports {
        ioreq: bound,
        interrupt: EvtchnPort(0),
        notify: None,
    };
    let mut vcpu = Vcpu::new(slot, channels, ports);
    let queue = linux::probe(&mut vcpu, &space, BASE, 1, 8, 4096)
        .unwrap()
        .remove(0);
    let before = vcpu.counts.traps;
    let mut disk = Polled { vcpu, queue, space };
    let read = || Operation::Read {
        sector: 8,
        bytes: 4096,
    };
    drive(&mut disk, 1, 67, &mut { read }).unwrap();
    assert_eq!(disk.vcpu.counts.traps - before, 3 * 67);
    drop(stop);
    server.join().unwrap().unwrap();
}

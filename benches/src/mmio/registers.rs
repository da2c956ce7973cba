//! The registers of virtio-mmio version 2 (virtio 1.4 section 4.2.2) before a device model: what a
//! read answers, and what a write asks of the device. No I/O in it.
//!
//! Not modelled: shared memory regions, queue reset, and writes into configuration space.

use virtio_devices::DeviceDescription;
use virtqueue::QueueLayout;

pub(crate) const MAGIC: u64 = 0x000;
pub(crate) const VERSION: u64 = 0x004;
pub(crate) const DEVICE_ID: u64 = 0x008;
pub(crate) const VENDOR_ID: u64 = 0x00c;
pub(crate) const DEVICE_FEATURES: u64 = 0x010;
pub(crate) const DEVICE_FEATURES_SEL: u64 = 0x014;
pub(crate) const DRIVER_FEATURES: u64 = 0x020;
pub(crate) const DRIVER_FEATURES_SEL: u64 = 0x024;
pub(crate) const QUEUE_SEL: u64 = 0x030;
pub(crate) const QUEUE_NUM_MAX: u64 = 0x034;
pub(crate) const QUEUE_NUM: u64 = 0x038;
pub(crate) const QUEUE_READY: u64 = 0x044;
pub(crate) const QUEUE_NOTIFY: u64 = 0x050;
pub(crate) const INTERRUPT_STATUS: u64 = 0x060;
pub(crate) const INTERRUPT_ACK: u64 = 0x064;
pub(crate) const STATUS: u64 = 0x070;
pub(crate) const QUEUE_DESC_LOW: u64 = 0x080;
pub(crate) const QUEUE_DESC_HIGH: u64 = 0x084;
pub(crate) const QUEUE_DRIVER_LOW: u64 = 0x090;
pub(crate) const QUEUE_DRIVER_HIGH: u64 = 0x094;
pub(crate) const QUEUE_DEVICE_LOW: u64 = 0x0a0;
pub(crate) const QUEUE_DEVICE_HIGH: u64 = 0x0a4;
pub(crate) const CONFIG_GENERATION: u64 = 0x0fc;
pub(crate) const CONFIG: u64 = 0x100;

/// "virt"
pub(crate) const MAGIC_VALUE: u32 = 0x7472_6976;
const VERSION_2: u32 = 2;

/// Device status bits.
pub(crate) const ACKNOWLEDGE: u32 = 1;
pub(crate) const DRIVER: u32 = 2;
pub(crate) const DRIVER_OK: u32 = 4;
pub(crate) const FEATURES_OK: u32 = 8;

/// Interrupt status: used buffers.
pub(crate) const USED_BUFFER: u32 = 1;

/// What a write asks of the device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    None,
    /// DRIVER_OK: these queues, by index, run with these features.
    Start(Vec<(u16, QueueLayout)>, u128),
    Notify(u16),
    Reset,
}

/// The registers of one device.
#[derive(Debug)]
pub(crate) struct Registers {
    about: DeviceDescription,
    status: u32,
    interrupt: u32,
    device_sel: u32,
    driver_sel: u32,
    features: u128,
    queue_sel: usize,
    queues: Vec<QueueRegisters>,
}

#[derive(Clone, Copy, Debug, Default)]
struct QueueRegisters {
    size: u16,
    ready: bool,
    /// Descriptors, driver area, device area.
    parts: [u64; 3],
}

impl Registers {
    pub(crate) fn new(about: DeviceDescription) -> Self {
        Self {
            queues: vec![QueueRegisters::default(); about.queue_max.len()],
            about,
            status: 0,
            interrupt: 0,
            device_sel: 0,
            driver_sel: 0,
            features: 0,
            queue_sel: 0,
        }
    }

    /// The value of `size` bytes at `offset`; 0 where there is nothing.
    pub(crate) fn read(&self, offset: u64, size: u32) -> u32 {
        let queue = self.queues.get(self.queue_sel);
        match offset {
            MAGIC => MAGIC_VALUE,
            VERSION => VERSION_2,
            DEVICE_ID => self.about.device_id,
            VENDOR_ID => self.about.vendor_id,
            DEVICE_FEATURES => word(self.about.features, self.device_sel),
            QUEUE_NUM_MAX => {
                let max = self.about.queue_max.get(self.queue_sel);
                max.copied().unwrap_or_default().into()
            }
            QUEUE_READY => queue.is_some_and(|queue| queue.ready).into(),
            INTERRUPT_STATUS => self.interrupt,
            STATUS => self.status,
            _ if offset >= CONFIG => self.config(offset - CONFIG, size),
            _ => 0,
        }
    }

    /// Writes a register.
    pub(crate) fn write(&mut self, offset: u64, value: u32) -> Effect {
        match offset {
            DEVICE_FEATURES_SEL => self.device_sel = value,
            DRIVER_FEATURES_SEL => self.driver_sel = value,
            DRIVER_FEATURES => self.accept(value),
            QUEUE_SEL => self.queue_sel = usize::try_from(value).unwrap_or(usize::MAX),
            INTERRUPT_ACK => self.interrupt &= !value,
            QUEUE_NOTIFY => return Effect::Notify(u16::try_from(value).unwrap_or(u16::MAX)),
            STATUS => return self.set_status(value),
            _ => self.write_queue(offset, value),
        }
        Effect::None
    }

    /// The device used buffers; true: the interrupt line rises.
    pub(crate) fn used(&mut self) -> bool {
        let rises = self.interrupt == 0;
        self.interrupt |= USED_BUFFER;
        rises
    }

    fn set_status(&mut self, status: u32) -> Effect {
        let started = status & !self.status & DRIVER_OK != 0;
        self.status = status;
        if status == 0 {
            *self = Self::new(self.about.clone());
            return Effect::Reset;
        }
        if !started {
            return Effect::None;
        }
        let ready = (0..).zip(&self.queues).filter(|(_, queue)| queue.ready);
        let layouts = ready.map(|(index, queue)| {
            let [desc, avail, used] = queue.parts;
            let size = queue.size;
            (
                index,
                QueueLayout {
                    size,
                    desc,
                    avail,
                    used,
                },
            )
        });
        Effect::Start(layouts.collect(), self.features)
    }

    fn accept(&mut self, value: u32) {
        if self.driver_sel < 2 {
            let shift = 32 * self.driver_sel;
            let others = self.features & !(u128::from(u32::MAX) << shift);
            self.features = others | u128::from(value) << shift & self.about.features;
        }
    }

    fn write_queue(&mut self, offset: u64, value: u32) {
        let Some(queue) = self.queues.get_mut(self.queue_sel) else {
            return;
        };
        let [desc, driver, device] = &mut queue.parts;
        match offset {
            QUEUE_NUM => queue.size = u16::try_from(value).unwrap_or_default(),
            QUEUE_READY => queue.ready = value == 1,
            QUEUE_DESC_LOW => set_low(desc, value),
            QUEUE_DESC_HIGH => set_high(desc, value),
            QUEUE_DRIVER_LOW => set_low(driver, value),
            QUEUE_DRIVER_HIGH => set_high(driver, value),
            QUEUE_DEVICE_LOW => set_low(device, value),
            QUEUE_DEVICE_HIGH => set_high(device, value),
            _ => {}
        }
    }

    fn config(&self, at: u64, size: u32) -> u32 {
        let bytes = (0..u64::from(size.min(4))).map(|byte| {
            let at = usize::try_from(at + byte).ok();
            at.and_then(|at| self.about.config.get(at).copied())
                .unwrap_or_default()
        });
        bytes
            .rev()
            .fold(0, |value, byte| value << 8 | u32::from(byte))
    }
}

/// The 32 feature bits that a selector selects.
fn word(features: u128, selector: u32) -> u32 {
    let [a, b, c, d] = bytes_of(features);
    [a, b, c, d]
        .get(usize::try_from(selector).unwrap_or(usize::MAX))
        .copied()
        .unwrap_or_default()
}

fn bytes_of(features: u128) -> [u32; 4] {
    let mut words = [0; 4];
    for (word, bytes) in words.iter_mut().zip(features.to_le_bytes().as_chunks().0) {
        *word = u32::from_le_bytes(*bytes);
    }
    words
}

fn set_low(address: &mut u64, value: u32) {
    *address = *address >> 32 << 32 | u64::from(value);
}

fn set_high(address: &mut u64, value: u32) {
    *address = *address & u64::from(u32::MAX) | u64::from(value) << 32;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registers() -> Registers {
        Registers::new(DeviceDescription {
            device_id: 2,
            vendor_id: 7,
            features: 1 << 33 | 1 << 32 | 1 << 9,
            config: vec![1, 2, 3, 4, 5],
            queue_max: vec![256, 128],
        })
    }

    #[test]
    fn features_are_read_and_accepted_in_words() {
        let mut registers = registers();
        assert_eq!(registers.read(DEVICE_FEATURES, 4), 1 << 9);
        registers.write(DEVICE_FEATURES_SEL, 1);
        assert_eq!(registers.read(DEVICE_FEATURES, 4), 3);
        registers.write(DEVICE_FEATURES_SEL, 9);
        assert_eq!(registers.read(DEVICE_FEATURES, 4), 0);
        registers.write(DRIVER_FEATURES_SEL, 1);
        registers.write(DRIVER_FEATURES, 0xffff_ffff);
        registers.write(DRIVER_FEATURES_SEL, 0);
        registers.write(DRIVER_FEATURES, 1 << 9 | 1);
        let effect = registers.write(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
        assert_eq!(effect, Effect::Start(vec![], 1 << 33 | 1 << 32 | 1 << 9));
    }

    #[test]
    fn the_queue_that_is_selected_gets_size_and_addresses() {
        let mut registers = registers();
        registers.write(QUEUE_SEL, 1);
        assert_eq!(registers.read(QUEUE_NUM_MAX, 4), 128);
        for (offset, value) in [
            (QUEUE_NUM, 64),
            (QUEUE_DESC_LOW, 0x1000),
            (QUEUE_DESC_HIGH, 1),
            (QUEUE_DRIVER_LOW, 0x2000),
            (QUEUE_DEVICE_HIGH, 2),
            (QUEUE_READY, 1),
        ] {
            assert_eq!(registers.write(offset, value), Effect::None);
        }
        assert_eq!(registers.read(QUEUE_READY, 4), 1);
        let layout = QueueLayout {
            size: 64,
            desc: 1 << 32 | 0x1000,
            avail: 0x2000,
            used: 2 << 32,
        };
        let effect = registers.write(STATUS, DRIVER_OK);
        assert_eq!(effect, Effect::Start(vec![(1, layout)], 0));
        // Said once.
        assert_eq!(registers.write(STATUS, DRIVER_OK), Effect::None);
        assert_eq!(registers.write(STATUS, 0), Effect::Reset);
        assert_eq!(registers.read(QUEUE_READY, 4), 0);
    }

    #[test]
    fn the_interrupt_rises_once_until_it_is_acknowledged() {
        let mut registers = registers();
        assert!(registers.used());
        assert!(!registers.used());
        assert_eq!(registers.read(INTERRUPT_STATUS, 4), USED_BUFFER);
        registers.write(INTERRUPT_ACK, USED_BUFFER);
        assert_eq!(registers.read(INTERRUPT_STATUS, 4), 0);
        assert!(registers.used());
    }

    #[test]
    fn configuration_is_little_endian_and_zero_behind_its_end() {
        let mut registers = registers();
        assert_eq!(registers.read(CONFIG, 4), 0x0403_0201);
        assert_eq!(registers.read(CONFIG + 1, 2), 0x0302);
        assert_eq!(registers.read(CONFIG + 4, 4), 5);
        assert_eq!(registers.write(QUEUE_NOTIFY, 3), Effect::Notify(3));
    }
}
